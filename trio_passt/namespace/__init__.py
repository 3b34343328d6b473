"""A network namespace as the guest: entered or made, given a tap, configured, and served with sockets of its own."""
