from __future__ import annotations

import struct
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
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from trio_passt.wire import checksum, tcp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, TcpOptions, TcpSegment

PAIRS = [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::2")]

options_strategy = st.builds(
    TcpOptions, st.one_of(st.none(), u16), st.one_of(st.none(), st.integers(0, tcp.MAX_WINDOW_SCALE))
)


def packed(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    return ip_address(pair[0]).packed, ip_address(pair[1]).packed


def scapy_segment(pair: tuple[str, str], payload: bytes = b"", **fields: Any) -> bytes:
    layer = IPv6 if ":" in pair[0] else IP
    return bytes((layer(src=pair[0], dst=pair[1]) / TCP(sport=1000, dport=80, **fields) / payload)[TCP])


def with_checksum(pair: tuple[str, str], segment: bytes) -> bytes:
    """The segment, whatever is in it, with the right checksum."""
    total = checksum.pseudo_header_sum(*packed(pair), IPProtocol.TCP, len(segment))
    blank = segment[:16] + b"\0\0" + segment[18:]
    field = checksum.finish(total + checksum.sum_of(blank))
    return segment[:16] + field.to_bytes(2, "big") + segment[18:]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("payload", [b"", b"x", b"hello", b"z" * 1461])
def test_byte_for_byte_what_scapy_emits(pair: tuple[str, str], payload: bytes) -> None:
    ours = tcp.emit(*packed(pair), TcpSegment(1000, 80, 7, 9, ACK | PSH, 500, payload))
    assert ours == scapy_segment(pair, payload, seq=7, ack=9, flags="PA", window=500)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (TcpOptions(1460), [("MSS", 1460)]),
        (TcpOptions(1460, 7), [("MSS", 1460), ("NOP", None), ("WScale", 7)]),
        (TcpOptions(None, 0), [("NOP", None), ("WScale", 0)]),
    ],
)
def test_options_byte_for_byte_what_scapy_emits(options: TcpOptions, theirs: list[object]) -> None:
    ours = tcp.emit(*packed(PAIRS[0]), TcpSegment(1000, 80, 7, 0, SYN, 500, options=options))
    assert ours == scapy_segment(PAIRS[0], seq=7, flags="S", window=500, options=theirs)


@pytest.mark.parametrize("pair", PAIRS)
def test_syn_of_a_linux_guest_is_read(pair: tuple[str, str]) -> None:
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 10)]
    read = tcp.parse(*packed(pair), scapy_segment(pair, seq=7, flags="S", window=64240, options=options))
    assert read == TcpSegment(1000, 80, 7, 0, SYN, 64240, b"", TcpOptions(1460, 10))


@pytest.mark.parametrize("pair", PAIRS)
def test_options_are_read_from_syns_only_and_skipped_elsewhere(pair: tuple[str, str]) -> None:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2)), ("MSS", 5)]
    read = tcp.parse(*packed(pair), scapy_segment(pair, b"data", flags="A", options=options))
    assert read.options == TcpOptions()
    assert bytes(read.payload) == b"data"


def test_flags() -> None:
    for flags, letters in ((FIN, "F"), (SYN, "S"), (RST, "R"), (PSH, "P"), (ACK, "A"), (URG, "U"), (0, "")):
        assert tcp.parse(*packed(PAIRS[0]), scapy_segment(PAIRS[0], flags=letters)).flags == flags
    assert tcp.parse(*packed(PAIRS[0]), scapy_segment(PAIRS[0], flags="SEC")).flags == SYN  # ECN means nothing here


def test_sequence_length() -> None:
    def length(flags: int, payload: bytes = b"") -> int:
        return TcpSegment(1, 2, 0, 0, flags, 0, payload).sequence_length

    assert length(ACK | PSH | URG | RST) == 0
    assert length(SYN) == length(FIN | ACK) == 1
    assert length(SYN | FIN, b"abc") == 5


def test_text_for_the_log() -> None:
    assert str(TcpSegment(1, 2, 3, 4, SYN | ACK, 5, b"abc")) == "SYN|ACK seq=3 ack=4 win=5 len=3"
    assert str(TcpSegment(1, 2, 3, 4, 0, 5)).startswith("none ")


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ("", TcpOptions()),
        ("00", TcpOptions()),
        ("0101", TcpOptions()),
        ("020405b4", TcpOptions(1460)),
        ("00020405b4", TcpOptions()),
        ("0303ff00", TcpOptions(None, 14)),
        ("0204000002040005", TcpOptions(5)),
        ("fe04abcd030301", TcpOptions(None, 1)),
    ],
)
def test_options(data: str, read: TcpOptions) -> None:
    assert tcp.parse_options(bytes.fromhex(data)) == read


@pytest.mark.parametrize(
    "data", ["02", "0204", "020405", "0203ff", "0205aabbcc", "030401ff", "0302", "fe00", "fe01", "0800"]
)
@pytest.mark.parametrize("pair", PAIRS)
def test_options_that_lie(pair: tuple[str, str], data: str) -> None:
    options = bytes.fromhex(data)
    with pytest.raises(MalformedPacket, match="option"):
        tcp.parse_options(options)
    if len(options) % 4 == 0:
        header = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, (20 + len(options)) << 2, SYN, 0, 0, 0)
        with pytest.raises(MalformedPacket, match="option"):
            tcp.parse(*packed(pair), with_checksum(pair, header + options))


@pytest.mark.parametrize("data_offset", [0, 4, 6, 15])
@pytest.mark.parametrize("pair", PAIRS)
def test_data_offset_out_of_range(pair: tuple[str, str], data_offset: int) -> None:
    segment = bytearray(scapy_segment(pair))
    segment[12] = data_offset << 4
    with pytest.raises(MalformedPacket, match="data offset"):
        tcp.parse(*packed(pair), with_checksum(pair, bytes(segment)))


@pytest.mark.parametrize("pair", PAIRS)
def test_wrong_checksum(pair: tuple[str, str]) -> None:
    with pytest.raises(MalformedPacket, match="checksum"):
        tcp.parse(*packed(pair), scapy_segment(pair, b"data", chksum=0x1234))
    with pytest.raises(MalformedPacket, match="checksum"):
        tcp.parse(packed(pair)[0], packed(pair)[0], scapy_segment(pair, b"data"))


@moderately
@given(address_pairs, u16, u16, u32, u32, st.integers(0, 63), u16, st.binary(max_size=100), options_strategy)
def test_round_trip(
    addresses: tuple[bytes, bytes],
    source: int,
    destination: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    payload: bytes,
    options: TcpOptions,
) -> None:
    options = options if flags & SYN else TcpOptions()
    segment = TcpSegment(source, destination, seq, ack, flags, window, payload, options)
    read = tcp.parse(*addresses, tcp.emit(*addresses, segment))
    assert read == segment
    assert len(tcp.emit_options(options)) % 4 == 0


@moderately
@given(address_pairs, st.binary(max_size=80))
def test_arbitrary_bytes(addresses: tuple[bytes, bytes], data: bytes) -> None:
    parses_or_is_malformed(lambda segment: tcp.parse(*addresses, segment), data)


@moderately
@given(st.sampled_from(PAIRS), st.binary(min_size=20, max_size=80))
def test_arbitrary_bytes_with_the_right_checksum(pair: tuple[str, str], data: bytes) -> None:
    parses_or_is_malformed(lambda segment: tcp.parse(*packed(pair), segment), with_checksum(pair, data))


@moderately
@given(st.binary(max_size=40))
def test_arbitrary_options(data: bytes) -> None:
    parses_or_is_malformed(tcp.parse_options, data)


@pytest.mark.parametrize("pair", PAIRS)
def test_truncation_and_corruption(pair: tuple[str, str]) -> None:
    segment = scapy_segment(pair, b"hello", flags="S", options=[("MSS", 1460), ("NOP", None), ("WScale", 7)])
    survives_truncation(lambda cut: tcp.parse(*packed(pair), cut), segment, required_bytes=len(segment))
    survives_corruption(lambda bad: tcp.parse(*packed(pair), bad), segment)
    survives_corruption(lambda bad: tcp.parse(*packed(pair), with_checksum(pair, bad)), segment)
