"""Datagrams as frames: whatever way they are made, the bytes are those of one datagram by itself."""

import itertools
import random
from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from codec_checks import moderately
from harness.oracle import SeenFragment, SeenUdp, see, whole
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from unfinished import without_identification

from trio_passt.wire import finish, framing, ip, udp
from trio_passt.wire.datagrams import COPY_BELOW_BYTES, Train, UdpHeaders
from trio_passt.wire.frames import Capabilities, FrameRun, Segmentation
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

conf.ipv6_enabled = True

HOST_MAC, GUEST_MAC = bytes.fromhex("9a559a559a55"), bytes.fromhex("525400123456")
PAIRS = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8::2")}
PORTS = (53, 40_000)
HEADERS_BYTES = {4: 28, 6: 48}
LARGEST_MTU_BYTES = 65520
NOISE = random.Random(7).randbytes(1 << 18)

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def packed(version: int) -> tuple[bytes, bytes]:
    source, destination = (ip_address(text).packed for text in PAIRS[version])
    return source, destination


NOTHING = Capabilities()
FILLS_IN, CUTS = Capabilities(checksum=True), Capabilities(checksum=True, uso=True)


def headers(version: int, mtu_bytes: int = LARGEST_MTU_BYTES, capabilities: Capabilities = NOTHING) -> UdpHeaders:
    return UdpHeaders((HOST_MAC, GUEST_MAC), packed(version), PORTS, mtu_bytes, capabilities)


def frames_of(runs: Iterable[FrameRun]) -> list[bytes]:
    """The frames of runs, each of the length that its prefix and the run's stride say, as the link sends them."""
    frames = []
    for run in runs:
        data = b"".join(run.parts)
        assert len(data) == run.count * run.stride
        for at in range(0, len(data), run.stride):
            frame = data[at + 4 : at + run.stride]
            assert int.from_bytes(data[at : at + 4], "big") == len(frame)
            if run.offload is None:
                frames.append(frame)
            else:
                frames += [without_identification(piece) for piece in finish.finish(memoryview(frame), run.offload)]
    return frames


def framed(version: int, buffer: bytes, trains: list[Train], mtu_bytes: int = LARGEST_MTU_BYTES) -> list[bytes]:
    return frames_of(headers(version, mtu_bytes).frames(memoryview(buffer), trains, itertools.count(7)))


def by_itself(version: int, payload: bytes) -> bytes:
    """The frame for one datagram, by the layers' own emitters."""
    source, destination = packed(version)
    datagram = udp.emit(source, destination, UdpHeader(*PORTS), payload)
    return ip.frame_packet(HOST_MAC, GUEST_MAC, ip.emit_packet(source, destination, IPProtocol.UDP, datagram))


def by_scapy(version: int, payload: bytes) -> bytes:
    source, destination = PAIRS[version]
    layer = IP(src=source, dst=destination, id=0, flags="DF") if version == 4 else IPv6(src=source, dst=destination)
    packet = layer / UDP(sport=PORTS[0], dport=PORTS[1]) / Raw(payload)
    return bytes(Ether(src=HOST_MAC.hex(":"), dst=GUEST_MAC.hex(":")) / packet)


def payloads_of(buffer: bytes, trains: Iterable[Train]) -> list[bytes]:
    """What the trains say is in the buffer."""
    return [
        buffer[at : at + size]
        for start, size, count, stride in trains
        for at in (start + number * stride for number in range(count))
    ]


def place_of_checksum(version: int) -> slice:
    return slice(HEADERS_BYTES[version] + 12, HEADERS_BYTES[version] + 14)


# -- against scapy, and against one by one -----------------------------------------------------------------------------


@versions
@pytest.mark.parametrize("size", [0, 1, 2, 3, 63, 64, 65, 1401, COPY_BELOW_BYTES - 1, COPY_BELOW_BYTES, 9001])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_byte_for_byte_what_scapy_emits(version: int, size: int, count: int) -> None:
    stride = size + 11
    frames = framed(version, NOISE, [Train(3, size, count, stride)])
    assert frames == [by_scapy(version, NOISE[at : at + size]) for at in range(3, 3 + count * stride, stride)]


@st.composite
def trains(draw: st.DrawFn) -> list[Train]:
    """Anywhere in the noise, of any size, close together or far apart."""
    sizes = st.integers(0, 200) | st.integers(COPY_BELOW_BYTES - 2, COPY_BELOW_BYTES + 2) | st.integers(0, 20_000)
    found = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(sizes)
        stride = size + draw(st.sampled_from([0, 1, 2, 3, 4, 100]))
        count = draw(st.integers(1, max(1, min(64, 200_000 // max(stride, 1)))))
        start = draw(st.integers(0, len(NOISE) - max(stride, size) * count))
        found.append(Train(start, size, count, stride if count > 1 else draw(st.sampled_from([0, stride]))))
    return found


@moderately
@given(st.sampled_from([4, 6]), trains(), st.sampled_from([FILLS_IN, CUTS]), st.sampled_from([1500, 65520]))
def test_a_link_that_helps_sends_the_same(
    version: int, trains: list[Train], capabilities: Capabilities, mtu_bytes: int
) -> None:
    runs = headers(version, mtu_bytes, capabilities).frames(memoryview(NOISE), trains, itertools.count(7))
    assert frames_of(runs) == framed(version, NOISE, trains, mtu_bytes)


@versions
@pytest.mark.parametrize(
    ("trains", "in_each_frame"),
    [
        pytest.param([Train(0, 1400, 46, 1400)], [46], id="64 KiB"),
        pytest.param([Train(0, 1400, 47, 1400)], [46, 1], id="more than 64 KiB"),
        pytest.param([Train(0, 1400, 100, 1400)], [46, 46, 8], id="much more"),
        pytest.param([Train(0, 10, 130, 20)], [64, 64, 2], id="many small ones, with gaps"),
        pytest.param([Train(0, 1400, 5, 1400), Train(7000, 7)], [6], id="the last one is smaller"),
        pytest.param([Train(0, 1400, 46, 1400), Train(64400, 7)], [46, 1], id="no room for the last one"),
        pytest.param([Train(0, 1400, 45, 1400), Train(63000, 1399)], [46], id="just room for the last one"),
        pytest.param([Train(0, 10, 64, 10), Train(640, 7)], [64, 1], id="too many for the last one"),
        pytest.param([Train(0, 10, 5, 10), Train(50, 11)], [5, 1], id="a larger one"),
        pytest.param([Train(0, 10, 5, 10), Train(50, 0)], [5, 1], id="an empty one"),
        pytest.param([Train(0, 10, 5, 10), Train(50, 9, 2, 9)], [5, 2], id="several smaller ones"),
        pytest.param([Train(0, 10, 5, 10), Train(50, 9), Train(59, 9)], [6, 1], id="two smaller ones"),
        pytest.param([Train(0, 0, 3, 10)], [1, 1, 1], id="nothing in them"),
        pytest.param([Train(0, 40_000, 2, 40_000)], [1, 1], id="large ones"),
        pytest.param([Train(0, 32_753, 2, 32_753)], [2], id="the two largest"),
        pytest.param([Train(0, 32_754, 2, 32_754)], [1, 1], id="a byte too large"),
    ],
)
def test_how_many_datagrams_go_in_a_frame(version: int, trains: list[Train], in_each_frame: list[int]) -> None:
    runs = headers(version, capabilities=CUTS).frames(memoryview(NOISE), trains, itertools.count(7))
    assert [run.count for run in runs] == [1] * len(runs)
    assert [len(frames_of([run])) for run in runs] == in_each_frame
    for run, count in zip(runs, in_each_frame, strict=True):
        assert run.offload is not None
        kind = Segmentation.UDP if count > 1 else Segmentation.NONE
        assert (run.offload.segmentation, run.offload.segment_bytes > 0) == (kind, count > 1)
        assert run.offload.header_bytes == HEADERS_BYTES[version] + 14
    assert frames_of(runs) == framed(version, NOISE, trains)


def test_what_lies_together_is_not_taken_apart() -> None:
    (run,) = headers(4, capabilities=CUTS).frames(memoryview(NOISE), [Train(3, 1400, 40, 1400)], itertools.count(7))
    assert len(run.parts) == 2
    assert run.parts[1] == NOISE[3:56_003]


@moderately
@given(st.sampled_from([4, 6]), trains())
def test_trains_are_what_each_datagram_is_by_itself(version: int, trains: list[Train]) -> None:
    frames = framed(version, NOISE, trains)
    assert frames == [by_itself(version, payload) for payload in payloads_of(NOISE, trains)]


@versions
def test_payloads_of_a_train_are_views_of_the_buffer(version: int) -> None:
    buffer = memoryview(NOISE)
    trains = [Train(3, 5, 4, 9), Train(100, 7), Train(200, 0, 2, 8)]
    views = [payload for train in trains for payload in train.payloads(buffer)]
    assert views == payloads_of(NOISE, trains)
    assert all(view.obj is NOISE for view in views)


@versions
@pytest.mark.parametrize("size", [COPY_BELOW_BYTES, 60_000])
def test_large_datagrams_are_not_copied(version: int, size: int) -> None:
    (run,) = headers(version).frames(memoryview(NOISE), [Train(5, size, 3, size + 1)], itertools.count())
    assert run.count == 3
    assert [len(part) for part in run.parts if isinstance(part, memoryview) and part.obj is NOISE] == [size] * 3


@versions
def test_small_datagrams_of_one_train_are_one_block(version: int) -> None:
    (run,) = headers(version).frames(memoryview(NOISE), [Train(0, 100, 64, 128)], itertools.count())
    assert len(run.parts) == 1
    assert run.count == 64


@versions
def test_memory_that_is_written_to_later(version: int) -> None:
    """A block is a copy: what is received next into the buffer does not change it."""
    buffer = bytearray(NOISE[:10_000])
    wanted = [by_itself(version, payload) for payload in payloads_of(bytes(buffer), [Train(0, 100, 5, 1000)])]
    runs = headers(version).frames(memoryview(buffer), [Train(0, 100, 5, 1000)], itertools.count())
    buffer[:] = bytes(len(buffer))
    assert frames_of(runs) == wanted


@versions
def test_single_is_the_same_as_a_train_of_one(version: int) -> None:
    for size in (0, 1, 64, 1401, 60_000):
        assert frames_of([headers(version).single(memoryview(NOISE)[:size])]) == [by_scapy(version, NOISE[:size])]


@versions
def test_mac_addresses_and_ends_are_the_flows(version: int) -> None:
    frame = Ether(framed(version, b"x", [Train(0, 1)])[0])
    seen = frame[IP] if version == 4 else frame[IPv6]
    assert (frame.src, frame.dst) == (HOST_MAC.hex(":"), GUEST_MAC.hex(":"))
    assert (seen.src, seen.dst) == PAIRS[version]
    assert (seen[UDP].sport, seen[UDP].dport) == PORTS
    assert headers(version).guest_mac == GUEST_MAC


# -- checksums that come out as zero -----------------------------------------------------------------------------------


def with_sum_of_zero(version: int, size: int) -> bytes:
    """A payload for which the checksum's field would be zero."""
    payload = bytearray(random.Random(size).randbytes(size))
    payload[:2] = bytes(2)
    field = by_itself(version, bytes(payload))[place_of_checksum(version)]
    payload[:2] = field  # now all words add up to 0xFFFF, whose complement is zero
    return bytes(payload)


@versions
@pytest.mark.parametrize("size", [2, 3, 64, 1000, 1401, COPY_BELOW_BYTES, COPY_BELOW_BYTES + 1])
def test_checksum_of_zero_is_sent_as_all_ones(version: int, size: int) -> None:
    """RFC 768; zero would say that there is none, which over IPv6 is not allowed (RFC 8200 section 8.1)."""
    odd_one_out = with_sum_of_zero(version, size)
    buffer = NOISE[:size] + odd_one_out + NOISE[size : 2 * size]
    for train, index in ((Train(size, size), 0), (Train(0, size, 3, size), 1)):
        frames = framed(version, buffer, [train])
        assert frames[index][place_of_checksum(version)] == b"\xff\xff"
        assert frames == [by_scapy(version, payload) for payload in payloads_of(buffer, [train])]


@versions
@pytest.mark.parametrize("size", [COPY_BELOW_BYTES - 1, COPY_BELOW_BYTES])
def test_payload_of_nothing_but_ones(version: int, size: int) -> None:
    """The largest sums there are."""
    payload = b"\xff" * size
    assert framed(version, payload * 8, [Train(0, size, 8, size)]) == [by_scapy(version, payload)] * 8


@versions
def test_checksum_of_zero_in_fragments(version: int) -> None:
    payload = with_sum_of_zero(version, 3000)
    frames = framed(version, payload, [Train(0, 3000)], 1500)
    assert frames[0][0 if version == 4 else 8 :][place_of_checksum(version)] == b"\xff\xff"
    assert put_together(frames).payload == payload


# -- beyond the MTU ----------------------------------------------------------------------------------------------------


def put_together(frames: list[bytes]) -> SeenUdp:
    """The datagram of these fragments, by scapy, which has found them complete, in order, and with a right checksum."""
    fragments = [see(frame, GUEST_MAC.hex(":")) for frame in frames]
    datagram = whole([fragment for fragment in fragments if isinstance(fragment, SeenFragment)], GUEST_MAC.hex(":"))
    assert isinstance(datagram, SeenUdp)
    return datagram


@versions
@pytest.mark.parametrize("mtu_bytes", [1280, 1500, 9000])
@pytest.mark.parametrize("beyond", [1, 2, 7, 8, 9, 1233, 20_000])
def test_datagram_beyond_the_mtu_is_cut(version: int, mtu_bytes: int, beyond: int) -> None:
    size = mtu_bytes - HEADERS_BYTES[version] + beyond
    frames = framed(version, NOISE, [Train(1, size)], mtu_bytes)
    assert max(map(len, frames)) <= 14 + mtu_bytes
    assert len(frames) > 1
    assert put_together(frames) == SeenUdp(*PAIRS[version], *PORTS, NOISE[1 : 1 + size])


@versions
def test_largest_that_is_not_cut(version: int) -> None:
    made = headers(version, 1500)
    assert made.largest_bytes == 1500 - HEADERS_BYTES[version]
    size = made.largest_bytes
    assert framed(version, NOISE, [Train(0, size, 2, size)], 1500) == [
        by_scapy(version, NOISE[:size]),
        by_scapy(version, NOISE[size : 2 * size]),
    ]
    assert len(framed(version, NOISE, [Train(0, size + 1)], 1500)) == 2


@versions
def test_largest_datagram_there_is(version: int) -> None:
    size = 65535 - 8 - (20 if version == 4 else 0)
    assert put_together(framed(version, NOISE, [Train(0, size)], 1500)).payload == NOISE[:size]


@versions
def test_each_datagram_takes_one_number(version: int) -> None:
    """In order, and only what is cut takes one."""
    numbers = iter(range(0xABCDEF12, 0xABCDEF20))
    buffer = memoryview(NOISE)
    trains = [Train(0, 2000, 3, 2000), Train(0, 100, 2, 100), Train(0, 3000)]
    frames = frames_of(headers(version, 1500).frames(buffer, trains, numbers))
    packets = [Ether(frame).payload for frame in frames]
    seen = [
        packet[IPv6ExtHdrFragment].id if version == 6 else packet.id
        for packet in packets
        if (IPv6ExtHdrFragment in packet if version == 6 else packet.flags.MF or packet.frag)
    ]
    mask = 0xFFFF if version == 4 else 0xFFFFFFFF
    assert seen == [(0xABCDEF12 + number) & mask for number in (0, 0, 1, 1, 2, 2, 3, 3, 3)]
    assert next(numbers) == 0xABCDEF16
    assert frames[6:8] == [by_scapy(version, NOISE[at : at + 100]) for at in (0, 100)]


# -- what a full link leaves -------------------------------------------------------------------------------------------


KINDS = {
    "blocks": [Train(0, 60, 7, 64), Train(9, 61, 3, 64)],
    "views": [Train(0, 5000, 4, 5001), Train(0, 9)],
    "cut": [Train(0, 0), Train(0, 30_000, 2, 30_000)],
}


@versions
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_all_but_the_first_ones(version: int, kind: str) -> None:
    runs = headers(version, 9000).frames(memoryview(NOISE), KINDS[kind], itertools.count())
    frames = frames_of(runs)
    for taken in range(len(frames) + 1):
        assert frames_of(framing.remaining(runs, taken)) == frames[taken:]
    assert framing.remaining(runs, len(frames)) == []


def test_what_is_left_may_be_kept() -> None:
    """It is a copy, whatever becomes of the buffer."""
    buffer = bytearray(NOISE[:100_000])
    runs = headers(4).frames(memoryview(buffer), [Train(0, 5000, 4, 5000), Train(0, 50, 3, 50)], itertools.count())
    frames = frames_of(runs)
    left = framing.remaining(runs, 2)
    buffer[:] = bytes(len(buffer))
    assert frames_of(left) == frames[2:]
