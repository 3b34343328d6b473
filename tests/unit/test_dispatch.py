"""A batch of frames: what goes where, and what goes nowhere, counted."""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from attrs import evolve
from harness.noise import noise
from harness.oracle import SeenFrame, SeenUdp
from harness.parts import fragments
from harness.stage import GUEST_MAC, V4, V6, Family, Stage, frame_of, network, on_stage, segment_packet
from harness.waiting import eventually
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_InfoRequest, DHCP6OptClientId
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from trio_passt.config import DnsForward
from trio_passt.host import sockets
from trio_passt.wire.tcp import ACK, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")

GUEST_MAC_TEXT = GUEST_MAC.hex(":")
LINK_LOCAL = "fe80::5054:ff:fe12:3456"

NOBODY, NEIGHBOURS = "addresses of no flow", "multicast or broadcast"
NEVER_REACHED_V4 = {
    **dict.fromkeys(["127.0.0.1", "127.1.2.3", "0.0.0.0", "240.0.0.1"], NOBODY),
    **dict.fromkeys(["224.0.0.251", "255.255.255.255", "198.51.100.255"], NEIGHBOURS),
}
NEVER_REACHED_V6 = {
    **dict.fromkeys(["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1"], NOBODY),
    **dict.fromkeys(["ff02::fb", "ff0e::1"], NEIGHBOURS),
}


def frame(*layers: Packet | bytes) -> bytes:
    """An Ethernet frame from the guest, put together by scapy."""
    packet = Ether(src=GUEST_MAC_TEXT, dst="9a:55:9a:55:9a:55")
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every address that a host socket is connected or sent to, none of which may be beyond loopback."""
    reached: list[str] = []
    known: list[socket.socket] = []
    connect, connect_tcp = socket.socket.connect, socket.socket.connect_ex

    def record(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            reached.append(address[0])
            assert ip_address(address[0]).is_loopback, f"a test connects to {address}"
        connect(sock, address)

    def record_tcp(sock: socket.socket, address: tuple[str, int]) -> int:
        if sock not in known:  # it is asked for once more whether it is there by now
            known.append(sock)
            reached.append(address[0])
            assert ip_address(address[0]).is_loopback, f"a test connects to {address}"
        return connect_tcp(sock, address)

    monkeypatch.setattr(socket.socket, "connect", record)
    monkeypatch.setattr(socket.socket, "connect_ex", record_tcp)
    yield reached
    monkeypatch.undo()


class TestNeverReached:
    @pytest.mark.parametrize(("destination", "reason"), NEVER_REACHED_V4.items())
    async def test_ipv4(self, guest: Stage, connections: list[str], destination: str, reason: str) -> None:
        ip = IP(src=V4.guest, dst=destination)
        guest.sends_frames(
            frame(ip, TCP(sport=1000, dport=80, flags="S")),
            frame(ip, UDP(sport=1000, dport=80), b"data"),
            frame(ip, ICMP(id=5), b"ping"),
        )
        await guest.expects_drop(reason, 3)
        await guest.expects_nothing()
        assert connections == []

    @pytest.mark.parametrize(("destination", "reason"), NEVER_REACHED_V6.items())
    async def test_ipv6(self, guest: Stage, connections: list[str], destination: str, reason: str) -> None:
        ip = IPv6(src=V6.guest, dst=destination)
        guest.sends_frames(
            frame(ip, TCP(sport=1000, dport=80, flags="S")),
            frame(ip, UDP(sport=1000, dport=80), b"data"),
            frame(ip, ICMPv6EchoRequest(id=5), b"ping"),
        )
        await guest.expects_drop(reason, 3)
        await guest.expects_nothing()
        assert connections == []

    @pytest.mark.parametrize("source", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
    async def test_no_flow_from_an_address_that_is_nobodys(
        self, guest: Stage, connections: list[str], source: str
    ) -> None:
        ip = IP(src=source, dst=V4.gateway)
        guest.sends_frames(
            frame(ip, TCP(sport=1000, dport=80, flags="S")),
            frame(ip, UDP(sport=1000, dport=80), b"data"),
        )
        await guest.expects_drop("addresses of no flow", 2)
        assert connections == []

    @pytest.mark.parametrize(("destination", "reason"), NEVER_REACHED_V4.items())
    async def test_resets_are_not_sent_from_there_either(self, guest: Stage, destination: str, reason: str) -> None:
        """RFC 1122 section 3.2.1.3: a group or broadcast address is never a source."""
        guest.sends_frames(frame(IP(src=V4.guest, dst=destination), TCP(sport=1000, dport=80, flags="A")))
        await guest.expects_drop(reason)
        await guest.expects_nothing()


class TestCounted:
    async def test_unknown_protocols(self, guest: Stage) -> None:
        guest.sends_frames(
            frame(IP(src=V4.guest, dst=V4.gateway, proto=132), b"sctp"),
            frame(IPv6(src=V6.guest, dst=V6.gateway, nh=132), b"sctp"),
        )
        await guest.expects_drop("unknown IP protocol", 2)
        guest.sends_frames(bytes(Ether(src=GUEST_MAC_TEXT, type=0x88CC) / b"lldp"))
        await guest.expects_drop("unknown EtherType")

    async def test_malformed_frames_cost_nobody_else(self, guest: Stage, family: Family) -> None:
        tcp, host = await guest.connected(family)
        good = frame_of(segment_packet(family, tcp.segment(ACK, b"good")))
        guest.sends_frames(
            good[:20], frame(IP(src=V4.guest, dst=V4.gateway, chksum=1), UDP()), good[:-1] + b"\xff", good
        )
        await guest.expects_drop("malformed", 3)
        await host.receives(b"good")

    async def test_icmp_that_is_not_for_us(self, guest: Stage) -> None:
        guest.sends_frames(
            frame(IP(src=V4.guest, dst=V4.gateway), ICMP(type=3, code=3), bytes(28)),
            frame(IPv6(src=V6.guest, dst=V6.gateway), ICMPv6DestUnreach(code=4), bytes(48)),
            frame(IP(src=V4.guest, dst=V4.gateway), ICMP(type=13), bytes(12)),
        )
        await guest.expects_drop("icmp: the guest's own errors", 2)
        await guest.expects_drop("icmp: not an echo request")

    async def test_group_management_is_ignored_without_noise(self, guest: Stage) -> None:
        guest.sends_frames(
            frame(IP(src=V4.guest, dst="224.0.0.22", proto=2), bytes(8)),
            frame(IPv6(src=LINK_LOCAL, dst="ff02::16", hlim=1), ICMPv6MLReport2()),
            frame(IPv6(src=LINK_LOCAL, dst="ff02::1", hlim=255), ICMPv6ND_NA(tgt=LINK_LOCAL)),
            frame(IPv6(src=LINK_LOCAL, dst=V6.gateway, nh=59), b"nothing"),
        )
        await guest.expects_nothing()
        assert not guest.session.drops

    @pytest.mark.parametrize(("off", "packet"), [(V4, IP), (V6, IPv6)])
    async def test_family_that_is_off(self, off: Family, packet: type[Packet], connections: list[str]) -> None:
        async with on_stage(network(ipv4=off is not V4, ipv6=off is not V6)) as guest:
            guest.sends_frames(
                frame(packet(src=off.guest, dst=off.gateway), TCP(sport=1000, dport=80, flags="S")),
                frame(packet(src=off.guest, dst=off.gateway), UDP(sport=1000, dport=80)),
            )
            await guest.expects_drop("address family is off", 2)
            await guest.expects_nothing()
            assert connections == []

    async def test_run_of_frames_of_a_family_that_is_off(self) -> None:
        async with on_stage(network(ipv6=False)) as guest:
            tcp = guest.tcp(V6, 80)
            tcp.sends_batch(*(tcp.segment(ACK, bytes(100)) for _ in range(20)))
            await guest.expects_drop("address family is off", 20)
            await guest.expects_nothing()


class TestServices:
    async def test_arp(self, guest: Stage) -> None:
        request = ARP(op="who-has", hwsrc=GUEST_MAC_TEXT, psrc=V4.guest, pdst=V4.gateway)
        guest.sends_frames(bytes(Ether(src=GUEST_MAC_TEXT, dst="ff:ff:ff:ff:ff:ff") / request))
        seen = await eventually(lambda: guest.look(lambda seen: isinstance(seen, SeenFrame)), "an ARP reply")
        assert isinstance(seen, SeenFrame)
        assert (seen.packet[ARP].op, seen.packet[ARP].psrc) == (2, V4.gateway)

    @pytest.mark.parametrize("destination", ["255.255.255.255", V4.gateway])
    async def test_dhcp(self, guest: Stage, destination: str) -> None:
        discover = BOOTP(chaddr=GUEST_MAC, xid=7) / DHCP(options=[("message-type", "discover"), "end"])
        guest.sends_frames(frame(IP(src="0.0.0.0", dst=destination), UDP(sport=68, dport=67), discover))
        seen = await guest.expects_datagram()
        assert (seen.source, seen.source_port, seen.destination_port) == (V4.gateway, 67, 68)
        assert BOOTP(seen.payload).yiaddr == V4.guest

    async def test_port_of_a_dhcp_server_elsewhere_is_a_port_like_others(
        self, guest: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []

        def refuse(peer: object, *_arguments: object) -> tuple[socket.socket, bool]:
            asked.append(peer)
            raise OSError(99, "no address in tests")

        monkeypatch.setattr(sockets, "open_udp", refuse)
        guest.sends_datagram(V4, 68, 67, b"renew", remote="203.0.113.67")
        guest.sends_datagram(V6, 546, 547, b"renew", remote="2001:db8::547")
        await guest.settles()
        assert sorted(map(str, asked)) == ["203.0.113.67:67", "[2001:db8::547]:547"]
        await guest.expects_nothing()

    async def test_dhcpv6(self, guest: Stage) -> None:
        request = DHCP6_InfoRequest(trid=7) / DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC_TEXT))
        guest.sends_frames(frame(IPv6(src=LINK_LOCAL, dst="ff02::1:2"), UDP(sport=546, dport=547), request))
        seen = await guest.expects_datagram()
        assert isinstance(seen, SeenUdp)
        assert (seen.destination, seen.source_port, seen.destination_port) == (LINK_LOCAL, 547, 546)
        assert seen.payload[0] == 7

    async def test_neighbour_and_router_solicitations(self, guest: Stage) -> None:
        guest.sends_frames(
            frame(IPv6(src=LINK_LOCAL, dst="ff02::1:ff00:1", hlim=255), ICMPv6ND_NS(tgt=V6.gateway)),
            frame(IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255), ICMPv6ND_RS()),
        )
        assert (await guest.expects_other()).packet.haslayer("ICMPv6ND_NA")
        assert (await guest.expects_other()).packet.haslayer("ICMPv6ND_RA")

    async def test_neighbour_discovery_in_fragments_is_not_answered(self, guest: Stage) -> None:
        """RFC 6980 section 5."""
        options = b"".join(bytes(ICMPv6NDOptMTU()) for _ in range(200))
        solicitation = IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS() / Raw(options)
        guest.sends_packets(*fragments(bytes(solicitation), 1280, 1))
        await guest.expects_drop("malformed")
        await guest.expects_nothing()

    async def test_malformed_request_of_a_service(self, guest: Stage) -> None:
        guest.sends_frames(frame(IP(src="0.0.0.0", dst="255.255.255.255"), UDP(sport=68, dport=67), b"too short"))
        await guest.expects_drop("malformed")


class TestNameservers:
    """127.0.0.53 of a host's resolv.conf is told the guest as the gateway's address."""

    FORWARDS = (DnsForward(IPv4Address(V4.gateway), IPv4Address("127.0.0.53")),)

    async def test_udp_and_tcp(self, connections: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        async with on_stage(network(dns_forwards=self.FORWARDS)) as guest:
            for port in (53, 853, 80):
                guest.tcp(V4, port).sends(SYN)
                guest.sends_datagram(V4, 1000, port, b"query")
            await eventually(lambda: True if len(connections) == 6 else None, "six connections")
            assert sorted(connections) == ["127.0.0.1"] * 2 + ["127.0.0.53"] * 4


class TestLearning:
    async def test_replies_go_to_the_mac_that_asked(self, guest: Stage) -> None:
        other = "52:54:00:99:99:99"
        guest.session.guest.mac = b"\xff" * 6
        solicitation = IPv6(src=LINK_LOCAL, dst=V6.gateway) / TCP(sport=1, dport=80, flags="A")
        guest.sends_frames(bytes(Ether(src=other, dst="9a:55:9a:55:9a:55") / solicitation))
        await eventually(lambda: True if guest.session.guest.is_known else None, "the guest's MAC")
        (sent,) = await eventually(lambda: guest.link.take_sent() or None, "a reset")
        assert sent[:6] == bytes.fromhex(other.replace(":", ""))

    async def test_connection_follows_the_guests_mac(self, guest: Stage) -> None:
        tcp, host = await guest.connected()
        other = bytes.fromhex("525400999999")
        packet = segment_packet(V4, tcp.segment(ACK))
        guest.sends_frames(b"\x9a\x55\x9a\x55\x9a\x55" + other + b"\x08\0" + packet)
        await guest.settles()
        host.sends(b"where are you?")
        (sent,) = await eventually(lambda: guest.link.take_sent() or None, "data")
        assert sent[:6] == other

    async def test_dhcp_request_from_nowhere_teaches_no_address(self, guest: Stage) -> None:
        discover = BOOTP(chaddr=GUEST_MAC) / DHCP(options=[("message-type", "discover"), "end"])
        guest.sends_frames(frame(IP(src="0.0.0.0", dst="255.255.255.255"), UDP(sport=68, dport=67), discover))
        await guest.expects_datagram()
        remote = ip_address("192.0.2.9").packed
        assert guest.session.guest.address_towards(remote) == ip_address(V4.guest).packed


class TestRuns:
    """Runs of one connection's frames are taken as one segment; nothing else may differ."""

    async def test_data(self, guest: Stage, family: Family) -> None:
        tcp, host = await guest.connected(family)
        data = noise(50_000)
        tcp.sends_batch(*(tcp.segment(ACK, data[at : at + 1000]) for at in range(0, 50_000, 1000)))
        await tcp.expects(ACK)
        await host.receives(data)

    async def test_of_two_connections_in_turns(self, guest: Stage) -> None:
        ends = [await guest.connected() for _ in range(2)]
        data = noise(20_000)
        guest.sends_frames(
            *(
                frame_of(segment_packet(V4, tcp.segment(ACK, data[at : at + 1000])))
                for start in range(0, 20_000, 5000)
                for tcp, _ in ends
                for at in range(start, start + 5000, 1000)
            )
        )
        for tcp, host in ends:
            await tcp.expects(ACK)
            await host.receives(data)

    async def test_duplicate_acknowledgements_count_each(self, guest: Stage) -> None:
        tcp, host = await guest.connected(mss=1000)
        start = tcp.expected
        host.sends(noise(3000))
        for at in (0, 1000, 2000):
            await tcp.expects(ACK, noise(3000)[at : at + 1000])
        tcp.sends_batch(*(tcp.segment(ACK, ack=start) for _ in range(10)))
        await tcp.expects(ACK, noise(3000)[:1000], seq=start)
        await tcp.expects_nothing()

    async def test_of_no_connection(self, guest: Stage) -> None:
        tcp = guest.tcp(V4, 80)
        tcp.sends_batch(*(tcp.segment(ACK, bytes(100), ack=77) for _ in range(20)))
        assert (await tcp.arrives()).seq == 77


async def test_connection_to_nobody_in_a_closed_network_is_refused() -> None:
    """And not sent to whoever has that address where the host is."""
    closed = evolve(network(), closed=(IPv4Network("198.51.100.0/24"),))
    async with on_stage(closed) as guest:
        tcp = guest.tcp(V4, 80, remote="198.51.100.9")
        tcp.sends(SYN)
        assert (await guest.expects_segment()).segment.flags & RST
        await guest.expects_drop(NOBODY)
        assert not len(guest.dispatcher.tcp)


async def test_flow_limit_of_one_protocol_is_not_another_ones() -> None:
    """Anybody may open UDP flows, which end only by silence: the guest's connections must not suffer from it."""
    async with on_stage(flow_limit=1) as guest:
        host, server = guest.host_udp(V4), guest.host_serves(V4)
        guest.sends_datagram(V4, 1000, host.getsockname()[1], b"first")
        await eventually(lambda: True if len(guest.dispatcher.udp) else None, "a flow")
        guest.sends_datagram(V4, 1001, host.getsockname()[1], b"second")
        await guest.settles()
        assert [flow.key.guest_port for flow in guest.dispatcher.udp] == [1001]
        tcp = guest.tcp(V4, server.port)
        tcp.sends(SYN)
        await tcp.expects(SYN | ACK)
        guest.tcp(V4, server.port).sends(SYN)
        assert (await guest.expects_segment()).segment.flags & RST
