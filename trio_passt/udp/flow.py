"""UDP flows.

Theory of operation
-------------------
UDP has no connections, so a flow is a habit: datagrams between one guest
endpoint and one remote, until there have been none for `IDLE_S`.  The two directions of opening differ only in the
host's side:

`OutboundUdp`: the guest spoke first.  A host socket of its own, connected to the remote, so that only that remote's
replies (and ICMP errors) come back.

`InboundUdp`: somebody sent to a forwarded port.  The port's socket is shared by all its clients; replies leave
through it from the address that the client had asked.

When the link to the guest is full, a flow with a socket of its own leaves its datagrams there; those of a forwarded
port wait in the flow, for the port's socket is shared.  What exceeds these bounds is dropped and counted, as UDP may
be.
"""

import logging
import socket
from collections import deque
from contextlib import suppress

import trio

from trio_passt.flow.doorbell import Doorbell
from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.host import readiness, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import UdpPort
from trio_passt.wire import frames, ip, udp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

log = logging.getLogger("trio_passt.udp")

IDLE_S = 180.0
"""RFC 4787 section 4.3 asks for more than two minutes, of NATs; whoever is silent for longer opens a new flow."""

FROM_GUEST_DATAGRAMS = 4096
"""How many may wait between two turns of the flow: as many small ones as one batch from the link holds."""

TO_GUEST_DATAGRAMS = 256
"""How many may wait for a full link."""

DATAGRAMS_PER_TURN = 64
"""Read from the host socket at a time, and handed to the link at once."""

IP_UDP_BYTES = {4: 20 + udp.HEADER_BYTES, 16: 40 + udp.HEADER_BYTES}


class UdpFlow:
    """What both kinds share: the way of a datagram to the guest's link, and the idle deadline."""

    def __init__(self, session: Session, key: FlowKey) -> None:
        self.key = key
        self._session = session
        self._doorbell = Doorbell()
        self._from_guest: deque[Buffer] = deque()
        self._to_guest: deque[bytes] = deque()
        self._waits_for_link = False
        self._payload_limit = session.network.link_mtu_bytes - IP_UDP_BYTES[len(key.remote)]

    async def run(self) -> None:
        """Pass datagrams on until there are none for a while, or the host refuses the flow."""
        try:
            self._open()
            is_rung = True
            while is_rung:
                self._pass_to_host()
                self._pass_to_guest()
                is_rung = await self._doorbell.wait_until(trio.current_time() + IDLE_S)
        except OSError as error:
            self._drop(f"udp: {error.strerror}")
            log.debug("%s: %s", self.key, error)
        finally:
            self._session.datagrams.give_back(sum(map(len, self._to_guest)))
            self._to_guest.clear()
            self._close()

    def deliver(self, payload: Buffer) -> None:
        """A datagram from the guest; call `wake` after the last one of a batch."""
        if len(self._from_guest) >= FROM_GUEST_DATAGRAMS:
            self._drop("udp: too many datagrams at once from the guest")
        else:
            self._from_guest.append(bytes(payload))  # a view would hold the memory of a whole batch

    def deliver_from_host(self, payload: bytes) -> None:
        """A datagram from the remote that did not come through this flow's own socket: a forwarded port got it."""
        self._take_from_host(payload)
        self._doorbell.ring()

    def wake(self) -> None:
        """There is something to pass on."""
        self._doorbell.ring()

    def abandon(self) -> None:
        """Nothing to tell: UDP's peers find out by silence."""

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _send_to_host(self, payload: Buffer) -> None:
        """Send one datagram; BlockingIOError when the socket's buffer is full, OSError when the host refuses."""
        raise NotImplementedError

    def _receive_from_host(self) -> None:
        """Fill `_to_guest` with what the host socket has."""
        raise NotImplementedError

    def _pass_to_host(self) -> None:
        while self._from_guest:
            payload = self._from_guest.popleft()
            try:
                self._send_to_host(payload)
            except BlockingIOError:
                self._drop("udp: send buffer of the host full")
            except OSError as error:
                self._drop(f"udp: {error.strerror}")
                with suppress(OSError):  # it may have been an earlier datagram's error, which is told once (udp(7))
                    self._send_to_host(payload)

    def _pass_to_guest(self) -> None:
        self._receive_from_host()
        if not self._to_guest or self._waits_for_link:
            return
        source = UdpHeader(self.key.remote_port, self.key.guest_port)
        remote, guest = self.key.remote, self.key.guest
        session = self._session
        runs = []
        for payload in self._to_guest:
            packet = ip.emit_packet(remote, guest, IPProtocol.UDP, udp.emit(remote, guest, source, payload))
            runs.append(frames.single(ip.frame_packet(session.network.host_mac, session.guest.mac, packet)))
        taken = session.link.send(runs)
        for _ in range(taken):
            session.datagrams.give_back(len(self._to_guest.popleft()))
        if self._to_guest:
            self._waits_for_link = True
            session.link.when_ready(self._link_has_room)

    def _link_has_room(self) -> None:
        self._waits_for_link = False
        self._doorbell.ring()

    def _take_from_host(self, payload: bytes) -> None:
        if len(payload) > self._payload_limit:
            self._drop("udp: larger than the guest's MTU")
        elif len(self._to_guest) >= TO_GUEST_DATAGRAMS or not self._session.datagrams.take(len(payload)):
            self._drop("udp: link to the guest full")
        else:
            self._to_guest.append(payload)

    def _drop(self, reason: str) -> None:
        self._session.drops[reason] += 1


class OutboundUdp(UdpFlow):
    """A flow that the guest opened, with a host socket of its own."""

    def __init__(self, session: Session, key: FlowKey, destination: Endpoint) -> None:
        super().__init__(session, key)
        self._destination = destination
        self._host: socket.socket | None = None
        self._readable = False

    def _open(self) -> None:
        self._host = sockets.open_udp(self._destination)
        self._session.readiness.watch(self._host.fileno(), self._on_host_event, events=readiness.READABLE)

    def _close(self) -> None:
        if self._host is not None:
            self._session.readiness.forget(self._host.fileno())
            self._host.close()
            self._host = None

    def _on_host_event(self, _mask: int) -> None:
        self._readable = True
        self._doorbell.ring()

    def _send_to_host(self, payload: Buffer) -> None:
        assert self._host is not None
        self._host.send(payload)

    def _receive_from_host(self) -> None:
        """Stops while the link is full: the socket's own buffer is the queue then, but for one turn's datagrams."""
        assert self._host is not None
        for _ in range(DATAGRAMS_PER_TURN - len(self._to_guest)):
            if not self._readable or self._waits_for_link:
                return
            try:
                self._take_from_host(self._host.recv(65535))
            except BlockingIOError:
                self._readable = False
            except OSError as error:  # an ICMP error for an earlier datagram; the flow goes on
                self._drop(f"udp: {error.strerror}")
        if self._readable and not self._waits_for_link:
            self._doorbell.ring()  # there may be more, after everybody else's turn


class InboundUdp(UdpFlow):
    """A flow that a client of a forwarded port opened, through that port's socket.

    `local` is the packed host address that the client sent to.
    """

    def __init__(self, session: Session, key: FlowKey, port: UdpPort, client: Endpoint, local: bytes) -> None:
        super().__init__(session, key)
        self._port = port
        self._client = client
        self._local = local

    def is_of(self, client: Endpoint) -> bool:
        """Whether this flow is that client's."""
        return self._client == client

    def asked(self, port: UdpPort, local: bytes) -> None:
        """The client's latest datagram was sent to `port` at this packed host address, so replies come from there."""
        self._port = port
        self._local = local

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass

    def _send_to_host(self, payload: Buffer) -> None:
        self._port.send(payload, self._client, self._local)

    def _receive_from_host(self) -> None:
        pass
