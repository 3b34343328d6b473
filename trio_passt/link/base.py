"""What a link is: the guest's end of the cable, whatever it is made of.

Theory of operation
-------------------
A link moves *batches*.  `receive_batch` awaits at least one frame and returns all that are there; where the link has a
descriptor, `receive_now` does the same for somebody who waits for that descriptor together with others.  `send`
never waits: it takes as many frames as fit and says how many; nothing is queued.  Whoever was not served
keeps what it has (a TCP flow peeks it again from its host socket) and asks to be called back with
`when_ready`.

The exception is what was begun: a frame that was written in part, which a stream link can't take back, and small
frames that were gathered.  The link keeps the rest, and finishes it before anything else is written.  `run` is the task
that does so, and that calls the callbacks; it belongs in the nursery of whatever owns the link.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from trio_passt.wire.frames import Capabilities, FrameBatch, FrameRun


class LinkClosed(Exception):  # noqa: N818 - an end, not necessarily an error
    """The guest is gone, or broke the link's protocol; the text says which, for the log."""


class Link(Protocol):
    """A guest's attachment.  `tests/unit/link/check_link.py` is the contract as a test."""

    @property
    def capabilities(self) -> Capabilities:
        """What the link does by itself; constant."""

    @property
    def drops(self) -> Counter[str]:
        """How many frames were dropped, by reason: those that the link itself drops, and all others of its guest's."""

    async def receive_batch(self) -> FrameBatch:
        """All frames that are there, at least one.  Raises `LinkClosed`; one task at a time."""

    def fileno(self) -> int | None:
        """The descriptor that is readable when there are frames, or the end; `None` for a link that has none."""

    def receive_now(self) -> FrameBatch | None:
        """All frames that are there, without waiting, or `None`.  Raises `LinkClosed`."""

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Take frames in order and return how many were taken (a frame once begun counts as taken).

        Never blocks.  Fewer than offered means: full; the rest was not touched.  A link that is closed takes
        everything and forgets it, since its reader is about to tell.
        """

    @property
    def is_full(self) -> bool:
        """Whether `send` is known to take nothing: then it is not worth preparing frames for it."""

    @property
    def room_bytes(self) -> int:
        """About how much `send` would take now, frames and their prefixes; 0 or less if none."""

    @property
    def waiting(self) -> int:
        """How many callbacks wait for room."""

    def gather(self) -> None:
        """Small frames may be kept from now on, to be sent together: many flows are about to acknowledge.

        They are taken, as far as `send` says.
        """

    def release(self) -> None:
        """Send what was kept since `gather`."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, from the link's own task, as soon as `send` may take frames (again)."""

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call `callback` after all, if it waits: who asked is no more."""

    async def run(self) -> None:
        """The link's own task: finishes partly written frames and calls back.  Ends only by cancellation."""

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
