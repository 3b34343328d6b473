"""What a network card would do, against scapy, and against our own headers that leave it nothing to do."""

import itertools
import random
from collections.abc import Sequence

import pytest
from codec_checks import moderately, u16
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from unfinished import unfinished, without_identification

from trio_passt.wire import finish, segment
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import MAX_FRAME_BYTES, Capabilities, Offload, Segmentation
from trio_passt.wire.tcp import ACK, PSH

conf.ipv6_enabled = True

HOST_MAC, GUEST_MAC = "9a:55:9a:55:9a:55", "52:54:00:12:34:56"
NOISE = random.Random(5).randbytes(70_000)

versions = pytest.mark.parametrize("version", [4, 6])


def network(version: int, **fields: object) -> Packet:
    if version == 4:
        return IP(src="192.0.2.2", dst="198.51.100.7", **{"flags": "DF", "id": 0, **fields})
    return IPv6(src="2001:db8::2", dst="2001:db8:1::7", **fields)


def emitted(packet: Packet) -> bytes:
    """By scapy, with all lengths and checksums."""
    return bytes(Ether(src=GUEST_MAC, dst=HOST_MAC) / packet)


def pieces(frame: bytes, offload: Offload) -> list[bytes]:
    found = finish.finish(memoryview(frame), offload)
    assert all(piece.readonly for piece in found)
    return [bytes(piece) for piece in found]


# -- a checksum --------------------------------------------------------------------------------------------------------

TRANSPORTS: dict[str, Packet] = {
    "TCP": TCP(sport=40000, dport=80, flags="PA", seq=7, ack=9) / Raw(NOISE[:101]),
    "SYN": TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
    "RST": TCP(sport=40000, dport=80, flags="RA"),
    "UDP": UDP(sport=40000, dport=53) / Raw(NOISE[:64]),
    "empty datagram": UDP(sport=40000, dport=53),
}


@versions
@pytest.mark.parametrize("kind", TRANSPORTS)
def test_checksum_is_filled_in(version: int, kind: str) -> None:
    whole = emitted(network(version) / TRANSPORTS[kind])
    frame, offload = unfinished(whole)
    assert frame != whole
    assert pieces(frame, offload) == [whole]


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_whatever_is_between_the_headers(kind: str) -> None:
    whole = emitted(network(4, options=[IPOption(b"\x94\x04\x00\x00")]) / TRANSPORTS[kind])
    assert pieces(*unfinished(whole, transport_at=38)) == [whole]
    header = bytearray(emitted(network(6) / TRANSPORTS[kind]))
    left = bytearray(unfinished(bytes(header))[0])
    protocol, left[20] = left[20], 60
    left[18:20] = (int.from_bytes(left[18:20], "big") + 8).to_bytes(2, "big")
    with_options = bytes(left[:54]) + bytes([protocol, 0, 1, 4, 0, 0, 0, 0]) + bytes(left[54:])
    offset = unfinished(bytes(header))[1].checksum_offset
    (done,) = pieces(with_options, Offload(62, offset))
    assert done[62:] == header[54:]


def test_a_checksum_that_comes_out_as_zero() -> None:
    """In UDP it would say that there is none (RFC 768)."""
    whole = emitted(network(4) / UDP(sport=1, dport=2) / Raw(bytes(2)))
    missing = int.from_bytes(whole[40:42], "big")
    whole = emitted(network(4) / UDP(sport=1, dport=2) / Raw(missing.to_bytes(2, "big")))
    assert whole[40:42] == b"\xff\xff"
    assert pieces(*unfinished(whole)) == [whole]


def test_what_was_verified_is_left_as_it_is() -> None:
    frame = memoryview(bytearray(60))
    assert finish.finish(frame, Offload(0, 0, is_verified=True)) == [frame]


# -- segments ----------------------------------------------------------------------------------------------------------


def expected_segments(version: int, size: int, payload: bytes, **fields: object) -> list[bytes]:
    """Each made by scapy."""
    found = []
    starts = range(0, len(payload), size)
    flags = fields.pop("flags", "A")
    assert isinstance(flags, str)
    for index, start in enumerate(starts):
        own = flags
        if start + size < len(payload):
            own = own.replace("P", "").replace("F", "")
        if index:
            own = own.replace("C", "")
        numbers = {"id": 65535 + index & 0xFFFF} if version == 4 else {}
        tcp = TCP(sport=40000, dport=80, seq=0xFFFFF000 + start & 0xFFFFFFFF, flags=own, **fields)
        found.append(emitted(network(version, **numbers) / tcp / Raw(payload[start : start + size])))
    return found


@versions
@pytest.mark.parametrize("flags", ["A", "PA", "FPA", "CPA", "EA"])
@pytest.mark.parametrize("options", [[], [("Timestamp", (7, 9)), ("NOP", None), ("NOP", None)]])
@pytest.mark.parametrize("size", [1000, 1448, 4999, 5000])
def test_segments_are_what_scapy_makes(version: int, flags: str, options: list[object], size: int) -> None:
    payload = NOISE[:5000]
    numbers = {"id": 65535} if version == 4 else {}
    tcp = TCP(sport=40000, dport=80, seq=0xFFFFF000, flags=flags, options=options)
    whole = emitted(network(version, **numbers) / tcp / Raw(payload))
    assert pieces(*unfinished(whole, size)) == expected_segments(version, size, payload, flags=flags, options=options)


@versions
@pytest.mark.parametrize("size", [1, 7, 100, 1400])
def test_datagrams_are_what_scapy_makes(version: int, size: int) -> None:
    payload = NOISE[: 20 * size + size // 2]
    whole = emitted(network(version) / UDP(sport=4000, dport=5000) / Raw(payload))
    wanted = [
        emitted(
            network(version, **({"id": index} if version == 4 else {}))
            / UDP(sport=4000, dport=5000)
            / Raw(payload[index * size : (index + 1) * size])
        )
        for index in range(-(-len(payload) // size))
    ]
    assert pieces(*unfinished(whole, size)) == wanted


@versions
@pytest.mark.parametrize("payload_bytes", [1461, 14_600, 65_495 - 20])
def test_segments_are_those_of_a_link_that_cuts_nothing(version: int, payload_bytes: int) -> None:
    """But for IPv4's identification, which means nothing there."""
    addresses = (bytes([192, 0, 2, 2]), bytes([198, 51, 100, 7])) if version == 4 else (b"\xfd" + bytes(15), bytes(16))
    ends = (addresses[0], 80, addresses[1], 40000)
    macs = (bytes.fromhex(HOST_MAC.replace(":", "")), bytes.fromhex(GUEST_MAC.replace(":", "")))
    payload = memoryview(NOISE)[:payload_bytes]
    found = []
    for capabilities in (Capabilities(), Capabilities(checksum=True, tso4=True, tso6=True)):
        headers = segment.TcpHeaders(*macs, *ends, capabilities)
        frames = []
        for run in headers.cut(0xFFFFF000, 3, ACK | PSH, 1000, payload, 1460):
            block = b"".join(run.parts)
            for start in range(0, len(block), run.stride):
                frame = block[start + 4 : start + run.stride]
                frames += [frame] if run.offload is None else pieces(frame, run.offload)
        found.append([without_identification(memoryview(frame)) for frame in frames])
    assert found[0] == found[1]


def test_of_a_train_the_first_and_the_last_can_be_quoted() -> None:
    for version, payload in itertools.product((4, 6), (NOISE[:5001], NOISE[:5000], NOISE[:1000], NOISE[:7], b"")):
        whole = emitted(network(version) / UDP(sport=4000, dport=5000) / Raw(payload))
        frame, offload = unfinished(whole, 1000)
        packet, data = memoryview(frame)[14:], memoryview(frame)[14 + (28 if version == 4 else 48) :]
        cut = pieces(frame, offload)
        for wanted, found in (
            (cut[0], finish.first_of(packet, data, 1000)),
            (cut[-1], finish.last_of(packet, data, 1000)),
        ):
            checksum_at = 26 if version == 4 else 46
            assert found[:checksum_at] == wanted[14 : 14 + checksum_at]
            assert found[checksum_at + 2 :] == wanted[16 + checksum_at :]
        assert [bytes(piece) for piece in finish.cut_payload(data, 1000)] == [
            piece[14 + checksum_at + 2 :] for piece in cut
        ]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def tcp_frame(version: int = 4, size: int = 3000) -> tuple[bytes, Offload]:
    return unfinished(emitted(network(version) / TCP(sport=1, dport=2, flags="A") / Raw(NOISE[:size])), 1000)


@pytest.mark.parametrize(
    "offload",
    [
        pytest.param(Offload(3052, 0), id="checksum at the last two bytes"),
        pytest.param(Offload(14, 0), id="from where IP begins"),
    ],
)
def test_places_that_are_in_the_frame(offload: Offload) -> None:
    (frame,) = pieces(tcp_frame()[0], offload)
    assert len(frame) == 3054


@pytest.mark.parametrize(
    "offload",
    [
        pytest.param(Offload(3053, 0), id="a byte beyond the end"),
        pytest.param(Offload(34, 65535), id="far beyond the end"),
        pytest.param(Offload(65535, 16), id="from beyond the end"),
        pytest.param(Offload(13, 0), id="in Ethernet's header"),
        pytest.param(Offload(0, 0), id="from the beginning"),
        pytest.param(Offload(54, 16, 74, 1000, Segmentation.TCPV6), id="the other version"),
        pytest.param(Offload(34, 16, 54, 1000, Segmentation.TCPV6), id="the other version, at our place"),
        pytest.param(Offload(34, 6, 42, 1000, Segmentation.UDP), id="another protocol"),
        pytest.param(Offload(34, 6, 54, 1000, Segmentation.TCPV4), id="checksum at another place"),
        pytest.param(Offload(38, 16, 58, 1000, Segmentation.TCPV4), id="not where TCP is"),
        pytest.param(Offload(34, 16, 54, 2, Segmentation.TCPV4), id="very small segments"),
    ],
)
def test_places_that_are_not(offload: Offload) -> None:
    frame, _ = tcp_frame()
    with pytest.raises(MalformedPacket):
        finish.finish(memoryview(frame), offload)


def changed(frame: bytes, at: int, *values: int) -> bytes:
    return frame[:at] + bytes(values) + frame[at + len(values) :]


@pytest.mark.parametrize(
    ("version", "at", "values"),
    [
        pytest.param(4, 16, (0, 100), id="IPv4 length"),
        pytest.param(4, 20, (0x20, 0), id="a fragment"),
        pytest.param(4, 24, (0, 0), id="IPv4 header checksum"),
        pytest.param(4, 14, (0x46,), id="IPv4 options that are not there"),
        pytest.param(4, 12, (0x08, 0x06), id="ARP"),
        pytest.param(4, 46, (0xF0,), id="TCP header larger than said"),
        pytest.param(4, 46, (0x40,), id="TCP header too small"),
        pytest.param(6, 18, (0, 0), id="jumbogram"),
        pytest.param(6, 20, (17,), id="UDP"),
        pytest.param(6, 20, (0,), id="extension headers that are not right"),
        pytest.param(6, 14, (0x40,), id="version"),
        pytest.param(6, 66, (0x10,), id="TCP header too small, IPv6"),
    ],
)
def test_what_is_to_be_cut_has_to_be_right(version: int, at: int, values: Sequence[int]) -> None:
    frame, offload = tcp_frame(version)
    frame = changed(frame, at, *values)
    if values == (0xF0,):
        assert len(pieces(frame, offload)) == 3, "options of nonsense, which nobody reads"
        frame = frame[:80]
        frame = changed(frame, 16, 0, 66)
    with pytest.raises(MalformedPacket):
        finish.finish(memoryview(frame), offload)


def test_a_wrong_header_checksum_is_not_put_right() -> None:
    frame, offload = tcp_frame()
    (problem,) = finish.as_items(memoryview(changed(frame, 24, 0, 0)), offload)
    assert isinstance(problem, MalformedPacket)


any_offload = st.builds(
    Offload,
    st.integers(0, 100) | u16,
    st.sampled_from([6, 16]) | u16,
    u16,
    st.integers(0, 2000),
    st.sampled_from(Segmentation),
)


@moderately
@given(st.binary(max_size=200) | st.sampled_from([tcp_frame()[0], tcp_frame(6)[0]]), any_offload)
def test_any_bytes(frame: bytes, offload: Offload) -> None:
    try:
        found = pieces(frame, offload)
    except MalformedPacket:
        return
    assert found
    assert all(14 <= len(piece) <= MAX_FRAME_BYTES for piece in found)


@moderately
@given(st.sampled_from([4, 6]), st.integers(0, 3053), st.integers(1, 255))
def test_any_damaged_byte(version: int, place: int, change: int) -> None:
    """It is cut all the same, or not; nothing but that."""
    frame, offload = tcp_frame(version)
    frame = changed(frame, place, frame[place] ^ change)
    try:
        found = pieces(frame, offload)
    except MalformedPacket:
        return
    assert sum(len(piece) for piece in found) > len(frame)
