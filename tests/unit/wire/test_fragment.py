from __future__ import annotations

import itertools
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from codec_checks import address_pairs, moderately, u8, u32
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, defragment
from scapy.layers.inet import fragment as scapy_fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6
from scapy.packet import Packet, Raw

from trio_passt.wire import ipv4, ipv6, udp
from trio_passt.wire.fragment import Fragment, fragments, identifications
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.ipv4 import IPv4Header
from trio_passt.wire.ipv6 import IPv6Header
from trio_passt.wire.reassembly import Reassembly

V4 = (IPv4Address("192.0.2.1").packed, IPv4Address("198.51.100.7").packed)
V6 = (IPv6Address("2001:db8::1").packed, IPv6Address("2001:db8::2").packed)
upper_layers = u8.filter(lambda number: number not in (0, 43, 44, 51, 60))
both_families = pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])


def datagram(ends: tuple[bytes, bytes], size: int) -> bytes:
    """A UDP datagram of `size` bytes in all, of which no two parts are alike."""
    data = b"".join(number.to_bytes(3, "big") for number in range(size // 3 + 1))
    return udp.emit(*ends, udp.UdpHeader(1234, 53), data[: size - udp.HEADER_BYTES])


def parsed(fragment: Fragment) -> tuple[IPv4Header | IPv6Header, memoryview]:
    packet = b"".join(fragment)
    return ipv4.parse(packet) if packet[0] >> 4 == 4 else ipv6.parse(packet)


def put_together_by_scapy(packets: list[bytes]) -> Packet:
    if packets[0][0] >> 4 == 4:
        (whole,) = defragment([IP(packet) for packet in packets])
        return IP(bytes(whole))
    return IPv6(bytes(defragment6([IPv6(packet) for packet in packets])))


# -- scapy is the judge ------------------------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize(("size", "mtu_bytes"), [(1600, 1500), (9000, 1280), (65515, 1500), (65515, 9001)])
def test_scapy_puts_them_together(ends: tuple[bytes, bytes], size: int, mtu_bytes: int) -> None:
    whole = datagram(ends, size)
    cut = fragments(*ends, IPProtocol.UDP, whole, mtu_bytes, 0xABCD, hop_limit=9)
    seen = put_together_by_scapy([b"".join(fragment) for fragment in cut])
    assert bytes(seen[UDP]) == whole
    assert (seen.ttl if isinstance(seen, IP) else seen.hlim) == 9
    good = seen[UDP].chksum
    del seen[UDP].chksum
    assert type(seen)(bytes(seen))[UDP].chksum == good


def test_scapy_cuts_ipv4_alike() -> None:
    whole = datagram(V4, 4000)
    packet = IP(src="192.0.2.1", dst="198.51.100.7", id=77, proto=17, ttl=64) / Raw(whole)
    theirs = [bytes(part) for part in scapy_fragment(packet, 1480)]
    assert [b"".join(part) for part in fragments(*V4, IPProtocol.UDP, whole, 1500, 77)] == theirs


def test_scapy_cuts_ipv6_alike() -> None:
    whole = datagram(V6, 4000)
    headers = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=64) / IPv6ExtHdrFragment(id=77, nh=17)
    theirs = [bytes(part) for part in fragment6(headers / UDP(whole), 1280)]
    assert [b"".join(part) for part in fragments(*V6, IPProtocol.UDP, whole, 1280, 77)] == theirs


# -- what holds for all of them ----------------------------------------------------------------------------------------


@moderately
@given(address_pairs, upper_layers, st.integers(0, 20000), st.integers(68, 9000), u32, u8)
def test_any_packet_at_any_mtu(
    ends: tuple[bytes, bytes], protocol: int, size: int, mtu_bytes: int, identification: int, hop_limit: int
) -> None:
    cut = fragments(*ends, protocol, bytes(size), mtu_bytes, identification, hop_limit)
    offset = 0
    for fragment in cut:
        assert len(b"".join(fragment)) <= mtu_bytes
        header, part = parsed(fragment)
        assert header.is_fragment == (len(cut) > 1)
        assert header.fragment_offset == offset
        offset += len(part)
        assert header.more_fragments == (offset < size)
        assert (header.source, header.destination, header.protocol) == (*ends, protocol)
        if isinstance(header, IPv4Header):
            assert (header.identification, header.ttl) == (identification & 0xFFFF, hop_limit)
            assert not header.dont_fragment
        else:
            assert (header.identification, header.hop_limit) == (identification if len(cut) > 1 else 0, hop_limit)
    assert offset == size


@both_families
def test_nothing_is_copied(ends: tuple[bytes, bytes]) -> None:
    payload = bytearray(5000)
    cut = fragments(*ends, 17, payload, 1500, 1)
    payload[:] = b"\x01" * 5000
    assert b"".join(part for _, part in cut) == payload


@both_families
def test_they_are_as_few_as_can_be(ends: tuple[bytes, bytes]) -> None:
    """The last one need not be a multiple of 8, so it is the one that may fill the MTU."""
    room = 1502 - (20 if ends == V4 else 48)
    step = room // 8 * 8
    assert room != step
    assert [len(part) for _, part in fragments(*ends, 17, bytes(step + room), 1502, 1)] == [step, room]
    assert [len(part) for _, part in fragments(*ends, 17, bytes(step + room + 1), 1502, 1)][:2] == [step, step]


@both_families
@pytest.mark.parametrize("size", [0, 1, 1460])
def test_what_fits_stays_whole(ends: tuple[bytes, bytes], size: int) -> None:
    ((header, part),) = fragments(*ends, 17, bytes(size), 1500, 7)
    assert part == bytes(size)
    seen, _ = parsed((header, part))
    assert not seen.is_fragment
    if isinstance(seen, IPv4Header):
        assert seen == IPv4Header(*V4, 17, identification=7, dont_fragment=False)
    else:
        assert seen == IPv6Header(*V6, 17)


def test_no_atomic_fragments() -> None:
    """What would fit but for the fragment header is sent without one."""
    for size in (1452, 1453, 1460):
        assert len(fragments(*V6, 17, bytes(size), 1500, 1)) == 1
    assert [len(part) for _, part in fragments(*V6, 17, bytes(1461), 1500, 1)] == [1448, 13]


@pytest.mark.parametrize(
    ("ends", "size", "mtu_bytes"), [(V4, 65516, 1500), (V4, 65516, 70000), (V6, 65536, 1500), (V6, 65536, 70000)]
)
def test_what_no_packet_holds(ends: tuple[bytes, bytes], size: int, mtu_bytes: int) -> None:
    assert b"".join(part for _, part in fragments(*ends, 17, bytes(size - 1), mtu_bytes, 1)) == bytes(size - 1)
    with pytest.raises(ValueError, match=str(size)):
        fragments(*ends, 17, bytes(size), mtu_bytes, 1)


@pytest.mark.parametrize(("ends", "least"), [(V4, 28), (V6, 56)])
def test_mtu_without_room(ends: tuple[bytes, bytes], least: int) -> None:
    assert len(fragments(*ends, 17, bytes(80), least, 1)) == 10
    for mtu_bytes in (least - 1, 20, 0):
        with pytest.raises(ValueError, match="MTU"):
            fragments(*ends, 17, bytes(80), mtu_bytes, 1)


@both_families
def test_reassembly_takes_them(ends: tuple[bytes, bytes]) -> None:
    whole = datagram(ends, 30000)
    drops: Counter[str] = Counter()
    reassembly = Reassembly(drops)
    *incomplete, taken = [reassembly.take(*parsed(part), 0.0) for part in fragments(*ends, 17, whole, 1500, 99)]
    assert taken is not None
    header, payload = taken
    assert set(incomplete) == {None}
    assert payload == whole
    if isinstance(header, IPv4Header):
        assert header == IPv4Header(*V4, 17, identification=99, dont_fragment=False)
    else:
        assert header == IPv6Header(*V6, 17, identification=99)
    assert not drops


def test_identifications_count_and_wrap() -> None:
    assert list(itertools.islice(identifications(0xFFFFFFFE), 3)) == [0xFFFFFFFE, 0xFFFFFFFF, 0]


def test_identification_has_the_width_of_its_field() -> None:
    assert parsed(fragments(*V4, 17, bytes(2000), 1500, 0xABCDEF01)[0])[0].identification == 0xEF01
    assert parsed(fragments(*V6, 17, bytes(2000), 1500, 0xFABCDEF01)[0])[0].identification == 0xABCDEF01
