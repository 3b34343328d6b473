"""Which host sockets have something to say: one epoll, one task, any number of sockets.

Trio could watch each socket by itself, at the price of a system call and a task switch each time.  Here all sockets
of a guest sit in one epoll set, edge-triggered and registered once; Trio watches the epoll's own descriptor
(epoll(7): "an epoll file descriptor can itself be polled").  When it becomes readable, one call fetches the events of
all sockets, and each one's callback is called: the mirror image of a batch of frames from the guest.
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


class Readiness:
    """Callbacks for sockets, called from the task that runs `run`.  Close it when done."""

    def __init__(self) -> None:
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
        while True:
            if self._pause_s:
                pause_s, self._pause_s = self._pause_s, 0.0
                await trio.sleep(pause_s)
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, mask in self._epoll.poll(0, EVENTS_PER_CALL):
                callback = self._callbacks.get(fd)
                if callback is None:  # an earlier callback of this round has closed it
                    continue
                try:
                    callback(mask)
                except Exception:
                    log.exception("internal error at descriptor %d, which is left alone now; please report this", fd)
                    self.forget(fd)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
        self._callbacks.clear()
