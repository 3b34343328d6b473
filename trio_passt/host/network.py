"""The host's network → what the guest gets: which interface, address and gateway of each family.

Theory of operation
-------------------
`choose` is pure: it decides from links, addresses and default routes as small values.  Reading them from the
kernel is `trio_passt.host.netlink`'s.  The rules, for each family by itself:

- The interface is the one of the default route with the lowest metric in the main table; among equal metrics
  the preferred one (IPv6, RFC 4191), then the first.  Of a multipath route it is the first next hop that is
  up.  Other tables belong to policy rules, which decide per packet; there is no one answer in them, so they
  don't count.
- The address is the one the route prefers as a source, else the best of the interface, else (an unnumbered
  interface) the best of another interface, as the kernel would choose.
- IPv4 without a gateway (tun, WireGuard, PPP): the peer of a point-to-point address, else the first address
  of the subnet that is not the guest's own, else 169.254.2.2: the guest needs one to ask ARP for, and every
  answer is ours.
- IPv6: the guest's router must be link-local (RFC 4861 section 6.1.2).  Where the host's is not, or there is
  none, it is the address made from our own MAC.
- A named interface (`--interface`, `--outbound-if4`, `--outbound-if6`) is taken in place of the default route's: only
  default routes by it count, and if there is none its best address does, without a gateway.
- A family without default route is off, unless none has one: then both are in local mode, in which the guest
  and the host reach each other and nothing else.
"""

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network

from attrs import frozen

from trio_passt.config import HOST_MAC, GuestIPv4, GuestIPv6
from trio_passt.host.resolv import ResolvConf

LOCAL_IPV4 = GuestIPv4(IPv4Address("169.254.2.1"), 16, IPv4Address("169.254.2.2"))
LOCAL_IPV6 = GuestIPv6(IPv6Address("fe80::2"), 64, IPv6Address("fe80::1"))
"""What the guest gets in local mode: link-local addresses, so nothing of it collides with a real network."""

MAIN_TABLE = 254
"""RT_TABLE_MAIN of rtnetlink(7)."""

UNIQUE_LOCAL = IPv6Network("fc00::/7")
"""RFC 4193."""


@frozen
class Link:
    """An interface of the host; `up` is its administrative state."""

    index: int
    name: str
    up: bool = True
    loopback: bool = False


@frozen
class Address:
    """An address of an interface.  `peer` is the other end of a point-to-point link (IPv4)."""

    link_index: int
    address: IPv4Address | IPv6Address
    prefix_length: int
    peer: IPv4Address | IPv6Address | None = None
    global_scope: bool = True
    deprecated: bool = False
    temporary: bool = False
    tentative: bool = False
    permanent: bool = True


@frozen
class NextHop:
    """One way of a route: the interface, and the router on it; `gateway` is `None` where there is none."""

    link_index: int
    gateway: IPv4Address | IPv6Address | None = None
    dead: bool = False


@frozen
class DefaultRoute:
    """A unicast route to everywhere; `preference` is RFC 4191's (1 high, 0 medium, -1 low)."""

    version: int
    next_hops: tuple[NextHop, ...]
    metric: int = 0
    table: int = MAIN_TABLE
    source: IPv4Address | IPv6Address | None = None
    preference: int = 0


@frozen
class Host:
    """What was found on the host."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[DefaultRoute, ...] = ()
    resolv_conf: ResolvConf = ResolvConf()  # noqa: RUF009 - a frozen value


class _Missing(Exception):  # noqa: N818 - no error: a family is off
    """Why a family can't be had."""


@frozen
class HostNetwork:
    """What was chosen; `None` for a family means off.  `notes`: lines on what may surprise an operator."""

    ipv4: GuestIPv4 | None
    ipv6: GuestIPv6 | None
    notes: tuple[str, ...] = ()


def choose(
    links: Sequence[Link],
    addresses: Sequence[Address],
    routes: Sequence[DefaultRoute],
    *,
    ipv4: bool = True,
    ipv6: bool = True,
    interface_ipv4: str | None = None,
    interface_ipv6: str | None = None,
    known: Collection[IPv4Address | IPv6Address] = (),
) -> HostNetwork:
    """What the guest gets; a family that is not asked for is off without a note.

    A named interface is taken in place of the default route's.  Of addresses that are as good as each other it is one
    that is `known` to the guest.
    """
    notes: list[str] = []
    if ignored := sorted({route.table for route in routes} - {MAIN_TABLE}):
        tables = ", ".join(map(str, ignored))
        notes.append(f"default routes of other tables than main are not considered (tables: {tables})")
    missing: dict[str, str] = {}
    guest4 = guest6 = None
    addresses = sorted(addresses, key=lambda address: address.address not in known)
    try:
        if ipv4:
            guest4 = _ipv4(*_family(links, addresses, routes, 4, interface_ipv4, notes))
    except _Missing as reason:
        missing["IPv4"] = str(reason)
    try:
        if ipv6:
            guest6 = _ipv6(*_family(links, addresses, routes, 6, interface_ipv6, notes))
    except _Missing as reason:
        missing["IPv6"] = str(reason)
    if guest4 is None and guest6 is None:
        reasons = ", ".join(missing.values())
        notes.append(f"{reasons}: local mode, in which the guest reaches this host only")
        return HostNetwork(LOCAL_IPV4 if ipv4 else None, LOCAL_IPV6 if ipv6 else None, tuple(notes))
    notes.extend(f"{reason}: {family} is off" for family, reason in missing.items())
    return HostNetwork(guest4, guest6, tuple(notes))


def link_local_from_mac(mac: bytes) -> IPv6Address:
    """The link-local address with the modified EUI-64 identifier of `mac` (RFC 4291 appendix A)."""
    identifier = bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(bytes.fromhex("fe80000000000000") + identifier)


ROUTER_IPV6 = link_local_from_mac(HOST_MAC)
"""The guest's router where the host has none that is link-local.

It is made of our usual MAC address even if the operator has set another: libvirt 9.0 sets the guest's own, and so it
would be the guest's own address.
"""


def _family(
    links: Sequence[Link],
    addresses: Sequence[Address],
    routes: Sequence[DefaultRoute],
    version: int,
    interface: str | None,
    notes: list[str],
) -> tuple[Address, NextHop, str]:
    usable = {link.index: link for link in links if link.up and not link.loopback and interface in (None, link.name)}
    addresses = [address for address in addresses if address.address.version == version]
    best = _best_route([route for route in routes if route.version == version], usable)
    if best is None and interface is not None:
        return _on_interface(usable, addresses, version, interface)
    if best is None:
        raise _Missing(f"no IPv{version} default route")
    route, hop = best
    link = usable[hop.link_index]
    address = _best_address(addresses, route, hop)
    if address is None:
        raise _Missing(f"no IPv{version} address for the default route by {link.name}")
    if len(route.next_hops) > 1:
        count = len(route.next_hops)
        notes.append(f"the IPv{version} default route has {count} paths: the guest gets {link.name}'s")
    return address, hop, link.name


def _on_interface(
    usable: dict[int, Link], addresses: Sequence[Address], version: int, interface: str
) -> tuple[Address, NextHop, str]:
    """For a named interface that no default route goes by: its best address, without a gateway."""
    if not usable:
        raise _Missing(f"no interface {interface} that is up")
    hop = NextHop(next(iter(usable)))
    address = _best_address(
        [a for a in addresses if a.link_index == hop.link_index], DefaultRoute(version, (hop,)), hop
    )
    if address is None:
        raise _Missing(f"no IPv{version} address on {interface}")
    return address, hop, interface


def _best_route(routes: Sequence[DefaultRoute], usable: dict[int, Link]) -> tuple[DefaultRoute, NextHop] | None:
    for route in sorted(routes, key=lambda route: (route.metric, -route.preference)):
        if route.table != MAIN_TABLE:
            continue
        for hop in route.next_hops:
            if hop.link_index in usable and not hop.dead:
                return route, hop
    return None


def _best_address(addresses: Sequence[Address], route: DefaultRoute, hop: NextHop) -> Address | None:
    """The address the kernel would take as source, but rather one that lasts; `None` if there is none."""
    candidates = [address for address in addresses if address.global_scope]

    def rank(address: Address) -> tuple[bool, ...]:
        return (
            address.address != route.source,
            address.link_index != hop.link_index,
            address.tentative,
            address.deprecated,
            not _on_link(address, hop),
            address.temporary,
            address.address in UNIQUE_LOCAL if address.address.version == 6 else False,
            not address.permanent,
        )

    return min(candidates, key=rank, default=None)


def _on_link(address: Address, hop: NextHop) -> bool:
    """Whether the IPv4 gateway is in the address's subnet (an IPv6 one is link-local and says nothing)."""
    if not isinstance(address.address, IPv4Address) or hop.gateway is None:
        return True
    return hop.gateway in IPv4Interface((address.address, address.prefix_length)).network


def _ipv4(address: Address, hop: NextHop, interface: str) -> GuestIPv4:
    assert isinstance(address.address, IPv4Address)
    peer = address.peer if isinstance(address.peer, IPv4Address) and address.peer != address.address else None
    gateway = hop.gateway
    if not isinstance(gateway, IPv4Address):
        gateway = peer or substitute_gateway(IPv4Interface((address.address, address.prefix_length)))
    return GuestIPv4(address.address, address.prefix_length, gateway, interface)


def substitute_gateway(address: IPv4Interface, *others: IPv4Interface) -> IPv4Address:
    """One in the subnet of the guest's first address that is none of its own, for a route without gateway."""
    own = {one.ip for one in (address, *others)}
    return next((host for host in address.network.hosts() if host not in own), LOCAL_IPV4.gateway)


def _ipv6(address: Address, hop: NextHop, interface: str) -> GuestIPv6:
    assert isinstance(address.address, IPv6Address)
    if isinstance(hop.gateway, IPv6Address) and hop.gateway.is_link_local:
        return GuestIPv6(address.address, address.prefix_length, hop.gateway, interface)
    host_gateway = hop.gateway if isinstance(hop.gateway, IPv6Address) else None
    return GuestIPv6(address.address, address.prefix_length, ROUTER_IPV6, interface, host_gateway=host_gateway)
