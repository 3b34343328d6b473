"""Segments of one connection as frames: what is cut in bulk is byte for byte what is made piece by piece."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from codec_checks import moderately
from harness import oracle
from harness.oracle import SeenTcp
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.link.memory import SentFrame
from trio_passt.wire import framing
from trio_passt.wire.frames import Capabilities, FrameRun, Segmentation
from trio_passt.wire.segment import COPY_BELOW_MSS, TSO_PAYLOAD_BYTES, TcpHeaders
from trio_passt.wire.tcp import ACK, FIN, PSH, SYN, TcpOptions, emit_options

HOST_MAC = bytes.fromhex("9a559a559a55")
GUEST_MAC = bytes.fromhex("525400123456")
V4 = ("198.51.100.1", "198.51.100.5")
V6 = ("fe80::1", "2001:db8::5")
PAIRS = [V4, V6]
PLAIN = Capabilities()
CHECKSUM = Capabilities(checksum=True)
TSO = Capabilities(checksum=True, tso=True)
EVERYTHING = random.Random(3).randbytes(300_000)

multiples_of_four = st.integers(16, 65480 // 4).map(lambda quarter: quarter * 4)


def headers(pair: tuple[str, str], capabilities: Capabilities = PLAIN) -> TcpHeaders:
    source, destination = (ip_address(text).packed for text in pair)
    return TcpHeaders(HOST_MAC, GUEST_MAC, source, 80, destination, 40_000, capabilities)


def frames_of(runs: list[FrameRun]) -> list[SentFrame]:
    """Frames as a link takes them, their length prefixes checked."""
    frames = []
    for run in runs:
        block = b"".join(run.parts)
        assert len(block) == run.count * run.stride
        for start in range(0, len(block), run.stride):
            assert int.from_bytes(block[start : start + 4], "big") == run.stride - 4
        frames += [SentFrame(bytes(frame), run.offload) for frame in framing.frames_of(run)]
    return frames


def piece_by_piece(template: TcpHeaders, seq: int, flags: int, payload: bytes, mss: int) -> list[SentFrame]:
    """What `cut` has to give: each segment made by itself."""
    frames = []
    for at in range(0, len(payload), mss):
        piece = payload[at : at + mss]
        is_last = at + mss >= len(payload)
        run = template.segment((seq + at) % 2**32, 99, flags if is_last else flags & ~PSH, 500, piece)
        frames += frames_of([run])
    return frames


def see(frame: bytes) -> SeenTcp:
    seen = oracle.see(frame, GUEST_MAC.hex(":"))
    assert isinstance(seen, SeenTcp)
    return seen


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("payload", [b"", b"x", b"xy", b"hello", bytes(1460), b"\xff" * 65000])
def test_segment_as_scapy_sees_it(pair: tuple[str, str], payload: bytes) -> None:
    (sent,) = frames_of([headers(pair).segment(2**32 - 1, 77, ACK | PSH, 1234, payload)])
    seen = see(sent.data)
    assert (seen.source, seen.destination) == pair
    segment = seen.segment
    assert (segment.source_port, segment.destination_port) == (80, 40_000)
    assert (segment.seq, segment.ack, segment.flags, segment.window) == (2**32 - 1, 77, ACK | PSH, 1234)
    assert segment.payload == payload


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("options", [TcpOptions(1460), TcpOptions(65460, 7)])
def test_options_of_a_syn(pair: tuple[str, str], options: TcpOptions) -> None:
    (sent,) = frames_of([headers(pair).segment(5, 0, SYN, 65535, b"", emit_options(options))])
    assert see(sent.data).segment.options == options


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mss", [64, 536, 1220, 1440, 1460, 4096, COPY_BELOW_MSS - 4, COPY_BELOW_MSS, 65460])
@pytest.mark.parametrize("segments", [0.5, 1, 1.5, 2, 2.5, 3, 4.001, 7])
def test_cut_is_piece_by_piece(pair: tuple[str, str], mss: int, segments: float) -> None:
    payload = EVERYTHING[: min(len(EVERYTHING), max(1, int(mss * segments)))]
    template = headers(pair)
    runs = template.cut(1000, 99, ACK | PSH, 500, memoryview(payload), mss)
    assert frames_of(runs) == piece_by_piece(template, 1000, ACK | PSH, payload, mss)


@moderately
@given(
    st.sampled_from(PAIRS),
    st.sampled_from([PLAIN, CHECKSUM]),
    multiples_of_four,
    st.integers(1, 100_000),
    st.integers(0, 100_000),
    st.integers(0, 2**32 - 1),
    st.sampled_from([ACK, ACK | PSH, ACK | PSH | FIN]),
)
def test_cut_is_piece_by_piece_for_any_numbers(
    pair: tuple[str, str], capabilities: Capabilities, mss: int, size: int, at: int, seq: int, flags: int
) -> None:
    payload = EVERYTHING[at : at + size]
    template = headers(pair, capabilities)
    cut = frames_of(template.cut(seq, 99, flags, 500, memoryview(payload), mss))
    assert cut == piece_by_piece(template, seq, flags, payload, mss)
    assert b"".join(frame.data[template.header_bytes :] for frame in cut) == payload


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mss", [1000, 20_000])
def test_sequence_numbers_wrap_within_a_cut(pair: tuple[str, str], mss: int) -> None:
    payload = EVERYTHING[: 4 * mss + 1]
    for seq in (2**32 - 1, 2**32 - mss, 2**32 - mss - 1, 2**32 - 2 * mss + 1, 2**32 - 4 * mss):
        frames = frames_of(headers(pair).cut(seq, 99, ACK, 500, memoryview(payload), mss))
        assert [see(frame.data).segment.seq for frame in frames] == [
            (seq + at) % 2**32 for at in range(0, 4 * mss + 1, mss)
        ]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\0", b"\0\0\xff\xfe"])
def test_checksums_of_extreme_payloads(pair: tuple[str, str], filling: bytes) -> None:
    payload = filling * (5000 // len(filling))
    for seq in (0, 0xFFFF, 0xFFFF0000, 2**32 - 1):
        for frame in frames_of(headers(pair).cut(seq, 2**32 - 1, ACK | PSH, 65535, memoryview(payload), 1000)):
            see(frame.data)


@pytest.mark.parametrize("pair", PAIRS)
def test_checksum_field_that_is_zero(pair: tuple[str, str]) -> None:
    """One word of the payload is chosen so that all else sums up to all ones: the field is 0, and stays 0 for TCP."""
    template = headers(pair)
    payload = bytearray(EVERYTHING[:3000])
    for at in (0, 1000):
        (frame,) = frames_of([template.segment(1 + at, 99, ACK, 500, bytes(payload[at : at + 1000]))])
        field = int.from_bytes(frame.data[template.header_bytes - 4 : template.header_bytes - 2], "big")
        word = int.from_bytes(payload[at : at + 2], "big") + field
        payload[at : at + 2] = (word % 0xFFFF or 0xFFFF).to_bytes(2, "big")
    frames = frames_of(template.cut(1, 99, ACK, 500, memoryview(bytes(payload)), 1000))
    assert [see(frame.data).segment.payload for frame in frames] == [payload[at : at + 1000] for at in (0, 1000, 2000)]
    fields = [frame.data[template.header_bytes - 4 : template.header_bytes - 2] for frame in frames]
    assert fields[0] in (b"\0\0", b"\xff\xff")
    assert frames == piece_by_piece(template, 1, ACK, bytes(payload), 1000)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mss", [1440, 20_000])
def test_checksum_left_to_the_link(pair: tuple[str, str], mss: int) -> None:
    payload = EVERYTHING[: 5 * mss // 2]
    plain = frames_of(headers(pair).cut(1000, 99, ACK | PSH, 500, memoryview(payload), mss))
    left = frames_of(headers(pair, CHECKSUM).cut(1000, 99, ACK | PSH, 500, memoryview(payload), mss))
    assert all(frame.offload is not None for frame in left)
    assert [done for frame in left for done in oracle.complete(frame)] == [frame.data for frame in plain]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("options", [b"", emit_options(TcpOptions(1460, 7))])
def test_checksum_of_a_bare_segment_left_to_the_link(pair: tuple[str, str], options: bytes) -> None:
    flags = SYN | ACK if options else ACK
    (plain,) = frames_of([headers(pair).segment(7, 8, flags, 9, b"", options)])
    (left,) = frames_of([headers(pair, CHECKSUM).segment(7, 8, flags, 9, b"", options)])
    assert oracle.complete(left) == [plain.data]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mss", [256, 1440, 9000, 40_000])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 1440, 1441, 70_000])
def test_segmentation_left_to_the_link(pair: tuple[str, str], mss: int, size: int) -> None:
    payload = EVERYTHING[:size]
    template = headers(pair, TSO)
    plain = frames_of(headers(pair).cut(2**32 - 700, 99, ACK | PSH, 500, memoryview(payload), mss))
    left = frames_of(template.cut(2**32 - 700, 99, ACK | PSH, 500, memoryview(payload), mss))
    assert len(left) == -(-size // template.payload_per_frame(mss))
    assert [done for frame in left for done in oracle.complete(frame)] == [frame.data for frame in plain]
    kind = Segmentation.TCPV4 if pair is V4 else Segmentation.TCPV6
    for frame in left:
        assert len(frame.data) <= 14 + 65535
        assert frame.offload is not None
        is_cut = len(frame.data) - template.header_bytes > mss
        assert frame.offload.segmentation is (kind if is_cut else Segmentation.NONE)


def test_payload_per_frame() -> None:
    assert headers(V4).payload_per_frame(1460) == 1460
    assert headers(V4, CHECKSUM).payload_per_frame(1460) == 1460
    with_tso = headers(V4, TSO).payload_per_frame(1460)
    assert with_tso % 1460 == 0
    assert TSO_PAYLOAD_BYTES - 1460 < with_tso <= TSO_PAYLOAD_BYTES


def test_large_segments_are_not_copied() -> None:
    payload = memoryview(EVERYTHING)[:200_000]
    for run in headers(V4).cut(1, 2, ACK, 3, payload, 65460):
        assert isinstance(run.parts[1], memoryview)
        assert run.parts[1].obj is EVERYTHING
