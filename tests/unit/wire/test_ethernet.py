import pytest
from codec_checks import macs, moderately, parses_or_is_malformed, survives_truncation, u16
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from trio_passt.wire import ethernet
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType

GUEST, HOST = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")


def test_scapy_reads_what_is_emitted() -> None:
    seen = Ether(ethernet.emit(EthernetHeader(GUEST, HOST, EtherType.ARP)))
    assert (seen.dst, seen.src, seen.type) == ("52:54:00:12:34:56", "9a:55:9a:55:9a:55", 0x0806)


def test_what_scapy_emits_is_read() -> None:
    frame = bytes(Ether(dst="9a:55:9a:55:9a:55", src="52:54:00:12:34:56") / IP())
    header, payload = ethernet.parse(frame)
    assert header == EthernetHeader(HOST, GUEST, EtherType.IPV4)
    assert payload == frame[14:]
    assert payload.obj is frame, "a view, no copy"


@moderately
@given(macs, macs, u16, st.binary(max_size=40))
def test_round_trip(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> None:
    header = EthernetHeader(destination, source, ethertype)
    assert ethernet.parse(ethernet.emit(header) + payload) == (header, payload)


@moderately
@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    parsed = parses_or_is_malformed(ethernet.parse, data)
    assert (parsed is None) == (len(data) < 14)


def test_truncation() -> None:
    survives_truncation(ethernet.parse, bytes(20), required_bytes=14)
    with pytest.raises(MalformedPacket, match="of 13 bytes"):
        ethernet.parse(bytes(13))


def test_multicast_addresses() -> None:
    assert ethernet.is_multicast(ethernet.BROADCAST)
    assert ethernet.is_multicast(ethernet.ipv4_multicast_mac(bytes((224, 0, 0, 1))))
    assert not ethernet.is_multicast(GUEST)
    assert ethernet.ipv4_multicast_mac(bytes((239, 255, 1, 2))).hex(":") == "01:00:5e:7f:01:02"
    assert ethernet.ipv6_multicast_mac(bytes(12) + b"\xff\x12\x34\x56").hex(":") == "33:33:ff:12:34:56"
    assert ethernet.format_mac(HOST) == "9a:55:9a:55:9a:55"
