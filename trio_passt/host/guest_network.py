"""The operator's wishes and the host's network → the guest's network: at start, and each time the host's changes.

Theory of operation
-------------------
`decide` is pure.  At start it takes the host as it is.  Later it knows what the guest was told, and:

- A family that has a default route is as it would be at start; if that is not what was told, the former state is kept
  in mind, because a guest goes by it until it has heard (DHCP clients ask when it is time for them, not when we wish).
- A family that has lost its default route is offline, and what was told remains: the host's network may be back in a
  moment (a lid opened again, a lease renewed), and what flows can go on meanwhile do.  The same if both have: local
  mode is for hosts that have been offline from the start.
- Questions to an address of ours that the guest was told as its nameserver go to the nameserver that the host has now.
"""

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_interface
from typing import Any, TypeVar

from attrs import evolve, frozen

from trio_passt.config import (
    LOOPBACK,
    DnsForward,
    Former,
    GuestIPv4,
    GuestIPv6,
    GuestNetwork,
    HostAddress,
    IPAddress,
    Resolvers,
    Wishes,
)
from trio_passt.host.mapping import loopback_address, of_family
from trio_passt.host.network import (
    LOCAL_IPV4,
    LOCAL_IPV6,
    ROUTER_IPV6,
    Host,
    HostNetwork,
    choose,
    substitute_gateway,
)
from trio_passt.host.resolv import Nameserver, ResolvConf, resolvers_for_guest

FORMER_KEPT = 128
"""So many former states of both families are kept in mind.  The guest hears of IPv4 every ten minutes, in which a VPN
may come back many times, with another address each: a guest whose own lease is forgotten renews it with nobody.
"""


_CLASSES = ((128, 8), (192, 16), (256, 24))
"""The mask of an address whose first byte is less than this, by its class (RFC 791 section 3.2)."""

_Guest = TypeVar("_Guest", GuestIPv4, GuestIPv6)


@frozen
class Decision:
    """What the guest gets, and what may surprise an operator about it."""

    network: GuestNetwork
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """About wishes that can't come true here."""


def decide(wishes: Wishes, host: Host, told: GuestNetwork | None = None) -> Decision:
    """What the guest gets from this host; `told` is what it has been told before."""
    known = [guest.address for guest in (told.ipv4, told.ipv6) if guest] if told else []
    found = choose(
        host.links,
        host.addresses,
        host.routes,
        ipv4=wishes.ipv4,
        ipv6=wishes.ipv6,
        interface_ipv4=wishes.interface_ipv4,
        interface_ipv6=wishes.interface_ipv6,
        known=known,
    )
    wished4 = _as_wished(found.ipv4, LOCAL_IPV4, wishes, host)
    wished6 = _as_wished(found.ipv6, LOCAL_IPV6, wishes, host)
    ipv4 = _kept(told.ipv4 if told else None, wished4)
    ipv6 = _kept(told.ipv6 if told else None, wished6)
    names = resolvers_for_guest(_resolv_conf(wishes, host, ipv6), ipv4, ipv6, wishes)
    notes = list(found.notes)
    if _tells_nameservers(wishes) and not (names.resolvers.ipv4 or names.resolvers.ipv6):
        source = "/etc/resolv.conf" if wishes.dns_servers is None else "--dns"
        notes.append(f"no nameserver of {source} is one that the guest can use: it is told none")
    network = GuestNetwork(
        ipv4,
        ipv6,
        _told(names.resolvers, wishes),
        wishes.mtu_bytes,
        wishes.host_mac,
        dns_forwards=names.forwards,
        hostname=wishes.hostname,
        fqdn=wishes.fqdn,
        boot=wishes.boot,
        nameservers=names.nameservers,
        ipv4_offline=_is_offline(ipv4, wished4),
        ipv6_offline=_is_offline(ipv6, wished6),
        host_addresses=tuple(
            address for guest in (ipv4, ipv6) if guest for address in _host_addresses(guest, wishes, _own(found, guest))
        ),
        services=wishes.services,
        transports=wishes.transports,
        closed=wishes.closed,
    )
    if told is not None:
        network = evolve(network, former=_former(told, network, {address.address for address in host.addresses}))
        network = evolve(network, former_dns_forwards=_former_dns_forwards(told, network, wishes))
    return Decision(network, tuple(notes), tuple(_useless_wishes(wishes, found, ipv4, ipv6)))


def _as_wished(found: _Guest | None, local: _Guest, wishes: Wishes, host: Host) -> _Guest | None:
    """What was found, with the addresses, mask and gateway that the operator wants in their place.

    Addresses turn on a family that the host has no network for; it is as in `local` mode then.
    """
    version = local.address.version
    wished = [
        ip_interface((one.address, one.prefix_length or _prefix_length(one.address, wishes, host)))
        for one in wishes.addresses
        if one.address.version == version
    ]
    if found is None and not (wished and (wishes.ipv4 if version == 4 else wishes.ipv6)):
        return None
    guest = found or local
    changes: dict[str, Any] = {}
    if wished:
        main, *others = wished
        changes |= {"address": main.ip, "prefix_length": main.network.prefixlen, "others": tuple(others)}
        own = [one for one in wished if isinstance(one, IPv4Interface)]
        if own and (guest.is_local or guest.gateway in [one.ip for one in own]):
            changes["gateway"] = substitute_gateway(*own)
    elif version == 4 and wishes.netmask_bits is not None:
        changes["prefix_length"] = wishes.netmask_bits
    gateway = of_family(wishes.gateways, version)
    if gateway is not None:
        changes["gateway"] = gateway
        if version == 6:
            changes["host_gateway"] = None
    return evolve(guest, **changes)


def _prefix_length(address: IPAddress, wishes: Wishes, host: Host) -> int:
    """For an address without one: the mask that was wished for, the host's own for it, or its class's (IPv6: 64)."""
    if isinstance(address, IPv4Address) and wishes.netmask_bits is not None:
        return wishes.netmask_bits
    own = next((own.prefix_length for own in host.addresses if own.address == address), None)
    if own is not None or isinstance(address, IPv6Address):
        return own or 64
    return next(bits for first, bits in _CLASSES if address.packed[0] < first)


def _host_addresses(guest: GuestIPv4 | GuestIPv6, wishes: Wishes, own: IPAddress | None) -> Iterator[HostAddress]:
    """All of one family; `own` is the host's own address, if it has one.

    The default router of an IPv6 guest is link-local.  If the gateway is not, wished for or the host's, both stand for
    the host.
    """
    version = guest.address.version
    loopback = loopback_address(guest, wishes)
    if loopback is not None:
        yield HostAddress(loopback, LOOPBACK[version])
        if version == 6 and loopback == guest.gateway and not loopback.is_link_local:
            yield HostAddress(ROUTER_IPV6, LOOPBACK[version])
        if isinstance(guest, GuestIPv6) and loopback == guest.gateway and guest.host_gateway is not None:
            yield HostAddress(guest.host_gateway, LOOPBACK[version])
    mapped = of_family(wishes.own_addresses, version)
    if mapped is not None and own is not None:
        yield HostAddress(mapped, own)


def _own(found: HostNetwork, guest: GuestIPv4 | GuestIPv6) -> IPAddress | None:
    """The host's own address of the guest's family, if it has a network."""
    own = found.ipv4 if isinstance(guest, GuestIPv4) else found.ipv6
    return own.address if own and not own.is_local else None


def _useless_wishes(
    wishes: Wishes, found: HostNetwork, ipv4: GuestIPv4 | None, ipv6: GuestIPv6 | None
) -> Iterator[str]:
    """What was wished for and can't work with what the host has."""
    own = {guest.address for guest in (ipv4, ipv6) if guest}
    for option, addresses in (
        ("--dns-forward", wishes.dns_forwards),
        ("--gateway", wishes.gateways),
        ("--map-host-loopback", wishes.loopback_addresses),
        ("--map-guest-addr", wishes.own_addresses),
    ):
        for address in addresses:
            if address in own:
                yield f"{option} {address} is the guest's own address: it won't work"
            elif ipv4 and isinstance(address, IPv4Address) and _names_subnet(address, ipv4):
                yield f"{option} {address} is the network or broadcast address of the guest's subnet: it won't work"
    for guest in (ipv4, ipv6):
        mapped = of_family(wishes.own_addresses, guest.address.version) if guest else None
        if guest is not None and mapped is not None and _own(found, guest) is None:
            yield f"--map-guest-addr {mapped}: this host has no IPv{mapped.version} address that it could reach"


def _names_subnet(address: IPv4Address, guest: GuestIPv4) -> bool:
    """Whether it is none of a host's: the first and last of a subnet (but of two addresses, RFC 3021)."""
    subnet = IPv4Interface((guest.address, guest.prefix_length)).network
    return subnet.prefixlen < 31 and address in (subnet.network_address, subnet.broadcast_address)


def _tells_nameservers(wishes: Wishes) -> bool:
    """Whether the guest is to be told any: not with `--no-dhcp-dns`, and not with `--dns none`."""
    return wishes.tells_dns and wishes.dns_servers != ()


def _told(resolvers: Resolvers, wishes: Wishes) -> Resolvers:
    """What the guest is told of them."""
    if not _tells_nameservers(wishes):
        resolvers = evolve(resolvers, ipv4=(), ipv6=())
    return resolvers if wishes.tells_search else evolve(resolvers, search=())


def _resolv_conf(wishes: Wishes, host: Host, ipv6: GuestIPv6 | None) -> ResolvConf:
    """What the host's says, with what was wished for in its place; link-local nameservers are on the guest's link."""
    conf = _with_named_zones(host)
    if wishes.dns_servers is not None:
        zone = ipv6.interface if ipv6 else None
        servers = (Nameserver(one, zone if one.is_link_local else None) for one in wishes.dns_servers)
        conf = evolve(conf, nameservers=tuple(servers))
    return conf if wishes.search is None else evolve(conf, search=wishes.search)


def _with_named_zones(host: Host) -> ResolvConf:
    """Zones may be given by interfaces' numbers, as the C library knows them, too."""
    names = {str(link.index): link.name for link in host.links}
    nameservers = (
        evolve(server, zone=names.get(server.zone or "", server.zone)) for server in host.resolv_conf.nameservers
    )
    return evolve(host.resolv_conf, nameservers=tuple(nameservers))


def afresh(network: GuestNetwork) -> GuestNetwork:
    """The same for a guest that has been told nothing yet."""
    return evolve(network, former=(), former_dns_forwards=())


def without(
    network: GuestNetwork, forgotten: Collection[GuestIPv4 | GuestIPv6], nameservers: Collection[IPAddress]
) -> GuestNetwork:
    """The same for a guest that does not go by these former states and nameservers any more: it has asked since."""
    former = tuple(former for former in network.former if former.guest not in forgotten)
    forwards = tuple(forward for forward in network.former_dns_forwards if forward.seen_by_guest not in nameservers)
    return evolve(network, former=former, former_dns_forwards=forwards)


def _kept(told: _Guest | None, found: _Guest | None) -> _Guest | None:
    """What is found, but a family that was on stays on, and one that had a network does not fall back to local mode."""
    if told is not None and (found is None or found.is_local):
        return told
    return found


def _is_offline(now: GuestIPv4 | GuestIPv6 | None, found: GuestIPv4 | GuestIPv6 | None) -> bool:
    """Whether the guest has the family from a time when the host had it, too."""
    if now is None:
        return False
    return found is None or (found.is_local and not now.is_local)


def _former(told: GuestNetwork, now: GuestNetwork, own: Collection[IPAddress]) -> tuple[Former, ...]:
    """What does not hold any more, the latest first; what holds again is not former."""
    before = (told.ipv4, told.ipv6, *(former.guest for former in told.former))
    current = {terms(guest) for guest in (now.ipv4, now.ipv6) if guest}
    former = {terms(guest): Former(guest, guest.address in own) for guest in reversed(before) if guest}
    latest_first = reversed(former.items())
    return tuple(value for terms, value in latest_first if terms not in current)[:FORMER_KEPT]


def terms(guest: GuestIPv4 | GuestIPv6) -> tuple[IPAddress, int, IPAddress]:
    """What the guest knows of it."""
    return guest.address, guest.prefix_length, guest.gateway


def _former_dns_forwards(told: GuestNetwork, now: GuestNetwork, wishes: Wishes) -> tuple[DnsForward, ...]:
    """For addresses of ours that the guest may have as its nameserver, but is not told as such any more.

    One that it is told, but is no gateway of today's, is a nameserver's own.
    """
    guests = [guest for guest in (now.ipv4, now.ipv6) if guest]
    present = {address for guest in guests if (address := loopback_address(guest, wishes))}
    before_now = [former.guest for former in now.former]
    ours = present | {address for guest in before_now if (address := loopback_address(guest, wishes))}
    local = (guest.gateway for guest in before_now if guest.is_local)  # told even without a nameserver
    before: dict[IPAddress, IPAddress | None] = dict.fromkeys((*local, *told.resolvers.ipv4, *told.resolvers.ipv6))
    for forward in (*told.former_dns_forwards, *told.dns_forwards):
        before[forward.seen_by_guest] = forward.on_host
    current = {*now.resolvers.ipv4, *now.resolvers.ipv6} - present
    current |= {forward.seen_by_guest for forward in now.dns_forwards}
    nameserver = {address.version: address for address in now.nameservers}
    in_order = sorted(before.items(), key=lambda item: item[0].packed)  # the same one at each look
    return tuple(
        DnsForward(seen, on_host)
        for seen, formerly in in_order
        if seen not in current and seen in ours and (on_host := nameserver.get(seen.version, formerly))
    )
