"""Segments of a connection as frames: whatever way they are made, the bytes are the same."""

import random
from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from attrs import frozen
from codec_checks import moderately
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.frames import Capabilities, FrameRun, Offload, Segmentation
from trio_passt.wire.segment import COPY_BELOW_MSS, TSO_PAYLOAD_BYTES, TcpHeaders
from trio_passt.wire.tcp import ACK, FIN, PSH, SYN, TcpOptions, emit_options

conf.ipv6_enabled = True

HOST_MAC, GUEST_MAC = bytes.fromhex("9a559a559a55"), bytes.fromhex("525400123456")
PAIRS = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8::2")}
LARGEST_MSS = {4: 65520 - 40, 6: 65520 - 60}

PLAIN = Capabilities()
CHECKSUM = Capabilities(checksum=True)
TSO = Capabilities(checksum=True, tso4=True, tso6=True)

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@frozen
class Frame:
    """One frame without its prefix, and what was left to the link."""

    data: bytes
    offload: Offload | None


def headers(version: int, capabilities: Capabilities = PLAIN) -> TcpHeaders:
    source, destination = (ip_address(text).packed for text in PAIRS[version])
    return TcpHeaders(HOST_MAC, GUEST_MAC, source, 80, destination, 40_000, capabilities)


def frames_of(runs: Iterable[FrameRun]) -> list[Frame]:
    """The frames of runs, each of the length that its prefix and the run's stride say."""
    frames = []
    for run in runs:
        data = b"".join(run.parts)
        assert len(data) == run.count * run.stride
        for at in range(0, len(data), run.stride):
            frame = data[at + 4 : at + run.stride]
            assert int.from_bytes(data[at : at + 4], "big") == len(frame)
            frames.append(Frame(frame, run.offload))
    return frames


def piece_by_piece(version: int, seq: int, flags: int, payload: bytes, mss: int) -> list[bytes]:
    """What `cut` has to give: each segment made by itself."""
    made = headers(version)
    frames = []
    for at in range(0, len(payload), mss):
        piece = payload[at : at + mss]
        is_last = at + mss >= len(payload)
        own_flags = flags if is_last else flags & ~PSH
        frames.append(made.segment((seq + at) % 2**32, 77, own_flags, 501, memoryview(piece)))
    return [frame.data for frame in frames_of(frames)]


def sum_16(data: Buffer) -> int:
    """RFC 1071 as it stands there."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(bytes(data[at : at + 2]).ljust(2, b"\0"), "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def put(data: bytearray, at: int, value: int) -> None:
    data[at : at + 2] = value.to_bytes(2, "big")


def done_by_link(frame: Frame) -> list[bytes]:
    """What a link makes of the frame (virtio 1.2 section 5.1.6.2): segments cut, each one's checksum finished."""
    offload = frame.offload
    assert offload is not None
    if not offload.segment_bytes:
        assert offload.segmentation is Segmentation.NONE
        return [with_checksum(frame.data, offload)]
    is_ipv4 = frame.data[14] >> 4 == 4
    assert offload.segmentation is (Segmentation.TCPV4 if is_ipv4 else Segmentation.TCPV6)
    head, payload = frame.data[: offload.header_bytes], frame.data[offload.header_bytes :]
    assert len(payload) > offload.segment_bytes
    tcp_at = offload.checksum_start
    whole_tcp_bytes = len(frame.data) - tcp_at
    segments = []
    for at in range(0, len(payload), offload.segment_bytes):
        piece = payload[at : at + offload.segment_bytes]
        segment = bytearray(head + piece)
        tcp_bytes = len(segment) - tcp_at
        if is_ipv4:
            put(segment, 16, len(segment) - 14)
            put(segment, 24, 0)
            put(segment, 24, 0xFFFF ^ sum_16(segment[14:34]))
        else:
            put(segment, 18, tcp_bytes)
        seq = (int.from_bytes(segment[tcp_at + 4 : tcp_at + 8], "big") + at) % 2**32
        segment[tcp_at + 4 : tcp_at + 8] = seq.to_bytes(4, "big")
        if at + offload.segment_bytes < len(payload):
            segment[tcp_at + 13] &= ~(PSH | FIN)
        field = int.from_bytes(segment[tcp_at + 16 : tcp_at + 18], "big") - whole_tcp_bytes + tcp_bytes
        put(segment, tcp_at + 16, field % 65535)
        segments.append(with_checksum(bytes(segment), offload))
    return segments


def with_checksum(data: bytes, offload: Offload) -> bytes:
    finished = bytearray(data)
    put(finished, offload.checksum_start + offload.checksum_offset, 0xFFFF ^ sum_16(data[offload.checksum_start :]))
    return bytes(finished)


def check_with_scapy(version: int, frame: bytes) -> TCP:
    """Lengths and checksums are what scapy would have filled in; returns the TCP layer."""
    seen = Ether(frame)
    layer = IP if version == 4 else IPv6
    assert (seen.src, seen.dst) == (HOST_MAC.hex(":"), GUEST_MAC.hex(":"))
    assert (seen[layer].src, seen[layer].dst) == PAIRS[version]
    again = seen.copy()
    del again[TCP].chksum
    if version == 4:
        assert (seen[IP].id, str(seen[IP].flags), seen[IP].ttl) == (0, "DF", 64)
        del again[IP].chksum, again[IP].len
    else:
        del again[IPv6].plen
    assert bytes(again) == frame
    tcp = seen[TCP]
    assert isinstance(tcp, TCP)
    return tcp


def payload_of(kind: str, size: int) -> bytes:
    match kind:
        case "zeros":
            return bytes(size)
        case "ones":
            return b"\xff" * size
        case _:
            return random.Random(size).randbytes(size)


kinds = st.sampled_from(["zeros", "ones", "random"])
seqs = st.integers(0, 2**32 - 1) | st.integers(2**32 - 5000, 2**32 - 1)
mss_and_size = st.one_of(
    st.integers(16, 365)
    .map(lambda words: words * 4)
    .flatmap(lambda mss: st.tuples(st.just(mss), st.integers(1, 9000))),
    st.integers(366, 4096)
    .map(lambda words: words * 4)
    .flatmap(lambda mss: st.tuples(st.just(mss), st.integers(1, 4 * mss))),
    st.integers(2, 6).map(lambda whole: (1460, whole * 1460)),
)


@moderately
@given(st.sampled_from([4, 6]), seqs, kinds, mss_and_size, st.sampled_from([ACK, ACK | PSH]))
@example(4, 2**32 - 1460, "zeros", (1460, 1460 * 5), ACK | PSH)
@example(6, 2**32 - 1461, "ones", (1440, 1440 * 5 + 1), ACK | PSH)
def test_cut_gives_what_segment_gives_piece_by_piece(
    version: int, seq: int, kind: str, sizes: tuple[int, int], flags: int
) -> None:
    mss, size = sizes
    payload = payload_of(kind, size)
    runs = headers(version).cut(seq, 77, flags, 501, memoryview(payload), mss)
    frames = frames_of(runs)
    assert all(frame.offload is None for frame in frames)
    assert [frame.data for frame in frames] == piece_by_piece(version, seq, flags, payload, mss)


@versions
@pytest.mark.parametrize("size", [1, 65_479, 65_480, 65_481, 200_001])
def test_cut_of_large_segments(version: int, size: int) -> None:
    payload = payload_of("random", size)
    runs = headers(version).cut(2**32 - 70_000, 77, ACK | PSH, 501, memoryview(payload), LARGEST_MSS[version])
    assert [frame.data for frame in frames_of(runs)] == piece_by_piece(
        version, 2**32 - 70_000, ACK | PSH, payload, LARGEST_MSS[version]
    )


@moderately
@given(
    st.sampled_from([4, 6]),
    seqs,
    kinds,
    st.integers(COPY_BELOW_MSS // 4, 16384).map(lambda words: words * 4),
    st.integers(1, 200_000),
    st.sampled_from([ACK, ACK | PSH]),
)
@example(4, 2**32 - 1, "zeros", 65480, 65480 * 3, ACK)
@example(6, 2**32 - 65460, "ones", 65460, 65460 * 3 + 1, ACK | PSH)
def test_cut_of_large_segments_gives_what_segment_gives_piece_by_piece(
    version: int, seq: int, kind: str, mss: int, size: int, flags: int
) -> None:
    mss = min(mss, LARGEST_MSS[version])
    payload = payload_of(kind, size)
    runs = headers(version).cut(seq, 77, flags, 501, memoryview(payload), mss)
    assert sum(run.count for run in runs) == -(-size // mss)
    assert [frame.data for frame in frames_of(runs)] == piece_by_piece(version, seq, flags, payload, mss)


def test_large_segments_are_not_copied_and_small_ones_are_one_block() -> None:
    payload = bytearray(100_000)
    large = headers(4).cut(1, 2, ACK, 3, memoryview(payload), COPY_BELOW_MSS)
    assert [run.count for run in large] == [100_000 // COPY_BELOW_MSS, 1]
    pieces = [part for run in large for part in run.parts[1::2]]
    assert all(isinstance(piece, memoryview) and piece.obj is payload for piece in pieces)
    small = headers(4).cut(1, 2, ACK, 3, memoryview(payload), 1460)
    assert [run.count for run in small] == [100_000 // 1460, 1]


@versions
def test_scapy_reads_the_frames_of_a_run(version: int) -> None:
    payload = payload_of("random", 1440 * 20 + 5)
    start = 2**32 - 1440 * 3 - 7
    received, expected_seq = b"", start
    frames = frames_of(headers(version).cut(start, 77, ACK | PSH, 501, memoryview(payload), 1440))
    for index, frame in enumerate(frames):
        seen = check_with_scapy(version, frame.data)
        assert (seen.sport, seen.dport, seen.ack, seen.window, seen.options) == (80, 40_000, 77, 501, [])
        assert seen.seq == expected_seq
        assert str(seen.flags) == ("PA" if index == len(frames) - 1 else "A")
        received += bytes(seen.payload)
        expected_seq = (expected_seq + len(seen.payload)) % 2**32
    assert received == payload


@versions
@pytest.mark.parametrize("payload", [b"", b"x", b"hello", bytes(100), b"\xff" * 1460])
def test_scapy_reads_one_segment(version: int, payload: bytes) -> None:
    options = emit_options(TcpOptions(1460, 7))
    for with_options in (b"", options):
        run = headers(version).segment(2**32 - 1, 2**32 - 2, SYN | ACK, 65535, payload, with_options)
        (frame,) = frames_of([run])
        seen = check_with_scapy(version, frame.data)
        assert (seen.seq, seen.ack, str(seen.flags), seen.window) == (2**32 - 1, 2**32 - 2, "SA", 65535)
        assert bytes(seen.payload) == payload
        found = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
        assert seen.options == (found if with_options else [])


@moderately
@given(st.sampled_from([4, 6]), seqs, seqs, st.integers(0, 65535), kinds, st.integers(0, 200))
def test_checksum_left_to_the_link_is_the_same_in_the_end(
    version: int, seq: int, ack: int, window: int, kind: str, size: int
) -> None:
    payload = payload_of(kind, size)
    options = emit_options(TcpOptions(1460, 7)) if size % 2 else b""
    (plain,) = frames_of([headers(version).segment(seq, ack, ACK, window, payload, options)])
    (left,) = frames_of([headers(version, CHECKSUM).segment(seq, ack, ACK, window, payload, options)])
    assert done_by_link(left) == [plain.data]


@versions
@pytest.mark.parametrize("capabilities", [CHECKSUM, TSO], ids=["checksum", "TSO"])
def test_offload_says_where_and_its_field_is_the_pseudo_headers_sum(version: int, capabilities: Capabilities) -> None:
    run = headers(version, capabilities).segment(1, 2, ACK, 3, b"hello", bytes(4))
    ip_bytes = 20 if version == 4 else 40
    assert run.offload == Offload(14 + ip_bytes, 16, 14 + ip_bytes + 24)
    (frame,) = frames_of([run])
    addresses = b"".join(ip_address(text).packed for text in PAIRS[version])
    pseudo = addresses + (6).to_bytes(4, "big") + (24 + 5).to_bytes(4, "big")
    at = 14 + ip_bytes + 16
    assert int.from_bytes(frame.data[at : at + 2], "big") == sum_16(pseudo)


@moderately
@given(st.sampled_from([4, 6]), seqs, kinds, mss_and_size)
def test_cut_with_checksums_left_to_the_link_is_the_same_in_the_end(
    version: int, seq: int, kind: str, sizes: tuple[int, int]
) -> None:
    mss, size = sizes
    payload = payload_of(kind, size)
    frames = frames_of(headers(version, CHECKSUM).cut(seq, 77, ACK | PSH, 501, memoryview(payload), mss))
    done = [segment for frame in frames for segment in done_by_link(frame)]
    assert done == piece_by_piece(version, seq, ACK | PSH, payload, mss)


@versions
@pytest.mark.parametrize("mss", [64, 536, 1440, 9000, 32_736, 65_460])
@pytest.mark.parametrize("size", [1, 1440, 1441, 65_460, 65_475, 65_476, 150_000])
def test_segmentation_left_to_the_link_is_the_same_in_the_end(version: int, mss: int, size: int) -> None:
    payload = payload_of("random", size)
    seq = 2**32 - 40_000
    made = headers(version, TSO)
    frames = frames_of(made.cut(seq, 77, ACK | PSH, 501, memoryview(payload), mss))
    per_frame = made.payload_per_frame(mss)
    assert len(frames) == -(-size // per_frame)
    for frame in frames:
        assert frame.offload is not None
        assert frame.offload.segment_bytes == (mss if len(frame.data) - frame.offload.header_bytes > mss else 0)
        assert len(frame.data) - 14 <= 65535 + (40 if version == 6 else 0)
    done = [segment for frame in frames for segment in done_by_link(frame)]
    assert done == piece_by_piece(version, seq, ACK | PSH, payload, mss)


@pytest.mark.parametrize("mss", [64, 536, 1440, 1460, 9000, 65_460])
def test_payload_per_frame(mss: int) -> None:
    assert headers(4).payload_per_frame(mss) == mss
    assert headers(4, CHECKSUM).payload_per_frame(mss) == mss
    whole = headers(4, TSO).payload_per_frame(mss)
    assert whole % mss == 0
    assert TSO_PAYLOAD_BYTES - mss < whole <= TSO_PAYLOAD_BYTES


@versions
def test_segmentation_with_the_largest_mss(version: int) -> None:
    """The default MTU's MSS over IPv4, 65480, exceeds what a segmented frame carries: one frame each then."""
    mss = LARGEST_MSS[version]
    payload = payload_of("random", 3 * mss + 1)
    made = headers(version, TSO)
    assert made.payload_per_frame(mss) == mss
    frames = frames_of(made.cut(1, 77, ACK | PSH, 501, memoryview(payload), mss))
    done = [segment for frame in frames for segment in done_by_link(frame)]
    assert done == piece_by_piece(version, 1, ACK | PSH, payload, mss)


@versions
@pytest.mark.parametrize("capabilities", [PLAIN, CHECKSUM, TSO], ids=["plain", "checksum", "TSO"])
def test_first_frames_carry_what_payload_per_frame_says(version: int, capabilities: Capabilities) -> None:
    payload = payload_of("random", 200_000)
    made = headers(version, capabilities)
    frames = frames_of(made.cut(1, 77, ACK, 501, memoryview(payload), 1440))
    sizes = [len(frame.data) - made.header_bytes for frame in frames]
    per_frame = made.payload_per_frame(1440)
    assert sizes == [per_frame] * (200_000 // per_frame) + [200_000 % per_frame]
    assert b"".join(frame.data[made.header_bytes :] for frame in frames) == payload
