"""How the sockets of forwarded ports are made: an `Opener` makes those of one forward in one address family.

It may do so in a process of its own, which has little memory (see `host.side`): nothing large is imported here.
"""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from heapq import merge
from ipaddress import IPv6Address, ip_address
from itertools import groupby, repeat
from operator import itemgetter

from trio_passt.config import PortForward, Protocol
from trio_passt.host import error_queue
from trio_passt.host.holder import BoundPort

BACKLOG = 1024
"""Limited by net.core.somaxconn; connections wait here only until the task's next turn."""

MISSING_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
"""Errors of a host that lacks an address family."""

OF_THE_PLACE = MISSING_FAMILY | {errno.ENODEV}
"""Errors about an address, an interface or a family: they are the same for all its ports."""

MARK = 43 << 2
"""The traffic class of a namespace's loopback ports: it never leaves that, and whoever lists the sockets there can tell
that they are a program's like this one.  A code point for local use (RFC 2474 section 6)."""

IP_PKTINFO, IP_FREEBIND, IPV6_FREEBIND = 8, 15, 78  # linux/in.h, linux/in6.h; not in Python 3.11's socket module

_WILDCARD: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_MARKS: dict[int, tuple[int, int, int | bytes]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, MARK),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, MARK),
}
_LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Opener:
    """Makes the sockets of one forward in one family, bound, and listening if they are TCP's."""

    __slots__ = (
        "_address",
        "_host",
        "_is_tcp",
        "_kind",
        "_options",
        "_place",
        "family",
        "forward",
        "freebind",
        "on_loopback",
    )

    def __init__(
        self, forward: PortForward, family: socket.AddressFamily, *, freebind: bool, on_loopback: bool = False
    ) -> None:
        self.forward = forward
        self.family = family
        self.freebind = freebind
        self.on_loopback = on_loopback
        self._is_tcp = forward.protocol is Protocol.TCP
        kind = socket.SOCK_STREAM if self._is_tcp else socket.SOCK_DGRAM
        self._kind = kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._host = str(forward.address or (_LOOPBACK if on_loopback else _WILDCARD)[family])
        self._address = ip_address(self._host)
        self._place = " in the namespace" if on_loopback else ""
        options = list(_options(forward, is_ipv6=family == socket.AF_INET6, freebind=freebind))
        if on_loopback and self._address.is_loopback:
            options.append(_MARKS[family])
        self._options = tuple(options)

    @classmethod
    def all_of(cls, forward: PortForward, *, freebind: bool, on_loopback: bool = False) -> list["Opener"]:
        """One for each family that the forward is of.

        `on_loopback`, of those in a namespace: where a forward names no address, loopback is meant.
        """
        if forward.address is None:
            families = [socket.AF_INET, socket.AF_INET6]
        else:
            families = [socket.AF_INET6 if isinstance(forward.address, IPv6Address) else socket.AF_INET]
        return [cls(forward, family, freebind=freebind, on_loopback=on_loopback) for family in families]

    def open(self, port: int) -> socket.socket:
        """A socket of this port of the host's.  Raises OSError."""
        sock = socket.socket(self.family, self._kind)
        try:
            for level, option, value in self._options:
                sock.setsockopt(level, option, value)
            sock.bind(self._name(port))
            if self._is_tcp:
                sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def _name(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        address, interface = self.forward.address, self.forward.interface
        if address is not None and address.version == 6 and address.is_link_local and interface is not None:
            return (self._host, port, 0, socket.if_nametoindex(interface))  # ipv6(7), sin6_scope_id
        return (self._host, port)

    @property
    def where(self) -> str:
        """What is bound of the host: `192.0.2.1%eth0`; or of the namespace."""
        interface = f"%{self.forward.interface}" if self.forward.interface is not None else ""
        return self._host + interface + self._place

    def bound(self, port: int) -> BoundPort:
        """What somebody else has who has this port."""
        return BoundPort(self.forward.protocol, self._address, port)


def _options(forward: PortForward, *, is_ipv6: bool, freebind: bool) -> Iterator[tuple[int, int, int | bytes]]:
    """Before the bind: one family, quick restarts, and for UDP the address that a datagram was sent to, and errors."""
    if is_ipv6:
        yield (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if forward.interface is not None:
        yield (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(forward.interface) + b"\0")
    if freebind:
        yield (socket.IPPROTO_IPV6, IPV6_FREEBIND, 1) if is_ipv6 else (socket.IPPROTO_IP, IP_FREEBIND, 1)
    if forward.protocol is Protocol.TCP:
        yield (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif is_ipv6:
        yield (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        yield (socket.IPPROTO_IPV6, error_queue.IPV6_RECVERR, 1)
    else:
        yield (socket.IPPROTO_IP, IP_PKTINFO, 1)
        yield (socket.IPPROTO_IP, error_queue.IP_RECVERR, 1)


def by_port(openers: Iterable[Opener]) -> Iterator[tuple[int, list[Opener]]]:
    """All ports in ascending order, each with those who have it to open."""
    pairs = merge(*(zip(opener.forward.ports, repeat(opener)) for opener in openers), key=itemgetter(0))
    for port, group in groupby(pairs, itemgetter(0)):
        yield port, [opener for _, opener in group]
