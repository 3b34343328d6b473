"""Joined segments, against the frame-by-frame path: every run must be exactly what its frames say one by one.

`check` does it for both ways of joining, whatever the frames are; the tests say what should have become of them, too.
"""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from attrs import evolve
from coalesce_checks import (
    ENDS,
    GUEST_MAC,
    HOST_MAC,
    TOP,
    Check,
    Frame,
    acks_of,
    as_bytes,
    both_ways,
    check_both,
    check_bulk,
    check_items,
    check_one_by_one,
    dealt,
    one_by_one,
    payload_of,
    shape,
    shuffled,
    stream_of,
    versions,
    with_header_sum,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.wire import bulk, checksum, coalesce, columns, ethernet, framing, ipv4, tcp, udp
from trio_passt.wire.coalesce import BULK_FROM_FRAMES, Item, JoinedSegments
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EthernetHeader, EtherType
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.ip import IPProtocol, emit_packet
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, TcpOptions

# -- what becomes of one connection ------------------------------------------------------------------------------------


@both_ways
@versions
@pytest.mark.parametrize("payload_bytes", [1, 2, 3, 1448, 1459, 1460, 8960])
def test_data_becomes_one_segment(check: Check, version: int, payload_bytes: int) -> None:
    frames = stream_of(40, Frame(version, payload_bytes=payload_bytes, seq=TOP - 5000))
    frames[17] = evolve(frames[17], flags=ACK | PSH)
    ((run, _),) = check(as_bytes(frames))
    assert isinstance(run, JoinedSegments)
    assert payload_of(run) == b"".join(frame.payload for frame in frames)
    assert run.segment.flags == ACK | PSH
    assert run.mac == GUEST_MAC
    assert run.ends == (ENDS[version][0], 40000, ENDS[version][1], 80)


@both_ways
@versions
def test_acknowledgements_become_one(check: Check, version: int) -> None:
    frames = acks_of(40, Frame(version, ack=TOP - 20_000))
    frames = [evolve(frame, window=500 + number % 7) for number, frame in enumerate(frames)]
    ((run, _),) = check(as_bytes(frames))
    assert isinstance(run, JoinedSegments)
    assert (run.segment.ack, run.segment.window) == (frames[-1].ack, frames[-1].window)
    assert run.duplicates == 0


@both_ways
def test_duplicates_are_counted_where_they_come(check: Check) -> None:
    """Progress, three duplicates, progress again: the duplicates must have been processed by then."""
    steps = [100, 100, 0, 0, 0, 100, 100, 100, 0, 0, 0, 0]
    frames = [Frame()]
    for step in steps:
        frames.append(frames[-1].next_ack(step))
    found = check(as_bytes(frames))
    assert shape(found) == [6, 7]
    assert [(item.segment.ack, item.duplicates) for item, _ in found if isinstance(item, JoinedSegments)] == [
        (201, 3),
        (501, 4),
    ]


@both_ways
def test_only_duplicates(check: Check) -> None:
    ((run, _),) = check(as_bytes([Frame()] * 10))
    assert isinstance(run, JoinedSegments)
    assert run.duplicates == 9


@both_ways
def test_window_updates_are_no_duplicates(check: Check) -> None:
    ((run, _),) = check(as_bytes([Frame(window=window) for window in range(20)]))
    assert isinstance(run, JoinedSegments)
    assert (run.segment.window, run.duplicates) == (19, 0)


@both_ways
def test_an_acknowledgement_amid_data_is_no_part_of_it(check: Check) -> None:
    """It has the numbers that go on, but to a sender that waits it is a duplicate."""
    data = stream_of(20, Frame(payload_bytes=6))
    pure = evolve(data[10], payload_bytes=0, padding=6)
    assert shape(check(as_bytes([*data[:10], pure, *data[10:]]))) == [10, 1, 10]


@both_ways
def test_frames_of_different_lengths(check: Check) -> None:
    sizes = [1460] * 9 + [700] + [1460] * 8 + [1, 3000, 8960, 2, 1460, 1461]
    frames = [Frame(payload_bytes=sizes[0])]
    for size in sizes[1:]:
        frames.append(evolve(frames[-1].next_data(), payload_bytes=size))
    assert shape(check(as_bytes(frames))) == [len(sizes)]


@both_ways
def test_padded_frames(check: Check) -> None:
    """Some network cards' drivers pad short frames to 60 bytes."""
    acks = acks_of(10, Frame(padding=6))
    data = stream_of(10, Frame(payload_bytes=3, padding=3, source_port=2))
    assert shape(check(as_bytes(acks + data))) == [10, 10]
    assert shape(check(dealt(as_bytes(acks), as_bytes(data)))) == [10, 10]


@both_ways
def test_padding_does_not_count(check: Check) -> None:
    frames = as_bytes(acks_of(20, Frame(padding=6)))
    assert shape(check([frame[:-6] + bytes([number] * 6) for number, frame in enumerate(frames)])) == [20]


@both_ways
def test_other_padding_is_left_alone_or_skipped(check: Check) -> None:
    found = check(as_bytes(stream_of(20, Frame(payload_bytes=1000, padding=2))))
    assert shape(found) in ([20], [0] * 20)


def test_few_frames_are_joined_too() -> None:
    for count in range(2, BULK_FROM_FRAMES + 2):
        frames = as_bytes(stream_of(count, Frame(payload_bytes=900)))
        assert shape(check_items(coalesce.coalesce(framing.join(frames)), frames)) == [count]
    frame = Frame(payload_bytes=900).bytes()
    assert coalesce.coalesce(framing.join([frame])) == [frame]
    assert coalesce.coalesce(FrameBatch(b"", [])) == []


@pytest.mark.parametrize("payload_bytes", [0, 1460])
@pytest.mark.parametrize("count", [2, 8, 17, 18, 30, 43, 44, 100])
def test_either_way_at_any_count(count: int, payload_bytes: int) -> None:
    stream = stream_of if payload_bytes else acks_of
    streams = [as_bytes(stream(count, Frame(payload_bytes=payload_bytes, source_port=port))) for port in (1, 2)]
    frames = dealt(*streams)[:count]
    assert shape(check_items(coalesce.coalesce(framing.join(frames)), frames)) == [(count + 1) // 2, count // 2]


# -- payloads ----------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("payload_bytes", [1000, 8960])
def test_payload_is_read_only(check: Check, payload_bytes: int) -> None:
    ((run, _),) = check(as_bytes(stream_of(20, Frame(payload_bytes=payload_bytes))))
    assert isinstance(run, JoinedSegments)
    for piece in (run.segment.payload, *run.segment.more):
        assert memoryview(piece).readonly
        assert memoryview(piece).format == "B"


@pytest.mark.parametrize("payload_bytes", [1, 1448, 8948])
def test_payloads_are_passed_on_where_they_lie(payload_bytes: int) -> None:
    batch = framing.join(as_bytes(stream_of(20, Frame(payload_bytes=payload_bytes))))
    (run,) = bulk.join(batch)
    assert isinstance(run, JoinedSegments)
    all_pieces = [memoryview(piece) for piece in (run.segment.payload, *run.segment.more)]
    assert [len(piece) for piece in all_pieces] == [payload_bytes] * 20
    assert all(piece.obj is batch.data for piece in all_pieces)


@pytest.mark.parametrize("join", [coalesce.coalesce, bulk.join])
@pytest.mark.parametrize("count", [10, 60])
def test_memory_that_can_be_written_to(join: Callable[[FrameBatch], list[Item]], count: int) -> None:
    """A link that uses its memory again hands in a `bytearray`, or a view of it."""
    frames = as_bytes(stream_of(count, Frame(payload_bytes=1000)))
    batch = framing.join(frames)
    for memory in (bytearray(batch.data), memoryview(bytearray(batch.data))):
        items = join(FrameBatch(memory, batch.bounds))  # type: ignore[arg-type]
        assert shape(check_items(items, frames)) == [count]


@both_ways
@pytest.mark.parametrize("payload_bytes", [17_000, 65_480])
def test_very_large_frames(check: Check, payload_bytes: int) -> None:
    assert shape(check(as_bytes(stream_of(7, Frame(payload_bytes=payload_bytes))))) == [7]


# -- several connections -----------------------------------------------------------------------------------------------


@both_ways
@versions
@pytest.mark.parametrize("payload_bytes", [0, 5, 1460, 8960])
def test_interleaved_connections_give_one_segment_each(check: Check, version: int, payload_bytes: int) -> None:
    stream = stream_of if payload_bytes else acks_of
    streams = [
        as_bytes(stream(12, Frame(version, payload_bytes=payload_bytes, source_port=port, seq=port * 1000)))
        for port in range(1, 9)
    ]
    assert shape(check(dealt(*streams))) == [12] * 8
    for seed in range(5):
        assert shape(check(shuffled(streams, seed))) == [12] * 8


@both_ways
def test_both_versions_in_one_batch(check: Check) -> None:
    streams = [as_bytes(stream_of(20, Frame(version, payload_bytes=1000))) for version in (4, 6)]
    assert shape(check([*streams[0], *streams[1]])) == [20, 20]
    assert shape(check(dealt(*streams))) == [20, 20]


@both_ways
def test_both_versions_in_frames_of_one_length(check: Check) -> None:
    streams = [as_bytes(stream_of(20, Frame(version, payload_bytes=size))) for version, size in ((4, 1020), (6, 1000))]
    assert len(streams[0][0]) == len(streams[1][0])
    assert shape(check(dealt(*streams))) == [20, 20]


def test_strangers_with_one_hash_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_HASH_FACTORS", np.zeros(9, np.uint64))
    streams = [as_bytes(stream_of(12, Frame(payload_bytes=50, source_port=port))) for port in (1, 2)]
    assert shape(check_bulk(dealt(*streams))) == [1] * 24
    assert shape(check_bulk([*streams[0], *streams[1]])) == [12, 12]


@both_ways
def test_what_is_not_joined_keeps_its_place_in_the_connection(check: Check) -> None:
    ours = as_bytes(stream_of(20, Frame(payload_bytes=100)))
    ours[10] = Frame(payload_bytes=100, seq=1001, flags=FIN | ACK).bytes()
    others = as_bytes(stream_of(20, Frame(payload_bytes=100, source_port=7)))
    found = [(item, indices) for item, indices in check(dealt(ours, others)) if indices[0] % 2 == 0]
    assert [indices[0] for _, indices in found] == [0, 20, 22]
    assert shape(found) in ([10, 1, 9], [10, 0, 9])


@both_ways
@pytest.mark.parametrize("payload_bytes", [0, 100])
def test_nothing_goes_on_with_a_fin(check: Check, payload_bytes: int) -> None:
    """Whatever number comes after it: the FIN's own again, as if it occupied none, or the next one."""
    frames = stream_of(20, Frame(payload_bytes=payload_bytes))
    frames[10] = evolve(frames[10], flags=FIN | ACK)
    for step in (0, 1):
        after = [evolve(frame, seq=frame.seq + step) for frame in frames[11:]]
        assert shape(check(as_bytes(frames[:11] + after))) in ([10, 1, 9], [10, 0, 9])


def udp_frame(number: int, size: int, port: int = 40000) -> bytes:
    source, destination = ENDS[4]
    datagram = udp.emit(source, destination, udp.UdpHeader(port, 80), bytes([number]) * (size - 42))
    packet = emit_packet(source, destination, IPProtocol.UDP, datagram)
    return ethernet.emit(EthernetHeader(HOST_MAC, GUEST_MAC, EtherType.IPV4)) + packet


@both_ways
def test_datagrams_among_segments_do_not_end_a_run(check: Check) -> None:
    data = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    datagrams = [udp_frame(number, 1054, port=40001) for number in range(20)]
    assert shape(check(dealt(data, datagrams))) == [20, 20]


def test_datagrams_with_the_ports_of_the_connection() -> None:
    """In bulk, they come between its segments, which are not joined then."""
    data = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    same_ports = [udp_frame(number, 1054) for number in range(20)]
    assert shape(check_bulk(dealt(data, same_ports))) == [1, 20, *([1] * 19)]
    assert shape(check_one_by_one(dealt(data, same_ports))) == [20, 20]


@both_ways
@versions
def test_no_run_goes_on_across_a_frame_that_hides_its_ports(check: Check, version: int) -> None:
    """Whose it is can't be seen where ports usually are: it may be an acknowledgement that comes between these."""
    frames = as_bytes(acks_of(20, Frame(version)))
    if version == 4:
        packet = frames[10][14:34] + b"\x01\x01\x01\x00" + frames[10][34:]
        frames[10] = frames[10][:14] + with_header_sum(b"\x46" + packet[1:2] + struct.pack("!H", 44) + packet[4:])
    else:
        packet = frames[10][14:]
        options = bytes([IPProtocol.TCP, 0, 1, 4, 0, 0, 0, 0])
        frames[10] = frames[10][:14] + packet[:4] + struct.pack("!HB", 28, 0) + packet[7:40] + options + packet[40:]
    assert shape(check(frames)) == [10, 0, 9]


# -- frames that are different -----------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Frame], Frame]] = {
    "SYN": lambda frame: evolve(frame, flags=SYN | ACK),
    "RST": lambda frame: evolve(frame, flags=RST | ACK),
    "URG": lambda frame: evolve(frame, flags=URG | ACK),
    "no ACK": lambda frame: evolve(frame, flags=PSH),
    "ECE": lambda frame: evolve(frame, flags=ACK | 0x40),
    "TCP options": lambda frame: evolve(frame, options=TcpOptions(mss=1460)),
    "EtherType": lambda frame: evolve(frame, damage=(13, 1)),
    "checksum": lambda frame: evolve(frame, damage=(-1, 1)),
}
CHANGES_IPV4: dict[str, Callable[[Frame], Frame]] = {
    "IP header checksum": lambda frame: evolve(frame, damage=(24, 0x40)),
    "IP identification without checksum": lambda frame: evolve(frame, damage=(18, 0x40)),
}
CHANGES_BY_ITSELF: dict[str, Callable[[Frame], Frame]] = {
    "other port": lambda frame: evolve(frame, source_port=1),
    "other MAC address": lambda frame: evolve(frame, source_mac=b"\x02" * 6),
    "gap": lambda frame: evolve(frame, seq=frame.seq + 1),
    "overlap": lambda frame: evolve(frame, seq=frame.seq - 1),
    "acknowledgement goes back": lambda frame: evolve(frame, ack=frame.ack - 1_000_000),
    "acknowledgement very far ahead": lambda frame: evolve(frame, ack=(frame.ack + (1 << 31)) & TOP),
}
CHANGES_THAT_MEAN_NOTHING: dict[str, Callable[[Frame], Frame]] = {
    "TTL": lambda frame: evolve(frame, hop_limit=63),
    "TOS": lambda frame: evolve(frame, tos=8),
    "urgent pointer without URG": lambda frame: evolve(frame, urgent=5),
    "PSH": lambda frame: evolve(frame, flags=ACK | PSH),
}


def changed(changes: dict[str, Callable[[Frame], Frame]], *in_versions: int) -> pytest.MarkDecorator:
    parameters = [
        pytest.param(version, change, id=f"{name}, {version}")
        for version in in_versions
        for name, change in changes.items()
    ]
    return pytest.mark.parametrize(("version", "change"), parameters)


def twenty_of_which_one_changed(kind: str, version: int, change: Callable[[Frame], Frame]) -> list[bytes]:
    first = Frame(version, payload_bytes=1000 if kind == "data" else 0, ack=5_000_000, seq=77)
    frames = stream_of(20, first) if kind == "data" else acks_of(20, first)
    frames[10] = change(frames[10])
    return as_bytes(frames)


kinds = pytest.mark.parametrize("kind", ["data", "acknowledgements"])


@both_ways
@kinds
@changed(CHANGES | CHANGES_IPV4, 4)
def test_a_frame_that_is_not_plain_is_left_alone(
    check: Check, kind: str, version: int, change: Callable[[Frame], Frame]
) -> None:
    frames = twenty_of_which_one_changed(kind, version, change)
    (left,) = [item for item, indices in check(frames) if indices == [10]]
    assert left == frames[10]


@both_ways
@kinds
@changed(CHANGES, 6)
def test_a_frame_that_is_not_plain_is_left_alone_with_ipv6(
    check: Check, kind: str, version: int, change: Callable[[Frame], Frame]
) -> None:
    frames = twenty_of_which_one_changed(kind, version, change)
    (left,) = [item for item, indices in check(frames) if indices == [10]]
    assert left == frames[10]


@both_ways
@kinds
@changed(CHANGES_BY_ITSELF, 4, 6)
def test_a_frame_that_does_not_go_on_begins_a_run(
    check: Check, kind: str, version: int, change: Callable[[Frame], Frame]
) -> None:
    found = check(twenty_of_which_one_changed(kind, version, change))
    assert [indices[0] for _, indices in found][:2] == [0, 10]
    assert 0 not in shape(found)


@both_ways
@kinds
@changed(CHANGES_THAT_MEAN_NOTHING, 4)
def test_a_change_that_means_nothing_to_a_connection(
    check: Check, kind: str, version: int, change: Callable[[Frame], Frame]
) -> None:
    assert shape(check(twenty_of_which_one_changed(kind, version, change))) == [20]


@both_ways
@versions
def test_fragments_are_left_alone(check: Check, version: int) -> None:
    frames = as_bytes(stream_of(20, Frame(version, payload_bytes=1000)))
    if version == 4:
        for flags in (0x2000, 0x0001):
            header, packet = frames[10][:14], frames[10][14:]
            ip_header = evolve(ipv4.parse(packet)[0], more_fragments=flags == 0x2000, fragment_offset=(flags & 1) * 8)
            frames[10] = header + ipv4.emit(ip_header, len(packet) - 20) + packet[20:]
            assert shape(check(frames)) == [10, 0, 9]
    else:
        packet = frames[10][14:]
        fragment = bytes([IPProtocol.TCP, 0, 0, 1, 0, 0, 0, 1])
        frames[10] = frames[10][:14] + packet[:4] + struct.pack("!HB", 1028, 44) + packet[7:40] + fragment + packet[40:]
        assert shape(check(frames)) == [10, 0, 9]


@both_ways
def test_a_run_of_nothing_but_fragments_is_left_alone(check: Check) -> None:
    frames = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    for number, frame in enumerate(frames):
        ip_header = evolve(ipv4.parse(frame[14:])[0], more_fragments=True)
        frames[number] = frame[:14] + ipv4.emit(ip_header, len(frame) - 34) + frame[34:]
    assert shape(check(frames)) == [0] * 20


@both_ways
def test_ip_options_are_left_alone(check: Check) -> None:
    frames = as_bytes(stream_of(20, Frame(payload_bytes=1000)))
    packet = frames[10][14:34] + b"\x01\x01\x01\x00" + frames[10][34:]
    frames[10] = frames[10][:14] + with_header_sum(b"\x46" + packet[1:2] + struct.pack("!H", len(packet)) + packet[4:])
    assert shape(check(frames)) == [10, 0, 9]


@both_ways
@versions
def test_data_with_a_wrong_checksum(check: Check, version: int) -> None:
    frames = stream_of(20, Frame(version, payload_bytes=1000))
    frames[10] = evolve(frames[10], damage=(500, 1))
    found = check(as_bytes([*frames, *stream_of(20, Frame(version, payload_bytes=100, source_port=7))]))
    assert shape(found) == [10, 0, 9, 20]


@both_ways
def test_errors_that_cancel_out_between_frames(check: Check) -> None:
    """What one has too much the other has too little: a sum over both would be right."""
    frames = [bytearray(frame) for frame in as_bytes(stream_of(20, Frame(payload_bytes=1000)))]
    frames[7][100] += 1
    frames[8][100] -= 1
    assert shape(check([bytes(frame) for frame in frames])) == [7, 0, 0, 11]


@both_ways
def test_length_that_the_frame_does_not_have(check: Check) -> None:
    frames = as_bytes(stream_of(20, Frame(6, payload_bytes=1000)))
    frames[10] = frames[10][:-1]
    assert shape(check(frames)) == [10, 0, 9]


@both_ways
def test_lengths_that_ip_does_not_have(check: Check) -> None:
    frames = as_bytes(stream_of(40, Frame(payload_bytes=1000)))
    for index, length in enumerate((0, 19, 20, 39, 40, 41, 1039, 1041, 65535), 10):
        packet = with_header_sum(frames[index][14:16] + struct.pack("!H", length) + frames[index][18:])
        frames[index] = frames[index][:14] + packet
    assert shape(check(frames)) == [10] + [0] * 9 + [21]


# -- links -------------------------------------------------------------------------------------------------------------


def test_frames_without_room_before_them() -> None:
    """A link without prefixes: the first frame starts where the data does."""
    for frames in (as_bytes(stream_of(20, Frame(payload_bytes=1000))), as_bytes(acks_of(50, Frame()))):
        size = len(frames[0])
        bounds = [(size * number, size * (number + 1)) for number in range(len(frames))]
        items = coalesce.coalesce(FrameBatch(b"".join(frames), bounds))
        assert shape(check_items(items, frames)) == [len(frames)]


@pytest.mark.parametrize("count", [10, 60])
def test_frames_at_any_distances(count: int) -> None:
    frames = as_bytes(stream_of(count, Frame(payload_bytes=1000)))
    for gaps in ([0, 4, 4, 4, 7, 4, 9], [4, 4, 4, 0], [1]):
        data, bounds = b"", []
        for number, frame in enumerate(frames):
            data += bytes(gaps[number % len(gaps)])
            bounds.append((len(data), len(data) + len(frame)))
            data += frame
        assert shape(check_items(coalesce.coalesce(FrameBatch(data, bounds)), frames)) == [count]
        assert shape(check_items(bulk.join(FrameBatch(data, bounds)), frames)) == [count]


# -- anything ----------------------------------------------------------------------------------------------------------

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
    "options": lambda frame, value: evolve(frame, options=TcpOptions(mss=value) if value % 2 else tcp.NO_OPTIONS),
    "padding": lambda frame, value: evolve(frame, padding=value % 3),
    "padded": lambda frame, value: evolve(frame, padding=max(0, 6 - frame.payload_bytes)),
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


def played(script: list[tuple[str, int, int]], first: Frame) -> list[Frame]:
    frames = [first]
    for name, value, times in script:
        for _ in range(times):
            frames.append(STEPS[name](frames[-1], value))
    return frames


@given(scripts, st.integers(0, TOP), st.integers(0, TOP), st.integers(0, 5))
@settings(deadline=None)
def test_any_traffic_is_as_frame_by_frame(
    script: list[tuple[str, int, int]], seq: int, ack: int, payload_bytes: int
) -> None:
    check_both(as_bytes(played(script, Frame(seq=seq, ack=ack, payload_bytes=payload_bytes))))


@given(st.lists(scripts, min_size=2, max_size=4), st.integers(0, 2**32), st.sampled_from([0, 1, 3, 700, 2100]))
@settings(deadline=None)
def test_any_traffic_of_several_connections(
    scripts: list[list[tuple[str, int, int]]], seed: int, payload_bytes: int
) -> None:
    """Each with FINs, options and padding of its own, and with datagrams and broken frames among them."""
    streams = [
        as_bytes(played(script, Frame(payload_bytes=payload_bytes, source_port=40000 + 2 * number, seq=number * 1000)))
        for number, script in enumerate(scripts)
    ]
    streams.append([udp_frame(number, 60) for number in range(6)])
    streams.append([Frame(payload_bytes=payload_bytes, seq=number, damage=(-1, 1)).bytes() for number in range(6)])
    check_both(shuffled(streams, seed))


@given(
    st.sampled_from([4, 6]),
    st.sampled_from([0, 1, 2, 3, 7, 90, 2100]),
    st.integers(0, 39),
    st.integers(0, 2200),
    st.integers(1, 255),
)
@settings(deadline=None)
def test_any_damaged_byte_is_as_frame_by_frame(
    version: int, payload_bytes: int, number: int, place: int, change: int
) -> None:
    """A damaged frame is only in a run if it is right by itself and says what its neighbours say."""
    stream = stream_of if payload_bytes else acks_of
    streams = [stream(20, Frame(version, payload_bytes=payload_bytes, source_port=port)) for port in (1, 2)]
    streams[number % 2][number // 2] = evolve(streams[number % 2][number // 2], damage=(place, change))
    check_both(dealt(*map(as_bytes, streams)))


@versions
@pytest.mark.parametrize("payload_bytes", [0, 4])
def test_every_bit_of_a_frame(version: int, payload_bytes: int) -> None:
    """Each one turned over, with checksums as they were; and with the checksum put right, where that can be."""
    streams = [
        as_bytes(
            (stream_of if payload_bytes else acks_of)(3, Frame(version, payload_bytes=payload_bytes, source_port=port))
        )
        for port in (1, 2)
    ]
    frames = dealt(*streams)
    for bit in range(8 * len(frames[2])):
        frame = bytearray(frames[2])
        frame[bit // 8] ^= 1 << bit % 8
        for damaged in (bytes(frame), with_sums(bytes(frame))):
            check_both([*frames[:2], damaged, *frames[3:]])


def with_sums(frame: bytes) -> bytes:
    """The checksums of a frame put right, if its headers are where those of a plain one are."""
    if frame[12] == 8:
        packet = with_header_sum(frame[14:]) if frame[14] & 0xF == 5 else frame[14:]
        source, destination, at = packet[12:16], packet[16:20], 20
    else:
        packet, at = frame[14:], 40
        source, destination = packet[8:24], packet[24:40]
    body = packet[at : at + 16] + bytes(2) + packet[at + 18 :]
    total = checksum.pseudo_header_sum(source, destination, IPProtocol.TCP, len(body)) + checksum.sum_of(body)
    field = struct.pack("!H", checksum.finish(total))
    return frame[:14] + packet[: at + 16] + field + packet[at + 18 :]


@given(st.lists(st.binary(max_size=120), min_size=1, max_size=50))
def test_any_bytes(frames: list[bytes]) -> None:
    assert coalesce.coalesce(framing.join(frames)) == frames
    assert bulk.join(framing.join(frames)) == frames


@given(st.lists(st.integers(0, 74), min_size=1, max_size=50), st.sampled_from([4, 6]))
def test_cut_off_frames(lengths: list[int], version: int) -> None:
    whole = Frame(version).bytes()
    check_both([*(whole[:length] for length in lengths), whole])


def test_the_oracle_sees_wrong_checksums() -> None:
    with pytest.raises(MalformedPacket):
        one_by_one(Frame(payload_bytes=10, damage=(-1, 1)).bytes())
