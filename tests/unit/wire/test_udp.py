from ipaddress import ip_address

import pytest
from codec_checks import (
    address_pairs,
    moderately,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u16,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from trio_passt.wire import ip, udp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.udp import UdpHeader

PAIRS = [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::2")]


def packed(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    return ip_address(pair[0]).packed, ip_address(pair[1]).packed


def scapy_datagram(pair: tuple[str, str], payload: bytes = b"hello", **fields: int) -> bytes:
    layer = IPv6 if ":" in pair[0] else IP
    return bytes((layer(src=pair[0], dst=pair[1]) / UDP(sport=1000, dport=53, **fields) / payload)[UDP])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("payload", [b"", b"x", b"hello", b"z" * 1401])
def test_byte_for_byte_what_scapy_emits(pair: tuple[str, str], payload: bytes) -> None:
    ours = udp.emit(*packed(pair), UdpHeader(1000, 53), payload)
    layer = IPv6 if ":" in pair[0] else IP
    theirs = bytes(layer(src=pair[0], dst=pair[1]) / UDP(sport=1000, dport=53) / Raw(payload))
    assert ours == theirs[-len(ours) :]


@pytest.mark.parametrize("pair", PAIRS)
def test_what_scapy_emits_is_read_and_padding_cut_off(pair: tuple[str, str]) -> None:
    datagram = udp.emit(*packed(pair), UdpHeader(7, 9), b"hello")
    assert udp.parse(*packed(pair), datagram + bytes(5)) == (UdpHeader(7, 9), b"hello")


def test_sum_of_zero_is_sent_as_all_ones() -> None:
    source, destination = bytes(4), bytes(4)
    for word in range(0x10000):
        datagram = udp.emit(source, destination, UdpHeader(0, 0), word.to_bytes(2, "big"))
        if datagram[6:8] == b"\xff\xff":
            break
    else:
        pytest.fail("no payload with this sum")
    assert udp.parse(source, destination, datagram)[1] == word.to_bytes(2, "big")


def test_no_checksum_is_for_ipv4_only() -> None:
    for pair in PAIRS:
        without = scapy_datagram(pair, chksum=0)
        if ":" in pair[0]:
            with pytest.raises(MalformedPacket, match="without checksum"):
                udp.parse(*packed(pair), without)
        else:
            assert udp.parse(*packed(pair), without)[1] == b"hello"


@pytest.mark.parametrize("fields", [{"chksum": 0x1234}, {"len": 7}, {"len": 14}, {"len": 0}])
def test_lying_headers_are_malformed(fields: dict[str, int]) -> None:
    for pair in PAIRS:
        with pytest.raises(MalformedPacket):
            udp.parse(*packed(pair), scapy_datagram(pair, **fields))


@moderately
@given(address_pairs, u16, u16, st.binary(max_size=100))
def test_round_trip(addresses: tuple[bytes, bytes], source: int, destination: int, payload: bytes) -> None:
    header = UdpHeader(source, destination)
    assert udp.parse(*addresses, udp.emit(*addresses, header, payload)) == (header, payload)


@moderately
@given(address_pairs, st.binary(max_size=60))
def test_arbitrary_bytes(addresses: tuple[bytes, bytes], data: bytes) -> None:
    parses_or_is_malformed(lambda datagram: udp.parse(*addresses, datagram), data)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("size", [0, 1, 8, 100, 1000])
def test_beginning_of_a_datagram(pair: tuple[str, str], size: int) -> None:
    """What is known of it, with the lengths of the whole; and the checksum, if there is nothing unknown about it."""
    header, payload = UdpHeader(7, 9), bytes(range(250)) * 4
    whole = udp.emit(*packed(pair), header, payload[:size])
    for known in (0, 1, 8, 99, 100, 101, 1000):
        beginning = udp.emit_beginning(*packed(pair), header, payload[:known], size)
        if known >= size:
            assert beginning == whole
        else:
            assert beginning == whole[:6] + bytes(2) + whole[8 : 8 + known]
        packet = ip.emit_packet(*packed(pair), ip.IPProtocol.UDP, beginning, payload_bytes=len(whole))
        header_bytes = 40 if ":" in pair[0] else 20
        assert packet[:header_bytes] == ip.emit_packet(*packed(pair), ip.IPProtocol.UDP, whole)[:header_bytes]
        assert packet[header_bytes:] == beginning


@pytest.mark.parametrize("pair", PAIRS)
def test_truncation_and_corruption(pair: tuple[str, str]) -> None:
    datagram = udp.emit(*packed(pair), UdpHeader(7, 9), b"hello")
    survives_truncation(lambda cut: udp.parse(*packed(pair), cut), datagram, required_bytes=len(datagram))
    survives_corruption(lambda bad: udp.parse(*packed(pair), bad), datagram)


@pytest.mark.parametrize("pair", PAIRS)
def test_packets_and_frames_around_a_datagram(pair: tuple[str, str]) -> None:
    datagram = udp.emit(*packed(pair), UdpHeader(7, 9), b"hello")
    packet = ip.emit_packet(*packed(pair), ip.IPProtocol.UDP, datagram, hop_limit=5)
    seen = (IPv6 if ":" in pair[0] else IP)(packet)
    assert (seen.src, seen.dst, seen[UDP].dport, bytes(seen[Raw])) == (*pair, 9, b"hello")
    frame = ip.frame_packet(b"\x02host.", b"\x02guest", packet)
    assert frame[:12] == b"\x02guest\x02host."
    assert frame[14:] == packet


@pytest.mark.parametrize(
    ("group", "mac"),
    [
        ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        ("239.129.2.3", "01:00:5e:01:02:03"),
        ("ff02::1:ff12:3456", "33:33:ff:12:34:56"),
    ],
)
def test_frames_to_a_group_have_its_mac(group: str, mac: str) -> None:
    destination = ip_address(group).packed
    packet = ip.emit_packet(bytes(len(destination)), destination, ip.IPProtocol.UDP, bytes(8))
    assert ip.frame_packet(b"\x02host.", b"\x02guest", packet)[:6].hex(":") == mac
