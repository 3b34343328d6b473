from ipaddress import ip_address

import pytest
from codec_checks import (
    address_pairs,
    moderately,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u8,
    u16,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from trio_passt.wire import icmp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import Echo, IcmpMessage, IcmpType, Icmpv6Type

V4 = ip_address("192.0.2.1").packed, ip_address("198.51.100.7").packed
V6 = ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed
ECHO = Echo(0x1234, 7, b"abcdefg")


def scapy_echo(kind: str) -> bytes:
    v4, v6 = IP(src="192.0.2.1", dst="198.51.100.7"), IPv6(src="2001:db8::1", dst="2001:db8::2")
    packets = {
        "request4": v4 / ICMP(type=8, id=0x1234, seq=7) / b"abcdefg",
        "reply4": v4 / ICMP(type=0, id=0x1234, seq=7) / b"abcdefg",
        "request6": v6 / ICMPv6EchoRequest(id=0x1234, seq=7, data=b"abcdefg"),
        "reply6": v6 / ICMPv6EchoReply(id=0x1234, seq=7, data=b"abcdefg"),
    }
    return bytes(packets[kind].payload)


@pytest.mark.parametrize(
    ("kind", "message", "addresses"),
    [
        ("request4", icmp.echo_request(4, ECHO), V4),
        ("reply4", icmp.echo_reply(4, ECHO), V4),
        ("request6", icmp.echo_request(16, ECHO), V6),
        ("reply6", icmp.echo_reply(16, ECHO), V6),
    ],
)
def test_byte_for_byte_what_scapy_emits(kind: str, message: IcmpMessage, addresses: tuple[bytes, bytes]) -> None:
    assert icmp.emit(*addresses, message) == scapy_echo(kind)
    parsed = icmp.parse(*addresses, scapy_echo(kind))
    assert parsed == message
    assert icmp.parse_echo(parsed) == ECHO


def test_types_of_echo() -> None:
    assert icmp.echo_request(4, ECHO).type == IcmpType.ECHO
    assert icmp.echo_reply(4, ECHO).type == IcmpType.ECHO_REPLY
    assert icmp.echo_request(16, ECHO).type == Icmpv6Type.ECHO_REQUEST
    assert icmp.echo_reply(16, ECHO).type == Icmpv6Type.ECHO_REPLY


def test_icmpv6_covers_its_pseudo_header() -> None:
    with pytest.raises(MalformedPacket, match="checksum"):
        icmp.parse(V6[0], V4[0] * 4, scapy_echo("request6"))


@pytest.mark.parametrize("length", range(4))
def test_echo_without_identifier_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket):
        icmp.parse_echo(IcmpMessage(IcmpType.ECHO, 0, memoryview(bytes(length))))


@moderately
@given(address_pairs, u8, u8, st.binary(max_size=100))
def test_round_trip(addresses: tuple[bytes, bytes], type_: int, code: int, body: bytes) -> None:
    message = IcmpMessage(type_, code, memoryview(body))
    assert icmp.parse(*addresses, icmp.emit(*addresses, message)) == message


@moderately
@given(st.sampled_from([4, 16]), u16, u16, st.binary(max_size=50))
def test_round_trip_of_echo(family_bytes: int, identifier: int, sequence: int, data: bytes) -> None:
    echo = Echo(identifier, sequence, data)
    assert icmp.parse_echo(icmp.echo_request(family_bytes, echo)) == echo


@moderately
@given(address_pairs, st.binary(max_size=60))
def test_arbitrary_bytes(addresses: tuple[bytes, bytes], data: bytes) -> None:
    parses_or_is_malformed(lambda packet: icmp.parse_echo(icmp.parse(*addresses, packet)), data)


@pytest.mark.parametrize(("kind", "addresses"), [("request4", V4), ("reply6", V6)])
def test_truncation_and_corruption(kind: str, addresses: tuple[bytes, bytes]) -> None:
    survives_truncation(lambda cut: icmp.parse(*addresses, cut), scapy_echo(kind), required_bytes=4)
    survives_corruption(lambda bad: icmp.parse(*addresses, bad), scapy_echo(kind))
