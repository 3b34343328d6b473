"""Which of the host's interfaces, addresses and gateways the guest gets: tables of small hosts."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import evolve

from trio_passt.config import HOST_MAC
from trio_passt.host.network import (
    LOCAL_IPV4,
    LOCAL_IPV6,
    Address,
    DefaultRoute,
    HostNetwork,
    Link,
    NextHop,
    choose,
    link_local_from_mac,
)

LINKS = [Link(1, "lo", loopback=True), Link(2, "eth0"), Link(3, "wlan0"), Link(4, "down0", up=False)]
FROM_MAC = IPv6Address("fe80::9855:9aff:fe55:9a55")


def address(text: str, link_index: int = 2) -> Address:
    host, _, length = text.partition("/")
    return Address(link_index, ip_address(host), int(length))


def route(version: int, gateway: str | None, link_index: int = 2, metric: int = 0) -> DefaultRoute:
    return DefaultRoute(version, (NextHop(link_index, ip_address(gateway) if gateway else None),), metric=metric)


V4, V6 = address("192.0.2.2/24"), address("2001:db8::2/64")
ROUTE_4, ROUTE_6 = route(4, "192.0.2.1"), route(6, "fe80::1")


def ipv4(addresses: list[Address], *routes: DefaultRoute) -> str:
    found = choose(LINKS, addresses, routes).ipv4
    return f"{found.address}/{found.prefix_length} by {found.gateway} as {found.interface}" if found else "off"


def ipv6(addresses: list[Address], *routes: DefaultRoute) -> str:
    found = choose(LINKS, addresses, routes).ipv6
    return f"{found.address}/{found.prefix_length} by {found.gateway} as {found.interface}" if found else "off"


def test_both_families() -> None:
    assert ipv4([V4, V6], ROUTE_4, ROUTE_6) == "192.0.2.2/24 by 192.0.2.1 as eth0"
    assert ipv6([V4, V6], ROUTE_4, ROUTE_6) == "2001:db8::2/64 by fe80::1 as eth0"


def test_gateway_of_the_hosts_that_is_no_router_for_the_guest_is_known_all_the_same() -> None:
    found = choose(LINKS, [V6], [route(6, "2001:db8::1")]).ipv6
    assert found is not None
    assert (found.gateway, found.host_gateway) == (FROM_MAC, IPv6Address("2001:db8::1"))
    link_local = choose(LINKS, [V6], [ROUTE_6]).ipv6
    assert link_local is not None
    assert link_local.host_gateway is None


def test_each_family_may_have_its_own_interface() -> None:
    there = address("2001:db8::3/64", 3)
    routes = (ROUTE_4, route(6, "fe80::1", 3))
    assert ipv4([V4, V6, there], *routes) == "192.0.2.2/24 by 192.0.2.1 as eth0"
    assert ipv6([V4, V6, there], *routes) == "2001:db8::3/64 by fe80::1 as wlan0"


def test_one_family_without_route_is_off_and_that_is_said() -> None:
    found = choose(LINKS, [V4, V6], [ROUTE_4])
    assert found.ipv4 is not None
    assert (found.ipv6, found.notes) == (None, ("no IPv6 default route: IPv6 is off",))
    found = choose(LINKS, [V4, V6], [ROUTE_6])
    assert found.ipv6 is not None
    assert (found.ipv4, found.notes) == (None, ("no IPv4 default route: IPv4 is off",))


def test_a_route_without_any_address_is_no_use() -> None:
    found = choose(LINKS, [V4, evolve(V6, global_scope=False)], [ROUTE_4, ROUTE_6])
    assert (found.ipv6, found.notes) == (None, ("no IPv6 address for the default route by eth0: IPv6 is off",))


def test_no_route_at_all_is_local_mode() -> None:
    note = "no IPv4 default route, no IPv6 default route: local mode, in which the guest reaches this host only"
    assert choose(LINKS, [V4, V6], []) == HostNetwork(LOCAL_IPV4, LOCAL_IPV6, (note,))
    assert choose([], [], []) == HostNetwork(LOCAL_IPV4, LOCAL_IPV6, (note,))


def test_a_family_that_is_not_asked_for_is_off_without_a_note() -> None:
    assert choose(LINKS, [V4, V6], [ROUTE_4, ROUTE_6], ipv6=False).notes == ()
    assert choose(LINKS, [V4, V6], [ROUTE_4, ROUTE_6], ipv6=False).ipv6 is None
    assert choose(LINKS, [V4, V6], [ROUTE_4, ROUTE_6], ipv4=False).ipv4 is None
    local = choose(LINKS, [V4, V6], [ROUTE_6], ipv6=False)
    assert (local.ipv4, local.ipv6) == (LOCAL_IPV4, None)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([route(4, "192.0.2.1", 2, 600), route(4, "198.51.100.1", 3, 100)], "wlan0"),
        ([route(4, "192.0.2.1", 2, 100), route(4, "198.51.100.1", 3, 600)], "eth0"),
        ([route(4, "192.0.2.1", 2), route(4, "198.51.100.1", 3)], "eth0"),
        ([route(4, "198.51.100.1", 3), route(4, "192.0.2.1", 2)], "wlan0"),
        ([route(4, "192.0.2.1", 2), evolve(route(4, "198.51.100.1", 3), preference=1)], "wlan0"),
        ([evolve(route(4, "192.0.2.1", 2), preference=-1), route(4, "198.51.100.1", 3)], "wlan0"),
        ([route(4, "192.0.2.1", 4), route(4, "198.51.100.1", 3, 9)], "wlan0"),  # the interface is down
        ([route(4, "192.0.2.1", 1), route(4, "198.51.100.1", 3, 9)], "wlan0"),  # loopback
        ([route(4, "192.0.2.1", 77), route(4, "198.51.100.1", 3, 9)], "wlan0"),  # gone since it was listed
        ([DefaultRoute(4, ()), route(4, "198.51.100.1", 3, 9)], "wlan0"),
        ([DefaultRoute(4, (NextHop(4), NextHop(2, dead=True), NextHop(3)))], "wlan0"),
        ([evolve(route(4, "192.0.2.1", 2), table=51820), route(4, "198.51.100.1", 3, 9)], "wlan0"),
    ],
)
def test_the_route(routes: list[DefaultRoute], expected: str) -> None:
    chosen = choose(LINKS, [V4, address("198.51.100.2/24", 3)], routes, ipv6=False)
    assert chosen.ipv4 is not None
    assert chosen.ipv4.interface == expected


def test_what_a_multipath_route_and_other_tables_mean_is_said() -> None:
    several = DefaultRoute(4, (NextHop(2, IPv4Address("192.0.2.1")), NextHop(3)))
    notes = choose(LINKS, [V4], [several, evolve(ROUTE_4, table=100)], ipv6=False).notes
    assert notes == (
        "default routes of other tables than main are not considered (tables: 100)",
        "the IPv4 default route has 2 paths: the guest gets eth0's",
    )


@pytest.mark.parametrize(
    ("texts", "gateway", "expected"),
    [
        (["192.0.2.2/24"], None, "192.0.2.2/24 by 192.0.2.1"),
        (["192.0.2.1/24"], None, "192.0.2.1/24 by 192.0.2.2"),
        (["192.0.2.0/31"], None, "192.0.2.0/31 by 192.0.2.1"),
        (["192.0.2.1/31"], None, "192.0.2.1/31 by 192.0.2.0"),
        (["192.0.2.9/32"], None, "192.0.2.9/32 by 169.254.2.2"),
        (["192.0.2.9/32"], "203.0.113.1", "192.0.2.9/32 by 203.0.113.1"),
        (["192.0.2.9/24"], "fe80::1", "192.0.2.9/24 by 192.0.2.1"),
        (["198.51.100.2/24", "192.0.2.2/24"], "192.0.2.1", "192.0.2.2/24 by 192.0.2.1"),
    ],
)
def test_ipv4_gateway(texts: list[str], gateway: str | None, expected: str) -> None:
    assert ipv4([address(text) for text in texts], route(4, gateway)) == f"{expected} as eth0"


def test_ipv4_peer_is_the_gateway() -> None:
    point_to_point = evolve(address("192.0.2.9/32"), peer=IPv4Address("203.0.113.1"))
    assert ipv4([point_to_point], route(4, None)) == "192.0.2.9/32 by 203.0.113.1 as eth0"


def test_ipv4_source_of_the_route_wins() -> None:
    routed = evolve(ROUTE_4, source=IPv4Address("203.0.113.1"))
    assert ipv4([V4, address("203.0.113.1/32", 1)], routed) == "203.0.113.1/32 by 192.0.2.1 as eth0"


def test_an_unnumbered_interface_borrows() -> None:
    assert ipv4([address("203.0.113.1/32", 1)], ROUTE_4) == "203.0.113.1/32 by 192.0.2.1 as eth0"


@pytest.mark.parametrize("gateway", ["2001:db8::1", None])
def test_ipv6_gateway_that_no_guest_could_use_is_replaced(gateway: str | None) -> None:
    assert ipv6([V6], route(6, gateway)) == f"2001:db8::2/64 by {FROM_MAC} as eth0"


@pytest.mark.parametrize(
    "worse",
    [
        evolve(V6, address=IPv6Address("2001:db8::bad"), deprecated=True),
        evolve(V6, address=IPv6Address("2001:db8::bad"), temporary=True, permanent=False),
        evolve(V6, address=IPv6Address("2001:db8::bad"), tentative=True),
        evolve(V6, address=IPv6Address("2001:db8::bad"), permanent=False),
        evolve(V6, address=IPv6Address("2001:db8::bad"), link_index=3),
        evolve(V6, address=IPv6Address("fd00::bad")),
        evolve(V6, address=IPv6Address("fe80::bad"), global_scope=False),
    ],
)
def test_ipv6_address(worse: Address) -> None:
    assert ipv6([worse, V6], ROUTE_6) == "2001:db8::2/64 by fe80::1 as eth0"
    assert ipv6([V6, worse], ROUTE_6) == "2001:db8::2/64 by fe80::1 as eth0"


def test_a_bad_address_is_better_than_none() -> None:
    only = evolve(V6, deprecated=True, temporary=True, tentative=True, permanent=False)
    assert ipv6([only], ROUTE_6) == "2001:db8::2/64 by fe80::1 as eth0"


def test_link_local_from_mac() -> None:
    assert link_local_from_mac(HOST_MAC) == FROM_MAC
    assert link_local_from_mac(bytes.fromhex("00005e005301")) == IPv6Address("fe80::200:5eff:fe00:5301")
