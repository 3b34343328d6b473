"""What `coalesce` makes of a batch: frames that go on with one another, as one segment."""

from attrs import frozen

from trio_passt.wire.plain import Ends
from trio_passt.wire.tcp import TcpSegment


@frozen(eq=False)
class JoinedSegments:
    """A run of plain frames of one connection, perhaps of one frame only; `mac` and `ends` are as in `plain`.

    `segment` has the first frame's sequence number, the flags of all, and the last frame's acknowledgement number and
    window.  `duplicates` counts the frames at the end of a run of pure acknowledgements that repeat exactly
    (acknowledgement number and window) the frame before them; so to process the run is to process `segment` and then
    count that many duplicates of it.
    """

    mac: bytes
    ends: Ends
    segment: TcpSegment
    duplicates: int = 0

    @property
    def frames(self) -> int:
        """How many it was made from."""
        return self.segment.frames


Item = memoryview | JoinedSegments
