"""Messages as the kernel sends them to who watches its network: netlink(7), rtnetlink(7)."""

import struct
from ipaddress import ip_address

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
REPLACE = 0x100
NEWNEXTHOP, DELNEXTHOP = 104, 105
UP, RUNNING = 0x1, 0x40
MAIN = 254


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """With its header, and filled up to four bytes."""
    length = 16 + len(body)
    return struct.pack("=IHHII", length, kind, flags, 1, 0) + body + bytes(-length % 4)


def attribute(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), code) + value + bytes(-len(value) % 4)


def link(kind: int = NEWLINK, *, name: str = "eth0", index: int = 2, flags: int = UP, others: bytes = b"") -> bytes:
    """An interface; `others` are attributes."""
    head = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    return message(kind, head + attribute(3, name.encode() + b"\0") + others)


def address(
    kind: int = NEWADDR,
    text: str = "192.0.2.2/24",
    *,
    index: int = 2,
    flags: int = 0x80,
    lifetimes_s: tuple[int, int] = (3600, 7200),
) -> bytes:
    """An address of an interface; the lifetimes are the preferred and the valid one."""
    host, _, length = text.partition("/")
    parsed = ip_address(host)
    head = struct.pack("=BBBBI", 2 if parsed.version == 4 else 10, int(length), flags & 0xFF, 0, index)
    attributes = attribute(1, parsed.packed) + attribute(8, struct.pack("=I", flags))
    if parsed.version == 4:
        attributes = attribute(2, parsed.packed) + attributes
    return message(kind, head + attributes + attribute(6, struct.pack("=IIII", *lifetimes_s, 77, 78)))


def route(
    kind: int = NEWROUTE,
    gateway: str = "192.0.2.1",
    *,
    to_bits: int = 0,
    metric: int = 100,
    table: int = MAIN,
    flags: int = 0,
    expires_s: int | None = None,
) -> bytes:
    """A route by `gateway`, to everywhere or to a network with a prefix of `to_bits`."""
    parsed = ip_address(gateway)
    family = 2 if parsed.version == 4 else 10
    head = struct.pack("=BBBBBBBBI", family, to_bits, 0, 0, table, 3, 0, 1, 0)
    attributes = attribute(15, struct.pack("=I", table)) + attribute(6, struct.pack("=I", metric))
    if to_bits:
        attributes += attribute(1, bytes(len(parsed.packed)))
    attributes += attribute(5, parsed.packed) + attribute(4, struct.pack("=I", 2))
    if expires_s is not None:
        attributes += attribute(12, struct.pack("=IIIIIIII", 0, 0, expires_s, *([0] * 5)))
        attributes += attribute(23, struct.pack("=I", expires_s))
    return message(kind, head + attributes, flags)


def nexthop(kind: int = NEWNEXTHOP, number: int = 7, gateway: str = "192.0.2.1") -> bytes:
    """A next hop that routes may refer to by its number."""
    parsed = ip_address(gateway)
    head = struct.pack("=BBBBI", 2 if parsed.version == 4 else 10, 0, 0, 0, 0)
    attributes = attribute(1, struct.pack("=I", number)) + attribute(5, struct.pack("=I", 2))
    return message(kind, head + attributes + attribute(6, parsed.packed))
