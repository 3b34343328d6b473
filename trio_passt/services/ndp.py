"""Neighbour discovery (RFC 4861): the host's side is the guest's router, and every neighbour it may have.

Duplicate address detection is left alone (RFC 4862 section 5.4): its solicitations come from the unspecified
address, and only those for the router's own address and for such that stand for the host are answered.

When the host's network changes, the guest is told what holds now and what does not hold any more.  Prefixes that
are gone stay in each advertisement for as long as they are known, so that none of them has to arrive; resolvers
and search domains that are gone are taken back once, and else end with their lifetime.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network

from attrs import evolve

from trio_passt.config import Former, GuestIPv6, GuestNetwork, Resolvers
from trio_passt.services import host_side
from trio_passt.wire import icmp, ip, ipv6, ndp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import IcmpMessage
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.ndp import (
    HOP_LIMIT,
    DnsSearch,
    DnsServers,
    NeighborAdvertisement,
    NeighborSolicitation,
    Prefix,
    RouterAdvertisement,
    RouterSolicitation,
)

MAX_INTERVAL_S = 600.0
"""MaxRtrAdvInterval's default (RFC 4861 section 6.2.1); MinRtrAdvInterval is a third of it."""
MIN_INTERVAL_S = MAX_INTERVAL_S / 3
INITIAL_ADVERTISEMENTS = 3
INITIAL_MAX_INTERVAL_S = 16.0
"""The first few follow sooner, for a guest that missed one (RFC 4861 sections 6.2.4, 10)."""

ROUTER_LIFETIME_S = 1800
"""Three maximal intervals (RFC 4861 section 6.2.1), so that two lost advertisements cost nothing."""
PREFIX_VALID_S = 86400
PREFIX_PREFERRED_S = 14400
"""Renewed with each advertisement; shorter than RFC 4861's month, because the host's prefix may change."""

ALL_NODES = IPv6Address("ff02::1")
ALL_ROUTERS = IPv6Address("ff02::2")
GUEST_HOP_LIMIT = 64

_MAX_SEARCH_BYTES = 512
_MAX_PREFIXES = 5
"""With so many, former ones among them, 16 servers that hold, 16 that do not, and a long search list, an advertisement
has 1280 bytes.
"""
_DNS_OPTION_HEAD_BYTES = 8
_SOLICITED_NODE = IPv6Address("ff02::1:ff00:0").packed[:13]
_UNSPECIFIED = bytes(16)
_TO_GROUP = bytes(6)
"""In place of a MAC address where the destination is a group, which has its own."""


def answer(
    guest_mac: bytes,
    source: bytes,
    destination: bytes,
    hop_limit: int,
    message: IcmpMessage,
    network: GuestNetwork,
) -> bytes | None:
    """The frame that answers a neighbour or router solicitation between packed addresses; None where there is
    none.

    Raises MalformedPacket, also for what RFC 4861 sections 6.1.1 and 7.1.1 want discarded: a hop limit other
    than 255; a source that is a group; from the unspecified address, a source link-layer option or a
    destination that is not the target's group.
    """
    if network.ipv6 is None:
        return None
    if hop_limit != HOP_LIMIT or source[0] == 0xFF:
        raise MalformedPacket(f"neighbour discovery with hop limit {hop_limit} from {source.hex()}")
    match ndp.parse(message):
        case NeighborSolicitation() as asked:
            _check_solicitation(source, destination, asked)
            return _answer_neighbor(guest_mac, source, asked, network.ipv6, network)
        case RouterSolicitation(source_mac):
            if not tells_router(network):
                return None
            if source == _UNSPECIFIED and source_mac is not None:
                raise MalformedPacket("router solicitation from :: with a source link-layer address")
            return _answer_router(guest_mac, source, destination, network.ipv6, network)
    return None


def tells_router(network: GuestNetwork) -> bool:
    """Whether there are router advertisements."""
    services = network.services
    return network.ipv6 is not None and services.ndp and services.router_advertisements


def claimed(source: bytes, message: IcmpMessage) -> IPv6Address | None:
    """The address that a solicitation from the packed `source` is about to take (RFC 4862 section 5.4), or None.

    For one that `answer` has found right.
    """
    asked = ndp.parse(message)
    return asked.target if source == _UNSPECIFIED and isinstance(asked, NeighborSolicitation) else None


def advertisement(network: GuestNetwork, *, router_lifetime_s: int = ROUTER_LIFETIME_S) -> bytes:
    """An unsolicited router advertisement, to all nodes; a lifetime of 0 says that the router goes (section
    6.2.5), and the resolvers with it.

    ValueError: IPv6 is off.
    """
    router = host_side.ipv6_address(_ipv6(network))
    return _frame(_TO_GROUP, router, ALL_NODES, _advertised(network, router_lifetime_s), network)


def changes(before: GuestNetwork, now: GuestNetwork) -> list[bytes]:
    """Unsolicited advertisements that tell a guest that knew `before` what holds `now`; none if IPv6 is as it was.

    A router that is not the guest's any more says so itself (RFC 4861 section 6.2.5). A prefix that is gone is
    deprecated: addresses of it are kept for as long as the host keeps its own, or else for two hours at most
    (RFC 4862 section 5.5.3 e), so connections go on. Resolvers and search domains that are gone are taken back
    (RFC 8106 sections 5.1, 5.2).
    """
    if _known(before) == _known(now) or not (tells_router(before) or tells_router(now)):
        return []
    former, current = _router(before), _router(now)
    holds = _held(now)
    frames = []
    if former is not None and former != current:
        farewell = RouterAdvertisement(
            0, GUEST_HOP_LIMIT, managed=holds.managed, other=holds.other, source_mac=before.host_mac
        )
        frames.append(_frame(_TO_GROUP, former, ALL_NODES, _withdraw(farewell, before, now), before))
    if current is not None:
        frames.append(_frame(_TO_GROUP, current, ALL_NODES, _withdraw(holds, before, now), now))
    return frames


def solicitations(network: GuestNetwork) -> list[bytes]:
    """Neighbour solicitations for the guest's addresses: the reply tells its MAC address before it has spoken.

    ValueError: IPv6 is off.
    """
    guest = _ipv6(network)
    source = host_side.ipv6_address(guest)
    frames = []
    for target in (own.ip for own in host_side.own_ipv6(guest)):
        group = IPv6Address(_solicited_node(target))
        frames.append(_frame(_TO_GROUP, source, group, NeighborSolicitation(target, network.host_mac), network))
    return frames


def next_interval_s(sent_so_far: int, random_unit: float) -> float:
    """Seconds from one unsolicited router advertisement to the next (RFC 4861 sections 6.2.1, 6.2.4).

    `sent_so_far` counts those already sent; `random_unit`, 0 to 1, picks from the range, so that routers do
    not fall in step.
    """
    interval_s = MIN_INTERVAL_S + random_unit * (MAX_INTERVAL_S - MIN_INTERVAL_S)
    if sent_so_far < INITIAL_ADVERTISEMENTS:
        return min(interval_s, INITIAL_MAX_INTERVAL_S)
    return interval_s


def _ipv6(network: GuestNetwork) -> GuestIPv6:
    if network.ipv6 is None:
        raise ValueError("neighbour discovery needs IPv6")
    return network.ipv6


def _check_solicitation(source: bytes, destination: bytes, asked: NeighborSolicitation) -> None:
    to_target_group = destination == _solicited_node(asked.target)
    if destination[0] == 0xFF and not to_target_group:
        raise MalformedPacket(f"neighbour solicitation for {asked.target} to another group")
    if source == _UNSPECIFIED and (asked.source_mac is not None or not to_target_group):
        raise MalformedPacket("neighbour solicitation from :: that is not duplicate address detection")


def _answer_neighbor(
    guest_mac: bytes, source: bytes, asked: NeighborSolicitation, guest: GuestIPv6, network: GuestNetwork
) -> bytes | None:
    target = asked.target
    is_router = target in (guest.gateway, host_side.ipv6_address(guest))
    probing = source == _UNSPECIFIED
    if host_side.owns(guest, target) or target.packed == source or target.is_unspecified or target.is_loopback:
        return None
    if probing and not (is_router or host_side.stands_for_host(network, target)):
        return None
    to = ALL_NODES if probing else IPv6Address(source)
    reply = NeighborAdvertisement(target, network.host_mac, router=is_router, solicited=not probing, override=True)
    return _frame(guest_mac, target, to, reply, network)


def _answer_router(
    guest_mac: bytes, source: bytes, destination: bytes, guest: GuestIPv6, network: GuestNetwork
) -> bytes | None:
    """To a neighbour that is no router a solicitation says nothing (RFC 4861 section 6.2.6); the router is in
    two groups.
    """
    router = host_side.ipv6_address(guest)
    if IPv6Address(destination) not in (ALL_ROUTERS, ALL_NODES, router):
        return None
    to = ALL_NODES if source == _UNSPECIFIED else IPv6Address(source)
    return _frame(guest_mac, router, to, _advertised(network), network)


def _router(network: GuestNetwork) -> IPv6Address | None:
    return None if network.ipv6 is None else host_side.ipv6_address(network.ipv6)


def _known(network: GuestNetwork) -> tuple[object, ...]:
    """What the guest knows of IPv6 from advertisements and from DHCPv6."""
    return _router(network), network.ipv6 and host_side.own_ipv6(network.ipv6), _advertised(network)


def _advertised(network: GuestNetwork, router_lifetime_s: int = ROUTER_LIFETIME_S) -> RouterAdvertisement:
    """What every advertisement says: what holds, and former prefixes."""
    return _with_former_prefixes(_held(network, router_lifetime_s), network.former, network.ipv6)


def _held(network: GuestNetwork, router_lifetime_s: int = ROUTER_LIFETIME_S) -> RouterAdvertisement:
    """What holds now; nothing, if IPv6 is off."""
    if network.ipv6 is None:
        return RouterAdvertisement(0, GUEST_HOP_LIMIT, source_mac=network.host_mac)
    prefixes = _prefixes(network.ipv6)
    has_dhcpv6 = network.services.dhcpv6
    has_mtu = network.mtu_bytes >= host_side.IPV6_MIN_MTU_BYTES
    servers, search = _told_servers(network), _told_search(network)
    return RouterAdvertisement(
        0 if network.ipv6_offline else router_lifetime_s,
        GUEST_HOP_LIMIT,
        managed=bool(prefixes) and has_dhcpv6,
        other=has_dhcpv6,
        source_mac=network.host_mac,
        mtu_bytes=network.mtu_bytes if has_mtu else None,
        prefixes=tuple(Prefix(prefix, 64, PREFIX_VALID_S, PREFIX_PREFERRED_S) for prefix in prefixes),
        dns_servers=(DnsServers(router_lifetime_s, servers),) if servers else (),
        dns_search=(DnsSearch(router_lifetime_s, search),) if search else (),
    )


def _withdraw(value: RouterAdvertisement, before: GuestNetwork, now: GuestNetwork) -> RouterAdvertisement:
    """`value`, and what a guest that knew `before` shall not go by any more `now`; search domains as far as there
    is room.
    """
    former = now.former if before.ipv6 is None else (Former(before.ipv6, on_host=False), *now.former)
    value = _with_former_prefixes(value, former, now.ipv6)
    servers = tuple(server for server in _told_servers(before) if server not in _told_servers(now))
    if servers:
        value = evolve(value, dns_servers=(*value.dns_servers, DnsServers(0, servers)))
    told = {_same_name(name) for name in _told_search(now)}
    gone = tuple(name for name in _told_search(before) if _same_name(name) not in told)
    room_bytes = host_side.IPV6_MIN_MTU_BYTES - ipv6.HEADER_BYTES - icmp.HEADER_BYTES - len(ndp.emit(value).body)
    search = _fitting(gone, room_bytes - _DNS_OPTION_HEAD_BYTES)
    return evolve(value, dns_search=(*value.dns_search, DnsSearch(0, search))) if search else value


def _with_former_prefixes(
    value: RouterAdvertisement, former: Iterable[Former], guest: GuestIPv6 | None
) -> RouterAdvertisement:
    """`value`, and the prefixes that the guest shall make no new connections from, the latest first."""
    on_host: dict[IPv6Address, bool] = {}
    current = _prefixes(guest) if guest else ()
    for each in former:
        for prefix in _prefixes(each.guest) if isinstance(each.guest, GuestIPv6) else ():
            if prefix not in current:
                on_host[prefix] = on_host.get(prefix, False) or each.on_host
    prefixes = (Prefix(prefix, 64, PREFIX_VALID_S if kept else 0, 0) for prefix, kept in on_host.items())
    return evolve(value, prefixes=(*value.prefixes, *prefixes)[:_MAX_PREFIXES])


def _prefixes(guest: GuestIPv6) -> tuple[IPv6Address, ...]:
    """The /64 of each address, for SLAAC; a link-local address has none to announce."""
    addresses = (own.ip for own in host_side.own_ipv6(guest) if not own.ip.is_link_local)
    prefixes = dict.fromkeys(IPv6Network((address, 64), strict=False).network_address for address in addresses)
    return tuple(prefixes)[:_MAX_PREFIXES]


def _told_servers(network: GuestNetwork) -> tuple[IPv6Address, ...]:
    return network.resolvers.ipv6[: host_side.MAX_DNS_SERVERS] if network.ipv6 else ()


def _told_search(network: GuestNetwork) -> tuple[str, ...]:
    return host_side.search_list(network, _MAX_SEARCH_BYTES) if network.ipv6 else ()


def _fitting(names: tuple[str, ...], limit_bytes: int) -> tuple[str, ...]:
    return host_side.search_list(GuestNetwork(resolvers=Resolvers(search=names)), limit_bytes)


def _same_name(name: str) -> str:
    return name.lower().removesuffix(".")


def _frame(
    guest_mac: bytes,
    source: IPv6Address,
    destination: IPv6Address,
    value: ndp.NdpMessage,
    network: GuestNetwork,
) -> bytes:
    packed = (source.packed, destination.packed)
    message = icmp.emit(*packed, ndp.emit(value))
    packet = ip.emit_packet(*packed, IPProtocol.ICMPV6, message, HOP_LIMIT)
    return ip.frame_packet(network.host_mac, guest_mac, packet)


def _solicited_node(address: IPv6Address) -> bytes:
    """The group that a node with `address` listens to (RFC 4291 section 2.7.1), packed."""
    return _SOLICITED_NODE + address.packed[13:]
