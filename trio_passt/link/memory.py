"""A link without a guest, for tests: a script plays the guest's side.

Deterministic: nothing happens but by a call, and nothing waits for a clock, so `autojump_clock` jumps as it
should.
"""

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import trio
from attrs import frozen

from trio_passt.link.base import LinkClosed
from trio_passt.link.waiting import WaitingLine
from trio_passt.wire import framing
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.frames import Capabilities, FrameBatch, FrameRun, Offload


@frozen
class SentFrame:
    """A frame that was sent to the guest, and the work on it that was left to the link."""

    data: bytes
    offload: Offload | None = None


class MemoryLink:
    """A `Link` whose guest is a test.

    It is full when `capacity_frames` frames or `capacity_bytes` bytes were sent and not yet taken by the
    test; the frame that reaches the capacity in bytes is still taken whole.  `None` means: never full.
    """

    def __init__(
        self,
        capabilities: Capabilities = Capabilities(),  # noqa: B008 - frozen
        *,
        capacity_frames: int | None = None,
        capacity_bytes: int | None = None,
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._capabilities = capabilities
        self._capacity_frames = capacity_frames
        self._capacity_bytes = capacity_bytes
        self._closed: str | None = None
        self._arrived: deque[FrameBatch] = deque()
        self._sent: deque[SentFrame] = deque()
        self._sent_bytes = 0
        self._waiting = WaitingLine()
        self._news_to_receiver = trio.Event()
        self._news_to_run = trio.Event()
        self._news_to_guest = trio.Event()

    @property
    def capabilities(self) -> Capabilities:
        """As given."""
        return self._capabilities

    async def receive_batch(self) -> FrameBatch:
        """What one `push` gave; after `disconnect`, first what was pushed before, then `LinkClosed`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived and self._closed is None:
            self._news_to_receiver = trio.Event()
            await self._news_to_receiver.wait()
        if self._arrived:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return self._arrived.popleft()
        assert self._closed is not None
        raise LinkClosed(self._closed)

    def fileno(self) -> int | None:
        """There is none."""
        return None

    def receive_now(self) -> FrameBatch | None:
        """The next batch, if there is one."""
        if self._closed is not None and not self._arrived:
            raise LinkClosed(self._closed)
        return self._arrived.popleft() if self._arrived else None

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Take frames up to the capacity; see `Link.send`."""
        if self._closed is not None:
            return sum(run.count for run in runs)
        count = 0
        for run in runs:
            for frame in framing.frames_of(run):
                if self.is_full:
                    return count
                self._sent.append(SentFrame(bytes(frame), run.offload))
                self._sent_bytes += len(frame)
                self._news_to_guest.set()
                count += 1
        return count

    @property
    def room_bytes(self) -> int:
        """What is left of the capacity in bytes."""
        return sys.maxsize if self._capacity_bytes is None else self._capacity_bytes - self._sent_bytes

    @property
    def waiting(self) -> int:
        """How many callbacks wait for room."""
        return len(self._waiting)

    def gather(self) -> None:
        """Nothing is kept: each frame is sent at once."""

    def release(self) -> None:
        """Nothing was kept."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Have `run` call `callback` once when there is room; first come, first served."""
        self._waiting.add(callback)
        self._news_to_run.set()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call `callback`."""
        self._waiting.forget(callback)

    async def run(self) -> None:
        """Call back when there is room, until cancelled."""
        while True:
            await self._news_to_run.wait()
            self._waiting.call_back(lambda: self.is_full)
            if self.is_full or not len(self._waiting):
                self._news_to_run = trio.Event()

    def close(self) -> None:
        """The end, from the daemon's side; frames not read are forgotten."""
        self._arrived.clear()
        self._end("closed")

    # The guest's side, for the test.

    @property
    def is_full(self) -> bool:
        """Whether `send` takes nothing at present."""
        if self._closed is not None:
            return False
        frames_left = self._capacity_frames is None or len(self._sent) < self._capacity_frames
        bytes_left = self._capacity_bytes is None or self._sent_bytes < self._capacity_bytes
        return not (frames_left and bytes_left)

    def push(self, frames: Iterable[Buffer], offloads: Sequence[Offload | None] | None = None) -> None:
        """The guest sends these frames, as one batch."""
        batch = framing.join(frames, offloads)
        if self._closed is None and len(batch):
            self._arrived.append(batch)
            self._news_to_receiver.set()

    def take_sent_frames(self) -> list[SentFrame]:
        """All that was sent to the guest since the last call; the link is empty afterwards."""
        frames = list(self._sent)
        self._sent.clear()
        self._sent_bytes = 0
        self._news_to_run.set()
        return frames

    def take_sent(self) -> list[bytes]:
        """As `take_sent_frames`, only the bytes."""
        return [frame.data for frame in self.take_sent_frames()]

    async def next_sent(self) -> bytes:
        """Wait for one frame and take it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._sent:
            self._news_to_guest = trio.Event()
            await self._news_to_guest.wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        frame = self._sent.popleft()
        self._sent_bytes -= len(frame.data)
        self._news_to_run.set()
        return frame.data

    def set_capacity(self, *, frames: int | None = None, size: int | None = None) -> None:
        """Another capacity, from now on; `None` for no limit."""
        self._capacity_frames = frames
        self._capacity_bytes = size
        self._news_to_run.set()

    def disconnect(self, reason: str = "the guest disconnected") -> None:
        """The guest goes away."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._closed is None:
            self._closed = reason
        self._news_to_receiver.set()
        self._news_to_run.set()
