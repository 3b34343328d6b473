"""Messages of the kernel about its network, as far as they have to be looked at quickly: rtnetlink(7), netlink(7).

What is in the few that matter is pyroute2's to parse (`trio_passt.host.netlink`).  Numbers have the host's byte order.
"""

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator

NETLINK_ROUTE = 0
_HEADER = struct.Struct("=IHHII")
"""Length, header included; type; flags; sequence number; port."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
_GETROUTE = 26
NEWNEXTHOP, DELNEXTHOP = 104, 105
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x10, 0x300

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


def dump_default_routes(family: int) -> list[bytes]:
    """Each route of `family` without a destination, of all tables, as a message with its header.  Raises OSError."""
    return dump_routes(family, lambda body: body[1] == 0)


def dump_routes(family: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Each route of `family` whose body, from `struct rtmsg` on, is `wanted`, as a message with its header.

    The kernel can't be asked for these alone, and a router has a million others: they are passed over before anything
    is parsed.  Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        for _ in range(_ATTEMPTS):
            routes = _dump(sock, family, wanted)
            if routes is not None:
                return routes
    raise InterruptedError("the host's routes change too quickly to be read")


def _dump(sock: socket.socket, family: int, wanted: Callable[[bytes], bool]) -> list[bytes] | None:
    """None if the routes changed meanwhile, so that some may be missing."""
    asked = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    sock.send(_HEADER.pack(_HEADER.size + len(asked), _GETROUTE, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + asked)
    routes: list[bytes] = []
    was_interrupted = False
    while True:
        for kind, flags, body in messages(sock.recv(_RECEIVE_BYTES)):
            was_interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                return None if was_interrupted else routes
            if kind == _NLMSG_ERROR:
                number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                raise OSError(number, f"the routes can't be read: {os.strerror(number)}")
            if kind == NEWROUTE and wanted(body):
                routes.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body)
