"""The plain case: a frame as a connection in mid-stream sends it, parsed in one go.

Theory of operation
-------------------
Nearly every frame of a busy guest is TCP in a whole IP packet, without options, with ACK and perhaps PSH or FIN.  Such
a frame has its fields at fixed places, so one `unpack` reads them all, and two sums verify the checksums.  It is what
Van Jacobson's header prediction is to a kernel: not another protocol, only a shorter way for what is expected.

Whatever is not plain, or not right, is left to the parsers of each layer, which also say what is wrong with it; where
`parse` finds a segment, they find the same (the tests compare them).
"""

import struct

from trio_passt.wire import tcp
from trio_passt.wire.checksum import NUMPY_FROM_BYTES, sum_of
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, FIN, PSH, TcpSegment

Ends = tuple[bytes, int, bytes, int]
"""Packed source address, source port, packed destination address, destination port."""

_IPV4 = struct.Struct("!6x 6s H  HH2xHxB2x 4s4s  HHIIBBH4x")
_IPV6 = struct.Struct("!6x 6s H  B3xHBx 16s16s  HHIIBBH4x")
_ADDRESSES_IPV4_AT = 26
_ADDRESSES_IPV6_AT = 22

_TCP = int(IPProtocol.TCP)
_ETHERTYPE_IPV4 = int(EtherType.IPV4)
_ETHERTYPE_IPV6 = int(EtherType.IPV6)
_NO_OPTIONS = tcp.HEADER_BYTES << 2
_OFFSET_AND_MORE_FRAGMENTS = 0x3FFF
_PSH_AND_FIN = PSH | FIN


def parse(frame: memoryview) -> tuple[bytes, Ends, TcpSegment] | None:
    """Source MAC, both ends and the segment; `None` for a frame that is to be parsed layer by layer."""
    if len(frame) < _IPV4.size:
        return None
    if frame[12] == _ETHERTYPE_IPV4 >> 8 and frame[13] == _ETHERTYPE_IPV4 & 0xFF:
        return _parse_ipv4(frame)
    return _parse_ipv6(frame) if len(frame) >= _IPV6.size else None


def _parse_ipv4(frame: memoryview) -> tuple[bytes, Ends, TcpSegment] | None:
    fields = _IPV4.unpack_from(frame)
    mac, _, start, total, fragment, protocol, source, destination = fields[:8]
    source_port, destination_port, seq, ack, offset, flags, window = fields[8:]
    stop = _IPV4.size - 40 + total
    if (
        protocol != _TCP
        or offset != _NO_OPTIONS
        or flags & ~_PSH_AND_FIN != ACK
        or start >> 8 != 0x45
        or fragment & _OFFSET_AND_MORE_FRAGMENTS
        or not _IPV4.size <= stop <= len(frame)
        or int.from_bytes(frame[14:34], "big") % 65535
        or not _is_right(frame, _ADDRESSES_IPV4_AT, _IPV4.size, stop)
    ):
        return None
    payload = frame[_IPV4.size : stop] if stop > _IPV4.size else b""  # a view, even an empty one, holds its memory
    segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload)
    return mac, (source, source_port, destination, destination_port), segment


def _parse_ipv6(frame: memoryview) -> tuple[bytes, Ends, TcpSegment] | None:
    fields = _IPV6.unpack_from(frame)
    mac, ethertype, start, length, protocol, source, destination = fields[:7]
    source_port, destination_port, seq, ack, offset, flags, window = fields[7:]
    stop = _IPV6.size - 20 + length
    if (
        protocol != _TCP
        or offset != _NO_OPTIONS
        or flags & ~_PSH_AND_FIN != ACK
        or start >> 4 != 6
        or ethertype != _ETHERTYPE_IPV6
        or not _IPV6.size <= stop <= len(frame)
        or not _is_right(frame, _ADDRESSES_IPV6_AT, _IPV6.size, stop)
    ):
        return None
    payload = frame[_IPV6.size : stop] if stop > _IPV6.size else b""
    segment = TcpSegment(source_port, destination_port, seq, ack, flags, window, payload)
    return mac, (source, source_port, destination, destination_port), segment


def _is_right(frame: memoryview, addresses_at: int, payload_at: int, stop: int) -> bool:
    """The TCP checksum, over addresses, header and payload (see `checksum`)."""
    total = _TCP + stop - payload_at + tcp.HEADER_BYTES
    if stop - payload_at < NUMPY_FROM_BYTES:
        number = int.from_bytes(frame[addresses_at:stop], "big")
        total += number << 8 if stop & 1 else number
    else:
        total += int.from_bytes(frame[addresses_at:payload_at], "big") + sum_of(frame[payload_at:stop])
    return total % 65535 == 0
