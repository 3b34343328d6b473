"""Between a byte stream and frames: QEMU's `-netdev stream` framing, 32 bits of length before each frame.

The layout is that of `frames`, so a piece of the stream *is* a batch: reading it means finding the bounds,
and a part of a run that a socket did take is a matter of arithmetic.  Nothing here copies a frame, except
what must outlive a partial write.

Theory of operation
-------------------
Bulk traffic comes as runs of frames of one length.  After a few equal lengths in a row, one strided NumPy
comparison reads all the length fields that a run would have, and the bounds of those that match are made by
`zip` and `range`, which costs a tenth of a Python loop.  The comparison looks a bounded distance ahead, since
a run that breaks early must not have cost the whole batch each time.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import (
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PREFIX,
    PREFIX_BYTES,
    FrameBatch,
    FrameRun,
    Offload,
)

Bounds = list[tuple[int, int]]

RUN_STARTS_AT = 16
"""Equal lengths in a row after which a run is worth a NumPy comparison, which costs as much as about 20 frames."""

RUN_LOOK_AHEAD = 512
"""Frames that one comparison looks at."""


def split(stream: Buffer, end: int) -> Bounds:
    """The (start, end) offsets of the complete frames in `stream[:end]`, which begins with a length.

    What follows the last one is an incomplete frame, or one whose length is out of bounds.  If that is what
    `stream` *begins* with, `MalformedPacket` is raised; so the frames before it come first, and the error
    with the next call.
    """
    bounds: Bounds = []
    position = same = previous = 0
    while position + PREFIX_BYTES <= end:
        (length,) = PREFIX.unpack_from(stream, position)
        start = position + PREFIX_BYTES
        if not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            if bounds:
                break
            raise MalformedPacket(f"frame of {length} bytes")
        if start + length > end:
            break
        bounds.append((start, start + length))
        position = start + length
        same = same + 1 if length == previous else 0
        previous = length
        if same == RUN_STARTS_AT:
            position = _extend_run(bounds, stream, position, end, length)
            same = 0
    return bounds


def _extend_run(bounds: Bounds, stream: Buffer, position: int, end: int, length: int) -> int:
    """Append the bounds of the frames of `length` bytes that follow at `position`; return where they end."""
    stride = PREFIX_BYTES + length
    count = min((end - position) // stride, RUN_LOOK_AHEAD)
    if count == 0:
        return position
    lengths = np.ndarray((count,), ">u4", stream, position, (stride,))
    differs = lengths != length
    first = int(differs.argmax())
    if differs[first]:
        count = first
    stop = position + count * stride
    starts = range(position + PREFIX_BYTES, stop, stride)
    bounds.extend(zip(starts, range(position + stride, stop + 1, stride), strict=True))
    return stop


def join(frames: Iterable[Buffer], offloads: Sequence[Offload | None] | None = None) -> FrameBatch:
    """A batch of these frames: the opposite of `split`, for links without framing of their own and tests."""
    pieces: list[Buffer] = []
    bounds: Bounds = []
    position = 0
    for frame in frames:
        length = len(frame)
        pieces += (PREFIX.pack(length), frame)
        start = position + PREFIX_BYTES
        position = start + length
        bounds.append((start, position))
    return FrameBatch(b"".join(pieces), bounds, None if offloads is None else list(offloads))


def frames_of(run: FrameRun) -> list[memoryview]:
    """The frames of a run, one by one, without their prefixes; copies unless the run is one block."""
    block = memoryview(run.parts[0] if len(run.parts) == 1 else b"".join(run.parts))
    stride = run.stride
    return [block[start + PREFIX_BYTES : start + stride] for start in range(0, run.count * stride, stride)]


def parts_of_frames(run: FrameRun) -> Iterator[Sequence[Buffer]]:
    """The frames of a run one by one, each in parts that begin with its prefix: views, unless it is cut very oddly."""
    if len(run.parts) == 1:
        block, stride = memoryview(run.parts[0]), run.stride
        return ((block[start : start + stride],) for start in range(0, run.count * stride, stride))
    of_each = len(run.parts) // run.count
    frames = [run.parts[first : first + of_each] for first in range(0, len(run.parts), of_each or 1)]
    if len(frames) == run.count and all(sum(map(len, parts)) == run.stride for parts in frames):
        return iter(frames)
    return parts_of_frames(FrameRun((b"".join(run.parts),), run.count, run.stride))


def taken(runs: Sequence[FrameRun], written: int) -> tuple[int, bytes]:
    """What it means that a stream took the first `written` bytes of `runs`.

    How many frames were begun, and a copy of the bytes still missing from the last of them (empty if
    `written` ends with a frame).
    """
    frames = 0
    for run in runs:
        size = run.count * run.stride
        if written < size:
            complete, begun = divmod(written, run.stride)
            if not begun:
                return frames + complete, b""
            return frames + complete + 1, _copy(run.parts, written, (complete + 1) * run.stride)
        frames += run.count
        written -= size
    return frames, b""


def remaining(runs: Sequence[FrameRun], frames: int) -> list[FrameRun]:
    """What is left of `runs` when the first `frames` of their frames are gone, copied so that it may be kept."""
    left = []
    for run in runs:
        if frames < run.count:
            block = _copy(run.parts, frames * run.stride, run.count * run.stride)
            left.append(FrameRun((block,), run.count - frames, run.stride, run.offload))
        frames = max(0, frames - run.count)
    return left


def _copy(parts: Sequence[Buffer], start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of the joined parts."""
    pieces = []
    for part in parts:
        size = len(part)
        if start < size and stop > 0:
            pieces.append(memoryview(part)[max(start, 0) : stop])
        start -= size
        stop -= size
    return b"".join(pieces)
