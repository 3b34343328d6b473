"""Who the host's side of the link is to the guest, and datagrams from there: what all services share."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from attrs import evolve, frozen

from trio_passt.config import HOST_MAC, GuestIPv4, GuestIPv6, GuestNetwork
from trio_passt.host.network import link_local_from_mac
from trio_passt.wire import domain, ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

IPV6_MIN_MTU_BYTES = 1280
"""Every IPv6 link carries as much (RFC 8200 section 5), so a guest that was told no MTU yet does, too."""

MAX_DNS_SERVERS = 16
"""So many are told the guest: more than any resolver asks, and few enough for every option and packet."""

LEASE_S = 86400
"""A day: a guest that was suspended over night comes back with its address, and keeps its connections."""

RENEWAL_S = 600
"""The guest asks again after so long (T1), and so learns within ten minutes that the host's network has changed."""

REBINDING_S = LEASE_S * 7 // 8
"""Then it asks whoever may answer (T2, RFC 2131 section 4.4.5)."""

LOCAL_LEASE_S = 120
LOCAL_RENEWAL_S = 30
LOCAL_REBINDING_S = LOCAL_LEASE_S * 7 // 8
"""The same in local mode: a host that was offline may soon have a network, and the guest shall soon have it, too."""

_FALLBACKS = (IPv4Address("169.254.2.2"), IPv4Address("169.254.2.1"), IPv4Address("169.254.2.3"))


@frozen
class LeaseTimes:
    """How long an address is the guest's, and when it asks again: first whom it has it from, then everybody."""

    valid_s: int
    renewal_s: int
    rebinding_s: int


def lease_times(guest: GuestIPv4 | GuestIPv6) -> LeaseTimes:
    """What DHCP and DHCPv6 tell with an address."""
    if guest.is_local:
        return LeaseTimes(LOCAL_LEASE_S, LOCAL_RENEWAL_S, LOCAL_REBINDING_S)
    return LeaseTimes(LEASE_S, RENEWAL_S, REBINDING_S)


def own_ipv4(guest: GuestIPv4) -> tuple[IPv4Interface, ...]:
    """The addresses that the guest may have, with their masks."""
    return (IPv4Interface((guest.address, guest.prefix_length)), *guest.others)


def own_ipv6(guest: GuestIPv6) -> tuple[IPv6Interface, ...]:
    """The same of IPv6."""
    return (IPv6Interface((guest.address, guest.prefix_length)), *guest.others)


def owns(guest: GuestIPv4 | GuestIPv6, address: IPv4Address | IPv6Address) -> bool:
    """Whether this is an address that the guest may have."""
    return address == guest.address or any(address == other.ip for other in guest.others)


def with_first(guest: GuestIPv4, address: IPv4Address) -> GuestIPv4 | None:
    """The same for a guest that wants this one of its addresses; `None` if it is none of them."""
    own = own_ipv4(guest)
    first = next((each for each in own if each.ip == address), None)
    if first is None:
        return None
    others = tuple(each for each in own if each is not first)
    return evolve(guest, address=address, prefix_length=first.network.prefixlen, others=others)


def ipv4_address(guest: GuestIPv4) -> IPv4Address:
    """The address that DHCP and ARP speak from: the gateway's.

    On a host without gateway (a point-to-point interface), or where it would be the guest's own address, a
    link-local one (RFC 3927) stands in: ARP answers for it, and so it works as the guest's gateway.
    """
    unusable = {IPv4Address(0), *(own.ip for own in own_ipv4(guest))}
    return next(address for address in (guest.gateway, *_FALLBACKS) if address not in unusable)


def host_ipv4_address(network: GuestNetwork, guest: GuestIPv4) -> IPv4Address:
    """Where the guest reaches the host: at the address that stands for its loopback, or else at the gateway's."""
    return network.loopback_ipv4 or ipv4_address(guest)


def stands_for_host(network: GuestNetwork, address: IPv4Address | IPv6Address) -> bool:
    """Whether what the guest sends to this address is for the host, so that nobody else can have it."""
    return any(mapping.seen_by_guest == address for mapping in network.host_addresses)


def gateway_is_on_link(guest: GuestIPv4) -> bool:
    """Whether the guest, with its address and mask alone, finds the way to its gateway."""
    return ipv4_address(guest) in IPv4Interface((guest.address, guest.prefix_length)).network


def ipv6_address(guest: GuestIPv6) -> IPv6Address:
    """The link-local address that router advertisements and DHCPv6 come from (RFC 4861 section 4.2).

    The gateway's, or, if that is not link-local, the one made of our usual MAC address (RFC 4291 appendix A).  Not of
    one that the operator has set: libvirt 9.0 sets the guest's own, and so it would be the guest's own address.
    """
    if guest.gateway.is_link_local and guest.gateway != guest.address:
        return guest.gateway
    return link_local_from_mac(HOST_MAC)


def search_list(network: GuestNetwork, limit_bytes: int) -> tuple[str, ...]:
    """The leading search domains that fit into `limit_bytes` uncompressed; those DNS cannot write are left
    out.
    """
    names: list[str] = []
    for name in filter(domain.is_encodable, network.resolvers.search):
        limit_bytes -= len(domain.emit(name))
        if limit_bytes < 0:
            break
        names.append(name)
    return tuple(names)


def udp_frame(
    macs: tuple[bytes, bytes], addresses: tuple[bytes, bytes], ports: tuple[int, int], payload: bytes
) -> bytes:
    """A frame with one datagram; each pair is (from, to): MAC addresses, packed IP addresses, ports."""
    datagram = udp.emit(*addresses, UdpHeader(*ports), payload)
    return ip.frame_packet(*macs, ip.emit_packet(*addresses, IPProtocol.UDP, datagram))


def packed_list(addresses: Sequence[IPv4Address | IPv6Address]) -> bytes:
    """The addresses, one after another, as address options hold them."""
    return b"".join(address.packed for address in addresses)
