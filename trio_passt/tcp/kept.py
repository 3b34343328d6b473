"""What the guest sent behind a gap, kept until the gap is filled, and told to it meanwhile (RFC 2018).  Pure.

A link loses nothing, as a rule, so this is made when it is needed, and looked up by going through a short list.  What
is kept is a copy: the memory of the batch is used again.  It may be dropped at any time (RFC 2018 section 8), and is if
there are too many gaps: to fill them, the guest sends it again.
"""

from typing import Final

from trio_passt.tcp import seq
from trio_passt.wire.checksum import Buffer

MOST_BYTES: Final = 256 * 1024
"""So far behind what is next something is kept.  A connection holds no more memory for it, wherever its gaps are; to a
guest at a distance of 100 ms it is 20 Mbit/s with a loss in each window."""

MOST_RANGES: Final = 64
"""A guest that leaves a gap after each byte costs no more than this."""

MOST_BLOCKS: Final = 4
"""So many fit into the options of a segment that has no others (RFC 2018 section 3)."""


class _Range:
    __slots__ = ("data", "start")

    def __init__(self, start: int, data: bytearray) -> None:
        self.start = start
        self.data = data

    @property
    def end(self) -> int:
        return seq.add(self.start, len(self.data))


class Kept:
    """Ranges of data that touch neither one another nor what was received in order."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[_Range] = []
        """The one that changed last comes first: in this order they are told."""

    def keep(self, start: int, data: Buffer) -> None:
        """`data`, not empty, from sequence number `start` on, which lies behind a gap."""
        touching: list[tuple[int, _Range]] = []
        others: list[_Range] = []
        for kept in self._ranges:
            at = seq.distance(start, kept.start)
            if at <= len(data) and at + len(kept.data) >= 0:
                touching.append((at, kept))
            else:
                others.append(kept)
        if not touching and len(others) == MOST_RANGES:
            return
        touching.append((0, _Range(start, bytearray(data))))
        touching.sort(key=_place)
        begins_at, first = touching[0]
        for at, kept in touching[1:]:
            if len(kept.data) > len(first.data):  # the longer one is not copied: a guest may go back byte by byte
                kept.data[:0] = first.data[: at - begins_at]
                kept.start = first.start
                first = kept
            else:
                first.data += kept.data[begins_at + len(first.data) - at :]
        others.insert(0, first)
        self._ranges = others

    def take(self, following: int) -> bytes:
        """What goes on at sequence number `following`, or nothing; what lies before that is forgotten."""
        going_on = b""
        others: list[_Range] = []
        for kept in self._ranges:
            at = seq.distance(following, kept.start)
            if at > 0:
                others.append(kept)
            elif at + len(kept.data) > 0:
                going_on = bytes(kept.data[-at:])
        self._ranges = others
        return going_on

    @property
    def is_empty(self) -> bool:
        """Nothing is kept."""
        return not self._ranges

    def blocks(self) -> list[tuple[int, int]]:
        """The ranges as a SACK option tells them, with the latest first: left and right edge."""
        return [(kept.start, kept.end) for kept in self._ranges[:MOST_BLOCKS]]


def _place(touching: tuple[int, _Range]) -> int:
    return touching[0]
