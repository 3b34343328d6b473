"""IPv4 (RFC 791): headers with options skipped, fragments recognised."""

import struct

from attrs import frozen

from trio_passt.wire import checksum
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

HEADER_BYTES = 20
DEFAULT_TTL = 64
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000
_OFFSET_MASK = 0x1FFF


@frozen
class IPv4Header:
    """A header without its options.  Addresses are packed (4 bytes); `fragment_offset` is in bytes."""

    source: bytes
    destination: bytes
    protocol: int
    ttl: int = DEFAULT_TTL
    identification: int = 0
    dont_fragment: bool = True
    more_fragments: bool = False
    fragment_offset: int = 0
    traffic_class: int = 0

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a larger datagram (RFC 791 section 2.3)."""
        return self.more_fragments or self.fragment_offset > 0


def parse(packet: Buffer) -> tuple[IPv4Header, memoryview]:
    """Header and payload (a view) of an IPv4 packet; bytes after the packet's total length are padding.

    Malformed: another version, a header shorter than 20 bytes or longer than the packet, a total length that
    the bytes do not have, a wrong header checksum.
    """
    view = memoryview(packet)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"IPv4 packet of {len(view)} bytes")
    version_ihl, tos, total, ident, flags, ttl, protocol, _, source, destination = _HEADER.unpack_from(view)
    header_bytes = (version_ihl & 0x0F) * 4
    if version_ihl >> 4 != 4:
        raise MalformedPacket(f"IPv4 packet with version {version_ihl >> 4}")
    if header_bytes < HEADER_BYTES or header_bytes > total or total > len(view):
        raise MalformedPacket(f"IPv4 lengths: header {header_bytes}, total {total}, there are {len(view)}")
    if not checksum.is_valid(view[:header_bytes]):
        raise MalformedPacket("IPv4 header checksum")
    header = IPv4Header(
        source,
        destination,
        protocol,
        ttl,
        ident,
        bool(flags & _DONT_FRAGMENT),
        bool(flags & _MORE_FRAGMENTS),
        (flags & _OFFSET_MASK) * 8,
        tos,
    )
    return header, view[header_bytes:total]


def emit(header: IPv4Header, payload_bytes: int) -> bytes:
    """The 20 bytes of `header`, checksum filled in, for a payload of `payload_bytes`."""
    flags = header.fragment_offset // 8
    if header.dont_fragment:
        flags |= _DONT_FRAGMENT
    if header.more_fragments:
        flags |= _MORE_FRAGMENTS
    total = HEADER_BYTES + payload_bytes
    fields = (0x45, header.traffic_class, total, header.identification, flags, header.ttl)
    ends = (header.source, header.destination)
    blank = _HEADER.pack(*fields, header.protocol, 0, *ends)
    return _HEADER.pack(*fields, header.protocol, checksum.checksum(blank), *ends)
