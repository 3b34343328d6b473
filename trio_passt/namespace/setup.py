"""`--config-net`: what the guest's tap gets of the host's network, decided before anything is set.

Theory of operation
-------------------
`plan` is pure.  It takes what the guest's network is, and what the interfaces that it is taken from have (`template`).

Where both addresses and routes are copied, the tap looks like the host's interface: the routes to its own subnets are
copied like all others, with their metrics, and the kernel is told to make none of its own (IFA_F_NOPREFIXROUTE).  Else
the kernel makes those, and what is added is the host's other routes, or the default route alone.

A gateway must be on the link for the kernel: there is a route to it without gateway.  The host may have lost that since
(only new routes are checked), and a wished for address may be in another subnet: then the route says that its gateway
is on the link (RTNH_F_ONLINK).  Whatever it is, it is answered for by us.

Routes without gateways come before those whose gateways they lead to.  The guest's main address is the first: of
several that would do, the kernel takes that as the source.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface

from attrs import evolve, frozen

from trio_passt.config import Config, GuestIPv4, GuestIPv6, IPAddress, IPNetwork, Namespace
from trio_passt.host.network import link_local_from_mac

IPInterface = IPv4Interface | IPv6Interface

SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
"""RT_SCOPE_...: a route by a gateway, and one without."""

PROTOCOL_KERNEL, PROTOCOL_STATIC, PROTOCOL_RA = 2, 4, 9
"""RTPROT_...: who made a route."""

EVERYWHERE: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
LINK_LOCAL = IPv6Network("fe80::/10")


@frozen
class HostAddress:
    """An address of an interface, as far as it can be copied.  `lasts`: it is not deprecated."""

    address: IPInterface
    peer: IPAddress | None = None
    broadcast: IPv4Address | None = None
    scope: int = SCOPE_UNIVERSE
    lasts: bool = True


@frozen
class Hop:
    """A gateway of a route (`None`: there is none); `weight` beside other hops of the same route."""

    gateway: IPAddress | None = None
    on_link: bool = False
    weight: int = 1


@frozen
class Route:
    """A unicast route of the main table by one interface, by several gateways perhaps.

    `source` is the address that is preferred, `metrics` what RTA_METRICS has: the MTU, and the like.
    `preference` is RTA_PREF of IPv6.
    """

    destination: IPNetwork
    hops: tuple[Hop, ...] = (Hop(),)
    metric: int = 0
    scope: int = SCOPE_UNIVERSE
    protocol: int = PROTOCOL_STATIC
    source: IPAddress | None = None
    tos: int = 0
    metrics: tuple[tuple[str, int], ...] = ()
    preference: int | None = None


@frozen
class Template:
    """What an interface of the host's has, of both families, in the kernel's order."""

    addresses: tuple[HostAddress, ...] = ()
    routes: tuple[Route, ...] = ()


@frozen
class TapAddress:
    """An address to add; `makes_route`: the kernel makes the route to its subnet."""

    of: HostAddress
    makes_route: bool = True


@frozen
class Plan:
    """What the tap gets, in order; `mtu_bytes` `None`: what the kernel gives it.

    `with_ipv6`: it has an address of IPv6, besides a link-local one; nothing is to be learned from advertisements then.
    """

    mtu_bytes: int | None
    addresses: tuple[TapAddress, ...]
    routes: tuple[Route, ...]
    with_ipv6: bool


def plan(config: Config, mac: bytes, templates: dict[str, Template]) -> Plan:
    """What a tap with the MAC address `mac` gets; `templates` has the host's interfaces by name."""
    network, namespace = config.network, config.namespace
    assert namespace is not None
    addresses: list[TapAddress] = []
    routes: list[Route] = []
    for guest in (network.ipv4, network.ipv6):
        if guest is None:
            continue
        template = templates.get(guest.interface or "", Template())
        own, by_kernel = _addresses(guest, config, namespace, template)
        addresses += [TapAddress(one, makes_route=by_kernel) for one in own]
        routes += _routes(guest, config, namespace, template, own, by_kernel=by_kernel)
        if guest.address.version == 6 and not any(one.address.ip in LINK_LOCAL for one in own):
            addresses.append(TapAddress(HostAddress(IPv6Interface((link_local_from_mac(mac), 64)))))
    return Plan(
        network.mtu_bytes or None,
        tuple(addresses),
        tuple(routes),
        with_ipv6=network.ipv6 is not None,
    )


def _addresses(
    guest: GuestIPv4 | GuestIPv6, config: Config, namespace: Namespace, template: Template
) -> tuple[list[HostAddress], bool]:
    """The guest's, the main one first, and whether their routes are left to the kernel."""
    version = guest.address.version
    main = ip_interface((guest.address, guest.prefix_length))
    wished = any(one.address.version == version for one in config.wishes.addresses)
    if wished or not namespace.copies_addresses:
        return [_with_broadcast(one) for one in (main, *guest.others)], True
    host = [one for one in template.addresses if one.address.version == version]
    first = [one for one in host if one.address.ip == main.ip]
    if first and isinstance(guest, GuestIPv4) and config.wishes.netmask_bits is not None:
        first = []  # its mask is another than the host's
    own = [*(first or [_with_broadcast(main)]), *(one for one in host if one.address.ip != main.ip)]
    return own, not (first and _copies_routes(version, config, namespace))


def _with_broadcast(address: IPInterface) -> HostAddress:
    """The last of a subnet, but of two addresses (RFC 3021)."""
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        return HostAddress(address, broadcast=address.network.broadcast_address)
    return HostAddress(address)


def _copies_routes(version: int, config: Config, namespace: Namespace) -> bool:
    return namespace.copies_routes and not any(one.version == version for one in config.wishes.gateways)


def _routes(
    guest: GuestIPv4 | GuestIPv6,
    config: Config,
    namespace: Namespace,
    template: Template,
    own: Sequence[HostAddress],
    *,
    by_kernel: bool,
) -> list[Route]:
    """In an order in which the kernel takes them."""
    version = guest.address.version
    copied: list[Route] = []
    if _copies_routes(version, config, namespace):
        copied = [
            _as_ours(one, guest, own)
            for one in template.routes
            if one.destination.version == version
            and not (_is_of_an_address(one) and (by_kernel or _is_link_local(one)))
        ]
    if not any(route.destination == EVERYWHERE[version] for route in copied):
        copied.append(Route(EVERYWHERE[version], (Hop(guest.gateway),)))
    on_link = [*_networks(own)] if by_kernel else []
    on_link += [route.destination for route in copied if _is_direct(route)]
    return [_reachable(route, on_link) for route in sorted(copied, key=lambda route: not _is_direct(route))]


def _as_ours(route: Route, guest: GuestIPv4 | GuestIPv6, own: Iterable[HostAddress]) -> Route:
    """Without what can't be: a source address that the guest lacks, a gateway of another family.

    What came by router advertisements (and would expire) is for good here.
    """
    hops = tuple(
        hop
        if hop.gateway is None or hop.gateway.version == guest.address.version
        else evolve(hop, gateway=guest.gateway)
        for hop in route.hops
    )
    has_source = any(one.address.ip == route.source for one in own)
    protocol = PROTOCOL_STATIC if route.protocol == PROTOCOL_RA else route.protocol
    return evolve(route, hops=hops, source=route.source if has_source else None, protocol=protocol)


def _is_of_an_address(route: Route) -> bool:
    """The kernel made it for an address of the host's, and makes one for each of ours."""
    return route.protocol == PROTOCOL_KERNEL and _is_direct(route)


def _is_link_local(route: Route) -> bool:
    """The tap has such an address in any case, and a route to its subnet."""
    return isinstance(route.destination, IPv6Network) and route.destination.subnet_of(LINK_LOCAL)


def _is_direct(route: Route) -> bool:
    return all(hop.gateway is None for hop in route.hops)


def _networks(addresses: Iterable[HostAddress]) -> Iterator[IPNetwork]:
    for one in addresses:
        yield one.address.network
        if one.peer is not None:
            yield ip_interface((one.peer, one.address.network.prefixlen)).network


def _reachable(route: Route, on_link: Sequence[IPNetwork]) -> Route:
    """With gateways that the kernel takes; link-local ones always are on the link."""

    def needs_no_route(gateway: IPAddress) -> bool:
        if isinstance(gateway, IPv6Address) and gateway in LINK_LOCAL:
            return True
        return any(gateway in network for network in on_link if network.prefixlen)

    hops = (
        evolve(hop, on_link=True) if hop.gateway is not None and not needs_no_route(hop.gateway) else hop
        for hop in route.hops
    )
    return evolve(route, hops=tuple(hops))
