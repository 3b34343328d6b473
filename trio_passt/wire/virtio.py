"""The header of virtio-net before a frame (virtio 1.2 section 5.1.6, linux/virtio_net.h): what is left to do with it.

Ten bytes: flags, kind of segmentation, and four 16-bit numbers: length of all headers, payload of each segment, where
to begin to sum, and where from there the checksum belongs.  (The eleventh and twelfth, a count of buffers, are there
only between a driver and its device.)  The numbers are little-endian, or in the machine's order where the kernel is too
old to be told (before 3.19).
"""

import struct

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import Offload, Segmentation

HEADER_BYTES = 10
LITTLE_ENDIAN = struct.Struct("<BBHHHH")
NATIVE = struct.Struct("=BBHHHH")

_NEEDS_CHECKSUM = 1
_IS_VERIFIED = 2
"""VIRTIO_NET_HDR_F_DATA_VALID"""

_VERIFIED = Offload(0, 0, is_verified=True)

NOTHING_LEFT = bytes(HEADER_BYTES)
"""Before a frame that is complete."""


def parse(header: Buffer, layout: struct.Struct = LITTLE_ENDIAN) -> Offload | None:
    """What is left to do; `None`: nothing, and nobody has verified the checksum.

    Malformed: flags or a kind of segmentation that nobody has asked for, segments of no size, or without a checksum to
    fill in (section 5.1.6.2.2).  Whether the places are in the frame is not known here.
    """
    flags, kind, header_bytes, segment_bytes, checksum_start, checksum_offset = layout.unpack(header)
    if flags & ~(_NEEDS_CHECKSUM | _IS_VERIFIED):
        raise MalformedPacket(f"virtio header with flags {flags:#x}")
    if not flags & _NEEDS_CHECKSUM:
        if kind:
            raise MalformedPacket("virtio header that asks for segments without checksum")
        return _VERIFIED if flags else None
    if kind == Segmentation.NONE.value:
        return Offload(checksum_start, checksum_offset, header_bytes)
    if kind not in _KINDS or not segment_bytes:
        raise MalformedPacket(f"virtio header that asks for segments of {segment_bytes} bytes, kind {kind}")
    return Offload(checksum_start, checksum_offset, header_bytes, segment_bytes, _KINDS[kind])


_KINDS = {kind.value: kind for kind in Segmentation if kind is not Segmentation.NONE}


def emit(offload: Offload | None, layout: struct.Struct = LITTLE_ENDIAN) -> bytes:
    """The ten bytes before a frame of which this is left to do."""
    if offload is None:
        return NOTHING_LEFT
    if offload.is_verified:
        return layout.pack(_IS_VERIFIED, 0, 0, 0, 0, 0)
    return layout.pack(
        _NEEDS_CHECKSUM,
        offload.segmentation.value,
        offload.header_bytes,
        offload.segment_bytes,
        offload.checksum_start,
        offload.checksum_offset,
    )
