"""The two sides of a namespace guest: where a socket is made decides whose network it belongs to."""

import socket
from typing import Protocol

from trio_passt.host.opener import Opener

NETLINK_SOCK_DIAG = 4


class Side(Protocol):
    """A network namespace, as far as sockets of it can be had.  All of them are non-blocking; all raise OSError."""

    def socket(self, family: int, kind: int) -> socket.socket:
        """A new one, not bound; `kind` is SOCK_STREAM or SOCK_DGRAM."""

    def open(self, opener: Opener, port: int) -> socket.socket:
        """What `opener.open(port)` makes there."""

    def diagnostics(self) -> socket.socket:
        """One that the kernel lists this side's sockets by: sock_diag(7)."""


class Here:
    """The side that this process is on."""

    def socket(self, family: int, kind: int) -> socket.socket:
        """A new one."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def open(self, opener: Opener, port: int) -> socket.socket:
        """Make it."""
        return opener.open(port)

    def diagnostics(self) -> socket.socket:
        """Of this network namespace."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)
