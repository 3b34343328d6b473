"""Joined segments, against the frame-by-frame path: every run must be exactly what its frames say one by one."""

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.wire import checksum, ethernet, framing, ipv4, ipv6, tcp
from trio_passt.wire.coalesce import (
    JOIN_FROM_FRAMES,
    LARGE_FRAME_BYTES,
    LOOK_FROM_FRAMES,
    Item,
    JoinedSegments,
    coalesce,
)
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.frames import FrameBatch, Offload
from trio_passt.wire.ip import IPProtocol, emit_packet
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, TcpOptions, TcpSegment

GUEST_MAC, HOST_MAC = bytes.fromhex("525400000002"), bytes.fromhex("9a559a559a55")
ENDS = {4: (b"\x0a\x00\x00\x02", b"\xc0\x00\x02\x01"), 6: (b"\xfd" + bytes(14) + b"\x02", b"\x20\x01" + bytes(14))}
PATTERN = bytes(range(251)) * 300
TOP = 0xFFFFFFFF


@frozen
class Frame:
    """What a frame is made from; `evolve` makes the next one."""

    version: int = 4
    seq: int = 1
    ack: int = 1
    payload_bytes: int = 0
    window: int = 500
    flags: int = ACK
    source_port: int = 40000
    source_mac: bytes = GUEST_MAC
    hop_limit: int = 64
    identification: int = 0
    tos: int = 0
    urgent: int = 0
    options: TcpOptions = tcp.NO_OPTIONS
    padding: int = 0
    damage: tuple[int, int] | None = None

    def next_data(self) -> "Frame":
        return evolve(
            self, seq=(self.seq + self.payload_bytes) & TOP, identification=(self.identification + 1) & 0xFFFF
        )

    def next_ack(self, step: int) -> "Frame":
        return evolve(self, ack=(self.ack + step) & TOP, identification=(self.identification + 1) & 0xFFFF)

    @property
    def payload(self) -> bytes:
        start = self.seq % 1000
        return PATTERN[start : start + self.payload_bytes]

    def bytes(self) -> bytes:
        source, destination = ENDS[self.version]
        segment = TcpSegment(
            self.source_port, 80, self.seq, self.ack, self.flags, self.window, self.payload, self.options
        )
        packet = bytearray(tcp.emit(source, destination, segment))
        struct.pack_into("!HH", packet, 16, 0, self.urgent)
        pseudo = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(packet))
        struct.pack_into("!H", packet, 16, checksum.finish(pseudo + checksum.sum_of(packet)))
        if self.version == 4:
            header = ipv4.IPv4Header(
                source,
                destination,
                IPProtocol.TCP,
                self.hop_limit,
                self.identification,
                traffic_class=self.tos,
            )
            whole = ipv4.emit(header, len(packet)) + packet
        else:
            whole = emit_packet(source, destination, IPProtocol.TCP, bytes(packet), self.hop_limit)
        ethertype = EtherType.IPV4 if self.version == 4 else EtherType.IPV6
        frame = ethernet.emit(EthernetHeader(HOST_MAC, self.source_mac, ethertype)) + whole + bytes(self.padding)
        if self.damage is not None:
            place, change = self.damage
            place %= len(frame)
            frame = frame[:place] + bytes([frame[place] ^ change]) + frame[place + 1 :]
        return frame


def one_by_one(frame: bytes | memoryview) -> tuple[EthernetHeader, bytes, bytes, TcpSegment]:
    """The frame-by-frame path."""
    header, packet = ethernet.parse(frame)
    if header.ethertype == EtherType.IPV4:
        ip_header, payload = ipv4.parse(packet)
        assert not ip_header.is_fragment
        assert ip_header.protocol == IPProtocol.TCP
        return (
            header,
            ip_header.source,
            ip_header.destination,
            tcp.parse(ip_header.source, ip_header.destination, payload),
        )
    assert header.ethertype == EtherType.IPV6
    assert packet[6] == IPProtocol.TCP, "no extension headers"
    ip6_header, payload = ipv6.parse(packet)[:2]
    return (
        header,
        ip6_header.source,
        ip6_header.destination,
        tcp.parse(ip6_header.source, ip6_header.destination, payload),
    )


def check_run(run: JoinedSegments, frames: list[bytes]) -> None:
    parsed = [one_by_one(frame) for frame in frames]
    assert {(run.ethernet, run.source, run.destination)} == {part[:3] for part in parsed}
    segments = [part[3] for part in parsed]
    first, last = segments[0], segments[-1]
    joined = run.segment
    assert (joined.seq, joined.ack, joined.window) == (first.seq, last.ack, last.window)
    assert {(joined.source_port, joined.destination_port)} == {
        (segment.source_port, segment.destination_port) for segment in segments
    }
    assert all(segment.flags in (ACK, ACK | PSH) for segment in segments)
    assert joined.flags == ACK | PSH * any(segment.flags & PSH for segment in segments)
    assert joined.payload == b"".join(segment.payload for segment in segments)
    assert len({len(segment.payload) for segment in segments}) == 1
    position = first.seq
    for segment in segments:
        assert segment.seq == position
        position = (position + len(segment.payload)) & TOP
    if joined.payload:
        assert run.duplicates == 0
        assert len({(segment.ack, segment.window) for segment in segments}) == 1
    else:
        check_acknowledgements(run, [(segment.ack, segment.window) for segment in segments])


def check_acknowledgements(run: JoinedSegments, seen: list[tuple[int, int]]) -> None:
    """First those that make progress, or change the window, then duplicates of the last one of these."""
    progress = len(seen) - run.duplicates
    assert progress >= 1
    for before, after in pairwise(seen[:progress]):
        assert after != before
        assert (after[0] - before[0]) & TOP < 1 << 31
    assert all(again == seen[progress - 1] for again in seen[progress:])


def check(frames: list[bytes]) -> list[Item]:
    """`coalesce` of these frames, after it was compared with the frame-by-frame path."""
    items = coalesce(framing.join(frames))
    position = 0
    for item in items:
        if isinstance(item, JoinedSegments):
            assert item.frames >= JOIN_FROM_FRAMES
            check_run(item, frames[position : position + item.frames])
            position += item.frames
        else:
            assert item == frames[position]
            position += 1
    assert position == len(frames)
    return items


def shape(items: list[Item]) -> list[int]:
    """How many frames each item stands for."""
    return [item.frames if isinstance(item, JoinedSegments) else 1 for item in items]


def stream_of(count: int, first: Frame, following: Callable[[Frame], Frame] = Frame.next_data) -> list[Frame]:
    frames = [first]
    while len(frames) < count:
        frames.append(following(frames[-1]))
    return frames


def as_bytes(frames: list[Frame]) -> list[bytes]:
    return [frame.bytes() for frame in frames]


versions = pytest.mark.parametrize("version", [4, 6])


@versions
@pytest.mark.parametrize("payload_bytes", [1, 2, 3, 1448, 1459, 1460, 8960])
def test_data_becomes_one_segment(version: int, payload_bytes: int) -> None:
    frames = stream_of(40, Frame(version, payload_bytes=payload_bytes, seq=TOP - 5000))
    frames[17] = evolve(frames[17], flags=ACK | PSH)
    (run,) = check(as_bytes(frames))
    assert isinstance(run, JoinedSegments)
    assert run.segment.payload == b"".join(frame.payload for frame in frames)
    assert run.segment.flags == ACK | PSH
    assert run.ethernet.source == GUEST_MAC
    assert (run.source, run.destination) == ENDS[version]


@versions
def test_acknowledgements_become_one(version: int) -> None:
    frames = stream_of(40, Frame(version, ack=TOP - 20_000), lambda frame: frame.next_ack(2896))
    frames = [evolve(frame, window=500 + number % 7) for number, frame in enumerate(frames)]
    (run,) = check(as_bytes(frames))
    assert isinstance(run, JoinedSegments)
    assert (run.segment.ack, run.segment.window) == (frames[-1].ack, frames[-1].window)
    assert run.duplicates == 0


def test_duplicates_are_counted_where_they_come() -> None:
    """Progress, three duplicates, progress again: the duplicates must have been processed by then."""
    steps = [100, 100, 0, 0, 0, 100, 100, 100, 0, 0, 0, 0]
    frames = [Frame()]
    for step in steps:
        frames.append(frames[-1].next_ack(step))
    items = check(as_bytes(frames))
    assert shape(items) == [6, 7]
    assert [(item.segment.ack, item.duplicates) for item in items if isinstance(item, JoinedSegments)] == [
        (201, 3),
        (501, 4),
    ]


def test_only_duplicates() -> None:
    (run,) = check(as_bytes([Frame()] * 10))
    assert isinstance(run, JoinedSegments)
    assert run.duplicates == 9


def test_window_updates_are_no_duplicates() -> None:
    (run,) = check(as_bytes([Frame(window=window) for window in range(20)]))
    assert isinstance(run, JoinedSegments)
    assert (run.segment.window, run.duplicates) == (19, 0)


def test_padded_frames() -> None:
    """Some network cards' drivers pad short frames to 60 bytes."""
    acks = stream_of(10, Frame(padding=6), lambda frame: frame.next_ack(100))
    data = stream_of(10, Frame(payload_bytes=3, padding=3, source_port=2))
    assert shape(check(as_bytes(acks + data))) == [10, 10]


def test_both_versions_in_one_batch() -> None:
    frames = [*stream_of(20, Frame(4, payload_bytes=1000)), *stream_of(20, Frame(6, payload_bytes=1000))]
    assert shape(check(as_bytes(frames))) == [20, 20]


def test_small_batches_and_short_runs_stay_frames() -> None:
    for count in range(LOOK_FROM_FRAMES):
        assert shape(check(as_bytes(stream_of(count or 1, Frame(payload_bytes=9))))) == [1] * (count or 1)
    pairs = [frame for port in range(20) for frame in stream_of(2, Frame(payload_bytes=9, source_port=port))]
    assert shape(check(as_bytes(pairs))) == [1] * 40
    assert coalesce(FrameBatch(b"", [])) == []


def test_large_frames_stay_frames() -> None:
    """To copy their payloads into one would cost more than to parse them."""
    assert (
        shape(check(as_bytes(stream_of(LOOK_FROM_FRAMES, Frame(payload_bytes=LARGE_FRAME_BYTES)))))
        == [1] * LOOK_FROM_FRAMES
    )


CHANGES: dict[str, Callable[[Frame], Frame]] = {
    "SYN": lambda frame: evolve(frame, flags=SYN | ACK),
    "FIN": lambda frame: evolve(frame, flags=FIN | ACK),
    "RST": lambda frame: evolve(frame, flags=RST | ACK),
    "URG": lambda frame: evolve(frame, flags=URG | ACK),
    "no ACK": lambda frame: evolve(frame, flags=PSH),
    "ECE": lambda frame: evolve(frame, flags=ACK | 0x40),
    "urgent pointer": lambda frame: evolve(frame, urgent=5),
    "TCP options": lambda frame: evolve(frame, options=TcpOptions(mss=1460)),
    "other port": lambda frame: evolve(frame, source_port=1),
    "other MAC address": lambda frame: evolve(frame, source_mac=b"\x02" * 6),
    "TTL": lambda frame: evolve(frame, hop_limit=63),
    "gap": lambda frame: evolve(frame, seq=frame.seq + 1),
    "overlap": lambda frame: evolve(frame, seq=frame.seq - 1),
    "acknowledgement goes back": lambda frame: evolve(frame, ack=frame.ack - 1_000_000),
    "acknowledgement very far ahead": lambda frame: evolve(frame, ack=(frame.ack + (1 << 31)) & TOP),
    "EtherType": lambda frame: evolve(frame, damage=(13, 1)),
}
CHANGES_IPV4 = {
    "TOS": lambda frame: evolve(frame, tos=8),
    "IP header checksum": lambda frame: evolve(frame, damage=(24, 0x40)),
    "IP identification without checksum": lambda frame: evolve(frame, damage=(18, 0x40)),
}


@pytest.mark.parametrize(
    ("version", "change"),
    [
        *(
            pytest.param(version, change, id=f"{name}, {version}")
            for version in (4, 6)
            for name, change in CHANGES.items()
        ),
        *(pytest.param(4, change, id=name) for name, change in CHANGES_IPV4.items()),
    ],
)
@pytest.mark.parametrize("kind", ["data", "acknowledgements"])
def test_a_frame_that_is_different_is_left_alone(kind: str, version: int, change: Callable[[Frame], Frame]) -> None:
    if kind == "data":
        frames = stream_of(20, Frame(version, payload_bytes=1000, ack=5_000_000, seq=77))
    else:
        frames = stream_of(20, Frame(version, ack=5_000_000, seq=77), lambda frame: frame.next_ack(1000))
    frames[10] = change(frames[10])
    raw = as_bytes(frames)
    items = coalesce(framing.join(raw))
    assert shape(items) in ([10, 1, 9], [10, 10])
    single = [item for item in items if not isinstance(item, JoinedSegments)]
    assert single == [raw[10]] or kind == "acknowledgements"
    for item, start in zip(items, (0, 10, 11), strict=False):
        if isinstance(item, JoinedSegments):
            check_run(item, raw[start : start + item.frames])


@versions
def test_fragments_are_left_alone(version: int) -> None:
    frames = as_bytes(stream_of(20, Frame(version, payload_bytes=1000)))
    if version == 4:
        for flags in (0x2000, 0x0001):
            header, packet = frames[10][:14], frames[10][14:]
            ip_header = evolve(ipv4.parse(packet)[0], more_fragments=flags == 0x2000, fragment_offset=(flags & 1) * 8)
            frames[10] = header + ipv4.emit(ip_header, len(packet) - 20) + packet[20:]
            assert shape(coalesce(framing.join(frames))) == [10, 1, 9]
    else:
        packet = frames[10][14:]
        fragment = bytes([IPProtocol.TCP, 0, 0, 1, 0, 0, 0, 1])
        frames[10] = frames[10][:14] + packet[:4] + struct.pack("!HB", 1028, 44) + packet[7:40] + fragment + packet[40:]
        assert shape(coalesce(framing.join(frames))) == [10, 1, 9]


def test_a_run_of_nothing_but_fragments_is_left_alone() -> None:
    frames = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    for number, frame in enumerate(frames):
        ip_header = evolve(ipv4.parse(frame[14:])[0], more_fragments=True)
        frames[number] = frame[:14] + ipv4.emit(ip_header, len(frame) - 34) + frame[34:]
    assert shape(coalesce(framing.join(frames))) == [1] * 20


def test_ip_options_are_left_alone() -> None:
    frames = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    packet = bytearray(frames[10][14:34] + b"\x01\x01\x01\x00" + frames[10][34:])
    packet[0] = 0x46
    struct.pack_into("!H", packet, 2, len(packet))
    struct.pack_into("!H", packet, 10, 0)
    struct.pack_into("!H", packet, 10, checksum.checksum(packet[:24]))
    frames[10] = frames[10][:14] + packet
    assert shape(check(frames)) == [10, 1, 9]


@versions
def test_data_with_a_wrong_checksum_takes_the_run_with_it(version: int) -> None:
    frames = stream_of(20, Frame(version, payload_bytes=1000))
    frames[10] = evolve(frames[10], damage=(500, 1))
    items = check(as_bytes([*frames, *stream_of(20, Frame(version, payload_bytes=100, source_port=7))]))
    assert shape(items) == [1] * 20 + [20]


@versions
def test_acknowledgement_with_a_wrong_checksum(version: int) -> None:
    frames = stream_of(20, Frame(version), lambda frame: frame.next_ack(1000))
    frames[10] = evolve(frames[10], damage=(-1, 1))
    assert shape(check(as_bytes(frames))) == [10, 1, 9]


def test_length_that_the_frame_does_not_have() -> None:
    frames = as_bytes(stream_of(20, Frame(6, payload_bytes=1000)))
    frames[10] = frames[10][:-1]
    assert shape(check(frames)) == [10, 1, 9]


@versions
def test_unfinished_checksums_are_trusted(version: int) -> None:
    """As a tap with a vnet header gives them; a frame still to be segmented is not joined."""
    frames = stream_of(20, Frame(version, payload_bytes=1000))
    acks = stream_of(20, Frame(version, source_port=7), lambda frame: frame.next_ack(1000))
    raw = as_bytes([*frames, *acks])
    tcp_at = 34 if version == 4 else 54
    offload = Offload(tcp_at, 16)
    unfinished = [frame[: tcp_at + 16] + b"\x12\x34" + frame[tcp_at + 18 :] for frame in raw]
    items = coalesce(framing.join(unfinished, [offload] * 40))
    assert shape(items) == [20, 20]
    check_run(items[0], raw[:20])
    check_run(items[1], raw[20:])
    mixed = [*unfinished[:15], *raw[15:25], *unfinished[25:]]
    offloads = [offload] * 15 + [None] * 10 + [offload] * 15
    assert shape(coalesce(framing.join(mixed, offloads))) == [20, 20]
    assert shape(coalesce(framing.join(unfinished, [None] * 40))) == [1] * 40
    offloads[3] = Offload(tcp_at, 16, tcp_at + 20, 400)
    assert shape(coalesce(framing.join(mixed, offloads))) == [3, 1, 16, 20]


def test_frames_without_room_before_them() -> None:
    """A link without prefixes: the first frame starts where the data does."""
    frames = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    bounds = [(1054 * number, 1054 * (number + 1)) for number in range(20)]
    assert shape(coalesce(FrameBatch(b"".join(frames), bounds))) == [20]


def test_joined_payload_is_read_only() -> None:
    (run,) = check(as_bytes(stream_of(20, Frame(payload_bytes=1000))))
    assert isinstance(run, JoinedSegments)
    assert memoryview(run.segment.payload).readonly
    assert memoryview(run.segment.payload).format == "B"


STEPS: dict[str, Callable[[Frame, int], Frame]] = {
    "data": lambda frame, value: frame.next_data(),
    "acknowledgement": lambda frame, value: frame.next_ack(value),
    "the same again": lambda frame, value: frame,
    "length": lambda frame, value: evolve(frame.next_data(), payload_bytes=value % 4),
    "pure": lambda frame, value: evolve(frame.next_data(), payload_bytes=0),
    "window": lambda frame, value: evolve(frame, window=value & 0xFFFF),
    "gap": lambda frame, value: evolve(frame, seq=(frame.seq + value) & TOP),
    "back": lambda frame, value: evolve(frame, ack=(frame.ack - value) & TOP),
    "flow": lambda frame, value: evolve(frame, source_port=40000 + value % 2),
    "version": lambda frame, value: evolve(frame, version=4 + value % 2 * 2),
    "push": lambda frame, value: evolve(frame, flags=frame.flags ^ PSH),
    "flags": lambda frame, value: evolve(frame, flags=ACK | value & 0x3F),
    "no flags": lambda frame, value: evolve(frame, flags=ACK),
    "padding": lambda frame, value: evolve(frame, padding=value % 3),
}

scripts = st.lists(
    st.tuples(
        st.sampled_from([*STEPS, "data", "data", "acknowledgement", "acknowledgement"]),
        st.integers(0, 3000),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=14,
)


@given(scripts, st.integers(0, TOP), st.integers(0, TOP), st.integers(0, 5))
@settings(deadline=None)
def test_any_traffic_is_as_frame_by_frame(
    script: list[tuple[str, int, int]], seq: int, ack: int, payload_bytes: int
) -> None:
    frames = [Frame(seq=seq, ack=ack, payload_bytes=payload_bytes)]
    for name, value, times in script:
        for _ in range(times):
            frames.append(STEPS[name](frames[-1], value))
    check(as_bytes(frames))


@given(st.sampled_from([4, 6]), st.integers(0, 7), st.integers(0, 39), st.integers(0, 90), st.integers(1, 255))
@settings(deadline=None)
def test_any_damaged_byte_is_as_frame_by_frame(
    version: int, payload_bytes: int, number: int, place: int, change: int
) -> None:
    """A damaged frame is only in a run if it is right by itself and says what its neighbours say."""
    following = Frame.next_data if payload_bytes else lambda frame: frame.next_ack(10)
    frames = stream_of(40, Frame(version, payload_bytes=payload_bytes), following)
    frames[number] = evolve(frames[number], damage=(place, change))
    check(as_bytes(frames))


@given(st.lists(st.binary(max_size=120), min_size=LOOK_FROM_FRAMES, max_size=20))
def test_any_bytes(frames: list[bytes]) -> None:
    assert coalesce(framing.join(frames)) == frames


@given(st.lists(st.integers(0, 74), min_size=LOOK_FROM_FRAMES, max_size=20), st.sampled_from([4, 6]))
def test_cut_off_frames(lengths: list[int], version: int) -> None:
    whole = Frame(version).bytes()
    frames = [whole[:length] for length in lengths]
    for item in coalesce(framing.join([*frames, whole])):
        if isinstance(item, JoinedSegments):
            assert item.frames <= 1 + sum(length >= len(whole) for length in lengths)


def test_the_oracle_sees_wrong_checksums() -> None:
    with pytest.raises(MalformedPacket):
        one_by_one(Frame(payload_bytes=10, damage=(-1, 1)).bytes())
