"""From argv to a running daemon: options, port specifications, messages, background."""
