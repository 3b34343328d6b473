"""The short way of parsing a datagram against the long one: where it finds one, the layers find the same."""

import random
from ipaddress import ip_address

import pytest
from attrs import evolve, frozen
from codec_checks import moderately
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from trio_passt.wire import ethernet, ipv4, ipv6, plain, udp
from trio_passt.wire.checksum import NUMPY_FROM_BYTES
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

conf.ipv6_enabled = True

GUEST_MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
ENDS = {4: ("198.51.100.5", "192.0.2.1"), 6: ("2001:db8::5", "2001:db8::1")}
ETHER = Ether(src=GUEST_MAC.hex(":"), dst=HOST_MAC.hex(":"))
"""With both addresses: scapy would ask the network for one that is missing."""

PACKED = {version: tuple(ip_address(text).packed for text in ends) for version, ends in ENDS.items()}
HEADERS_BYTES = {4: 42, 6: 62}
SERVICE_PORTS = {4: 67, 6: 547}

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def layer_by_layer(frame: bytes) -> plain.Datagram | None:
    """What the parsers of the layers find, as `plain.parse_datagram` says it; `None` for anything but a datagram."""
    try:
        header, packet = ethernet.parse(frame)
        if header.ethertype == EtherType.IPV4:
            ip_header, rest = ipv4.parse(packet)
            hop_limit, size = ip_header.ttl, (packet[0] & 0xF) * 4 + len(rest)
            found = (ip_header.protocol, ip_header.is_fragment, ip_header.source, ip_header.destination)
        elif header.ethertype == EtherType.IPV6:
            ip6_header, rest = ipv6.parse(packet)
            hop_limit, size = (ip6_header.hop_limit, 40 + int.from_bytes(packet[4:6], "big"))
            found = (ip6_header.protocol, ip6_header.is_fragment, ip6_header.source, ip6_header.destination)
        else:
            return None
        protocol, is_fragment, source, destination = found
        if protocol != IPProtocol.UDP or is_fragment:
            return None
        ports, payload = udp.parse(source, destination, rest)
    except MalformedPacket:
        return None
    ends = (source, ports.source_port, destination, ports.destination_port)
    return header.source, ends, hop_limit, payload, packet[:size]


def check(frame: bytes) -> plain.Datagram | None:
    """What `plain.parse_datagram` finds, which the layers find, too; nothing is fine."""
    found = plain.parse_datagram(memoryview(frame))
    if found is not None:
        assert found == layer_by_layer(frame)
        mac, ends, hop_limit, payload, packet = found
        assert isinstance(mac, bytes)
        assert ends[3] != SERVICE_PORTS[4 if len(ends[0]) == 4 else 6]
        assert hop_limit > 0
        assert payload.obj is packet.obj is frame, "views, not copies"
    return found


@frozen
class Made:
    """A frame, made by the layers' own emitters."""

    version: int = 4
    payload: bytes = b""
    ports: tuple[int, int] = (40_000, 53)
    traffic_class: int = 0
    hop_limit: int = 64
    padding: bytes = b""
    has_checksum: bool = True

    @property
    def packet(self) -> bytes:
        source, destination = PACKED[self.version]
        body = udp.emit(source, destination, UdpHeader(*self.ports), self.payload)
        if not self.has_checksum:
            body = body[:6] + bytes(2) + body[8:]
        fields = {"traffic_class": self.traffic_class}
        if self.version == 4:
            ip4_header = ipv4.IPv4Header(source, destination, IPProtocol.UDP, ttl=self.hop_limit, **fields)
            return ipv4.emit(ip4_header, len(body)) + body
        ip6_header = ipv6.IPv6Header(source, destination, IPProtocol.UDP, hop_limit=self.hop_limit, **fields)
        return ipv6.emit(ip6_header, len(body)) + body

    @property
    def frame(self) -> bytes:
        ethertype = EtherType.IPV4 if self.version == 4 else EtherType.IPV6
        return ethernet.emit(EthernetHeader(HOST_MAC, GUEST_MAC, ethertype)) + self.packet + self.padding


payloads = st.binary(max_size=200) | st.sampled_from([bytes(1460), b"\xff" * 1461, bytes(65480), b"\1" * 65479])
ports = st.integers(0, 65535).filter(lambda port: port not in SERVICE_PORTS.values())
made = st.builds(
    Made,
    version=st.sampled_from([4, 6]),
    payload=payloads,
    ports=st.tuples(ports, ports),
    traffic_class=st.integers(0, 255),
    hop_limit=st.integers(1, 255),
    padding=st.binary(max_size=20),
)


@moderately
@given(made)
def test_plain_datagrams_are_found(what: Made) -> None:
    source, destination = PACKED[what.version]
    ends = (source, what.ports[0], destination, what.ports[1])
    assert check(what.frame) == (GUEST_MAC, ends, what.hop_limit, what.payload, what.packet)


@versions
@pytest.mark.parametrize("size", [0, 1, 6, 7, NUMPY_FROM_BYTES - 1, NUMPY_FROM_BYTES, NUMPY_FROM_BYTES + 1, 1001])
def test_what_scapy_makes_is_found(version: int, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    source, destination = ENDS[version]
    layer = IP(src=source, dst=destination, ttl=9) if version == 4 else IPv6(src=source, dst=destination, hlim=9)
    frame = bytes(ETHER / layer / UDP(sport=40_000, dport=53) / Raw(payload))
    ends = (PACKED[version][0], 40_000, PACKED[version][1], 53)
    assert check(frame) == (GUEST_MAC, ends, 9, payload, frame[14:])


@versions
@pytest.mark.parametrize("size", [0, 1, 5, 100])
@pytest.mark.parametrize("has_checksum", [True, False])
def test_truncated_at_each_byte(version: int, size: int, has_checksum: bool) -> None:
    frame = Made(version, b"\x5a" * size, has_checksum=has_checksum or version == 6).frame
    assert check(frame) is not None
    for length in range(len(frame)):
        assert check(frame[:length]) is None


@versions
@pytest.mark.parametrize("size", [0, 1, 100])
def test_each_byte_damaged(version: int, size: int) -> None:
    """Nearly all of these are found out by a checksum; what is covered by none is as the layers have it."""
    frame = Made(version, bytes(range(size))).frame
    for at in range(len(frame)):
        for damage in (0x01, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[at] ^= damage
            found = check(bytes(damaged))
            is_uncovered = version == 6 and (14 <= at < 18 or at == 21)
            if at < 12:
                assert found is not None, "a MAC address"
            elif not is_uncovered:
                assert found is None, f"byte {at}"


@moderately
@given(made, st.booleans(), st.data())
def test_damage_anywhere(what: Made, has_checksum: bool, data: st.DataObject) -> None:
    frame = bytearray(evolve(what, has_checksum=has_checksum).frame)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(frame) - 1, 120)))
        frame[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        fix_header_sum(frame)
    check(bytes(frame[: data.draw(st.integers(0, len(frame)))]) if data.draw(st.booleans()) else bytes(frame))


def fix_header_sum(frame: bytearray) -> bytearray:
    """IPv4's header checksum made right again."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        frame[24:26] = bytes(2)
        total = sum(int.from_bytes(frame[at : at + 2], "big") for at in range(14, 34, 2))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        frame[24:26] = (0xFFFF ^ total).to_bytes(2, "big")
    return frame


@versions
@pytest.mark.parametrize("has_checksum", [True, False])
def test_lengths_of_the_ip_header(version: int, has_checksum: bool) -> None:
    """Too long for the frame, too short for the headers, and everything between; UDP's length has to say the same."""
    frame = Made(version, bytes(40), has_checksum=has_checksum or version == 6).frame
    at = 16 if version == 4 else 18
    right = int.from_bytes(frame[at : at + 2], "big")
    for length in [*range(right + 60), 0x7FFF, 0xFFFF]:
        changed = bytearray(frame + bytes(20))
        changed[at : at + 2] = length.to_bytes(2, "big")
        assert (check(bytes(fix_header_sum(changed))) is not None) == (length == right)


@versions
def test_lengths_of_the_udp_header(version: int) -> None:
    """Also without a checksum, where nothing else would tell."""
    frame = Made(version, bytes(40), has_checksum=version == 6).frame
    at = HEADERS_BYTES[version] - 4
    for length in [*range(110), 0x7FFF, 0xFFFF]:
        changed = frame[:at] + length.to_bytes(2, "big") + frame[at + 2 :]
        assert (check(changed) is not None) == (length == 48)


@versions
def test_lengths_of_the_udp_header_that_its_checksum_hides(version: int) -> None:
    """All adds up, if the payload is what IP says."""
    frame = Made(version, bytes(40)).frame
    at = HEADERS_BYTES[version] - 4
    field = int.from_bytes(frame[at + 2 : at + 4], "big")
    for length in [*range(8, 110), 0x7FFF]:
        lying = length.to_bytes(2, "big") + ((field + 48 - length) % 65535).to_bytes(2, "big")
        assert (check(frame[:at] + lying + frame[at + 4 :]) is not None) == (length == 48)


@versions
def test_no_checksum_is_for_ipv4_only(version: int) -> None:
    """Also where all adds up without it."""
    for payload in (b"payload", b"\0" * 40, with_sum_of_zero(version)):
        frame = Made(version, payload, has_checksum=False).frame
        assert (check(frame) is not None) == (version == 4)


def with_sum_of_zero(version: int) -> bytes:
    """A payload for which the checksum's field comes out as zero."""
    return udp.emit(*PACKED[version], UdpHeader(40_000, 53), bytes(2))[6:8]


@versions
def test_no_hops_left_is_for_the_layers(version: int) -> None:
    frame = Made(version, b"payload", hop_limit=0).frame
    assert check(frame) is None
    assert layer_by_layer(frame) is not None


@versions
def test_services_are_for_the_layers(version: int) -> None:
    for own, other in ((SERVICE_PORTS[4], SERVICE_PORTS[6]), (SERVICE_PORTS[6], SERVICE_PORTS[4])):
        is_served = SERVICE_PORTS[version] == own
        assert (check(Made(version, b"x", ports=(other, own)).frame) is None) == is_served


def _scapy(version: int, *layers: Packet) -> bytes:
    source, destination = ENDS[version]
    packet: Packet = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    for layer in layers:
        packet = packet / layer
    return bytes(ETHER / packet)


DATAGRAM = UDP(sport=40_000, dport=53) / Raw(bytes(40))
UNUSUAL = {
    "TCP over IPv4": (_scapy(4, TCP(sport=1, dport=2, flags="A"), Raw(bytes(40))), False),
    "TCP over IPv6": (_scapy(6, TCP(sport=1, dport=2, flags="A"), Raw(bytes(40))), False),
    "IPv4 options": (
        bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], options=b"\1\1\1\0") / DATAGRAM),
        True,
    ),
    "first fragment": (bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], flags="MF") / DATAGRAM), False),
    "later fragment": (bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], frag=8) / DATAGRAM), False),
    "IPv6 fragment": (_scapy(6, IPv6ExtHdrFragment(m=1), DATAGRAM), False),
    "IPv6 atomic fragment": (_scapy(6, IPv6ExtHdrFragment(), DATAGRAM), True),
    "IPv6 extension header": (_scapy(6, IPv6ExtHdrDestOpt(), DATAGRAM), True),
    "VLAN": (bytes(ETHER / Dot1Q(vlan=5) / IP(src=ENDS[4][0], dst=ENDS[4][1]) / DATAGRAM), False),
    "ARP": (bytes(12) + b"\x08\x06" + bytes(60), False),
    "IPv4 in the wrong EtherType": (bytes(12) + b"\x86\xdd" + Made(4, bytes(40)).packet, False),
    "IPv6 in the wrong EtherType": (bytes(12) + b"\x08\x00" + Made(6, bytes(40)).packet, False),
    "payload that UDP does not count": (_scapy(4, UDP(sport=40_000, dport=53, len=20, chksum=0), Raw(bytes(40))), True),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_not_plain_is_for_the_layers(kind: str) -> None:
    frame, is_datagram = UNUSUAL[kind]
    assert check(frame) is None
    assert (layer_by_layer(frame) is not None) == is_datagram


def test_fragments_that_are_none() -> None:
    """ "Don't fragment" and the reserved bit say nothing about the packet at hand."""
    for bits in (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x0001, 0x1FFF, 0x6001):
        frame = bytearray(Made(4, bytes(40)).frame)
        frame[20:22] = bits.to_bytes(2, "big")
        assert (check(bytes(fix_header_sum(frame))) is None) == bool(bits & 0x3FFF)


@moderately
@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00\x45\x00", b"\x86\xdd\x60\x00"]))
def test_any_bytes(data: bytes, start: bytes) -> None:
    check(bytes(12) + start + data)


@versions
def test_a_checksum_whose_field_is_all_ones(version: int) -> None:
    """What comes out as zero is sent as 0xFFFF (RFC 768)."""
    frame = Made(version, with_sum_of_zero(version)).frame
    assert frame[HEADERS_BYTES[version] - 2 : HEADERS_BYTES[version]] == b"\xff\xff"
    assert check(frame) is not None


@versions
def test_shortest_frames(version: int) -> None:
    frame = Made(version).frame
    assert len(frame) == HEADERS_BYTES[version]
    assert check(frame) is not None
