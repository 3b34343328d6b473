"""The framing of a byte stream, against a loop that does it the obvious way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.wire import framing
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, PREFIX_BYTES, FrameRun, Offload, single

runs_of_lengths = st.lists(
    st.tuples(st.integers(MIN_FRAME_BYTES, 90), st.integers(1, 40)).map(lambda run: [run[0]] * run[1]), max_size=12
).map(lambda runs: [length for run in runs for length in run])


def obvious_split(stream: bytes) -> tuple[list[tuple[int, int]], bool]:
    """Bounds, and whether a length out of bounds follows."""
    bounds = []
    position = 0
    while len(stream) - position >= 4:
        length = int.from_bytes(stream[position : position + 4], "big")
        if length < 14 or length > 65535 + 14 + 4:
            return bounds, True
        if len(stream) - position - 4 < length:
            break
        bounds.append((position + 4, position + 4 + length))
        position += 4 + length
    return bounds, False


def check_split(stream: bytes) -> None:
    expected, broken = obvious_split(stream)
    if broken and not expected:
        with pytest.raises(MalformedPacket):
            framing.split(stream, len(stream))
    else:
        assert framing.split(stream, len(stream)) == expected


@given(runs_of_lengths, st.integers(0, 100))
def test_split_finds_what_the_obvious_loop_finds(lengths: list[int], cut: int) -> None:
    stream = framing.join([bytes([index & 0xFF]) * length for index, length in enumerate(lengths)]).data
    check_split(stream[: len(stream) - cut] if cut < len(stream) else stream)


@given(runs_of_lengths, st.data())
def test_split_with_a_changed_byte(lengths: list[int], data: st.DataObject) -> None:
    stream = bytearray(framing.join([bytes(length) for length in lengths]).data)
    if stream:
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    check_split(bytes(stream))


@given(st.binary(max_size=200))
def test_split_of_arbitrary_bytes(stream: bytes) -> None:
    check_split(stream)


def test_split_of_a_long_run() -> None:
    stream = framing.join([bytes(1514)] * 2000 + [bytes(60)] * 1500 + [bytes(61)]).data
    check_split(stream)
    check_split(stream[:-1])


def test_split_looks_only_as_far_as_told() -> None:
    stream = bytearray(framing.join([bytes(60)] * 3).data + b"\xff" * 20)
    assert len(framing.split(stream, 3 * 64)) == 3
    assert len(framing.split(stream, 3 * 64 - 1)) == 2
    assert framing.split(stream, 3) == []


@pytest.mark.parametrize("length", [0, MIN_FRAME_BYTES - 1, MAX_FRAME_BYTES + 1])
def test_length_out_of_bounds(length: int) -> None:
    broken = length.to_bytes(4, "big") + bytes(20)
    with pytest.raises(MalformedPacket, match=f"frame of {length} bytes"):
        framing.split(broken, len(broken))
    good = framing.join([bytes(60)] * 10).data
    assert framing.split(good + broken, 664) == framing.split(good, 640)


def test_join_is_the_opposite() -> None:
    frames = [bytes([length]) * length for length in (14, 60, 99)]
    offloads = [None, Offload(34, 16), None]
    batch = framing.join(frames, offloads)
    assert list(batch) == frames
    assert batch.bounds == framing.split(batch.data, len(batch.data))
    assert batch.offloads == offloads
    assert len(framing.join([])) == 0


runs = st.lists(st.tuples(st.integers(14, 40), st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5)


def made(shape: list[tuple[int, int, int]]) -> list[FrameRun]:
    """For each (length, count, pieces) so many frames, in so many parts, however they are cut."""
    found = []
    for number, (length, count, pieces) in enumerate(shape):
        block = framing.join([bytes([number * 16 + index]) * length for index in range(count)]).data
        step = -(-len(block) // pieces)
        parts = tuple(block[at : at + step] for at in range(0, len(block), step))
        found.append(FrameRun(parts, count, PREFIX_BYTES + length, Offload(34, number)))
    return found


@given(runs, st.data())
def test_taken_accounts_for_every_byte(shape: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """After any number of written bytes: frames begun, and the rest up to the end of the last of them."""
    ends = [0]
    for length, count, _ in shape:
        ends += [ends[-1] + (PREFIX_BYTES + length) * (index + 1) for index in range(count)]
    stream = b"".join(part for run in made(shape) for part in run.parts)
    written = data.draw(st.integers(0, len(stream)))
    frames, rest = framing.taken(made(shape), written)
    assert frames == sum(end < written for end in ends[:-1])
    assert rest == stream[written : ends[frames]]


@given(runs, st.data())
def test_remaining_is_all_but_the_first_ones(shape: list[tuple[int, int, int]], data: st.DataObject) -> None:
    frames = [(bytes(frame), run.offload) for run in made(shape) for frame in framing.frames_of(run)]
    gone = data.draw(st.integers(0, len(frames)))
    left = framing.remaining(made(shape), gone)
    assert [(bytes(frame), run.offload) for run in left for frame in framing.frames_of(run)] == frames[gone:]
    assert all(len(b"".join(run.parts)) == run.count * run.stride > 0 for run in left)


def test_remaining_may_be_kept() -> None:
    """Whatever becomes of the memory that the runs were views of."""
    block = bytearray(framing.join([bytes([index]) * 20 for index in range(3)]).data)
    left = framing.remaining([FrameRun((memoryview(block)[:30], memoryview(block)[30:]), 3, 24)], 1)
    block[:] = bytes(len(block))
    assert [bytes(frame) for run in left for frame in framing.frames_of(run)] == [b"\1" * 20, b"\2" * 20]


def test_frames_of_a_run() -> None:
    frames = [bytes([index]) * 20 for index in range(3)]
    block = framing.join(frames).data
    assert framing.frames_of(FrameRun((block,), 3, 24)) == frames
    assert framing.frames_of(FrameRun((block[:5], memoryview(block)[5:40], block[40:]), 3, 24)) == frames
    assert framing.frames_of(single(b"a" * 14, b"b")) == [b"a" * 14 + b"b"]
