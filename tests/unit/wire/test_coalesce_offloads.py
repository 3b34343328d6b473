"""Frames with work left to do, as a tap gives them: what becomes of them is what becomes of them when it is done.

The oracle is that of `coalesce_checks`, for the frames that `finish` makes of them (which has oracles of its own).
"""

from collections.abc import Callable

import pytest
from attrs import evolve
from coalesce_checks import (
    ENDS,
    Found,
    Frame,
    acks_of,
    as_bytes,
    check_items,
    payload_of,
    shape,
    stream_of,
    versions,
    without_checksum,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coalesce_datagrams import Sent, several
from unfinished import unfinished

from trio_passt.wire import bulk, checksum, coalesce, finish, framing, tcp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.coalesce import BULK_FROM_ANSWERED_FRAMES, Item, JoinedDatagrams, JoinedSegments
from trio_passt.wire.columns import Stretch
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import FrameBatch, Offload, Segmentation
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, TcpOptions

VERIFIED = Offload(0, 0, is_verified=True)

Frames = list[tuple[bytes, Offload | None]]
Join = Callable[[FrameBatch], list[Item]]


def one_by_one(batch: FrameBatch) -> list[Item]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coalesce, "BULK_FROM_ANSWERED_FRAMES", len(batch) + 1)
        patch.setattr(coalesce, "BULK_FROM_FRAMES", len(batch) + 1)
        return coalesce.coalesce(batch)


both_ways = pytest.mark.parametrize("join", [one_by_one, bulk.join])


def joined(join: Join, frames: Frames) -> list[Item]:
    return join(framing.join([frame for frame, _ in frames], [offload for _, offload in frames]))


def check(join: Join, frames: Frames) -> Found:
    """What is joined is what the finished frames say one by one."""
    finished: list[bytes] = []
    for frame, offload in frames:
        pieces = [memoryview(frame)] if offload is None else finish.finish(memoryview(frame), offload)
        finished += map(bytes, pieces)
    return check_items(joined(join, frames), finished, takes_padding=join is one_by_one, quotes_checksums=False)


def left_of(frames: list[Frame], segment_bytes: int = 0) -> Frames:
    return [unfinished(frame.bytes(), segment_bytes) for frame in frames]


# -- segments ----------------------------------------------------------------------------------------------------------


@both_ways
@versions
@pytest.mark.parametrize("payload_bytes", [0, 1, 1000, 1461])
def test_whole_segments(join: Join, version: int, payload_bytes: int) -> None:
    stream = stream_of if payload_bytes else acks_of
    ((run, _),) = check(join, left_of(stream(40, Frame(version, payload_bytes=payload_bytes))))
    assert isinstance(run, JoinedSegments)
    assert run.frames == 40


@both_ways
@versions
@pytest.mark.parametrize(("payload_bytes", "in_each"), [(14_600, 10), (14_601, 11), (1460, 1), (1000, 1)])
def test_super_segments_are_taken_whole(join: Join, version: int, payload_bytes: int, in_each: int) -> None:
    frames = stream_of(5, Frame(version, payload_bytes=payload_bytes))
    frames[2] = evolve(frames[2], flags=ACK | PSH)
    ((run, _),) = check(join, left_of(frames, 1460))
    assert isinstance(run, JoinedSegments)
    assert run.frames == 5 * in_each
    assert [len(piece) for piece in (run.segment.payload, *run.segment.more)] == [payload_bytes] * 5
    assert payload_of(run) == b"".join(frame.payload for frame in frames)
    assert run.segment.flags == ACK | PSH


@both_ways
def test_one_alone(join: Join) -> None:
    ((run, _),) = check(join, left_of([Frame(payload_bytes=30_000)], 1460))
    assert isinstance(run, JoinedSegments)
    assert (run.frames, run.segment.payload_bytes) == (21, 30_000)


def test_a_fin_at_the_end_of_a_super_segment() -> None:
    """It stays where it is: at the end of all the data, alone."""
    data = left_of(stream_of(2, Frame(payload_bytes=14_600)), 1460)
    last = left_of([Frame(payload_bytes=14_600, seq=29_201, flags=FIN | ACK | PSH)], 1460)
    first, second = joined(one_by_one, data + last)
    assert isinstance(first, JoinedSegments)
    assert isinstance(second, JoinedSegments)
    assert (first.segment.payload_bytes, first.frames, first.segment.flags) == (29_200, 20, ACK)
    assert (second.segment.payload_bytes, second.frames, second.segment.flags) == (14_600, 10, FIN | ACK | PSH)


@both_ways
@versions
def test_whole_finished_and_super_segments_mixed(join: Join, version: int) -> None:
    frames = [Frame(version, payload_bytes=1000)]
    for size in [1000, 5000, 65_000, 1, 3000, 1000, 2000, 7]:
        frames.append(evolve(frames[-1].next_data(), payload_bytes=size))
    mixed: Frames = []
    for number, frame in enumerate(frames):
        way = number % 3
        mixed.append((frame.bytes(), None) if way == 0 else unfinished(frame.bytes(), 900 * (way - 1)))
    assert len(check(join, mixed)) == 1


@both_ways
def test_a_checksum_that_nobody_answers_for_is_looked_at(join: Join) -> None:
    frames: Frames = [(frame, None) for frame in as_bytes(stream_of(60, Frame(payload_bytes=100)))]
    frames[10] = (frames[10][0][:-1] + b"\0", None)
    left = left_of(stream_of(60, Frame(payload_bytes=100, source_port=7)))
    assert shape(check(join, frames + left)) == [10, 0, 49, 60]
    unmarked: Frames = [(frame, None) for frame, _ in left]
    assert shape(joined(join, unmarked)) == [0] * 60


@both_ways
def test_what_was_verified_is_taken_as_it_is(join: Join) -> None:
    frames: Frames = [(frame, VERIFIED) for frame in as_bytes(stream_of(20, Frame(payload_bytes=100)))]
    assert shape(check(join, frames)) == [20]
    damaged: Frames = [(frame[:-1] + b"\0", VERIFIED) for frame, _ in frames]
    assert shape(joined(join, damaged)) == [20]


@both_ways
@pytest.mark.parametrize(
    "offload",
    [
        pytest.param(Offload(54, 16), id="where IPv6 has it"),
        pytest.param(Offload(34, 6), id="where UDP has it"),
        pytest.param(Offload(36, 14), id="from elsewhere"),
    ],
)
def test_a_checksum_at_another_place_is_filled_in_and_found_wrong(join: Join, offload: Offload) -> None:
    frames = [frame for frame, _ in left_of(stream_of(20, Frame(payload_bytes=100)))]
    items = joined(join, [(frame, offload) for frame in frames])
    assert shape(items) == [0] * 20
    for item, frame in zip(items, frames, strict=True):
        assert isinstance(item, memoryview)
        assert [bytes(item)] == [bytes(piece) for piece in finish.finish(memoryview(frame), offload)]


@both_ways
@pytest.mark.parametrize(
    "offload",
    [
        pytest.param(Offload(34, 65535), id="outside"),
        pytest.param(Offload(34, 16, 54, 50, Segmentation.TCPV6), id="another version"),
        pytest.param(Offload(34, 6, 42, 50, Segmentation.UDP), id="another protocol"),
    ],
)
def test_nonsense_is_what_it_is(join: Join, offload: Offload) -> None:
    """And it stands where the frame would, so nothing goes on across it."""
    good = left_of(stream_of(20, Frame(payload_bytes=100)))
    items = joined(join, [*good[:10], (good[10][0], offload), *good[11:]])
    assert [type(item) for item in items] == [JoinedSegments, MalformedPacket, JoinedSegments]
    assert [item.frames for item in items if isinstance(item, JoinedSegments)] == [10, 9]


@both_ways
@versions
def test_what_is_not_plain_is_finished(join: Join, version: int) -> None:
    reset = Frame(version, flags=RST | ACK)
    with_options = Frame(version, payload_bytes=3000, options=TcpOptions(1460))
    frames = [unfinished(reset.bytes()), unfinished(with_options.bytes(), 1000)]
    data = left_of(stream_of(20, Frame(version, payload_bytes=500, source_port=7)))
    assert shape(check(join, [*data[:10], *frames, *data[10:]])) in ([20, 0, 0, 0, 0], [10, 0, 0, 0, 0, 10])


def test_lengths_are_not_trusted() -> None:
    offload = Offload(34, 16)
    for join in (one_by_one, bulk.join):
        cut = [frame[:-1] for frame in as_bytes(stream_of(40, Frame(payload_bytes=1000)))]
        assert shape(joined(join, [(frame, offload) for frame in cut])) == [0] * 40
        short: Frames = [(Frame().bytes()[:50], offload)] * 40
        assert all(isinstance(item, MalformedPacket) for item in joined(join, short))


@pytest.mark.interpreted
def test_bulk_data_is_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte of it is looked at, whichever way."""
    summed: list[int] = []

    really_sum_of = checksum.sum_of

    def sum_of(data: Buffer) -> int:
        summed.append(len(data))
        return really_sum_of(data)

    def add_up(data: Buffer, stretch: Stretch, *_: object) -> None:
        summed.append(stretch.frame_bytes * stretch.frames)

    monkeypatch.setattr(checksum, "sum_of", sum_of)
    monkeypatch.setattr("trio_passt.wire.plain.sum_of", sum_of)
    monkeypatch.setattr("trio_passt.wire.columns.add_up", add_up)
    segments = left_of(stream_of(40, Frame(payload_bytes=20_000)), 1460)
    datagrams: Frames = [unfinished(sent.bytes(), 1400) for sent in several(40, Sent(size=14_000))]
    whole = left_of(stream_of(40, Frame(6, payload_bytes=1000)))
    summed.clear()
    for join in (one_by_one, bulk.join):
        assert len(joined(join, [*segments, *datagrams, *whole])) == 3
    assert sum(summed) < 4000, "headers of what is quoted"


# -- datagrams ---------------------------------------------------------------------------------------------------------


@both_ways
@versions
@pytest.mark.parametrize("size", [0, 1, 100, 1400])
def test_datagrams(join: Join, version: int, size: int) -> None:
    frames: Frames = [unfinished(sent.bytes()) for sent in several(40, Sent(version, size=size))]
    ((run, _),) = check(join, frames)
    assert isinstance(run, JoinedDatagrams)
    assert [len(payload) for payload in run.payloads] == [size] * 40


@both_ways
@versions
@pytest.mark.parametrize(("size", "sizes"), [(4000, [1400, 1400, 1200]), (2800, [1400] * 2), (1400, [1400]), (7, [7])])
def test_trains_become_their_datagrams(join: Join, version: int, size: int, sizes: list[int]) -> None:
    sent = several(20, Sent(version, size=size))
    frames: Frames = [unfinished(one.bytes(), 1400) for one in sent]
    (run,) = joined(join, frames)
    assert isinstance(run, JoinedDatagrams)
    assert [len(payload) for payload in run.payloads] == sizes * 20
    assert b"".join(run.payloads) == b"".join(one.payload for one in sent)
    assert run.ends == (ENDS[version][0], 40000, ENDS[version][1], 9999)
    cut = [finish.finish(memoryview(frame), offload) for frame, offload in frames if offload is not None]
    for found, wanted in ((run.first, cut[0][0]), (run.last, cut[-1][-1])):
        assert found.readonly
        assert without_checksum(found) == without_checksum(wanted[14:])


@both_ways
@versions
def test_trains_and_datagrams_of_several_flows(join: Join, version: int) -> None:
    flows = []
    for port in (1, 2, 3):
        sent = [Sent(version, number, size, port) for number, size in enumerate([100, 5000, 0, 1400, 20_000, 99])]
        flows.append(
            [
                unfinished(one.bytes(), 1000 if one.size > 1400 else 0) if number % 3 else (one.bytes(), None)
                for number, one in enumerate(sent)
            ]
        )
    items = joined(join, [frame for turn in zip(*flows, strict=True) for frame in turn])
    for item in items:
        assert isinstance(item, JoinedDatagrams)
        assert [len(payload) for payload in item.payloads] == [100, *[1000] * 5, 0, 1400, *[1000] * 20, 99]
    assert len(items) == 3


@both_ways
def test_a_train_of_too_many(join: Join) -> None:
    frames: Frames = [unfinished(sent.bytes(), 10) for sent in several(20, Sent(size=11_000))]
    assert all(isinstance(item, MalformedPacket) for item in joined(join, frames))
    frames = [unfinished(sent.bytes(), 11) for sent in several(20, Sent(size=11_000))]
    ((run),) = joined(join, frames)
    assert isinstance(run, JoinedDatagrams)
    assert len(run.payloads) == 20_000


@both_ways
@versions
def test_datagrams_for_services_are_finished(join: Join, version: int) -> None:
    port = 67 if version == 4 else 547
    frames: Frames = [unfinished(sent.bytes()) for sent in several(20, Sent(version, destination_port=port))]
    assert shape(check(join, frames)) == [0] * 20


# -- anything ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, BULK_FROM_ANSWERED_FRAMES - 1, BULK_FROM_ANSWERED_FRAMES, 200])
def test_either_way_at_any_count(count: int) -> None:
    streams = [left_of(stream_of(count, Frame(payload_bytes=100, source_port=port)), 30) for port in (1, 2)]
    frames: Frames = [frame for turn in zip(*streams, strict=True) for frame in turn][:count]
    found = check(coalesce.coalesce, frames)
    assert shape(found) == [4 * ((count + 1) // 2), *([4 * (count // 2)] if count > 1 else [])]


sizes = st.sampled_from([0, 1, 2, 5, 100, 1460, 3000])
steps = st.lists(
    st.tuples(
        sizes,
        st.sampled_from([0, 1, 40, 1000, 1460]),
        st.sampled_from(["goes on", "again", "gap", "options", "finished", "ack"]),
    ),
    min_size=1,
    max_size=30,
)


def played(steps: list[tuple[int, int, str]], first: Frame) -> Frames:
    """A connection that sends these, as a kernel with offloads does: what is larger than the segment is to be cut."""
    frames: Frames = []
    frame = first
    for size, segment_bytes, what in steps:
        frame = evolve(frame.next_data(), payload_bytes=size, options=tcp.NO_OPTIONS)
        if what == "again":
            frame = evolve(frame, seq=first.seq)
        elif what == "gap":
            frame = evolve(frame, seq=frame.seq + 1)
        elif what == "options":
            frame = evolve(frame, options=TcpOptions(1000))
        elif what == "ack":
            frame = evolve(frame, ack=frame.ack + size)
        if what == "finished":
            frames.append((frame.bytes(), None))
        else:
            frames.append(
                unfinished(frame.bytes(), segment_bytes if size > segment_bytes and size < 1000 * segment_bytes else 0)
            )
    return frames


@both_ways
@given(script=st.lists(steps, min_size=1, max_size=3), version=st.sampled_from([4, 6]), as_trains=st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_traffic(join: Join, script: list[list[tuple[int, int, str]]], version: int, as_trains: bool) -> None:
    streams = [played(steps, Frame(version, source_port=1000 + number)) for number, steps in enumerate(script)]
    if as_trains:
        streams.append([unfinished(sent.bytes(), 0) for sent in several(5, Sent(version, size=300))])
    longest = max(map(len, streams))
    check(join, [stream[turn] for turn in range(longest) for stream in streams if turn < len(stream)])


offloads = st.none() | st.builds(
    Offload,
    st.sampled_from([14, 34, 54]) | st.integers(0, 200),
    st.sampled_from([6, 16]) | st.integers(0, 200),
    st.just(0),
    st.integers(0, 100),
    st.sampled_from(Segmentation),
)


@both_ways
@given(frames=st.lists(st.tuples(st.binary(max_size=120), offloads), min_size=1, max_size=50))
def test_any_bytes(join: Join, frames: Frames) -> None:
    assert all(isinstance(item, memoryview | MalformedPacket) for item in joined(join, frames))


@given(
    version=st.sampled_from([4, 6]),
    offload=offloads,
    place=st.integers(0, 120),
    change=st.integers(0, 255),
    is_udp=st.booleans(),
)
@settings(deadline=None)
def test_both_ways_take_the_same(version: int, offload: Offload | None, place: int, change: int, is_udp: bool) -> None:
    made = Sent(version, size=50).bytes() if is_udp else Frame(version, payload_bytes=50).bytes()
    frame = bytearray(made)
    frame[place % len(frame)] ^= change
    kinds = [[type(item) for item in joined(join, [(bytes(frame), offload)] * 2)] for join in (one_by_one, bulk.join)]
    assert kinds[0] == kinds[1] or frame[47] & FIN or frame[67] & FIN
