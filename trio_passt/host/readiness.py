"""Which host sockets, and which link, have something to say: one epoll, one task, any number of sockets.

Trio could watch each socket by itself, at the price of a system call and a task switch each time.  Here all sockets
of a guest sit in one epoll set, registered once; Trio watches the epoll's own descriptor
(epoll(7): "an epoll file descriptor can itself be polled").  When it becomes readable, one call fetches the events of
all sockets, and each one's callback is called: the mirror image of a batch of frames from the guest.

A question and its answer come and go through here one after the other, and each time round through Trio's scheduler
costs as much as what there is to do.  So after events the next ones are waited for on the spot, if nobody else has
anything to do: no task that could run, none that waits to write, no deadline in the meantime.  It is what Trio itself
would do at that moment, only nearer.  Every `LINGER_MOST_S` Trio gets to look for itself; so a deadline that an event
brings about may be met so much later.

What is not urgent waits until there is time (`later`): a new flow's task, and the end of one.  Each would be a round
through the scheduler for every connection that is opened and closed; so it is one for all of the last few milliseconds,
and a flow that has ended by then needs no task at all.

To be woken by the kernel costs time, too, and caches that another process has filled meanwhile.  So where the last
answer came within `SPIN_S`, the next one is polled for as long, on a machine with more than one processor, before the
kernel is asked to wake us.  One that does not come in time ends this until answers are quick again: no more than that
is spent in vain.  Meanwhile the processor is offered to others, as it may be the very one that the answer is waiting
for; if that costs more time than an answer takes, it was somebody else's, and is not offered for a while.  It is not
done for bulk data, whose batches had better grow while others have the processor.

One set may be within another (`include`): then whoever waits for the events of the outer one has the inner one's, too,
and a new connection is not kept waiting until it is Trio's turn.
"""

import logging
import os
import select
import time
from collections.abc import Callable
from typing import Final

import trio

log = logging.getLogger("trio_passt.host")

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
URGENT = select.EPOLLPRI
ERROR = select.EPOLLERR
PEER_CLOSED = select.EPOLLRDHUP
HANG_UP = select.EPOLLHUP

EVENTS_PER_CALL: Final = 1024

LINGER_S: Final = 0.001
"""How long events are waited for on the spot.  It is as short as epoll_wait(2) can count, so Trio, too, waits for so
long when a deadline is nearer: to hand over to it for the rest of that time would be no earlier, and dear."""

LINGER_MOST_S = 0.003
"""Then it is Trio's turn: its tasks that wait for something to read are kept waiting for little longer than this."""

LATER_MOST_S: Final = 0.005
"""What is not urgent waits for no longer than about this."""

SPIN_S = 0.0002
"""Answers of a peer on this machine, or near it, take less."""

NO_OFFER_S: Final = 1.0
"""For so long the processor is not offered after it came back late: a busy process keeps it for milliseconds."""

BULK_BYTES: Final = 8192
"""A round of events that moved more than this is no question, and no answer."""


class _Runnable(trio.abc.Instrument):
    """The tasks that have been scheduled and not run yet.

    Trio's statistics do not count those that it has already taken up for the present round.
    """

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


class Readiness:
    """Callbacks for sockets, called from the task that runs `run`.  Close it when done.

    Only one that `lingers` waits on the spot: where several do, they would keep each other waiting.
    """

    def __init__(self, *, lingers: bool = False) -> None:
        self._lingers = lingers
        self._others = _Runnable()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._pause_s = 0.0
        self._has_processor = len(os.sched_getaffinity(0)) > 1
        self._spins = False
        self._offers_from = 0.0
        self._moved_bytes = 0
        self._is_delivering = False
        self._later: list[Callable[[], None]] = []
        self._later_since = 0.0
        self._outer: Readiness | None = None
        self._waiting: trio.CancelScope | None = None
        self._news = trio.Event()

    def watch(self, fd: int, on_event: Callable[[int], None], *, events: int, edge_triggered: bool = True) -> None:
        """Call `on_event(mask)` when any of `events` happens at `fd`; errors are always reported.

        Edge-triggered, an event is reported when it *becomes* true or happens again: whoever is called must remember it
        until the socket says EAGAIN.  Raises OSError (EMFILE cannot happen, ENOSPC can: `max_user_watches`).
        """
        self._epoll.register(fd, events | (select.EPOLLET if edge_triggered else 0))
        self._callbacks[fd] = on_event

    def suspend(self, fd: int) -> None:
        """Report nothing of `fd`, which is watched, until `resume`, but an error, once.  Neither can fail."""
        self._epoll.modify(fd, select.EPOLLET)

    def resume(self, fd: int, *, events: int) -> None:
        """Report `events` again, level-triggered."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; call it before the descriptor is closed.  Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def closes(self, fd: int) -> None:
        """Stop watching `fd`, which is about to be closed, and has no duplicate: that takes it out of the epoll set."""
        self._callbacks.pop(fd, None)

    def pause(self, seconds: float) -> None:
        """Deliver nothing for a while after the present round: a callback can do nothing about its event now."""
        self._pause_s = max(self._pause_s, seconds)

    def include(self, inner: "Readiness") -> None:
        """Deliver the events of `inner`, which does not linger, together with one's own; its own task rests meanwhile.

        Raises OSError as `watch` does.
        """
        self.watch(inner._epoll.fileno(), inner._on_outer_event, events=READABLE, edge_triggered=False)
        inner._outer = self
        if inner._waiting is not None:
            inner._waiting.cancel()

    def exclude(self, inner: "Readiness") -> None:
        """Leave it to itself again."""
        if inner._outer is self:
            self.forget(inner._epoll.fileno())
            inner._outer = None
            inner._news.set()

    def _on_outer_event(self, _mask: int) -> None:
        self._deliver(0)
        if self._pause_s and self._outer is not None:
            self._outer.suspend(self._epoll.fileno())
            self._news.set()

    def moved(self, count: int) -> None:
        """Say, from a callback, that so many bytes went from one side to the other."""
        self._moved_bytes += count

    def later(self, callback: Callable[[], None]) -> None:
        """Call back when there is time, within `LATER_MOST_S`; at once, if no event is being delivered."""
        if self._is_delivering:
            if not self._later:
                self._later_since = time.monotonic()
            self._later.append(callback)
        else:
            callback()

    async def run(self) -> None:
        """Deliver events until cancelled.  A callback that raises is a bug: it is logged, and its socket forgotten."""
        if self._lingers:
            trio.lowlevel.add_instrument(self._others)
        try:
            while True:
                if self._pause_s:
                    pause_s, self._pause_s = self._pause_s, 0.0
                    await trio.sleep(pause_s)
                    if self._outer is not None:
                        self._outer.resume(self._epoll.fileno(), events=READABLE)
                if self._lingers:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                elif not await self._is_readable():
                    continue
                self._is_delivering = True
                try:
                    self._deliver(0)
                    while self._lingers and self._linger():
                        if time.monotonic() - self._later_since >= LATER_MOST_S:
                            self._do_what_was_left()
                        await trio.lowlevel.checkpoint()
                finally:
                    self._is_delivering = False
                    self._do_what_was_left()
        finally:
            if self._lingers:
                trio.lowlevel.remove_instrument(self._others)

    async def _is_readable(self) -> bool:
        """Wait for events, or for news about whose it is to do so; whether there are events."""
        if self._outer is not None:
            await self._news.wait()
            self._news = trio.Event()
            return False
        with trio.CancelScope() as self._waiting:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        has_events = not self._waiting.cancelled_caught
        self._waiting = None
        return has_events

    def _do_what_was_left(self) -> None:
        later, self._later = self._later, []
        for callback in later:
            callback()

    def _linger(self) -> bool:
        """Deliver what comes next, for as long as it comes quickly and nobody else is kept waiting.

        True if it still does, for all that is known, and it is only that Trio is to look for itself.
        """
        statistics = trio.lowlevel.current_statistics()
        if _somebody_writes(statistics):
            return False
        now = time.monotonic()
        deadline = now + statistics.seconds_to_next_deadline
        until = min(now + LINGER_MOST_S, deadline)
        while not (self._others.tasks or self._pause_s):
            now = time.monotonic()
            if now >= until:
                return until < deadline
            if self._deliver(0) or self._spin(now):
                continue
            if not self._deliver(LINGER_S):
                return False
        return False

    def _spin(self, since: float) -> bool:
        """Poll for the next events, if the last ones were quick; false if there are none in time."""
        if self._spins:
            now = since
            while now < since + SPIN_S:
                if self._deliver(0):
                    return True
                is_offered = now >= self._offers_from
                if is_offered:
                    os.sched_yield()
                asked_at, now = now, time.monotonic()
                if is_offered and now - asked_at > SPIN_S:
                    self._offers_from = now + NO_OFFER_S
            self._spins = False
        return False

    def _deliver(self, timeout_s: float) -> bool:
        """Fetch the events, waiting for so long, and call back; false if there were none."""
        asked_at = time.monotonic() if timeout_s else 0.0
        events = self._epoll.poll(timeout_s, EVENTS_PER_CALL)
        if not events:
            return False
        if timeout_s:
            self._spins = self._has_processor and time.monotonic() - asked_at < SPIN_S
        self._moved_bytes = 0
        for fd, mask, callback in [(fd, mask, self._callbacks.get(fd)) for fd, mask in events]:
            if callback is None or self._callbacks.get(fd) is not callback:
                continue  # an earlier callback of this round has closed it, and perhaps opened another by that number
            try:
                callback(mask)
            except Exception:
                log.exception("internal error at descriptor %d, which is left alone now; please report this", fd)
                self.forget(fd)
        if self._moved_bytes > BULK_BYTES:
            self._spins = False
        return True

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
        self._callbacks.clear()


def _somebody_writes(statistics: trio.lowlevel.RunStatistics) -> bool:
    return getattr(statistics.io_statistics, "tasks_waiting_write", 0) > 0
