"""Which address on one side is which on the other: no NAT, but for the host itself.

The guest has the host's own address, so it can't use that to reach the host.  Other addresses stand for it
(`HostAddress`): usually the gateway's for the host's loopback.  The other way round, a host-local peer (from loopback,
or from an address that the guest takes for its own) appears to come from there.  A nameserver that only the host can
reach is behind the DNS ports of the gateway's address, or of one that the operator chose (`DnsForward`).  Everybody
else keeps address and port.
"""

from ipaddress import IPv4Interface, ip_address

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork
from trio_passt.host.endpoint import LOOPBACK, Endpoint, interface_index, is_loopback
from trio_passt.wire.ipv6 import is_link_local

DNS_PORTS = frozenset({53, 853})
"""DNS (RFC 1035) and DNS over TLS (RFC 7858)."""

_LOW_IPV6 = bytes(10)


def is_unicast(address: bytes) -> bool:
    """Whether this packed address may be an end of a guest's flow.

    Not to unspecified, loopback, group, reserved, or IPv4-mapped and -compatible addresses: the host's kernel would
    take several of them for the host itself (0.0.0.0, ::ffff:127.0.0.1), behind the back of the mapping.
    """
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and not address.startswith(_LOW_IPV6)


class AddressMap:
    """The translation for one guest network.

    The addresses that stand for the host are looked up before anything else is judged.  What held before the host's
    network changed still does where it is in nothing's way: the guest may not know better yet.
    """

    __slots__ = (
        "_broadcast",
        "_closed",
        "_dns",
        "_gateways",
        "_guest_by_host",
        "_host_by_guest",
        "_interface",
        "_local",
    )

    def __init__(self, network: GuestNetwork, link_local_interface: str | None = None) -> None:
        """`link_local_interface` is where link-local destinations are, if not at the one that IPv6 was taken from."""
        forwards = (*network.former_dns_forwards, *network.dns_forwards)
        self._dns = {forward.seen_by_guest.packed: forward.on_host.packed for forward in forwards}
        self._host_by_guest: dict[bytes, bytes] = {}
        self._guest_by_host: dict[bytes, bytes] = {}
        self._local: set[bytes] = set()
        self._gateways: dict[int, bytes] = {}
        self._interface = link_local_interface
        self._closed = network.closed
        self._broadcast = {b"\xff" * 4}
        if network.ipv4:
            self._add(network.ipv4)
            self._gateways[4] = network.ipv4.gateway.packed
        if network.ipv6:
            self._add(network.ipv6)
            self._gateways[16] = network.ipv6.gateway.packed
            self._interface = link_local_interface or network.ipv6.interface
        for mapping in network.host_addresses:
            seen, on_host = mapping.seen_by_guest.packed, mapping.on_host.packed
            if len(seen) in self._gateways:
                self._host_by_guest[seen] = on_host
                self._guest_by_host.setdefault(on_host, seen)
        for former in network.former:
            self._add_former(former.guest, network)

    def _add(self, guest: GuestIPv4 | GuestIPv6) -> None:
        """Who is at the guest's own addresses is the host."""
        self._local |= {guest.address.packed, *[other.ip.packed for other in guest.others]}
        if isinstance(guest, GuestIPv4):
            interfaces = (IPv4Interface((guest.address, guest.prefix_length)), *guest.others)
            self._broadcast |= {
                interface.network.broadcast_address.packed for interface in interfaces if _has_broadcast(interface)
            }

    def _add_former(self, guest: GuestIPv4 | GuestIPv6, network: GuestNetwork) -> None:
        self._add(guest)
        gateway = guest.gateway.packed
        today = self._gateways.get(len(gateway))
        loopback = LOOPBACK[len(gateway)]
        are_mapped = today is not None and self._host_by_guest.get(today) == loopback
        # a nameserver that is told today is meant by its own address, whoever the gateway was
        is_nameserver = guest.gateway in network.resolvers.ipv4 or guest.gateway in network.resolvers.ipv6
        if are_mapped and not is_nameserver:
            self._host_by_guest.setdefault(gateway, loopback)

    def destination_on_host(self, address: bytes, port: int) -> Endpoint | None:
        """Where the host has to connect to when the guest asks for `address` and `port`; `None`: nowhere, drop it."""
        on_host = self._dns.get(address) if port in DNS_PORTS else None
        on_host = on_host or self._host_by_guest.get(address)
        if on_host is None:
            if len(address) not in self._gateways or not is_unicast(address) or self.is_closed(address):
                return None
            on_host = address
        return Endpoint(on_host, port, interface_index(self._interface) if is_link_local(on_host) else 0)

    def is_closed(self, address: bytes) -> bool:
        """Whether this is an address of a network in which there is nobody else than those that stand for the host."""
        return bool(self._closed) and any(ip_address(address) in network for network in self._closed)

    def is_for_neighbours(self, address: bytes) -> bool:
        """Whether this is a group's address or everybody's (RFC 1112, RFC 919, RFC 4291 section 2.7).

        What goes there is for those on the guest's link, of which there are none.
        """
        if len(address) == 16:
            return address[0] == 0xFF
        return address[0] & 0xF0 == 0xE0 or address in self._broadcast

    def router_of(self, remote: bytes) -> bytes:
        """Who tells the guest that `remote` can't be reached: the gateway, or without one the remote itself."""
        router = self._gateways.get(len(remote), remote)
        return router if is_unicast(router) else remote

    def source_for_guest(self, address: bytes) -> bytes | None:
        """What the guest sees as the address of a host peer at `address`; `None` if that family is off.

        A host-local one has the address that stands for its own; else the one that stands for loopback, or if there is
        none, the gateway's.
        """
        gateway = self._gateways.get(len(address))
        if gateway is None:
            return None
        seen = self._guest_by_host.get(address)
        if seen is not None:
            return seen
        if not self.is_host(address):
            return address
        return self._guest_by_host.get(LOOPBACK[len(address)], gateway)

    def stands_for_host(self, address: bytes) -> bool:
        """Whether what the guest sends to this address is for the host itself."""
        return address in self._host_by_guest

    def is_host(self, address: bytes) -> bool:
        """Whether a host socket that sends to this address sends to the host itself."""
        return address in self._local or address in self._guest_by_host or is_loopback(address)


def _has_broadcast(interface: IPv4Interface) -> bool:
    """That address of a network is no host's; there is none where it has but one or two addresses (RFC 3021)."""
    return interface.network.prefixlen <= 30
