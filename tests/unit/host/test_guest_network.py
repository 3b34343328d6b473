"""Wishes and a host → the guest's network: at start, and through the changes of a host's life."""

from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import evolve
from harness.hosts import HOME, HOME_4, HOME_6, NAMESERVERS, OFFICE, OFFLINE, host, with_resolv_conf

from trio_passt.config import (
    DnsForward,
    Former,
    GuestIPv4,
    GuestIPv6,
    GuestNetwork,
    HostAddress,
    NetworkBoot,
    Resolvers,
    Wishes,
)
from trio_passt.host.guest_network import FORMER_KEPT, afresh, decide, without
from trio_passt.host.network import LOCAL_IPV4, LOCAL_IPV6, Host

HOME_IPV4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
HOME_IPV6 = GuestIPv6(IPv6Address("2001:db8:1::2"), 64, IPv6Address("fe80::1"), "eth0")
OFFICE_IPV4 = GuestIPv4(IPv4Address("198.51.100.7"), 25, IPv4Address("198.51.100.1"), "wlan0")
OFFICE_IPV6 = GuestIPv6(IPv6Address("2001:db8:2::7"), 64, IPv6Address("fe80::2"), "wlan0")
RESOLVERS = Resolvers((IPv4Address("192.0.2.53"),), (IPv6Address("2001:db8::53"),))
DNS = (IPv4Address("192.0.2.53"), IPv6Address("2001:db8::53"))


def mapped(ipv4: IPv4Address, ipv6: IPv6Address) -> tuple[HostAddress, HostAddress]:
    return HostAddress(ipv4, IPv4Address("127.0.0.1")), HostAddress(ipv6, IPv6Address("::1"))


HOME_MAPPED = mapped(HOME_IPV4.gateway, HOME_IPV6.gateway)

NO_WISHES = Wishes()


def after(*hosts: Host, wishes: Wishes = NO_WISHES) -> GuestNetwork:
    """What the guest is told when the host has been one after the other of these."""
    first = decide(wishes, hosts[0]).network
    return reduce(lambda told, there: decide(wishes, there, told).network, hosts[1:], first)


def families(network: GuestNetwork) -> tuple[GuestIPv4 | None, GuestIPv6 | None, bool, bool]:
    return network.ipv4, network.ipv6, network.ipv4_offline, network.ipv6_offline


def forward(seen_by_guest: str, on_host: str) -> DnsForward:
    return DnsForward(ip_address(seen_by_guest), ip_address(on_host))


class TestAtStart:
    def test_host_that_is_online(self) -> None:
        decision = decide(NO_WISHES, HOME)
        assert decision.network == GuestNetwork(
            HOME_IPV4, HOME_IPV6, RESOLVERS, nameservers=DNS, host_addresses=HOME_MAPPED
        )
        assert decision.notes == ()

    def test_wishes_are_passed_on(self) -> None:
        boot = NetworkBoot("pxelinux.0")
        wishes = Wishes(mtu_bytes=1500, hostname="guest", fqdn="guest.example", boot=boot)
        network = decide(wishes, HOME).network
        assert (network.mtu_bytes, network.hostname, network.fqdn, network.boot) == (
            1500,
            "guest",
            "guest.example",
            boot,
        )

    @pytest.mark.parametrize(
        ("wishes", "expected"),
        [(Wishes(ipv6=False), (HOME_IPV4, None)), (Wishes(ipv4=False), (None, HOME_IPV6))],
        ids=["IPv4", "IPv6"],
    )
    def test_one_family_as_asked_for(self, wishes: Wishes, expected: tuple[object, object]) -> None:
        assert families(decide(wishes, HOME).network) == (*expected, False, False)

    @pytest.mark.parametrize(
        ("there", "expected", "note"),
        [
            (HOME_4, (HOME_IPV4, None), "no IPv6 default route: IPv6 is off"),
            (HOME_6, (None, HOME_IPV6), "no IPv4 default route: IPv4 is off"),
        ],
        ids=["IPv4", "IPv6"],
    )
    def test_one_family_as_there_is(self, there: Host, expected: tuple[object, object], note: str) -> None:
        decision = decide(NO_WISHES, there)
        assert families(decision.network) == (*expected, False, False)
        assert decision.notes == (note,)

    def test_offline_is_local_mode(self) -> None:
        """The gateways are told as nameservers, so that there is one as soon as the host has one."""
        decision = decide(NO_WISHES, OFFLINE)
        assert decision.network == GuestNetwork(
            LOCAL_IPV4,
            LOCAL_IPV6,
            Resolvers((LOCAL_IPV4.gateway,), (LOCAL_IPV6.gateway,)),
            host_addresses=mapped(LOCAL_IPV4.gateway, LOCAL_IPV6.gateway),
        )
        assert len(decision.notes) == 1
        assert "local mode" in decision.notes[0]

    def test_no_nameserver_is_worth_a_note(self) -> None:
        note = "no nameserver of /etc/resolv.conf is one that the guest can use: it is told none"
        assert decide(NO_WISHES, with_resolv_conf(HOME, "")).notes == (note,)
        assert decide(Wishes(ipv6=False), with_resolv_conf(HOME, "nameserver 2001:db8::53\n")).notes == (note,)

    @pytest.mark.parametrize(
        ("zone", "expected"), [("2", ["fe80::53"]), ("3", []), ("eth0", ["fe80::53"]), ("77", []), ("", [])]
    )
    def test_zones_may_be_numbers(self, zone: str, expected: list[str]) -> None:
        """resolv.conf(5) does not say so, but the C library's if_nametoindex and strtoul do."""
        written = f"nameserver fe80::53{'%' * bool(zone)}{zone}\n"
        network = decide(NO_WISHES, with_resolv_conf(HOME, written)).network
        assert network.resolvers.ipv6 == tuple(map(IPv6Address, expected))


class TestOtherNetwork:
    def test_all_of_it(self) -> None:
        network = after(HOME, OFFICE)
        assert families(network) == (OFFICE_IPV4, OFFICE_IPV6, False, False)
        assert network.former == (Former(HOME_IPV4, False), Former(HOME_IPV6, False))

    @pytest.mark.parametrize(
        ("address", "gateway", "interface"),
        [
            ("192.0.2.77/24", "192.0.2.1", "eth0"),
            ("192.0.2.2/25", "192.0.2.1", "eth0"),
            ("192.0.2.2/24", "192.0.2.254", "eth0"),
        ],
        ids=["address", "prefix", "gateway"],
    )
    def test_something_of_it(self, address: str, gateway: str, interface: str) -> None:
        there = host(f"{address} {interface}", routes=(f"{gateway} {interface}",))
        network = after(HOME_4, there)
        text, _, length = address.partition("/")
        assert network.ipv4 == GuestIPv4(IPv4Address(text), int(length), IPv4Address(gateway), interface)
        assert network.former == (Former(HOME_IPV4, text == "192.0.2.2"),)

    def test_other_interface_is_nothing_that_the_guest_knows_of(self) -> None:
        there = host("192.0.2.2/24 wlan0", routes=("192.0.2.1 wlan0",), resolv_conf=NAMESERVERS)
        network = after(HOME_4, there)
        assert network.ipv4 == evolve(HOME_IPV4, interface="wlan0")
        assert network.former == ()

    @pytest.mark.parametrize("first", ["192.0.2.2/24 eth0", "192.0.2.3/24 eth0"])
    def test_host_with_several_addresses_that_lists_them_otherwise(self, first: str) -> None:
        """The kernel lists them as it got them, and some programs take them away and give them back."""
        second = "192.0.2.2/24 eth0" if first != "192.0.2.2/24 eth0" else "192.0.2.3/24 eth0"
        one, other = (host(*own, routes=("192.0.2.1 eth0",)) for own in ((first, second), (second, first)))
        assert after(one, other) == after(one)
        assert after(other, host(first, routes=("192.0.2.1 eth0",))).ipv4 == after(one).ipv4

    def test_better_address_is_taken_all_the_same(self) -> None:
        """Of the network that the router is in."""
        before = host("203.0.113.2/24 eth0", routes=("192.0.2.1 eth0",))
        now = host("203.0.113.2/24 eth0", "192.0.2.2/24 eth0", routes=("192.0.2.1 eth0",))
        network = after(before, now)
        assert network.ipv4 == HOME_IPV4
        assert [former.on_host for former in network.former] == [True]

    def test_ipv6_router_only(self) -> None:
        """The prefix is the same: the guest keeps its address, and hears who its router is."""
        there = host("2001:db8:1::2/64 eth0", routes=("fe80::7 eth0",), resolv_conf=NAMESERVERS)
        network = after(HOME_6, there)
        assert network.ipv6 == evolve(HOME_IPV6, gateway=IPv6Address("fe80::7"))
        assert network.former == (Former(HOME_IPV6, True),)

    def test_vpn_comes_up_and_the_host_keeps_its_address(self) -> None:
        vpn = host(
            "192.0.2.2/24 eth0",
            "203.0.113.2/24 tun0",
            routes=("203.0.113.1 tun0", "192.0.2.1 eth0"),
            resolv_conf="nameserver 203.0.113.53\n",
        )
        network = after(HOME_4, vpn)
        assert network.ipv4 is not None
        assert (network.ipv4.address, network.ipv4.interface) == (IPv4Address("203.0.113.2"), "tun0")
        assert network.former == (Former(HOME_IPV4, True),)
        assert after(HOME_4, vpn, HOME_4).ipv4 == HOME_IPV4
        assert [former.on_host for former in after(HOME_4, vpn, HOME_4).former] == [False]

    def test_former_address_that_goes_later(self) -> None:
        """A connection from it can't go on any more, and the guest must not renew it."""
        both = host("192.0.2.2/24 eth0", "203.0.113.2/24 tun0", routes=("203.0.113.1 tun0",))
        one = host("203.0.113.2/24 tun0", routes=("203.0.113.1 tun0",))
        assert after(HOME_4, both).former == (Former(HOME_IPV4, True),)
        assert after(HOME_4, both, one).former == (Former(HOME_IPV4, False),)
        assert after(HOME_4, both, one, both).former == (Former(HOME_IPV4, True),)

    def test_there_and_back(self) -> None:
        """What holds again is not former, and what was in between is."""
        network = after(HOME, OFFICE, HOME)
        assert families(network) == (HOME_IPV4, HOME_IPV6, False, False)
        assert network.former == (Former(OFFICE_IPV4, False), Former(OFFICE_IPV6, False))
        assert after(HOME, OFFICE, HOME, OFFICE).former == after(HOME, OFFICE).former

    def test_latest_first(self) -> None:
        hosts = [host(f"192.0.2.{last}/24 eth0", routes=("192.0.2.1 eth0",)) for last in (2, 3, 4, 3, 5)]
        assert [str(former.guest.address) for former in after(*hosts).former] == ["192.0.2.3", "192.0.2.4", "192.0.2.2"]

    def test_only_so_many_are_kept(self) -> None:
        hosts = [host(f"192.0.2.{last}/24 eth0", routes=("192.0.2.1 eth0",)) for last in range(2, 2 + FORMER_KEPT + 3)]
        former = after(*hosts).former
        assert [str(each.guest.address) for each in former] == [
            f"192.0.2.{last}" for last in range(FORMER_KEPT + 3, 3, -1)
        ]


def test_nameserver_at_the_guests_own_address_is_remarked_on() -> None:
    own, other = Wishes(dns_forwards=(HOME_IPV4.address,)), Wishes(dns_forwards=(HOME_IPV4.gateway,))
    assert decide(own, HOME).warnings == ("--dns-forward 192.0.2.2 is the guest's own address: it won't work",)
    assert decide(other, HOME).notes == ()


class TestStability:
    def test_address_that_comes_and_goes_beside_the_guests(self) -> None:
        """A virtual one, as of keepalived: the kernel lists the newest first, and one is as good as the other."""
        before = host("2001:db8::2/64 eth0", routes=("fe80::1 eth0",))
        beside = host("2001:db8::99/64 eth0", "2001:db8::2/64 eth0", routes=("fe80::1 eth0",))
        assert after(before, beside) == after(before)
        assert str(after(beside).ipv6.address) == "2001:db8::99"


class TestOffline:
    def test_default_routes_lost(self) -> None:
        """The guest keeps what it has: the lid may be opened again."""
        network = after(HOME, OFFLINE)
        assert families(network) == (HOME_IPV4, HOME_IPV6, True, True)
        assert network.former == ()

    def test_and_back(self) -> None:
        assert after(HOME, OFFLINE, HOME) == after(HOME)

    def test_and_back_elsewhere(self) -> None:
        network = after(HOME, OFFLINE, OFFICE)
        assert families(network) == (OFFICE_IPV4, OFFICE_IPV6, False, False)
        assert [former.guest for former in network.former] == [HOME_IPV4, HOME_IPV6]

    @pytest.mark.parametrize(
        ("left", "offline"), [(HOME_4, (False, True)), (HOME_6, (True, False))], ids=["IPv6", "IPv4"]
    )
    def test_one_family_lost(self, left: Host, offline: tuple[bool, bool]) -> None:
        assert families(after(HOME, left)) == (HOME_IPV4, HOME_IPV6, *offline)
        assert families(after(HOME, left, HOME)) == (HOME_IPV4, HOME_IPV6, False, False)

    def test_one_family_lost_while_the_other_changes(self) -> None:
        there = host("198.51.100.7/25 wlan0", routes=("198.51.100.1 wlan0",))
        assert families(after(HOME, there)) == (OFFICE_IPV4, HOME_IPV6, False, True)

    def test_lost_by_the_interface_going_down(self) -> None:
        down = evolve(HOME, links=tuple(evolve(link, up=link.loopback) for link in HOME.links))
        assert families(after(HOME, down)) == (HOME_IPV4, HOME_IPV6, True, True)

    def test_not_asked_for_is_not_offline(self) -> None:
        assert families(after(HOME, OFFLINE, wishes=Wishes(ipv6=False))) == (HOME_IPV4, None, True, False)

    def test_family_that_was_off_at_start(self) -> None:
        """It comes when the host has it, and then it stays."""
        assert families(after(HOME_4, HOME)) == (HOME_IPV4, HOME_IPV6, False, False)
        assert families(after(HOME_4, HOME, HOME_4)) == (HOME_IPV4, HOME_IPV6, False, True)
        assert families(after(HOME_6, HOME)) == (HOME_IPV4, HOME_IPV6, False, False)
        assert after(HOME_4, HOME).former == ()

    def test_family_that_was_off_stays_off_offline(self) -> None:
        """Local mode is for hosts that have been offline from the start."""
        assert after(HOME_4, OFFLINE).ipv4 == HOME_IPV4
        assert after(HOME_6, OFFLINE).ipv6 == HOME_IPV6


class TestOnlineLater:
    """The daemon was started before the host had a network."""

    def test_both_families(self) -> None:
        network = after(OFFLINE, HOME)
        assert families(network) == (HOME_IPV4, HOME_IPV6, False, False)
        assert network.former == (Former(LOCAL_IPV4, False), Former(LOCAL_IPV6, False))

    def test_one_family_first_and_the_other_later(self) -> None:
        """Until then it is as it was, but it is no way to anywhere."""
        assert families(after(OFFLINE, HOME_4)) == (HOME_IPV4, LOCAL_IPV6, False, True)
        assert families(after(OFFLINE, HOME_4, HOME)) == (HOME_IPV4, HOME_IPV6, False, False)
        assert families(after(OFFLINE, HOME_6)) == (LOCAL_IPV4, HOME_IPV6, True, False)
        assert families(after(OFFLINE, HOME_6, HOME)) == (HOME_IPV4, HOME_IPV6, False, False)

    def test_never_back_to_local_mode(self) -> None:
        assert families(after(OFFLINE, HOME, OFFLINE)) == (HOME_IPV4, HOME_IPV6, True, True)

    def test_nothing_changes_in_local_mode(self) -> None:
        assert after(OFFLINE, OFFLINE) == after(OFFLINE)

    def test_the_nameserver_that_was_told_already_works_then(self) -> None:
        network = after(OFFLINE, HOME)
        assert network.resolvers == RESOLVERS
        assert network.former_dns_forwards == (
            forward("169.254.2.2", "192.0.2.53"),
            forward("fe80::1", "2001:db8::53"),
        )

    def test_nameserver_appears_before_the_network_does(self) -> None:
        network = after(OFFLINE, with_resolv_conf(OFFLINE, "nameserver 127.0.0.53\n"))
        assert network.dns_forwards == (forward("169.254.2.2", "127.0.0.53"),)
        assert network.resolvers.ipv4 == (LOCAL_IPV4.gateway,)

    def test_nameserver_vanishes_before_the_network_appears(self) -> None:
        network = after(with_resolv_conf(OFFLINE, "nameserver 127.0.0.53\n"), OFFLINE)
        assert network.resolvers.ipv4 == (LOCAL_IPV4.gateway,)
        assert network.former_dns_forwards == (forward("169.254.2.2", "127.0.0.53"),)


class TestResolvers:
    def test_from_loopback_to_elsewhere_and_back(self) -> None:
        """systemd-resolved is stopped: what the guest has for its nameserver goes to the one that there is now."""
        stub = with_resolv_conf(HOME, "nameserver 127.0.0.53\n")
        assert after(stub).dns_forwards == (forward("192.0.2.1", "127.0.0.53"),)
        elsewhere = after(stub, HOME)
        assert (elsewhere.resolvers, elsewhere.dns_forwards) == (RESOLVERS, ())
        assert elsewhere.former_dns_forwards == (forward("192.0.2.1", "192.0.2.53"),)
        again = after(stub, HOME, stub)
        assert again.dns_forwards == (forward("192.0.2.1", "127.0.0.53"),)
        assert again.former_dns_forwards == ()

    def test_no_nameserver_any_more(self) -> None:
        """What was told goes where it went: it may be back in a moment, and nothing better is known."""
        stub, none = (with_resolv_conf(HOME_4, text) for text in ("nameserver 127.0.0.53\n", ""))
        network = after(stub, none)
        assert (network.resolvers.ipv4, network.dns_forwards, network.nameservers) == ((), (), ())
        assert network.former_dns_forwards == (forward("192.0.2.1", "127.0.0.53"),)
        assert after(stub, none, HOME_4).former_dns_forwards == (forward("192.0.2.1", "192.0.2.53"),)

    def test_former_gateway_that_was_told_as_a_nameserver(self) -> None:
        stub = with_resolv_conf(HOME, "nameserver 127.0.0.53\nnameserver ::1\n")
        network = after(stub, OFFICE)
        assert network.former_dns_forwards == (forward("192.0.2.1", "192.0.2.53"), forward("fe80::1", "2001:db8::53"))
        both = after(stub, with_resolv_conf(OFFICE, "nameserver 127.0.0.1\n"))
        assert both.dns_forwards == (forward("198.51.100.1", "127.0.0.1"),)
        assert both.former_dns_forwards == (forward("192.0.2.1", "127.0.0.1"), forward("fe80::1", "::1"))

    def test_nameserver_elsewhere_is_reached_where_it_is(self) -> None:
        assert after(HOME, OFFICE).former_dns_forwards == ()
        assert after(HOME, with_resolv_conf(HOME, "nameserver 203.0.113.9\n")).former_dns_forwards == ()

    def test_nameserver_that_was_a_gateway_is_reached_where_it_is(self) -> None:
        there = host("203.0.113.2/24 eth0", routes=("203.0.113.1 eth0",), resolv_conf="nameserver 192.0.2.1\n")
        for network in (after(HOME_4, there), after(HOME_4, there, there)):
            assert network.resolvers.ipv4 == (IPv4Address("192.0.2.1"),)
            assert network.dns_forwards == network.former_dns_forwards == ()

    def test_router_that_is_the_nameserver(self) -> None:
        router = with_resolv_conf(HOME_4, "nameserver 192.0.2.1\n")
        assert after(router).dns_forwards == (forward("192.0.2.1", "192.0.2.1"),)
        network = after(router, OFFICE)
        assert network.former_dns_forwards == (forward("192.0.2.1", "192.0.2.53"),)

    def test_search_list(self) -> None:
        network = after(HOME, with_resolv_conf(HOME, NAMESERVERS + "search b.example\n"))
        assert network.resolvers == evolve(RESOLVERS, search=("b.example",))

    def test_dns_forward_always_goes_to_the_nameserver_of_today(self) -> None:
        wishes = Wishes(dns_forwards=(IPv4Address("203.0.113.53"), IPv6Address("2001:db8:f::53")))
        seen = ("203.0.113.53", "2001:db8:f::53")
        assert after(HOME, wishes=wishes).dns_forwards == tuple(map(forward, seen, map(str, DNS)))
        stub = with_resolv_conf(OFFICE, "nameserver 127.0.0.53\nnameserver ::1\n")
        network = after(HOME, stub, wishes=wishes)
        assert network.dns_forwards == tuple(map(forward, seen, ("127.0.0.53", "::1")))
        assert network.resolvers == Resolvers((IPv4Address(seen[0]),), (IPv6Address(seen[1]),))
        assert network.former_dns_forwards == ()

    def test_dns_host_stands_in_for_all_of_them(self) -> None:
        wishes = Wishes(dns_hosts=(IPv4Address("203.0.113.9"),))
        stub = with_resolv_conf(HOME, "nameserver 127.0.0.53\n")
        assert after(stub, wishes=wishes).dns_forwards == (forward("192.0.2.1", "203.0.113.9"),)
        assert after(stub, HOME, wishes=wishes).former_dns_forwards == (forward("192.0.2.1", "203.0.113.9"),)
        assert after(HOME, wishes=wishes).dns_forwards == ()

    def test_dns_host_in_local_mode(self) -> None:
        """The guest is told its gateway, and there it is."""
        wishes = Wishes(dns_hosts=(IPv4Address("127.0.0.9"),))
        network = after(OFFLINE, wishes=wishes)
        assert network.resolvers.ipv4 == (LOCAL_IPV4.gateway,)
        assert network.dns_forwards == (forward("169.254.2.2", "127.0.0.9"),)


class TestOtherGuests:
    def test_guest_that_has_been_told_nothing_yet(self) -> None:
        stub = with_resolv_conf(HOME, "nameserver 127.0.0.53\n")
        network = after(stub, OFFICE)
        assert network.former
        assert network.former_dns_forwards
        assert afresh(network) == decide(NO_WISHES, OFFICE).network

    def test_afresh_of_a_host_that_is_offline(self) -> None:
        assert families(afresh(after(HOME, OFFLINE))) == (HOME_IPV4, HOME_IPV6, True, True)

    def test_guest_that_goes_by_todays_lease(self) -> None:
        stub = with_resolv_conf(HOME, "nameserver 127.0.0.53\nnameserver ::1\n")
        network = after(stub, OFFICE)
        now = without(network, {HOME_IPV4, OFFICE_IPV4}, {HOME_IPV4.gateway})
        assert now.former == (Former(HOME_IPV6, False),)
        assert now.former_dns_forwards == (forward("fe80::1", "2001:db8::53"),)
        assert evolve(now, former=network.former, former_dns_forwards=network.former_dns_forwards) == network
