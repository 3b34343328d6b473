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
from trio_passt.wire import framing, pcap
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.frames import Capabilities, FrameBatch, FrameRun

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


class CapturingLink:
    """A `Link` that does what another one does, and records the frames that it gave or took.

    What was left to the link (`Offload`) is not done yet in the record: such checksums look wrong there.
    """

    def __init__(self, link: Link, capture: Capture) -> None:
        self._link = link
        self._capture = capture

    @property
    def capabilities(self) -> Capabilities:
        """Those of the other link."""
        return self._link.capabilities

    async def receive_batch(self) -> FrameBatch:
        """A batch from the guest, recorded."""
        batch = await self._link.receive_batch()
        self._capture.record(batch)
        return batch

    def fileno(self) -> int | None:
        """That of the other link."""
        return self._link.fileno()

    def receive_now(self) -> FrameBatch | None:
        """What the guest has sent, recorded."""
        batch = self._link.receive_now()
        if batch is not None:
            self._capture.record(batch)
        return batch

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Send to the guest, and record as many frames as were taken."""
        count = self._link.send(runs)
        if count:
            frames = (frame for run in runs for frame in framing.frames_of(run))
            self._capture.record(islice(frames, count))
        return count

    @property
    def is_full(self) -> bool:
        """Whether the other link is."""
        return self._link.is_full

    @property
    def room_bytes(self) -> int:
        """That of the other link."""
        return self._link.room_bytes

    @property
    def waiting(self) -> int:
        """How many wait for the other link."""
        return self._link.waiting

    def gather(self) -> None:
        """As the other link does; the record has the frames at once."""
        self._link.gather()

    def release(self) -> None:
        """As the other link does."""
        self._link.release()

    def when_ready(self, callback: Callable[[], None]) -> None:
        """As the other link does."""
        self._link.when_ready(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """The link's."""
        self._link.forget(callback)

    async def run(self) -> None:
        """The other link's task."""
        await self._link.run()

    def close(self) -> None:
        """Close the other link.  The capture stays open, for the next guest."""
        self._link.close()
