"""ARP (RFC 826) for IPv4 over Ethernet: 28 bytes after the Ethernet header, the same for requests and
replies.
"""

import struct
from enum import IntEnum
from ipaddress import IPv4Address

from attrs import frozen

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType

PACKET_BYTES = 28
HARDWARE_ETHERNET = 1
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_FIXED = (HARDWARE_ETHERNET, EtherType.IPV4, 6, 4)


class ArpOperation(IntEnum):
    """RFC 826, "Packet format"."""

    REQUEST = 1
    REPLY = 2


@frozen
class ArpPacket:
    """`operation` is a plain integer, since any may arrive; MAC addresses are 6 bytes."""

    operation: int
    sender_mac: bytes
    sender_address: IPv4Address
    target_mac: bytes
    target_address: IPv4Address

    @property
    def is_probe(self) -> bool:
        """Whether the sender asks if it may have the target address (RFC 5227 section 1.1): it has none
        yet.
        """
        return int(self.sender_address) == 0

    @property
    def is_gratuitous(self) -> bool:
        """Whether the sender announces its own address (RFC 5227 section 1.1) and expects no answer."""
        return self.sender_address == self.target_address


def parse(packet: Buffer) -> ArpPacket:
    """The packet after an Ethernet header; bytes after the 28th are padding.

    Malformed: shorter than 28 bytes, or about other than IPv4 addresses over Ethernet.
    """
    if len(packet) < PACKET_BYTES:
        raise MalformedPacket(f"ARP packet of {len(packet)} bytes")
    *fixed, operation, sender_mac, sender, target_mac, target = _PACKET.unpack_from(packet)
    if tuple(fixed) != _FIXED:
        raise MalformedPacket(f"ARP for hardware, protocol and their lengths {fixed}")
    return ArpPacket(operation, sender_mac, IPv4Address(sender), target_mac, IPv4Address(target))


def emit(packet: ArpPacket) -> bytes:
    """The 28 bytes of `packet`."""
    sender = (packet.sender_mac, packet.sender_address.packed)
    return _PACKET.pack(*_FIXED, packet.operation, *sender, packet.target_mac, packet.target_address.packed)
