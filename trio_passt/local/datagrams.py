"""A local UDP flow: a client of a forwarded port at one side, a server at the other, and no guest's frames.

As between kernels there is no connection, only a habit, which ends by silence (see `udp.flow`, which has the reasons).
The client's datagrams come by the forwarded port's socket, which all its clients share; the server is asked from a
socket of the flow's own.  Both ways go in bulk where there is bulk: many by one recvmmsg(2), or joined by the kernel,
and out again in trains that the kernel cuts.

What the server's kernel says of a datagram (nobody listens there) can't be told the client: only a kernel can send it
ICMP.  It is counted.  When the client's kernel says that nobody is there any more, the flow ends, and the server's
kernel will tell the server.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import Life, rest
from trio_passt.flow.session import Session
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.host import datagrams, error_queue, readiness, sockets
from trio_passt.host.datagrams import Ancillary, SocketReader
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import UdpPort
from trio_passt.local.pieces import Piece, pieces
from trio_passt.wire.datagrams import Train

log = logging.getLogger("trio_passt.local")

IDLE_S = 180.0
DNS_PORT = 53
DNS_IDLE_S = 30.0

Send = Callable[[list[memoryview], Ancillary], None]

Clients = dict[tuple[UdpPort, Endpoint], "LocalDatagrams"]
"""Whose flow it is that the kernel has something to say about."""


class LocalDatagrams:
    """The flow of one client, by `port`, where it has asked at the packed address `local`; `server` is connected."""

    __slots__ = (
        "_active_at",
        "_answers",
        "_client",
        "_clients",
        "_is_ended",
        "_is_for_answers",
        "_is_from_guest",
        "_largest_segment",
        "_life",
        "_local",
        "_on_host",
        "_port",
        "_questions",
        "_reader",
        "_server",
        "_session",
        "key",
    )

    def __init__(
        self,
        session: Session,
        port: UdpPort,
        client: Endpoint,
        local: bytes,
        server: socket.socket,
        destination: Endpoint,
        clients: Clients,
        *,
        is_from_guest: bool,
    ) -> None:
        self._clients = clients
        self.key = key_of(port, client, local)
        self._session = session
        self._port = port
        self._client = client
        self._local = local
        self._server = server
        self._reader = SocketReader(server)
        self._on_host = destination if is_from_guest else client
        self._is_from_guest = is_from_guest
        self._is_for_answers = destination.port == DNS_PORT
        self._questions = self._answers = 0
        self._largest_segment = datagrams.TRAIN_BYTES_MOST
        self._active_at = trio.current_time()
        self._is_ended = False
        self._life = Life(self._live, session.readiness.later)

    @property
    def is_over(self) -> bool:
        """Whether its life has ended, though its task may not have found out yet: it takes nothing any more."""
        return self._life.is_over

    @property
    def has_ended_well(self) -> bool:
        """Whether there is nothing left for its task to do, or to raise."""
        return self._life.has_ended_well

    @property
    def active_at(self) -> float:
        """When the last datagram came, either way, on Trio's clock."""
        return self._active_at

    def begin(self) -> None:
        """It has been started."""
        self._clients[self._port, self._client] = self
        self._life.ring()

    def end(self) -> None:
        """End it now, on the spot."""
        self._is_ended = True
        self._life.ring()

    def status(self) -> FlowStatus:
        """How it stands."""
        state = "ended" if self.is_over else "answered" if self._answers else "unanswered"
        idle_s = trio.current_time() - self._active_at
        passed = (self._questions, self._answers) if self._is_from_guest else (self._answers, self._questions)
        return FlowStatus(self._name(), state, self._is_from_guest, self._on_host, idle_s, *passed, Unit.DATAGRAMS)

    def _name(self) -> FlowKey:
        """Its ends as the guest's programs see them."""
        if self._is_from_guest:
            return FlowKey(self._client.address, self._client.port, self._local, self._port.port)
        try:
            guest, remote = Endpoint.of(self._server.getpeername()), Endpoint.of(self._server.getsockname())
        except OSError:
            return self.key
        return FlowKey(guest.address, guest.port, remote.address, remote.port)

    def abandon(self) -> None:
        """Nothing to tell: UDP's peers find out by silence."""

    # -- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pass datagrams on until there are none for a while."""
        await self._life.run()

    async def _live(self) -> None:
        idle_s = DNS_IDLE_S if self._is_for_answers else IDLE_S
        try:
            # Level-triggered: what is not read at once is told again after everybody else's turn.
            self._session.readiness.watch(
                self._server.fileno(), self._on_server_event, events=readiness.READABLE, edge_triggered=False
            )
            while not self._is_ended and trio.current_time() < (due := self._active_at + idle_s):
                await rest(due)
        except OSError as error:
            log.debug("%s: %s", self.key, error)
        finally:
            name = (self._port, self._client)
            if self._clients.get(name) is self:
                del self._clients[name]
            overflowed = sockets.overflowed_datagrams(self._server)
            if overflowed:
                self._drop("udp: receive buffer of the host full", overflowed)
            self._session.readiness.forget(self._server.fileno())
            self._server.close()

    # -- from the client -----------------------------------------------------------------------------------------------

    def deliver(self, buffer: memoryview, trains: list[Train]) -> None:
        """Datagrams of the client's, which are passed on at once."""
        try:
            count = sum(train.datagrams for train in trains)
            if self._life.is_over:
                self._drop("udp: flow has ended", count)
                return
            self._active_at = trio.current_time()
            self._questions += count
            self._reader.answered()
            self._pass_on(buffer, trains, self._send_to_server, self._read_server_errors)
        except Exception as error:
            self._life.fail(error)

    def deliver_error(self, error: DatagramError) -> None:
        """What the client's kernel, or ours, has said of a datagram to it."""
        self._drop(f"udp: {os.strerror(error.number)}")
        if error.number == errno.ECONNREFUSED:
            self.end()

    def _send_to_server(self, payloads: list[memoryview], ancillary: Ancillary) -> None:
        if ancillary:
            self._server.sendmsg(payloads, ancillary)
        else:
            self._server.send(payloads[0])

    # -- from the server -----------------------------------------------------------------------------------------------

    def _on_server_event(self, mask: int) -> None:
        try:
            if mask & readiness.ERROR:
                self._read_server_errors()
                sockets.pending_error(self._server)  # one that is not in the queue would be reported for ever
            if mask & readiness.READABLE and not self._life.is_over:
                self._receive()
        except Exception as error:
            self._life.fail(error)

    def _receive(self) -> None:
        buffer = self._session.buffer
        try:
            if self._reader.expects_one():
                payload = buffer.read_one(self._server)
                trains = [Train(0, len(payload))]
            else:
                trains = buffer.read(self._server, datagrams.SLOTS)
        except BlockingIOError:
            return
        except OSError:  # about an earlier datagram
            self._read_server_errors()
            return
        self._active_at = trio.current_time()
        self._answers += sum(train.datagrams for train in trains)
        self._pass_on(buffer.view, trains, self._send_to_client, self._port.read_errors)
        self._look_for_answers()

    def _send_to_client(self, payloads: list[memoryview], ancillary: Ancillary) -> None:
        self._port.send(payloads, ancillary, self._client, self._local)

    def _read_server_errors(self) -> bool:
        errors = error_queue.read_all(self._server)
        for error in errors:
            self._drop(f"udp: {os.strerror(error.number)}")
            self._answers += 1
            if error.is_immediate and error.number in sockets.NO_WAY:
                self.end()
        self._look_for_answers()
        return any(error.is_immediate for error in errors)

    def _look_for_answers(self) -> None:
        """All questions to a resolver have been answered: there is nothing to wait for."""
        if self._is_for_answers and 0 < self._questions <= self._answers:
            self.end()

    # -- both ways -----------------------------------------------------------------------------------------------------

    def _pass_on(self, buffer: memoryview, trains: list[Train], send: Send, read_errors: Callable[[], bool]) -> None:
        """Send all of them, in as few calls as it takes; what is not taken is counted."""
        if len(trains) == 1 and trains[0].datagrams == 1:
            start, size, _, _ = trains[0]
            self._try(Piece([buffer[start : start + size]]), send, read_errors)
            return
        self._session.readiness.moved(sum(train.size * train.datagrams for train in trains))
        for piece in pieces(buffer, trains, self._largest_segment):
            if not self._try(piece, send, read_errors):
                self._largest_segment = piece.size - 1
                for payload in piece.payloads():
                    self._try(Piece([payload]), send, read_errors)

    def _try(self, piece: Piece, send: Send, read_errors: Callable[[], bool]) -> bool:
        """Send, and count what is not sent; false if it has to be done one by one."""
        for is_last in (False, True):
            try:
                send(piece.views, datagrams.segments(piece.size) if piece.size else [])
            except BlockingIOError:
                self._drop("udp: send buffer of the host full", piece.datagrams)
            except OSError as error:
                if piece.size and error.errno in datagrams.NO_SEGMENTATION:
                    return False
                if read_errors():
                    return True
                if not is_last:
                    continue  # it was an earlier datagram's error, which is told once (udp(7))
                self._drop(f"udp: {error.strerror}", piece.datagrams)
            return True
        return True

    def _drop(self, reason: str, count: int = 1) -> None:
        self._session.drops[reason] += count


def key_of(port: UdpPort, client: Endpoint, local: bytes) -> FlowKey:
    """What names the flow of a client that has asked a port at this packed address."""
    return FlowKey(local, port.port, client.address, client.port)
