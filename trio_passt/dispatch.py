"""A batch of frames → services and flows.  No policy: what a frame means is decided where it goes.

The root task calls `dispatch` with each batch.  Nothing here waits: services are answered at once, flows find their
segments in their inbox and are woken, each once per batch however many frames were theirs.
"""

import logging
import socket
from collections import Counter
from typing import Protocol

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.flow.table import FlowLimit, FlowTable
from trio_passt.flow.translate import LOOPBACK_IPV4, LOOPBACK_IPV6, is_unicast
from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import UdpPort
from trio_passt.icmp.flow import EchoFlow
from trio_passt.services import arp, dhcp, dhcpv6, host_side, ndp
from trio_passt.tcp.flow import TcpFlow
from trio_passt.udp.flow import InboundUdp, OutboundUdp
from trio_passt.wire import ethernet, frames, icmp, ip, ipv4, ipv6, tcp, udp
from trio_passt.wire.coalesce import JoinedSegments, coalesce
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.icmp import IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

log = logging.getLogger("trio_passt.dispatch")

DHCP_SERVER_PORT = 67
DHCPV6_SERVER_PORT = 547
_NEIGHBOUR_DISCOVERY = frozenset({Icmpv6Type.ROUTER_SOLICITATION, Icmpv6Type.NEIGHBOR_SOLICITATION})
_QUIETLY_IGNORED = frozenset(
    {Icmpv6Type.MLD_QUERY, Icmpv6Type.MLD_REPORT, Icmpv6Type.MLD_DONE, Icmpv6Type.MLDV2_REPORT}
    | {Icmpv6Type.NEIGHBOR_ADVERTISEMENT}
)


class _Wakeable(Protocol):
    def wake(self) -> None: ...


class Dispatcher:
    """The three flow tables of one guest session, and the way to them from both sides."""

    def __init__(self, session: Session, nursery: trio.Nursery, flow_limit: int) -> None:
        limit = FlowLimit(flow_limit)
        self.tcp: FlowTable[TcpFlow] = FlowTable(nursery, limit)
        self.udp: FlowTable[OutboundUdp | InboundUdp] = FlowTable(nursery, limit)
        self.echo: FlowTable[EchoFlow] = FlowTable(nursery, limit)
        self._session = session
        self._network = session.network
        self._drops: Counter[str] = session.drops
        self._server_duid = dhcpv6.server_duid(session.network)
        self._to_wake: dict[_Wakeable, None] = {}

    # -- from the guest ------------------------------------------------------------------------------------------------

    def dispatch(self, batch: FrameBatch) -> None:
        """Take every frame of a batch; a malformed one is counted, and the others are none the worse for it.

        Runs of one connection's frames come as one segment, which means the same (`wire.coalesce`).
        """
        for item in coalesce(batch):
            try:
                if isinstance(item, JoinedSegments):
                    self._take_joined(item)
                else:
                    self._take_frame(item)
            except MalformedPacket as error:
                self._drops["malformed"] += 1
                log.debug("malformed packet from the guest: %s", error)
        for flow in self._to_wake:
            flow.wake()
        self._to_wake.clear()

    def _take_frame(self, frame: memoryview) -> None:
        header, payload = ethernet.parse(frame)
        self._session.guest.learn_mac(header.source)
        match header.ethertype:
            case EtherType.IPV4 if self._network.ipv4:
                self._take_ipv4(header.source, payload)
            case EtherType.IPV6 if self._network.ipv6:
                self._take_ipv6(header.source, payload)
            case EtherType.ARP:
                self._reply(arp.answer(payload, self._network))
            case EtherType.IPV4 | EtherType.IPV6:
                self._drops["address family is off"] += 1
            case _:
                self._drops["unknown EtherType"] += 1

    def _take_joined(self, run: JoinedSegments) -> None:
        if not (self._network.ipv4 if len(run.source) == 4 else self._network.ipv6):
            self._drops["address family is off"] += run.frames
            return
        self._session.guest.learn_mac(run.ethernet.source)
        self._session.guest.learn_address(run.source)
        for _ in range(1 + run.duplicates):
            self._take_segment(run.source, run.destination, run.segment)

    def _take_ipv4(self, mac: bytes, packet: memoryview) -> None:
        header, payload = ipv4.parse(packet)
        source, destination = header.source, header.destination
        if header.is_fragment:
            self._drops["fragment"] += 1
            return
        if header.protocol == IPProtocol.UDP and self._is_for_dhcp(destination, payload):
            _, request = udp.parse(source, destination, payload)
            self._reply(dhcp.answer(mac, request, self._network))
            return
        self._session.guest.learn_address(source)
        match header.protocol:
            case IPProtocol.TCP:
                self._take_segment(source, destination, tcp.parse(source, destination, payload))
            case IPProtocol.UDP:
                self._take_udp(source, destination, payload)
            case IPProtocol.ICMP:
                message = icmp.parse(source, destination, payload)
                if message.type == IcmpType.ECHO:
                    self._take_echo(source, destination, message)
                else:
                    self._drops["icmp: neither echo nor for us"] += 1
            case IPProtocol.IGMP:
                pass
            case _:
                self._drops["unknown IP protocol"] += 1

    def _is_for_dhcp(self, destination: bytes, datagram: memoryview) -> bool:
        """Broadcast, or to the server's own address: a remote DHCP server's is not ours to answer for."""
        assert self._network.ipv4 is not None
        if len(datagram) < udp.HEADER_BYTES or int.from_bytes(datagram[2:4], "big") != DHCP_SERVER_PORT:
            return False
        return destination in (b"\xff" * 4, host_side.ipv4_address(self._network.ipv4).packed)

    def _take_ipv6(self, mac: bytes, packet: memoryview) -> None:
        header, payload = ipv6.parse(packet)
        source, destination = header.source, header.destination
        if header.is_fragment:
            self._drops["fragment"] += 1
            return
        self._session.guest.learn_address(source)
        match header.protocol:
            case IPProtocol.TCP:
                self._take_segment(source, destination, tcp.parse(source, destination, payload))
            case IPProtocol.UDP:
                self._take_udp(source, destination, payload, mac)
            case IPProtocol.ICMPV6:
                self._take_icmpv6(mac, header, payload)
            case ipv6.NO_NEXT_HEADER:
                pass
            case _:
                self._drops["unknown IP protocol"] += 1

    def _take_icmpv6(self, mac: bytes, header: ipv6.IPv6Header, payload: memoryview) -> None:
        message = icmp.parse(header.source, header.destination, payload)
        if message.type in _NEIGHBOUR_DISCOVERY:
            hop_limit = header.hop_limit
            self._reply(ndp.answer(mac, header.source, header.destination, hop_limit, message, self._network))
        elif message.type == Icmpv6Type.ECHO_REQUEST:
            self._take_echo(header.source, header.destination, message)
        elif message.type not in _QUIETLY_IGNORED:
            self._drops["icmp: neither echo nor for us"] += 1

    def _take_segment(self, source: bytes, destination: bytes, segment: TcpSegment) -> None:
        key = FlowKey(source, segment.source_port, destination, segment.destination_port)
        flow = self.tcp.get(key)
        if flow is None:
            if segment.flags & tcp.RST:
                return
            if segment.flags & (tcp.SYN | tcp.ACK | tcp.FIN) != tcp.SYN:
                self._refuse(key, segment)
                return
            endpoint = self._destination(key)
            if endpoint is None:
                self._drops["addresses of no flow"] += 1
            elif not self.tcp.start(TcpFlow.outbound(self._session, key, segment, endpoint)):
                self._refuse(key, segment)
            return
        flow.deliver(segment)
        self._to_wake[flow] = None

    def _refuse(self, key: FlowKey, segment: TcpSegment) -> None:
        """Reset what belongs to no connection (RFC 9293 section 3.10.7.1)."""
        ports = (key.remote_port, key.guest_port)
        if segment.flags & tcp.ACK:
            reset = TcpSegment(*ports, segment.ack, 0, tcp.RST, 0)
        else:
            ack = (segment.seq + segment.sequence_length) & 0xFFFFFFFF
            reset = TcpSegment(*ports, 0, ack, tcp.RST | tcp.ACK, 0)
        packet = ip.emit_packet(key.remote, key.guest, IPProtocol.TCP, tcp.emit(key.remote, key.guest, reset))
        self._reply(ip.frame_packet(self._network.host_mac, self._session.guest.mac, packet))

    def _take_udp(self, source: bytes, destination: bytes, packet: memoryview, mac: bytes = b"") -> None:
        header, payload = udp.parse(source, destination, packet)
        if mac and header.destination_port == DHCPV6_SERVER_PORT and self._is_for_dhcpv6(destination):
            self._reply(dhcpv6.answer(mac, source, payload, self._network, self._server_duid))
            return
        key = FlowKey(source, header.source_port, destination, header.destination_port)
        flow = self.udp.get(key)
        if flow is None:
            endpoint = self._destination(key)
            if endpoint is None or not key.remote_port:
                self._drops["addresses of no flow"] += 1
                return
            flow = OutboundUdp(self._session, key, endpoint)
            if not self.udp.start(flow):
                self._drops["udp: limit of flows"] += 1
                return
        flow.deliver(payload)
        self._to_wake[flow] = None

    def _is_for_dhcpv6(self, destination: bytes) -> bool:
        assert self._network.ipv6 is not None
        server = host_side.ipv6_address(self._network.ipv6, self._network.host_mac)
        return destination[0] == 0xFF or destination == server.packed

    def _take_echo(self, source: bytes, destination: bytes, message: icmp.IcmpMessage) -> None:
        echo = icmp.parse_echo(message)
        key = FlowKey(source, echo.identifier, destination, 0)
        flow = self.echo.get(key)
        if flow is None:
            endpoint = self._destination(key)
            if endpoint is None:
                self._drops["addresses of no flow"] += 1
                return
            is_local = endpoint.address in (LOOPBACK_IPV4, LOOPBACK_IPV6)
            flow = EchoFlow(self._session, key, endpoint, is_local=is_local)
            if not self.echo.start(flow):
                self._drops["echo: limit of flows"] += 1
                return
        flow.deliver(echo)
        self._to_wake[flow] = None

    def _destination(self, key: FlowKey) -> Endpoint | None:
        """Where a new flow of the guest goes on the host; `None` if one of its addresses can't be a flow's."""
        if not is_unicast(key.guest):
            return None
        return self._session.addresses.destination_on_host(key.remote, key.remote_port)

    def _reply(self, frame: bytes | None) -> None:
        """Send a service's frame; on a full link it is dropped, since whoever asked asks again."""
        if frame is not None and not self._session.link.send([frames.single(frame)]):
            self._drops["link to the guest full"] += 1

    # -- from forwarded ports -----------------------------------------------------------------------------------------

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        """A connection to a forwarded port becomes a flow towards the guest's port `target`."""
        key = self._inbound_key(self.tcp, peer, target)
        if key is None or not self.tcp.start(TcpFlow.inbound(self._session, key, host)):
            sockets.reset(host)
            return
        self.find_guest()

    def on_datagram(self, port: UdpPort, peer: Endpoint, local: bytes, payload: bytes) -> None:
        """A datagram to a forwarded port goes to its client's flow, perhaps a new one."""
        remote = self._session.addresses.source_for_guest(peer.address)
        guest = self._session.guest.address_towards(remote) if remote else None
        if remote is None or guest is None:
            self._drops["udp: forwarded, but its family is off"] += 1
            return
        flow = self.udp.get(FlowKey(guest, port.target, remote, peer.port))
        if not isinstance(flow, InboundUdp) or not flow.is_of(peer):
            flow = self._inbound_udp_flow(port, peer, local)
        if flow is None:
            self._drops["udp: limit of flows"] += 1
            return
        self.find_guest()
        flow.deliver_from_host(payload, local)

    def _inbound_udp_flow(self, port: UdpPort, peer: Endpoint, local: bytes) -> InboundUdp | None:
        key = self._inbound_key(self.udp, peer, port.target)
        if key is None:
            return None
        flow = InboundUdp(self._session, key, port, peer, local)
        return flow if self.udp.start(flow) else None

    def _inbound_key(
        self, table: FlowTable[TcpFlow] | FlowTable[OutboundUdp | InboundUdp], peer: Endpoint, target: int
    ) -> FlowKey | None:
        """The name of a flow that a host peer opens; `None`: the family is off, or all of the peer's ports are taken.

        Host-local peers share one address for the guest, so two of them may have the same port there; the later one
        gets another.
        """
        remote = self._session.addresses.source_for_guest(peer.address)
        guest = self._session.guest.address_towards(remote) if remote else None
        if remote is None or guest is None:
            return None
        key = FlowKey(guest, target, remote, peer.port)
        if remote == peer.address:
            return key if table.get(key) is None else None
        for port in (peer.port, *range(1024, 65536)):
            key = FlowKey(guest, target, remote, port)
            if table.get(key) is None:
                return key
        return None

    def find_guest(self) -> None:
        """Ask for the guest's MAC address, unless it is known: it has to be for anything to reach the guest."""
        if self._session.guest.is_known:
            return
        if self._network.ipv4:
            self._reply(arp.request(self._network))
        if self._network.ipv6:
            self._reply(ndp.solicitation(self._network))
