"""Which address on one side is which on the other."""

import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import Any

import pytest
from attrs import evolve
from harness.mapped import gateways_mapped
from harness.stage import V4, V6, network

from trio_passt.config import DnsForward, Former, GuestIPv4, GuestIPv6, GuestNetwork, HostAddress, Resolvers
from trio_passt.flow.translate import AddressMap, is_unicast
from trio_passt.host.endpoint import Endpoint

BOTH = AddressMap(network())


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        (V4.gateway, "127.0.0.1"),
        (V6.gateway, "::1"),
        ("192.0.2.9", "192.0.2.9"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8::9", "2001:db8::9"),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1"),
    ],
)
def test_destination_on_host(asked: str, reached: str) -> None:
    assert BOTH.destination_on_host(packed(asked), 80) == Endpoint(packed(reached), 80)


NEVER_REACHED = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "0.0.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:192.0.2.1",
    "::ffff:0.0.0.0",
    "::127.0.0.1",
    "ff02::1",
    "ff05::1:3",
]


@pytest.mark.parametrize("asked", NEVER_REACHED)
def test_destinations_that_are_never_reached(asked: str) -> None:
    assert not is_unicast(packed(asked))
    assert BOTH.destination_on_host(packed(asked), 80) is None


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        (V4.gateway, "127.0.0.1"),
        (V6.gateway, "::1"),
        ("192.0.2.9", None),
        ("192.0.3.9", "192.0.3.9"),
        ("2001:db8:1::9", None),
        ("2001:db8:2::9", "2001:db8:2::9"),
    ],
)
def test_in_a_closed_network_there_is_nobody_but_the_host(asked: str, reached: str | None) -> None:
    closed = (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8:1::/64"))
    addresses = AddressMap(evolve(network(), closed=closed))
    expected = Endpoint(packed(reached), 80) if reached is not None else None
    assert addresses.destination_on_host(packed(asked), 80) == expected
    assert addresses.is_closed(packed("192.0.2.9"))
    assert not addresses.is_closed(packed("192.0.3.9"))
    assert not BOTH.is_closed(packed("192.0.2.9"))


def test_link_local_destinations_have_the_scope_of_the_hosts_interface() -> None:
    guest_network = network()
    assert guest_network.ipv6 is not None
    with_interface = evolve(guest_network, ipv6=evolve(guest_network.ipv6, interface="lo"))
    index = socket.if_nametoindex("lo")
    addresses = AddressMap(with_interface)
    assert addresses.destination_on_host(packed("fe80::77"), 80) == Endpoint(packed("fe80::77"), 80, index)
    assert addresses.destination_on_host(packed("2001:db8::9"), 80) == Endpoint(packed("2001:db8::9"), 80)
    gone = evolve(guest_network, ipv6=evolve(guest_network.ipv6, interface="gone0"))
    assert AddressMap(gone).destination_on_host(packed("fe80::77"), 80) == Endpoint(packed("fe80::77"), 80)


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("127.0.0.1", V4.gateway),
        ("127.0.0.53", V4.gateway),
        (V4.guest, V4.gateway),
        ("::1", V6.gateway),
        (V6.guest, V6.gateway),
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
    ],
)
def test_source_for_guest(peer: str, seen: str) -> None:
    assert BOTH.source_for_guest(packed(peer)) == packed(seen)


def test_family_that_is_off_has_no_way_in_or_out() -> None:
    only_v4, only_v6 = AddressMap(network(ipv6=False)), AddressMap(network(ipv4=False))
    for address in ("::1", V6.gateway, "2001:db8::9"):
        assert only_v4.destination_on_host(packed(address), 80) is None
        assert only_v4.source_for_guest(packed(address)) is None
    for address in ("127.0.0.1", V4.gateway, "192.0.2.9"):
        assert only_v6.destination_on_host(packed(address), 80) is None
        assert only_v6.source_for_guest(packed(address)) is None


@pytest.mark.parametrize("port", [53, 853])
def test_nameserver_that_only_the_host_can_reach(port: int) -> None:
    forwards = (
        DnsForward(IPv4Address(V4.gateway), IPv4Address("127.0.0.53")),
        DnsForward(IPv6Address("2001:db8::53"), IPv6Address("::1")),
    )
    addresses = AddressMap(network(dns_forwards=forwards))
    assert addresses.destination_on_host(packed(V4.gateway), port) == Endpoint(packed("127.0.0.53"), port)
    assert addresses.destination_on_host(packed("2001:db8::53"), port) == Endpoint(packed("::1"), port)


def test_other_ports_of_a_nameservers_address_go_where_they_always_go() -> None:
    addresses = AddressMap(
        network(dns_forwards=(DnsForward(IPv4Address(V4.gateway), IPv4Address("127.0.0.53")),)),
    )
    assert addresses.destination_on_host(packed(V4.gateway), 80) == Endpoint(packed("127.0.0.1"), 80)


@pytest.mark.parametrize(
    ("address", "is_theirs"),
    [
        ("224.0.0.1", True),
        ("239.255.255.250", True),
        ("255.255.255.255", True),
        ("198.51.100.255", True),
        ("198.51.100.254", False),
        ("198.51.101.255", False),
        ("223.255.255.255", False),
        ("240.0.0.1", False),
        ("255.255.255.254", False),
        ("ff02::fb", True),
        ("ff0e::1", True),
        ("fe80::ffff", False),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", False),
    ],
)
def test_groups_and_broadcast_addresses_are_the_neighbours(address: str, is_theirs: bool) -> None:
    """RFC 1112, RFC 919, RFC 4291 section 2.7; IPv6 has no broadcast."""
    assert AddressMap(network()).is_for_neighbours(ip_address(address).packed) is is_theirs


@pytest.mark.parametrize(
    ("prefix_length", "broadcast"),
    [(24, "198.51.100.255"), (28, "198.51.100.15"), (30, "198.51.100.7"), (8, "198.255.255.255")],
)
def test_broadcast_address_follows_from_the_prefix(prefix_length: int, broadcast: str) -> None:
    guest = GuestIPv4(IPv4Address("198.51.100.5"), prefix_length, IPv4Address("198.51.100.1"))
    addresses = AddressMap(evolve(network(), ipv4=guest))
    assert addresses.is_for_neighbours(ip_address(broadcast).packed)
    assert not addresses.is_for_neighbours((IPv4Address(broadcast) - 1).packed)


@pytest.mark.parametrize("prefix_length", [31, 32])
def test_network_of_one_or_two_addresses_has_none(prefix_length: int) -> None:
    """RFC 3021: both of two are hosts'."""
    guest = GuestIPv4(IPv4Address("198.51.100.5"), prefix_length, IPv4Address("198.51.100.4"))
    addresses = AddressMap(evolve(network(), ipv4=guest))
    for last in (4, 5, 255):
        assert not addresses.is_for_neighbours(bytes((198, 51, 100, last)))
    assert addresses.is_for_neighbours(b"\xff" * 4)


def test_neighbours_of_a_family_that_is_off() -> None:
    addresses = AddressMap(network(ipv4=False))
    assert addresses.is_for_neighbours(b"\xff" * 4)
    assert not addresses.is_for_neighbours(bytes((198, 51, 100, 255)))


def host_addresses(*pairs: tuple[str, str]) -> tuple[HostAddress, ...]:
    """Of what the guest sees, and what that is on the host."""
    return tuple(HostAddress(ip_address(seen), ip_address(on_host)) for seen, on_host in pairs)


class TestAddressesThatStandForTheHost:
    """`--map-host-loopback`, `--no-map-gw` and `--map-guest-addr`, as `decide` understands them."""

    LOOPBACK = host_addresses(("192.0.2.77", "127.0.0.1"), ("2001:db8::77", "::1"))
    OWN = host_addresses(("192.0.2.78", V4.guest), ("2001:db8::78", V6.guest))

    def map(self, *mappings: HostAddress) -> AddressMap:
        return AddressMap(evolve(network(), host_addresses=mappings))

    def reached(self, addresses: AddressMap, asked: str, port: int = 80) -> str | None:
        found = addresses.destination_on_host(packed(asked), port)
        return None if found is None else str(ip_address(found.address))

    def seen(self, addresses: AddressMap, peer: str) -> str:
        found = addresses.source_for_guest(packed(peer))
        assert found is not None
        return str(ip_address(found))

    def test_another_address_in_place_of_the_gateways(self) -> None:
        addresses = self.map(*self.LOOPBACK)
        for gateway, mapped, loopback, own in (
            (V4.gateway, "192.0.2.77", "127.0.0.1", V4.guest),
            (V6.gateway, "2001:db8::77", "::1", V6.guest),
        ):
            assert self.reached(addresses, mapped) == loopback
            assert self.reached(addresses, gateway) == gateway
            assert self.seen(addresses, loopback) == self.seen(addresses, own) == mapped
            assert self.seen(addresses, gateway) == gateway
            assert addresses.stands_for_host(packed(mapped))
            assert not addresses.stands_for_host(packed(gateway))
        assert self.seen(addresses, "127.0.0.53") == "192.0.2.77"

    def test_none(self) -> None:
        """The gateway is itself; but who is on the host has to come from somewhere."""
        addresses = self.map()
        for gateway, loopback, own in ((V4.gateway, "127.0.0.1", V4.guest), (V6.gateway, "::1", V6.guest)):
            assert self.reached(addresses, gateway) == gateway
            assert self.seen(addresses, loopback) == self.seen(addresses, own) == gateway
            assert not addresses.stands_for_host(packed(gateway))

    def test_gateway_that_is_not_mapped_has_the_scope_of_its_interface(self) -> None:
        told = network()
        assert told.ipv6 is not None
        told = evolve(told, ipv6=evolve(told.ipv6, interface="lo"), host_addresses=())
        index = socket.if_nametoindex("lo")
        assert AddressMap(told).destination_on_host(packed(V6.gateway), 80) == Endpoint(packed(V6.gateway), 80, index)

    def test_hosts_own_address_beside_its_loopback(self) -> None:
        addresses = self.map(*network().host_addresses, *self.OWN)
        for gateway, mapped, loopback, own in (
            (V4.gateway, "192.0.2.78", "127.0.0.1", V4.guest),
            (V6.gateway, "2001:db8::78", "::1", V6.guest),
        ):
            assert (self.reached(addresses, gateway), self.reached(addresses, mapped)) == (loopback, own)
            assert (self.seen(addresses, loopback), self.seen(addresses, own)) == (gateway, mapped)

    def test_guest_with_an_address_that_the_host_does_not_have(self) -> None:
        """Then the host's own is that of a neighbour, with or without another name."""
        own = host_addresses(("192.0.2.78", "203.0.113.2"))
        plain, mapped = self.map(*network().host_addresses), self.map(*network().host_addresses, *own)
        assert (self.reached(plain, "203.0.113.2"), self.seen(plain, "203.0.113.2")) == ("203.0.113.2", "203.0.113.2")
        assert (self.reached(mapped, "192.0.2.78"), self.seen(mapped, "203.0.113.2")) == ("203.0.113.2", "192.0.2.78")
        assert self.seen(mapped, V4.guest) == V4.gateway

    def test_nameserver_comes_first(self) -> None:
        forwards = (DnsForward(IPv4Address("192.0.2.77"), IPv4Address("203.0.113.53")),)
        addresses = AddressMap(evolve(network(dns_forwards=forwards), host_addresses=self.LOOPBACK))
        assert [self.reached(addresses, "192.0.2.77", port) for port in (53, 80)] == ["203.0.113.53", "127.0.0.1"]

    def test_family_that_is_off(self) -> None:
        addresses = AddressMap(evolve(network(ipv6=False), host_addresses=(*self.LOOPBACK, *self.OWN)))
        assert addresses.destination_on_host(packed("2001:db8::77"), 80) is None
        assert addresses.source_for_guest(packed("::1")) is None
        assert self.reached(addresses, "192.0.2.77") == "127.0.0.1"

    def test_errors_come_from_the_gateway(self) -> None:
        assert self.map(*self.LOOPBACK).router_of(packed("203.0.113.9")) == packed(V4.gateway)

    def test_who_is_the_host_itself(self) -> None:
        addresses = self.map(*self.LOOPBACK, *host_addresses(("192.0.2.78", "203.0.113.2")))
        for address in ("127.0.0.1", "127.0.0.53", "::1", V4.guest, V6.guest, "203.0.113.2"):
            assert addresses.is_host(packed(address)), address
        for address in (V4.gateway, V6.gateway, "203.0.113.3", "2001:db8::9", "192.0.2.77"):
            assert not addresses.is_host(packed(address)), address

    def test_former_gateway_is_the_host_only_while_gateways_are(self) -> None:
        before = network().ipv4
        assert before is not None
        now = evolve(network(), ipv4=GuestIPv4(IPv4Address("203.0.113.7"), 24, IPv4Address("203.0.113.1")))
        now = evolve(now, former=(Former(before, on_host=True),))
        for mappings, reached in (
            (gateways_mapped(now).host_addresses, "127.0.0.1"),
            (self.LOOPBACK, V4.gateway),
            ((), V4.gateway),
            (host_addresses(("203.0.113.1", V4.guest)), V4.gateway),
        ):
            assert self.reached(AddressMap(evolve(now, host_addresses=mappings)), V4.gateway) == reached


class TestSeveralAddresses:
    """What is the guest's is the host's, whichever of them it is."""

    OTHERS = (IPv4Interface("203.0.113.7/28"), IPv4Interface("192.0.2.5/32"))
    OTHERS6 = (IPv6Interface("2001:db8:7::7/64"),)

    def addresses(self) -> AddressMap:
        told = network()
        assert told.ipv4 is not None
        assert told.ipv6 is not None
        ipv4, ipv6 = evolve(told.ipv4, others=self.OTHERS), evolve(told.ipv6, others=self.OTHERS6)
        return AddressMap(evolve(told, ipv4=ipv4, ipv6=ipv6))

    def test_peers_there_are_host_local(self) -> None:
        for peer, seen in (
            (V4.guest, V4.gateway),
            ("203.0.113.7", V4.gateway),
            ("192.0.2.5", V4.gateway),
            ("2001:db8:7::7", V6.gateway),
        ):
            assert self.addresses().source_for_guest(packed(peer)) == packed(seen)

    def test_broadcast_address_of_each_network(self) -> None:
        for address, is_theirs in (
            ("198.51.100.255", True),
            ("203.0.113.15", True),
            ("203.0.113.255", False),
            ("192.0.2.5", False),
        ):
            assert self.addresses().is_for_neighbours(packed(address)) is is_theirs


def test_link_local_destinations_are_at_the_interface_that_is_the_way_out() -> None:
    told = network()
    assert told.ipv6 is not None
    told = evolve(told, ipv6=evolve(told.ipv6, interface="gone0"))
    index = socket.if_nametoindex("lo")
    assert AddressMap(told, "lo").destination_on_host(packed("fe80::77"), 80) == Endpoint(packed("fe80::77"), 80, index)


class TestAfterAChange:
    """The host's network has changed, and the guest may not know it yet."""

    BEFORE = network()
    NOW = gateways_mapped(
        GuestNetwork(
            GuestIPv4(IPv4Address("203.0.113.7"), 24, IPv4Address("203.0.113.1")),
            GuestIPv6(IPv6Address("2001:db8:7::7"), 64, IPv6Address("fe80::7")),
        )
    )

    def map(self, now: GuestNetwork = NOW, *former: GuestIPv4 | GuestIPv6, **changes: Any) -> AddressMap:
        """After what was before, or what is given instead."""
        assert self.BEFORE.ipv4 is not None
        assert self.BEFORE.ipv6 is not None
        before = tuple(Former(guest, False) for guest in former or (self.BEFORE.ipv4, self.BEFORE.ipv6))
        return AddressMap(evolve(now, former=before, **changes))

    @pytest.mark.parametrize(
        ("asked", "reached"),
        [("203.0.113.1", "127.0.0.1"), (V4.gateway, "127.0.0.1"), ("fe80::7", "::1"), (V6.gateway, "::1")],
    )
    def test_gateways_of_before_and_of_now_are_the_host(self, asked: str, reached: str) -> None:
        assert self.map().destination_on_host(packed(asked), 80) == Endpoint(packed(reached), 80)

    def test_former_gateway_that_is_a_nameserver_now_is_reached_where_it_is(self) -> None:
        resolvers = Resolvers((IPv4Address(V4.gateway),), (IPv6Address(V6.gateway),))
        addresses = self.map(resolvers=resolvers)
        for port in (53, 80):
            assert addresses.destination_on_host(packed(V4.gateway), port) == Endpoint(packed(V4.gateway), port)
            assert addresses.destination_on_host(packed(V6.gateway), port) == Endpoint(packed(V6.gateway), port)

    def test_gateway_that_is_the_same_although_it_is_a_nameserver(self) -> None:
        same = evolve(self.BEFORE, resolvers=Resolvers((IPv4Address(V4.gateway),)))
        assert self.map(same).destination_on_host(packed(V4.gateway), 80) == Endpoint(packed("127.0.0.1"), 80)

    @pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.7", V4.guest])
    def test_who_has_an_address_that_the_guest_takes_for_its_own_is_seen_as_the_gateway(self, peer: str) -> None:
        assert self.map().source_for_guest(packed(peer)) == packed("203.0.113.1")

    @pytest.mark.parametrize("peer", ["::1", "2001:db8:7::7", V6.guest])
    def test_and_so_with_ipv6(self, peer: str) -> None:
        assert self.map().source_for_guest(packed(peer)) == packed("fe80::7")

    def test_all_others_are_who_they_are(self) -> None:
        for address in ("198.51.100.9", V4.gateway, "2001:db8::9"):
            assert self.map().source_for_guest(packed(address)) == packed(address)
        assert self.map().destination_on_host(packed("198.51.100.9"), 80) == Endpoint(packed("198.51.100.9"), 80)

    def test_broadcast_addresses(self) -> None:
        addresses = self.map()
        assert addresses.is_for_neighbours(packed("198.51.100.255"))
        assert addresses.is_for_neighbours(packed("203.0.113.255"))
        assert not addresses.is_for_neighbours(packed("192.0.2.255"))

    def test_errors_come_from_the_router_of_now(self) -> None:
        assert self.map().router_of(packed("192.0.2.9")) == packed("203.0.113.1")
        assert self.map().router_of(packed("2001:db8::9")) == packed("fe80::7")

    def test_former_nameservers(self) -> None:
        """What is told now comes first."""
        addresses = self.map(
            dns_forwards=(DnsForward(IPv4Address("203.0.113.1"), IPv4Address("127.0.0.53")),),
            former_dns_forwards=(
                DnsForward(IPv4Address("203.0.113.1"), IPv4Address("192.0.2.9")),
                DnsForward(IPv4Address(V4.gateway), IPv4Address("192.0.2.53")),
                DnsForward(IPv6Address(V6.gateway), IPv6Address("2001:db8::53")),
            ),
        )
        for port in (53, 853):
            for asked, reached in (
                ("203.0.113.1", "127.0.0.53"),
                (V4.gateway, "192.0.2.53"),
                (V6.gateway, "2001:db8::53"),
            ):
                assert addresses.destination_on_host(packed(asked), port) == Endpoint(packed(reached), port)
        assert addresses.destination_on_host(packed(V4.gateway), 80) == Endpoint(packed("127.0.0.1"), 80)

    def test_nameserver_at_a_link_local_address_has_the_interface_of_now(self) -> None:
        assert self.NOW.ipv6 is not None
        now = evolve(self.NOW, ipv6=evolve(self.NOW.ipv6, interface="lo"))
        forwards = (DnsForward(IPv6Address(V6.gateway), IPv6Address("fe80::53")),)
        addresses = self.map(now, former_dns_forwards=forwards)
        index = socket.if_nametoindex("lo")
        assert addresses.destination_on_host(packed(V6.gateway), 53) == Endpoint(packed("fe80::53"), 53, index)
