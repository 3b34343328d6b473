"""A flow's life as a coroutine that is resumed by whoever has news for it.

Theory of operation
-------------------
What a flow does is told in order, as a coroutine; a TCP connection's is: connect, shake hands, pass data on, close.  It
waits for one thing only, at `rest`: for the next ring, or for a time to come.  To have it wait as a task of Trio's
would cost a round through the scheduler for each segment and each event of a socket, more than all the work that a
small segment makes.  So whoever rings resumes it on the spot, with a plain function call, and it runs until it rests
again.  A batch from the guest, or the events of the host's sockets, are worked off without a single switch of tasks;
the first thing that a new connection does is done before its task has even begun.

The task is the one that the flow's nursery knows: it wakes when the time comes that the life rests until, when the life
wants to go on after everybody else's turn, and when it has ended or raised.  What follows the end is the task's own
business; if the task is cancelled, the life is closed, and its `finally` clauses run.

Most of a life is the same turn over and over.  It may leave those to us (`repeat`): then whoever rings calls the turn,
and the coroutine itself goes on only when there are no more.

No life is ever resumed from inside itself: a ring meanwhile is remembered, and it goes on soon.
"""

import math
from collections.abc import Callable, Coroutine, Generator
from typing import Final

import trio

from trio_passt.flow.doorbell import Doorbell

SOON: Final = -math.inf
"""A time to `rest` until: others get their turn, and then it goes on at once."""


class _Rest:
    __slots__ = ("_until",)

    def __init__(self, until: float) -> None:
        self._until = until

    def __await__(self) -> Generator[float, None, None]:
        yield self._until


def rest(until: float) -> _Rest:
    """To be awaited in a life: until somebody rings, Trio's clock shows `until`, or for nothing, which may happen."""
    return _Rest(until)


def at_once(callback: Callable[[], None]) -> None:
    """A `later` for who has none: call it now."""
    callback()


class Life:
    """A coroutine that awaits nothing but `rest`, and the task's side of it (`run`).

    `begin` makes it, when it is to begin.  `later` calls back when there is time: that it has ended is nothing urgent.
    """

    __slots__ = (
        "_alarm",
        "_alarm_at",
        "_begin",
        "_coroutine",
        "_error",
        "_is_awake",
        "_is_over",
        "_later",
        "_rung",
        "_task_bell",
        "_turn",
        "_until",
    )

    def __init__(
        self,
        begin: Callable[[], Coroutine[float, None, None]],
        later: Callable[[Callable[[], None]], None] = at_once,
    ) -> None:
        self._begin = begin
        self._later = later
        self._coroutine: Coroutine[float, None, None] | None = None
        self._turn: Callable[[], float | None] | None = None
        self._until = math.inf
        self._is_awake = False
        self._is_over = False
        self._rung = False
        self._error: Exception | None = None
        self._task_bell = Doorbell()
        self._alarm: trio.CancelScope | None = None
        self._alarm_at = math.inf

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or raised, or was closed."""
        return self._is_over

    @property
    def has_ended_well(self) -> bool:
        """Whether it is over, and `run` has nothing to raise."""
        return self._is_over and self._error is None

    def ring(self) -> None:
        """There is news: resume it, or begin it.  When it has ended this means nothing."""
        if self._is_awake:
            self._rung = True
        elif self._until != SOON and not self._is_over:
            self._resume()
            self._tell_task()

    def repeat(self, turn: Callable[[], float | None]) -> _Rest:
        """To be awaited in the life: call `turn` now, and instead of resuming the life, until it returns `None`.

        What it returns else is the time to rest until; what it raises is raised here.
        """
        self._turn = turn
        return _Rest(SOON)

    def fail(self, error: Exception) -> None:
        """Something that was done for it, outside of it, has raised: it ends as if it had raised that itself."""
        if self._is_awake:
            raise error
        if not self._is_over:
            self._is_over = True
            self._error = error
            if self._coroutine is not None:
                self._coroutine.close()
            self._tell_task()

    def _resume(self) -> None:
        """Let it run until it rests, ends, or raises."""
        if self._coroutine is None:
            self._coroutine = self._begin()
        self._is_awake = True
        try:
            until = self._take_turn() if self._turn is not None else None
            while until is None:
                until = self._coroutine.send(None)
                if self._turn is not None:
                    until = self._take_turn()
            self._until = until
        except StopIteration:
            self._is_over = True
        except Exception as error:
            self._is_over = True
            self._error = error
        self._is_awake = False
        if self._rung:
            self._rung = False
            self._until = SOON

    def _take_turn(self) -> float | None:
        """`None`: that was the last one, and the coroutine is to go on."""
        assert self._turn is not None
        assert self._coroutine is not None
        try:
            until = self._turn()
        except Exception as error:
            self._turn = None
            return self._coroutine.throw(error)
        if until is None:
            self._turn = None
        return until

    def _tell_task(self) -> None:
        """Wake the task if it has something to do; a later time to rest until it finds out by itself."""
        if self._alarm is None:
            return
        if self._is_over:
            self._later(self._task_bell.ring)
        elif self._until == SOON:
            self._task_bell.ring()
        elif self._until < self._alarm_at:
            self._alarm.deadline = self._alarm_at = self._until

    async def run(self) -> None:
        """Begin, if nobody has rung yet; return when it has ended, or raise what it raised."""
        try:
            if self._coroutine is None and not self._is_over:
                self._resume()
            while not self._is_over:
                if self._until == SOON:
                    await trio.lowlevel.checkpoint()
                else:
                    self._alarm_at = self._until
                    with trio.CancelScope(deadline=self._until) as self._alarm:
                        await self._task_bell.wait()
                    self._alarm = None
                    if self._is_over or trio.current_time() < self._until:
                        continue
                self._resume()
        finally:
            self._is_over = True
            if self._coroutine is not None:
                self._coroutine.close()
        if self._error is not None:
            error, self._error = self._error, None  # no cycle through its traceback
            raise error
