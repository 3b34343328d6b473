"""A link that does what another one does, while somebody sees all frames that pass: the base of capture and trace."""

from collections import Counter
from collections.abc import Callable, Sequence

from trio_passt.link.base import Link
from trio_passt.wire.frames import Capabilities, FrameBatch, FrameRun


class WatchedLink:
    """A `Link`.  A subclass says what is done about frames that came, and about those that were taken; see `base`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def _came(self, batch: FrameBatch) -> None:
        """Frames from the guest, none of which has been acted on yet."""
        raise NotImplementedError

    def _went(self, runs: Sequence[FrameRun], count: int) -> None:
        """The first `count` frames of `runs`, at least one, were taken for the guest."""
        raise NotImplementedError

    @property
    def capabilities(self) -> Capabilities:
        """Those of the other link."""
        return self._link.capabilities

    @property
    def drops(self) -> Counter[str]:
        """Those of the other link."""
        return self._link.drops

    async def receive_batch(self) -> FrameBatch:
        """A batch from the guest, seen."""
        batch = await self._link.receive_batch()
        self._came(batch)
        return batch

    def fileno(self) -> int | None:
        """That of the other link."""
        return self._link.fileno()

    def receive_now(self) -> FrameBatch | None:
        """What the guest has sent, seen."""
        batch = self._link.receive_now()
        if batch is not None:
            self._came(batch)
        return batch

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Send to the guest; as many frames are seen as were taken."""
        count = self._link.send(runs)
        if count:
            self._went(runs, count)
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
        """As the other link does; the frames are seen at once."""
        self._link.gather()

    def release(self) -> None:
        """As the other link does."""
        self._link.release()

    def when_ready(self, callback: Callable[[], None]) -> None:
        """As the other link does."""
        self._link.when_ready(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """As the other link does."""
        self._link.forget(callback)

    async def run(self) -> None:
        """The other link's task."""
        await self._link.run()

    def close(self) -> None:
        """Close the other link, and nothing else."""
        self._link.close()
