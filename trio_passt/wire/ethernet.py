"""Ethernet II frames (IEEE 802.3 clause 3, as in RFC 894): destination, source, EtherType, payload."""

import struct
from enum import IntEnum
from typing import Final

from attrs import frozen

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

HEADER_BYTES: Final = 14
BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sH")


class EtherType(IntEnum):
    """The EtherTypes that mean something here."""

    IPV4 = 0x0800
    ARP = 0x0806
    IPV6 = 0x86DD


@frozen
class EthernetHeader:
    """`ethertype` is a plain integer, since any may arrive."""

    destination: bytes
    source: bytes
    ethertype: int


def parse(frame: Buffer) -> tuple[EthernetHeader, memoryview]:
    """Header and payload (a view, no copy) of a frame.  A frame shorter than its header is malformed."""
    if len(frame) < HEADER_BYTES:
        raise MalformedPacket(f"Ethernet frame of {len(frame)} bytes")
    return EthernetHeader(*_HEADER.unpack_from(frame)), memoryview(frame)[HEADER_BYTES:]


def emit(header: EthernetHeader) -> bytes:
    """The 14 bytes of `header`."""
    return _HEADER.pack(header.destination, header.source, header.ethertype)


def is_multicast(mac: bytes) -> bool:
    """Whether `mac` is a group address (broadcast included)."""
    return bool(mac[0] & 1)


def ipv4_multicast_mac(group: bytes) -> bytes:
    """The MAC address of an IPv4 multicast group (RFC 1112 section 6.4)."""
    return b"\x01\x00\x5e" + bytes([group[1] & 0x7F]) + group[2:4]


def ipv6_multicast_mac(group: bytes) -> bytes:
    """The MAC address of an IPv6 multicast group (RFC 2464 section 7)."""
    return b"\x33\x33" + group[12:16]


def format_mac(mac: bytes) -> str:
    """As people write it: `9a:55:9a:55:9a:55`."""
    return mac.hex(":")
