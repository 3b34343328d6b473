"""Messages of the kernel about its network, as far as they have to be looked at quickly: rtnetlink(7), netlink(7).

What is in the few that matter at start and when the host's network changes is pyroute2's to parse
(`trio_passt.host.netlink`).  Numbers have the host's byte order.
"""

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Self

NETLINK_ROUTE = 0
_HEADER = struct.Struct("=IHHII")
"""Length, header included; type; flags; sequence number; port."""

_ATTRIBUTE = struct.Struct("=HH")
"""Length, this included; type, of which the two highest bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
GETADDR, GETROUTE = 22, 26
NEWNEXTHOP, DELNEXTHOP = 104, 105
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLMSGERR_ATTR_MSG = 1

_ROUTE = struct.Struct("=BBBBBBBBI")
_RECEIVE_BYTES = 1 << 20
_ATTEMPTS = 5


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and body of each message that is whole."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += aligned(length)


def aligned(length: int) -> int:
    """Lengths are rounded up to 4 bytes."""
    return (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, without its flags, and value of each attribute that is whole."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += aligned(length)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def dump(kind: int, body: bytes, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """The bodies of all messages in the answer to the request `kind` (RTM_GET...) that are `wanted`.

    Raises OSError.
    """
    with _open() as sock:
        for _ in range(_ATTEMPTS):
            found = _dump(sock, kind, body, wanted)
            if found is not None:
                return [body for _, _, body in found]
    raise InterruptedError("the host's addresses and routes change too quickly to be read")


def dump_default_routes(family: int) -> list[bytes]:
    """Each route of `family` without a destination, of all tables, as a message with its header.

    The kernel can't be asked for these alone, and a router has a million others: they are passed over by their headers.
    Raises OSError.
    """
    asked = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    with _open() as sock:
        for _ in range(_ATTEMPTS):
            routes = _dump(sock, GETROUTE, asked, lambda body: body[1] == 0)
            if routes is not None:
                return [
                    _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body for kind, flags, body in routes
                ]
    raise InterruptedError("the host's routes change too quickly to be read")


class Requests:
    """Changes of the network of the namespace that this was made in, one after the other; a context manager."""

    def __init__(self) -> None:
        """Raises OSError where there is no netlink."""
        self._socket = _open()
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def make(self, kind: int, flags: int, body: bytes) -> None:
        """Ask for one, and wait for it.  Raises OSError, with what the kernel says about it."""
        flags |= _NLM_F_REQUEST | _NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        for answer, answer_flags, answer_body in messages(self._socket.recv(_RECEIVE_BYTES)):
            if answer == _NLMSG_ERROR and (number := _error_number(answer_body)):
                raise OSError(number, _explanation(answer_flags, answer_body) or os.strerror(number))


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    try:
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _dump(
    sock: socket.socket, kind: int, asked: bytes, wanted: Callable[[bytes], bool]
) -> list[tuple[int, int, bytes]] | None:
    """None if what is asked for changed meanwhile, so that some may be missing."""
    sock.send(_HEADER.pack(_HEADER.size + len(asked), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + asked)
    found: list[tuple[int, int, bytes]] = []
    was_interrupted = False
    while True:
        for answer, flags, body in messages(sock.recv(_RECEIVE_BYTES)):
            was_interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if answer == _NLMSG_DONE:
                return None if was_interrupted else found
            if answer == _NLMSG_ERROR:
                number = _error_number(body)
                raise OSError(number, f"the kernel does not list its network: {os.strerror(number)}")
            if answer == kind - 2 and wanted(body):  # RTM_NEW... is two before RTM_GET...
                found.append((answer, flags, body))


def _error_number(body: bytes) -> int:
    return -int.from_bytes(body[:4], sys.byteorder, signed=True)


def _explanation(flags: int, body: bytes) -> str:
    """What the kernel says besides a number (NETLINK_EXT_ACK of netlink(7)), after what it repeats of the request."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    length = _HEADER.size if flags & _NLM_F_CAPPED else aligned(_HEADER.unpack_from(body, 4)[0])
    found = dict(attributes(body[4 + length :]))
    return found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
