"""Who answers at the link: asks the services, sends what they say, and speaks up when the host's network changes.

What is answered to what is the services' affair, which are pure.  Here is what they leave out: which packets are for
them, a link that is full, and what an answer says about the guest.
"""

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork, IPAddress
from trio_passt.flow.session import Session
from trio_passt.host.guest_network import without
from trio_passt.services import arp, dhcp, dhcpv6, host_side, ndp
from trio_passt.wire import frames, plain, udp
from trio_passt.wire.icmp import IcmpMessage, Icmpv6Type
from trio_passt.wire.ipv6 import IPv6Header

WAITING_REPLIES = 64
"""For a link that others have filled; whoever is not answered asks again."""

_DHCP_SERVER_PORT = plain.DHCP_SERVER_PORT.to_bytes(2, "big")
_DHCPV6_SERVER_PORT = plain.DHCPV6_SERVER_PORT.to_bytes(2, "big")
"""As they stand in a UDP header, bytes 2 and 3."""

_BROADCAST = b"\xff" * 4


class Responder:
    """The services of one guest session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._server_duid = dhcpv6.server_duid(session.network)
        self._waiting: list[bytes] = []
        self._forgotten: set[GuestIPv4] = set()
        self._forgotten_nameservers: set[IPAddress] = set()
        """Former states, and nameservers at our addresses, that the guest goes by no more: it has a new lease."""

    # -- what the guest asks -------------------------------------------------------------------------------------------

    def take_arp(self, packet: memoryview) -> None:
        """An ARP packet.  Raises MalformedPacket, as the others do."""
        sender = arp.sender(packet)
        if sender is not None and self._session.network.ipv4:
            self._session.guest.learn_address(sender.packed)
        self._send(arp.answer(packet, self._session.network))

    def is_for_dhcp(self, destination: bytes, datagram: memoryview) -> bool:
        """Whether a UDP datagram is DHCP's: broadcast, or to an address that the server has or had.

        A remote DHCP server's is not ours to answer for.
        """
        if datagram[2:4] != _DHCP_SERVER_PORT:
            return False
        network = self._session.network
        guests = (network.ipv4, *(former.guest for former in network.former))
        servers = (host_side.ipv4_address(guest).packed for guest in guests if isinstance(guest, GuestIPv4))
        return destination == _BROADCAST or destination in servers

    def take_dhcp(self, mac: bytes, source: bytes, destination: bytes, datagram: memoryview) -> None:
        """One that `is_for_dhcp`.

        What is acknowledged to a guest is its address from now on; if that is today's, no former one is.
        """
        if not self._session.network.services.dhcp:
            self._session.drops["dhcp is off"] += 1
            return
        _, request = udp.parse(source, destination, datagram)
        frame = dhcp.answer(mac, request, self._session.network)
        address = dhcp.acknowledged_address(frame) if frame else None
        if address is not None:
            self._session.guest.learn_address(address.packed)
            if self._session.network.ipv4 and host_side.owns(self._session.network.ipv4, address):
                self._forget_former_ipv4()
        self._send(frame)

    def _forget_former_ipv4(self) -> None:
        network = self._session.network
        self._forgotten |= {former.guest for former in network.former if isinstance(former.guest, GuestIPv4)}
        seen = (forward.seen_by_guest for forward in network.former_dns_forwards)
        self._forgotten_nameservers |= {address for address in seen if address.version == 4}
        if network.former or network.former_dns_forwards:
            self._session.change(without(network, self._forgotten, self._forgotten_nameservers))

    def is_for_dhcpv6(self, destination: bytes, datagram: memoryview) -> bool:
        """Whether a UDP datagram is DHCPv6's: to a group, or to an address that the server has or had."""
        if datagram[2:4] != _DHCPV6_SERVER_PORT:
            return False
        network = self._session.network
        guests = (network.ipv6, *(former.guest for former in network.former))
        servers = (host_side.ipv6_address(guest).packed for guest in guests if isinstance(guest, GuestIPv6))
        return destination[0] == 0xFF or destination in servers

    def take_dhcpv6(self, mac: bytes, source: bytes, destination: bytes, datagram: memoryview) -> None:
        """One that `is_for_dhcpv6`."""
        if not self._session.network.services.dhcpv6:
            self._session.drops["dhcpv6 is off"] += 1
            return
        _, request = udp.parse(source, destination, datagram)
        to_group = destination[0] == 0xFF
        network = self._session.network
        self._send(dhcpv6.answer(mac, source, request, network, self._server_duid, to_group=to_group))

    def take_neighbour_discovery(self, mac: bytes, header: IPv6Header, message: IcmpMessage) -> None:
        """A solicitation, of a router or a neighbour."""
        services = self._session.network.services
        if not services.ndp:
            self._session.drops["neighbour discovery is off"] += 1
            return
        if message.type == Icmpv6Type.ROUTER_SOLICITATION and not services.router_advertisements:
            self._session.drops["router advertisements are off"] += 1
            return
        addresses = (header.source, header.destination)
        frame = ndp.answer(mac, *addresses, header.hop_limit, message, self._session.network)
        claimed = ndp.claimed(header.source, message)
        if claimed is not None:
            self._session.guest.learn_claim(claimed.packed)
        self._send(frame)

    # -- what we say unasked -------------------------------------------------------------------------------------------

    def change(self, network: GuestNetwork) -> None:
        """The host's network is another: what can be told the guest at once, is."""
        before = self._session.network
        if network.ipv4:
            self._forgotten.discard(network.ipv4)  # told again
        self._forgotten_nameservers -= {*network.resolvers.ipv4, *(f.seen_by_guest for f in network.dns_forwards)}
        network = without(network, self._forgotten, self._forgotten_nameservers)
        self._session.change(network)
        for frame in ndp.changes(before, network):
            self._send(frame)

    def advertise_router(self) -> None:
        """A router advertisement that nobody asked for; a full link does not take it, and another will follow."""
        if ndp.tells_router(self._session.network):
            self._session.link.send([frames.single(ndp.advertisement(self._session.network))])

    def farewell(self) -> None:
        """The guest's router goes (RFC 4861 section 6.2.5), and has no time to wait for a full link."""
        if ndp.tells_router(self._session.network):
            self._session.link.send([frames.single(ndp.advertisement(self._session.network, router_lifetime_s=0))])

    def find_guest(self) -> None:
        """Ask for the guest's MAC address, unless it is known: it has to be for anything to reach the guest.

        Without neighbour discovery it is ARP that asks, if the guest has IPv4.
        """
        if self._session.guest.is_known:
            return
        network = self._session.network
        asked = arp.requests(network) if network.ipv4 else []
        if network.ipv6 and (network.services.ndp or not asked):
            asked += ndp.solicitations(network)
        for frame in asked:
            self._send(frame)

    # -- the link ------------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes | None) -> None:
        """Send a service's frame.  On a full link it waits: without its answers the guest would lose its network."""
        if frame is None:
            return
        if not self._waiting and self._session.link.send([frames.single(frame)]):
            return
        if len(self._waiting) >= WAITING_REPLIES:
            self._session.drops["link to the guest full"] += 1
            return
        if not self._waiting:
            self._session.link.when_ready(self._send_waiting)
        self._waiting.append(frame)

    def _send_waiting(self) -> None:
        """The link has room."""
        taken = self._session.link.send([frames.single(frame) for frame in self._waiting])
        del self._waiting[:taken]
        if self._waiting:
            self._session.link.when_ready(self._send_waiting)
