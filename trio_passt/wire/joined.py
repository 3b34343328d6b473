"""What `coalesce` makes of a batch: frames that belong together, as one segment or as some datagrams of one flow.

No classes of attrs' (see `frames.FrameRun`).
"""

from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.plain import Ends
from trio_passt.wire.tcp import TcpSegment


class JoinedSegments:
    """A run of plain frames of one connection, perhaps of one frame only; `mac` and `ends` are as in `plain`.

    `segment` has the first frame's sequence number, the flags of all, and the last frame's acknowledgement number and
    window.  `duplicates` counts the frames at the end of a run of pure acknowledgements that repeat exactly
    (acknowledgement number and window) the frame before them; so to process the run is to process `segment` and then
    count that many duplicates of it.  Nobody changes it.
    """

    __slots__ = ("duplicates", "ends", "mac", "segment")

    def __init__(self, mac: bytes, ends: Ends, segment: TcpSegment, duplicates: int = 0) -> None:
        self.mac = mac
        self.ends = ends
        self.segment = segment
        self.duplicates = duplicates

    @property
    def frames(self) -> int:
        """How many it was made from."""
        return self.segment.frames


class JoinedDatagrams:
    """UDP datagrams between the same ends, with the same source MAC and hop limit, in order; perhaps only one.

    `mac` and `ends` are as in `plain`.  `payloads` are views of the batch, never none of them.  `first` and `last` are
    the IP packets of the first and the last one, views, too: what an error about them has to quote.
    """

    __slots__ = ("ends", "first", "hop_limit", "last", "mac", "payloads")

    def __init__(
        self,
        mac: bytes,
        ends: Ends,
        hop_limit: int,
        payloads: list[memoryview],
        first: memoryview,
        last: memoryview,
    ) -> None:
        self.mac = mac
        self.ends = ends
        self.hop_limit = hop_limit
        self.payloads = payloads
        self.first = first
        self.last = last


Item = memoryview | JoinedSegments | JoinedDatagrams | MalformedPacket
"""A frame, what was made of several, or what is wrong with work that was left to us."""
