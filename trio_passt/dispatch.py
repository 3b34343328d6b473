"""A batch of frames → services and flows.  No policy: what a frame means is decided where it goes.

`dispatch` is called with each batch (`daemon.own_frames`).  Nothing here waits: services are answered at once, flows
find their segments in their inbox and are woken, each once per batch however many frames were theirs.
"""

import logging
import socket
import zlib
from collections import Counter
from collections.abc import Iterator
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
from trio_passt.udp.flow import InboundUdp, OutboundUdp, UdpFlow
from trio_passt.wire import ethernet, frames, icmp, ip, ipv4, ipv6, plain, tcp, udp
from trio_passt.wire.coalesce import JoinedSegments, coalesce
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.icmp import IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment
from trio_passt.wire.udp import UdpHeader

log = logging.getLogger("trio_passt.dispatch")

DHCP_SERVER_PORT = (67).to_bytes(2, "big")
DHCPV6_SERVER_PORT = (547).to_bytes(2, "big")
"""As they stand in a UDP header, bytes 2 and 3."""

UDP_FLOWS = 16384
ECHO_FLOWS = 1024
"""Anybody can open these, and they end only by silence: so they have limits of their own, below that of TCP's."""

OTHER_PORTS = 64
"""How many others are tried when a host-local peer's port is taken at the address that it has for the guest."""

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
        self.tcp: FlowTable[TcpFlow] = FlowTable(nursery, FlowLimit(flow_limit, "TCP"))
        self.udp: FlowTable[UdpFlow] = FlowTable(nursery, FlowLimit(min(flow_limit, UDP_FLOWS), "UDP"))
        self.echo: FlowTable[EchoFlow] = FlowTable(nursery, FlowLimit(min(flow_limit, ECHO_FLOWS), "echo"))
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
        link = self._session.link
        link.gather()
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
        link.release()

    def _take_frame(self, frame: memoryview) -> None:
        if (expected := plain.parse(frame)) is not None and self._take_plain(*expected):
            return
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

    def _take_plain(self, mac: bytes, ends: plain.Ends, segment: TcpSegment, times: int = 1) -> bool:
        """A segment of a connection that is known, from a guest that is; all others take the long way."""
        flow = self.tcp.get(ends)
        if flow is None or mac != self._session.guest.mac:
            return False
        self._session.guest.learn_address(ends[0])
        for _ in range(times):
            flow.deliver(segment)
        self._to_wake[flow] = None
        return True

    def _take_joined(self, run: JoinedSegments) -> None:
        times = 1 + run.duplicates
        if self._take_plain(run.mac, run.ends, run.segment, times):
            return
        source, _, destination, _ = run.ends
        if not (self._network.ipv4 if len(source) == 4 else self._network.ipv6):
            self._drops["address family is off"] += run.frames
            return
        self._session.guest.learn_mac(run.mac)
        self._session.guest.learn_address(source)
        for _ in range(times):
            self._take_segment(source, destination, run.segment)

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
            case IPProtocol.TCP | IPProtocol.UDP:
                self._take_transport(source, destination, header.protocol, payload)
            case IPProtocol.ICMP:
                message = icmp.parse(source, destination, payload)
                if message.type == IcmpType.ECHO:
                    self._take_echo(source, destination, message)
                else:
                    self._drops["icmp: not an echo request"] += 1
            case IPProtocol.IGMP:
                pass
            case _:
                self._drops["unknown IP protocol"] += 1

    def _is_for_dhcp(self, destination: bytes, datagram: memoryview) -> bool:
        """Broadcast, or to the server's own address: a remote DHCP server's is not ours to answer for."""
        assert self._network.ipv4 is not None
        if datagram[2:4] != DHCP_SERVER_PORT:
            return False
        return destination in (b"\xff" * 4, host_side.ipv4_address(self._network.ipv4).packed)

    def _take_ipv6(self, mac: bytes, packet: memoryview) -> None:
        header, payload = ipv6.parse(packet)
        source, destination = header.source, header.destination
        if header.is_fragment:
            self._drops["fragment"] += 1
            return
        self._session.guest.learn_address(source)
        if header.protocol == IPProtocol.UDP and self._is_for_dhcpv6(destination, payload):
            _, request = udp.parse(source, destination, payload)
            self._reply(dhcpv6.answer(mac, source, request, self._network, self._server_duid))
            return
        match header.protocol:
            case IPProtocol.TCP | IPProtocol.UDP:
                self._take_transport(source, destination, header.protocol, payload)
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
            self._drops["icmp: not an echo request"] += 1

    def _is_for_dhcpv6(self, destination: bytes, datagram: memoryview) -> bool:
        """To a group, or to the server's own address."""
        assert self._network.ipv6 is not None
        if datagram[2:4] != DHCPV6_SERVER_PORT:
            return False
        server = host_side.ipv6_address(self._network.ipv6, self._network.host_mac)
        return destination[0] == 0xFF or destination == server.packed

    def _take_transport(self, source: bytes, destination: bytes, protocol: int, packet: memoryview) -> None:
        if protocol == IPProtocol.TCP:
            self._take_segment(source, destination, tcp.parse(source, destination, packet))
        else:
            self._take_datagram(source, destination, *udp.parse(source, destination, packet))

    def _take_segment(self, source: bytes, destination: bytes, segment: TcpSegment) -> None:
        key = FlowKey(source, segment.source_port, destination, segment.destination_port)
        flow = self.tcp.get(key)
        if flow is not None and segment.flags & tcp.SYN and flow.is_over:
            self.tcp.forget(flow)
            flow = None
        if flow is None:
            if segment.flags & tcp.RST:
                return
            endpoint = self._destination(key)
            is_opening = segment.flags & (tcp.SYN | tcp.ACK | tcp.FIN) == tcp.SYN
            if endpoint is None:
                self._drops["addresses of no flow"] += 1
                return
            flow = TcpFlow.outbound(self._session, key, segment, endpoint) if is_opening else None
            if flow is None or not self.tcp.start(flow):
                self._refuse(key, segment)
                return
        else:
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

    def _take_datagram(self, source: bytes, destination: bytes, header: UdpHeader, payload: memoryview) -> None:
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
        for key in self._inbound_keys(peer, target):
            if self.tcp.get(key) is None:
                flow = TcpFlow.inbound(self._session, key, host)
                if not self.tcp.start(flow):
                    break
                self.find_guest()
                flow.wake()
                return
        sockets.reset(host)

    def on_datagram(self, port: UdpPort, peer: Endpoint, local: bytes, payload: bytes) -> None:
        """A datagram to a forwarded port goes to its client's flow, perhaps a new one.

        A guest that has spoken to that remote from this very port has a flow already; where the remote can't have
        another name for the guest, that flow takes the datagram.
        """
        reason = "udp: forwarded, but its family is off"
        for key in self._inbound_keys(peer, port.target):
            reason = "udp: forwarded, but no flow for it"
            flow = self.udp.get(key)
            if flow is None:
                flow = InboundUdp(self._session, key, port, peer, local)
                if not self.udp.start(flow):
                    reason = "udp: limit of flows"
                    break
            if isinstance(flow, InboundUdp) and flow.is_of(peer):
                flow.asked(port, local)
            elif key.remote != peer.address:
                continue
            self.find_guest()
            flow.deliver_from_host(payload)
            return
        self._drops[reason] += 1

    def _inbound_keys(self, peer: Endpoint, target: int) -> Iterator[FlowKey]:
        """The names that a flow which a host peer opens may have, the best first; none if its family is off.

        Host-local peers share one address for the guest, so two of them may have the same port there: the later one
        gets another, which follows from its address, so that it is found again.
        """
        remote = self._session.addresses.source_for_guest(peer.address)
        guest = self._session.guest.address_towards(remote) if remote else None
        if remote is None or guest is None:
            return
        yield FlowKey(guest, target, remote, peer.port)
        if remote != peer.address:
            start = zlib.crc32(peer.address) + peer.port
            for number in range(start, start + OTHER_PORTS):
                yield FlowKey(guest, target, remote, 1024 + number % (65536 - 1024))

    def find_guest(self) -> None:
        """Ask for the guest's MAC address, unless it is known: it has to be for anything to reach the guest."""
        if self._session.guest.is_known:
            return
        if self._network.ipv4:
            self._reply(arp.request(self._network))
        if self._network.ipv6:
            self._reply(ndp.solicitation(self._network))
