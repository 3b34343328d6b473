"""Addresses, gateways, interfaces and names that the operator wants in place of the host's."""

from functools import reduce
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

import pytest
from attrs import evolve
from harness.hosts import HOME, HOME_4, HOME_6, OFFICE, OFFLINE, host, with_resolv_conf

from trio_passt.config import (
    DnsForward,
    GuestIPv4,
    GuestIPv6,
    GuestNetwork,
    HostAddress,
    IPAddress,
    Services,
    Transports,
    WishedAddress,
    Wishes,
)
from trio_passt.host.guest_network import Decision, decide
from trio_passt.host.network import DefaultRoute, Host, NextHop

BOTH = host(
    "192.0.2.2/24 eth0",
    "198.51.100.7/25 wlan0",
    "2001:db8:1::2/64 eth0",
    "2001:db8:2::7/64 wlan0",
    routes=("192.0.2.1 eth0", "fe80::1 eth0", "198.51.100.1 wlan0", "fe80::2 wlan0"),
    resolv_conf="nameserver 192.0.2.53\nsearch example.org\n",
)
UNROUTED = evolve(BOTH, routes=BOTH.routes[:2])
"""The second interface has addresses, and no default route."""

MAC = bytes.fromhex("02005e005301")
FROM_USUAL_MAC = "fe80::9855:9aff:fe55:9a55"


def wishes(*addresses: str, **others: object) -> Wishes:
    wished = []
    for text in addresses:
        address, _, length = text.partition("/")
        wished.append(WishedAddress(ip_address(address), int(length) if length else None))
    return Wishes(addresses=tuple(wished), **others)  # type: ignore[arg-type]


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(map(ip_address, texts))


def network(wished: Wishes, *hosts: Host) -> GuestNetwork:
    """What the guest is told when the host has been one after the other of these."""
    first = decide(wished, hosts[0]).network
    return reduce(lambda told, there: decide(wished, there, told).network, hosts[1:], first)


def shown(guest: GuestIPv4 | GuestIPv6 | None) -> str:
    if guest is None:
        return "off"
    others = "".join(f" and {other}" for other in guest.others)
    return f"{guest.address}/{guest.prefix_length}{others} by {guest.gateway} from {guest.interface}"


class TestAddresses:
    @pytest.mark.parametrize(
        ("wished", "expected"),
        [
            (wishes(), "192.0.2.2/24 by 192.0.2.1 from eth0"),
            (wishes("198.51.100.9/26"), "198.51.100.9/26 by 192.0.2.1 from eth0"),
            (wishes("192.0.2.2"), "192.0.2.2/24 by 192.0.2.1 from eth0"),
            (wishes("198.51.100.9"), "198.51.100.9/24 by 192.0.2.1 from eth0"),
            (wishes("172.16.0.9"), "172.16.0.9/16 by 192.0.2.1 from eth0"),
            (wishes("10.0.0.9"), "10.0.0.9/8 by 192.0.2.1 from eth0"),
            (wishes("127.255.255.255"), "127.255.255.255/8 by 192.0.2.1 from eth0"),
            (wishes("128.0.0.1"), "128.0.0.1/16 by 192.0.2.1 from eth0"),
            (wishes("191.255.0.1"), "191.255.0.1/16 by 192.0.2.1 from eth0"),
            (wishes("198.51.100.9", netmask_bits=28), "198.51.100.9/28 by 192.0.2.1 from eth0"),
            (wishes(netmask_bits=28), "192.0.2.2/28 by 192.0.2.1 from eth0"),
            (wishes(gateways=ips("198.51.100.1")), "192.0.2.2/24 by 198.51.100.1 from eth0"),
            (
                wishes("198.51.100.9/25", "203.0.113.1", gateways=ips("198.51.100.1", "fe80::9")),
                "198.51.100.9/25 and 203.0.113.1/24 by 198.51.100.1 from eth0",
            ),
            (wishes("2001:db8::9"), "192.0.2.2/24 by 192.0.2.1 from eth0"),
            (wishes("192.0.2.1"), "192.0.2.1/24 by 192.0.2.2 from eth0"),
            (wishes("192.0.2.1/30", "192.0.2.2/30"), "192.0.2.1/30 and 192.0.2.2/30 by 169.254.2.2 from eth0"),
            (wishes("192.0.2.7/25", "192.0.2.1"), "192.0.2.7/25 and 192.0.2.1/24 by 192.0.2.2 from eth0"),
            (wishes("192.0.2.1", gateways=ips("192.0.2.9")), "192.0.2.1/24 by 192.0.2.9 from eth0"),
        ],
    )
    def test_ipv4(self, wished: Wishes, expected: str) -> None:
        assert shown(network(wished, HOME).ipv4) == expected

    @pytest.mark.parametrize(
        ("wished", "expected"),
        [
            (wishes(), "2001:db8:1::2/64 by fe80::1 from eth0"),
            (wishes("2001:db8::9"), "2001:db8::9/64 by fe80::1 from eth0"),
            (wishes("2001:db8::9/56"), "2001:db8::9/56 by fe80::1 from eth0"),
            (
                wishes("2001:db8::9", "192.0.2.9", "2001:db8:7::9/48"),
                "2001:db8::9/64 and 2001:db8:7::9/48 by fe80::1 from eth0",
            ),
            (wishes(netmask_bits=28), "2001:db8:1::2/64 by fe80::1 from eth0"),
            (wishes(gateways=ips("fe80::9")), "2001:db8:1::2/64 by fe80::9 from eth0"),
            (wishes(gateways=ips("2001:db8:1::1")), "2001:db8:1::2/64 by 2001:db8:1::1 from eth0"),
        ],
    )
    def test_ipv6(self, wished: Wishes, expected: str) -> None:
        assert shown(network(wished, HOME).ipv6) == expected

    def test_the_hosts_own_prefix_for_its_own_address(self) -> None:
        there = host("2001:db8:1::2/56 eth0", "192.0.2.2/22 eth0", routes=("fe80::1 eth0", "192.0.2.1 eth0"))
        found = network(wishes("2001:db8:1::2", "192.0.2.2"), there)
        assert (shown(found.ipv4), shown(found.ipv6)) == (
            "192.0.2.2/22 by 192.0.2.1 from eth0",
            "2001:db8:1::2/56 by fe80::1 from eth0",
        )

    def test_a_family_that_the_host_has_not(self) -> None:
        """Its packets lead nowhere beyond this host; but who gives an address wants the family."""
        found = network(wishes("2001:db8::9"), HOME_4)
        assert shown(found.ipv4) == "192.0.2.2/24 by 192.0.2.1 from eth0"
        assert shown(found.ipv6) == "2001:db8::9/64 by fe80::1 from None"
        found = network(wishes("198.51.100.9"), HOME_6)
        assert shown(found.ipv4) == "198.51.100.9/24 by 198.51.100.1 from None"

    def test_a_family_that_is_not_wanted(self) -> None:
        assert network(wishes("2001:db8::9", ipv6=False), HOME_4).ipv6 is None

    def test_offline(self) -> None:
        found = network(wishes("198.51.100.1/24", "2001:db8::9", gateways=ips("fe80::9")), OFFLINE)
        assert shown(found.ipv4) == "198.51.100.1/24 by 198.51.100.2 from None"
        assert shown(found.ipv6) == "2001:db8::9/64 by fe80::9 from None"

    def test_offline_with_nothing_but_a_gateway(self) -> None:
        found = network(wishes(gateways=ips("198.51.100.1")), OFFLINE)
        assert shown(found.ipv4) == "169.254.2.1/16 by 198.51.100.1 from None"

    def test_the_network_changes_and_the_addresses_stay(self) -> None:
        wished = wishes("203.0.113.9/24", gateways=ips("203.0.113.1"))
        found = network(wished, HOME, OFFICE)
        assert shown(found.ipv4) == "203.0.113.9/24 by 203.0.113.1 from wlan0"
        assert not found.ipv4_offline
        assert [former.guest.address.version for former in found.former] == [6]
        found = network(wished, HOME, OFFLINE)
        assert shown(found.ipv4) == "203.0.113.9/24 by 203.0.113.1 from eth0"
        assert found.ipv4_offline
        found = network(wished, OFFLINE, HOME)
        assert shown(found.ipv4) == "203.0.113.9/24 by 203.0.113.1 from eth0"

    def test_typed(self) -> None:
        found = network(wishes("203.0.113.9", "203.0.113.10/25", "2001:db8::9", "2001:db8::a/128"), HOME)
        assert found.ipv4 == GuestIPv4(
            IPv4Address("203.0.113.9"), 24, IPv4Address("192.0.2.1"), "eth0", (IPv4Interface("203.0.113.10/25"),)
        )
        assert found.ipv6 == GuestIPv6(
            IPv6Address("2001:db8::9"), 64, IPv6Address("fe80::1"), "eth0", (IPv6Interface("2001:db8::a/128"),)
        )


class TestInterfaces:
    @pytest.mark.parametrize(
        ("wished", "there", "ipv4", "ipv6"),
        [
            (
                Wishes(interface_ipv4="wlan0", interface_ipv6="wlan0"),
                BOTH,
                "198.51.100.7/25 by 198.51.100.1 from wlan0",
                "2001:db8:2::7/64 by fe80::2 from wlan0",
            ),
            (
                Wishes(interface_ipv6="wlan0"),
                BOTH,
                "192.0.2.2/24 by 192.0.2.1 from eth0",
                "2001:db8:2::7/64 by fe80::2 from wlan0",
            ),
            (
                Wishes(interface_ipv4="wlan0"),
                UNROUTED,
                "198.51.100.7/25 by 198.51.100.1 from wlan0",
                "2001:db8:1::2/64 by fe80::1 from eth0",
            ),
            (
                Wishes(interface_ipv4="wlan0", interface_ipv6="wlan0", host_mac=MAC),
                UNROUTED,
                "198.51.100.7/25 by 198.51.100.1 from wlan0",
                f"2001:db8:2::7/64 by {FROM_USUAL_MAC} from wlan0",
            ),
            (
                Wishes(interface_ipv4="tun0", interface_ipv6="eth0"),
                BOTH,
                "off",
                "2001:db8:1::2/64 by fe80::1 from eth0",
            ),
        ],
    )
    def test_chosen(self, wished: Wishes, there: Host, ipv4: str, ipv6: str) -> None:
        found = network(wished, there)
        assert (shown(found.ipv4), shown(found.ipv6)) == (ipv4, ipv6)

    def test_one_that_the_host_has_nothing_on(self) -> None:
        decision = decide(Wishes(interface_ipv4="tun0", interface_ipv6="tun0"), BOTH)
        assert decision.network.ipv4 is not None
        assert decision.network.ipv4.is_local
        note = "no IPv4 address on tun0, no IPv6 address on tun0: local mode, in which the guest reaches this host only"
        assert decision.notes[0] == note

    def test_one_that_is_down(self) -> None:
        down = evolve(BOTH, links=tuple(evolve(link, up=link.name != "wlan0") for link in BOTH.links))
        decision = decide(Wishes(interface_ipv4="wlan0", ipv6=False), down)
        assert decision.notes[0].startswith("no interface wlan0 that is up: local mode")

    def test_it_never_borrows_an_address(self) -> None:
        """As the kernel does for a route by an interface without address; but this one was named for its own."""
        routed = evolve(BOTH, routes=(*BOTH.routes, DefaultRoute(4, (NextHop(4, IPv4Address("203.0.113.1")),))))
        assert shown(network(Wishes(interface_ipv4="tun0"), routed).ipv4) == ("192.0.2.2/24 by 203.0.113.1 from tun0")
        assert shown(network(Wishes(interface_ipv4="tun0"), BOTH).ipv4) == "off"

    def test_it_goes_and_comes_back(self) -> None:
        gone = evolve(BOTH, links=BOTH.links[:2], addresses=BOTH.addresses[::2], routes=BOTH.routes[:2])
        wished = Wishes(interface_ipv4="wlan0", ipv6=False)
        found = network(wished, BOTH, gone)
        assert shown(found.ipv4) == "198.51.100.7/25 by 198.51.100.1 from wlan0"
        assert found.ipv4_offline
        found = network(wished, BOTH, gone, BOTH)
        assert not found.ipv4_offline


def mapped(found: GuestNetwork) -> list[str]:
    return [f"{address.seen_by_guest} > {address.on_host}" for address in found.host_addresses]


class TestThisHost:
    @pytest.mark.parametrize(
        ("wished", "expected"),
        [
            (Wishes(), ["192.0.2.1 > 127.0.0.1", "fe80::1 > ::1"]),
            (Wishes(ipv6=False), ["192.0.2.1 > 127.0.0.1"]),
            (Wishes(maps_gateway=False), []),
            (
                Wishes(loopback_addresses=ips("203.0.113.9")),
                ["203.0.113.9 > 127.0.0.1", "fe80::1 > ::1"],
            ),
            (
                Wishes(loopback_addresses=ips("203.0.113.9", "2001:db8::9"), maps_gateway=False),
                ["203.0.113.9 > 127.0.0.1", "2001:db8::9 > ::1"],
            ),
            (
                Wishes(own_addresses=ips("203.0.113.8", "2001:db8::8")),
                [
                    "192.0.2.1 > 127.0.0.1",
                    "203.0.113.8 > 192.0.2.2",
                    "fe80::1 > ::1",
                    "2001:db8::8 > 2001:db8:1::2",
                ],
            ),
            (
                wishes("198.51.100.9", own_addresses=ips("203.0.113.8"), maps_gateway=False),
                ["203.0.113.8 > 192.0.2.2"],
            ),
            (
                Wishes(gateways=ips("192.0.2.77", "2001:db8:1::1"), host_mac=MAC),
                ["192.0.2.77 > 127.0.0.1", "2001:db8:1::1 > ::1", f"{FROM_USUAL_MAC} > ::1"],
            ),
            (Wishes(own_addresses=ips("192.0.2.1"), ipv6=False), ["192.0.2.1 > 192.0.2.2"]),
            (
                Wishes(gateways=ips("2001:db8:1::1"), loopback_addresses=ips("2001:db8::9"), ipv4=False),
                ["2001:db8::9 > ::1"],
            ),
        ],
    )
    def test_what_reaches_it(self, wished: Wishes, expected: list[str]) -> None:
        assert mapped(network(wished, HOME)) == expected

    @pytest.mark.parametrize(
        ("wished", "expected"),
        [
            (Wishes(), [f"{FROM_USUAL_MAC} > ::1", "2001:db8:1::1 > ::1"]),
            (Wishes(maps_gateway=False), []),
            (Wishes(loopback_addresses=ips("2001:db8::9")), ["2001:db8::9 > ::1"]),
            (Wishes(gateways=ips("fe80::7")), ["fe80::7 > ::1"]),
        ],
    )
    def test_gateway_of_the_hosts_that_is_not_link_local(self, wished: Wishes, expected: list[str]) -> None:
        """The guest's router is, but a namespace with the host's routes has the host's gateway."""
        there = host("2001:db8:1::2/64 eth0", routes=("2001:db8:1::1 eth0",))
        assert mapped(network(evolve(wished, ipv4=False), there)) == expected

    def test_own_address_follows_the_host(self) -> None:
        wished = Wishes(own_addresses=ips("203.0.113.8"), maps_gateway=False)
        assert mapped(network(wished, HOME, OFFICE)) == ["203.0.113.8 > 198.51.100.7"]

    def test_own_address_of_a_host_that_has_none(self) -> None:
        decision = decide(Wishes(own_addresses=ips("203.0.113.8"), ipv6=False), OFFLINE)
        assert decision.network.host_addresses == (HostAddress(IPv4Address("169.254.2.2"), IPv4Address("127.0.0.1")),)
        note = "--map-guest-addr 203.0.113.8: this host has no IPv4 address that it could reach"
        assert note in decision.warnings

    @pytest.mark.parametrize(
        ("wished", "option"),
        [
            (Wishes(gateways=ips("192.0.2.2")), "--gateway"),
            (Wishes(loopback_addresses=ips("192.0.2.2")), "--map-host-loopback"),
            (Wishes(own_addresses=ips("192.0.2.2")), "--map-guest-addr"),
            (Wishes(dns_forwards=ips("192.0.2.2")), "--dns-forward"),
        ],
    )
    def test_the_guests_own_address_is_no_use(self, wished: Wishes, option: str) -> None:
        assert f"{option} 192.0.2.2 is the guest's own address: it won't work" in decide(wished, HOME).warnings

    @pytest.mark.parametrize("address", ["192.0.2.0", "192.0.2.255"])
    def test_the_subnets_own_addresses_are_no_use(self, address: str) -> None:
        text = f"{address} is the network or broadcast address of the guest's subnet: it won't work"
        assert decide(Wishes(gateways=ips(address)), HOME).warnings == (f"--gateway {text}",)
        assert decide(Wishes(loopback_addresses=ips(address)), HOME).warnings == (f"--map-host-loopback {text}",)
        assert decide(wishes("192.0.2.1/31", gateways=ips("192.0.2.0")), HOME).warnings == ()


def names(decision: Decision) -> tuple[list[str], list[str], list[str]]:
    """Servers told, search list, forwards."""
    resolvers = decision.network.resolvers
    forwards = [f"{forward.seen_by_guest} > {forward.on_host}" for forward in decision.network.dns_forwards]
    return [*map(str, resolvers.ipv4), *map(str, resolvers.ipv6)], list(resolvers.search), forwards


CONF = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\n"
HOME_NAMED = with_resolv_conf(HOME, CONF)
SERVERS, SEARCH = ["192.0.2.53", "2001:db8::53"], ["example.org"]


class TestNames:
    @pytest.mark.parametrize(
        ("wished", "expected"),
        [
            (Wishes(), (SERVERS, SEARCH, [])),
            (Wishes(dns_servers=ips("203.0.113.53")), (["203.0.113.53"], SEARCH, [])),
            (Wishes(dns_servers=ips("127.0.0.53")), (["192.0.2.1"], SEARCH, ["192.0.2.1 > 127.0.0.53"])),
            (Wishes(dns_servers=ips("192.0.2.1")), (["192.0.2.1"], SEARCH, ["192.0.2.1 > 192.0.2.1"])),
            (Wishes(dns_servers=ips("192.0.2.1"), maps_gateway=False), (["192.0.2.1"], SEARCH, [])),
            (Wishes(dns_servers=ips("192.0.2.2"), maps_gateway=False), ([], SEARCH, [])),
            (Wishes(dns_servers=ips("fe80::53")), (["fe80::53"], SEARCH, [])),
            (Wishes(dns_servers=()), ([], SEARCH, [])),
            (Wishes(dns_servers=(), search=()), ([], [], [])),
            (Wishes(search=("example.net",)), (SERVERS, ["example.net"], [])),
            (Wishes(tells_dns=False), ([], SEARCH, [])),
            (Wishes(tells_search=False), (SERVERS, [], [])),
            (
                Wishes(dns_forwards=ips("169.254.1.1"), tells_dns=False),
                ([], SEARCH, ["169.254.1.1 > 192.0.2.53"]),
            ),
            (
                Wishes(dns_forwards=ips("169.254.1.1"), dns_servers=ips("127.0.0.53")),
                (["169.254.1.1"], SEARCH, ["169.254.1.1 > 127.0.0.53"]),
            ),
            (
                Wishes(dns_servers=ips("127.0.0.53"), loopback_addresses=ips("203.0.113.9")),
                (["203.0.113.9"], SEARCH, ["203.0.113.9 > 127.0.0.53"]),
            ),
            (Wishes(dns_servers=ips("127.0.0.53"), maps_gateway=False), ([], SEARCH, [])),
            (
                Wishes(dns_servers=ips("127.0.0.53"), maps_gateway=False, dns_forwards=ips("169.254.1.1")),
                (["169.254.1.1"], SEARCH, ["169.254.1.1 > 127.0.0.53"]),
            ),
        ],
    )
    def test_told(self, wished: Wishes, expected: tuple[list[str], list[str], list[str]]) -> None:
        assert names(decide(wished, HOME_NAMED)) == expected

    def test_none_at_all_in_local_mode(self) -> None:
        assert names(decide(Wishes(dns_servers=()), OFFLINE)) == ([], [], [])

    def test_nobody_is_told_of_missing_nameservers_that_are_not_wanted(self) -> None:
        assert decide(Wishes(dns_servers=()), HOME_NAMED).notes == ()
        assert decide(Wishes(tells_dns=False), HOME_NAMED).notes == ()
        assert len(decide(Wishes(), with_resolv_conf(HOME, "")).notes) == 1

    def test_where_the_useless_nameservers_come_from(self) -> None:
        wished = Wishes(dns_servers=ips("2001:db8::53"), ipv6=False)
        assert decide(wished, HOME_NAMED).notes == (
            "no nameserver of --dns is one that the guest can use: it is told none",
        )

    def test_former_nameserver_behind_another_address_than_the_gateways(self) -> None:
        """What the guest asks there goes to the nameserver of today, even if that one could be asked directly."""
        wished = Wishes(loopback_addresses=ips("203.0.113.9"), ipv6=False)
        found = network(wished, with_resolv_conf(HOME, "nameserver 127.0.0.53\n"), HOME_NAMED)
        assert found.resolvers.ipv4 == (IPv4Address("192.0.2.53"),)
        assert found.former_dns_forwards == (DnsForward(IPv4Address("203.0.113.9"), IPv4Address("192.0.2.53")),)

    def test_gateways_that_are_not_ours_are_no_former_nameservers(self) -> None:
        wished = Wishes(maps_gateway=False, ipv6=False)
        home = with_resolv_conf(HOME, "nameserver 192.0.2.1\n")
        assert network(wished, home).resolvers.ipv4 == (IPv4Address("192.0.2.1"),)
        assert network(wished, home, with_resolv_conf(OFFICE, CONF)).former_dns_forwards == ()


def test_the_rest_is_passed_on() -> None:
    services, transports = Services(dhcp=False), Transports(udp=False)
    found = network(Wishes(host_mac=MAC, services=services, transports=transports), HOME)
    assert (found.host_mac, found.services, found.transports) == (MAC, services, transports)
