import pytest
from codec_checks import (
    moderately,
    packed_ipv4s,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u8,
    u16,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_RR
from scapy.packet import Raw

from trio_passt.wire import ipv4
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ipv4 import IPv4Header

SOURCE, DESTINATION = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7))

headers = st.builds(
    IPv4Header,
    source=packed_ipv4s,
    destination=packed_ipv4s,
    protocol=u8,
    ttl=u8,
    identification=u16,
    dont_fragment=st.booleans(),
    more_fragments=st.booleans(),
    fragment_offset=st.integers(0, 0x1FFF).map(lambda units: units * 8),
    traffic_class=u8,
)


def scapy_packet(**fields: object) -> bytes:
    return bytes(IP(src="192.0.2.1", dst="198.51.100.7", **fields) / UDP(sport=1, dport=2) / b"hello")


def test_scapy_reads_what_is_emitted() -> None:
    header = IPv4Header(SOURCE, DESTINATION, 17, 3, 0x1234, False, True, 1480, 0x2E)
    seen = IP(ipv4.emit(header, 5) + b"hello")
    assert (seen.version, seen.ihl, seen.len, seen.ttl, seen.proto) == (4, 5, 25, 3, 17)
    assert (seen.src, seen.dst, seen.id, seen.tos) == ("192.0.2.1", "198.51.100.7", 0x1234, 0x2E)
    assert (seen.flags, seen.frag) == ("MF", 185)
    good = seen.chksum
    del seen.chksum
    assert IP(bytes(seen)).chksum == good


def test_what_scapy_emits_is_read() -> None:
    packet = scapy_packet(id=7, ttl=9, tos=4, flags="DF")
    header, payload = ipv4.parse(packet)
    assert header == IPv4Header(SOURCE, DESTINATION, 17, 9, 7, dont_fragment=True, traffic_class=4)
    assert payload == packet[20:]
    assert not header.is_fragment


def test_options_are_skipped() -> None:
    packet = scapy_packet(options=[IPOption_RR(routers=["1.2.3.4", "5.6.7.8"])])
    header, payload = ipv4.parse(packet)
    assert packet[0] & 0x0F > 5
    assert (header.source, payload) == (SOURCE, packet[(packet[0] & 0x0F) * 4 :])


def test_padding_is_cut_off() -> None:
    packet = scapy_packet()
    assert ipv4.parse(packet + bytes(13))[1] == packet[20:]


@pytest.mark.parametrize(("flags", "offset"), [("MF", 0), ("MF", 5), (0, 5)])
def test_fragments_are_recognised(flags: object, offset: int) -> None:
    header, _ = ipv4.parse(scapy_packet(flags=flags, frag=offset))
    assert header.is_fragment
    assert header.fragment_offset == offset * 8


@pytest.mark.parametrize(
    "fields",
    [{"version": 6}, {"ihl": 4}, {"ihl": 15, "len": 59}, {"len": 19}, {"len": 34}, {"len": 0}, {"chksum": 1}],
)
def test_lying_headers_are_malformed(fields: dict[str, int]) -> None:
    with pytest.raises(MalformedPacket):
        ipv4.parse(scapy_packet(**fields))


@moderately
@given(headers, st.binary(max_size=50))
def test_round_trip(header: IPv4Header, payload: bytes) -> None:
    assert ipv4.parse(ipv4.emit(header, len(payload)) + payload) == (header, payload)


@moderately
@given(st.binary(max_size=80))
def test_arbitrary_bytes(data: bytes) -> None:
    parses_or_is_malformed(ipv4.parse, data)
    parses_or_is_malformed(ipv4.parse, b"\x45" + data)


def test_truncation_and_corruption() -> None:
    packet = bytes(IP(options=[IPOption_RR()]) / Raw(b"x" * 30))
    survives_truncation(ipv4.parse, packet, required_bytes=len(packet))
    survives_corruption(ipv4.parse, packet)
