"""One TCP connection of the guest, bridged to a host socket.

Theory of operation
-------------------
To the guest this is the remote peer; to the remote peer the host's kernel is the guest.  There is no second TCP
implementation between the two, and no buffer: the numbers of one side are *reflected* to the other.

    guest  ── segments ──▶  FromGuest  ── sendmsg ──▶  host socket's send buffer  ──▶  peer
    guest  ◀── segments ──  ToGuest    ◀──  peek  ──   host socket's receive queue ◀──  peer

*To the host.*  What the guest sends in order is written to the host socket.  The window that the guest is told is what
the socket's send buffer has room for (and a little more, see `bridge`), so a slow peer slows the guest, and nothing
has to be dropped.  The guest gets its acknowledgement when the *peer* has acknowledged (SIOCOUTQ tells), so that an
acknowledged byte has arrived; for a peer that is nearer than a millisecond, when the kernel has taken it, since
asking again costs more than it says.  A peer that takes nothing at all for a while is another matter: then the data is
acknowledged where it is, and the window closes, since a guest gives up a connection that does not acknowledge, and
never one that has closed its window.  Where answers come quickly, the acknowledgement rides on them (`riding`).

*To the guest.*  Data is peeked from the host socket's receive queue, as much as the guest's window allows, and sent
in super-segments.  It leaves the queue when the guest acknowledges it.  So a retransmission is a new peek; a link that
is full needs no queue; and a guest that closes its window fills the kernel's queue, which closes the window that the
peer sees.

*One life, many turns.*  Three things can happen: segments from the guest, readiness of the host socket, a timer.  The
life of a connection, told in order in `_live`, rests until one of them does, and whoever brings the news resumes it
(see `flow.life`).  While the connection is established, that is a *turn*: it looks at everything, does all that can be
done without waiting, and names the nearest deadline.  No order of events has to be reasoned about: each step of a turn
is harmless if there is nothing for it to do.

*Ends.*  Each way closes by itself (`closing`); when both have, there are no more turns.  A reset from one side is
passed to the other, and so is everything that can't go on: `GuestReset` and `OSError` are the two other ways out.  What
the host's peer sent before its reset is the guest's, and goes there first.  Silence is probed (`keepalive`), never just
dropped.

What it does not do, and where it departs from the RFCs:

- no timestamps; urgent data is passed on as ordinary data;
- selective acknowledgements are sent (RFC 2018, `kept`) but not read: what is sent once more the guest may have; and
  they do not ride on data, as section 4 would like them to;
- after a handshake in which our SYN had to be repeated the timeout starts at 1 s, not at 3 s (RFC 6298 section 5.7);
- no congestion control towards the guest, whose link is local and says when it is full; so after a second loss in a
  window everything is sent once more, where RFC 6582 sends a segment a round trip;
- no simultaneous open (RFC 9293 section 3.5): the guest's SYN in answer to ours is not one that a peer's kernel would
  see;
- no TIME-WAIT (3.6.1): a FIN that the guest repeats after the end is answered with a reset, which it takes as the end;
- window probes carry no new octet (3.8.6.1) but an old sequence number, as Linux' do: the answer is the same;
- keep-alive is on (3.8.4 wants it off by default): it is how a guest's dead process is found out;
- avoiding silly windows (3.8.6.2.2) decides when a bare window update is sent; a window that rides on an
  acknowledgement anyway is told as it is.
"""

import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import SOON, Life, rest
from trio_passt.flow.reports import report_failure
from trio_passt.flow.session import Session
from trio_passt.flow.status import FlowStatus
from trio_passt.host import readiness, sockets, traffic
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.queue import ReceiveQueue, has_peek_offset
from trio_passt.tcp import handshake, seq, states, timeouts
from trio_passt.tcp.bridge import Bridge, GuestReset
from trio_passt.tcp.closing import ToGuestState
from trio_passt.tcp.from_guest import MAX_WINDOW_FIELD, FromGuest
from trio_passt.tcp.opening import Opening, Verdict
from trio_passt.tcp.output import Output
from trio_passt.tcp.riding import Riding
from trio_passt.tcp.to_guest import ToGuest
from trio_passt.wire import ip, tcp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

log = logging.getLogger("trio_passt.tcp")

HOST_EVENTS = readiness.READABLE | readiness.WRITABLE | readiness.PEER_CLOSED | readiness.URGENT


class TcpFlow:
    """The task of one connection.

    Made by `outbound` (the guest sent a SYN) or `inbound` (a forwarded port accepted), fed by `deliver`, and run by the
    flow table.
    """

    __slots__ = (
        "_bridge",
        "_destination",
        "_host",
        "_host_events",
        "_inbox",
        "_initial_seq",
        "_is_over",
        "_life",
        "_output",
        "_peer_is_near",
        "_reset_numbers",
        "_round_trip_s",
        "_session",
        "_syn",
        "key",
    )

    def __init__(self, session: Session, key: FlowKey) -> None:
        self.key = key
        self._session = session
        self._life = Life(self._live, session.readiness.later)
        self._output = Output(session, key, self._life.ring)
        self._inbox: deque[TcpSegment] = deque()
        self._initial_seq = handshake.initial_sequence(session.secret, key, time.monotonic_ns())
        self._bridge: Bridge | None = None
        self._host: socket.socket | None = None
        self._host_events = 0
        self._syn: TcpSegment | None = None
        self._destination: Endpoint | None = None
        self._reset_numbers = (0, 0)
        self._round_trip_s: float | None = None
        self._peer_is_near = False
        self._is_over = False

    @classmethod
    def outbound(cls, session: Session, key: FlowKey, syn: TcpSegment, destination: Endpoint) -> "TcpFlow":
        """A connection that the guest opens with `syn`, to be connected to `destination` by the host."""
        flow = cls(session, key)
        flow._syn = _without_data(syn)
        flow._destination = destination
        flow._reset_numbers = (0, seq.add(syn.seq, syn.sequence_length))
        return flow

    @classmethod
    def inbound(cls, session: Session, key: FlowKey, host: socket.socket) -> "TcpFlow":
        """A connection that was accepted on a forwarded port, and is to be opened towards the guest."""
        flow = cls(session, key)
        flow._host = host
        return flow

    def deliver(self, segment: TcpSegment) -> None:
        """A segment from the guest; call `wake` after the last one of a batch."""
        if not self._is_over:
            self._inbox.append(segment)

    @property
    def is_over(self) -> bool:
        """Whether its life has ended, though its task may not have found out yet: it takes no segments any more."""
        return self._life.is_over

    @property
    def has_ended_well(self) -> bool:
        """Whether it is over, and its task has nothing to raise."""
        return self._life.has_ended_well

    def wake(self) -> None:
        """There is something in the inbox; or, of a new flow: it may begin at once."""
        self._life.ring()

    def status(self) -> FlowStatus:
        """How it stands.  What has passed is what the kernel has counted at the host's side."""
        host, bridge, is_outbound = self._host, self._bridge, self._syn is not None
        if host is None or bridge is None or self._is_over:
            opening = "SYN-SENT" if is_outbound else "SYN-RECEIVED"
            state = "CLOSED" if self._is_over or self._life.is_over else opening
            return FlowStatus(self.key, state, is_outbound, self._destination)
        state = states.name(bridge.from_guest.state, bridge.to_guest.state)
        peer = self._destination or sockets.peer_of(host)
        passed = traffic.of(host)
        to_guest = passed.received_bytes - (bridge.to_guest.state is not ToGuestState.OPEN)  # a FIN is no data
        return FlowStatus(self.key, state, is_outbound, peer, passed.idle_s, passed.sent_bytes, to_guest)

    # -- a connection's life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first SYN to the last acknowledgement, or to a reset."""
        await self._life.run()

    async def _live(self) -> None:
        try:
            self._bridge = bridge = await self._open()
            log.debug("%s: established, MSS %d", self.key, bridge.to_guest.mss)
            await self._life.repeat(self._take_turn)
            self._close_host()
        except GuestReset:
            log.debug("%s: reset by the guest", self.key)
        except OSError as error:
            log.debug("%s: %s", self.key, error)
            self._reset_host()
            await self._reset_guest(error)
        except GeneratorExit:
            if self._bridge is not None and self._bridge.guest_has_ended():
                self._close_host()  # its program is done, and takes it for sent: so it is
            raise
        finally:
            self._reset_host()
            self._output.close()
            if self._bridge is not None:
                self._bridge.from_guest.forget_kept()

    def _take_turn(self) -> float | None:
        """All that can be done now; the time of the next turn, `SOON` if there is more to do, `None` at the end."""
        bridge = self._bridge
        assert bridge is not None
        now = trio.current_time()
        if self._host_events:
            events, self._host_events = self._host_events, 0
            bridge.host_event(events, now)
        while self._inbox:
            bridge.take(self._inbox.popleft(), now)
        if now >= bridge.due:
            bridge.expire(now)
        bridge.write_to_host(now)
        bridge.send(now)
        if bridge.is_finished():
            return None
        return SOON if bridge.has_more else bridge.due

    async def _open(self) -> Bridge:
        """Connect the host and shake hands with the guest, in the order in which a peer would answer.

        What the guest does not wait for is done after our SYN: while it thinks about that, it costs no time.
        """
        if self._syn is not None:
            host = await self._connect_host()
            opening = Opening(self._initial_seq, self._syn)
            went_out = self._say_syn(opening)
            if self._peer_is_near:
                self._look_after(host)
            bridge = self._build(host, self._syn)
            self._inbox.appendleft(await self._shake_hands(opening, went_out))  # it may carry data
        else:
            assert self._host is not None
            opening = Opening(self._initial_seq, None)
            went_out = self._say_syn(opening)
            self._watch(self._host)
            bridge = self._build(self._host, await self._shake_hands(opening, went_out))
            bridge.answer_at_once()
        if self._round_trip_s is not None:
            bridge.to_guest.round_trip.sample(self._round_trip_s)
        return bridge

    def _build(self, host: socket.socket, guest_syn: TcpSegment) -> Bridge:
        """What joins both sides once the guest's handshake is complete, by what its SYN says."""
        session = self._session
        terms = handshake.terms(guest_syn.options, session.network.link_mtu_bytes, len(self.key.remote))
        receive_queue = ReceiveQueue(host, session.scratch, use_peek_offset=has_peek_offset(host.family))
        receive_queue.readable = False  # an event says so, or has said so
        return Bridge(
            self._output,
            host,
            receive_queue,
            FromGuest(
                guest_syn.seq,
                terms.own_scale,
                MAX_WINDOW_FIELD,
                tells_of_kept=terms.takes_sack,
                memory=session.out_of_order,
            ),
            ToGuest(self._initial_seq, terms.mss, terms.guest_scale, guest_syn),
            Riding(session.quick_firsts),
            trio.current_time(),
            is_near=self._peer_is_near,
        )

    async def _connect_host(self) -> socket.socket:
        """The guest's SYN is not answered before the host is connected: a refusal can still be told as one.

        A host whose peer is near is not looked after yet.
        """
        assert self._destination is not None
        host = self._host = self._start_connection(self._destination)
        if sockets.is_connected(host, self._destination):
            self._peer_is_near = True
            self._host_events = readiness.WRITABLE  # which is no news when it is reported
            return host
        self._look_after(host)
        deadline = trio.current_time() + timeouts.CONNECT_S
        while not self._host_events & (readiness.WRITABLE | readiness.ERROR | readiness.HANG_UP):
            await rest(deadline)
            self._heed_guest_while_connecting()
            if trio.current_time() >= deadline:
                break
        error = sockets.pending_error(host)
        if error is not None:
            raise error
        if not self._host_events & readiness.WRITABLE:
            raise TimeoutError(errno.ETIMEDOUT, "the host does not answer")
        return host

    def _start_connection(self, destination: Endpoint) -> socket.socket:
        try:
            return sockets.start_tcp_connection(destination, self._session.way_to(destination))
        except OSError as error:
            if sockets.lacks_means(error):
                self._session.exhaustion.warn(log, "can't open a connection for the guest: %s", error.strerror)
            raise

    def _heed_guest_while_connecting(self) -> None:
        """The guest's SYN once more is the same connection; another one takes its place, since none was answered
        yet."""
        while self._inbox:
            segment = self._inbox.popleft()
            if segment.flags & tcp.RST:
                if segment.seq == self._reset_numbers[1]:
                    raise GuestReset
            elif segment.flags & tcp.SYN and not segment.flags & tcp.ACK:
                self._syn = _without_data(segment)
                self._reset_numbers = (0, seq.add(segment.seq, 1))

    def _say_syn(self, opening: Opening) -> bool:
        """Send our SYN; whether it went out."""
        guest_syn = opening.guest_syn
        options = handshake.offer(
            self._session.network.link_mtu_bytes, len(self.key.remote), guest_syn.options if guest_syn else None
        )
        self._reset_numbers = opening.reset_numbers
        flags = tcp.SYN if guest_syn is None else tcp.SYN | tcp.ACK
        return self._output.segment(self._initial_seq, opening.ack, flags, MAX_WINDOW_FIELD, options)

    async def _shake_hands(self, opening: Opening, went_out: bool) -> TcpSegment:
        """The guest's segment that answers our SYN, which is sent again and again if need be.

        If it was sent once only, that is the first measurement of the round trip (RFC 6298 sections 2.2 and 3).
        Raises GuestReset, and TimeoutError if the guest stays silent.
        """
        retry_s = timeouts.SYN_FIRST_RETRY_S
        said_at = now = trio.current_time()
        is_measured = went_out
        deadline = now + timeouts.HANDSHAKE_S
        while now < deadline:
            retry_at = min(now + retry_s, deadline)
            answer = await self._answer(opening, retry_at, went_out)
            if answer is not None:
                if is_measured:
                    self._round_trip_s = trio.current_time() - said_at
                return answer
            is_measured = False
            now = trio.current_time()
            if now >= retry_at:  # else the guest asked again, or the link has room: ours goes at once
                retry_s *= 2
            if now < deadline:
                went_out = self._say_syn(opening)
        raise TimeoutError(errno.ETIMEDOUT, "the guest does not answer the handshake")

    async def _answer(self, opening: Opening, retry_at: float, went_out: bool) -> TcpSegment | None:
        """The segment that completes the handshake, or `None` when our SYN has to be sent once more.

        That is after silence until `retry_at`, when the guest repeated its own, and, if ours never `went_out` since the
        link was full, at the next ring.  What follows the answer stays in the inbox.
        """
        while True:
            answer, is_repeated = self._judge_inbox(opening)
            if answer is not None or is_repeated:
                return answer
            await rest(retry_at)
            self._heed_host_while_opening()
            if not went_out or (not self._inbox and trio.current_time() >= retry_at):
                return None

    def _judge_inbox(self, opening: Opening) -> tuple[TcpSegment | None, bool]:
        """The segment that completes the handshake, if there is one, and whether the guest has repeated its SYN.

        Not in the coroutine itself: while that rests it keeps what its variables have, and a segment holds the memory
        of a whole batch.
        """
        while self._inbox:
            segment = self._inbox.popleft()
            match opening.judge(segment):
                case Verdict.COMPLETES:
                    return segment, False
                case Verdict.REPEATS:
                    return None, True
                case Verdict.RESETS:
                    raise GuestReset
                case Verdict.CHALLENGES:
                    self._output.segment(opening.next, opening.ack, tcp.ACK, MAX_WINDOW_FIELD)
                case Verdict.WRONG:
                    self._output.segment(segment.ack, 0, tcp.RST, 0)
                case Verdict.MEANS_NOTHING:
                    pass
        return None, False

    def _heed_host_while_opening(self) -> None:
        """A peer that has reset the connection already ends it before the guest has it."""
        assert self._host is not None
        if self._host_events & readiness.ERROR:
            error = sockets.pending_error(self._host)
            if error is not None:
                raise error

    # -- waking and sleeping -----------------------------------------------------------------------------------------

    def _look_after(self, host: socket.socket) -> None:
        sockets.prepare_tcp(host)
        self._watch(host)

    def _watch(self, host: socket.socket) -> None:
        self._session.readiness.watch(host.fileno(), self._on_host_event, events=HOST_EVENTS)

    def _on_host_event(self, mask: int) -> None:
        is_news = mask & ~self._host_events if self._bridge is None else self._bridge.heeds(mask)
        self._host_events |= mask
        if is_news:
            self._life.ring()

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _close_host(self) -> None:
        """Both sides are done: the kernel finishes the rest."""
        self._give_up_host(socket.socket.close)

    def _reset_host(self) -> None:
        """The host's peer sees a reset, not an orderly end that it could take for a complete transfer."""
        self._give_up_host(sockets.reset)

    def _give_up_host(self, close: Callable[[socket.socket], None]) -> None:
        if self._host is not None:
            self._session.readiness.closes(self._host.fileno())
            close(self._host)
            self._host = None

    async def _reset_guest(self, error: OSError) -> None:
        """Tell the guest; a full link gets a moment."""
        self._is_over = True
        self._inbox.clear()
        if self._bridge is None and self._syn is not None and error.errno is not None:
            self._report_unreachable(self._syn, error.errno)
        deadline = trio.current_time() + timeouts.RESET_PATIENCE_S
        while not self._send_reset() and trio.current_time() < deadline:
            await rest(deadline)

    def _report_unreachable(self, syn: TcpSegment, number: int) -> None:
        """Before the reset, which means "refused" to a guest, the ICMP error that says what really happened."""
        key, session = self.key, self._session
        packet = ip.emit_packet(key.guest, key.remote, IPProtocol.TCP, tcp.emit(key.guest, key.remote, syn))
        report_failure(session, key.remote, key.guest, number, packet)

    def _send_reset(self) -> bool:
        number, ack = self._reset_numbers if self._bridge is None else self._bridge.reset_numbers()
        return self._output.segment(number, ack, tcp.RST | tcp.ACK, 0)

    def abandon(self) -> None:
        """After an internal error: a reset to the guest, if the link takes it now."""
        self._send_reset()
        self._output.close()


def _without_data(syn: TcpSegment) -> TcpSegment:
    """To be kept: a view, even an empty one, would hold the memory of a whole batch."""
    return syn if syn.payload == b"" and isinstance(syn.payload, bytes) else syn._replace(payload=b"")
