"""TCP segments (RFC 9293 section 3.1) with the options that are used here: MSS, window scale (RFC 7323), and
selective acknowledgements (RFC 2018), which are sent and not read.

Sending data has its own codec, `segment`, which fills in templates; `emit` here is for the few segments that belong
to no flow, and for tests.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from attrs import frozen

from trio_passt.wire import checksum
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ip import IPProtocol

HEADER_BYTES: Final = 20
CHECKSUM_AT: Final = 16
_HEADER: Final = struct.Struct("!HHIIBBHHH")

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20

_END_OF_OPTIONS, _NO_OPERATION, _MSS, _WINDOW_SCALE, _SACK_PERMITTED, _SACK = 0, 1, 2, 3, 4, 5
MAX_WINDOW_SCALE: Final = 14
"""RFC 7323 section 2.3: a larger one is taken as 14."""


@frozen
class TcpOptions:
    """The options of a SYN; `None` where it did not carry one.  `takes_sack` is the option "SACK-permitted"."""

    mss: int | None = None
    window_scale: int | None = None
    takes_sack: bool = False


NO_OPTIONS = TcpOptions()


class TcpSegment(NamedTuple):
    """One segment.  `flags` is a mask of `FIN` ... `URG`; `window` is the field as sent, not scaled.

    `options` are read from segments with SYN only: no other segment has any that mean something here.  The payload is a
    view of the batch it came in, and if it is not empty, `more` are further pieces that follow.  `frames` says in how
    many frames it came (`wire.coalesce`).  It is a tuple because one is made for every frame.
    """

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    payload: Buffer = b""
    options: TcpOptions = NO_OPTIONS
    frames: int = 1
    more: tuple[memoryview, ...] = ()

    @property
    def payload_bytes(self) -> int:
        """The length of the payload, all its pieces together."""
        return len(self.payload) + sum(map(len, self.more)) if self.more else len(self.payload)

    @property
    def sequence_length(self) -> int:
        """What the segment occupies of the sequence space (SEG.LEN): SYN and FIN count as one each."""
        return self.payload_bytes + (self.flags & SYN) // SYN + (self.flags & FIN)

    def __str__(self) -> str:
        names = [name for bit, name in _FLAG_NAMES if self.flags & bit]
        return f"{'|'.join(names) or 'none'} seq={self.seq} ack={self.ack} win={self.window} len={self.payload_bytes}"


_FLAG_NAMES = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (URG, "URG"))


def parse(source: bytes, destination: bytes, packet: Buffer) -> TcpSegment:
    """The segment between two packed addresses.

    Malformed: shorter than its header, a data offset out of range, a wrong checksum, options of a SYN that run over the
    header's end.
    """
    view = memoryview(packet)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"TCP segment of {len(view)} bytes")
    source_port, destination_port, seq, ack, offset, flags, window, _sum, _urgent = _HEADER.unpack_from(view)
    header_bytes = (offset >> 4) * 4
    if not HEADER_BYTES <= header_bytes <= len(view):
        raise MalformedPacket(f"TCP data offset of {header_bytes} bytes in a segment of {len(view)}")
    if not checksum.is_valid(view, checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(view))):
        raise MalformedPacket("TCP checksum")
    options = parse_options(view[HEADER_BYTES:header_bytes]) if flags & SYN else NO_OPTIONS
    return TcpSegment(source_port, destination_port, seq, ack, flags & 0x3F, window, view[header_bytes:], options)


def parse_options(data: Buffer) -> TcpOptions:
    """Those of a SYN that mean something here (RFC 9293 section 3.2); options of other kinds are skipped.

    Malformed: an option whose length is below 2 or beyond the end, or not what it should be.
    """
    mss = window_scale = None
    takes_sack = False
    position = 0
    while position < len(data) and data[position] != _END_OF_OPTIONS:
        kind = data[position]
        if kind == _NO_OPERATION:
            position += 1
            continue
        length = data[position + 1] if position + 1 < len(data) else 0
        if length < 2 or position + length > len(data):
            raise MalformedPacket(f"TCP option {kind} with length {length}, {len(data) - position} bytes left")
        value = data[position + 2 : position + length]
        if kind == _MSS:
            if length != 4:
                raise MalformedPacket(f"TCP MSS option of {length} bytes")
            mss = int.from_bytes(value, "big")
        elif kind == _WINDOW_SCALE:
            if length != 3:
                raise MalformedPacket(f"TCP window scale option of {length} bytes")
            window_scale = min(value[0], MAX_WINDOW_SCALE)
        elif kind == _SACK_PERMITTED:
            if length != 2:
                raise MalformedPacket(f"TCP SACK-permitted option of {length} bytes")
            takes_sack = True
        position += length
    return TcpOptions(mss, window_scale, takes_sack)


def emit_options(options: TcpOptions) -> bytes:
    """The options, padded with no-operations to a multiple of four bytes."""
    data = b""
    if options.mss is not None:
        data += struct.pack("!BBH", _MSS, 4, options.mss)
    if options.window_scale is not None:
        data += struct.pack("!BBBB", _NO_OPERATION, _WINDOW_SCALE, 3, options.window_scale)
    if options.takes_sack:
        data += struct.pack("!BBBB", _NO_OPERATION, _NO_OPERATION, _SACK_PERMITTED, 2)
    return data


def emit_sack(blocks: Sequence[tuple[int, int]]) -> bytes:
    """A SACK option (RFC 2018 section 3) with these left and right edges, four at the most, padded in front."""
    edges = [edge for block in blocks for edge in block]
    return struct.pack(f"!BBBB{len(edges)}I", _NO_OPERATION, _NO_OPERATION, _SACK, 2 + 4 * len(edges), *edges)


def emit(source: bytes, destination: bytes, segment: TcpSegment) -> bytes:
    """The segment with its checksum, to be put into an IP packet between the packed addresses."""
    options = emit_options(segment.options)
    header = _HEADER.pack(
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.ack,
        (HEADER_BYTES + len(options)) << 2,
        segment.flags,
        segment.window,
        0,
        0,
    )
    packet = b"".join((header, options, segment.payload, *segment.more))
    pseudo = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(packet))
    field = checksum.finish(pseudo + checksum.sum_of(packet))
    return packet[:16] + field.to_bytes(2, "big") + packet[18:]
