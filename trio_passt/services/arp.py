"""ARP: the host's side of the link has every address, but those that the guest has or may want to have.

So whatever the guest wants to reach, it sends to us, and no route or mask has to be right for that.
"""

from ipaddress import IPv4Address, IPv4Network

from trio_passt.config import GuestIPv4, GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import arp, ethernet
from trio_passt.wire.arp import ArpOperation, ArpPacket
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import BROADCAST, EthernetHeader, EtherType

_UNKNOWN_MAC = bytes(6)
_LIMITED_BROADCAST = IPv4Address("255.255.255.255")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


def answer(packet: Buffer, network: GuestNetwork) -> bytes | None:
    """The frame that answers the ARP packet (what follows the Ethernet header), or None where silence is
    right.

    Silence for: the guest's own addresses (unless it goes by a former lease, in which that is its gateway's), also
    loopback; announcements; probes, since an answer to one would tell the guest that an address it is about to take
    is in use (RFC 5227 section 2.1.1), except those for the gateway's and for such that stand for the host, which are;
    addresses that are no host's, such as groups; replies.  A guest whose MAC address is ours, too, is answered: libvirt
    9.0 has it so.

    Raises MalformedPacket.
    """
    if network.ipv4 is None:
        return None
    asked = arp.parse(packet)
    if asked.operation != ArpOperation.REQUEST or asked.is_gratuitous:
        return None
    if ethernet.is_multicast(asked.sender_mac):
        return None
    target = asked.target_address
    if (host_side.owns(network.ipv4, target) and not _was_gateway(target, network)) or not _may_be_a_hosts(target):
        return None
    if not asked.is_probe and not _may_be_a_hosts(asked.sender_address):
        return None
    is_taken = target == host_side.ipv4_address(network.ipv4) or host_side.stands_for_host(network, target)
    if asked.is_probe and not is_taken:
        return None
    reply = ArpPacket(ArpOperation.REPLY, network.host_mac, target, asked.sender_mac, asked.sender_address)
    return _frame(asked.sender_mac, reply, network)


def sender(packet: Buffer) -> IPv4Address | None:
    """The address that whoever sent an ARP packet says is its own, before it has sent any other packet; None in a
    probe (RFC 5227 section 1.1), in what is neither request nor reply, and where it can't be anybody's own.

    Raises MalformedPacket.
    """
    said = arp.parse(packet)
    if said.operation not in (ArpOperation.REQUEST, ArpOperation.REPLY) or ethernet.is_multicast(said.sender_mac):
        return None
    return said.sender_address if _may_be_a_hosts(said.sender_address) else None


def requests(network: GuestNetwork) -> list[bytes]:
    """Broadcast frames that ask for the guest's addresses: the reply tells its MAC address before it has
    spoken.

    ValueError: IPv4 is off.
    """
    if network.ipv4 is None:
        raise ValueError("an ARP request needs IPv4")
    sender = host_side.ipv4_address(network.ipv4)
    targets = (own.ip for own in host_side.own_ipv4(network.ipv4))
    asked = (ArpPacket(ArpOperation.REQUEST, network.host_mac, sender, _UNKNOWN_MAC, target) for target in targets)
    return [_frame(BROADCAST, each, network) for each in asked]


def _was_gateway(address: IPv4Address, network: GuestNetwork) -> bool:
    formerly = (former.guest for former in network.former if isinstance(former.guest, GuestIPv4))
    return any(host_side.ipv4_address(guest) == address for guest in formerly)


def _may_be_a_hosts(address: IPv4Address) -> bool:
    """On a link (RFC 1122 section 3.2.1.3): no group, not the limited broadcast address, loopback or unspecified."""
    nobodys = address.is_multicast or address.is_loopback or address in _THIS_NETWORK
    return not nobodys and address != _LIMITED_BROADCAST


def _frame(destination: bytes, packet: ArpPacket, network: GuestNetwork) -> bytes:
    header = EthernetHeader(destination, network.host_mac, EtherType.ARP)
    return ethernet.emit(header) + arp.emit(packet)
