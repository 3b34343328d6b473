"""What listens at a side: TCP sockets that listen, UDP sockets that are bound and not connected.

The kernel lists them by sock_diag(7), for whoever asks; a netlink socket is asked about the network namespace that it
was made in.  Where the kernel was built without that, /proc/net has the same list as text (proc(5)), without the
interface that a socket is bound to, and not saying whether an IPv6 socket takes IPv4, too: then that is assumed, since
it is the default.

The parsers are pure, and raise `MalformedListing` or succeed.
"""

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address
from typing import NamedTuple

import trio

from trio_passt.config import Protocol
from trio_passt.host.endpoint import is_loopback
from trio_passt.host.holder import proc_address
from trio_passt.host.opener import MARK
from trio_passt.host.rtnetlink import aligned, messages
from trio_passt.host.side import Side

CLOSE, LISTEN = 7, 10
"""States (linux/tcp_states.h).  A UDP socket is closed until it is connected."""

FIN_WAIT_1, LAST_ACK, CLOSING = 4, 9, 11
"""A TCP socket that has ended, and whose peer has not acknowledged that yet."""

LOOPBACK_INTERFACE = 1
"""The number of `lo`, in each network namespace."""

_PROTOCOL_NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_STATE = {Protocol.TCP: LISTEN, Protocol.UDP: CLOSE}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR, _NLMSG_DONE = 20, 2, 3  # linux/sock_diag.h, linux/netlink.h
_NLM_F_REQUEST_DUMP = 0x301
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
"""struct inet_diag_req_v2 of linux/inet_diag.h: family, protocol, extensions, states; nothing about the socket."""
_MESSAGE = struct.Struct("=BB2x 2s2s 16s16s I 8x 12x II")
"""struct inet_diag_msg: family, state; ports, addresses, interface; user, inode."""
_ATTRIBUTE = struct.Struct("=HH")
_INET_DIAG_TOS, _INET_DIAG_TCLASS, _INET_DIAG_SKV6ONLY = 5, 6, 11
_EXTENSIONS = 1 << (_INET_DIAG_TOS - 1) | 1 << (_INET_DIAG_TCLASS - 1)

_KERNEL = 0
"""Its address (netlink(7)); but root in a namespace can send to a netlink socket of it, too."""

_RECEIVE_BYTES = 1 << 16
_NOT_BY_NETLINK = frozenset(
    {errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES}
    | {errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT}
)
"""What is said by a kernel without it, or a sandbox."""


class MalformedListing(Exception):  # noqa: N818 - as MalformedPacket
    """It is not what the kernel would say."""


class BoundSocket(NamedTuple):
    """A socket with a port.

    `address` is packed; that of IPv4 also if the socket is of IPv6 and bound to an IPv4-mapped one.  `is_dual`: one of
    IPv6 that is bound to all addresses, IPv4's, too.  `interface` is the number of the one it is bound to, or 0.
    `is_marked`: it is a forwarded port at a namespace's loopback, of whatever program like this one.
    """

    protocol: Protocol
    address: bytes
    port: int
    inode: int
    interface: int = 0
    is_dual: bool = False
    is_marked: bool = False

    @property
    def is_wildcard(self) -> bool:
        """Whether it is bound to all addresses of its family."""
        return not any(self.address)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody else can reach it than who is there."""
        return self.interface == LOOPBACK_INTERFACE or is_loopback(self.address)


# -- sock_diag(7): pure ------------------------------------------------------------------------------------------------


def request(protocol: Protocol, family: int, states: Iterable[int], number: int) -> bytes:
    """The question for all sockets in one of these states."""
    mask = sum(1 << state for state in set(states))
    body = _REQUEST.pack(family, _PROTOCOL_NUMBER[protocol], _EXTENSIONS, 0, mask)
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, number, 0)
    return header + body


class Part(NamedTuple):
    """A part of an answer: sockets, and whether it is the last one; or the number of an error, which is the last."""

    sockets: list[BoundSocket]
    is_last: bool
    error: int


def parse_part(data: bytes, protocol: Protocol) -> Part:
    """One message of the kernel's.  Raises MalformedListing."""
    sockets: list[BoundSocket] = []
    for kind, _, body in messages(data):
        if kind == _NLMSG_DONE:
            return Part(sockets, True, 0)
        if kind == _NLMSG_ERROR:
            if len(body) < 4:
                raise MalformedListing("an error without number")
            number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            return Part(sockets, True, number if number > 0 else errno.EPROTO)
        if kind == _SOCK_DIAG_BY_FAMILY:
            found = _parse_socket(body, protocol)
            if found is not None:
                sockets.append(found)
    return Part(sockets, False, 0)


def _parse_socket(body: bytes, protocol: Protocol) -> BoundSocket | None:
    if len(body) < _MESSAGE.size:
        raise MalformedListing("a socket that is cut")
    family, _, port, peer_port, address, _, interface, _, inode = _MESSAGE.unpack_from(body)
    if any(peer_port) and protocol is Protocol.UDP:
        return None
    is_dual = False
    if family == socket.AF_INET:
        address = address[:4]
    elif family == socket.AF_INET6:
        is_dual = not any(address) and not _attribute(body, _INET_DIAG_SKV6ONLY)
    else:
        raise MalformedListing("a socket of another family")
    found = BoundSocket(protocol, _plain(address), int.from_bytes(port, "big"), inode, interface, is_dual)
    if found.is_loopback:
        traffic_class = _attribute(body, _INET_DIAG_TOS if family == socket.AF_INET else _INET_DIAG_TCLASS)
        return found._replace(is_marked=traffic_class == MARK)
    return found


def _attribute(body: bytes, wanted: int) -> int:
    """The value of one that is a byte; 0 if it is not there."""
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if not _ATTRIBUTE.size <= length <= len(body) - at:
            raise MalformedListing("an attribute that is cut")
        if kind == wanted and length > _ATTRIBUTE.size:
            return body[at + _ATTRIBUTE.size]
        at += aligned(length)
    return 0


def _plain(address: bytes) -> bytes:
    """An IPv4-mapped address is one of IPv4."""
    mapped = IPv6Address(address).ipv4_mapped if len(address) == 16 and not any(address[:10]) else None
    return address if mapped is None else mapped.packed


# -- proc(5): pure -----------------------------------------------------------------------------------------------------


def parse_proc_net(text: bytes, protocol: Protocol, family: int, states: Collection[int]) -> list[BoundSocket]:
    """The same of a file of /proc/net.  Raises MalformedListing."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split(None, 10)
        try:
            address, port = fields[1].split(b":")
            _, peer_port = fields[2].split(b":")
            state, inode = int(fields[3], 16), int(fields[9])
            packed = proc_address(address).packed
            number, peer = int(port, 16), int(peer_port, 16)
        except (ValueError, IndexError) as error:
            raise MalformedListing("a line of something else") from error
        if len(packed) != (4 if family == socket.AF_INET else 16) or not 0 <= number <= 0xFFFF or inode < 0:
            raise MalformedListing("a line of something else")
        if state not in states or (peer and protocol is Protocol.UDP):
            continue
        is_dual = len(packed) == 16 and not any(packed)
        found.append(BoundSocket(protocol, _plain(packed), number, inode, 0, is_dual))
    return found


# -- asking ------------------------------------------------------------------------------------------------------------


class Listing:
    """One side, which is asked again and again."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._netlink: socket.socket | None = None
        self._uses_proc = False
        self._number = 0
        self.spent_s = 0.0
        """How long the last `read` had the processor."""

    async def read(self, protocol: Protocol, states: Collection[int] = ()) -> list[BoundSocket]:
        """Those that listen, or TCP's in these states.  Others have their turn between.  Raises OSError."""
        states = states or (_STATE[protocol],)
        self.spent_s = 0.0
        found: list[BoundSocket] = []
        for family in _FAMILIES:
            since = time.thread_time()
            for part in self._parts(protocol, family, states):
                found += part
                self.spent_s += time.thread_time() - since
                await trio.lowlevel.checkpoint()
                since = time.thread_time()
        return found

    def _parts(self, protocol: Protocol, family: int, states: Collection[int]) -> Iterator[list[BoundSocket]]:
        if not self._uses_proc:
            try:
                yield from self._dump(protocol, family, states)
                return
            except OSError as error:
                if error.errno not in _NOT_BY_NETLINK:
                    raise
                self._uses_proc = True
        name = protocol.value + ("6" if family == socket.AF_INET6 else "")
        text = b""
        with suppress(FileNotFoundError):  # without IPv6
            text = self._side.proc_net(name)
        try:
            yield parse_proc_net(text, protocol, family, states)
        except MalformedListing as error:
            raise OSError(errno.EPROTO, f"/proc/net/{name}: {error}") from error

    def _dump(self, protocol: Protocol, family: int, states: Collection[int]) -> Iterator[list[BoundSocket]]:
        """All that is ready at once: the kernel answers while it is asked."""
        if self._netlink is None:
            self._netlink = self._side.diagnostics()
        self._number = self._number % 0x7FFFFFFF + 1
        netlink = self._netlink
        has_ended = False
        try:
            netlink.send(request(protocol, family, states, self._number))
            while not has_ended:
                data, (sender, _) = netlink.recvfrom(_RECEIVE_BYTES)
                part = parse_part(data, protocol) if sender == _KERNEL else Part([], False, 0)
                has_ended = part.is_last
                if part.error:
                    raise OSError(part.error, os.strerror(part.error))
                yield part.sockets
        except MalformedListing as error:
            raise OSError(errno.EPROTO, f"sock_diag: {error}") from error
        finally:
            if not has_ended:
                self.close()  # with the rest of the answer

    def close(self) -> None:
        """Close what it asks by."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
