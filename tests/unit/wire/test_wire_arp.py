from ipaddress import IPv4Address

import pytest
from codec_checks import ipv4s, macs, moderately, parses_or_is_malformed, survives_truncation, u16
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from trio_passt.wire import arp
from trio_passt.wire.arp import ArpOperation, ArpPacket
from trio_passt.wire.errors import MalformedPacket

GUEST, HOST = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
REQUEST = ArpPacket(ArpOperation.REQUEST, GUEST, IPv4Address("192.0.2.5"), bytes(6), IPv4Address("192.0.2.1"))
SCAPY_REQUEST = bytes(
    ARP(
        op="who-has",
        hwsrc="52:54:00:12:34:56",
        psrc="192.0.2.5",
        hwdst="00:00:00:00:00:00",
        pdst="192.0.2.1",
    )
)

packets = st.builds(
    ArpPacket, operation=u16, sender_mac=macs, sender_address=ipv4s, target_mac=macs, target_address=ipv4s
)


def test_byte_for_byte_what_scapy_emits() -> None:
    assert arp.emit(REQUEST) == SCAPY_REQUEST
    assert arp.parse(SCAPY_REQUEST + bytes(18)) == REQUEST


def test_probe_and_announcement() -> None:
    guest, unspecified = REQUEST.sender_address, IPv4Address(0)
    probe = ArpPacket(ArpOperation.REQUEST, GUEST, unspecified, bytes(6), guest)
    announcement = ArpPacket(ArpOperation.REQUEST, GUEST, guest, bytes(6), guest)
    assert (REQUEST.is_probe, REQUEST.is_gratuitous) == (False, False)
    assert (probe.is_probe, probe.is_gratuitous) == (True, False)
    assert (announcement.is_probe, announcement.is_gratuitous) == (False, True)


@pytest.mark.parametrize("fields", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}])
def test_other_than_ipv4_over_ethernet_is_malformed(fields: dict[str, int]) -> None:
    packet = bytearray(SCAPY_REQUEST)
    offsets = {"hwtype": (0, 2), "ptype": (2, 4), "hwlen": (4, 5), "plen": (5, 6)}
    for name, value in fields.items():
        start, end = offsets[name]
        packet[start:end] = value.to_bytes(end - start, "big")
    with pytest.raises(MalformedPacket):
        arp.parse(packet)


@moderately
@given(packets)
def test_round_trip(packet: ArpPacket) -> None:
    assert arp.parse(arp.emit(packet)) == packet


@moderately
@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    parses_or_is_malformed(arp.parse, data)
    parses_or_is_malformed(arp.parse, SCAPY_REQUEST[:8] + data)


def test_truncation() -> None:
    survives_truncation(arp.parse, SCAPY_REQUEST, required_bytes=28)
