"""The frames of a batch as columns: one NumPy call reads a field, or computes a sum, of all of them.

Theory of operation
-------------------
Headers.  An array whose elements overlap, one at every offset of the batch, has a whole header as an element; indexed
with the offsets of the frames it gives their headers, wherever they lie.  Turned round, each word is a column.

Sums.  A guest that sends in bulk sends frames of one length, so the batch is made of *stretches*: frames of one length
at equal distances, to NumPy an array with one frame a row, without anything being copied.  Words of 32 bits are summed
in the machine's order of bytes, which modulo 65535 is the sum of the 16-bit words but for a swap of bytes (see
`checksum`).  They lie at any address: to copy them to an aligned one, or to cut the rows into aligned parts, was
measured to cost more than it saves.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.frames import FrameBatch, Segmentation

Words = npt.NDArray[np.uint32]
Sums = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_WORD = np.dtype("<u4")
_SUM = np.dtype(np.uint64)

_HASH_FACTORS = np.array([pow(0x9E3779B97F4A7C15, number, 1 << 64) for number in range(1, 10)], np.uint64)
"""Powers of an odd number without a pattern (2**64 divided by the golden ratio)."""


SHORTEST_FRAME_BYTES = 60
"""What is shorter is padded to this length by some network cards (IEEE 802.3 clause 4.2.3.3, without its checksum)."""

WORDS_AT = 2
"""Words of a frame begin with its third byte: so they are those that IP, TCP and UDP are made of."""

SHAPE, IPV4_HEADER = slice(2, 6), slice(3, 8)
"""The words that tell what kind of frame this is, up to IP's protocol; those of an IPv4 header without options."""


class Stretch(NamedTuple):
    """So many `frames` of `frame_bytes` each: `first` is the index of the first, `start` where it lies."""

    first: int
    frames: int
    frame_bytes: int
    start: int
    stride: int


class Offloads(NamedTuple):
    """What `Offload` says of each frame of a batch, as far as one kind of packet is concerned.

    `some`: there is one.  `answered`: it answers for the checksum, and may ask for segments.  `sizes`: of these, 0 for
    none; `None` if no frame is to be cut.
    """

    some: Flags
    answered: Flags
    sizes: Offsets | None

    def segment_counts(self, payload_sizes: Words) -> Offsets | None:
        """How many segments each frame stands for, given the sizes of all payloads; `None`: each for one."""
        if self.sizes is None:
            return None
        counts: Offsets = np.where(self.sizes, -(-payload_sizes.astype(np.int64) // np.maximum(self.sizes, 1)), 1)
        return np.maximum(counts, 1)


def offloads(batch: FrameBatch, transport_at: int, checksum_offset: int, segmentation: Segmentation) -> Offloads | None:
    """For packets with the transport header there; `None` if no frame has an offload.

    There are few different ones in a batch, often only one, so they are told by their identity.
    """
    if batch.offloads is None:
        return None
    first, count = batch.offloads[0], len(batch)
    if batch.offloads.count(first) == count:
        some, answered, size = first is not None, False, 0
        if first is not None:
            answered, size = first.answers_for(transport_at, checksum_offset, segmentation), first.segment_bytes
        return Offloads(
            np.full(count, some, np.bool_),
            np.full(count, answered, np.bool_),
            np.full(count, size, np.int64) if size else None,
        )
    different = {id(offload): offload for offload in batch.offloads if offload is not None}
    answers = {
        name: offload.answers_for(transport_at, checksum_offset, segmentation) for name, offload in different.items()
    }
    sizes = {name: offload.segment_bytes for name, offload in different.items() if offload.segment_bytes}
    names = [id(offload) for offload in batch.offloads]
    return Offloads(
        np.array([name in answers for name in names], np.bool_),
        np.array([answers.get(name, False) for name in names], np.bool_),
        np.array([sizes.get(name, 0) for name in names], np.int64) if sizes else None,
    )


def to_verify(stretches: list[Stretch], offloads: Offloads | None) -> list[bool]:
    """For each stretch, whether it may have frames whose checksums nobody answers for."""
    if offloads is None:
        return [True] * len(stretches)
    unanswered: list[bool] = np.logical_or.reduceat(~offloads.some, [part.first for part in stretches]).tolist()
    return unanswered


def pattern(on_the_wire: str) -> Words:
    """A column of the words that these bytes are, in hexadecimal."""
    return np.frombuffer(bytes.fromhex(on_the_wire), ">u4").astype(np.uint32)[:, None]


def stretches(bounds: list[tuple[int, int]]) -> list[Stretch]:
    """All frames of a batch, as stretches that are as long as they can be."""
    found = []
    first = stride = 0
    start, end = bounds[0]
    before, length = start, end - start
    for index, (begin, end) in enumerate(bounds):
        if begin - before != stride or end - begin != length:
            if index == first + 1 and end - begin == length:
                stride = begin - before
            else:
                found.append(Stretch(first, index - first, length, start, stride or 1))
                first, start, length, stride = index, begin, end - begin, 0
        before = begin
    found.append(Stretch(first, len(bounds) - first, length, start, stride or 1))
    return found


def offsets(stretches: list[Stretch]) -> Offsets:
    """Where each frame lies."""
    parts = [
        np.arange(start, start + count * stride, stride, dtype=np.int64) for _, count, _, start, stride in stretches
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def words(data: Buffer, starts: Offsets, count: int) -> Words:
    """`count` big-endian words of 32 bits from each of the offsets on: all the first ones, all the second ones ...

    Where the data end before that, they are others.
    """
    last, size = len(data) - 4 * count, 4 * count
    windows: npt.NDArray[np.void] = np.ndarray((last + 1,), f"V{size}", data, 0, (1,))
    rows = windows[np.minimum(starts, last)].view(">u4").reshape(-1, count)
    return rows.T.astype(np.uint32, order="C")


def hashes(columns: Words) -> Sums:
    """A number for each frame that follows from these words (at most 9) of it, and is rarely another one's."""
    numbers: Sums = _HASH_FACTORS[: len(columns)] @ columns
    return numbers


def add_up(data: Buffer, stretch: Stretch, offset: int, into: Sums) -> None:
    """The sums of the little-endian 16-bit words of each frame from `offset` to its end, modulo 65535.

    They are not reduced; an odd byte at the end is padded with zero.
    """
    start, size = stretch.start + offset, stretch.frame_bytes - offset
    count, stride = stretch.frames, stretch.stride
    rows = np.ndarray((count, size // 4), _WORD, data, start, (stride, 4))
    np.add.reduce(rows, axis=1, dtype=_SUM, out=into)
    if size & 2:
        into += np.ndarray((count,), "<u2", data, start + (size & ~3), (stride,))
    if size & 1:
        into += np.ndarray((count,), np.uint8, data, start + size - 1, (stride,))


def add_up_padded(data: Buffer, stretch: Stretch, offset: int, sizes: Words, into: Sums) -> None:
    """The same, of frames of which only so many bytes from `offset` on count; the rest is taken for zeros."""
    most = stretch.frame_bytes - offset
    rows = np.zeros((stretch.frames, most + 3 & ~3), np.uint8)
    rows[:, :most] = np.ndarray((stretch.frames, most), np.uint8, data, stretch.start + offset, (stretch.stride, 1))
    rows[np.arange(rows.shape[1]) >= sizes[:, None]] = 0
    np.add.reduce(rows.view(_WORD), axis=1, dtype=_SUM, out=into)
