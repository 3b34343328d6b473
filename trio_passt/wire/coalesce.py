"""Frames → segments: runs of TCP frames of one connection become one segment each.

Theory of operation
-------------------
A guest that sends in bulk sends frames whose headers differ only in sequence number, IP identification, checksums and
PSH; one that receives in bulk sends pure acknowledgements.  To parse them one by one costs more than everything else
together.  Here the headers of a whole batch are gathered into one array and transposed, so that each 32-bit word of
the header is a row, and NumPy decides for all frames at once

- which are candidates: TCP in a whole packet, no options, ACK and perhaps PSH, the IP header's checksum right;
- which continue the one before them, and so belong to a run;

and then for each run whether the checksums are right.  The cost is a fixed part and a part that grows with the count
of frames, whatever they are: there is no search, and so nothing that broken runs could make slow.

What is joined is exactly what the frame-by-frame path would have given: a run of data is the concatenation; of a run of
acknowledgements the last one counts, and it is followed by `duplicates` exact copies of it.  Everything else is left as
the frames that it came in: options, SYN, FIN, RST, fragments, wrong checksums, a gap, an older acknowledgement number.

Small batches are not even looked at, and a batch in which no two neighbours of a sample look alike is left as it is.
"""

import struct
from itertools import chain

import numpy as np
import numpy.typing as npt
from attrs import frozen

from trio_passt.wire import tcp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import parse as parse_ethernet
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

Octets = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LOOK_FROM_FRAMES = 8
"""Batches below this size are left as they are: eight frames parsed one by one cost as much as a look at them."""

LARGE_FRAME_BYTES = 16384
"""Batches of larger frames on average are left as they are: parsing one costs less than copying its payload."""

JOIN_FROM_FRAMES = 3
"""Shorter runs are left as frames: to build one joined segment costs as much as to parse one or two."""

SAMPLED_PAIRS = 8

_PAD = 2
"""Bytes before the frame that are gathered with it, so that IP and TCP header lie on 32-bit words."""


_PORTS = struct.Struct("!HH")

#                    ports    seq      ack     offset flags (PSH may differ) window checksum urgent
_TCP_SHAPE_MASK = "00000000 00000000 00000000 ff f7 0000 0000 0000"
_TCP_SHAPE = "00000000 00000000 00000000 50 10 0000 0000 0000"
_TCP_SAME_MASK = "ffffffff 00000000 00000000 ff f7 0000 0000 ffff"


@frozen(eq=False)
class JoinedSegments:
    """A run of frames of one connection, as one segment.

    `segment` has the first frame's sequence number, the flags of all, and the last frame's acknowledgement number and
    window.  `duplicates` counts the frames at the end of a run of pure acknowledgements that repeat exactly
    (acknowledgement number and window) the frame before them; so to process the run is to process `segment` and then
    count that many duplicates of it.
    """

    ethernet: EthernetHeader
    source: bytes
    destination: bytes
    segment: TcpSegment
    frames: int
    duplicates: int = 0


Item = memoryview | JoinedSegments


@frozen(eq=False)
class _Layout:
    """Where things are in the frames of one IP version: offsets in bytes of the frame, or in words of `_Headers.words`.

    A frame is a candidate if `words & shape_mask == shape`; it may continue the one before it if the two agree in the
    bits of `same_mask`.  `length_beyond` is what the IP header's length field counts besides the TCP payload.
    """

    ethertype: bytes
    header_bytes: int
    protocol_at: int
    length_at: int
    length_beyond: int
    address_bytes: int
    ip_checksum_words: slice | None
    tcp_checksum_words: slice
    shape_mask: Words
    shape: Words
    same_mask: Words

    @property
    def tcp_at(self) -> int:
        return self.header_bytes - tcp.HEADER_BYTES

    @property
    def addresses_at(self) -> int:
        return self.tcp_at - 2 * self.address_bytes


def _words(hexadecimal: str) -> Words:
    """A column of words, given in the order on the wire."""
    return np.frombuffer(bytes.fromhex(hexadecimal), "<u4")[:, np.newaxis]


_IPV4 = _Layout(
    ethertype=EtherType.IPV4.to_bytes(2, "big"),
    header_bytes=54,
    protocol_at=23,
    length_at=16,
    length_beyond=40,
    address_bytes=4,
    ip_checksum_words=slice(4, 9),
    tcp_checksum_words=slice(7, 14),
    #           pad, MACs and EtherType        version TOS length id DF TTL protocol sum, addresses    TCP
    shape_mask=_words("0000" + "00" * 12 + "ffff" + "ff00 0000 0000 3fff 00ff 0000" + "00" * 8 + _TCP_SHAPE_MASK),
    shape=_words("0000" + "00" * 12 + "0800" + "4500 0000 0000 0000 0006 0000" + "00" * 8 + _TCP_SHAPE),
    same_mask=_words("0000" + "ff" * 12 + "ffff" + "ffff ffff 0000 ffff ffff 0000" + "ff" * 8 + _TCP_SAME_MASK),
)

_IPV6 = _Layout(
    ethertype=EtherType.IPV6.to_bytes(2, "big"),
    header_bytes=74,
    protocol_at=20,
    length_at=18,
    length_beyond=20,
    address_bytes=16,
    ip_checksum_words=None,
    tcp_checksum_words=slice(6, 19),
    #           pad, MACs and EtherType        version class flow length next hops, addresses    TCP
    shape_mask=_words("0000" + "00" * 12 + "ffff" + "f0000000 0000 ff 00" + "00" * 32 + _TCP_SHAPE_MASK),
    shape=_words("0000" + "00" * 12 + "86dd" + "60000000 0000 06 00" + "00" * 32 + _TCP_SHAPE),
    same_mask=_words("0000" + "ff" * 12 + "ffff" + "ffffffff ffff ff ff" + "ff" * 32 + _TCP_SAME_MASK),
)


def coalesce(batch: FrameBatch) -> list[Item]:
    """The batch in order: frames as they are, and runs of them as joined segments."""
    if len(batch) < LOOK_FROM_FRAMES or len(batch.data) > LARGE_FRAME_BYTES * len(batch):
        return list(batch)
    joined: dict[int, JoinedSegments] = {}
    for layout in _promising(batch):
        headers = _gather(batch, layout)
        for first, last in _runs(headers):
            run = _join(batch, headers, first, last)
            if run is not None:
                joined[first] = run
    items: list[Item] = []
    view = memoryview(batch.data)
    position = 0
    for first in sorted(joined):
        items += [view[start:end] for start, end in batch.bounds[position:first]]
        items.append(joined[first])
        position = first + joined[first].frames
    items += [view[start:end] for start, end in batch.bounds[position:]]
    return items


def _promising(batch: FrameBatch) -> list[_Layout]:
    """The IP versions for which a few neighbours in the batch are TCP between the same addresses and ports."""
    data, bounds = batch.data, batch.bounds
    layouts: list[_Layout] = []
    for index in range(0, len(bounds) - 1, max(1, len(bounds) // SAMPLED_PAIRS)):
        (here, end), (there, _) = bounds[index : index + 2]
        layout = _IPV4 if data[here + 12 : here + 14] == _IPV4.ethertype else _IPV6
        if layout in layouts or end - here < layout.header_bytes or data[here + layout.protocol_at] != IPProtocol.TCP:
            continue
        start, stop = layout.addresses_at, layout.tcp_at + 4
        if data[here + start : here + stop] == data[there + start : there + stop]:
            layouts.append(layout)
    return layouts


@frozen(eq=False)
class _Headers:
    """The headers of all frames of a batch, as arrays with one element (of `words`: one column) a frame.

    `sums` are those of pseudo-header and TCP header, without the payload, in little-endian words; where a frame is no
    candidate, the values mean nothing.  A `trusted` frame's TCP checksum is left to the link.
    """

    layout: _Layout
    words: Words
    starts: Numbers
    candidates: Flags
    payload_bytes: Numbers
    seq: Words
    ack: Words
    flags: Numbers
    window: Numbers
    sums: Numbers
    trusted: Flags

    def valid(self, frames: slice, payload_sums: Numbers | int = 0) -> Flags:
        """Which of the frames have the right TCP checksum, or need none."""
        right: Flags = (self.sums[frames] + payload_sums) % 65535 == 0
        return right | self.trusted[frames]


def _gather(batch: FrameBatch, layout: _Layout) -> _Headers:
    """The headers of all frames, and which of them can be part of a run at all."""
    count = len(batch)
    bounds = np.fromiter(chain.from_iterable(batch.bounds), np.int64, 2 * count).reshape(count, 2)
    starts = bounds[:, 0]
    size = _PAD + layout.header_bytes
    windows = np.ndarray((len(batch.data) - size + 1,), f"V{size}", batch.data, 0, (1,))
    at = starts - _PAD
    there = (at >= 0) & (at < len(windows))
    rows = windows[np.where(there, at, 0)]
    words = np.ascontiguousarray(rows.view("<u4").reshape(count, size // 4).T)

    def column(dtype: str, offset: int) -> Numbers:
        return np.ndarray((count,), dtype, rows, _PAD + offset, (size,)).astype(np.int64)

    payload_bytes = column(">u2", layout.length_at) - layout.length_beyond
    candidates = there & ((words & layout.shape_mask) == layout.shape).all(axis=0)
    candidates &= (payload_bytes >= 0) & (starts + payload_bytes + layout.header_bytes <= bounds[:, 1])
    trusted = np.zeros(count, np.bool_)
    if batch.offloads is not None:
        trusted[:] = [offload is not None for offload in batch.offloads]
        candidates &= [offload is None or offload.segment_bytes == 0 for offload in batch.offloads]
    if layout.ip_checksum_words is not None:
        candidates &= words[layout.ip_checksum_words].sum(axis=0, dtype=np.int64) % 65535 == 0
    tcp_bytes = payload_bytes + tcp.HEADER_BYTES
    length_and_protocol = (tcp_bytes >> 8) + ((tcp_bytes & 0xFF) << 8) + (IPProtocol.TCP << 8)
    headers = _Headers(
        layout,
        words,
        starts,
        candidates,
        payload_bytes,
        column(">u4", layout.tcp_at + 4).astype(np.uint32),
        column(">u4", layout.tcp_at + 8).astype(np.uint32),
        column("u1", layout.tcp_at + 13),
        column(">u2", layout.tcp_at + 14),
        words[layout.tcp_checksum_words].sum(axis=0, dtype=np.int64) + length_and_protocol,
        trusted,
    )
    candidates &= (payload_bytes > 0) | headers.valid(slice(None))
    return headers


def _repeats(headers: _Headers) -> Flags:
    """For each frame but the first: whether acknowledgement number and window are those of the frame before."""
    repeats: Flags = (headers.ack[1:] == headers.ack[:-1]) & (headers.window[1:] == headers.window[:-1])
    return repeats


def _runs(headers: _Headers) -> list[list[int]]:
    """First and last frame of each run.

    A run of acknowledgements does not go on after duplicates: whatever follows them is processed after them.
    """
    words, ack, payload_bytes = headers.words, headers.ack, headers.payload_bytes[:-1]
    follows = headers.candidates[1:] & headers.candidates[:-1]
    follows &= headers.seq[1:] - headers.seq[:-1] == payload_bytes
    follows &= ~((words[:, 1:] ^ words[:, :-1]) & headers.layout.same_mask).any(axis=0)
    repeats = _repeats(headers)
    pure = payload_bytes == 0
    follows &= repeats | (pure & (ack[1:] - ack[:-1] < 1 << 31))
    follows[1:] &= repeats[1:] | ~(follows[:-1] & repeats[:-1])

    outside = np.zeros(len(follows) + 2, np.bool_)
    outside[1:-1] = follows
    edges = np.flatnonzero(outside[1:] != outside[:-1]).reshape(-1, 2)
    long = edges[:, 1] - edges[:, 0] >= JOIN_FROM_FRAMES - 1
    runs: list[list[int]] = edges[long].tolist()
    return runs


def _join(batch: FrameBatch, headers: _Headers, first: int, last: int) -> JoinedSegments | None:
    """The run as one segment; `None` if a checksum is wrong."""
    layout = headers.layout
    frames = slice(first, last + 1)
    payload: Buffer = b""
    duplicates = 0
    if headers.payload_bytes[first]:
        block = _payload_block(batch, headers, frames)
        if not headers.valid(frames, _row_sums(block)).all():
            return None
        payload = block.reshape(-1).data.toreadonly()
    else:
        duplicates = int(np.count_nonzero(_repeats(headers)[first:last]))
    start = batch.bounds[first][0]
    frame = batch.data[start : start + layout.header_bytes]
    source_port, destination_port = _PORTS.unpack_from(frame, layout.tcp_at)
    segment = TcpSegment(
        source_port,
        destination_port,
        int(headers.seq[first]),
        int(headers.ack[last]),
        int(headers.flags[frames].max()),
        int(headers.window[last]),
        payload,
    )
    middle = layout.addresses_at + layout.address_bytes
    return JoinedSegments(
        parse_ethernet(frame)[0],
        frame[layout.addresses_at : middle],
        frame[middle : layout.tcp_at],
        segment,
        last - first + 1,
        duplicates,
    )


def _payload_block(batch: FrameBatch, headers: _Headers, frames: slice) -> Octets:
    """The payloads of equal length, one a row."""
    size = int(headers.payload_bytes[frames.start])
    windows = np.ndarray((len(batch.data) - size + 1,), f"V{size}", batch.data, 0, (1,))
    rows = windows[headers.starts[frames] + headers.layout.header_bytes]
    return rows.view(np.uint8).reshape(len(rows), size)


def _row_sums(block: Octets) -> Numbers:
    """Each row's sum, modulo 65535, of its little-endian 16-bit words; an odd byte at the end is padded with zero.

    Where they come out even it is summed by 32-bit words, which is the same modulo 65535, and quicker.
    """
    if block.shape[1] % 4 == 0:
        sums = block.view("<u4").sum(axis=1, dtype=np.uint64)
    else:
        if block.shape[1] % 2:
            block = np.pad(block, ((0, 0), (0, 1)))
        sums = block.view("<u2").sum(axis=1, dtype=np.uint64)
    reduced: Numbers = (sums % 65535).astype(np.int64)
    return reduced
