"""A link that says in the log what passes (`--trace`): a line for each frame, in words.

It takes as long as it takes, some 30 µs a frame, and a log that can't keep up loses lines.
"""

import logging
from collections.abc import Sequence
from itertools import islice, repeat

from trio_passt.link.watched import WatchedLink
from trio_passt.wire import framing
from trio_passt.wire.describe import describe
from trio_passt.wire.frames import FrameBatch, FrameRun

_log = logging.getLogger("trio_passt.trace")


class TracingLink(WatchedLink):
    """A `Link` that does what another one does, and describes the frames that it gave or took."""

    def _came(self, batch: FrameBatch) -> None:
        for frame, offload in zip(batch, batch.offloads or repeat(None), strict=False):
            _log.debug("from guest: %s", describe(frame, has_checksum=offload is None))

    def _went(self, runs: Sequence[FrameRun], count: int) -> None:
        frames = ((frame, run.offload) for run in runs for frame in framing.frames_of(run))
        for frame, offload in islice(frames, count):
            _log.debug("to guest:   %s", describe(frame, has_checksum=offload is None))
