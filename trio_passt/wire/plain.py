"""The plain case: a frame as a connection in mid-stream sends it, parsed in one go.

Theory of operation
-------------------
Nearly every frame of a busy guest is TCP in a whole IP packet, without options, with ACK and perhaps PSH or FIN.  Such
a frame has its fields at fixed places, so one `unpack` reads them all, and two sums verify the checksums.  It is what
Van Jacobson's header prediction is to a kernel: not another protocol, only a shorter way for what is expected.  A guest
that opens many connections is busy, too: a SYN without data, whose options come last, is as plain.

A plain UDP datagram is one in a whole packet of its own, not for one of the services that are answered here.

Whatever is not plain, or not right, is left to the parsers of each layer, which also say what is wrong with it; where
`parse` finds a segment, they find the same (the tests compare them).

A frame may come with an `Offload`: its checksum is not filled in, it is not cut into segments.  Then it is taken as it
is, whole: what is to be summed need not be verified, and what is to be cut would be joined again.  `finish` is for
those that are not plain.
"""

import struct
from typing import Final

from trio_passt.wire import ethernet, ipv4, tcp, udp
from trio_passt.wire.checksum import NUMPY_FROM_BYTES, sum_of
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import MOST_DATAGRAMS, Offload, Segmentation
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, FIN, PSH, SYN, TcpOptions, TcpSegment

Ends = tuple[bytes, int, bytes, int]
"""Packed source address, source port, packed destination address, destination port."""

_IPV4: Final = struct.Struct("!6x 6s H  HH2xH4x 4s4s  HHIIBBH4x")
_IPV6: Final = struct.Struct("!6x 6s H  B3xH2x 16s16s  HHIIBBH4x")
_UDP_IPV4: Final = struct.Struct("!6x 6s H  HH2xHBB2x 4s4s  HHHH")
_UDP_IPV6: Final = struct.Struct("!6x 6s H  B3xHBB 16s16s  HHHH")
_ADDRESSES_IPV4_AT: Final = 26
_ADDRESSES_IPV6_AT: Final = 22

_AFTER_IPV4_AT: Final = 34
_AFTER_IPV6_AT: Final = 54

_TCP: Final = int(IPProtocol.TCP)
_UDP: Final = int(IPProtocol.UDP)
_ETHERTYPE_IPV4: Final = int(EtherType.IPV4)
_ETHERTYPE_IPV6: Final = int(EtherType.IPV6)
_NO_OPTIONS: Final = tcp.HEADER_BYTES << 2
_OFFSET_AND_MORE_FRAGMENTS: Final = 0x3FFF
_PSH_AND_FIN: Final = PSH | FIN
_FLAGS: Final = 0x3F
"""Without those of ECN, which mean nothing to anybody here."""

DHCP_SERVER_PORT: Final = 67
DHCPV6_SERVER_PORT: Final = 547
"""Datagrams to these are looked at more closely: they may be for us."""

Datagram = tuple[bytes, Ends, int, memoryview, memoryview]
"""Source MAC, both ends, hop limit, payload, and the IP packet."""


def parse(frame: memoryview, offload: Offload | None = None) -> tuple[bytes, Ends, TcpSegment] | None:
    """Source MAC, both ends and the segment; `None` for a frame that is to be parsed layer by layer."""
    if len(frame) < _IPV4.size:
        return None
    if frame[12] == _ETHERTYPE_IPV4 >> 8 and frame[13] == _ETHERTYPE_IPV4 & 0xFF:
        return _parse_ipv4(frame, offload) if frame[23] == _TCP else None
    return _parse_ipv6(frame, offload) if len(frame) >= _IPV6.size and frame[20] == _TCP else None


def _parse_ipv4(frame: memoryview, offload: Offload | None) -> tuple[bytes, Ends, TcpSegment] | None:
    fields = _IPV4.unpack_from(frame)
    mac, _, start, total, fragment, source, destination = fields[:7]
    source_port, destination_port, seq, ack, offset, flags, window = fields[7:]
    stop = _IPV4.size - 40 + total
    options = tcp.NO_OPTIONS
    if flags & _FLAGS == SYN:
        opening = _options_of_opening(frame, _IPV4.size, stop, offset)
        if opening is None:
            return None
        options, flags = opening, SYN
    elif offset != _NO_OPTIONS or flags & ~_PSH_AND_FIN != ACK:
        return None
    if (
        start >> 8 != 0x45
        or fragment & _OFFSET_AND_MORE_FRAGMENTS
        or not _IPV4.size <= stop <= len(frame)
        or int.from_bytes(frame[14:34], "big") % 65535
        or not (
            _is_right(frame, _ADDRESSES_IPV4_AT, _IPV4.size, stop)
            if offload is None
            else offload.answers_for(_AFTER_IPV4_AT, tcp.CHECKSUM_AT, Segmentation.TCPV4)
        )
    ):
        return None
    if flags == SYN:
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, b"", options)
        return mac, (source, source_port, destination, destination_port), segment
    payload = frame[_IPV4.size : stop] if stop > _IPV4.size else b""  # a view, even an empty one, holds its memory
    if offload is None or not offload.segment_bytes:
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload)
    else:
        frames = _segments_in(len(payload), offload.segment_bytes)
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload, tcp.NO_OPTIONS, frames)
    return mac, (source, source_port, destination, destination_port), segment


def _parse_ipv6(frame: memoryview, offload: Offload | None) -> tuple[bytes, Ends, TcpSegment] | None:
    fields = _IPV6.unpack_from(frame)
    mac, ethertype, start, length, source, destination = fields[:6]
    source_port, destination_port, seq, ack, offset, flags, window = fields[6:]
    stop = _IPV6.size - 20 + length
    options = tcp.NO_OPTIONS
    if flags & _FLAGS == SYN:
        opening = _options_of_opening(frame, _IPV6.size, stop, offset)
        if opening is None:
            return None
        options, flags = opening, SYN
    elif offset != _NO_OPTIONS or flags & ~_PSH_AND_FIN != ACK:
        return None
    if (
        start >> 4 != 6
        or ethertype != _ETHERTYPE_IPV6
        or not _IPV6.size <= stop <= len(frame)
        or not (
            _is_right(frame, _ADDRESSES_IPV6_AT, _IPV6.size, stop)
            if offload is None
            else offload.answers_for(_AFTER_IPV6_AT, tcp.CHECKSUM_AT, Segmentation.TCPV6)
        )
    ):
        return None
    if flags == SYN:
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, b"", options)
        return mac, (source, source_port, destination, destination_port), segment
    payload = frame[_IPV6.size : stop] if stop > _IPV6.size else b""
    if offload is None or not offload.segment_bytes:
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload)
    else:
        frames = _segments_in(len(payload), offload.segment_bytes)
        segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload, tcp.NO_OPTIONS, frames)
    return mac, (source, source_port, destination, destination_port), segment


def _options_of_opening(frame: memoryview, options_at: int, stop: int, offset: int) -> TcpOptions | None:
    """Of a SYN that ends with its header at `stop`; `None` if it does not, or has options that are not right."""
    if options_at + (offset >> 4) * 4 - tcp.HEADER_BYTES != stop or stop > len(frame):
        return None
    try:
        return tcp.parse_options(frame[options_at:stop])
    except MalformedPacket:
        return None


def _segments_in(payload_bytes: int, segment_bytes: int) -> int:
    """How many segments a frame is cut into."""
    return max(1, -(-payload_bytes // segment_bytes))


def parse_datagram(frame: memoryview, offload: Offload | None = None) -> Datagram | None:
    """The same for UDP; `None` for everything else.  IPv4 may come without checksum.

    If the offload asks for several datagrams, this is all of them, as one.
    """
    if len(frame) < _UDP_IPV4.size:
        return None
    if offload is not None and 0 < offload.segment_bytes * MOST_DATAGRAMS < len(frame):
        return None
    if frame[12] == _ETHERTYPE_IPV4 >> 8 and frame[13] == _ETHERTYPE_IPV4 & 0xFF:
        return _parse_datagram_ipv4(frame, offload) if frame[23] == _UDP else None
    return _parse_datagram_ipv6(frame, offload) if len(frame) >= _UDP_IPV6.size and frame[20] == _UDP else None


def _parse_datagram_ipv4(frame: memoryview, offload: Offload | None) -> Datagram | None:
    fields = _UDP_IPV4.unpack_from(frame)
    mac, _, start, total, fragment, hop_limit, _, source, destination = fields[:9]
    source_port, destination_port, udp_bytes, field = fields[9:]
    payload_at, stop = _UDP_IPV4.size, ethernet.HEADER_BYTES + total
    if (
        start >> 8 != 0x45
        or fragment & _OFFSET_AND_MORE_FRAGMENTS
        or udp_bytes + ipv4.HEADER_BYTES != total
        or not payload_at <= stop <= len(frame)
        or destination_port == DHCP_SERVER_PORT
        or not hop_limit
        or int.from_bytes(frame[14:34], "big") % 65535
        or not (
            not field or _is_right_datagram(frame, _ADDRESSES_IPV4_AT, payload_at, stop)
            if offload is None
            else offload.answers_for(_AFTER_IPV4_AT, udp.CHECKSUM_AT, Segmentation.UDP)
        )
    ):
        return None
    ends = (source, source_port, destination, destination_port)
    return mac, ends, hop_limit, frame[payload_at:stop], frame[ethernet.HEADER_BYTES : stop]


def _parse_datagram_ipv6(frame: memoryview, offload: Offload | None) -> Datagram | None:
    fields = _UDP_IPV6.unpack_from(frame)
    mac, ethertype, start, length, _, hop_limit, source, destination = fields[:8]
    source_port, destination_port, udp_bytes, field = fields[8:]
    payload_at, stop = _UDP_IPV6.size, _UDP_IPV6.size - udp.HEADER_BYTES + length
    if (
        start >> 4 != 6
        or ethertype != _ETHERTYPE_IPV6
        or udp_bytes != length
        or not payload_at <= stop <= len(frame)
        or destination_port == DHCPV6_SERVER_PORT
        or not hop_limit
        or not field
        or not (
            _is_right_datagram(frame, _ADDRESSES_IPV6_AT, payload_at, stop)
            if offload is None
            else offload.answers_for(_AFTER_IPV6_AT, udp.CHECKSUM_AT, Segmentation.UDP)
        )
    ):
        return None
    ends = (source, source_port, destination, destination_port)
    return mac, ends, hop_limit, frame[payload_at:stop], frame[ethernet.HEADER_BYTES : stop]


def _is_right_datagram(frame: memoryview, addresses_at: int, payload_at: int, stop: int) -> bool:
    """The UDP checksum, over addresses, header and payload."""
    return _sums_up(frame, addresses_at, payload_at, stop, _UDP + stop - payload_at + udp.HEADER_BYTES)


def _is_right(frame: memoryview, addresses_at: int, payload_at: int, stop: int) -> bool:
    """The TCP checksum, over addresses, header and payload (see `checksum`)."""
    return _sums_up(frame, addresses_at, payload_at, stop, _TCP + stop - payload_at + tcp.HEADER_BYTES)


def _sums_up(frame: memoryview, addresses_at: int, payload_at: int, stop: int, total: int) -> bool:
    """Whether all from the addresses to the end, and the rest of the pseudo-header, makes a right checksum."""
    if stop - payload_at < NUMPY_FROM_BYTES:
        number = int.from_bytes(frame[addresses_at:stop], "big")
        total += number << 8 if stop & 1 else number
    else:
        total += int.from_bytes(frame[addresses_at:payload_at], "big") + sum_of(frame[payload_at:stop])
    return total % 65535 == 0
