"""Neighbour discovery (RFC 4861): the host's side is the guest's router, and every neighbour it may have.

Duplicate address detection is left alone (RFC 4862 section 5.4): its solicitations come from the unspecified
address, and only one for the router's own address is answered.
"""

from ipaddress import IPv6Address, IPv6Interface

from trio_passt.config import GuestIPv6, GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import icmp, ip, ndp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import IcmpMessage
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.ndp import (
    HOP_LIMIT,
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
GUEST_HOP_LIMIT = 64

_MAX_SEARCH_BYTES = 512
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
            if source == _UNSPECIFIED and source_mac is not None:
                raise MalformedPacket("router solicitation from :: with a source link-layer address")
            to = ALL_NODES if source == _UNSPECIFIED else IPv6Address(source)
            return _advertise(guest_mac, to, network.ipv6, network, ROUTER_LIFETIME_S)
    return None


def advertisement(network: GuestNetwork, *, router_lifetime_s: int = ROUTER_LIFETIME_S) -> bytes:
    """An unsolicited router advertisement, to all nodes; a lifetime of 0 says that the router goes (section
    6.2.5).

    ValueError: IPv6 is off.
    """
    return _advertise(_TO_GROUP, ALL_NODES, _ipv6(network), network, router_lifetime_s)


def solicitation(network: GuestNetwork) -> bytes:
    """A neighbour solicitation for the guest's address: the reply tells its MAC address before it has spoken.

    ValueError: IPv6 is off.
    """
    guest = _ipv6(network)
    source = host_side.ipv6_address(guest, network.host_mac)
    asked = NeighborSolicitation(guest.address, network.host_mac)
    group = IPv6Address(_solicited_node(guest.address))
    return _frame(_TO_GROUP, source, group, asked, network)


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
    is_router = asked.target in (guest.gateway, host_side.ipv6_address(guest, network.host_mac))
    probing = source == _UNSPECIFIED
    if asked.target == guest.address or asked.target.packed == source or (probing and not is_router):
        return None
    to = ALL_NODES if probing else IPv6Address(source)
    reply = NeighborAdvertisement(
        asked.target, network.host_mac, router=is_router, solicited=not probing, override=True
    )
    return _frame(guest_mac, asked.target, to, reply, network)


def _advertise(
    guest_mac: bytes, to: IPv6Address, guest: GuestIPv6, network: GuestNetwork, router_lifetime_s: int
) -> bytes:
    has_global = not guest.address.is_link_local
    prefix = IPv6Interface((guest.address, 64)).network.network_address
    has_mtu = network.mtu_bytes >= host_side.IPV6_MIN_MTU_BYTES
    value = RouterAdvertisement(
        router_lifetime_s,
        GUEST_HOP_LIMIT,
        managed=has_global,
        other=True,
        source_mac=network.host_mac,
        mtu_bytes=network.mtu_bytes if has_mtu else None,
        prefixes=(Prefix(prefix, 64, PREFIX_VALID_S, PREFIX_PREFERRED_S),) if has_global else (),
        dns_lifetime_s=router_lifetime_s,
        dns_servers=network.resolvers.ipv6[: host_side.MAX_DNS_SERVERS],
        dns_search=host_side.search_list(network, _MAX_SEARCH_BYTES),
    )
    return _frame(guest_mac, host_side.ipv6_address(guest, network.host_mac), to, value, network)


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
