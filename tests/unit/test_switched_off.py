"""What the operator has switched off: transports, and what is answered at the link.  Counted, and nothing is said."""

from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any

import pytest
from attrs import evolve
from harness.parts import fragments
from harness.stage import GUEST_MAC, V4, V6, Family, Stage, frame_of, network, on_stage, segment_packet
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_InfoRequest, DHCP6OptClientId
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from trio_passt.config import GuestNetwork, Services, Transports
from trio_passt.host import sockets
from trio_passt.wire.tcp import ACK, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")

MAC = GUEST_MAC.hex(":")
LINK_LOCAL = "fe80::5054:ff:fe12:3456"
BROADCAST = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the guest's is worth a socket here."""
    for name in ("start_tcp_connection", "open_udp", "open_ping"):
        monkeypatch.setattr(sockets, name, None)


def without(**off: Any) -> GuestNetwork:
    """The usual network, with these transports or services off."""
    return evolve(network(), **off)


def frame(*layers: Packet | bytes, to: str = "9a:55:9a:55:9a:55") -> bytes:
    packet = Ether(src=MAC, dst=to)
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def ip(family: Family) -> Packet:
    return (IP if family is V4 else IPv6)(src=family.guest, dst=family.gateway)


def echo(family: Family, data: bytes = b"ping") -> Packet:
    return (ICMP(id=5) if family is V4 else ICMPv6EchoRequest(id=5)) / Raw(data)


class TestTransports:
    @pytest.mark.parametrize("flags", ["S", "A", "R", "F", "SA"])
    async def test_tcp(self, family: Family, flags: str) -> None:
        async with on_stage(without(transports=Transports(tcp=False))) as guest:
            guest.sends_frames(frame(ip(family), TCP(sport=1000, dport=80, flags=flags)))
            await guest.expects_drop("tcp is off")
            await guest.expects_nothing()

    async def test_run_of_tcp_counts_each(self, family: Family) -> None:
        async with on_stage(without(transports=Transports(tcp=False))) as guest:
            tcp = guest.tcp(family, 80)
            tcp.sends_batch(*(tcp.segment(ACK, bytes(100)) for _ in range(20)), tcp.segment(SYN))
            await guest.expects_drop("tcp is off", 21)
            await guest.expects_nothing()

    async def test_datagrams(self, family: Family) -> None:
        async with on_stage(without(transports=Transports(udp=False))) as guest:
            guest.sends_frames(*(frame(ip(family), UDP(sport=1000, dport=9000), b"data") for _ in range(20)))
            guest.sends_frames(frame(ip(family), UDP(sport=1000, dport=53), b"alone"))
            await guest.expects_drop("udp is off", 21)
            await guest.expects_nothing()

    async def test_echo(self, family: Family) -> None:
        async with on_stage(without(transports=Transports(icmp=False))) as guest:
            guest.sends_frames(frame(ip(family), echo(family)))
            await guest.expects_drop("icmp is off")
            await guest.expects_nothing()

    @pytest.mark.parametrize(
        ("transports", "reason", "make"),
        [
            (Transports(tcp=False), "tcp is off", lambda _family: TCP(sport=1, dport=2) / Raw(bytes(3000))),
            (Transports(udp=False), "udp is off", lambda _family: UDP(sport=1, dport=2) / Raw(bytes(3000))),
            (Transports(icmp=False), "icmp is off", lambda family: echo(family, bytes(3000))),
        ],
        ids=["tcp", "udp", "icmp"],
    )
    async def test_fragments_are_not_kept(
        self, family: Family, transports: Transports, reason: str, make: Callable[[Family], Packet]
    ) -> None:
        """So it is not told either that a part is missing."""
        async with on_stage(without(transports=transports)) as guest:
            first, *others = fragments(bytes(ip(family) / make(family)), 1280, 1)
            guest.sends_packets(first, *others[:-1])
            await guest.expects_drop(reason, len(others))
            await guest.passes(90)
            await guest.expects_nothing()

    async def test_fragments_may_be_dhcps(self) -> None:
        async with on_stage(without(transports=Transports(udp=False))) as guest:
            whole = Ether(bytes(discover()))
            guest.sends_packets(*fragments(bytes(whole[IP]), 276, 1))
            await guest.settles()
            assert [Ether(sent).haslayer(DHCP) for sent in guest.link.take_sent()] == [True]
            assert not guest.session.drops

    async def test_services_are_there_all_the_same(self) -> None:
        async with on_stage(without(transports=Transports(tcp=False, udp=False, icmp=False))) as guest:
            guest.sends_frames(discover(), inform(), solicit_neighbour(), solicit_router())
            await guest.settles()
            kinds = [Ether(sent) for sent in guest.link.take_sent()]
            assert [packet.haslayer(DHCP) for packet in kinds[:1]] == [True]
            assert kinds[1][UDP].sport == 547
            assert kinds[2].haslayer(ICMPv6ND_NA)
            assert kinds[3].haslayer(ICMPv6ND_RA)
            assert not guest.session.drops

    async def test_others_are_not_off(self, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        async with on_stage(without(transports=Transports(udp=False, icmp=False))) as guest:
            tcp, host = await guest.connected(family)
            guest.sends_frames(frame_of(segment_packet(family, tcp.segment(ACK, b"data"))))
            await host.receives(b"data")
            assert not guest.session.drops


def discover(to: str = "255.255.255.255") -> bytes:
    message = BOOTP(chaddr=GUEST_MAC) / DHCP(options=[("message-type", "discover"), "end"])
    return frame(IP(src="0.0.0.0", dst=to), UDP(sport=68, dport=67), message)


def inform(to: str = "ff02::1:2") -> bytes:
    message = DHCP6_InfoRequest(trid=7) / DHCP6OptClientId(duid=DUID_LL(lladdr=MAC))
    return frame(IPv6(src=LINK_LOCAL, dst=to), UDP(sport=546, dport=547), message)


def solicit_neighbour(source: str = LINK_LOCAL, target: str = V6.gateway) -> bytes:
    group = f"ff02::1:ff00:{int(ip_address(target)) & 0xFFFF:x}"
    return frame(IPv6(src=source, dst=group, hlim=255), ICMPv6ND_NS(tgt=target))


def solicit_router() -> bytes:
    return frame(IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255), ICMPv6ND_RS())


def who_has(asked: str = V4.gateway) -> bytes:
    return frame(ARP(op=1, hwsrc=MAC, psrc=V4.guest, pdst=asked), to=BROADCAST)


class TestServices:
    @pytest.mark.parametrize("to", ["255.255.255.255", V4.gateway])
    async def test_dhcp(self, to: str) -> None:
        async with on_stage(without(services=Services(dhcp=False))) as guest:
            guest.sends_frames(discover(to))
            await guest.expects_drop("dhcp is off")
            await guest.expects_nothing()
            assert len(guest.dispatcher.udp) == 0

    @pytest.mark.parametrize("to", ["ff02::1:2", V6.gateway])
    async def test_dhcpv6(self, to: str) -> None:
        async with on_stage(without(services=Services(dhcpv6=False))) as guest:
            guest.sends_frames(inform(to))
            await guest.expects_drop("dhcpv6 is off")
            await guest.expects_nothing()
            assert len(guest.dispatcher.udp) == 0

    async def test_neighbour_discovery(self) -> None:
        """Not even for who asks whether an address is free; ARP is another matter."""
        async with on_stage(without(services=Services(ndp=False))) as guest:
            guest.sends_frames(solicit_neighbour(), solicit_neighbour("::", V6.gateway), solicit_router())
            await guest.expects_drop("neighbour discovery is off", 3)
            guest.dispatcher.responder.advertise_router()
            guest.dispatcher.responder.farewell()
            await guest.expects_nothing()
            guest.sends_frames(who_has())
            await guest.settles()
            assert [Ether(sent)[ARP].psrc for sent in guest.link.take_sent()] == [V4.gateway]

    async def test_router_advertisements(self) -> None:
        async with on_stage(without(services=Services(router_advertisements=False))) as guest:
            guest.sends_frames(solicit_router())
            await guest.expects_drop("router advertisements are off")
            responder = guest.dispatcher.responder
            responder.advertise_router()
            responder.farewell()
            responder.change(evolve(guest.session.network, mtu_bytes=1400))
            await guest.expects_nothing()
            guest.sends_frames(solicit_neighbour())
            await guest.settles()
            (sent,) = guest.link.take_sent()
            assert Ether(sent)[ICMPv6ND_NA].R == 1

    async def test_advertisements_do_not_promise_dhcpv6_that_is_off(self) -> None:
        """RFC 4861 section 4.2: flags M and O."""
        for dhcpv6 in (True, False):
            async with on_stage(without(services=Services(dhcpv6=dhcpv6))) as guest:
                guest.sends_frames(solicit_router())
                await guest.settles()
                (sent,) = guest.link.take_sent()
                router = Ether(sent)[ICMPv6ND_RA]
                assert (dhcpv6, dhcpv6) == (router.M, router.O)

    @pytest.mark.parametrize(
        ("ipv4", "ndp", "asked"),
        [(True, True, ["ARP", "NS"]), (True, False, ["ARP"]), (False, True, ["NS"]), (False, False, ["NS"])],
    )
    async def test_guest_is_found_all_the_same(self, ipv4: bool, ndp: bool, asked: list[str]) -> None:
        """By ARP; if it has no IPv4, there is nothing else to ask it by."""
        async with on_stage(evolve(network(ipv4=ipv4), services=Services(ndp=ndp))) as guest:
            await looked_for(guest)
            sent = [Ether(frame) for frame in guest.link.take_sent()]
            assert ["ARP" if packet.haslayer(ARP) else "NS" for packet in sent] == asked


async def looked_for(guest: Stage) -> None:
    """By somebody who has something for it, before it has spoken."""
    guest.session.guest.mac = b"\xff" * 6
    guest.dispatcher.responder.find_guest()
    await guest.settles()


async def test_every_frame_is_from_the_mac_that_was_wished_for(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--mac-addr`: services, flows, and what we ask."""
    monkeypatch.undo()
    mac = bytes.fromhex("525400aabbcc")
    async with on_stage(without(host_mac=mac)) as guest:
        host = guest.host_udp(family)
        guest.sends_datagram(family, 1000, host.getsockname()[1], b"data")
        tcp = guest.tcp(family, guest.host_refuses(family))
        tcp.sends(SYN)
        guest.sends_frames(who_has(), discover(), inform(), solicit_neighbour(), solicit_router())
        await guest.settles()
        _, peer = host.recvfrom(10)
        host.sendto(b"answer", peer)
        await guest.settles()
        guest.dispatcher.responder.advertise_router()
        await looked_for(guest)
        sent = guest.link.take_sent()
        assert len(sent) == 10
        assert {frame[6:12] for frame in sent} == {mac}
        packets = [Ether(frame) for frame in sent]
        assert next(packet for packet in packets if packet.haslayer(ARP))[ARP].hwsrc == mac.hex(":")
        assert [bytes(packet).count(mac) for packet in packets if packet.haslayer(ICMPv6ND_RA)] == [2, 2]
        (dhcpv6,) = [packet for packet in packets if packet.haslayer(UDP) and packet[UDP].sport == 547]
        assert b"\0\x02\0\x0a\0\x03\0\x01" + mac in bytes(dhcpv6), "the server's DUID"


class TestSeveralAddresses:
    """All of them are the guest's own."""

    def several(self) -> GuestNetwork:
        told = network()
        assert told.ipv4 is not None
        assert told.ipv6 is not None
        ipv4 = evolve(told.ipv4, others=(IPv4Interface("203.0.113.7/28"),))
        return evolve(told, ipv4=ipv4, ipv6=evolve(told.ipv6, others=(IPv6Interface("2001:db8:7::7/64"),)))

    async def test_nobody_else_has_them(self) -> None:
        async with on_stage(self.several()) as guest:
            guest.sends_frames(who_has("203.0.113.7"), solicit_neighbour(target="2001:db8:7::7"))
            await guest.expects_nothing()
            assert not guest.session.drops
            guest.sends_frames(who_has("203.0.113.8"), solicit_neighbour(target="2001:db8:7::8"))
            await guest.settles()
            assert len(guest.link.take_sent()) == 2

    async def test_guest_is_looked_for_at_each(self) -> None:
        async with on_stage(self.several()) as guest:
            await looked_for(guest)
            packets = [Ether(sent) for sent in guest.link.take_sent()]
            assert [packet[ARP].pdst for packet in packets[:2]] == [V4.guest, "203.0.113.7"]
            assert [packet[ICMPv6ND_NS].tgt for packet in packets[2:]] == [V6.guest, "2001:db8:7::7"]
            assert [packet[IPv6].dst for packet in packets[2:]] == ["ff02::1:ff00:5", "ff02::1:ff00:7"]
