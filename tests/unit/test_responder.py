"""Who answers at the link: which packets are for the services, what an answer says about the guest, a link that is
full, and what is said unasked.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import evolve
from harness.oracle import SeenOther
from harness.stage import GUEST_MAC, V4, V6, Family, Stage, network, on_stage
from harness.waiting import eventually
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from trio_passt.config import DnsForward, Former, GuestIPv4, GuestIPv6, GuestNetwork, Resolvers
from trio_passt.responder import WAITING_REPLIES

pytestmark = pytest.mark.usefixtures("standing_clock")

MAC = GUEST_MAC.hex(":")
LINK_LOCAL = "fe80::5054:ff:fe12:3456"
BROADCAST = "ff:ff:ff:ff:ff:ff"
ELSEWHERE_4, ELSEWHERE_6 = (ip_address(text).packed for text in ("192.0.2.9", "2001:db8::9"))

BEFORE = network()
NOW_4 = GuestIPv4(IPv4Address("203.0.113.7"), 24, IPv4Address("203.0.113.1"), "eth1")
NOW_6 = GuestIPv6(IPv6Address("2001:db8:7::7"), 64, IPv6Address("fe80::7"), "eth1")


def changed(*, on_host: bool = False, former: bool = True) -> GuestNetwork:
    """The network after `BEFORE`; `on_host`: the addresses of before are the host's still."""
    guests = [guest for guest in (BEFORE.ipv4, BEFORE.ipv6) if guest]
    return GuestNetwork(NOW_4, NOW_6, former=tuple(Former(guest, on_host) for guest in guests) if former else ())


def frame(*layers: Packet | bytes, to: str = "9a:55:9a:55:9a:55") -> bytes:
    """An Ethernet frame from the guest, put together by scapy."""
    packet = Ether(src=MAC, dst=to)
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def where(guest: Stage) -> tuple[str, str]:
    """The addresses that packets are sent to."""
    found = (guest.session.guest.address_towards(remote) for remote in (ELSEWHERE_4, ELSEWHERE_6))
    ipv4, ipv6 = (str(ip_address(address)) if address is not None else "nowhere" for address in found)
    return ipv4, ipv6


# -- ARP ---------------------------------------------------------------------------------------------------------------


def arp(sender: str, asked: str, *, op: int = 1, mac: str = MAC) -> bytes:
    return frame(ARP(op=op, hwsrc=mac, psrc=sender, pdst=asked), to=BROADCAST)


class TestArp:
    @pytest.mark.parametrize(
        ("sender", "asked", "op"),
        [("198.51.100.77", V4.gateway, 1), ("198.51.100.77", "198.51.100.77", 1), ("198.51.100.77", V4.gateway, 2)],
        ids=["request", "announcement", "reply"],
    )
    async def test_who_speaks_has_the_address(self, guest: Stage, sender: str, asked: str, op: int) -> None:
        """Before any packet comes from there: a server in the guest may never send one by itself."""
        guest.sends_frames(arp(sender, asked, op=op))
        await guest.settles()
        assert where(guest)[0] == sender

    @pytest.mark.parametrize(
        ("sender", "mac"), [("0.0.0.0", MAC), (V4.gateway, MAC), ("127.0.0.1", MAC), ("198.51.100.77", BROADCAST)]
    )
    async def test_probes_and_what_is_nobodys_teach_nothing(self, guest: Stage, sender: str, mac: str) -> None:
        guest.sends_frames(arp(sender, "198.51.100.77", mac=mac))
        await guest.settles()
        assert where(guest)[0] == V4.guest

    async def test_without_ipv4_it_says_nothing(self) -> None:
        async with on_stage(network(ipv4=False)) as guest:
            guest.sends_frames(arp("198.51.100.77", V4.gateway))
            await guest.expects_nothing()
            assert where(guest)[0] == "nowhere"

    async def test_after_a_change_each_gateway_is_answered_for(self, guest: Stage) -> None:
        guest.dispatcher.responder.change(evolve(changed(), ipv6=None))
        guest.forgets()
        guest.sends_frames(arp(V4.guest, V4.gateway), arp(V4.guest, str(NOW_4.gateway)))
        await guest.settles()
        assert [Ether(sent)[ARP].psrc for sent in guest.link.take_sent()] == [V4.gateway, str(NOW_4.gateway)]

    async def test_malformed(self, guest: Stage) -> None:
        guest.sends_frames(arp(V4.guest, V4.gateway)[:30])
        await guest.expects_drop("malformed")


# -- DHCP --------------------------------------------------------------------------------------------------------------


def dhcp(kind: str | None, *options: tuple[str, object], to: str = "255.255.255.255", source: str = "0.0.0.0") -> bytes:
    types = [("message-type", kind)] if kind else []
    message = BOOTP(chaddr=GUEST_MAC, xid=7, ciaddr=source) / DHCP(options=[*types, *options, "end"])
    return frame(IP(src=source, dst=to), UDP(sport=68, dport=67), message)


async def answered(guest: Stage) -> tuple[str, str, str]:
    """The kind of the next DHCP reply, the address it gives, and who it is from."""
    seen = await guest.expects_datagram()
    reply = BOOTP(seen.payload)
    kinds = {2: "OFFER", 5: "ACK", 6: "NAK"}
    options = dict(option for option in reply[DHCP].options if isinstance(option, tuple))
    return kinds.get(options.get("message-type", 0), "BOOTP"), reply.yiaddr, seen.source


@pytest.fixture
async def moved(guest: Stage) -> Stage:
    """A guest whose host's network has changed, and who has not heard of it by DHCP; its host has one address."""
    guest.dispatcher.responder.change(changed())
    guest.forgets()
    return guest


class TestDhcp:
    @pytest.mark.parametrize("to", ["255.255.255.255", V4.gateway])
    async def test_is_for_the_server_at_its_address_and_at_everybodys(self, guest: Stage, to: str) -> None:
        guest.sends_frames(dhcp("discover", to=to))
        assert await answered(guest) == ("OFFER", V4.guest, V4.gateway)

    @pytest.mark.parametrize(
        ("message", "reply"),
        [
            (dhcp("request", ("requested_addr", str(NOW_4.address))), ("ACK", str(NOW_4.address), str(NOW_4.gateway))),
            (dhcp("discover", ("rapid_commit", b"")), ("ACK", str(NOW_4.address), str(NOW_4.gateway))),
            (dhcp(None), ("BOOTP", str(NOW_4.address), str(NOW_4.gateway))),
        ],
        ids=["request", "rapid commit", "BOOTP"],
    )
    async def test_guest_is_where_it_was_told_to_be(
        self, moved: Stage, message: bytes, reply: tuple[str, str, str]
    ) -> None:
        """At once: nothing may come from there by itself.  And what was before is of no use any more."""
        moved.sends_frames(message)
        assert await answered(moved) == reply
        assert where(moved)[0] == str(NOW_4.address)
        assert moved.session.network == evolve(changed(), former=changed().former[1:])
        old_gateway = ip_address(V4.gateway).packed
        endpoint = moved.session.addresses.destination_on_host(old_gateway, 80)
        assert endpoint is not None
        assert endpoint.address == old_gateway  # another host's

    @pytest.mark.parametrize(
        ("message", "kind"),
        [
            (dhcp("discover"), "OFFER"),
            (dhcp("inform", source=str(NOW_4.address)), "ACK"),
            (dhcp("request", ("requested_addr", "198.51.100.99")), "NAK"),
            (dhcp("request", source=V4.guest, to=V4.gateway), "NAK"),
        ],
        ids=["offer", "inform", "another address", "former address"],
    )
    async def test_answers_that_give_no_address(self, moved: Stage, message: bytes, kind: str) -> None:
        moved.sends_frames(message)
        assert (await answered(moved))[0] == kind
        assert where(moved)[0] == V4.guest
        assert moved.session.network == changed()

    @pytest.mark.parametrize("kind", ["release", "decline"])
    async def test_silence(self, moved: Stage, kind: str) -> None:
        moved.sends_frames(dhcp(kind, source=V4.guest, to=str(NOW_4.gateway)))
        await moved.expects_nothing()
        assert moved.session.network == changed()

    async def test_former_address_that_the_host_has_still(self, guest: Stage) -> None:
        """It is renewed where the guest has it from, and what was before remains known."""
        guest.dispatcher.responder.change(changed(on_host=True))
        guest.forgets()
        guest.session.guest.learn_address(ip_address("198.51.100.99").packed)
        guest.sends_frames(dhcp("request", source=V4.guest, to=V4.gateway))
        assert await answered(guest) == ("ACK", V4.guest, V4.gateway)
        assert where(guest)[0] == V4.guest
        assert guest.session.network == changed(on_host=True)

    async def test_renewal_of_a_former_address_is_refused_by_the_server_that_it_is_from(self, moved: Stage) -> None:
        moved.sends_frames(dhcp("request", source=V4.guest, to=V4.gateway))
        assert await answered(moved) == ("NAK", "0.0.0.0", V4.gateway)

    async def test_former_server_that_is_forgotten_is_an_address_like_others(self, moved: Stage) -> None:
        moved.sends_frames(dhcp("request", ("requested_addr", str(NOW_4.address))))
        await answered(moved)
        responder = moved.dispatcher.responder
        to_server = memoryview(bytes.fromhex("00440043 00080000"))
        assert responder.is_for_dhcp(NOW_4.gateway.packed, to_server)
        assert responder.is_for_dhcp(b"\xff" * 4, to_server)
        assert not responder.is_for_dhcp(ip_address(V4.gateway).packed, to_server)

    async def test_what_it_has_asked_anew_since_stays_forgotten_at_the_next_change(self, moved: Stage) -> None:
        """A real host may have the former gateway's address; but what is told again may be former again."""
        responder = moved.dispatcher.responder
        then = evolve(changed(), former_dns_forwards=(forward(V4.gateway, "127.0.0.53"),))
        responder.change(then)
        moved.sends_frames(dhcp("request", ("requested_addr", str(NOW_4.address))))
        await answered(moved)
        responder.change(evolve(then, resolvers=Resolvers(search=("example.com",))))
        assert (moved.session.network.former, moved.session.network.former_dns_forwards) == (then.former[1:], ())
        responder.change(network(dns_forwards=then.former_dns_forwards))
        responder.change(then)
        assert moved.session.network == then

    async def test_only_its_port_and_its_addresses(self, guest: Stage) -> None:
        responder = guest.dispatcher.responder
        for port, address, expected in (
            (67, "255.255.255.255", True),
            (67, V4.gateway, True),
            (67, "203.0.113.67", False),
            (68, V4.gateway, False),
            (547, "255.255.255.255", False),
        ):
            datagram = memoryview((68).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(4))
            assert responder.is_for_dhcp(ip_address(address).packed, datagram) is expected, (port, address)

    async def test_guest_of_which_nothing_is_former(self, guest: Stage) -> None:
        before, addresses = guest.session.network, guest.session.addresses
        guest.sends_frames(dhcp("request", ("requested_addr", V4.guest)))
        assert await answered(guest) == ("ACK", V4.guest, V4.gateway)
        assert guest.session.network is before
        assert guest.session.addresses is addresses

    async def test_nameservers_of_before_are_forgotten_too(self, moved: Stage) -> None:
        told = evolve(changed(former=False), former_dns_forwards=(forward(V4.gateway, "127.0.0.53"),))
        moved.session.change(told)
        moved.sends_frames(dhcp("request", ("requested_addr", str(NOW_4.address))))
        await answered(moved)
        assert moved.session.network == changed(former=False)


def forward(seen_by_guest: str, on_host: str) -> DnsForward:
    return DnsForward(ip_address(seen_by_guest), ip_address(on_host))


# -- DHCPv6 ------------------------------------------------------------------------------------------------------------

CLIENT = DHCP6OptClientId(duid=DUID_LL(lladdr=MAC))
SERVER = DHCP6OptServerId(duid=DUID_LL(lladdr="9a:55:9a:55:9a:55"))


def dhcpv6(message: Packet, *, to: str = "ff02::1:2") -> bytes:
    return frame(IPv6(src=LINK_LOCAL, dst=to), UDP(sport=546, dport=547), message)


class TestDhcpv6:
    async def test_to_the_group(self, guest: Stage) -> None:
        guest.sends_frames(dhcpv6(DHCP6_Solicit(trid=7) / CLIENT / DHCP6OptIA_NA(iaid=1)))
        seen = await guest.expects_datagram()
        assert (seen.source, seen.destination, seen.payload[0]) == (V6.gateway, LINK_LOCAL, 2)

    @pytest.mark.parametrize("server", [str(NOW_6.gateway), V6.gateway], ids=["of now", "of before"])
    async def test_to_the_server_itself_is_told_to_use_the_group(self, moved: Stage, server: str) -> None:
        """RFC 8415 section 18.4; a guest may have had another server before the change."""
        moved.sends_frames(dhcpv6(DHCP6_Renew(trid=7) / CLIENT / SERVER / DHCP6OptIA_NA(iaid=1), to=server))
        seen = await moved.expects_datagram()
        reply = DHCP6_Reply(seen.payload)
        assert reply[DHCP6OptStatusCode].statuscode == 5
        assert not reply.haslayer(DHCP6OptIA_NA)

    async def test_only_its_port_and_its_addresses(self, guest: Stage) -> None:
        responder = guest.dispatcher.responder
        for port, address, expected in (
            (547, V6.gateway, True),
            (547, "ff02::1:2", True),
            (547, "ff05::1:3", True),
            (547, "2001:db8::547", False),
            (546, V6.gateway, False),
            (67, V6.gateway, False),
        ):
            datagram = memoryview((546).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(4))
            assert responder.is_for_dhcpv6(ip_address(address).packed, datagram) is expected, (port, address)

    async def test_malformed(self, guest: Stage) -> None:
        guest.sends_frames(frame(IPv6(src=LINK_LOCAL, dst="ff02::1:2"), UDP(sport=546, dport=547), b"\x01"))
        await guest.expects_drop("malformed")


# -- a link that is full -----------------------------------------------------------------------------------------------


def question(number: int) -> bytes:
    """Who has the address with this number?"""
    return arp(V4.guest, f"203.0.113.{number}")


def numbers(frames: list[bytes]) -> list[int]:
    """The numbers of the addresses that were answered for."""
    return [int(Ether(frame)[ARP].psrc.rpartition(".")[2]) for frame in frames]


class TestFullLink:
    async def test_replies_wait_and_go_in_order(self) -> None:
        async with on_stage(capacity_frames=1) as guest:
            guest.sends_frames(*(question(number) for number in range(10)))
            await guest.settles()
            guest.link.set_capacity(frames=None)
            await guest.settles()
            assert numbers(guest.link.take_sent()) == list(range(10))
            assert not guest.session.drops

    async def test_some_room_takes_some_of_them(self) -> None:
        async with on_stage(capacity_frames=2) as guest:
            guest.sends_frames(*(question(number) for number in range(7)))
            for expected in ([0, 1], [2, 3], [4, 5], [6]):
                await guest.settles()
                assert numbers(guest.link.take_sent()) == expected
            await guest.expects_nothing()

    async def test_new_ones_do_not_overtake_those_that_wait(self) -> None:
        async with on_stage(capacity_frames=0) as guest:
            for number in range(3):
                guest.sends_frames(question(number))
                await guest.settles()
            guest.link.set_capacity(frames=None)
            guest.dispatcher.responder.take_arp(memoryview(question(3))[14:])  # before the link calls back
            await guest.settles()
            assert numbers(guest.link.take_sent()) == [0, 1, 2, 3]

    async def test_not_more_than_so_many_wait(self) -> None:
        async with on_stage(capacity_frames=0) as guest:
            guest.sends_frames(*(question(number) for number in range(WAITING_REPLIES + 5)))
            await guest.expects_drop("link to the guest full", 5)
            guest.link.set_capacity(frames=None)
            await guest.settles()
            assert numbers(guest.link.take_sent()) == list(range(WAITING_REPLIES))

    async def test_what_a_change_has_to_tell_waits(self) -> None:
        """It is said once, so it must not be lost."""
        async with on_stage(capacity_frames=0) as guest:
            guest.dispatcher.responder.change(changed())
            await guest.expects_nothing()
            guest.link.set_capacity(frames=None)
            assert [seen.source for seen in await advertisements(guest)] == [V6.gateway, str(NOW_6.gateway)]

    async def test_what_comes_again_anyway_does_not(self) -> None:
        async with on_stage(capacity_frames=0) as guest:
            guest.dispatcher.responder.advertise_router()
            guest.dispatcher.responder.farewell()
            guest.link.set_capacity(frames=None)
            await guest.expects_nothing()
            assert not guest.session.drops


# -- what is said unasked ----------------------------------------------------------------------------------------------


async def advertisements(guest: Stage) -> list[SeenOther]:
    """All router advertisements that came."""
    await guest.settles()
    found = []
    while (seen := guest.look(lambda _seen: True)) is not None:
        assert isinstance(seen, SeenOther)
        assert seen.packet.haslayer(ICMPv6ND_RA)
        assert (seen.destination, seen.packet.hlim) == ("ff02::1", 255)
        found.append(seen)
    return found


def lifetime(seen: SeenOther) -> int:
    return int(seen.packet[ICMPv6ND_RA].routerlifetime)


def prefixes(seen: SeenOther) -> dict[str, tuple[int, int]]:
    """The preferred and valid lifetimes of the prefixes in a router advertisement."""
    found = {}
    option = seen.packet[ICMPv6ND_RA]
    while option := option.payload.getlayer(ICMPv6NDOptPrefixInfo):
        found[option.prefix] = option.preferredlifetime, option.validlifetime
    return found


class TestChange:
    async def test_guest_is_told_at_once_what_holds_and_what_does_not(self, guest: Stage) -> None:
        guest.dispatcher.responder.change(changed())
        assert guest.session.network == changed()
        former, now = await advertisements(guest)
        assert (former.source, lifetime(former)) == (V6.gateway, 0)
        assert (now.source, lifetime(now)) == (str(NOW_6.gateway), 1800)
        assert prefixes(now)["2001:db8:7::"][0] > 0
        assert prefixes(now)["2001:db8:1:2::"] == (0, 0)

    async def test_router_that_leads_nowhere_any_more_and_does_again(self, guest: Stage) -> None:
        for offline, expected in ((True, 0), (False, 1800)):
            guest.dispatcher.responder.change(evolve(BEFORE, ipv6_offline=offline))
            (seen,) = await advertisements(guest)
            assert (seen.source, lifetime(seen)) == (V6.gateway, expected)

    async def test_other_resolvers(self, guest: Stage) -> None:
        guest.dispatcher.responder.change(evolve(BEFORE, resolvers=Resolvers((), (IPv6Address("2001:db8::53"),))))
        (seen,) = await advertisements(guest)
        assert seen.packet[ICMPv6NDOptRDNSS].dns == ["2001:db8::53"]

    async def test_nothing_to_tell_of_ipv4(self, guest: Stage) -> None:
        guest.dispatcher.responder.change(evolve(BEFORE, ipv4=NOW_4, resolvers=Resolvers((IPv4Address("192.0.2.53"),))))
        await guest.expects_nothing()

    async def test_ipv6_that_is_new(self) -> None:
        async with on_stage(network(ipv6=False)) as guest:
            guest.dispatcher.responder.change(network())
            (seen,) = await advertisements(guest)
            assert (seen.source, lifetime(seen)) == (V6.gateway, 1800)

    async def test_next_change_starts_from_the_one_before(self, guest: Stage) -> None:
        guest.dispatcher.responder.change(changed())
        await advertisements(guest)
        guest.dispatcher.responder.change(evolve(changed(), ipv6_offline=True))
        (seen,) = await advertisements(guest)
        assert (seen.source, lifetime(seen)) == (str(NOW_6.gateway), 0)

    async def test_change_after_the_guest_has_asked(self, moved: Stage) -> None:
        """What it need not know any more is forgotten, and what it has to know is not."""
        moved.sends_frames(dhcp("request", ("requested_addr", str(NOW_4.address))))
        await answered(moved)
        moved.dispatcher.responder.change(evolve(changed(), ipv6_offline=True))
        (seen,) = await advertisements(moved)
        assert "2001:db8:1:2::" in prefixes(seen)


class TestUnasked:
    async def test_router_advertisement(self, guest: Stage) -> None:
        guest.dispatcher.responder.advertise_router()
        (seen,) = await advertisements(guest)
        assert (seen.source, lifetime(seen)) == (V6.gateway, 1800)
        guest.dispatcher.responder.change(changed())
        await advertisements(guest)
        guest.dispatcher.responder.advertise_router()
        (seen,) = await advertisements(guest)
        assert (seen.source, lifetime(seen)) == (str(NOW_6.gateway), 1800)

    async def test_farewell(self, guest: Stage) -> None:
        """RFC 4861 section 6.2.5."""
        guest.dispatcher.responder.farewell()
        (seen,) = await advertisements(guest)
        assert (seen.source, lifetime(seen)) == (V6.gateway, 0)

    async def test_nothing_without_ipv6(self) -> None:
        async with on_stage(network(ipv6=False)) as guest:
            guest.dispatcher.responder.advertise_router()
            guest.dispatcher.responder.farewell()
            await guest.expects_nothing()

    @pytest.mark.parametrize("families", [(V4, V6), (V4,), (V6,)])
    async def test_unknown_guest_is_looked_for_in_its_families_and_a_known_one_is_not(
        self, families: tuple[Family, ...]
    ) -> None:
        async with on_stage(network(ipv4=V4 in families, ipv6=V6 in families)) as guest:
            guest.dispatcher.responder.find_guest()
            await guest.expects_nothing()
            guest.session.guest.mac = b"\xff" * 6
            guest.dispatcher.responder.find_guest()
            asked = [Ether(sent) for sent in guest.link.take_sent()]
            assert [bool(packet.haslayer(ARP)) for packet in asked] == [family is V4 for family in families]
            assert [bool(packet.haslayer(ICMPv6ND_NS)) for packet in asked] == [family is V6 for family in families]

    async def test_unknown_guest_is_looked_for_where_it_is_told_to_be(self, guest: Stage) -> None:
        guest.session.guest.mac = b"\xff" * 6
        guest.dispatcher.responder.change(changed())
        guest.link.take_sent()
        guest.dispatcher.responder.find_guest()
        arp_request, solicitation = (Ether(sent) for sent in guest.link.take_sent())
        assert (arp_request[ARP].psrc, arp_request[ARP].pdst) == (str(NOW_4.gateway), str(NOW_4.address))
        assert solicitation[ICMPv6ND_NS].tgt == str(NOW_6.address)


async def test_solicitations_are_answered_as_it_is_now(moved: Stage) -> None:
    moved.sends_frames(frame(IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255), ICMPv6ND_RS()))
    seen = await eventually(lambda: moved.look(lambda _seen: True), "a router advertisement")
    assert isinstance(seen, SeenOther)
    assert (seen.source, seen.destination, lifetime(seen)) == (str(NOW_6.gateway), LINK_LOCAL, 1800)


@pytest.mark.parametrize(("source", "learned"), [("::", True), (LINK_LOCAL, False)])
async def test_address_that_the_guest_is_about_to_take(guest: Stage, source: str, learned: bool) -> None:
    """Duplicate address detection: a guest that only listens is found at the address that it made itself."""
    own, group = "2001:db8:1:2:5054:ff:fe12:3456", "ff02::1:ff12:3456"
    guest.sends_frames(frame(IPv6(src=source, dst=group, hlim=255), ICMPv6ND_NS(tgt=own)))
    await guest.settles()
    assert where(guest)[1] == (own if learned else V6.guest)
