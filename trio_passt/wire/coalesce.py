"""Frames → segments: runs of TCP frames of one connection become one segment each.

Theory of operation
-------------------
A guest that sends in bulk sends frames whose headers differ only in sequence number, IP identification, checksums and
PSH; one that receives in bulk sends pure acknowledgements.  To parse them one by one costs more than everything else
together.  Such frames have one length, and so they lie in the batch at equal distances: to NumPy, a group of them is an
array with one frame a row, and each field of the header a column, without anything being copied.  A few comparisons
between each row and the one before it say which frames continue which; then, for each run, the sums of all rows say
whether the checksums are right, and the payloads are copied into one piece.

The cost is a fixed part for each group and a part that grows with the size of the batch, whatever is in it: there is no
search, and so nothing that broken runs could make slow.

What is joined is exactly what the frame-by-frame path would have given: a run of data is the concatenation; of a run of
acknowledgements the last one counts, and it is followed by `duplicates` exact copies of it.  Everything else is left as
the frames that it came in: options, SYN, FIN, RST, fragments, wrong checksums, a gap, an older acknowledgement number.
"""

import struct

import numpy as np
import numpy.typing as npt
from attrs import frozen

from trio_passt.wire import tcp
from trio_passt.wire.checksum import Buffer, fold
from trio_passt.wire.ethernet import HEADER_BYTES as ETHERNET_BYTES
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import parse as parse_ethernet
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LOOK_FROM_FRAMES = 6
"""Smaller groups are left as they are: so many frames parsed one by one cost as much as a look at them."""

LARGE_FRAME_BYTES = 16384
"""Batches of larger frames on average are left as they are: parsing one costs less than copying its payload."""

JOIN_FROM_FRAMES = 3
"""Shorter runs are left as frames: to build one joined segment costs as much as to parse one or two."""

_PORTS = struct.Struct("!HH")


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
    duplicates: int = 0

    @property
    def frames(self) -> int:
        """How many it was made from."""
        return self.segment.frames


Item = memoryview | JoinedSegments


@frozen(eq=False)
class _Layout:
    """Where things are in the frames of one IP version: offsets in bytes.

    A run's first frame has the bits of `shape` under `shape_mask`; each further one has those bits of the frame before
    it that `same_mask` selects.  The IP header's length field counts `length_beyond` bytes besides the TCP payload.
    """

    header_bytes: int
    length_at: int
    length_beyond: int
    address_bytes: int
    has_checksum: bool
    shape: int
    shape_mask: int
    same_mask: npt.NDArray[np.uint8]

    @property
    def tcp_at(self) -> int:
        return self.header_bytes - tcp.HEADER_BYTES

    @property
    def addresses_at(self) -> int:
        return self.tcp_at - 2 * self.address_bytes


def _layout(length_at: int, length_beyond: int, address_bytes: int, shape: str, shape_mask: str, same: str) -> _Layout:
    """The hexadecimal strings are the bytes on the wire."""
    mask = bytes.fromhex(same)
    return _Layout(
        len(mask),
        length_at,
        length_beyond,
        address_bytes,
        address_bytes == 4,
        int.from_bytes(bytes.fromhex(shape), "big"),
        int.from_bytes(bytes.fromhex(shape_mask), "big"),
        np.frombuffer(mask, np.uint8),
    )


#            ports    seq      ack     offset flags window checksum urgent
_TCP_MASK = "00000000 00000000 00000000 ff f7 0000 0000 0000"
_TCP_SHAPE = "00000000 00000000 00000000 50 10 0000 0000 0000"
_TCP_SAME = "ffffffff 00000000 00000000 ff f7 0000 0000 ffff"

_IPV4 = _layout(
    length_at=16,
    length_beyond=40,
    address_bytes=4,
    #      MACs and EtherType   version TOS length id DF TTL protocol sum, addresses
    shape="00" * 12 + "0800" + "4500 0000 0000 0000 0006 0000" + "00" * 8 + _TCP_SHAPE,
    shape_mask="00" * 12 + "ffff" + "ff00 0000 0000 3fff 00ff 0000" + "00" * 8 + _TCP_MASK,
    same="ff" * 12 + "ffff" + "ffff ffff 0000 ffff ffff 0000" + "ff" * 8 + _TCP_SAME,
)

_IPV6 = _layout(
    length_at=18,
    length_beyond=20,
    address_bytes=16,
    #      MACs and EtherType   version class flow length next hops, addresses
    shape="00" * 12 + "86dd" + "60000000 0000 06 00" + "00" * 32 + _TCP_SHAPE,
    shape_mask="00" * 12 + "ffff" + "f0000000 0000 ff 00" + "00" * 32 + _TCP_MASK,
    same="ff" * 12 + "ffff" + "ffffffff ffff ff ff" + "ff" * 32 + _TCP_SAME,
)

_ETHERTYPE_IPV4 = EtherType.IPV4.to_bytes(2, "big")
_ETHERTYPE_IPV6 = EtherType.IPV6.to_bytes(2, "big")


def coalesce(batch: FrameBatch) -> list[Item]:
    """The batch in order: frames as they are, and runs of them as joined segments."""
    if len(batch) < LOOK_FROM_FRAMES or len(batch.data) > LARGE_FRAME_BYTES * len(batch):
        return list(batch)
    joined: list[tuple[int, JoinedSegments]] = []
    for first, count in _groups(batch):
        group = _Group.at(batch, first, count)
        if group is not None:
            joined += group.joined()
    items: list[Item] = []
    view = memoryview(batch.data)
    position = 0
    for first, run in joined:
        items += [view[start:end] for start, end in batch.bounds[position:first]]
        items.append(run)
        position = first + run.frames
    items += [view[start:end] for start, end in batch.bounds[position:]]
    return items


def _groups(batch: FrameBatch) -> list[tuple[int, int]]:
    """First frame and count of each group of frames that have one length and follow each other at one distance."""
    groups: list[tuple[int, int]] = []
    first = index = length = distance = before = 0
    for index, (start, end) in enumerate(batch.bounds):
        if end - start != length or (start - before != distance and index != first + 1):
            if index - first >= LOOK_FROM_FRAMES:
                groups.append((first, index - first))
            first, length = index, end - start
        distance = start - before
        before = start
    if index + 1 - first >= LOOK_FROM_FRAMES:
        groups.append((first, index + 1 - first))
    return groups


class _Group:
    """Frames of one length at one distance, as arrays with one element, or one row, a frame."""

    __slots__ = (
        "_batch",
        "_count",
        "_first",
        "_layout",
        "_most_payload_bytes",
        "_start",
        "_stride",
        "ack",
        "payload_bytes",
        "seq",
        "window",
    )

    def __init__(self, batch: FrameBatch, first: int, count: int, layout: _Layout) -> None:
        start = batch.bounds[first][0]
        self._batch = batch
        self._first = first
        self._count = count
        self._layout = layout
        self._most_payload_bytes = batch.bounds[first][1] - start - layout.header_bytes
        self._start = start
        self._stride = batch.bounds[first + 1][0] - start
        self.payload_bytes = self._column(">u2", layout.length_at) - layout.length_beyond
        self.seq = self._column(">u4", layout.tcp_at + 4)
        self.ack = self._column(">u4", layout.tcp_at + 8)
        self.window = self._column(">u2", layout.tcp_at + 14)

    @classmethod
    def at(cls, batch: FrameBatch, first: int, count: int) -> "_Group | None":
        """The group, if its frames can be TCP segments."""
        start, end = batch.bounds[first]
        ethertype = batch.data[start + 12 : start + ETHERNET_BYTES]
        layout = _IPV4 if ethertype == _ETHERTYPE_IPV4 else _IPV6 if ethertype == _ETHERTYPE_IPV6 else None
        if layout is None or end - start < layout.header_bytes:
            return None
        return cls(batch, first, count, layout)

    def joined(self) -> list[tuple[int, JoinedSegments]]:
        """Each run of the group with the index of its first frame in the batch."""
        follows = self._follows()
        outside = np.zeros(len(follows) + 2, np.bool_)
        outside[1:-1] = follows
        edges = np.flatnonzero(outside[1:] != outside[:-1]).tolist()
        joined = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            run = self._join(first, last) if last - first >= JOIN_FROM_FRAMES - 1 else None
            if run is not None:
                joined.append((self._first + first, run))
        return joined

    def _array(self, dtype: str, offset: int, frames: slice, columns: int) -> npt.NDArray[np.integer]:
        """`columns` numbers from `offset` on, of each of the frames; a view."""
        kind = np.dtype(dtype)
        at = self._start + frames.start * self._stride + offset
        shape = (frames.stop - frames.start, columns)
        return np.ndarray(shape, kind, self._batch.data, at, (self._stride, kind.itemsize))

    def _column(self, dtype: str, offset: int) -> Numbers:
        return self._array(dtype, offset, slice(0, self._count), 1)[:, 0].astype(np.int64)

    def _follows(self) -> Flags:
        """For each frame but the first: whether it goes on where the one before it ends.

        A run of acknowledgements does not go on after duplicates: whatever follows them is processed after them.
        """
        layout, payload_bytes, ack = self._layout, self.payload_bytes[:-1], self.ack
        heads = self._array("u1", 0, slice(0, self._count), layout.header_bytes)
        follows: Flags = np.logical_not(((heads[1:] ^ heads[:-1]) & layout.same_mask).any(axis=1))
        follows &= (self.seq[1:] - self.seq[:-1] - payload_bytes) & 0xFFFFFFFF == 0
        repeats = (ack[1:] == ack[:-1]) & (self.window[1:] == self.window[:-1])
        follows &= repeats | ((payload_bytes == 0) & ((ack[1:] - ack[:-1]) & 0xFFFFFFFF < 1 << 31))
        follows[1:] &= repeats[1:] | ~(follows[:-1] & repeats[:-1])
        if layout.has_checksum:
            right = self._sums(ETHERNET_BYTES, slice(0, self._count), layout.tcp_at - ETHERNET_BYTES) == 0
            follows &= right[1:] & right[:-1]
        offloads = self._batch.offloads
        if offloads is not None:
            own = offloads[self._first : self._first + self._count]
            whole = np.array([offload is None or offload.segment_bytes == 0 for offload in own])
            follows &= whole[1:] & whole[:-1]
        return follows

    def _join(self, first: int, last: int) -> JoinedSegments | None:
        """The run as one segment; `None` if it is none of plain segments, or if a checksum is wrong."""
        layout, frames = self._layout, slice(first, last + 1)
        start = self._start + first * self._stride
        head = self._batch.data[start : start + layout.header_bytes]
        size = int(self.payload_bytes[first])
        if int.from_bytes(head, "big") & layout.shape_mask != layout.shape:
            return None
        if not 0 <= size <= self._most_payload_bytes or not self._is_right(frames, size):
            return None
        payload: Buffer = b""
        duplicates = 0
        if size:
            payload = np.ascontiguousarray(self._array("u1", layout.header_bytes, frames, size)).reshape(-1).data
            payload = payload.toreadonly()
        else:
            ack, window = self.ack[frames], self.window[frames]
            duplicates = int(np.count_nonzero((ack[1:] == ack[:-1]) & (window[1:] == window[:-1])))
        flags = self._array("u1", layout.tcp_at + 13, frames, 1)
        middle = layout.addresses_at + layout.address_bytes
        source_port, destination_port = _PORTS.unpack_from(head, layout.tcp_at)
        segment = TcpSegment(
            source_port,
            destination_port,
            int(self.seq[first]),
            int(self.ack[last]),
            int(flags.max()),
            int(self.window[last]),
            payload,
            frames=last - first + 1,
        )
        return JoinedSegments(
            parse_ethernet(head)[0],
            head[layout.addresses_at : middle],
            head[middle : layout.tcp_at],
            segment,
            duplicates,
        )

    def _is_right(self, frames: slice, payload_bytes: int) -> bool:
        """Whether all TCP checksums of the frames are right, or left to the link."""
        layout = self._layout
        tcp_bytes = tcp.HEADER_BYTES + payload_bytes
        rest = fold((tcp_bytes >> 8) + ((tcp_bytes & 0xFF) << 8) + (IPProtocol.TCP << 8))
        wrong = self._sums(layout.addresses_at, frames, 2 * layout.address_bytes + tcp_bytes) != (65535 - rest) % 65535
        if self._batch.offloads is not None and wrong.any():
            own = self._batch.offloads[self._first + frames.start : self._first + frames.stop]
            wrong &= np.array([offload is None for offload in own])
        return not wrong.any()

    def _sums(self, offset: int, frames: slice, size: int) -> npt.NDArray[np.uint64]:
        """The sum of each frame's little-endian 16-bit words from `offset` on, modulo 65535.

        An odd byte at the end is padded with zero.  Where it comes out even, words of 32 bits are summed instead, which
        modulo 65535 is the same.
        """
        dtype, step = ("<u4", 4) if size % 4 == 0 else ("<u2", 2)
        sums = self._array(dtype, offset, frames, size // step).sum(axis=1, dtype=np.uint64)
        if size % 2:
            sums += self._array("u1", offset + size - 1, frames, 1)[:, 0]
        reduced: npt.NDArray[np.uint64] = sums % 65535
        return reduced
