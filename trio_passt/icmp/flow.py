"""Echo flows: the guest's pings through the host's ping sockets (icmp(7): "ICMP datagram sockets").

A flow is one identifier of the guest and one remote.  The host socket gets the same identifier if it is free, so that
a capture on the host's side shows the guest's; the guest gets its own back in any case.  Without permission to open
ping sockets only the address that stands for the host is answered: by us, since it is the host that would answer.
"""

import functools
import logging
import socket
from collections import deque

import trio

from trio_passt.flow.doorbell import Doorbell
from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.host import readiness, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.wire import frames, icmp, ip
from trio_passt.wire.icmp import Echo, IcmpMessage, IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol

log = logging.getLogger("trio_passt.icmp")

IDLE_S = 60.0
"""A ping whose reply takes longer than this is not waited for; `ping` itself gives up after 10 s."""

INBOX_REQUESTS = 64
REPLIES_PER_TURN = 64
_DATAGRAM_BYTES = 65535


class EchoFlow:
    """The task of one identifier and remote.

    `on_host` is where requests go; `is_local` says that this is the host itself.
    """

    def __init__(self, session: Session, key: FlowKey, on_host: Endpoint, *, is_local: bool) -> None:
        self.key = key
        self._session = session
        self._on_host = on_host
        self._is_local = is_local
        self._doorbell = Doorbell()
        self._requests: deque[Echo] = deque()
        self._host: socket.socket | None = None

    async def run(self) -> None:
        """Pass requests and replies on until there are none for a while."""
        try:
            self._open()
            is_rung = True
            while is_rung:
                self._pass_requests()
                self._pass_replies()
                is_rung = await self._doorbell.wait_until(trio.current_time() + IDLE_S)
        except OSError as error:
            self._session.drops[f"echo: {error.strerror}"] += 1
            log.debug("%s: %s", self.key, error)
        finally:
            if self._host is not None:
                self._session.readiness.forget(self._host.fileno())
                self._host.close()

    def deliver(self, request: Echo) -> None:
        """An echo request from the guest; call `wake` after the last one of a batch."""
        if len(self._requests) >= INBOX_REQUESTS:
            self._session.drops["echo: too many requests at once"] += 1
        else:
            self._requests.append(request)

    def wake(self) -> None:
        """There is a request."""
        self._doorbell.ring()

    def abandon(self) -> None:
        """Nothing to tell: an echo that stays out says it."""

    def _open(self) -> None:
        try:
            self._host = sockets.open_ping(len(self.key.remote), self.key.guest_port)
        except PermissionError:
            warn_no_permission()
            return
        self._host.connect(self._on_host.sockaddr())
        self._session.readiness.watch(
            self._host.fileno(), lambda _mask: self._doorbell.ring(), events=readiness.READABLE
        )

    def _pass_requests(self) -> None:
        while self._requests:
            request = self._requests.popleft()
            if self._host is None:
                if self._is_local:
                    self._send_to_guest(request)
                else:
                    self._session.drops["echo: no permission for ping sockets"] += 1
                continue
            message = icmp.echo_request(len(self.key.remote), request)
            try:  # the kernel fills in the checksum, and the socket's identifier
                self._host.send(bytes((message.type, message.code, 0, 0)) + message.body)
            except OSError as error:
                self._session.drops[f"echo: {error.strerror}"] += 1

    def _pass_replies(self) -> None:
        if self._host is None:
            return
        for _ in range(REPLIES_PER_TURN):
            try:
                packet, name = self._host.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error for an earlier request
                self._session.drops[f"echo: {error.strerror}"] += 1
                continue
            if Endpoint.of(name).address != self._on_host.address:
                continue  # connected or not, a ping socket takes replies from anybody
            if len(packet) >= icmp.ECHO_HEADER_BYTES and packet[0] in (IcmpType.ECHO_REPLY, Icmpv6Type.ECHO_REPLY):
                self._send_to_guest(
                    icmp.parse_echo(IcmpMessage(packet[0], packet[1], memoryview(packet)[icmp.HEADER_BYTES :]))
                )
        self._doorbell.ring()

    def _send_to_guest(self, reply: Echo) -> None:
        session, remote, guest = self._session, self.key.remote, self.key.guest
        reply = Echo(self.key.guest_port, reply.sequence, reply.data)
        protocol = IPProtocol.ICMP if len(remote) == 4 else IPProtocol.ICMPV6
        message = icmp.emit(remote, guest, icmp.echo_reply(len(remote), reply))
        packet = ip.emit_packet(remote, guest, protocol, message)
        if len(packet) > session.network.link_mtu_bytes:
            session.drops["echo: larger than the guest's MTU"] += 1
        elif not session.link.send(
            [frames.single(ip.frame_packet(session.network.host_mac, session.guest.mac, packet))]
        ):
            session.drops["echo: link to the guest full"] += 1


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
