"""The short way of parsing against the long one: where it finds a segment, the layers find the same."""

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

from trio_passt.wire import checksum, ethernet, ip, ipv4, ipv6, plain, tcp
from trio_passt.wire.checksum import NUMPY_FROM_BYTES
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, FIN, NO_OPTIONS, PSH, RST, SYN, URG, TcpOptions, TcpSegment

conf.ipv6_enabled = True

GUEST_MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
ENDS = {4: ("198.51.100.5", "192.0.2.1"), 6: ("2001:db8::5", "2001:db8::1")}
ETHER = Ether(src=GUEST_MAC.hex(":"), dst=HOST_MAC.hex(":"))
"""With both addresses: scapy would ask the network for one that is missing."""

PACKED = {version: tuple(ip_address(text).packed for text in ends) for version, ends in ENDS.items()}
HEADERS_BYTES = {4: 54, 6: 74}

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])

Found = tuple[bytes, plain.Ends, TcpSegment]


def layer_by_layer(frame: bytes) -> Found | None:
    """What the parsers of the layers find, as `plain.parse` says it; `None` for anything but a TCP segment."""
    try:
        header, packet = ethernet.parse(frame)
        parsed: tuple[ipv4.IPv4Header | ipv6.IPv6Header, memoryview]
        if header.ethertype == EtherType.IPV4:
            parsed = ipv4.parse(packet)
        elif header.ethertype == EtherType.IPV6:
            parsed = ipv6.parse(packet)
        else:
            return None
        ip_header, payload = parsed
        if ip_header.protocol != IPProtocol.TCP or ip_header.is_fragment:
            return None
        source, destination = ip_header.source, ip_header.destination
        segment = tcp.parse(source, destination, payload)
    except MalformedPacket:
        return None
    return header.source, (source, segment.source_port, destination, segment.destination_port), segment


def check(frame: bytes) -> Found | None:
    """What `plain.parse` finds, which the layers find, too; nothing is fine."""
    found = plain.parse(memoryview(frame))
    if found is not None:
        assert found == layer_by_layer(frame)
        assert isinstance(found[0], bytes)
        assert isinstance(found[2].payload, memoryview) == bool(found[2].payload), (
            "a view, not a copy; empty ones hold nothing"
        )
    return found


@frozen
class Made:
    """A frame, made by the layers' own emitters."""

    version: int = 4
    seq: int = 1
    ack: int = 2
    flags: int = ACK
    window: int = 500
    payload: bytes = b""
    options: TcpOptions = NO_OPTIONS
    traffic_class: int = 0
    hop_limit: int = 64
    padding: bytes = b""
    ports: tuple[int, int] = (40_000, 80)

    @property
    def segment(self) -> TcpSegment:
        numbers = (self.seq, self.ack, self.flags, self.window)
        return TcpSegment(*self.ports, *numbers, self.payload, self.options)

    @property
    def frame(self) -> bytes:
        source, destination = PACKED[self.version]
        body = tcp.emit(source, destination, self.segment)
        if self.version == 4:
            header = ipv4.emit(
                ipv4.IPv4Header(
                    source, destination, IPProtocol.TCP, ttl=self.hop_limit, traffic_class=self.traffic_class
                ),
                len(body),
            )
        else:
            header = ipv6.emit(
                ipv6.IPv6Header(
                    source, destination, IPProtocol.TCP, hop_limit=self.hop_limit, traffic_class=self.traffic_class
                ),
                len(body),
            )
        ethertype = EtherType.IPV4 if self.version == 4 else EtherType.IPV6
        return ethernet.emit(EthernetHeader(HOST_MAC, GUEST_MAC, ethertype)) + header + body + self.padding


numbers = st.integers(0, 2**32 - 1)
payloads = st.binary(max_size=200) | st.sampled_from([bytes(1460), b"\xff" * 1461, bytes(65460), b"\1" * 65459])
made = st.builds(
    Made,
    version=st.sampled_from([4, 6]),
    seq=numbers,
    ack=numbers,
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN]),
    window=st.integers(0, 65535),
    payload=payloads,
    traffic_class=st.integers(0, 255),
    hop_limit=st.integers(0, 255),
    padding=st.binary(max_size=20),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
)


@moderately
@given(made)
def test_plain_segments_are_found(what: Made) -> None:
    found = check(what.frame)
    assert found is not None
    mac, ends, segment = found
    source, destination = PACKED[what.version]
    assert mac == GUEST_MAC
    assert ends == (source, what.ports[0], destination, what.ports[1])
    assert segment == what.segment


@moderately
@given(made, st.integers(0, 0xFF))
def test_flags_other_than_ack_and_psh_are_for_the_layers(what: Made, flags: int) -> None:
    """ECN's bits (RFC 3168 section 6.1) among them.  For a SYN see below."""
    found = check(evolve(what, flags=flags).frame)
    is_opening = flags & 0x3F == SYN and not what.payload
    assert (found is not None) == (flags & ~(PSH | FIN) == ACK or is_opening)


@pytest.mark.parametrize(
    "flags", [0, SYN, SYN | ACK, FIN, FIN | PSH, RST, RST | ACK, URG | ACK, PSH, ACK | 0x40, ACK | 0x80]
)
@versions
def test_flags_by_name(version: int, flags: int) -> None:
    assert check(Made(version, flags=flags, payload=b"x").frame) is None


@versions
@pytest.mark.parametrize("size", [0, 1, 6, 7, NUMPY_FROM_BYTES - 1, NUMPY_FROM_BYTES, NUMPY_FROM_BYTES + 1, 1001])
def test_what_scapy_makes_is_found(version: int, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    source, destination = ENDS[version]
    layer = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    segment = TCP(sport=40_000, dport=80, seq=2**32 - 1, ack=7, flags="PA", window=65535)
    frame = bytes(ETHER / layer / segment / Raw(payload))
    found = check(frame)
    assert found is not None
    assert found[2] == TcpSegment(40_000, 80, 2**32 - 1, 7, ACK | PSH, 65535, payload)


@versions
@pytest.mark.parametrize("size", [0, 1, 5, 100])
def test_truncated_at_each_byte(version: int, size: int) -> None:
    frame = Made(version, payload=b"\x5a" * size).frame
    assert check(frame) is not None
    for length in range(len(frame)):
        assert check(frame[:length]) is None


@versions
@pytest.mark.parametrize("size", [0, 1, 100])
def test_each_byte_damaged(version: int, size: int) -> None:
    """Nearly all of these are found out by a checksum; what is covered by none is as the layers have it."""
    frame = Made(version, payload=bytes(range(size))).frame
    for at in range(len(frame)):
        for damage in (0x01, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[at] ^= damage
            found = check(bytes(damaged))
            is_mac = at < 12
            is_uncovered = is_mac or (version == 6 and (14 <= at < 18 or at == 21))
            if is_mac:
                assert found is not None
            elif not is_uncovered:
                assert found is None, f"byte {at}"


@moderately
@given(made, st.data())
def test_damage_anywhere(what: Made, data: st.DataObject) -> None:
    frame = bytearray(what.frame)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(frame) - 1, 120)))
        frame[at] = data.draw(st.integers(0, 255))
    check(bytes(frame[: data.draw(st.integers(0, len(frame)))]) if data.draw(st.booleans()) else bytes(frame))


def fix_sums(frame: bytearray, version: int) -> bytes:
    """IPv4's header checksum made right again; TCP's with the length that the IP header says."""
    if version == 4:
        frame[24:26] = bytes(2)
        frame[24:26] = (0xFFFF ^ _sum_16(frame[14:34])).to_bytes(2, "big")
    return bytes(frame)


def _sum_16(data: bytes | bytearray) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@versions
def test_lengths_of_the_ip_header(version: int) -> None:
    """Too long for the frame, too short for the headers, and everything between."""
    frame = Made(version, payload=bytes(40)).frame
    at = 16 if version == 4 else 18
    right = int.from_bytes(frame[at : at + 2], "big")
    for length in [*range(right + 60), 0x7FFF, 0xFFFF]:
        changed = bytearray(frame + bytes(20))
        changed[at : at + 2] = length.to_bytes(2, "big")
        found = check(fix_sums(changed, version))
        assert found is None or length == right, "the pseudo-header has the length"
    assert check(frame) is not None


@versions
@pytest.mark.parametrize("options", [TcpOptions(1460), TcpOptions(1460, 7)])
def test_tcp_options_are_for_the_layers(version: int, options: TcpOptions) -> None:
    frame = Made(version, options=options).frame
    assert check(frame) is None
    assert layer_by_layer(frame) is not None


def _scapy(version: int, *layers: Packet) -> bytes:
    source, destination = ENDS[version]
    packet: Packet = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    for layer in layers:
        packet = packet / layer
    return bytes(ETHER / packet)


SEGMENT = TCP(sport=40_000, dport=80, seq=1, ack=2, flags="A")
UNUSUAL = {
    "UDP over IPv4": (_scapy(4, UDP(sport=1, dport=2), Raw(bytes(40))), False),
    "UDP over IPv6": (_scapy(6, UDP(sport=1, dport=2), Raw(bytes(40))), False),
    "IPv4 options": (
        bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], options=b"\1\1\1\0") / SEGMENT),
        True,
    ),
    "first fragment": (
        bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], flags="MF") / SEGMENT / Raw(bytes(40))),
        False,
    ),
    "later fragment": (bytes(ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], frag=8) / SEGMENT / Raw(bytes(40))), False),
    "IPv6 fragment": (_scapy(6, IPv6ExtHdrFragment(m=1), SEGMENT, Raw(bytes(40))), False),
    "IPv6 atomic fragment": (_scapy(6, IPv6ExtHdrFragment(), SEGMENT), True),
    "IPv6 extension header": (_scapy(6, IPv6ExtHdrDestOpt(), SEGMENT), True),
    "VLAN": (bytes(ETHER / Dot1Q(vlan=5) / IP(src=ENDS[4][0], dst=ENDS[4][1]) / SEGMENT / Raw(bytes(40))), False),
    "ARP": (bytes(12) + b"\x08\x06" + bytes(60), False),
    "IPv4 in the wrong EtherType": (bytes(12) + b"\x86\xdd" + Made(4, payload=bytes(40)).frame[14:], False),
    "IPv6 in the wrong EtherType": (bytes(12) + b"\x08\x00" + Made(6, payload=bytes(40)).frame[14:], False),
    "reserved bits": (_scapy(4, TCP(sport=40_000, dport=80, flags="A", reserved=1), Raw(bytes(40))), True),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_not_plain_is_for_the_layers(kind: str) -> None:
    frame, is_segment = UNUSUAL[kind]
    assert check(frame) is None
    assert (layer_by_layer(frame) is not None) == is_segment


def test_fragments_that_are_none() -> None:
    """ "Don't fragment" and the reserved bit say nothing about the packet at hand."""
    for bits in (0x0000, 0x4000, 0x8000, 0xC000):
        frame = bytearray(Made(4, payload=bytes(40)).frame)
        frame[20:22] = bits.to_bytes(2, "big")
        assert check(fix_sums(frame, 4)) is not None
    for bits in (0x2000, 0x0001, 0x1FFF, 0x6001):
        frame = bytearray(Made(4, payload=bytes(40)).frame)
        frame[20:22] = bits.to_bytes(2, "big")
        assert check(fix_sums(frame, 4)) is None


@moderately
@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00\x45\x00", b"\x86\xdd\x60\x00"]))
def test_any_bytes(data: bytes, start: bytes) -> None:
    check(bytes(12) + start + data)


@versions
def test_a_checksum_whose_field_is_all_ones(version: int) -> None:
    """Minus zero: a sum of 0xFFFF is as good with the field 0 as with 0xFFFF (RFC 1071 section 2)."""
    source, destination = PACKED[version]
    for window in range(65536):
        body = tcp.emit(source, destination, TcpSegment(40_000, 80, 1, 2, ACK, window))
        if body[16:18] in (b"\0\0", b"\xff\xff"):
            break
    else:
        pytest.fail("no such segment")
    for field in (b"\0\0", b"\xff\xff"):
        packet = ip.emit_packet(source, destination, IPProtocol.TCP, body[:16] + field + body[18:])
        frame = ethernet.emit(EthernetHeader(HOST_MAC, GUEST_MAC, EtherType.IPV4 if version == 4 else EtherType.IPV6))
        assert check(frame + packet) is not None
        assert layer_by_layer(frame + packet) is not None


@versions
def test_shortest_frames(version: int) -> None:
    frame = Made(version).frame
    assert len(frame) == HEADERS_BYTES[version]
    assert check(frame) is not None


options_of_openings = st.builds(
    TcpOptions, st.none() | st.integers(0, 65535), st.none() | st.integers(0, tcp.MAX_WINDOW_SCALE)
)


@moderately
@given(made, options_of_openings, st.sampled_from([0, 0x40, 0x80, 0xC0]))
def test_openings_are_found(what: Made, options: TcpOptions, ecn: int) -> None:
    """With what ECN puts into them (RFC 3168 section 6.1.1), which means nothing here; not those with data."""
    found = check(evolve(what, flags=SYN | ecn, options=options).frame)
    if what.payload:
        assert found is None
    else:
        assert found is not None
        assert (found[2].flags, found[2].options, found[2].seq) == (SYN, options, what.seq)


@moderately
@given(st.sampled_from([4, 6]), st.binary(max_size=40), st.integers(0, 15))
def test_any_options_of_an_opening_are_found_as_they_are_or_not_at_all(version: int, data: bytes, words: int) -> None:
    source, destination = PACKED[version]
    options = data[: len(data) & ~3]
    packet = tcp.emit(source, destination, TcpSegment(1, 2, 3, 0, SYN, 500)) + options
    packet = packet[:12] + bytes([words << 4]) + packet[13:16] + bytes(2) + packet[18:]
    total = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(packet)) + checksum.sum_of(packet)
    packet = packet[:16] + checksum.finish(total).to_bytes(2, "big") + packet[18:]
    ethertype = EtherType.IPV4 if version == 4 else EtherType.IPV6
    frame = ethernet.emit(EthernetHeader(HOST_MAC, GUEST_MAC, ethertype))
    found = check(frame + ip.emit_packet(source, destination, IPProtocol.TCP, packet))
    if words != 5 + len(options) // 4:
        assert found is None
