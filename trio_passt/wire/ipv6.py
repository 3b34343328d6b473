"""IPv6 (RFC 8200): the fixed header and the fragment header, and a walk over extension headers to the upper layer."""

import struct

from attrs import frozen

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

HEADER_BYTES = 40
FRAGMENT_HEADER_BYTES = 8
DEFAULT_HOP_LIMIT = 64
_HEADER = struct.Struct("!IHBB16s16s")
_FRAGMENT = struct.Struct("!BxHI")
_MORE_FRAGMENTS = 1
_OFFSET_MASK = 0xFFF8

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
AUTHENTICATION = 51
NO_NEXT_HEADER = 59
DESTINATION_OPTIONS = 60
_LINK_LOCAL_PREFIX = 0xFE80 >> 6
_WALKED_OVER = frozenset({HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS})


def is_link_local(address: bytes) -> bool:
    """Whether a packed address is an IPv6 link-local one (fe80::/10, RFC 4291 section 2.5.6)."""
    return len(address) == 16 and int.from_bytes(address[:2], "big") >> 6 == _LINK_LOCAL_PREFIX


@frozen
class IPv6Header:
    """The fixed header; `protocol` is that of the upper layer, after any extension headers.

    Addresses are packed (16 bytes).  `fragment_offset` (bytes), `more_fragments` and `identification` are
    those of a fragment header, if there was one.  The `protocol` of a fragment is its fragment header's next header,
    which may be that of another extension header.
    """

    source: bytes
    destination: bytes
    protocol: int
    hop_limit: int = DEFAULT_HOP_LIMIT
    traffic_class: int = 0
    flow_label: int = 0
    more_fragments: bool = False
    fragment_offset: int = 0
    identification: int = 0

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a larger datagram; an "atomic" fragment (RFC 6946) is a whole one."""
        return self.more_fragments or self.fragment_offset > 0


def parse(packet: Buffer) -> tuple[IPv6Header, memoryview]:
    """Header and upper-layer payload (a view) of an IPv6 packet; bytes after the payload length are padding.

    The payload of a fragment is its part, all that follows the fragment header.  No headers in it are walked over:
    it is from there that offsets count, and later fragments have none (RFC 8200 section 4.5).

    Malformed: another version, a payload length that the bytes do not have (a jumbogram's 0 included), an
    extension header that runs over the end, two fragment headers.
    """
    view = memoryview(packet)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"IPv6 packet of {len(view)} bytes")
    first_word, payload_bytes, next_header, hop_limit, source, destination = _HEADER.unpack_from(view)
    if first_word >> 28 != 6:
        raise MalformedPacket(f"IPv6 packet with version {first_word >> 28}")
    if HEADER_BYTES + payload_bytes > len(view):
        raise MalformedPacket(f"IPv6 payload length {payload_bytes}, there are {len(view) - HEADER_BYTES}")
    more, offset, ident = False, 0, 0
    next_header, payload = _walk(next_header, view[HEADER_BYTES : HEADER_BYTES + payload_bytes])
    if next_header == FRAGMENT:
        if len(payload) < FRAGMENT_HEADER_BYTES:
            raise MalformedPacket("IPv6 fragment header cut short")
        next_header, offset_and_flag, ident = _FRAGMENT.unpack_from(payload)
        more, offset = bool(offset_and_flag & _MORE_FRAGMENTS), offset_and_flag & _OFFSET_MASK
        payload = payload[FRAGMENT_HEADER_BYTES:]
        if not more and not offset:
            next_header, payload = upper_layer(next_header, payload)
    header = IPv6Header(
        source,
        destination,
        next_header,
        hop_limit,
        (first_word >> 20) & 0xFF,
        first_word & 0xFFFFF,
        more,
        offset,
        ident,
    )
    return header, payload


def upper_layer(next_header: int, payload: Buffer) -> tuple[int, memoryview]:
    """Protocol and payload (a view) of the upper layer in what a fragment header was before: all parts of a packet.

    `next_header` is the fragment header's; extension headers at the start of `payload` are walked over.  Malformed:
    an extension header that runs over the end, a second fragment header.
    """
    protocol, rest = _walk(next_header, memoryview(payload))
    if protocol == FRAGMENT:  # or the second would hide what the first says
        raise MalformedPacket("IPv6 packet with two fragment headers")
    return protocol, rest


def _walk(next_header: int, payload: memoryview) -> tuple[int, memoryview]:
    """To the first header that is the upper layer's or a fragment header: its number, and it with all that follows."""
    while next_header in _WALKED_OVER:
        if len(payload) < 8:
            raise MalformedPacket(f"IPv6 extension header {next_header} cut short")
        this_header, next_header = next_header, payload[0]
        length = (payload[1] + 2) * 4 if this_header == AUTHENTICATION else (payload[1] + 1) * 8
        if length > len(payload):
            raise MalformedPacket(f"IPv6 extension header {this_header} of {length} bytes, {len(payload)} left")
        payload = payload[length:]
    return next_header, payload


def emit(header: IPv6Header, payload_bytes: int) -> bytes:
    """The 40 bytes of the fixed header for a payload of `payload_bytes`; for a fragment, 8 of a fragment header too."""
    first_word = (6 << 28) | (header.traffic_class << 20) | header.flow_label
    ends = (header.source, header.destination)
    if not header.is_fragment:
        return _HEADER.pack(first_word, payload_bytes, header.protocol, header.hop_limit, *ends)
    offset_and_flag = header.fragment_offset | (_MORE_FRAGMENTS if header.more_fragments else 0)
    fixed = _HEADER.pack(first_word, FRAGMENT_HEADER_BYTES + payload_bytes, FRAGMENT, header.hop_limit, *ends)
    return fixed + _FRAGMENT.pack(header.protocol, offset_and_flag, header.identification)
