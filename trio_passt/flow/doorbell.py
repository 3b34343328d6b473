"""How a flow's one task is woken: by the guest, by its host socket, or by the link.

Theory of operation
-------------------
A task switch costs as much as all the work that a small segment makes.  So a flow that has nothing to wait for but the
next event describes what it does as a *turn*: a function that does all that can be done now, never waits, and says
when it wants its next one at the latest.  While the task sleeps between two turns, whoever rings takes the turn on the
spot: a batch from the guest, or the events of the host sockets, are then worked off without a single switch.  The task
itself is woken when its deadline passes, when there is more to do than one turn allows, so that others get theirs
first, and when a turn ends the flow or raises: how a flow ends is the task's own business.

No turn is ever taken inside another: no turn rings, nor calls what rings.
"""

import math
from collections.abc import Callable

import trio

AGAIN = -math.inf
"""What a turn returns that left something to do: the next one comes after everybody else's."""

Turn = Callable[[], float | None]
"""Does what can be done; returns the time (on Trio's clock) of the next turn, should nobody ring before, `AGAIN`, or
`None` when all is over."""


class Doorbell:
    """One sleeper, and any number of synchronous callers who ring.

    A ring while nobody sleeps is remembered; several rings before the sleeper runs are one.
    """

    __slots__ = ("_alarm", "_error", "_is_over", "_rung", "_sleeper", "_turn")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: trio.lowlevel.Task | None = None
        self._turn: Turn | None = None
        self._alarm: trio.CancelScope | None = None
        self._error: Exception | None = None
        self._is_over = False

    def ring(self) -> None:
        """Take the sleeper's turn for it, or wake it, now or at its next `wait`."""
        if self._sleeper is None:
            self._rung = True
        elif self._turn is None or not self._take_turn(self._turn):
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)

    async def wait(self) -> None:
        """Sleep until rung.  Always a checkpoint, also when a ring was remembered."""
        if self._rung:
            self._rung = False
            await trio.lowlevel.checkpoint()
            return
        self._sleeper = trio.lowlevel.current_task()

        def forget(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(forget)
        self._rung = False

    async def wait_until(self, deadline: float) -> bool:
        """Sleep until rung, or until Trio's clock shows `deadline`: false if nobody rang before."""
        with trio.move_on_at(deadline) as silence:
            await self.wait()
        return not silence.cancelled_caught

    async def take_turns(self, turn: Turn) -> None:
        """Take a turn now, and then at each ring and each deadline, until one returns `None` or raises."""
        while True:
            deadline = turn()
            if deadline is None:
                return
            if deadline == AGAIN:
                self._rung = False
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=deadline) as self._alarm:
                self._turn = turn
                try:
                    await self.wait()
                finally:
                    self._turn = None
            if self._error is not None:
                error, self._error = self._error, None  # no cycle through its traceback
                raise error
            if self._is_over:
                return

    def _take_turn(self, turn: Turn) -> bool:
        """A turn while the task sleeps: true if it may sleep on."""
        assert self._alarm is not None
        try:
            deadline = turn()
        except Exception as error:
            self._error = error
            return False
        if deadline is None:
            self._is_over = True
            return False
        if deadline == AGAIN:
            return False
        if deadline < self._alarm.deadline:  # a later one is found out when the task wakes for nothing
            self._alarm.deadline = deadline
        return True
