"""UDP flows.

Theory of operation
-------------------
UDP has no connections, so a flow is a habit: datagrams between one guest endpoint and one remote, until there have been
none for `IDLE_S`.  There are two kinds, by the host's side:

`OutboundUdp`: the guest spoke first.  A host socket of its own, connected to the remote, so that only that remote's
replies come back, and errors about what was sent to it.  The socket has the guest's own port, if that is free.

`PortUdp`: through the socket of a forwarded port, which all its clients share.  Somebody sent to that port, and replies
leave from the address that he had asked; or the guest spoke first, from the port that is forwarded to it, and has the
forwarded port towards its remotes, too.

*On the spot.*  A flow's life (see `flow.life`) is short to tell: open, until it has been idle, close.  What passes
meanwhile needs no turn of its task.  Datagrams of a batch from the guest leave before the next batch is read, in trains
where they are of one size; what the host socket has is framed and given to the link as it is read.  Nothing waits in
between, as long as neither side is full.

*Overload.*  Where more comes from the host than the guest takes, the link is full.  Then the host's sockets are not
read until it has room, and their receive buffers, which the kernel bounds, are the queue; what they have no room for is
dropped there, and counted when the flow ends (of a forwarded port: when the guest goes).  What had been read when the
link became full waits in the flow, at most one reading of its socket, and `Session.datagrams` bounds that of all flows.
Where the host takes no more from the guest, its send buffer is full, and the datagram is dropped and counted.

*Errors* come from the socket's error queue, and are told the guest as what they are: ICMP, quoting what it had sent.
They end no flow, unless the host has no way any more from where its socket is: it may have another address since, and
the next datagram opens the flow anew.

*Short lives.*  A resolver's library asks from a new port each time.  A flow to port 53 ends when as many answers (or
errors) have come as there were questions, so thousands of them a second are no more than a few at a time.
"""

import errno
import logging
import os
import socket
import struct

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import Life, rest
from trio_passt.flow.reports import report_error, report_failure
from trio_passt.flow.session import Session
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.host import datagrams, error_queue, readiness, sockets
from trio_passt.host.datagrams import Ancillary, SocketReader
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import UdpPort
from trio_passt.host.outbound import Way
from trio_passt.udp.source_ports import SourcePorts
from trio_passt.wire import framing, icmp, ip, udp
from trio_passt.wire.datagrams import Train, UdpHeaders
from trio_passt.wire.frames import FrameRun
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.joined import JoinedDatagrams
from trio_passt.wire.udp import UdpHeader

log = logging.getLogger("trio_passt.udp")

IDLE_S = 180.0
"""RFC 4787 section 4.3 asks for more than two minutes, of NATs; whoever is silent for longer opens a new flow."""

ADDRESS_GOOD_FOR_S = 60.0
"""A guest with several addresses has spoken from this flow's so lately that it is the right one for its client."""

DNS_PORT = 53
DNS_IDLE_S = 30.0
"""Less than that for a well-known port (RFC 4787, REQ-5 a): a resolver asks again, or another server, after 5 s."""

LARGEST_SEGMENT_BYTES = datagrams.TRAIN_BYTES_MOST
"""Until the kernel has refused one."""

FRAME_COST_BYTES = 128
"""What a frame takes of the link's room besides its payload, about."""

Clients = dict[tuple[int, Endpoint], "PortUdp"]

_WILDCARD = {4: bytes(4), 16: bytes(16)}
_IP_UDP_BYTES = {4: 28, 16: 48}


class UdpFlow:
    """What both kinds share: both ways of a datagram, errors, and the idle deadline."""

    __slots__ = (
        "_active_at",
        "_answers",
        "_end_reason",
        "_errors",
        "_first_packet",
        "_has_lost_its_way",
        "_headers",
        "_hop_limit",
        "_idle_s",
        "_is_ended",
        "_is_for_answers",
        "_is_open",
        "_is_opened_by_guest",
        "_is_queued",
        "_is_train",
        "_kept",
        "_largest_segment",
        "_last_packet",
        "_last_size",
        "_life",
        "_questions",
        "_session",
        "_spoken_at",
        "key",
    )

    def __init__(self, session: Session, key: FlowKey, *, is_for_answers: bool) -> None:
        """`is_for_answers`: the guest has spoken first, so if it is to a resolver these are questions."""
        self.key = key
        self._session = session
        self._life = Life(self._live, session.readiness.later)
        self._kept: list[FrameRun] = []
        self._headers: UdpHeaders | None = None
        self._is_queued = False
        self._is_open = False
        self._is_ended = False
        self._has_lost_its_way = False
        self._active_at = trio.current_time()
        self._spoken_at = float("-inf")
        self._is_opened_by_guest = is_for_answers
        self._is_for_answers = is_for_answers and key.remote_port == DNS_PORT
        self._idle_s = DNS_IDLE_S if self._is_for_answers else IDLE_S
        self._questions = self._answers = self._errors = 0
        self._hop_limit = sockets.HOP_LIMIT
        self._largest_segment = LARGEST_SEGMENT_BYTES
        self._first_packet = self._last_packet = b""
        self._last_size = 0
        self._is_train = False
        self._end_reason = "udp: flow has ended"

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

    def status(self) -> FlowStatus:
        """How it stands."""
        came = self._answers - self._errors
        has_answer = came > 0 if self._is_opened_by_guest else self._questions > 0
        state = "ended" if self._life.is_over else "answered" if has_answer else "unanswered"
        idle_s = trio.current_time() - self._active_at
        peer = self._peer()
        return FlowStatus(
            self.key, state, self._is_opened_by_guest, peer, idle_s, self._questions, came, Unit.DATAGRAMS
        )

    async def run(self) -> None:
        """Pass datagrams on until there are none for a while, or the host refuses the flow."""
        await self._life.run()

    def deliver(self, run: JoinedDatagrams) -> None:
        """Datagrams from the guest, which are passed on at once; a new flow begins with them."""
        try:
            self._last_packet = icmp.quote(run.last)
            self._first_packet = icmp.quote(run.first) if len(run.payloads) > 1 else b""
            self._active_at = self._spoken_at = trio.current_time()
            if not self._is_open:
                self._life.ring()
            if self._life.is_over:
                self._drop(self._end_reason, len(run.payloads))
                return
            self._pass_to_host(run)
            if self._has_lost_its_way:
                self._has_lost_its_way = False
                self._find_another_way()
            self._look_for_answers()
        except Exception as error:
            self._life.fail(error)

    def deliver_from_host(self, buffer: memoryview, trains: list[Train]) -> None:
        """Datagrams from the remote that did not come through this flow's own socket: a forwarded port got them."""
        try:
            self._active_at = trio.current_time()
            if not self._life.is_over:
                self._pass_to_guest(buffer, trains)
        except Exception as error:
            self._life.fail(error)

    def deliver_error(self, error: DatagramError) -> None:
        """The host has learned of an error about a datagram that this flow had sent."""
        self._drop(f"udp: {os.strerror(error.number)}")
        self._answers += 1
        self._errors += 1
        if error.is_immediate and error.number in sockets.NO_WAY:
            self._has_lost_its_way = True
        guest, remote = self.key.guest, self.key.remote
        report_error(self._session, remote, guest, error, self._packet_with(error.quoted))

    def end(self) -> None:
        """End it now, on the spot."""
        self._is_ended = True
        self._life.ring()

    def abandon(self) -> None:
        """Nothing to tell: UDP's peers find out by silence."""

    # -- a flow's life -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            self._open()
            self._is_open = True
            while not self._is_ended and trio.current_time() < (due := self._active_at + self._idle_s):
                await rest(due)
        except OSError as error:
            self._refuse(error)
        finally:
            if self._is_queued:
                self._session.link.forget(self._on_room)
            self._session.datagrams.give_back(_bytes_of(self._kept))
            self._kept.clear()
            self._close()

    def _look_for_answers(self) -> None:
        """All questions to a resolver have been answered: there is nothing to wait for."""
        if self._is_for_answers and 0 < self._questions <= self._answers and not self._kept:
            self.end()

    def _find_another_way(self) -> None:
        """The host has none from where the socket is."""

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _peer(self) -> Endpoint:
        """The remote at the host's side."""
        raise NotImplementedError

    def _send(self, payloads: list[memoryview], ancillary: Ancillary) -> None:
        """One `sendmsg`, or equal; BlockingIOError when the socket's buffer is full, OSError when the host refuses."""
        raise NotImplementedError

    def _read_errors(self) -> bool:
        """Tell the guest what the socket's error queue has; whether some of it is about what was sent just now."""
        raise NotImplementedError

    def _use_hop_limit(self, hop_limit: int) -> None:
        """What is sent from now on has this one."""
        raise NotImplementedError

    # -- to the host -------------------------------------------------------------------------------------------------

    def _pass_to_host(self, run: JoinedDatagrams) -> None:
        if run.hop_limit != self._hop_limit:
            self._use_hop_limit(run.hop_limit)
            self._hop_limit = run.hop_limit
        payloads = run.payloads
        begin, count = 0, len(payloads)
        self._questions += count
        if count == 1:
            self._try(payloads, [])
            self._last_size = len(payloads[0])
            self._is_train = False
            return
        self._session.readiness.moved(len(run.last) * count)
        while begin < count:
            stop = datagrams.train_stop(payloads, begin, self._largest_segment)
            some = payloads[begin:stop]
            size, is_train = len(some[0]), stop > begin + 1
            if not self._try(some, datagrams.segments(size) if is_train else []):
                continue  # one by one
            self._last_size, self._is_train = size, is_train
            begin = stop

    def _try(self, payloads: list[memoryview], ancillary: Ancillary) -> bool:
        """Send, and count what is not sent; false if it has to be done in smaller pieces."""
        for is_last in (False, True):
            try:
                self._send(payloads, ancillary)
            except BlockingIOError:
                self._drop("udp: send buffer of the host full", len(payloads))
            except OSError as error:
                if len(payloads) > 1 and error.errno in datagrams.NO_SEGMENTATION:
                    self._largest_segment = len(payloads[0]) - 1
                    return False
                if self._read_errors():
                    return True
                if not is_last:
                    continue  # it was an earlier datagram's error, which is told once (udp(7))
                self._drop(f"udp: {error.strerror}", len(payloads))
                self._answers += len(payloads)
                self._errors += len(payloads)
                number = error.errno or 0
                self._has_lost_its_way |= number in sockets.NO_WAY
                report_failure(self._session, self.key.remote, self.key.guest, number, self._last_packet)
            return True
        return True

    def _refuse(self, error: OSError) -> None:
        """The host has no way there, or no socket."""
        log.debug("%s: %s", self.key, error)
        self._end_reason = f"udp: {error.strerror}"
        if sockets.lacks_means(error):
            self._session.exhaustion.warn(log, "can't open a UDP socket for the guest: %s", error.strerror)
        if self._last_packet:
            number = error.errno or 0
            report_failure(self._session, self.key.remote, self.key.guest, number, self._last_packet)

    def _packet_with(self, quoted: bytes) -> bytes:
        """The guest's IP packet, or its beginning, whose payload began like this.

        If that is one of the latest ones, it is known.  If not: a train may be quoted as one datagram, which is cut;
        and of a quote that is as long as quotes get, the rest is unknown, and its length is taken to be the latest's.
        """
        guest, remote = self.key.guest, self.key.remote
        header_bytes = _IP_UDP_BYTES[len(guest)]
        for packet in (self._last_packet, self._first_packet):
            known = packet[header_bytes:]
            if packet and quoted[: len(known)] == known[: len(quoted)]:
                return packet
        size = len(quoted)
        if self._is_train and size > self._last_size:
            size = self._last_size
        elif size >= icmp.QUOTED_BYTES[len(guest)] - header_bytes:
            size = max(size, self._last_size)
        header = UdpHeader(self.key.guest_port, self.key.remote_port)
        datagram = udp.emit_beginning(guest, remote, header, quoted, size)
        return ip.emit_packet(guest, remote, IPProtocol.UDP, datagram, payload_bytes=udp.HEADER_BYTES + size)

    # -- to the guest ------------------------------------------------------------------------------------------------

    def _pass_to_guest(self, buffer: memoryview, trains: list[Train]) -> None:
        """Frame the datagrams that are there in `buffer`; what the link does not take now is kept."""
        session = self._session
        runs = self._current_headers().frames(buffer, trains, session.identifications)
        frames = sum(run.count for run in runs)
        self._answers += sum(train.datagrams for train in trains)
        session.readiness.moved(_bytes_of(runs))
        taken = 0 if self._kept else session.link.send(runs)
        if taken < frames:
            self._keep(framing.remaining(runs, taken))
        self._look_for_answers()

    def _pass_one_to_guest(self, payload: memoryview) -> None:
        """The same for a single datagram that is no part of a bulk."""
        headers = self._current_headers()
        if len(payload) > headers.largest_bytes:
            self._pass_to_guest(payload, [Train(0, len(payload))])
            return
        runs = (headers.single(payload),)
        if self._kept or not self._session.link.send(runs):
            self._keep(framing.remaining(runs, 0))
        self._answers += 1
        self._look_for_answers()

    def _keep(self, runs: list[FrameRun]) -> None:
        for run in runs:
            if self._session.datagrams.take(run.count * run.stride):
                self._kept.append(run)
            else:
                self._drop("udp: link to the guest full", run.count)
        self._wait_for_room()

    def _send_kept(self) -> None:
        taken = self._session.link.send(self._kept)
        left = framing.remaining(self._kept, taken)
        self._session.datagrams.give_back(_bytes_of(self._kept) - _bytes_of(left))
        self._kept = left
        if left:
            self._wait_for_room()
        else:
            self._look_for_answers()

    def _wait_for_room(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._session.link.when_ready(self._on_room)

    def _on_room(self) -> None:
        self._is_queued = False
        try:
            if self._kept:
                self._send_kept()
            if not self._is_queued and not self._life.is_over:
                self._look_at_host_again()
        except Exception as error:
            self._life.fail(error)

    def _look_at_host_again(self) -> None:
        """The link has room."""

    def _current_headers(self) -> UdpHeaders:
        headers, session = self._headers, self._session
        if headers is None or headers.guest_mac != session.guest.mac:
            key, network = self.key, session.network
            macs, addresses = (network.host_mac, session.guest.mac), (key.remote, key.guest)
            ports = (key.remote_port, key.guest_port)
            headers = self._headers = UdpHeaders(
                macs, addresses, ports, network.link_mtu_bytes, session.link.capabilities
            )
        return headers

    def _drop(self, reason: str, count: int = 1) -> None:
        self._session.drops[reason] += count


class OutboundUdp(UdpFlow):
    """A flow that the guest opened, with a host socket of its own."""

    __slots__ = ("_destination", "_host", "_is_parked", "_ports", "_reader", "_size")

    def __init__(self, session: Session, key: FlowKey, destination: Endpoint, ports: SourcePorts) -> None:
        super().__init__(session, key, is_for_answers=True)
        self._destination = destination
        self._ports = ports
        self._host: socket.socket | None = None
        self._reader: SocketReader | None = None
        self._is_parked = False
        self._size = 0

    def is_towards(self, peer: Endpoint) -> bool:
        """Whether this is its remote on the host's side."""
        return self._destination == peer

    def _open(self) -> None:
        way = self._session.way_to(self._destination)
        self._host = self._ports.open(self.key.guest_port, self._destination, way)
        self._reader = SocketReader(self._host)
        # Level-triggered: what is not read at once is told again after everybody else's turn.
        self._session.readiness.watch(
            self._host.fileno(), self._on_host_event, events=readiness.READABLE, edge_triggered=False
        )
        log.debug("%s: UDP to %s", self.key, self._destination)

    def _peer(self) -> Endpoint:
        return self._destination

    def _find_another_way(self) -> None:
        """A new socket may be somewhere else: the next datagram opens the flow anew."""
        self.end()

    def _close(self) -> None:
        host = self._host
        if host is not None:
            overflowed = sockets.overflowed_datagrams(host)
            if overflowed:
                self._drop("udp: receive buffer of the host full", overflowed)
            self._session.readiness.forget(host.fileno())
            self._ports.close(host, self.key.guest_port, self._destination)
            self._host = self._reader = None

    def _on_host_event(self, mask: int) -> None:
        if self._is_parked:
            return  # it will be told again
        try:
            if mask & readiness.ERROR:
                self._heed_errors()
            if mask & readiness.READABLE and not self._life.is_over:
                self._receive()
        except Exception as error:
            self._life.fail(error)

    def _heed_errors(self, error: OSError | None = None) -> None:
        """Those in the queue; and one that is not there, lest it be reported for ever, if it was not raised already.

        A socket that was aborted (ss -K) is not connected any more, and would hear strangers.
        """
        assert self._host is not None
        self._read_errors()
        error = error or sockets.pending_error(self._host)
        if error is not None and error.errno == errno.ECONNABORTED:
            self._drop(f"udp: {error.strerror}")
            self.end()
        else:
            self._look_for_answers()

    def _receive(self) -> None:
        session, host, reader = self._session, self._host, self._reader
        assert host is not None
        assert reader is not None
        if session.link.is_full or self._kept:
            self._park()
            return
        self._active_at = trio.current_time()
        buffer = session.buffer
        try:
            if reader.expects_one():
                self._pass_one_to_guest(buffer.read_one(host))
                return
            trains = buffer.read(host, self._most())
        except BlockingIOError:
            return
        except OSError as error:  # about an earlier datagram
            self._heed_errors(error)
            return
        self._size = trains[-1].size
        self._pass_to_guest(buffer.view, trains)

    def _most(self) -> int:
        """How many datagrams of the size of the last one the link has room for; at least one."""
        room_bytes = self._session.link.room_bytes
        return min(max(1, room_bytes // (self._size + FRAME_COST_BYTES)), datagrams.SLOTS)

    def _park(self) -> None:
        """The link is full: what comes waits in the socket."""
        assert self._host is not None
        self._is_parked = True
        self._session.readiness.suspend(self._host.fileno())
        self._wait_for_room()

    def _look_at_host_again(self) -> None:
        """Read now, in one's turn: were all who wait just watched again, most would be told in vain."""
        if not self._is_parked:
            return
        self._is_parked = False
        self._receive()
        if self._host is None:
            return
        if self._kept or self._session.link.is_full:
            self._park()
        else:
            self._session.readiness.resume(self._host.fileno(), events=readiness.READABLE)

    def _send(self, payloads: list[memoryview], ancillary: Ancillary) -> None:
        assert self._host is not None
        assert self._reader is not None
        self._reader.answered()
        if ancillary:
            self._host.sendmsg(payloads, ancillary)
        else:
            self._host.send(payloads[0])

    def _read_errors(self) -> bool:
        assert self._host is not None
        errors = error_queue.read_all(self._host)
        for error in errors:
            self.deliver_error(error)
        return any(error.is_immediate for error in errors)

    def _use_hop_limit(self, hop_limit: int) -> None:
        assert self._host is not None
        sockets.set_hop_limit(self._host, hop_limit)


class PortUdp(UdpFlow):
    """A flow through the socket of a forwarded port, whoever spoke first.

    `local` is the packed host address that the client sent to; without it `way` does, or the kernel chooses one.
    `clients` is where the flow of a client is found, by the guest's port and the client.
    """

    __slots__ = ("_by_way", "_client", "_clients", "_local", "_port", "_way")

    def __init__(
        self,
        session: Session,
        key: FlowKey,
        port: UdpPort,
        client: Endpoint,
        clients: Clients,
        local: bytes | None = None,
        way: Way | None = None,
    ) -> None:
        super().__init__(session, key, is_for_answers=local is None)
        self._way = way
        self._by_way: Ancillary = []
        self._port = port
        self._client = client
        self._local = local if local is not None else _WILDCARD[len(client.address)]
        self._clients = clients

    def register(self) -> None:
        """It has been started: from now on it is its client's."""
        self._clients[self._port.target, self._client] = self

    def _peer(self) -> Endpoint:
        return self._client

    def has_spoken(self) -> bool:
        """Whether the guest has spoken lately, and so is at this flow's address."""
        return trio.current_time() - self._spoken_at < ADDRESS_GOOD_FOR_S

    def asked(self, port: UdpPort, local: bytes) -> None:
        """The client's latest datagram was sent to `port` at this packed host address, so replies come from there."""
        self._port = port
        self._local = local
        self._by_way = []

    def _open(self) -> None:
        if self._way is not None:
            self._by_way = [self._way.of_one_datagram(len(self._client.address))]
        log.debug("%s: UDP with %s, by a forwarded port", self.key, self._client)

    def _close(self) -> None:
        name = (self._port.target, self._client)
        if self._clients.get(name) is self:
            del self._clients[name]

    def _send(self, payloads: list[memoryview], ancillary: Ancillary) -> None:
        if self._hop_limit != sockets.HOP_LIMIT:
            ancillary = [*ancillary, _hop_limit_of_one(len(self._client.address), self._hop_limit)]
        if self._by_way:
            ancillary = [*ancillary, *self._by_way]
        self._port.send(payloads, ancillary, self._client, self._local)

    def _read_errors(self) -> bool:
        """Those of the port are read where it is."""
        return self._port.read_errors()

    def _use_hop_limit(self, hop_limit: int) -> None:
        pass

    def _find_another_way(self) -> None:
        """The interface may be another of the same name by now, also the port's: the next datagram begins anew."""
        if self._by_way or self._port.socket.fileno() < 0:
            self.end()


def goes_by(port: UdpPort, way: Way) -> bool:
    """Whether datagrams of the guest's can leave by this port's socket that way, and answers come back to it.

    Not by IPv6 from an address and by an interface: Linux then takes the interface of IPV6_PKTINFO for a suggestion.
    """
    address, interface = port.forward.address, port.forward.interface
    if way.interface is not None and way.source is not None and len(way.source) == 16 and interface is None:
        return False
    is_from_there = address is None or way.source in (None, address.packed)
    return is_from_there and (interface is None or way.interface in (None, interface))


def _bytes_of(runs: list[FrameRun]) -> int:
    return sum(run.count * run.stride for run in runs)


def _hop_limit_of_one(address_bytes: int, hop_limit: int) -> tuple[int, int, bytes]:
    """What tells `sendmsg` (ip(7), IP_TTL; ipv6(7), IPV6_HOPLIMIT)."""
    value = struct.pack("=i", hop_limit)
    if address_bytes == 4:
        return (socket.IPPROTO_IP, socket.IP_TTL, value)
    return (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, value)
