"""Connections between loopback here and loopback in the guest's namespace, from socket to socket, past the tap."""
