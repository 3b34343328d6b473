"""What every protocol's flows share: key, table, address translation, waking up, supervision."""
