"""What the tap gets with --config-net: pure."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

from attrs import evolve

from trio_passt.config import Config, GuestIPv4, GuestIPv6, GuestNetwork, Namespace, WishedAddress, Wishes
from trio_passt.host.network import LOCAL_IPV4, LOCAL_IPV6
from trio_passt.namespace.setup import (
    PROTOCOL_KERNEL,
    PROTOCOL_RA,
    PROTOCOL_STATIC,
    SCOPE_LINK,
    Hop,
    HostAddress,
    Plan,
    Route,
    Template,
    plan,
)

MAC = bytes.fromhex("020000000001")
LINK_LOCAL = "fe80::ff:fe00:1/64"
IPV4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
IPV6 = GuestIPv6(IPv6Address("2001:db8:1::2"), 64, IPv6Address("fe80::1"), "eth0")


def address(text: str, **values: Any) -> HostAddress:
    return HostAddress(ip_interface(text), **values)


def route(to: str, *gateways: str, **values: Any) -> Route:
    hops = tuple(Hop(ip_address(gateway)) for gateway in gateways) or (Hop(),)
    return Route(ip_network("0.0.0.0/0" if to == "default" else to), hops, **values)


def subnet(to: str, **values: Any) -> Route:
    return route(to, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK, **values)


ETH0 = Template(
    (address("192.0.2.2/24"), address("198.51.100.7/32"), address("2001:db8:1::2/64"), address("2001:db8:1::9/64")),
    (
        route("default", "192.0.2.1", metric=100),
        route("10.0.0.0/8", "192.0.2.77", metric=5, metrics=(("RTAX_MTU", 1300),)),
        subnet("192.0.2.0/24", source=IPv4Address("192.0.2.2"), metric=100),
        route("2001:db8:9::/48", "2001:db8:1::99", metric=1024),
        subnet("2001:db8:1::/64", metric=256),
        subnet("fe80::/64", metric=256),
        route("::/0", "fe80::1", metric=1024, protocol=PROTOCOL_RA),
    ),
)


def planned(
    template: Template = ETH0,
    *,
    ipv4: GuestIPv4 | None = IPV4,
    ipv6: GuestIPv6 | None = None,
    wishes: Wishes | None = None,
    mtu_bytes: int = 65520,
    **values: bool,
) -> Plan:
    network = GuestNetwork(ipv4, ipv6, mtu_bytes=mtu_bytes)
    config = Config(network, wishes=wishes or Wishes(), namespace=Namespace(configures=True, **values))
    return plan(config, MAC, {"eth0": template})


def addresses(made: Plan) -> list[str]:
    return [str(one.of.address) for one in made.addresses]


def routes(made: Plan) -> list[str]:
    lines = []
    for one in made.routes:
        gateways = [f"{hop.gateway}{' onlink' if hop.on_link else ''}" for hop in one.hops if hop.gateway]
        lines.append(" via ".join([str(one.destination), *gateways]))
    return lines


def test_all_is_copied_and_the_kernel_adds_nothing() -> None:
    made = planned()
    assert addresses(made) == ["192.0.2.2/24", "198.51.100.7/32"]
    assert not any(one.makes_route for one in made.addresses)
    assert routes(made) == ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1", "10.0.0.0/8 via 192.0.2.77"]
    by_destination = {str(one.destination): one for one in made.routes}
    assert by_destination["192.0.2.0/24"] == ETH0.routes[2]
    assert by_destination["0.0.0.0/0"].metric == 100
    assert by_destination["10.0.0.0/8"].metrics == (("RTAX_MTU", 1300),)
    assert made.mtu_bytes == 65520
    assert not made.with_ipv6


def test_ipv6_with_a_link_local_address_of_its_own() -> None:
    made = planned(ipv4=None, ipv6=IPV6)
    assert addresses(made) == ["2001:db8:1::2/64", "2001:db8:1::9/64", LINK_LOCAL]
    assert [one.makes_route for one in made.addresses] == [False, False, True]
    assert routes(made) == ["2001:db8:1::/64", "2001:db8:9::/48 via 2001:db8:1::99", "::/0 via fe80::1"]
    assert made.routes[2].protocol == PROTOCOL_STATIC, "it does not expire"
    assert made.with_ipv6


def test_main_address_is_the_first() -> None:
    made = planned(ipv4=evolve(IPV4, address=IPv4Address("198.51.100.7"), prefix_length=32))
    assert addresses(made) == ["198.51.100.7/32", "192.0.2.2/24"]


def test_main_address_of_another_interface() -> None:
    made = planned(Template(routes=(route("default", scope=SCOPE_LINK),)))
    assert addresses(made) == ["192.0.2.2/24"]
    assert [one.makes_route for one in made.addresses] == [True]
    assert routes(made) == ["0.0.0.0/0"]


def test_peer_and_scope_and_deprecation_are_kept() -> None:
    other = address("203.0.113.1/32", peer=IPv4Address("203.0.113.9"), scope=200, lasts=False)
    made = planned(Template((address("192.0.2.2/24"), other), ETH0.routes))
    assert made.addresses[1].of == other


def test_gateway_that_no_route_leads_to() -> None:
    made = planned(
        Template((address("192.0.2.2/32"),), (route("default", "203.0.113.1"),)), ipv4=evolve(IPV4, prefix_length=32)
    )
    assert routes(made) == ["0.0.0.0/0 via 203.0.113.1 onlink"]


def test_gateway_by_a_route_of_its_own() -> None:
    host = subnet("203.0.113.1/32")
    made = planned(Template((address("192.0.2.2/32"),), (route("default", "203.0.113.1"), host)))
    assert routes(made) == ["203.0.113.1/32", "0.0.0.0/0 via 203.0.113.1"]


def test_gateway_behind_a_default_route_without_one_is_not_reached_by_it() -> None:
    template = Template(
        (address("192.0.2.2/32"),), (route("default", scope=SCOPE_LINK), route("10.0.0.0/8", "203.0.113.1"))
    )
    assert routes(planned(template))[1] == "10.0.0.0/8 via 203.0.113.1 onlink"


def test_several_gateways_of_one_route() -> None:
    both = Route(ip_network("10.0.0.0/8"), (Hop(ip_address("192.0.2.5"), weight=2), Hop(ip_address("203.0.113.5"))))
    made = planned(evolve(ETH0, routes=(*ETH0.routes, both)))
    assert routes(made)[-1] == "10.0.0.0/8 via 192.0.2.5 via 203.0.113.5 onlink"
    assert [hop.weight for hop in made.routes[-1].hops] == [2, 1]


def test_gateway_of_the_other_family() -> None:
    by_ipv6 = Route(ip_network("0.0.0.0/0"), (Hop(ip_address("fe80::7")),))
    assert routes(planned(evolve(ETH0, routes=(by_ipv6, ETH0.routes[2]))))[-1] == "0.0.0.0/0 via 192.0.2.1"


def test_only_the_main_address() -> None:
    made = planned(copies_addresses=False)
    assert addresses(made) == ["192.0.2.2/24"]
    assert made.addresses[0].makes_route
    assert routes(made) == ["0.0.0.0/0 via 192.0.2.1", "10.0.0.0/8 via 192.0.2.77"], (
        "that to the subnet is the kernel's"
    )


def test_broadcast_address() -> None:
    """Of what is not copied; that of an address of the host's is the host's."""
    for bits, broadcast in ((24, IPv4Address("192.0.2.255")), (31, None), (32, None)):
        made = planned(ipv4=evolve(IPV4, prefix_length=bits), copies_addresses=False)
        assert made.addresses[0].of.broadcast == broadcast
    assert planned().addresses[0].of.broadcast is None


def test_source_address_that_is_not_copied_is_none() -> None:
    source = IPv4Address("198.51.100.7")
    template = evolve(ETH0, routes=(route("default", "192.0.2.1", source=source), *ETH0.routes[1:]))
    assert [one.source for one in planned(template).routes if not one.destination.prefixlen] == [source]
    made = planned(template, copies_addresses=False)
    assert [one.source for one in made.routes if not one.destination.prefixlen] == [None]


def test_only_the_default_route() -> None:
    made = planned(copies_routes=False)
    assert addresses(made) == ["192.0.2.2/24", "198.51.100.7/32"]
    assert all(one.makes_route for one in made.addresses)
    assert routes(made) == ["0.0.0.0/0 via 192.0.2.1"]


def test_wished_gateway_is_the_only_route_of_its_family() -> None:
    wishes = Wishes(gateways=(IPv4Address("203.0.113.1"),))
    made = planned(ipv4=evolve(IPV4, gateway=IPv4Address("203.0.113.1")), ipv6=IPV6, wishes=wishes)
    assert routes(made)[0] == "0.0.0.0/0 via 203.0.113.1 onlink"
    assert len(made.routes) == 4, "IPv6 has all of the host's"


def test_wished_addresses_are_the_only_ones_of_their_family() -> None:
    wishes = Wishes(
        addresses=(WishedAddress(IPv4Address("198.51.100.9"), 24), WishedAddress(IPv4Address("198.51.100.10"), 24))
    )
    guest = evolve(IPV4, address=IPv4Address("198.51.100.9"), others=(ip_interface("198.51.100.10/24"),))
    made = planned(ipv4=guest, ipv6=IPV6, wishes=wishes)
    assert addresses(made)[:2] == ["198.51.100.9/24", "198.51.100.10/24"]
    assert "2001:db8:1::9/64" in addresses(made)
    assert routes(made)[:2] == ["0.0.0.0/0 via 192.0.2.1 onlink", "10.0.0.0/8 via 192.0.2.77 onlink"]


def test_wished_mask_with_the_hosts_address() -> None:
    made = planned(ipv4=evolve(IPV4, prefix_length=16), wishes=Wishes(netmask_bits=16))
    assert addresses(made) == ["192.0.2.2/16", "198.51.100.7/32"]
    assert all(one.makes_route for one in made.addresses)


def test_default_route_where_the_interface_has_none() -> None:
    made = planned(Template((address("192.0.2.2/24"),), (ETH0.routes[2],)))
    assert routes(made) == ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1"]


def test_local_mode() -> None:
    made = plan(Config(GuestNetwork(LOCAL_IPV4, LOCAL_IPV6), namespace=Namespace()), MAC, {})
    assert addresses(made) == ["169.254.2.1/16", "fe80::2/64"]
    assert all(one.makes_route for one in made.addresses)
    assert routes(made) == ["0.0.0.0/0 via 169.254.2.2", "::/0 via fe80::1"]


def test_no_mtu_of_ours() -> None:
    assert planned(mtu_bytes=0).mtu_bytes is None
