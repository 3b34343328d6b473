"""The network that the tests of the services give their guest, and how scapy sees what is sent to it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6Unknown, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork, Resolvers

GUEST_MAC = bytes.fromhex("525400123456")
GUEST_MAC_TEXT = "52:54:00:12:34:56"
HOST_MAC_TEXT = "9a:55:9a:55:9a:55"
GUEST_LINK_LOCAL = "fe80::5054:ff:fe12:3456"

NETWORK = GuestNetwork(
    ipv4=GuestIPv4(IPv4Address("192.0.2.5"), 24, IPv4Address("192.0.2.1"), "eth0"),
    ipv6=GuestIPv6(IPv6Address("2001:db8:1:2::5"), 64, IPv6Address("fe80::1"), "eth0"),
    resolvers=Resolvers(
        (IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54")),
        (IPv6Address("2001:db8::53"), IPv6Address("2001:db8::54")),
        ("lab.example.com", "example.com"),
    ),
)
LOCAL_MODE = GuestNetwork(
    ipv4=GuestIPv4(IPv4Address("169.254.2.1"), 16, IPv4Address("169.254.2.2")),
    ipv6=GuestIPv6(IPv6Address("fe80::5054:ff:fe00:1"), 64, IPv6Address("fe80::1")),
)
NO_NETWORK = GuestNetwork()


def dissect(frame: bytes | None) -> Packet:
    """The frame as scapy reads it; every checksum in it is right, or the test fails."""
    assert frame is not None, "no reply"
    packet = Ether(frame)
    again = Ether(frame)
    for layer in (IP, UDP, ICMPv6Unknown):
        if layer in again:
            del again[layer].chksum
    upper = again[IPv6].payload if IPv6 in again else None
    if upper and "cksum" in upper.fields:
        del upper.cksum
    assert bytes(again) == frame, "lengths or checksums"
    return packet
