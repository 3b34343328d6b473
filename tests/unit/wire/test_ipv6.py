from ipaddress import IPv6Address

import pytest
from attrs import evolve
from codec_checks import (
    moderately,
    packed_ipv6s,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u8,
    u32,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw

from trio_passt.wire import ipv6
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ipv6 import IPv6Header

SOURCE, DESTINATION = (IPv6Address("2001:db8::1").packed, IPv6Address("2001:db8::2").packed)

fixed_headers = st.builds(
    IPv6Header,
    source=packed_ipv6s,
    destination=packed_ipv6s,
    protocol=u8.filter(lambda number: number not in (0, 43, 44, 51, 60)),
    hop_limit=u8,
    traffic_class=u8,
    flow_label=st.integers(0, 0xFFFFF),
)
fragment_headers = st.builds(
    evolve,
    fixed_headers,
    protocol=u8,
    more_fragments=st.booleans(),
    fragment_offset=st.integers(0, 0x1FFF).map(lambda units: units * 8),
    identification=u32,
).filter(lambda header: header.is_fragment)
headers = fixed_headers | fragment_headers


def scapy_packet(*extensions: Packet, **fields: object) -> bytes:
    packet = IPv6(src="2001:db8::1", dst="2001:db8::2", **fields)
    for extension in extensions:
        packet = packet / extension
    return bytes(packet / UDP(sport=1, dport=2, chksum=0xABCD) / Raw(b"hello"))


def test_scapy_reads_what_is_emitted() -> None:
    seen = IPv6(ipv6.emit(IPv6Header(SOURCE, DESTINATION, 59, 7, 0x2E, 0xABCDE), 0))
    assert (seen.version, seen.tc, seen.fl, seen.plen, seen.nh, seen.hlim) == (6, 0x2E, 0xABCDE, 0, 59, 7)
    assert (seen.src, seen.dst) == ("2001:db8::1", "2001:db8::2")


def test_what_scapy_emits_is_read() -> None:
    packet = scapy_packet(tc=3, fl=5, hlim=9)
    header, payload = ipv6.parse(packet + b"padding")
    assert header == IPv6Header(SOURCE, DESTINATION, 17, 9, 3, 5)
    assert payload == packet[40:]
    assert not header.is_fragment


@pytest.mark.parametrize(
    "extensions",
    [
        [IPv6ExtHdrHopByHop(options=[RouterAlert()])],
        [IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(30))])],
        [IPv6ExtHdrRouting(addresses=["2001:db8::9"])],
        [AH(nh=17, payloadlen=4, icv=bytes(12))],
        [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()],
    ],
)
def test_extension_headers_are_walked(extensions: list[Packet]) -> None:
    header, payload = ipv6.parse(scapy_packet(*extensions))
    assert header.protocol == 17
    assert payload == scapy_packet()[40:]


@pytest.mark.parametrize(("more", "offset"), [(1, 0), (1, 8), (0, 8)])
def test_fragments_are_recognised(more: int, offset: int) -> None:
    header, payload = ipv6.parse(scapy_packet(IPv6ExtHdrFragment(m=more, offset=offset, id=77)))
    assert header.is_fragment
    assert (header.more_fragments, header.fragment_offset) == (bool(more), offset * 8)
    assert (header.identification, header.protocol) == (77, 17)
    assert payload == scapy_packet()[40:]


def test_later_fragment_is_not_walked_into() -> None:
    later = bytes(IPv6() / IPv6ExtHdrFragment(offset=8, nh=60) / Raw(b"\xff" * 16))
    header, payload = ipv6.parse(later)
    assert header.protocol == 60
    assert payload == b"\xff" * 16


def test_first_fragment_is_not_walked_into() -> None:
    """Its offsets count from what follows the fragment header, extension headers included."""
    packet = scapy_packet(IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(m=1, id=7), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt())
    header, payload = ipv6.parse(packet)
    assert (header.protocol, header.identification, header.fragment_offset) == (60, 7, 0)
    assert payload == packet[40 + 8 + 8 :]
    assert ipv6.upper_layer(header.protocol, payload) == (17, scapy_packet()[40:])


def test_atomic_fragment_is_whole() -> None:
    header, payload = ipv6.parse(scapy_packet(IPv6ExtHdrFragment(id=1), IPv6ExtHdrDestOpt()))
    assert not header.is_fragment
    assert header.protocol == 17
    assert payload == scapy_packet()[40:]


def test_two_fragment_headers_are_malformed() -> None:
    with pytest.raises(MalformedPacket, match="two fragment headers"):
        ipv6.parse(scapy_packet(IPv6ExtHdrFragment(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1)))
    _, part = ipv6.parse(scapy_packet(IPv6ExtHdrFragment(m=1), IPv6ExtHdrFragment()))
    with pytest.raises(MalformedPacket, match="two fragment headers"):
        ipv6.upper_layer(ipv6.FRAGMENT, part)


def test_scapy_reads_the_fragment_that_is_emitted() -> None:
    header = IPv6Header(SOURCE, DESTINATION, 17, 7, more_fragments=True, fragment_offset=1232, identification=0xDECADE)
    seen = IPv6(ipv6.emit(header, 8) + b"one part")
    assert (seen.plen, seen.nh, seen.hlim) == (16, 44, 7)
    fragment = seen[IPv6ExtHdrFragment]
    assert (fragment.nh, fragment.offset, fragment.m, fragment.id) == (17, 154, 1, 0xDECADE)
    assert bytes(fragment.payload) == b"one part"


def test_upper_layer_may_be_all_there_is() -> None:
    assert ipv6.upper_layer(17, b"datagram") == (17, b"datagram")
    assert ipv6.upper_layer(ipv6.NO_NEXT_HEADER, b"") == (59, b"")


@pytest.mark.parametrize("payload", [b"", bytes((17, 0)) + bytes(5), bytes((17, 1)) + bytes(13)])
def test_extension_headers_that_lie_are_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedPacket):
        ipv6.upper_layer(ipv6.DESTINATION_OPTIONS, payload)


@pytest.mark.parametrize(
    "packet",
    [
        scapy_packet(version=4),
        scapy_packet(plen=14),
        scapy_packet(IPv6ExtHdrDestOpt(len=9)),
        scapy_packet(IPv6ExtHdrHopByHop(), plen=0),
        bytes(IPv6(nh=60) / Raw(bytes(7))),
        bytes(IPv6(nh=44) / Raw(bytes(7))),
        bytes(IPv6(nh=51) / Raw(bytes((17, 3)) + bytes(14))),
    ],
)
def test_lying_headers_are_malformed(packet: bytes) -> None:
    with pytest.raises(MalformedPacket):
        ipv6.parse(packet)


@moderately
@given(headers, st.binary(max_size=50))
def test_round_trip(header: IPv6Header, payload: bytes) -> None:
    assert ipv6.parse(ipv6.emit(header, len(payload)) + payload) == (header, payload)


@moderately
@given(st.sampled_from([0, 43, 44, 51, 60, 59, 17]), st.binary(max_size=80))
def test_arbitrary_bytes(next_header: int, data: bytes) -> None:
    parses_or_is_malformed(ipv6.parse, data)
    parses_or_is_malformed(lambda payload: ipv6.upper_layer(next_header, payload), data)
    parses_or_is_malformed(ipv6.parse, ipv6.emit(IPv6Header(SOURCE, DESTINATION, next_header), len(data)) + data)


def test_truncation_and_corruption() -> None:
    packet = scapy_packet(
        IPv6ExtHdrHopByHop(), AH(nh=44, payloadlen=4, icv=bytes(12)), IPv6ExtHdrFragment(), IPv6ExtHdrDestOpt()
    )
    survives_truncation(ipv6.parse, packet, required_bytes=len(packet))
    survives_corruption(ipv6.parse, packet)
