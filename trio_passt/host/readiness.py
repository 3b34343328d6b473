"""Which host sockets, and which link, have something to say: one epoll, one task, any number of sockets.

Trio could watch each socket by itself, at the price of a system call and a task switch each time.  Here all sockets
of a guest sit in one epoll set, edge-triggered and registered once; Trio watches the epoll's own descriptor
(epoll(7): "an epoll file descriptor can itself be polled").  When it becomes readable, one call fetches the events of
all sockets, and each one's callback is called: the mirror image of a batch of frames from the guest.

A question and its answer come and go through here one after the other, and each time round through Trio's scheduler
costs more than what there is to do.  So while events come quickly, the next ones are waited for on the spot, if nobody
else has anything to do: no task that could run, none that waits to write, no deadline in the meantime.  It is what
Trio itself would do at that moment, only nearer.  Every `LINGER_MOST_S` Trio gets to look for itself.
"""

import logging
import select
from collections.abc import Callable

import trio

log = logging.getLogger("trio_passt.host")

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
URGENT = select.EPOLLPRI
ERROR = select.EPOLLERR
PEER_CLOSED = select.EPOLLRDHUP
HANG_UP = select.EPOLLHUP

EVENTS_PER_CALL = 1024

LINGER_S = 0.001
"""Events that come at such intervals are waited for on the spot.  It is as short as epoll_wait(2) can count."""

LINGER_MOST_S = 0.003
"""Then it is Trio's turn: its tasks that wait for something to read are kept waiting for little longer than this."""


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

    def watch(self, fd: int, on_event: Callable[[int], None], *, events: int, edge_triggered: bool = True) -> None:
        """Call `on_event(mask)` when any of `events` happens at `fd`; errors are always reported.

        Edge-triggered, an event is reported when it *becomes* true or happens again: whoever is called must remember it
        until the socket says EAGAIN.  Raises OSError (EMFILE cannot happen, ENOSPC can: `max_user_watches`).
        """
        self._epoll.register(fd, events | (select.EPOLLET if edge_triggered else 0))
        self._callbacks[fd] = on_event

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; call it before the descriptor is closed.  Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def pause(self, seconds: float) -> None:
        """Deliver nothing for a while after the present round: a callback can do nothing about its event now."""
        self._pause_s = max(self._pause_s, seconds)

    async def run(self) -> None:
        """Deliver events until cancelled.  A callback that raises is a bug: it is logged, and its socket forgotten."""
        if not self._lingers:
            while True:
                await self._next_round()
        trio.lowlevel.add_instrument(self._others)
        try:
            while True:
                slept_at = trio.current_time()
                woken_at = await self._next_round()
                if woken_at - slept_at < LINGER_S:
                    self._linger(woken_at + LINGER_MOST_S)
        finally:
            trio.lowlevel.remove_instrument(self._others)

    async def _next_round(self) -> float:
        """Wait for events and deliver them; the time at which they came."""
        if self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            await trio.sleep(pause_s)
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        woken_at = trio.current_time()
        self._deliver(0)
        return woken_at

    def _linger(self, until: float) -> None:
        """Wait here for what comes next, for as long as it comes quickly and nobody else is kept waiting."""
        while not self._pause_s and trio.current_time() < until:
            if self._others.tasks:
                return
            statistics = trio.lowlevel.current_statistics()
            if statistics.seconds_to_next_deadline < 2 * LINGER_S or _somebody_writes(statistics):
                return
            if not self._deliver(LINGER_S):
                return

    def _deliver(self, timeout_s: float) -> bool:
        """Fetch the events, waiting for so long, and call back; false if there were none."""
        events = self._epoll.poll(timeout_s, EVENTS_PER_CALL)
        for fd, mask in events:
            callback = self._callbacks.get(fd)
            if callback is None:  # an earlier callback of this round has closed it
                continue
            try:
                callback(mask)
            except Exception:
                log.exception("internal error at descriptor %d, which is left alone now; please report this", fd)
                self.forget(fd)
        return bool(events)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
        self._callbacks.clear()


def _somebody_writes(statistics: trio.lowlevel.RunStatistics) -> bool:
    return getattr(statistics.io_statistics, "tasks_waiting_write", 0) > 0
