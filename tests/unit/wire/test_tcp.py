from ipaddress import ip_address
from typing import Any

import pytest
from codec_checks import (
    address_pairs,
    moderately,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u16,
    u32,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from trio_passt.wire import tcp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.tcp import ACK, FIN, NO_OPTIONS, PSH, RST, SYN, URG, TcpOptions, TcpSegment

conf.ipv6_enabled = True

PAIRS = [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::2")]
both_families = pytest.mark.parametrize("pair", PAIRS, ids=["IPv4", "IPv6"])

options = st.builds(TcpOptions, st.none() | u16, st.none() | st.integers(0, tcp.MAX_WINDOW_SCALE), st.booleans())
with_syn = st.integers(0, 0x3F).map(lambda flags: flags | SYN)
without_syn = st.integers(0, 0x3F).map(lambda flags: flags & ~SYN)
data = st.binary(max_size=99)
in_one_frame = (st.just(1), st.just(()))
segments = st.one_of(
    st.builds(TcpSegment, u16, u16, u32, u32, without_syn, u16, data, st.just(NO_OPTIONS), *in_one_frame),
    st.builds(TcpSegment, u16, u16, u32, u32, with_syn, u16, data, options, *in_one_frame),
)


def packed(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    return ip_address(pair[0]).packed, ip_address(pair[1]).packed


def scapy_segment(pair: tuple[str, str], payload: bytes = b"", **fields: Any) -> bytes:
    """A segment as scapy emits it, without the IP header."""
    layer = IPv6 if ":" in pair[0] else IP
    packet = layer(src=pair[0], dst=pair[1]) / TCP(**fields)
    return bytes(packet / Raw(payload) if payload else packet)[len(layer()) :]


def raw_options(*data: int) -> bytes:
    return bytes(data)


@both_families
@pytest.mark.parametrize("payload", [b"", b"x", b"hello", bytes(64), b"z" * 1461])
def test_byte_for_byte_what_scapy_emits(pair: tuple[str, str], payload: bytes) -> None:
    ours = tcp.emit(*packed(pair), TcpSegment(1000, 80, 0xFFFFFFFF, 7, ACK | PSH, 0x1234, payload))
    fields = {"sport": 1000, "dport": 80, "seq": 0xFFFFFFFF, "ack": 7, "flags": "PA", "window": 0x1234}
    assert ours == scapy_segment(pair, payload, **fields)


@both_families
def test_options_are_what_scapy_emits(pair: tuple[str, str]) -> None:
    ours = tcp.emit(*packed(pair), TcpSegment(1, 2, 3, 0, SYN, 65535, b"", TcpOptions(1460, 7, takes_sack=True)))
    options = [("MSS", 1460), ("NOP", None), ("WScale", 7), ("NOP", None), ("NOP", None), ("SAckOK", b"")]
    assert ours == scapy_segment(pair, sport=1, dport=2, seq=3, flags="S", window=65535, options=options)


@pytest.mark.parametrize("count", range(1, 5))
def test_selective_acknowledgement_is_what_scapy_emits(count: int) -> None:
    blocks = [(2**32 - 10, 5), (100, 200), (2**31, 2**31 + 1), (1000, 2000)][:count]
    edges = tuple(edge for block in blocks for edge in block)
    options = [("NOP", None), ("NOP", None), ("SAck", edges)]
    packet = scapy_segment(PAIRS[0], sport=1, dport=2, flags="A", options=options)
    assert tcp.emit_sack(blocks) == packet[tcp.HEADER_BYTES :]


@both_families
def test_what_scapy_emits_is_read(pair: tuple[str, str]) -> None:
    options = [("MSS", 1400), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 9), ("EOL", None)]
    fields = {"sport": 5, "dport": 6, "seq": 2**31, "ack": 2**32 - 1, "window": 77, "urgptr": 3}
    packet = scapy_segment(pair, b"early", flags="SAU", options=options, **fields)
    expected = TcpSegment(5, 6, 2**31, 2**32 - 1, SYN | ACK | URG, 77, b"early", TcpOptions(1400, 9, takes_sack=True))
    assert tcp.parse(*packed(pair), packet) == expected


@both_families
def test_payload_is_a_view_and_options_of_data_are_not_read(pair: tuple[str, str]) -> None:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    packet = scapy_segment(pair, b"hello", sport=5, dport=6, flags="A", options=options)
    segment = tcp.parse(*packed(pair), packet)
    assert segment.options is NO_OPTIONS
    assert isinstance(segment.payload, memoryview)
    assert segment.payload.obj is packet
    assert bytes(segment.payload) == b"hello"


def test_congestion_flags_are_left_out() -> None:
    packet = scapy_segment(PAIRS[0], sport=5, dport=6, flags="SEC", window=1)
    assert tcp.parse(*packed(PAIRS[0]), packet).flags == SYN


@both_families
@pytest.mark.parametrize("dataofs", [0, 4, 7, 15])
def test_data_offset_out_of_range_is_malformed(pair: tuple[str, str], dataofs: int) -> None:
    with pytest.raises(MalformedPacket, match="data offset"):
        tcp.parse(*packed(pair), scapy_segment(pair, b"1234", sport=1, dport=2, flags="A", dataofs=dataofs))


@both_families
def test_wrong_checksum_is_malformed(pair: tuple[str, str]) -> None:
    for field in (0, 0x1234):
        with pytest.raises(MalformedPacket, match="checksum"):
            tcp.parse(*packed(pair), scapy_segment(pair, b"1234", sport=1, dport=2, chksum=field))
    packet = scapy_segment(pair, b"1234", sport=1, dport=2)
    with pytest.raises(MalformedPacket, match="checksum"):  # the addresses are covered
        tcp.parse(packed(pair)[0], packed(pair)[0], packet)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", NO_OPTIONS),
        (raw_options(1, 1, 1, 0, 2, 4, 5, 6), NO_OPTIONS),  # nothing after the end is read
        (raw_options(2, 4, 5, 0xB4), TcpOptions(1460)),
        (raw_options(1, 3, 3, 14), TcpOptions(None, 14)),
        (raw_options(3, 3, 15), TcpOptions(None, 14)),  # RFC 7323 section 2.3
        (raw_options(3, 3, 255), TcpOptions(None, 14)),
        (raw_options(254, 2, 4, 2, 3, 3, 0), TcpOptions(None, 0, takes_sack=True)),
        (raw_options(2, 4, 0, 1, 2, 4, 0, 2), TcpOptions(2)),
    ],
)
def test_options(data: bytes, expected: TcpOptions) -> None:
    assert tcp.parse_options(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        raw_options(2),
        raw_options(1, 1, 2),
        raw_options(2, 0, 0, 0),
        raw_options(2, 1, 0, 0),
        raw_options(2, 3, 5),
        raw_options(2, 5, 5, 5, 5),
        raw_options(2, 4, 5),
        raw_options(3, 2),
        raw_options(3, 4, 1, 1),
        raw_options(4, 3, 1),
        raw_options(8, 10, 0, 0),
        raw_options(77, 0),
        raw_options(77, 255, 0),
    ],
)
def test_lying_options_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        tcp.parse_options(data)


@both_families
def test_lying_options_of_a_syn_make_it_malformed_and_of_another_segment_do_not_matter(pair: tuple[str, str]) -> None:
    for flags in (SYN, ACK):
        segment = bytearray(tcp.emit(*packed(pair), TcpSegment(1, 2, 3, 0, flags, 5, b"", TcpOptions(1460))))
        segment[21] = 40
        segment[16:18] = b"\0\0"
        segment[16:18] = _sum_by_hand(pair, bytes(segment)).to_bytes(2, "big")
        if flags & SYN:
            with pytest.raises(MalformedPacket, match="option 2"):
                tcp.parse(*packed(pair), segment)
        else:
            assert tcp.parse(*packed(pair), segment).options == NO_OPTIONS


def _sum_by_hand(pair: tuple[str, str], segment: bytes) -> int:
    covered = b"".join(packed(pair)) + (6).to_bytes(4, "big") + len(segment).to_bytes(4, "big") + segment
    total = sum(int.from_bytes(covered[at : at + 2], "big") for at in range(0, len(covered), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@moderately
@given(address_pairs, segments)
def test_round_trip(addresses: tuple[bytes, bytes], segment: TcpSegment) -> None:
    assert tcp.parse(*addresses, tcp.emit(*addresses, segment)) == segment


@moderately
@given(segments)
def test_scapy_reads_what_is_emitted(segment: TcpSegment) -> None:
    for pair in PAIRS:
        layer = IPv6 if ":" in pair[0] else IP
        packet = layer(src=pair[0], dst=pair[1]) / TCP(tcp.emit(*packed(pair), segment))
        seen = packet[TCP]
        fields = (seen.sport, seen.dport, seen.seq, seen.ack, int(seen.flags), seen.window, bytes(seen.payload))
        assert fields == (
            *(segment.source_port, segment.destination_port, segment.seq, segment.ack),
            *(segment.flags, segment.window, segment.payload),
        )
        options = dict(seen.options)
        assert TcpOptions(options.get("MSS"), options.get("WScale"), "SAckOK" in options) == segment.options
        sent = seen.chksum
        del packet[TCP].chksum
        assert layer(bytes(packet))[TCP].chksum == sent


@moderately
@given(address_pairs, st.binary(max_size=80))
def test_arbitrary_bytes(addresses: tuple[bytes, bytes], data: bytes) -> None:
    parses_or_is_malformed(lambda packet: tcp.parse(*addresses, packet), data)


@moderately
@given(st.binary(max_size=40))
def test_arbitrary_options(data: bytes) -> None:
    found = parses_or_is_malformed(tcp.parse_options, data)
    if found is not None and found.window_scale is not None:
        assert 0 <= found.window_scale <= 14


@moderately
@given(options)
def test_options_round_trip(given_options: TcpOptions) -> None:
    data = tcp.emit_options(given_options)
    assert len(data) % 4 == 0
    assert tcp.parse_options(data) == given_options


@both_families
def test_truncation_and_corruption(pair: tuple[str, str]) -> None:
    segment = TcpSegment(1000, 80, 1, 2, SYN | ACK, 3, b"hello", TcpOptions(1460, 7))
    packet = tcp.emit(*packed(pair), segment)
    survives_truncation(lambda cut: tcp.parse(*packed(pair), cut), packet, required_bytes=len(packet))
    survives_corruption(lambda bad: tcp.parse(*packed(pair), bad), packet)


@pytest.mark.parametrize(
    ("flags", "payload", "length"),
    [
        (ACK, b"", 0),
        (SYN, b"", 1),
        (FIN | ACK, b"", 1),
        (SYN | FIN, b"abc", 5),
        (RST, b"ab", 2),
        (ACK | PSH, b"abc", 3),
    ],
)
def test_sequence_length(flags: int, payload: bytes, length: int) -> None:
    assert TcpSegment(1, 2, 3, 4, flags, 5, payload).sequence_length == length


def test_payload_in_pieces() -> None:
    """It counts, is shown and is sent as if it were one."""
    whole = TcpSegment(1, 2, 3, 4, FIN | ACK, 5, b"abcdef")
    in_pieces = whole._replace(payload=b"a", more=(memoryview(b"bcd"), memoryview(b"ef")))
    assert in_pieces.payload_bytes == whole.payload_bytes == 6
    assert in_pieces.sequence_length == whole.sequence_length == 7
    assert str(in_pieces) == str(whole)
    for pair in PAIRS:
        assert tcp.emit(*packed(pair), in_pieces) == tcp.emit(*packed(pair), whole)


def test_as_text() -> None:
    assert str(TcpSegment(1, 2, 3, 4, SYN | ACK, 5, b"abc")) == "SYN|ACK seq=3 ack=4 win=5 len=3"
    assert str(TcpSegment(1, 2, 3, 4, 0, 5)) == "none seq=3 ack=4 win=5 len=0"
