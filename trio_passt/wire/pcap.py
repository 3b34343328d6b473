"""Capture files in the classic pcap format (draft-ietf-opsawg-pcap), time stamps in nanoseconds.

As an exception to what the rest of `wire` does, the fields are little-endian: the format leaves the choice to
the writer, and the magic number tells.
"""

import struct
from collections.abc import Iterable

from trio_passt.wire.checksum import Buffer

MAGIC_NANOSECONDS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAPLEN_BYTES = 262144
"""No frame is longer; the value that tcpdump writes too."""

_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD_HEADER = struct.Struct("<IIII")


def file_header() -> bytes:
    """What a file begins with: version 2.4, whole Ethernet frames without a checksum at the end."""
    return _FILE_HEADER.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAPLEN_BYTES, LINKTYPE_ETHERNET)


def records(frames: Iterable[Buffer], time_ns: int) -> bytes:
    """The records of frames that passed at one moment, `time_ns` nanoseconds after 1970."""
    stamp = divmod(time_ns, 1_000_000_000)
    pieces: list[Buffer] = []
    for frame in frames:
        length = len(frame)
        pieces += (_RECORD_HEADER.pack(*stamp, length, length), frame)
    return b"".join(pieces)
