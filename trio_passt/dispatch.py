"""A batch of frames → services and flows.  No policy: what a frame means is decided where it goes.

`dispatch` is called with each batch (`daemon.own_frames`).  Nothing here waits: services are answered, datagrams passed
on at once; TCP flows find their segments in their inbox and are woken, each once per batch however many frames were
theirs.
"""

import logging
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from trio_passt.config import Transports
from trio_passt.flow import packets
from trio_passt.flow.fragments import Fragments
from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.flow.table import BriefTable, FlowLimit, SilentTable
from trio_passt.flow.translate import is_unicast
from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import UdpPort
from trio_passt.icmp.flow import EchoFlow, EchoRequest
from trio_passt.responder import Responder
from trio_passt.tcp.flow import TcpFlow
from trio_passt.udp.flow import Clients, OutboundUdp, PortUdp, UdpFlow, goes_by
from trio_passt.udp.source_ports import SourcePorts
from trio_passt.wire import ethernet, icmp, ipv4, ipv6, plain, tcp, udp
from trio_passt.wire.coalesce import JoinedDatagrams, JoinedSegments, coalesce
from trio_passt.wire.datagrams import Train
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.icmp import IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.reassembly import FragmentProblem
from trio_passt.wire.tcp import TcpSegment

log = logging.getLogger("trio_passt.dispatch")

UDP_FLOWS = 16384
ECHO_FLOWS = 1024
"""Anybody can open these, and they end only by silence: so they have limits of their own, below that of TCP's, and
three eighths of the descriptors are left to others (each of these has one)."""

OTHER_PORTS = 64
"""How many others are tried when a peer's port is taken at the address that it has for the guest."""

_NEIGHBOUR_DISCOVERY = frozenset({Icmpv6Type.ROUTER_SOLICITATION, Icmpv6Type.NEIGHBOR_SOLICITATION})
_QUIETLY_IGNORED = frozenset(
    {Icmpv6Type.MLD_QUERY, Icmpv6Type.MLD_REPORT, Icmpv6Type.MLD_DONE, Icmpv6Type.MLDV2_REPORT}
    | {Icmpv6Type.NEIGHBOR_ADVERTISEMENT}
)


class _Wakeable(Protocol):
    def wake(self) -> None: ...


class ForwardedPorts(Protocol):
    """What a session knows of the ports that are forwarded to its guest."""

    def udp_port(self, target: int, destination: bytes) -> UdpPort | None:
        """A port that is forwarded to the guest's `target`, and can reach this packed address of the host's side."""

    @property
    def descriptors(self) -> int:
        """How many of this process's descriptors these ports have."""


class Dispatcher:
    """The three flow tables of one guest session, and the way to them from both sides."""

    def __init__(self, session: Session, nursery: trio.Nursery, flow_limit: int, ports: ForwardedPorts) -> None:
        self._session = session
        self._ports = ports
        self._drops: Counter[str] = session.drops
        later = session.readiness.later
        descriptors = sockets.descriptor_limit() - ports.descriptors
        most_udp, most_echo = (
            min(flow_limit, UDP_FLOWS, descriptors // 2),
            min(flow_limit, ECHO_FLOWS, descriptors // 8),
        )
        self.tcp: BriefTable[TcpFlow] = BriefTable(nursery, FlowLimit(flow_limit, "TCP"), later)
        self.udp: SilentTable[UdpFlow] = SilentTable(nursery, most_udp, "UDP", later)
        self.echo: SilentTable[EchoFlow] = SilentTable(nursery, most_echo, "echo", later)
        self.fragments = Fragments(session)
        self.responder = Responder(session)
        self._off = _off(session.network.transports)
        self._source_ports = SourcePorts()
        self._clients: Clients = {}
        self._to_begin: list[_Wakeable] = []
        """New connections: they go first, since what they dial is a way off."""
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
                elif isinstance(item, JoinedDatagrams):
                    self._take_datagrams(item)
                elif isinstance(item, MalformedPacket):
                    raise item
                else:
                    self._take_frame(item)
            except FragmentProblem as problem:
                self._drops["malformed"] += 1
                self.fragments.report_problem(problem)
            except MalformedPacket as error:
                self._drops["malformed"] += 1
                log.debug("malformed packet from the guest: %s", error)
        for new in self._to_begin:
            new.wake()
        self._to_begin.clear()
        for flow in self._to_wake:
            flow.wake()
        self._to_wake.clear()
        link.release()

    def _take_frame(self, frame: memoryview) -> None:
        if (expected := plain.parse(frame)) is not None:
            if not self._take_plain(*expected):
                self._take_unknown(JoinedSegments(*expected))
            return
        if (datagram := plain.parse_datagram(frame)) is not None:
            mac, ends, hop_limit, payload, packet = datagram
            self._take_datagrams(JoinedDatagrams(mac, ends, hop_limit, [payload], packet, packet))
            return
        header, payload = ethernet.parse(frame)
        self._session.guest.learn_mac(header.source)
        match header.ethertype:
            case EtherType.IPV4 if self._session.network.ipv4:
                self._take_ipv4(header.source, payload)
            case EtherType.IPV6 if self._session.network.ipv6:
                self._take_ipv6(header.source, payload)
            case EtherType.ARP:
                self.responder.take_arp(payload)
            case EtherType.IPV4 | EtherType.IPV6:
                self._drops["address family is off"] += 1
            case _:
                self._drops["unknown EtherType"] += 1

    def _take_plain(self, mac: bytes, ends: plain.Ends, segment: TcpSegment, times: int = 1) -> bool:
        """A segment of a connection that is known, from a guest that is; all others take the long way."""
        flow = self.tcp.get(ends)
        if flow is None or mac != self._session.guest.mac or segment.flags & tcp.SYN:
            return False
        self._session.guest.learn_address(ends[0])
        for _ in range(times):
            flow.deliver(segment)
        self._to_wake[flow] = None
        return True

    def _take_joined(self, run: JoinedSegments) -> None:
        if not self._take_plain(run.mac, run.ends, run.segment, 1 + run.duplicates):
            self._take_unknown(run)

    def _take_unknown(self, run: JoinedSegments) -> None:
        """The long way."""
        source, _, destination, _ = run.ends
        if not self._has_family(source):
            self._drops["address family is off"] += run.frames
            return
        self._session.guest.learn_mac(run.mac)
        self._session.guest.learn_address(source)
        if self._is_off(IPProtocol.TCP, run.frames):
            return
        for _ in range(1 + run.duplicates):
            self._take_segment(source, destination, run.segment)

    def _has_family(self, address: bytes) -> bool:
        """Whether the guest has the family of this packed address."""
        return (self._session.network.ipv4 if len(address) == 4 else self._session.network.ipv6) is not None

    def _is_off(self, protocol: int, packets: int = 1) -> bool:
        """Whether this transport is; so many packets of it are counted then.  Known flows are never asked for it."""
        reason = self._off.get(protocol)
        if reason is None:
            return False
        self._drops[reason] += packets
        return True

    def _are_fragments_off(self, protocol: int, destination: bytes) -> bool:
        """Whether they would be kept in vain.  Not those of a datagram to all: it may be for DHCP, which is not off."""
        is_to_all = protocol == IPProtocol.UDP and self._session.addresses.is_for_neighbours(destination)
        return not is_to_all and self._is_off(protocol)

    def _take_ipv4(self, mac: bytes, packet: memoryview) -> None:
        header, payload = ipv4.parse(packet)
        if header.is_fragment:
            self._session.guest.learn_address(header.source)
            if self._are_fragments_off(header.protocol, header.destination):
                return
            whole = self.fragments.take(header, payload)
            if whole is None:
                return
            header, payload = whole
            packet = memoryview(ipv4.emit(header, len(payload)) + payload)
        source, destination = header.source, header.destination
        if header.protocol == IPProtocol.UDP and self.responder.is_for_dhcp(destination, payload):
            self.responder.take_dhcp(mac, source, destination, payload)
            return
        self._session.guest.learn_address(source)
        match header.protocol:
            case IPProtocol.TCP:
                self._take_segment(source, destination, tcp.parse(source, destination, payload))
            case IPProtocol.UDP:
                self._take_datagram(mac, source, destination, header.ttl, payload, packet)
            case IPProtocol.ICMP:
                message = icmp.parse(source, destination, payload)
                if message.type == IcmpType.ECHO:
                    self._take_echo(source, destination, header.ttl, message, packet)
                else:
                    self._count_icmp(4, message.type)
            case IPProtocol.IGMP:
                pass
            case _:
                self._drops["unknown IP protocol"] += 1

    def _take_ipv6(self, mac: bytes, packet: memoryview) -> None:
        header, payload = ipv6.parse(packet)
        source, destination = header.source, header.destination
        self._session.guest.learn_address(source)
        was_fragmented = header.is_fragment
        if was_fragmented:
            if self._are_fragments_off(header.protocol, destination):
                return
            whole = self.fragments.take(header, payload)
            if whole is None:
                return
            header, payload = whole
            packet = memoryview(ipv6.emit(header, len(payload)) + payload)
        if header.protocol == IPProtocol.UDP and self.responder.is_for_dhcpv6(destination, payload):
            self.responder.take_dhcpv6(mac, source, destination, payload)
            return
        match header.protocol:
            case IPProtocol.TCP:
                self._take_segment(source, destination, tcp.parse(source, destination, payload))
            case IPProtocol.UDP:
                self._take_datagram(mac, source, destination, header.hop_limit, payload, packet)
            case IPProtocol.ICMPV6:
                self._take_icmpv6(mac, header, payload, packet, was_fragmented=was_fragmented)
            case ipv6.NO_NEXT_HEADER:
                pass
            case _:
                self._drops["unknown IP protocol"] += 1

    def _take_icmpv6(
        self, mac: bytes, header: ipv6.IPv6Header, payload: memoryview, packet: memoryview, *, was_fragmented: bool
    ) -> None:
        message = icmp.parse(header.source, header.destination, payload)
        if message.type in _NEIGHBOUR_DISCOVERY:
            if was_fragmented:  # RFC 6980 section 5: it is how such messages are smuggled past filters
                raise MalformedPacket("neighbour discovery in fragments")
            self.responder.take_neighbour_discovery(mac, header, message)
        elif message.type == Icmpv6Type.ECHO_REQUEST:
            self._take_echo(header.source, header.destination, header.hop_limit, message, packet)
        elif message.type not in _QUIETLY_IGNORED:
            self._count_icmp(16, message.type)

    def _count_icmp(self, address_bytes: int, type_: int) -> None:
        """Messages that end here: an error of the guest's can't be told its peer, since no socket sends one."""
        is_error = icmp.is_error(address_bytes, type_)
        self._drops["icmp: the guest's own errors" if is_error else "icmp: not an echo request"] += 1

    def _take_segment(self, source: bytes, destination: bytes, segment: TcpSegment) -> None:
        key = FlowKey(source, segment.source_port, destination, segment.destination_port)
        flow = self.tcp.get(key)
        if flow is not None and segment.flags & tcp.SYN and flow.is_over:
            self.tcp.forget(flow)
            flow = None
        if flow is None:
            if self._is_off(IPProtocol.TCP) or segment.flags & tcp.RST:
                return
            endpoint = self._destination(key, 1)
            is_opening = segment.flags & (tcp.SYN | tcp.ACK | tcp.FIN) == tcp.SYN
            if endpoint is None:
                if is_opening and self._session.addresses.is_closed(destination):
                    self._refuse(key, segment)  # there is nobody
                return
            flow = TcpFlow.outbound(self._session, key, segment, endpoint) if is_opening else None
            if flow is None or not self.tcp.start(flow):
                self._refuse(key, segment)
            else:
                self._to_begin.append(flow)
        else:
            flow.deliver(segment)
            self._to_wake[flow] = None

    def _refuse(self, key: FlowKey, segment: TcpSegment) -> None:
        """Reset what belongs to no connection (RFC 9293 section 3.10.7.1); a full link does not get it."""
        ports = (key.remote_port, key.guest_port)
        if segment.flags & tcp.ACK:
            reset = TcpSegment(*ports, segment.ack, 0, tcp.RST, 0)
        else:
            ack = (segment.seq + segment.sequence_length) & 0xFFFFFFFF
            reset = TcpSegment(*ports, 0, ack, tcp.RST | tcp.ACK, 0)
        if not packets.send(
            self._session, key.remote, key.guest, IPProtocol.TCP, tcp.emit(key.remote, key.guest, reset)
        ):
            self._drops["link to the guest full"] += 1

    def _take_datagram(
        self, mac: bytes, source: bytes, destination: bytes, hop_limit: int, payload: memoryview, packet: memoryview
    ) -> None:
        """One that did not come in a plain packet of its own."""
        if hop_limit == 0:
            self._drops["hop limit 0"] += 1
            return
        header, data = udp.parse(source, destination, payload)
        ends = (source, header.source_port, destination, header.destination_port)
        self._take_datagrams(JoinedDatagrams(mac, ends, hop_limit, [data], packet, packet))

    def _take_datagrams(self, run: JoinedDatagrams) -> None:
        flow = self.udp.get(run.ends)
        if flow is None or flow.is_over or run.mac != self._session.guest.mac:
            if not self._has_family(run.ends[0]):
                self._drops["address family is off"] += len(run.payloads)
                return
            self._session.guest.learn_mac(run.mac)
            if flow is None or flow.is_over:
                flow = self._new_udp_flow(FlowKey(*run.ends), len(run.payloads))
                if flow is None:
                    return
        self._session.guest.learn_address(run.ends[0])
        flow.deliver(run)

    def _new_udp_flow(self, key: FlowKey, datagrams: int) -> UdpFlow | None:
        """For so many datagrams of the guest's, which are counted if there can be no flow for them."""
        if self._is_off(IPProtocol.UDP, datagrams):
            return None
        endpoint = self._destination(key, datagrams) if key.remote_port else None
        if endpoint is None:
            if not key.remote_port:
                self._drops["addresses of no flow"] += datagrams
            return None
        port = self._ports.udp_port(key.guest_port, endpoint.address)
        way = self._session.way_to(endpoint)
        flow: UdpFlow
        if port is not None and (way is None or goes_by(port, way)):
            flow = PortUdp(self._session, key, port, endpoint, self._clients, way=way)
        else:
            flow = OutboundUdp(self._session, key, endpoint, self._source_ports)
        if not self.udp.start(flow):
            self._drops["udp: limit of flows"] += datagrams
            return None
        if isinstance(flow, PortUdp):
            flow.register()
        return flow

    def _take_echo(
        self, source: bytes, destination: bytes, hop_limit: int, message: icmp.IcmpMessage, packet: memoryview
    ) -> None:
        echo = icmp.parse_echo(message)
        key = FlowKey(source, echo.identifier, destination, 0)
        flow = self.echo.get(key)
        if hop_limit == 0:
            self._drops["hop limit 0"] += 1
            return
        if flow is None or flow.is_over:
            endpoint = None if self._is_off(IPProtocol.ICMP) else self._destination(key, 1)
            if endpoint is None:
                return
            is_local = self._session.addresses.stands_for_host(key.remote)
            flow = EchoFlow(self._session, key, endpoint, is_local=is_local)
            if not self.echo.start(flow):
                self._drops["echo: limit of flows"] += 1
                return
        flow.deliver(EchoRequest(echo, hop_limit, packet))
        self._to_wake[flow] = None

    def _destination(self, key: FlowKey, packets: int) -> Endpoint | None:
        """Where a new flow of the guest goes on the host; `None` if one of its addresses can't be a flow's."""
        if self._session.addresses.is_for_neighbours(key.remote):
            self._drops["multicast or broadcast"] += packets
            return None
        endpoint = None
        if is_unicast(key.guest):
            endpoint = self._session.addresses.destination_on_host(key.remote, key.remote_port)
        if endpoint is None:
            self._drops["addresses of no flow"] += packets
        return endpoint

    # -- from forwarded ports -----------------------------------------------------------------------------------------

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        """A connection to a forwarded port becomes a flow towards the guest's port `target`."""
        for key in self._inbound_keys(peer, target):
            if self.tcp.get(key) is None:
                flow = TcpFlow.inbound(self._session, key, host)
                if not self.tcp.start(flow):
                    break
                self.responder.find_guest()
                flow.wake()
                return
        sockets.reset(host)

    def on_datagrams(
        self, port: UdpPort, peer: Endpoint, local: bytes, buffer: memoryview, trains: list[Train]
    ) -> None:
        """Datagrams to a forwarded port go to its client's flow, perhaps a new one."""
        flow: UdpFlow | None = self._clients.get((port.target, peer))
        if isinstance(flow, PortUdp) and not flow.is_over and self._is_where_the_guest_is(flow):
            flow.asked(port, local)
        else:
            flow = self._new_client_flow(port, peer, local, sum(train.datagrams for train in trains))
        if flow is not None:
            self.responder.find_guest()
            flow.deliver_from_host(buffer, trains)

    def _is_where_the_guest_is(self, flow: PortUdp) -> bool:
        """Whether the guest still has the address that the flow was begun with; it may have several."""
        return flow.has_spoken() or self._session.guest.address_towards(flow.key.remote) == flow.key.guest

    def _new_client_flow(self, port: UdpPort, peer: Endpoint, local: bytes, datagrams: int) -> UdpFlow | None:
        """For a client that has none by this port; or that of a guest that has spoken to it by a socket of its own.

        The datagrams are counted if there can be none.
        """
        reason = "udp: forwarded, but its family is off"
        for key in self._inbound_keys(peer, port.target):
            reason = "udp: forwarded, but no flow for it"
            former = self.udp.get(key)
            if former is None or former.is_over:
                flow = PortUdp(self._session, key, port, peer, self._clients, local)
                if self.udp.start(flow):
                    flow.register()
                    return flow
                reason = "udp: limit of flows"
                break
            if isinstance(former, OutboundUdp) and former.is_towards(peer) and key.remote == peer.address:
                return former
        self._drops[reason] += datagrams
        return None

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> None:
        """What was said about a datagram that left through a forwarded port goes to its flow, if it has one still."""
        flow = self._clients.get((port.target, error.destination)) if error.destination is not None else None
        if flow is not None and not flow.is_over:
            flow.deliver_error(error)

    def on_overflow(self, datagrams: int) -> None:
        """The kernel has dropped so many, since the receive buffer of a forwarded port was full."""
        if datagrams:
            self._drops["udp: receive buffer of the host full"] += datagrams

    @property
    def is_full(self) -> bool:
        """Whether the guest takes no datagrams now."""
        return self._session.link.is_full

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once when it does."""
        self._session.link.when_ready(callback)

    def _inbound_keys(self, peer: Endpoint, target: int) -> Iterator[FlowKey]:
        """The names that a flow which a host peer opens may have, the best first; none if its family is off.

        Several peers may have one address for the guest (all host-local ones have), and so one port there, too: the
        later one gets another.
        """
        remote = self._session.addresses.source_for_guest(peer.address)
        guest = self._session.guest.address_towards(remote) if remote else None
        if remote is None or guest is None:
            return
        yield FlowKey(guest, target, remote, peer.port)
        start = zlib.crc32(peer.address) + peer.port
        for number in range(start, start + OTHER_PORTS):
            yield FlowKey(guest, target, remote, 1024 + number % (65536 - 1024))


def _off(transports: Transports) -> dict[int, str]:
    """The IP protocols that are not translated, and why their packets are dropped."""
    known = (
        (IPProtocol.TCP, transports.tcp, "tcp is off"),
        (IPProtocol.UDP, transports.udp, "udp is off"),
        (IPProtocol.ICMP, transports.icmp, "icmp is off"),
        (IPProtocol.ICMPV6, transports.icmp, "icmp is off"),
    )
    return {protocol: reason for protocol, is_on, reason in known if not is_on}
