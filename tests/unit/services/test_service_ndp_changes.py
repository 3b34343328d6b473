"""What router advertisements say when the host's network changes under the guest."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import HOST_MAC_TEXT, LOCAL_MODE, NETWORK, NO_NETWORK, dissect
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet

from trio_passt.config import Former, GuestIPv4, GuestIPv6, GuestNetwork, Resolvers
from trio_passt.services import ndp

LIFETIME_S = ndp.ROUTER_LIFETIME_S
HERE, ELSEWHERE = "2001:db8:1:2::", "2001:db8:7:7::"
HOLDS, DEPRECATED, WITHDRAWN = (86400, 14400), (86400, 0), (0, 0)
MOVED = evolve(NETWORK, ipv6=GuestIPv6(IPv6Address(ELSEWHERE + "5"), 64, IPv6Address("fe80::1"), "eth0"))
OTHER_ROUTER = evolve(NETWORK, ipv6=GuestIPv6(IPv6Address(HERE + "5"), 64, IPv6Address("fe80::9"), "eth0"))
OFF = evolve(NETWORK, ipv6=None)


def former(network: GuestNetwork, *, on_host: bool) -> Former:
    assert network.ipv6 is not None
    return Former(network.ipv6, on_host)


def resolving(servers: list[str], search: list[str]) -> GuestNetwork:
    return evolve(NETWORK, resolvers=Resolvers((), tuple(map(IPv6Address, servers)), tuple(search)))


def changes(before: GuestNetwork, now: GuestNetwork) -> list[Packet]:
    frames = ndp.changes(before, now)
    packets = [dissect(frame) for frame in frames]
    for frame, packet in zip(frames, packets, strict=True):
        assert len(frame) <= 14 + 1280
        assert (packet.src, packet.dst) == (HOST_MAC_TEXT, "33:33:00:00:00:01")
        assert (packet[IPv6].dst, packet[IPv6].hlim) == ("ff02::1", 255)
        assert packet[ICMPv6NDOptSrcLLAddr].lladdr == HOST_MAC_TEXT
    return packets


def options_of(packet: Packet, kind: type[Packet]) -> list[Packet]:
    return [packet.getlayer(kind, number) for number in range(1, 20) if packet.getlayer(kind, number) is not None]


def prefixes_of(packet: Packet) -> dict[str, tuple[int, int]]:
    """Valid and preferred lifetime of each prefix."""
    options = options_of(packet, ICMPv6NDOptPrefixInfo)
    assert all((option.prefixlen, option.L, option.A) == (64, 1, 1) for option in options)
    return {option.prefix: (option.validlifetime, option.preferredlifetime) for option in options}


def servers_of(packet: Packet) -> dict[str, int]:
    return {address: option.lifetime for option in options_of(packet, ICMPv6NDOptRDNSS) for address in option.dns}


def search_of(packet: Packet) -> dict[str, int]:
    options = options_of(packet, ICMPv6NDOptDNSSL)
    return {name.rstrip("."): option.lifetime for option in options for name in option.searchlist if name != "."}


def router_of(packet: Packet) -> tuple[str, int, int, int]:
    router = packet[ICMPv6ND_RA]
    return packet[IPv6].src, router.routerlifetime, router.M, router.O


@pytest.mark.parametrize("network", [NETWORK, LOCAL_MODE, NO_NETWORK, OFF])
def test_nothing_changed(network: GuestNetwork) -> None:
    assert ndp.changes(network, network) == []


def test_changes_of_ipv4_are_not_told() -> None:
    guest = GuestIPv4(IPv4Address("198.51.100.9"), 24, IPv4Address("198.51.100.1"), "eth0")
    assert NETWORK.ipv4 is not None
    now = evolve(NETWORK, ipv4=guest, former=(Former(NETWORK.ipv4, False),), hostname="guest")
    assert ndp.changes(NETWORK, now) == []
    assert ndp.changes(OFF, evolve(now, ipv6=None)) == []


@pytest.mark.parametrize(("on_host", "lifetimes"), [(False, WITHDRAWN), (True, DEPRECATED)])
def test_a_new_prefix_deprecates_the_former_one(on_host: bool, lifetimes: tuple[int, int]) -> None:
    now = evolve(MOVED, former=(former(NETWORK, on_host=on_host),))
    (packet,) = changes(NETWORK, now)
    assert router_of(packet) == ("fe80::1", LIFETIME_S, 1, 1)
    assert prefixes_of(packet) == {ELSEWHERE: HOLDS, HERE: lifetimes}
    assert packet[ICMPv6NDOptMTU].mtu == 65520
    assert set(servers_of(packet).values()) == set(search_of(packet).values()) == {LIFETIME_S}


def test_a_former_prefix_that_is_not_listed_is_gone() -> None:
    (packet,) = changes(NETWORK, MOVED)
    assert prefixes_of(packet) == {ELSEWHERE: HOLDS, HERE: WITHDRAWN}


def test_another_address_of_the_same_prefix() -> None:
    """There is nothing to withdraw; the advertisement says that something happened."""
    now = evolve(NETWORK, ipv6=GuestIPv6(IPv6Address(HERE + "77"), 64, IPv6Address("fe80::1"), "eth0"))
    (packet,) = changes(NETWORK, evolve(now, former=(former(NETWORK, on_host=False),)))
    assert prefixes_of(packet) == {HERE: HOLDS}


def test_another_router_and_the_former_one_says_so() -> None:
    farewell, packet = changes(NETWORK, OTHER_ROUTER)
    assert router_of(farewell) == ("fe80::1", 0, 1, 1)
    assert (prefixes_of(farewell), servers_of(farewell), search_of(farewell)) == ({}, {}, {})
    assert router_of(packet) == ("fe80::9", LIFETIME_S, 1, 1)
    assert prefixes_of(packet) == {HERE: HOLDS}


def test_another_router_and_prefix() -> None:
    now = evolve(OTHER_ROUTER, ipv6=GuestIPv6(IPv6Address(ELSEWHERE + "5"), 64, IPv6Address("fe80::9"), "eth0"))
    farewell, packet = changes(NETWORK, now)
    assert prefixes_of(farewell) == {HERE: WITHDRAWN}
    assert prefixes_of(packet) == {ELSEWHERE: HOLDS, HERE: WITHDRAWN}


def test_no_ipv6_any_more() -> None:
    (farewell,) = changes(NETWORK, OFF)
    assert router_of(farewell) == ("fe80::1", 0, 0, 0)
    assert prefixes_of(farewell) == {HERE: WITHDRAWN}
    assert servers_of(farewell) == {"2001:db8::53": 0, "2001:db8::54": 0}
    assert search_of(farewell) == {"lab.example.com": 0, "example.com": 0}


def test_ipv6_at_last() -> None:
    (packet,) = changes(OFF, NETWORK)
    assert router_of(packet) == ("fe80::1", LIFETIME_S, 1, 1)
    assert prefixes_of(packet) == {HERE: HOLDS}


def test_a_network_after_local_mode_and_back() -> None:
    (packet,) = changes(LOCAL_MODE, evolve(NETWORK, former=(former(LOCAL_MODE, on_host=False),)))
    assert router_of(packet) == ("fe80::1", LIFETIME_S, 1, 1)
    assert prefixes_of(packet) == {HERE: HOLDS}
    (packet,) = changes(NETWORK, evolve(LOCAL_MODE, former=(former(NETWORK, on_host=False),)))
    assert router_of(packet) == ("fe80::1", LIFETIME_S, 0, 1)
    assert prefixes_of(packet) == {HERE: WITHDRAWN}
    assert set(servers_of(packet).values()) == {0}


def test_no_default_route_any_more_and_again() -> None:
    offline = evolve(NETWORK, ipv6_offline=True)
    (packet,) = changes(NETWORK, offline)
    assert router_of(packet) == ("fe80::1", 0, 1, 1)
    assert (prefixes_of(packet), set(servers_of(packet).values())) == ({HERE: HOLDS}, {LIFETIME_S})
    (packet,) = changes(offline, NETWORK)
    assert router_of(packet) == ("fe80::1", LIFETIME_S, 1, 1)


def test_resolvers_and_search_domains_that_are_gone_are_taken_back() -> None:
    before = resolving(["2001:db8::1", "2001:db8::2"], ["a.example", "b.example", "Same.Example."])
    now = resolving(["2001:db8::2", "2001:db8::3"], ["b.example", "same.example", "c.example"])
    (packet,) = changes(before, now)
    assert servers_of(packet) == {"2001:db8::2": LIFETIME_S, "2001:db8::3": LIFETIME_S, "2001:db8::1": 0}
    assert search_of(packet) == {
        **dict.fromkeys(("b.example", "same.example", "c.example"), LIFETIME_S),
        "a.example": 0,
    }


def test_no_resolvers_any_more() -> None:
    (packet,) = changes(NETWORK, resolving([], []))
    assert set(servers_of(packet).values()) == set(search_of(packet).values()) == {0}


def test_the_mtu_changed() -> None:
    (packet,) = changes(NETWORK, evolve(NETWORK, mtu_bytes=1500))
    assert packet[ICMPv6NDOptMTU].mtu == 1500


def test_the_host_loses_a_former_address() -> None:
    before = evolve(MOVED, former=(former(NETWORK, on_host=True),))
    (packet,) = changes(before, evolve(MOVED, former=(former(NETWORK, on_host=False),)))
    assert prefixes_of(packet) == {ELSEWHERE: HOLDS, HERE: WITHDRAWN}


def test_every_advertisement_names_former_prefixes() -> None:
    local = former(LOCAL_MODE, on_host=True)
    same = former(NETWORK, on_host=False)
    others = [
        Former(GuestIPv6(IPv6Address(f"2001:db8:a:{number}::5"), 64, IPv6Address("fe80::1"), "eth0"), number == 2)
        for number in range(1, 7)
    ]
    packet = dissect(ndp.advertisement(evolve(NETWORK, former=(local, same, *others))))
    assert prefixes_of(packet) == {
        HERE: HOLDS,
        "2001:db8:a:1::": WITHDRAWN,
        "2001:db8:a:2::": DEPRECATED,
        "2001:db8:a:3::": WITHDRAWN,
        "2001:db8:a:4::": WITHDRAWN,
    }


def test_a_prefix_is_kept_if_any_of_its_addresses_is() -> None:
    ends = [("5", False), ("6", True), ("7", False)]
    formers = [Former(GuestIPv6(IPv6Address(HERE + end), 64, IPv6Address("fe80::1"), "eth0"), on) for end, on in ends]
    packet = dissect(ndp.advertisement(evolve(MOVED, former=tuple(formers))))
    assert prefixes_of(packet) == {ELSEWHERE: HOLDS, HERE: DEPRECATED}


def test_the_most_that_may_have_to_be_told_fits() -> None:
    """All that holds, all prefixes and servers that are gone, and no search domain that is."""
    many = [
        resolving([f"2001:db8:{side}::{at:x}" for at in range(1, 30)], [f"{side}{at}.example" for at in range(99)])
        for side in range(2)
    ]
    formers = tuple(
        Former(GuestIPv6(IPv6Address(f"2001:db8:a:{number}::5"), 64, IPv6Address("fe80::1"), "eth0"), True)
        for number in range(1, 7)
    )
    (packet,) = changes(many[0], evolve(many[1], former=formers))
    assert packet[IPv6].plen + 40 == 1280
    assert len(prefixes_of(packet)) == 5
    assert sorted(servers_of(packet).values()) == [0] * 16 + [LIFETIME_S] * 16
    assert set(search_of(packet).values()) == {LIFETIME_S}


@pytest.mark.parametrize("servers", range(7, 17))
def test_search_domains_are_taken_back_as_far_as_there_is_room(servers: int) -> None:
    """Names of 16 bytes fill the room, but for the option's head."""
    before = resolving([f"2001:db8::{at:x}" for at in range(servers)], [f"{at:06}.example" for at in range(32)])
    now = resolving(["2001:db8:1::1"], [f"{at:06}.example" for at in range(32, 64)])
    (packet,) = changes(before, now)
    gone = [name for name, lifetime_s in search_of(packet).items() if lifetime_s == 0]
    assert 0 < len(gone) < 32
    assert 1280 - 16 < packet[IPv6].plen + 40 <= 1280


addresses = st.sampled_from([HERE + "5", HERE + "6", ELSEWHERE + "5", "fe80::5"])
guests = st.builds(
    lambda address, gateway: GuestIPv6(IPv6Address(address), 64, IPv6Address(gateway), "eth0"),
    addresses,
    st.sampled_from(["fe80::1", "fe80::9", "::"]),
)
names = st.lists(st.text("abc", min_size=1, max_size=60).map(lambda label: label + ".example"), max_size=12)
networks = st.builds(
    lambda ipv6, servers, search, offline, former, mtu_bytes: GuestNetwork(
        ipv6=ipv6,
        resolvers=Resolvers((), tuple(IPv6Address(0x20010DB8 << 96 | each) for each in servers), tuple(search)),
        ipv6_offline=offline,
        former=tuple(former),
        mtu_bytes=mtu_bytes,
    ),
    st.none() | guests,
    st.lists(st.integers(0, 40), max_size=20),
    names,
    st.booleans(),
    st.lists(st.builds(Former, guests, st.booleans()), max_size=6),
    st.sampled_from([0, 1280, 65520]),
)


@settings(max_examples=100, deadline=None)
@given(networks, networks)
def test_whatever_changes(before: GuestNetwork, now: GuestNetwork) -> None:
    """Nothing is both told and taken back, and what the guest knew is told again or taken back."""
    packets = changes(before, now)
    if packets and now.ipv6 is not None:
        prefixes = [option.prefix for option in options_of(packets[-1], ICMPv6NDOptPrefixInfo)]
        assert len(set(prefixes)) == len(prefixes)
        told = set(now.resolvers.ipv6[:16])
        gone = set(before.resolvers.ipv6[:16]) - told if before.ipv6 else set()
        expected = {str(address): LIFETIME_S for address in told} | {str(address): 0 for address in gone}
        assert servers_of(packets[-1]) == expected
        if before.ipv6 is not None and not before.ipv6.address.is_link_local:
            assert str(IPv6Address(before.ipv6.address.packed[:8] + bytes(8))) in prefixes
