"""The stage: one guest session as the daemon sets it up, on a link in memory, with host sockets on loopback.

The guest reaches the host's loopback through its gateway's address, so nothing leaves the machine.  Trio's clock stands
still, and moves by `passes`; waiting for the kernel is done by looking again and again, with a limit, never by sleeping
for a fixed time.
"""

import random
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock, wait_all_tasks_blocked

from harness import oracle
from harness.mapped import gateways_of
from harness.oracle import Seen, SeenError, SeenFragment, SeenOther, SeenTcp, SeenUdp
from harness.tcp import GuestTcp, HostServer, HostSocket
from harness.waiting import eventually
from trio_passt.config import DnsForward, GuestIPv4, GuestIPv6, GuestNetwork, PortForward, Protocol
from trio_passt.dispatch import Dispatcher
from trio_passt.errors import StartupError
from trio_passt.flow.guest import Guest
from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.flow.translate import AddressMap
from trio_passt.guests import own_frames
from trio_passt.host.listeners import PortListeners, UdpPort
from trio_passt.host.queue import SCRATCH_BYTES
from trio_passt.host.readiness import Readiness
from trio_passt.link.base import LinkClosed
from trio_passt.link.memory import MemoryLink
from trio_passt.wire import ip, tcp, udp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ethernet import emit as emit_ethernet
from trio_passt.wire.frames import Capabilities
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment
from trio_passt.wire.udp import UdpHeader

if TYPE_CHECKING:
    from trio_typing import TaskStatus

GUEST_MAC = bytes.fromhex("525400123456")
HOST_MAC = bytes.fromhex("9a559a559a55")

SCAPY_READS_FRAMES = 50
"""So many frames of each test are read by scapy, and then every hundredth: it takes a millisecond for one."""


@frozen
class Family:
    """One IP version as the guest has it: addresses as text.  `local` is what the gateway's address stands for."""

    version: int
    guest: str
    gateway: str
    local: str

    def __str__(self) -> str:
        return f"IPv{self.version}"

    @property
    def guest_packed(self) -> bytes:
        return ip_address(self.guest).packed

    @property
    def gateway_packed(self) -> bytes:
        return ip_address(self.gateway).packed

    @property
    def socket_family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


V4 = Family(4, "198.51.100.5", "198.51.100.1", "127.0.0.1")
V6 = Family(6, "2001:db8:1:2::5", "fe80::1", "::1")


def network(
    *,
    mtu_bytes: int = 65520,
    ipv4: bool = True,
    ipv6: bool = True,
    dns_forwards: tuple[DnsForward, ...] = (),
) -> GuestNetwork:
    """The network of `V4` and `V6`."""
    guest4 = GuestIPv4(IPv4Address(V4.guest), 24, IPv4Address(V4.gateway)) if ipv4 else None
    guest6 = GuestIPv6(IPv6Address(V6.guest), 64, IPv6Address(V6.gateway)) if ipv6 else None
    return GuestNetwork(
        guest4, guest6, mtu_bytes=mtu_bytes, dns_forwards=dns_forwards, host_addresses=gateways_of(guest4, guest6)
    )


class Stage:
    """The scripted guest, its host, and all that is between them."""

    dispatcher: Dispatcher

    def __init__(self, guest_network: GuestNetwork, link: MemoryLink, nursery: trio.Nursery) -> None:
        self.network = guest_network
        self.link = link
        self.readiness = Readiness()
        self.session = Session(
            link=link,
            network=guest_network,
            guest=Guest(guest_network),
            addresses=AddressMap(guest_network),
            readiness=self.readiness,
            drops=Counter(),
            scratch=memoryview(bytearray(SCRATCH_BYTES)),
            secret=bytes(32),
        )
        self.opened = ExitStack()
        """What a test opened, to be closed when it is over."""
        self.ended: str | None = None
        self._nursery = nursery
        self._listeners: list[PortListeners] = []
        self._frames_read = 0
        self._seen: deque[Seen] = deque()

    # -- the guest's packets ---------------------------------------------------------------------------------------

    def sends_frames(self, *frames: bytes) -> None:
        """One batch of frames, as they are."""
        self.link.push(frames)

    def sends_packets(self, *packets: bytes) -> None:
        """One batch of IP packets."""
        self.sends_frames(*map(frame_of, packets))

    def sends_segments(self, family: Family, segments: Iterable[TcpSegment], remote: str | None = None) -> None:
        """One batch of TCP segments to the gateway, or to another remote."""
        self.sends_packets(*(segment_packet(family, segment, remote) for segment in segments))

    def sends_datagram(
        self, family: Family, source_port: int, destination_port: int, payload: bytes, remote: str | None = None
    ) -> None:
        """One UDP datagram to the gateway, or to another remote."""
        destination = ip_address(remote or family.gateway).packed
        header = UdpHeader(source_port, destination_port)
        datagram = udp.emit(family.guest_packed, destination, header, payload)
        self.sends_packets(ip.emit_packet(family.guest_packed, destination, IPProtocol.UDP, datagram))

    # -- what it sees ----------------------------------------------------------------------------------------------

    def look(self, wanted: Callable[[Seen], bool]) -> Seen | None:
        """The first packet that is wanted, of those that came; it is taken, and the others stay."""
        for sent in self.link.take_sent_frames():
            for frame in oracle.complete(sent):
                self._seen.append(self._read(frame))
        for index, seen in enumerate(self._seen):
            if wanted(seen):
                del self._seen[index]
                return seen
        return None

    async def expects_segment(self, wanted: Callable[[SeenTcp], bool] = lambda _seen: True) -> SeenTcp:
        """The next TCP segment that is wanted, of whatever connection."""
        seen = await eventually(
            lambda: self.look(lambda seen: isinstance(seen, SeenTcp) and wanted(seen)), "a TCP segment"
        )
        assert isinstance(seen, SeenTcp)
        return seen

    async def expects_datagram(self) -> SeenUdp:
        """The next UDP datagram."""
        seen = await eventually(lambda: self.look(lambda seen: isinstance(seen, SeenUdp)), "a UDP datagram")
        assert isinstance(seen, SeenUdp)
        return seen

    async def expects_other(self) -> SeenOther:
        """The next IP packet that is neither TCP nor UDP."""
        seen = await eventually(lambda: self.look(lambda seen: isinstance(seen, SeenOther)), "an IP packet")
        assert isinstance(seen, SeenOther)
        return seen

    async def expects_error(self) -> SeenError:
        """The next ICMP or ICMPv6 error."""
        seen = await eventually(lambda: self.look(lambda seen: isinstance(seen, SeenError)), "an ICMP error")
        assert isinstance(seen, SeenError)
        return seen

    async def expects_in_fragments(self) -> Seen:
        """The next packet that comes in fragments, put together."""
        parts: list[SeenFragment] = []
        while not (parts and parts[-1].is_last):
            part = await eventually(lambda: self.look(lambda seen: isinstance(seen, SeenFragment)), "a fragment")
            assert isinstance(part, SeenFragment)
            assert len(part.packet) <= self.network.link_mtu_bytes
            parts.append(part)
        return oracle.whole(parts, GUEST_MAC.hex(":"))

    async def expects_nothing(self) -> None:
        """Nothing came, and nothing comes."""
        await wait_all_tasks_blocked(0.002)
        seen = self.look(lambda _seen: True)
        assert seen is None, f"unexpected: {seen}"

    async def expects_drop(self, reason: str, count: int = 1) -> None:
        """So many were dropped for this reason."""

        def dropped() -> bool | None:
            return True if self.session.drops[reason] >= count else None

        await eventually(dropped, f"a drop because of {reason!r}; there are {dict(self.session.drops)}")
        assert self.session.drops[reason] == count

    def forgets(self) -> None:
        """What came and was not expected does not matter."""
        self.link.take_sent_frames()
        self._seen.clear()

    def _read(self, frame: bytes) -> Seen:
        self._frames_read += 1
        if self._frames_read > SCAPY_READS_FRAMES and self._frames_read % 100 and len(frame) > 54:
            segment = _read_segment(frame)
            if segment is not None:
                return segment
        return oracle.see(frame, GUEST_MAC.hex(":"))

    async def serve(self, flow_limit: int, *, task_status: "TaskStatus[None]") -> None:
        """The guest session, as `guests.serve_guest` has it; `ended` tells why it ended."""
        async with trio.open_nursery() as nursery:
            self.dispatcher = Dispatcher(self.session, nursery, flow_limit, self)
            nursery.start_soon(self.link.run)
            nursery.start_soon(self.readiness.run)
            nursery.start_soon(self.dispatcher.fragments.run)
            task_status.started()
            try:
                await own_frames(self.link, self.dispatcher, self.readiness)
            except LinkClosed as closed:
                self.ended = str(closed)
            nursery.cancel_scope.cancel()

    # -- time --------------------------------------------------------------------------------------------------------

    async def settles(self) -> None:
        """Everything that can happen without time has happened."""
        await wait_all_tasks_blocked(0.001)

    async def passes(self, seconds: float) -> None:
        """Time passes, from one deadline to the next."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        end = trio.current_time() + seconds
        while True:
            await wait_all_tasks_blocked()
            ahead = trio.lowlevel.current_statistics().seconds_to_next_deadline
            left = end - trio.current_time()
            if ahead >= left:
                break
            clock.jump(min(max(ahead, 0) + 1e-6, left))
        clock.jump(left)
        await self.settles()

    async def until_over(self, key: FlowKey) -> None:
        """Wait, while time passes, until the TCP flow of this name is no more."""
        while self.dispatcher.tcp.get(key) is not None:  # noqa: ASYNC110 - the flow table tells nobody
            await trio.sleep(0.1)

    # -- the host's side -----------------------------------------------------------------------------------------------

    def host_serves(self, family: Family) -> HostServer:
        """A TCP server on the host's loopback."""
        server = HostServer(family.socket_family, family.local)
        self.opened.callback(server.close)
        return server

    def host_refuses(self, family: Family) -> int:
        """A port of the host's loopback that is nobody's, and stays so."""
        sock = socket.socket(family.socket_family, socket.SOCK_STREAM)
        self.opened.callback(sock.close)
        sock.bind((family.local, 0))
        port: int = sock.getsockname()[1]
        return port

    def host_is_silent(self, family: Family) -> int:
        """A port of the host's loopback where a connection is neither accepted nor refused: a full backlog."""
        server = HostServer(family.socket_family, family.local, backlog=0)
        self.opened.callback(server.close)
        for _ in range(2):
            self.host_connects(family, server.port)
        return server.port

    def host_connects(self, family: Family, port: int, *, source: tuple[str, int] | None = None) -> HostSocket:
        """A client on the host connects to a forwarded port."""
        sock = socket.socket(family.socket_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.opened.callback(sock.close)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        with pytest.raises(BlockingIOError):
            sock.connect((family.local, port))
        return HostSocket(sock)

    def host_udp(self, family: Family, address: tuple[str, int] | None = None) -> socket.socket:
        """A UDP socket on the host's loopback."""
        sock = socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.opened.callback(sock.close)
        sock.bind(address or (family.local, 0))
        return sock

    def forwards(self, protocol: Protocol, target: int, address: str | None = None) -> int:
        """A port of the host, of one address or of all, that is forwarded to the guest's `target`."""
        bound_to = ip_address(address) if address is not None else None
        for _ in range(100):
            port = random.randrange(20_000, 32_000)
            try:
                listeners = PortListeners.bind([PortForward(protocol, port, port, target, bound_to)])
            except (StartupError, ExceptionGroup):  # in use
                continue
            self.opened.callback(listeners.close)
            listeners.receiver = self.dispatcher
            self._listeners.append(listeners)
            self._nursery.start_soon(listeners.run)
            return port
        pytest.fail("no free port")

    def udp_port(self, target: int, destination: bytes) -> UdpPort | None:
        """What `forwards` has bound, for the dispatcher."""
        found = (listeners.udp_port(target, destination) for listeners in self._listeners)
        return next((port for port in found if port is not None), None)

    @property
    def descriptors(self) -> int:
        """Of the forwarded ports, for the dispatcher."""
        return sum(listeners.descriptors for listeners in self._listeners)

    # -- TCP connections -----------------------------------------------------------------------------------------------

    def tcp(self, family: Family, port: int, *, remote: str | None = None, guest_port: int | None = None) -> GuestTcp:
        """The guest's end of a connection, unopened, to a port of the host's loopback."""
        return GuestTcp(self, family, remote or family.gateway, port, guest_port)

    async def connected(
        self,
        family: Family = V4,
        *,
        mss: int | None = 65460,
        scale: int | None = 7,
        window: int = 65535,
        initial_seq: int | None = None,
        takes_sack: bool = False,
        server: HostServer | None = None,
    ) -> tuple[GuestTcp, HostSocket]:
        """An established connection that the guest opened, and the host's end of it."""
        server = server or self.host_serves(family)
        guest = self.tcp(family, server.port)
        if initial_seq is not None:
            guest.next = initial_seq
        guest.sends(tcp.SYN, mss=mss, scale=scale, window=min(window, 65535), takes_sack=takes_sack)
        await guest.expects(tcp.SYN | tcp.ACK)
        guest.window = window
        guest.sends(tcp.ACK)
        host = await server.accepts()
        while await guest.arrives_or_none() is not None:
            pass  # a window update, now that windows are scaled
        return guest, host

    async def connected_from_host(
        self, family: Family = V4, *, mss: int | None = 65460, scale: int | None = 7
    ) -> tuple[GuestTcp, HostSocket]:
        """An established connection that a client on the host opened."""
        port = self.forwards(Protocol.TCP, 80)
        host = self.host_connects(family, port)
        guest = await self.asked_to_connect(family)
        guest.sends(tcp.SYN | tcp.ACK, mss=mss, scale=scale)
        await guest.expects(tcp.ACK)
        return guest, host

    async def asked_to_connect(self, family: Family, port: int = 80, remote: str | None = None) -> GuestTcp:
        """The SYN of a connection to the guest's `port`, taken; the guest's end of it has not answered yet."""
        seen = await self.expects_segment(lambda seen: bool(seen.segment.flags & tcp.SYN))
        syn = seen.segment
        assert (syn.flags, syn.ack, syn.destination_port) == (tcp.SYN, 0, port)
        assert ip_address(seen.destination) == ip_address(family.guest)
        assert seen.source == (remote or family.gateway)
        guest = GuestTcp(self, family, seen.source, syn.source_port, port)
        guest.takes_syn(syn)
        return guest


@asynccontextmanager
async def on_stage(
    guest_network: GuestNetwork | None = None,
    *,
    capabilities: Capabilities = Capabilities(),  # noqa: B008 - frozen
    capacity_frames: int | None = None,
    flow_limit: int = 1000,
) -> AsyncIterator[Stage]:
    """A stage, set up and cleared."""
    link = MemoryLink(capabilities, capacity_frames=capacity_frames)
    with ExitStack() as opened:
        async with trio.open_nursery() as nursery:
            stage = Stage(guest_network or network(), link, nursery)
            opened.callback(stage.readiness.close)
            opened.callback(stage.opened.close)
            stage.session.guest.learn_mac(GUEST_MAC)
            await nursery.start(stage.serve, flow_limit)
            try:
                yield stage
            finally:
                nursery.cancel_scope.cancel()


def frame_of(packet: Buffer) -> bytes:
    """An Ethernet frame from the guest to the host's MAC."""
    ethertype = EtherType.IPV4 if packet[0] >> 4 == 4 else EtherType.IPV6
    return emit_ethernet(EthernetHeader(HOST_MAC, GUEST_MAC, ethertype)) + packet


def segment_packet(family: Family, segment: TcpSegment, remote: str | None = None) -> bytes:
    """An IP packet from the guest with one TCP segment."""
    source, destination = (family.guest_packed, ip_address(remote or family.gateway).packed)
    return ip.emit_packet(source, destination, IPProtocol.TCP, tcp.emit(source, destination, segment))


def _read_segment(frame: bytes) -> SeenTcp | None:
    """What scapy would say, in less time: bulk data is read by the daemon's own codec after the first frames."""
    source, destination, packet = (
        (frame[26:30], frame[30:34], frame[34:])
        if frame[12:14] == b"\x08\0"
        else (frame[22:38], frame[38:54], frame[54:])
    )
    is_tcp = frame[23] == IPProtocol.TCP if len(source) == 4 else frame[20] == IPProtocol.TCP
    if not is_tcp:
        return None
    segment = tcp.parse(source, destination, packet)
    flat = TcpSegment(
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.ack,
        segment.flags,
        segment.window,
        bytes(segment.payload),
        segment.options,
    )
    return SeenTcp(str(ip_address(source)), str(ip_address(destination)), flat)
