"""Echo flows: the guest's pings through the host's ping sockets (icmp(7): "ICMP datagram sockets").

A flow is one identifier of the guest and one remote.  The host socket gets the same identifier if it is free, so that
a capture on the host's side shows the guest's; the guest gets its own back in any case.  It has the guest's hop limit,
too, and what routers say of a request is told the guest as said of its own: so `traceroute -I` shows the real path.

Without permission to open ping sockets only the address that stands for the host is answered: by us, since it is the
host that would answer.
"""

import functools
import logging
import os
import socket
from collections import deque

import trio

from trio_passt.flow import packets
from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import Life, rest
from trio_passt.flow.reports import report_error, report_failure
from trio_passt.flow.session import Session
from trio_passt.flow.status import FlowStatus
from trio_passt.host import error_queue, readiness, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.wire import icmp, ip
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.icmp import Echo, IcmpMessage, IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol

log = logging.getLogger("trio_passt.icmp")

IDLE_S = 60.0
"""A ping whose reply takes longer than this is not waited for; `ping` itself gives up after 10 s."""

INBOX_REQUESTS = 64
REPLIES_PER_TURN = 64

REMEMBERED_REQUESTS = 32
"""What an error quotes of a request may be as little as 8 bytes.  So many are remembered, as far as they can be quoted:
a traceroute has 16 under way at a time."""

_DATAGRAM_BYTES = 65535


class EchoRequest:
    """A request of the guest's, and the beginning of the IP packet that it came in."""

    __slots__ = ("echo", "hop_limit", "packet")

    def __init__(self, echo: Echo, hop_limit: int, packet: Buffer) -> None:
        self.echo = echo
        self.hop_limit = hop_limit
        self.packet = icmp.quote(packet)


class EchoFlow:
    """The task of one identifier and remote.

    `on_host` is where requests go; `is_local` says that this is the host itself.
    """

    def __init__(self, session: Session, key: FlowKey, on_host: Endpoint, *, is_local: bool) -> None:
        self.key = key
        self.active_at = trio.current_time()
        self._session = session
        self._on_host = on_host
        self._is_local = is_local
        self._life = Life(self._live, session.readiness.later)
        self._requests: deque[EchoRequest] = deque()
        self._remembered: dict[int, bytes] = {}
        self._host: socket.socket | None = None
        self._hop_limit = sockets.HOP_LIMIT
        self._host_events = 0
        self._is_ended = False

    @property
    def has_ended_well(self) -> bool:
        """Whether there is nothing left for its task to do, or to raise."""
        return self._life.has_ended_well

    @property
    def is_over(self) -> bool:
        """Whether its life has ended, though its task may not have found out yet: it takes no requests any more."""
        return self._life.is_over

    def status(self) -> FlowStatus:
        """How it stands."""
        state = "ended" if self._life.is_over else "open" if self._host is not None else "no socket"
        idle_s = trio.current_time() - self.active_at
        return FlowStatus(self.key, state, is_opened_by_guest=True, on_host=self._on_host, idle_s=idle_s)

    async def run(self) -> None:
        """Pass requests and replies on until there are none for a while."""
        await self._life.run()

    def deliver(self, request: EchoRequest) -> None:
        """An echo request from the guest; call `wake` after the last one of a batch."""
        if len(self._requests) >= INBOX_REQUESTS:
            self._drop("echo: too many requests at once")
        else:
            self._requests.append(request)

    def wake(self) -> None:
        """There is a request; or, of a new flow: it may begin at once."""
        self._life.ring()

    def end(self) -> None:
        """End it now, on the spot."""
        self._is_ended = True
        self._life.ring()

    def abandon(self) -> None:
        """Nothing to tell: an echo that stays out says it."""

    async def _live(self) -> None:
        try:
            self._open()
            while (until := self._take_turn()) is not None:
                await rest(until)
        except OSError as error:
            self._drop(f"echo: {error.strerror}")
            log.debug("%s: %s", self.key, error)
            if self._requests:
                self._report_failure(error, self._requests[-1])
        finally:
            self._requests.clear()
            if self._host is not None:
                self._session.readiness.forget(self._host.fileno())
                self._host.close()
                self._host = None

    def _open(self) -> None:
        try:
            way = self._session.way_to(self._on_host)
            self._host = sockets.open_ping(len(self.key.remote), self.key.guest_port, way)
        except PermissionError:
            warn_no_permission()
            return
        except OSError as error:
            if sockets.lacks_means(error):
                self._session.exhaustion.warn(log, "can't open a ping socket for the guest: %s", error.strerror)
            raise
        self._host.connect(self._on_host.sockaddr())
        self._session.readiness.watch(
            self._host.fileno(), self._on_host_event, events=readiness.READABLE, edge_triggered=False
        )
        log.debug("%s: echo to %s", self.key, self._on_host)

    def _on_host_event(self, mask: int) -> None:
        self._host_events = mask
        self._life.ring()

    def _take_turn(self) -> float | None:
        """All that can be done now; the time at which it will have been idle, `None` at the end."""
        now = trio.current_time()
        if self._requests or self._host_events:
            self.active_at = now
        while self._requests:
            self._pass_request(self._requests.popleft())
        events, self._host_events = self._host_events, 0
        if events & readiness.ERROR and self._host is not None:
            self._read_errors()
            sockets.pending_error(self._host)  # one that is not in the queue would be reported for ever
        if events & readiness.READABLE:
            self._pass_replies()
        due = self.active_at + IDLE_S
        return None if self._is_ended or now >= due else due

    def _pass_request(self, request: EchoRequest) -> None:
        if self._host is None:
            if self._is_local:
                self._send_to_guest(request.echo)
            else:
                self._drop("echo: no permission for ping sockets")
            return
        if request.hop_limit != self._hop_limit:
            sockets.set_hop_limit(self._host, request.hop_limit)
            self._hop_limit = request.hop_limit
        self._remember(request)
        message = icmp.echo_request(len(self.key.remote), request.echo)
        for is_last in (False, True):
            try:  # the kernel fills in the checksum, and the socket's identifier
                self._host.send(bytes((message.type, message.code, 0, 0)) + message.body)
            except OSError as error:
                if self._read_errors():
                    return
                if not is_last:
                    continue  # it was an earlier request's error
                self._drop(f"echo: {error.strerror}")
                self._report_failure(error, request)
                self._is_ended |= error.errno in sockets.NO_WAY  # the next request opens it anew
            return

    def _remember(self, request: EchoRequest) -> None:
        self._remembered.pop(request.echo.sequence, None)
        self._remembered[request.echo.sequence] = request.packet
        if len(self._remembered) > REMEMBERED_REQUESTS:
            del self._remembered[next(iter(self._remembered))]

    def _pass_replies(self) -> None:
        assert self._host is not None
        for _ in range(REPLIES_PER_TURN):
            try:
                packet, name = self._host.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:  # about an earlier request
                self._read_errors()
                return
            if Endpoint.of(name).address != self._on_host.address:
                continue  # connected or not, a ping socket takes replies from anybody
            if len(packet) >= icmp.ECHO_HEADER_BYTES and packet[0] in (IcmpType.ECHO_REPLY, Icmpv6Type.ECHO_REPLY):
                self._send_to_guest(
                    icmp.parse_echo(IcmpMessage(packet[0], packet[1], memoryview(packet)[icmp.HEADER_BYTES :]))
                )

    def _send_to_guest(self, reply: Echo) -> None:
        remote, guest = self.key.remote, self.key.guest
        reply = Echo(self.key.guest_port, reply.sequence, reply.data)
        message = icmp.emit(remote, guest, icmp.echo_reply(len(remote), reply))
        if not packets.send(self._session, remote, guest, self._protocol, message):
            self._drop("echo: link to the guest full")

    @property
    def _protocol(self) -> IPProtocol:
        return IPProtocol.ICMP if len(self.key.remote) == 4 else IPProtocol.ICMPV6

    # -- errors --------------------------------------------------------------------------------------------------------

    def _read_errors(self) -> bool:
        """Tell the guest what the network said about its requests; whether some of it is about the latest one."""
        assert self._host is not None
        errors = error_queue.read_all(self._host)
        for error in errors:
            if error.destination is not None and error.destination.address != self._on_host.address:
                continue  # the kernel looks for the identifier only: it is about somebody else's ping
            self._drop(f"echo: {os.strerror(error.number)}")
            packet = self._packet_with(error)
            if packet is not None:
                report_error(self._session, self.key.remote, self.key.guest, error, packet)
        return any(error.is_immediate for error in errors)

    def _packet_with(self, error: DatagramError) -> bytes | None:
        """The guest's IP packet, or its beginning, of which `error` quotes the echo request."""
        quoted = error.quoted
        if len(quoted) < icmp.ECHO_HEADER_BYTES:
            return None
        sequence = int.from_bytes(quoted[6:8], "big")
        if sequence in self._remembered:
            return self._remembered[sequence]
        guest, remote = self.key.guest, self.key.remote
        request = icmp.echo_request(len(remote), Echo(self.key.guest_port, sequence, quoted[icmp.ECHO_HEADER_BYTES :]))
        return ip.emit_packet(guest, remote, self._protocol, icmp.emit(guest, remote, request))

    def _report_failure(self, error: OSError, request: EchoRequest) -> None:
        report_failure(self._session, self.key.remote, self.key.guest, error.errno or 0, request.packet)

    def _drop(self, reason: str) -> None:
        self._session.drops[reason] += 1


def check_permission() -> None:
    """Say at start what would be found out at the first ping."""
    try:
        sockets.open_ping(4, 0).close()
    except PermissionError:
        warn_no_permission()
    except OSError:  # no IPv4, no descriptors: nothing about permission
        pass


@functools.cache
def warn_no_permission() -> None:
    """One line, once in the life of the process."""
    log.warning(
        "no permission for ping sockets, so the guest can ping nothing but the host: "
        "this process's group is not in the sysctl net.ipv4.ping_group_range"
    )
