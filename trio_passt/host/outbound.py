"""Where sockets leave the host, if the operator says so: bound to an interface, to a source address, or to both.

What goes to the host itself is not bound: a socket that belongs to one interface can't reach the addresses of another.
"""

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import frozen

from trio_passt.config import Outbound
from trio_passt.errors import StartupError
from trio_passt.host.datagrams import packet_information
from trio_passt.host.endpoint import interface_index
from trio_passt.wire.ipv6 import is_link_local

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; not in Python 3.11's socket module

_REASONS = {
    errno.ENODEV: "no such interface",
    errno.EADDRNOTAVAIL: "not an address of this host",
    errno.EINVAL: "a link-local address needs an interface, too (--outbound-if6)",
    errno.EPERM: "takes the capability CAP_NET_RAW before Linux 5.7",
}
"""Of socket(7), ip(7) and ipv6(7)."""

_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENODEV})
"""Errors of bind(2) about the address; all others are about the port."""


class NoWayOutError(OSError):
    """The interface is not there, or the source address: to the guest it is that there is no route.

    `strerror` says what really is, `reason` only what is wrong with it.
    """

    def __init__(self, what: str, error: OSError) -> None:
        self.reason = _REASONS.get(error.errno or 0, error.strerror)
        super().__init__(errno.ENETUNREACH, f"{what}: {self.reason}")


@frozen
class Way:
    """One family's: the interface, and the packed source address; one of them at least."""

    interface: str | None = None
    source: bytes | None = None

    def bind(self, sock: socket.socket) -> None:
        """Before it is connected; the kernel chooses the port.  Raises NoWayOutError."""
        self.bind_to_interface(sock)
        self.bind_to_source(sock)

    def bind_to_interface(self, sock: socket.socket) -> None:
        """Its half (socket(7), SO_BINDTODEVICE).  Raises NoWayOutError."""
        if self.interface is None:
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(self.interface) + b"\0")
        except OSError as error:
            raise NoWayOutError(f"interface {self.interface}", error) from error

    def bind_to_source(self, sock: socket.socket, port: int = 0) -> None:
        """The other half, and the port (0: one of the kernel's choice, for TCP as late as possible).

        Raises NoWayOutError, or the OSError of a port that can't be had.
        """
        if self.source is None:
            return
        if sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        text = str(ip_address(self.source))
        try:
            if len(self.source) == 4:
                sock.bind((text, port))
            else:
                sock.bind((text, port, 0, self.interface_index if is_link_local(self.source) else 0))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            raise NoWayOutError(f"source address {text}", error) from error

    def of_one_datagram(self, address_bytes: int) -> tuple[int, int, bytes]:
        """What tells `sendmsg` (ip(7), IP_PKTINFO; ipv6(7), IPV6_PKTINFO).  Raises NoWayOutError."""
        index = self.interface_index
        if self.interface is not None and not index:
            raise NoWayOutError(f"interface {self.interface}", OSError(errno.ENODEV, ""))
        return packet_information(self.source or bytes(address_bytes), index)

    @property
    def interface_index(self) -> int:
        """The interface's number; 0 where there is none."""
        return interface_index(self.interface)


def way(outbound: Outbound, address_bytes: int) -> Way | None:
    """That of IPv4 (4 bytes) or IPv6 (16); `None`: as the host's routes say."""
    address: IPv4Address | IPv6Address | None
    if address_bytes == 4:
        address, interface = outbound.ipv4_address, outbound.ipv4_interface
    else:
        address, interface = outbound.ipv6_address, outbound.ipv6_interface
    if address is None and interface is None:
        return None
    return Way(interface, None if address is None else address.packed)


def check_outbound(outbound: Outbound) -> None:
    """Whether the host has what is asked for.  Raises StartupError, which names the option."""
    for family, version, address_bytes in ((socket.AF_INET, 4, 4), (socket.AF_INET6, 6, 16)):
        found = way(outbound, address_bytes)
        if found is not None:
            _check(found, family, version)


def _check(found: Way, family: socket.AddressFamily, version: int) -> None:
    by_interface = f"--outbound-if{version} {found.interface}"
    by_source = f"--outbound {ip_address(found.source)}" if found.source is not None else ""
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise StartupError(f"{by_source or by_interface}: {error.strerror}") from error
    with sock:
        try:
            found.bind_to_interface(sock)
        except NoWayOutError as error:
            raise StartupError(f"{by_interface}: {error.reason}") from error
        try:
            found.bind_to_source(sock)
        except NoWayOutError as error:
            raise StartupError(f"{by_source}: {error.reason}") from error
