"""When an acknowledgement waits for an answer to ride on (RFC 5681 section 4.2, RFC 9293 section 3.8.6.3).  Pure.

A request that is answered at once needs no acknowledgement of its own: the answer carries it, and the guest is spared a
segment, and so are we.  But to wait for an answer that does not come delays a guest that waits for the acknowledgement
(with Nagle's algorithm it does, before it sends the second part of a request).  So an acknowledgement waits only where
the last few exchanges all were answered at once, and never for long; and the first time in vain is the last time, until
there are as many again.  Where the first exchange was quick in each of the last few connections, a new one starts with
that trust; and that the window is larger than the one of the SYN waits, too, for the first question and its answer.
"""

import math
from typing import Final

from trio_passt.flow.streak import Streak
from trio_passt.tcp import timeouts

QUICK_ANSWERS: Final = 8
"""So many in a row, and the next one is expected to be as quick."""


class Riding:
    """Counts quick answers.  `due`: when the acknowledgement that waits now has to go; infinity if none does."""

    __slots__ = ("_asked_at", "_firsts", "_opened_at", "_quick_answers", "due")

    def __init__(self, firsts: Streak | None = None) -> None:
        """`firsts` is what all connections of a guest count together: those whose first answer was quick."""
        self._asked_at: float | None = None
        self._opened_at: float | None = None
        self._firsts = firsts
        self._quick_answers = QUICK_ANSWERS if firsts is not None and firsts.length >= QUICK_ANSWERS else 0
        self.due = math.inf

    def asked(self, now: float) -> None:
        """Data came from the guest."""
        if self._asked_at is not None:  # again, and the last time is not answered
            self._count(is_quick=False)
        self._asked_at = now

    def may_wait(self, now: float) -> bool:
        """Whether an acknowledgement that is due need not go alone; then it waits until `due`."""
        if self._quick_answers < QUICK_ANSWERS:
            return False
        if self._asked_at is None:
            return self._firsts is not None and self._may_open_later(now)
        due = self._asked_at + timeouts.ACK_RIDES_S
        if now < due:
            self.due = due
            return True
        self._count(is_quick=False)
        return False

    def _may_open_later(self, now: float) -> bool:
        if self._opened_at is None:
            self._opened_at = now
        if now >= self._opened_at + timeouts.ACK_RIDES_S:
            return False
        self.due = self._opened_at + timeouts.ACK_RIDES_S
        return True

    def answered(self, now: float) -> None:
        """Data went to the guest, and what was to be acknowledged with it."""
        if self._asked_at is not None:
            self._count(is_quick=now - self._asked_at < timeouts.ACK_RIDES_S)
            self._asked_at = None

    def _count(self, *, is_quick: bool) -> None:
        self._quick_answers = self._quick_answers + 1 if is_quick else 0
        if self._firsts is not None:
            self._firsts.length = self._firsts.length + 1 if is_quick else 0
            self._firsts = None

    def nothing_waits(self) -> None:
        """For all that is known, nothing waits: `may_wait` says otherwise."""
        self.due = math.inf
