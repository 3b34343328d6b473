"""What both IP versions share: protocol numbers, and a packet of either version."""

from enum import IntEnum

from trio_passt.wire import ipv4, ipv6
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ethernet import (
    BROADCAST,
    EthernetHeader,
    EtherType,
    ipv4_multicast_mac,
    ipv6_multicast_mac,
)
from trio_passt.wire.ethernet import emit as emit_ethernet


class IPProtocol(IntEnum):
    """Protocol numbers (IPv4) and next-header values (IPv6) that mean something here."""

    ICMP = 1
    IGMP = 2
    TCP = 6
    UDP = 17
    ICMPV6 = 58


def emit_packet(
    source: bytes, destination: bytes, protocol: int, payload: Buffer, hop_limit: int = 64, payload_bytes: int = 0
) -> bytes:
    """An IP packet; its version follows from the length of the packed addresses (both 4 or both 16 bytes).

    If `payload` is only the beginning of one, `payload_bytes` is the length of the whole.
    """
    size = payload_bytes or len(payload)
    if len(source) == 4:
        header = ipv4.emit(ipv4.IPv4Header(source, destination, protocol, ttl=hop_limit), size)
    else:
        header = ipv6.emit(ipv6.IPv6Header(source, destination, protocol, hop_limit=hop_limit), size)
    return header + payload


def frame_packet(host_mac: bytes, guest_mac: bytes, packet: bytes) -> bytes:
    """A frame around `packet` from `host_mac` to `guest_mac`, or to the MAC of the group it is for."""
    version = packet[0] >> 4
    destination = guest_mac
    if version == 6 and packet[24] == 0xFF:
        destination = ipv6_multicast_mac(packet[24:40])
    elif version == 4 and packet[16:20] == b"\xff\xff\xff\xff":
        destination = BROADCAST
    elif version == 4 and packet[16] & 0xF0 == 0xE0:
        destination = ipv4_multicast_mac(packet[16:20])
    ethertype = EtherType.IPV4 if version == 4 else EtherType.IPV6
    return emit_ethernet(EthernetHeader(destination, host_mac, ethertype)) + packet
