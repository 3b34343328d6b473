"""A link that writes down what passes (`--pcap`), and the file it writes to.

A capture is a help for whoever looks for a fault, so it must not become one: a disk that is full ends the
capture, with one line in the log, and the guest's network goes on.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import FileIO
from itertools import islice
from pathlib import Path

from trio_passt.errors import StartupError
from trio_passt.link.base import Link
from trio_passt.link.watched import WatchedLink
from trio_passt.wire import framing, pcap
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.frames import FrameBatch, FrameRun

_log = logging.getLogger(__name__)

MODE = 0o600
"""A capture shows all that the guest says and hears."""


class Capture:
    """An open capture file.

    It outlives the guest's links: a guest that comes again is recorded in the same file.  Each batch is written
    at once, so that another program can read along.
    """

    def __init__(self, file: FileIO, name: str, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._file: FileIO | None = file
        self._name = name
        self._now_ns = now_ns
        self._size = 0
        self._write(pcap.file_header())

    def record(self, frames: Iterable[Buffer]) -> None:
        """Write down these frames, as of now.  Never fails: an error ends the capture."""
        if self._file is not None:
            self._write(pcap.records(frames, self._now_ns()))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        try:
            while view:
                count = self._file.write(view)
                if count is None:
                    raise BlockingIOError(errno.EAGAIN, "its reader is too slow")
                view = view[count:]
        except OSError as error:
            _log.warning("the capture to %s ends here: %s", self._name, error.strerror)
            with suppress(OSError):
                self._file.truncate(self._size)
            self.close()
        else:
            self._size += len(data)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def open_capture(path: Path, now_ns: Callable[[], int] = time.time_ns) -> Capture:
    """Create the file, readable by its owner only, or empty it; `StartupError` if that can't be done.

    A named pipe needs a reader already, and one that keeps up: nothing here waits for it.
    """
    try:
        file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, MODE), "w")
    except OSError as error:
        raise StartupError(f"can't capture to {path}: {error.strerror}") from error
    return Capture(file, str(path), now_ns)


class CapturingLink(WatchedLink):
    """A `Link` that does what another one does, and records the frames that it gave or took.

    What was left to the link (`Offload`) is not done yet in the record: such checksums look wrong there.  The capture
    outlives it, and is the next guest's, too.
    """

    def __init__(self, link: Link, capture: Capture) -> None:
        super().__init__(link)
        self._capture = capture

    def _came(self, batch: FrameBatch) -> None:
        self._capture.record(batch)

    def _went(self, runs: Sequence[FrameRun], count: int) -> None:
        frames = (frame for run in runs for frame in framing.frames_of(run))
        self._capture.record(islice(frames, count))
