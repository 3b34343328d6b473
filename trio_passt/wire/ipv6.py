"""IPv6 (RFC 8200): the fixed header, and a walk over extension headers to the upper layer."""

import struct

from attrs import frozen

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

HEADER_BYTES = 40
DEFAULT_HOP_LIMIT = 64
_HEADER = struct.Struct("!IHBB16s16s")

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
AUTHENTICATION = 51
NO_NEXT_HEADER = 59
DESTINATION_OPTIONS = 60
_EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS})


@frozen
class IPv6Header:
    """The fixed header; `protocol` is that of the upper layer, after any extension headers.

    Addresses are packed (16 bytes).  `fragment_offset` (bytes), `more_fragments` and `identification` are
    those of a fragment header, if there was one.
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

    Malformed: another version, a payload length that the bytes do not have (a jumbogram's 0 included), an
    extension header that runs over the end, two fragment headers.  The payload of a fragment is its
    part.
    """
    view = memoryview(packet)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"IPv6 packet of {len(view)} bytes")
    first_word, payload_bytes, next_header, hop_limit, source, destination = _HEADER.unpack_from(view)
    if first_word >> 28 != 6:
        raise MalformedPacket(f"IPv6 packet with version {first_word >> 28}")
    if HEADER_BYTES + payload_bytes > len(view):
        raise MalformedPacket(f"IPv6 payload length {payload_bytes}, there are {len(view) - HEADER_BYTES}")
    payload = view[HEADER_BYTES : HEADER_BYTES + payload_bytes]
    more, offset, ident = False, 0, 0
    fragmented = False
    while next_header in _EXTENSIONS:
        if len(payload) < 8:
            raise MalformedPacket(f"IPv6 extension header {next_header} cut short")
        this_header, next_header = next_header, payload[0]
        if this_header == FRAGMENT:
            if fragmented:  # or the second would hide what the first says
                raise MalformedPacket("IPv6 packet with two fragment headers")
            fragmented = True
            offset_and_flag = int.from_bytes(payload[2:4], "big")
            more, offset = bool(offset_and_flag & 1), offset_and_flag & 0xFFF8
            ident = int.from_bytes(payload[4:8], "big")
            length = 8
        elif this_header == AUTHENTICATION:
            length = (payload[1] + 2) * 4
        else:
            length = (payload[1] + 1) * 8
        if length > len(payload):
            raise MalformedPacket(f"IPv6 extension header {this_header} of {length} bytes, {len(payload)} left")
        payload = payload[length:]
        if offset:  # what follows in a later fragment is not a header (RFC 8200 section 4.5)
            break
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


def emit(header: IPv6Header, payload_bytes: int) -> bytes:
    """The 40 bytes of the fixed header for a payload of `payload_bytes`; fragments are not emitted here."""
    first_word = (6 << 28) | (header.traffic_class << 20) | header.flow_label
    return _HEADER.pack(first_word, payload_bytes, header.protocol, header.hop_limit, header.source, header.destination)
