"""ARP: the host's side of the link has every address, but those that the guest has or may want to have.

So whatever the guest wants to reach, it sends to us, and no route or mask has to be right for that.
"""

from trio_passt.config import GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import arp, ethernet
from trio_passt.wire.arp import ArpOperation, ArpPacket
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import BROADCAST, EthernetHeader, EtherType

_UNKNOWN_MAC = bytes(6)


def answer(packet: Buffer, network: GuestNetwork) -> bytes | None:
    """The frame that answers the ARP packet (what follows the Ethernet header), or None where silence is
    right.

    Silence for: the guest's own address; announcements; probes, since an answer to one would tell the guest
    that an address it is about to take is in use (RFC 5227 section 2.1.1), except those for the gateway's,
    which is; group addresses; replies.

    Raises MalformedPacket.
    """
    if network.ipv4 is None:
        return None
    asked = arp.parse(packet)
    if asked.operation != ArpOperation.REQUEST or asked.is_gratuitous:
        return None
    if asked.sender_mac == network.host_mac or ethernet.is_multicast(asked.sender_mac):
        return None
    target = asked.target_address
    if target == network.ipv4.address or target.is_multicast or target.packed in (bytes(4), b"\xff" * 4):
        return None
    if asked.is_probe and target != host_side.ipv4_address(network.ipv4):
        return None
    reply = ArpPacket(ArpOperation.REPLY, network.host_mac, target, asked.sender_mac, asked.sender_address)
    return _frame(asked.sender_mac, reply, network)


def request(network: GuestNetwork) -> bytes:
    """A broadcast frame that asks for the guest's address: the reply tells its MAC address before it has
    spoken.

    ValueError: IPv4 is off.
    """
    if network.ipv4 is None:
        raise ValueError("an ARP request needs IPv4")
    sender = host_side.ipv4_address(network.ipv4)
    asked = ArpPacket(ArpOperation.REQUEST, network.host_mac, sender, _UNKNOWN_MAC, network.ipv4.address)
    return _frame(BROADCAST, asked, network)


def _frame(destination: bytes, packet: ArpPacket, network: GuestNetwork) -> bytes:
    header = EthernetHeader(destination, network.host_mac, EtherType.ARP)
    return ethernet.emit(header) + arp.emit(packet)
