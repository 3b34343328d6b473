"""A local TCP connection: a client of a forwarded port at one side, a server at the other, and no guest's frames.

Theory of operation
-------------------
Two kernels' sockets are joined, each way by a `Stream`.  Its life (see `flow.life`) is to move what comes, until both
ways have ended; an event of either socket resumes it.  That the server is not connected yet makes no difference: its
socket takes nothing then, and what the client sends waits.

*Ends.*  An end of stream is passed on as one, when all that came before it has been.  A reset is passed on as a reset,
after what came before it, too, which the receiver's kernel gets time to take (`AFTER_RESET_S`); what goes the other way
is lost, as it would be.  If all ends in the middle (the guest session does), whoever was told the end of a stream is
left with that, and whoever was not is reset.  Nobody is dropped for being silent.
"""

import errno
import logging
import math
import os
import socket

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import SOON, Life
from trio_passt.flow.session import Session
from trio_passt.flow.status import FlowStatus
from trio_passt.host import readiness, sockets, traffic
from trio_passt.host.endpoint import Endpoint
from trio_passt.local.pipes import PipePool
from trio_passt.local.stream import End, Stream

log = logging.getLogger("trio_passt.local")

EVENTS = readiness.READABLE | readiness.WRITABLE | readiness.PEER_CLOSED | readiness.URGENT

AFTER_RESET_S = 60.0
"""How long a receiver may take for what its peer sent before it reset the connection."""

LOOK_AFTER_RESET_S = 0.02
"""It takes that in no time, if it reads; nothing tells.  If it does not, there is less and less hope."""

_READING = readiness.READABLE | readiness.PEER_CLOSED | readiness.HANG_UP | readiness.ERROR
_ENDING = readiness.PEER_CLOSED | readiness.HANG_UP | readiness.ERROR


class LocalConnection:
    """The task of one connection: `client` is accepted, `server` is connected or about to be; both are its own.

    `key` names it, by the ends of the client's connection.  `is_from_guest`: the client is in the guest's namespace.
    """

    __slots__ = (
        "_client",
        "_down",
        "_is_from_guest",
        "_life",
        "_peer",
        "_reset_due",
        "_server",
        "_session",
        "_up",
        "key",
    )

    def __init__(
        self,
        session: Session,
        key: FlowKey,
        client: socket.socket,
        server: socket.socket,
        peer: Endpoint,
        pool: PipePool,
        *,
        is_connected: bool,
        is_from_guest: bool,
    ) -> None:
        """`peer` is at the host's side: the client, or the server."""
        self.key = key
        self._session = session
        self._client = End(client, is_connected=True)
        self._server = End(server, is_connected=is_connected)
        self._up = Stream(self._client, self._server, pool, session.scratch)
        self._down = Stream(self._server, self._client, pool, session.scratch)
        self._up.opposite, self._down.opposite = self._down, self._up
        self._peer = peer
        self._is_from_guest = is_from_guest
        self._reset_due: float | None = None
        self._life = Life(self._live, session.readiness.later)

    @property
    def is_over(self) -> bool:
        """Whether its life has ended, though its task may not have found out yet."""
        return self._life.is_over

    @property
    def has_ended_well(self) -> bool:
        """Whether there is nothing left for its task to do, or to raise."""
        return self._life.has_ended_well

    @property
    def is_sending(self) -> bool:
        """Whether the guest has ended its way, and what came before that is not all passed on yet."""
        outgoing = self._up if self._is_from_guest else self._down
        return outgoing.is_peer_closed and not outgoing.is_through

    def begin(self) -> None:
        """It has been started."""
        self._life.ring()

    def end(self) -> None:
        """Its client is gone, and another one has its port: end it now."""
        self._client.error = self._server.error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._life.ring()

    def status(self) -> FlowStatus:
        """How it stands; what has passed is what the kernel has counted at the guest's side."""
        here = self._client if self._is_from_guest else self._server
        outgoing = self._up if self._is_from_guest else self._down
        incoming = self._down if self._is_from_guest else self._up
        if self._life.is_over:
            return FlowStatus(self.key, "CLOSED", self._is_from_guest, self._peer)
        if not self._server.is_connected:
            return FlowStatus(self.key, "SYN-SENT", self._is_from_guest, self._peer)
        ways = (outgoing.is_through, incoming.is_through)
        state = {(True, False): "FIN-WAIT-2", (False, True): "CLOSE-WAIT", (True, True): "CLOSING"}.get(ways)
        try:
            passed = traffic.of(here.sock)
        except OSError:
            return FlowStatus(self.key, state or "ESTABLISHED", self._is_from_guest, self._peer)
        came = max(passed.received_bytes - outgoing.is_through, 0)  # a FIN is no data
        return FlowStatus(
            self._name(here.sock),
            state or "ESTABLISHED",
            self._is_from_guest,
            self._peer,
            passed.idle_s,
            came,
            passed.sent_bytes,
        )

    def _name(self, sock: socket.socket) -> FlowKey:
        """The ends of the connection at the guest's side, as its programs see them."""
        try:
            remote, guest = Endpoint.of(sock.getsockname()), Endpoint.of(sock.getpeername())
        except OSError:
            return self.key
        return FlowKey(guest.address, guest.port, remote.address, remote.port)

    def abandon(self) -> None:
        """After an internal error: its life has reset both already."""

    # -- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the connection to the end."""
        await self._life.run()

    async def _live(self) -> None:
        try:
            self._watch()
            await self._life.repeat(self._take_turn)
        except OSError as error:
            log.debug("%s: %s", self.key, error)
        finally:
            self._close()

    def _watch(self) -> None:
        watch = self._session.readiness.watch
        watch(self._client.fd, self._on_client_event, events=EVENTS)
        watch(self._server.fd, self._on_server_event, events=EVENTS)

    def _take_turn(self) -> float | None:
        """Move what there is; when the next turn is due, or `None` at the end."""
        has_more = False
        for stream in (self._up, self._down):
            if stream.can_move():
                moved, is_left = stream.move()
                has_more |= is_left
                self._session.readiness.moved(moved)
        if self._client.error is not None or self._server.error is not None:
            return self._lose(has_more=has_more)
        if self._up.is_through and self._down.is_through:
            return None
        return SOON if has_more else math.inf

    def _lose(self, *, has_more: bool) -> float | None:
        """One end is gone.  What it had sent is the other's, who is given time for it before the reset."""
        if self._client.error is not None and self._server.error is not None:
            return None
        still, dead = (self._down, self._up) if self._client.error is None else (self._up, self._down)
        dead.stop()
        now = trio.current_time()
        if self._reset_due is None:
            self._reset_due = now + AFTER_RESET_S
        if now >= self._reset_due:
            return None
        if has_more:
            return SOON
        if not still.is_through:
            return self._reset_due
        if not sockets.unacknowledged(still.sink.sock):
            return None
        waited_s = AFTER_RESET_S - (self._reset_due - now)
        return min(self._reset_due, now + max(LOOK_AFTER_RESET_S, waited_s / 2))

    def _close(self) -> None:
        """With a reset, unless both have ended well, or who was told the end already has no other news."""
        for end, stream, other in ((self._client, self._down, self._server), (self._server, self._up, self._client)):
            stream.stop()
            self._session.readiness.forget(end.fd)
            if stream.is_passed_on and end.error is None and other.error is None:
                end.sock.close()
            else:
                sockets.reset(end.sock)

    # -- events ------------------------------------------------------------------------------------------------------

    def _on_client_event(self, mask: int) -> None:
        self._on_event(mask, self._client, self._up, self._down)

    def _on_server_event(self, mask: int) -> None:
        self._on_event(mask, self._server, self._down, self._up)

    def _on_event(self, mask: int, end: End, outgoing: Stream, incoming: Stream) -> None:
        """`outgoing` comes out of this end's socket, `incoming` goes into it."""
        if mask & readiness.WRITABLE:
            end.is_connected = incoming.is_writable = True
        if mask & _READING:
            outgoing.is_readable = True
            if mask & _ENDING:
                outgoing.is_peer_closed = True
                if mask & readiness.ERROR and end.error is None:
                    end.error = sockets.pending_error(end.sock)
        if mask & readiness.URGENT:
            outgoing.has_urgent = True
        if end.error is not None or outgoing.can_move() or incoming.can_move():
            self._life.ring()
