"""The two sides of a namespace guest: where a socket is made decides whose network it belongs to."""

import socket
from pathlib import Path
from typing import Protocol

from trio_passt.host.opener import Opener

NETLINK_SOCK_DIAG = 4

Socket = socket.socket
"""Within the classes below `socket` is a method."""


class Side(Protocol):
    """A network namespace, as far as sockets of it can be had.  All of them are non-blocking; all raise OSError."""

    def socket(self, family: int, kind: int) -> Socket:
        """A new one, not bound; `kind` is SOCK_STREAM or SOCK_DGRAM."""

    def open(self, opener: Opener, port: int) -> Socket:
        """What `opener.open(port)` makes there."""

    def diagnostics(self) -> Socket:
        """One that the kernel lists this side's sockets by: sock_diag(7)."""

    def proc_net(self, name: str) -> bytes:
        """What /proc/net/NAME says at that side: proc_pid_net(5)."""


class Here:
    """The side that this process is on."""

    def socket(self, family: int, kind: int) -> Socket:
        """A new one."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def open(self, opener: Opener, port: int) -> Socket:
        """Make it."""
        return opener.open(port)

    def diagnostics(self) -> Socket:
        """Of this network namespace."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)

    def proc_net(self, name: str) -> bytes:
        """Of this network namespace."""
        return (Path("/proc/net") / name).read_bytes()
