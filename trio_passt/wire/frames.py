"""Frames in bulk: what a link hands in and what it takes.

Both directions use one layout, that of QEMU's stream socket (`-netdev stream`, see qemu(1)): each frame is preceded
by its length, 32 bits big-endian.  Links without such framing skip the prefix; in return a run of equal frames is one
block of memory with a constant stride, which NumPy cuts and joins without a loop.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final

from attrs import frozen

from trio_passt.wire.checksum import Buffer

PREFIX_BYTES: Final = 4
PREFIX: Final = struct.Struct("!I")
MIN_FRAME_BYTES: Final = 14
MAX_FRAME_BYTES: Final = 65535 + 14 + 4
"""Largest IP packet, Ethernet header, one VLAN tag."""


class Segmentation(Enum):
    """What kind of segments the link shall cut a frame into (virtio 1.2 section 5.1.6, gso_type)."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP = 5


MOST_DATAGRAMS: Final = 1024
"""That a frame may stand for.  In 64 KiB these are of 64 bytes; who has smaller ones wants to see us busy."""


@frozen
class Offload:
    """Work on a frame that is left to the link: a checksum, and perhaps segmentation.

    `checksum_start` is the offset in the frame from which to sum, `checksum_offset` that of the field from there; the
    field holds the pseudo-header's sum.  `segment_bytes` is the payload of each segment to cut, 0 for none.
    `is_verified`: nothing is left to do, and whoever hands the frame in answers for its checksum.
    """

    checksum_start: int
    checksum_offset: int
    header_bytes: int = 0
    segment_bytes: int = 0
    segmentation: Segmentation = Segmentation.NONE
    is_verified: bool = False

    def answers_for(self, transport_at: int, checksum_offset: int, segmentation: Segmentation) -> bool:
        """Whether a packet with its transport header there, in segments of this kind or whole, needs no verification.

        Its checksum is still to be filled in, so it has not been damaged since it was made; or it has been verified.
        """
        if self.is_verified:
            return True
        is_there = self.checksum_start == transport_at and self.checksum_offset == checksum_offset
        return is_there and self.segmentation in (segmentation, Segmentation.NONE)


@frozen
class Capabilities:
    """What a link can do by itself; asked once, by whoever prepares frames for it.

    Fill in a checksum; cut TCP over IPv4 or IPv6 into segments, or UDP of both into datagrams of one size.
    """

    checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    uso: bool = False


class FrameRun:
    """`count` frames of one length for a link: prefix and frame, prefix and frame ...; `parts` joined are the bytes.

    `stride` is the length of one frame with its prefix, so `count * stride` bytes in all.  The parts may be views of
    memory that is used again later: a link that keeps anything beyond `send` copies it.

    Nobody changes it.  It is no class of attrs' since one is made in every turn, and theirs stay interpreted.
    """

    __slots__ = ("count", "offload", "parts", "stride")

    def __init__(self, parts: tuple[Buffer, ...], count: int, stride: int, offload: Offload | None = None) -> None:
        self.parts = parts
        self.count = count
        self.stride = stride
        self.offload = offload


def single(*frame_parts: Buffer, offload: Offload | None = None) -> FrameRun:
    """One frame, given in parts, with its prefix put before it."""
    length = sum(map(len, frame_parts))
    return FrameRun((PREFIX.pack(length), *frame_parts), 1, PREFIX_BYTES + length, offload)


class FrameBatch:
    """Frames that arrived together: `bounds` are (start, end) offsets of the frames in `data`.

    Views of `data` may be kept as long as they are needed, and do not change meanwhile.  But what is kept for
    longer than a moment is better copied: a view holds the memory of the whole batch.  `offloads`, if given, says
    for each frame what its sender left to the link (a checksum not filled in, segments not cut).  As with `FrameRun`,
    nobody changes it, and it is no class of attrs'.
    """

    __slots__ = ("bounds", "data", "offloads")

    def __init__(
        self,
        data: bytes | memoryview,
        bounds: list[tuple[int, int]],
        offloads: list[Offload | None] | None = None,
    ) -> None:
        self.data = data
        self.bounds = bounds
        self.offloads = offloads

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[memoryview]:
        view = memoryview(self.data)
        for start, end in self.bounds:
            yield view[start:end]

    def first(self) -> memoryview:
        """The first frame: most batches have no other, and then no iterator is needed."""
        start, end = self.bounds[0]
        return memoryview(self.data)[start:end]
