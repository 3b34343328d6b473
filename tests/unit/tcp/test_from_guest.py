"""The receiving half: any order, any overlap, and what comes out is what was sent."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.flow.budget import Budget
from trio_passt.tcp import kept, seq
from trio_passt.tcp.closing import FromGuestState
from trio_passt.tcp.from_guest import MAX_WINDOW_FIELD, SMALL_PIECE_BYTES, FromGuest, Receipt
from trio_passt.wire.tcp import ACK, FIN, TcpSegment

SYN_SEQ = 2**32 - 5
START = seq.add(SYN_SEQ, 1)


def half(scale: int = 0, window: int = 1000, *, tells_of_kept: bool = False) -> FromGuest:
    return FromGuest(SYN_SEQ, scale, window, tells_of_kept=tells_of_kept)


def segment(at: int, payload: bytes = b"", flags: int = ACK) -> TcpSegment:
    """`payload` at offset `at` of the guest's data."""
    return TcpSegment(1, 2, seq.add(START, at), 0, flags, 0, payload)


def in_pieces(at: int, *pieces: bytes, flags: int = ACK) -> TcpSegment:
    """The same, as large frames that go on with one another come (`wire.coalesce`)."""
    views = [memoryview(piece) for piece in pieces]
    return segment(at, b"", flags)._replace(payload=views[0], more=tuple(views[1:]), frames=len(views))


def state_of(guest_half: FromGuest) -> FromGuestState:
    return guest_half.state


def joined(guest_half: FromGuest) -> bytes:
    return b"".join(guest_half.pending(10_000))


@pytest.mark.parametrize(
    ("at", "length", "acceptable"),
    [
        (0, 0, True),
        (999, 0, True),
        (1000, 0, False),
        (-1, 0, False),
        (0, 1, True),
        (0, 2000, True),
        (999, 1, True),
        (1000, 1, False),
        (-5, 5, False),
        (-5, 6, True),
        (2**30, 1, False),
        (-(2**30), 1, False),
    ],
)
def test_acceptable_with_a_window(at: int, length: int, acceptable: bool) -> None:
    """The table of RFC 9293 section 3.10.7.4."""
    assert half().is_acceptable(segment(at, bytes(length))) is acceptable


@pytest.mark.parametrize(("at", "length", "acceptable"), [(0, 0, True), (1, 0, False), (-1, 0, False), (0, 1, False)])
def test_acceptable_without_a_window(at: int, length: int, acceptable: bool) -> None:
    assert half(window=0).is_acceptable(segment(at, bytes(length))) is acceptable


def test_data_in_order_is_pending_until_the_host_has_it() -> None:
    guest_half = half()
    assert guest_half.receive(segment(0, b"abc")) is Receipt.IN_ORDER
    assert guest_half.receive(segment(3, b"def")) is Receipt.IN_ORDER
    assert guest_half.pending_bytes == 6
    assert guest_half.acknowledgeable(0) == START
    guest_half.delivered(4)
    assert joined(guest_half) == b"ef"
    assert guest_half.acknowledgeable(0) == seq.add(START, 4)
    assert guest_half.acknowledgeable(3) == seq.add(START, 1)
    guest_half.delivered(2)
    assert guest_half.acknowledgeable(0) == seq.add(START, 6)


def test_duplicates_and_gaps() -> None:
    guest_half = half()
    assert guest_half.receive(segment(1, b"b")) is Receipt.OUT_OF_ORDER
    assert guest_half.receive(segment(1)) is Receipt.NOTHING_NEW
    assert guest_half.receive(segment(0, b"abc")) is Receipt.FILLS_GAP
    assert guest_half.receive(segment(0, b"abc")) is Receipt.NOTHING_NEW
    assert guest_half.receive(segment(0)) is Receipt.NOTHING_NEW
    assert guest_half.receive(segment(1, b"bcde")) is Receipt.IN_ORDER
    assert joined(guest_half) == b"abcde"


def told(guest_half: FromGuest) -> list[tuple[int, int]]:
    """What the guest is told of what is kept, as offsets."""
    return [(seq.distance(START, left), seq.distance(START, right)) for left, right in guest_half.kept_blocks()]


def test_what_is_behind_a_gap_is_kept_until_the_gap_is_filled() -> None:
    guest_half = half(tells_of_kept=True)
    for at, data, blocks in (
        (2, b"cd", [(2, 4)]),
        (6, b"gh", [(6, 8), (2, 4)]),  # the latest first
        (2, b"c", [(2, 4), (6, 8)]),
        (10, b"k", [(10, 11), (2, 4), (6, 8)]),
        (7, b"hijk", [(6, 11), (2, 4)]),
    ):
        assert guest_half.receive(segment(at, data)) is Receipt.OUT_OF_ORDER
        assert told(guest_half) == blocks
    assert (guest_half.next, guest_half.pending_bytes, guest_half.window) == (START, 0, 1000)
    assert guest_half.receive(segment(0, b"ab")) is Receipt.FILLS_GAP
    assert (joined(guest_half), guest_half.window, told(guest_half)) == (b"abcd", 996, [(6, 11)])
    assert guest_half.receive(in_pieces(3, b"d", b"efg")) is Receipt.FILLS_GAP
    assert (joined(guest_half), guest_half.window, told(guest_half)) == (b"abcdefghijk", 989, [])
    assert guest_half.receive(segment(11, b"l")) is Receipt.IN_ORDER


def test_what_all_keep_together_is_bounded() -> None:
    memory = Budget(2 * kept.MOST_BYTES)
    halves = [FromGuest(SYN_SEQ, 0, 1000, tells_of_kept=True, memory=memory) for _ in range(3)]
    for one in halves:
        assert one.receive(segment(2, b"cd")) is Receipt.OUT_OF_ORDER
    assert [told(one) for one in halves] == [[(2, 4)], [(2, 4)], []]
    halves[0].receive(segment(0, b"ab"))
    assert halves[2].receive(segment(2, b"cd")) is Receipt.OUT_OF_ORDER, "sent again"
    assert [told(one) for one in halves] == [[], [(2, 4)], [(2, 4)]]
    halves[2].receive(segment(0, b"abcd", ACK | FIN))
    assert halves[0].receive(segment(2000, b"beyond the window")) is Receipt.OUT_OF_ORDER
    assert memory.left_bytes == kept.MOST_BYTES, "nothing of that is kept"
    halves[1].forget_kept()
    halves[1].forget_kept()
    assert memory.left_bytes == 2 * kept.MOST_BYTES
    assert [joined(one) for one in halves] == [b"abcd", b"", b"abcd"]


def test_what_is_kept_is_no_view_of_the_batch() -> None:
    guest_half = half()
    batch = bytearray(b"bcd")
    guest_half.receive(segment(1)._replace(payload=memoryview(batch)[:2], more=(memoryview(batch)[2:],)))
    batch[:] = bytes(3)
    guest_half.receive(segment(0, b"a"))
    assert joined(guest_half) == b"abcd"


@pytest.mark.parametrize("with_data", [True, False])
def test_fin_behind_a_gap_is_kept_and_told_as_the_octet_that_it_is(with_data: bool) -> None:
    guest_half = half(tells_of_kept=True)
    guest_half.receive(segment(2, b"cd", ACK | FIN) if with_data else segment(4, b"", ACK | FIN))
    assert told(guest_half) == [(2 if with_data else 4, 5)]
    assert state_of(guest_half) is FromGuestState.OPEN
    assert guest_half.receive(segment(0, b"ab" if with_data else b"abcd")) is Receipt.FILLS_GAP
    assert joined(guest_half) == b"abcd"
    assert state_of(guest_half) is FromGuestState.RECEIVED
    assert (guest_half.next, told(guest_half)) == (seq.add(START, 5), [])


def test_fin_that_comes_before_its_data_and_again_with_it() -> None:
    guest_half = half()
    guest_half.receive(segment(3, b"d", ACK | FIN))
    assert guest_half.receive(segment(0, b"abcd", ACK | FIN)) is Receipt.IN_ORDER
    assert joined(guest_half) == b"abcd"
    assert guest_half.next == seq.add(START, 5)
    assert guest_half.receive(segment(3, b"d", ACK | FIN)) is Receipt.NOTHING_NEW


def test_end_of_the_data_is_its_end_also_if_something_was_sent_behind_it() -> None:
    guest_half = half()
    guest_half.receive(segment(2, b"c", ACK | FIN))
    guest_half.receive(segment(3, b"after the end"))
    guest_half.receive(segment(0, b"ab"))
    assert joined(guest_half) == b"abc"
    assert state_of(guest_half) is FromGuestState.RECEIVED


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_first_of_several_ends_is_the_end(order: tuple[int, ...]) -> None:
    """No octet that stands for a FIN ever becomes data."""
    guest_half = half()
    for at in order:
        guest_half.receive(segment((2, 4, 7)[at], b"", ACK | FIN))
    guest_half.receive(segment(3, b"defghi"))
    guest_half.receive(segment(0, b"ab"))
    assert joined(guest_half) == b"ab"
    assert state_of(guest_half) is FromGuestState.RECEIVED


def test_guest_that_goes_on_behind_its_end_has_to_send_once_more_what_was_kept() -> None:
    guest_half = half(tells_of_kept=True)
    guest_half.receive(segment(3, b"", ACK | FIN))
    guest_half.receive(segment(7, b"h", ACK | FIN))
    assert guest_half.receive(segment(0, b"abcde")) is Receipt.FILLS_GAP
    assert (joined(guest_half), told(guest_half)) == (b"abcde", [])
    assert state_of(guest_half) is FromGuestState.OPEN
    assert guest_half.receive(segment(5, b"fg")) is Receipt.IN_ORDER
    assert guest_half.receive(segment(7, b"h", ACK | FIN)) is Receipt.IN_ORDER
    assert joined(guest_half) == b"abcdefgh"
    assert state_of(guest_half) is FromGuestState.RECEIVED


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=12), st.booleans()), max_size=40), st.integers(1, 60))
def test_host_gets_nothing_that_the_guest_did_not_send_in_that_place(
    sent: list[tuple[int, bytes, bool]], window: int
) -> None:
    """Whatever contradicts itself: data that changes when it is sent again, data behind a FIN, several FINs."""
    guest_half = half(window=window)
    octets: set[tuple[int, int]] = set()
    ends: set[int] = set()
    for at, data, ends_there in sent:
        received = segment(at, data, ACK | FIN if ends_there else ACK)
        if guest_half.is_acceptable(received):
            guest_half.receive(received)
            octets.update(enumerate(data, at))
            ends.update([at + len(data)] if ends_there else [])
    got = joined(guest_half)
    assert octets.issuperset(enumerate(got))
    assert len(got) <= window
    has_ended = guest_half.state is FromGuestState.RECEIVED
    assert seq.distance(START, guest_half.next) == len(got) + has_ended
    assert len(got) in ends or not has_ended


@pytest.mark.parametrize("step", [1, 3, -1, -3])
def test_data_that_comes_forwards_or_backwards_is_kept_as_one(step: int) -> None:
    data = random.Random(4).randbytes(3001)
    guest_half = half(window=5000, tells_of_kept=True)
    starts = range(1, 3001, 3)
    for at in starts if step > 0 else reversed(starts):
        end = min(at + 4 - abs(step) // 3, 3001)  # 4 overlap, 3 touch
        guest_half.receive(segment(at, data[at:end]))
        assert told(guest_half) == [(1, end) if step > 0 else (at, 3001)]
    guest_half.receive(segment(0, data[:1]))
    assert joined(guest_half) == data


def test_what_is_kept_lies_within_the_window() -> None:
    guest_half = half(window=5, tells_of_kept=True)
    guest_half.receive(segment(3, b"defghi", ACK | FIN))
    assert told(guest_half) == [(3, 5)]
    guest_half.receive(segment(0, b"abc"))
    assert (joined(guest_half), guest_half.window) == (b"abcde", 0)
    assert state_of(guest_half) is FromGuestState.OPEN


def test_guest_that_does_not_take_selective_acknowledgements_is_told_nothing() -> None:
    guest_half = half()
    guest_half.receive(segment(3, b"d"))
    assert told(guest_half) == []


def test_memory_for_what_is_kept_is_bounded() -> None:
    guest_half = half(window=10 * kept.MOST_BYTES, tells_of_kept=True)
    guest_half.receive(segment(kept.MOST_BYTES - 1, b"..", ACK | FIN))
    assert told(guest_half) == [(kept.MOST_BYTES - 1, kept.MOST_BYTES)]
    guest_half.receive(segment(kept.MOST_BYTES, b"."))
    guest_half.receive(segment(9 * kept.MOST_BYTES, b"."))
    assert told(guest_half) == [(kept.MOST_BYTES - 1, kept.MOST_BYTES)]


def test_number_of_gaps_is_bounded_and_what_is_not_kept_may_come_again() -> None:
    guest_half = half(window=10_000, tells_of_kept=True)
    data = random.Random(2).randbytes(10_000)
    for at in range(1, 10_000, 2):
        guest_half.receive(segment(at, data[at : at + 1]))
    assert told(guest_half) == [(at, at + 1) for at in range(2 * kept.MOST_RANGES - 1, 2 * kept.MOST_RANGES - 9, -2)]
    for at in range(0, 2 * kept.MOST_RANGES, 2):
        assert seq.distance(START, guest_half.next) == at
        guest_half.receive(segment(at, data[at : at + 1]))
    assert joined(guest_half) == data[: 2 * kept.MOST_RANGES]
    assert told(guest_half) == []
    guest_half.receive(segment(2 * kept.MOST_RANGES, data[2 * kept.MOST_RANGES :]))
    assert joined(guest_half) == data


def test_what_lies_beyond_the_window_is_cut_off_and_a_fin_with_it() -> None:
    guest_half = half(window=4)
    assert guest_half.receive(segment(0, b"abcdef", ACK | FIN)) is Receipt.IN_ORDER
    assert joined(guest_half) == b"abcd"
    assert state_of(guest_half) is FromGuestState.OPEN
    assert guest_half.window == 0


def test_fin_with_its_last_data_lost() -> None:
    guest_half = half()
    guest_half.receive(segment(0, b"abc"))
    assert guest_half.receive(segment(1, b"bcd", ACK | FIN)) is Receipt.IN_ORDER
    assert state_of(guest_half) is FromGuestState.RECEIVED
    assert guest_half.next == seq.add(START, 5)


@pytest.mark.parametrize("data_acknowledged_first", [True, False])
def test_fin_is_acknowledged_when_it_was_delivered(data_acknowledged_first: bool) -> None:
    guest_half = half()
    guest_half.receive(segment(0, b"abc", ACK | FIN))
    assert guest_half.acknowledgeable(0) == START
    guest_half.delivered(3)
    assert guest_half.acknowledgeable(0) == seq.add(START, 3)
    if data_acknowledged_first:
        guest_half.acknowledged_to_guest(seq.add(START, 3), 1000)
        assert state_of(guest_half) is FromGuestState.RECEIVED
    guest_half.host_shut_down()
    assert guest_half.acknowledgeable(1) == seq.add(START, 3)  # the FIN is in the kernel's queue
    guest_half.acknowledged_to_guest(guest_half.acknowledgeable(1), 1000)
    assert state_of(guest_half) is FromGuestState.DELIVERED
    guest_half.acknowledged_to_guest(guest_half.acknowledgeable(0), 1000)
    assert state_of(guest_half) is FromGuestState.ACKNOWLEDGED
    assert guest_half.receive(segment(4, b"late")) is Receipt.NOTHING_NEW


def test_acknowledgement_never_goes_back() -> None:
    guest_half = half()
    guest_half.receive(segment(0, bytes(100)))
    guest_half.delivered(100)
    guest_half.acknowledged_to_guest(guest_half.acknowledgeable(0), 1000)
    assert guest_half.acknowledgeable(50) == seq.add(START, 100)


def test_right_edge_never_goes_back() -> None:
    guest_half = half(window=1000)
    guest_half.receive(segment(0, bytes(400)))
    guest_half.delivered(400)
    ack = guest_half.acknowledgeable(0)
    assert guest_half.window_after(0, ack) == 600
    assert guest_half.window_after(5000, ack) == 5000
    guest_half.acknowledged_to_guest(ack, 5000)
    assert guest_half.window == 5000
    assert guest_half.window_after(100, ack) == 5000


def test_window_counts_from_the_acknowledgement_number() -> None:
    guest_half = half(window=1000)
    guest_half.receive(segment(0, bytes(400)))
    assert guest_half.window_after(0, START) == 1000
    assert guest_half.window_gain(1000, START) == 0
    assert guest_half.window_gain(1500, START) == 500


def test_window_field_has_16_bits() -> None:
    assert half(scale=0).window_after(10**9, START) == MAX_WINDOW_FIELD
    assert half(scale=7).window_after(10**9, START) == MAX_WINDOW_FIELD
    assert half(scale=7).window_after(1279, START) == 9


def test_pieces_in_order_stay_pieces() -> None:
    guest_half = half()
    received = in_pieces(0, b"ab", b"cde", b"f")
    assert guest_half.receive(received) is Receipt.IN_ORDER
    assert guest_half.receive(segment(6, b"gh", ACK | FIN)) is Receipt.IN_ORDER
    assert guest_half.pending(10) == [b"ab", b"cde", b"f", b"gh"]
    assert all(
        ours is theirs for ours, theirs in zip(guest_half.pending(3), (received.payload, *received.more), strict=True)
    )
    assert guest_half.pending_bytes == 8
    assert guest_half.window == 1000 - 9
    guest_half.delivered(3)
    assert guest_half.pending(2) == [b"de", b"f"]
    assert guest_half.pending_bytes == 5
    assert state_of(guest_half) is FromGuestState.RECEIVED


@pytest.mark.parametrize("new_from", range(-2, 9))
@pytest.mark.parametrize("window", [1, 3, 5, 6, 7, 1000])
@pytest.mark.parametrize("flags", [ACK, ACK | FIN])
def test_pieces_are_received_as_if_they_were_one(new_from: int, window: int, flags: int) -> None:
    """In part, or beyond the window, or not at all: wherever they are to be cut."""
    halves = []
    for received in (in_pieces(0, b"ab", b"cde", b"f", flags=flags), segment(0, b"abcdef", flags)):
        guest_half = half(window=1000)
        for at in range(new_from):
            guest_half.receive(segment(at, b"."))
        guest_half.window = window
        if new_from < 0:
            received = received._replace(seq=seq.add(received.seq, -new_from))
        receipt = guest_half.receive(received)
        halves.append(
            (
                receipt,
                joined(guest_half),
                guest_half.pending_bytes,
                guest_half.next,
                guest_half.window,
                guest_half.state,
            )
        )
    assert halves[0] == halves[1]


def test_pieces_are_acceptable_as_if_they_were_one() -> None:
    for at in range(-8, 8):
        for window in (0, 1, 5):
            pieces, whole = in_pieces(at, b"ab", b"cde", b"f"), segment(at, b"abcdef")
            assert half(window=window).is_acceptable(pieces) == half(window=window).is_acceptable(whole)


@pytest.mark.parametrize("taken", range(10))
def test_nothing_that_stays_pending_is_a_view_of_the_batch(taken: int) -> None:
    """The batch's memory is written to again as soon as the turn is over."""
    guest_half = half()
    kept = bytearray(b"abcd")
    guest_half.receive(in_pieces(0, kept[:1], kept[1:]))
    guest_half.keep_pending()
    batch = bytearray(b"..efghijkl")
    view = memoryview(batch)
    guest_half.receive(segment(4)._replace(payload=view[2:4]))
    guest_half.receive(segment(4)._replace(payload=view[2:8]))  # overlaps, so it is joined to a piece of its own
    guest_half.receive(segment(10)._replace(payload=view[8:9], more=(view[9:10],)))
    guest_half.delivered(taken)
    guest_half.keep_pending()
    batch[:] = bytes(10)
    view.release()
    assert joined(guest_half) == b"abcdefghijkl"[taken:]
    assert guest_half.pending_bytes == 12 - taken
    before = guest_half.pending(10)
    guest_half.keep_pending()
    assert all(ours is theirs for ours, theirs in zip(guest_half.pending(10), before, strict=True)), "copied once"


def test_what_stays_pending_does_not_hold_its_batch() -> None:
    guest_half = half(window=65535)
    batch = bytes(60_000)
    guest_half.receive(segment(0, memoryview(batch)[:10]))  # type: ignore[arg-type]
    guest_half.receive(segment(10, memoryview(batch)[10:20]))  # type: ignore[arg-type]
    guest_half.keep_pending()
    assert list(guest_half.pending(10)) == [bytes(20)]
    guest_half.keep_pending()
    guest_half.delivered(5)
    guest_half.keep_pending()
    assert list(guest_half.pending(10)) == [bytes(15)]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=300), st.integers(1, 200))
def test_any_disorder_gives_the_same_bytes(disorder: int, data: bytes, window: int) -> None:
    dice = random.Random(disorder)
    guest_half = FromGuest(SYN_SEQ, 0, window, tells_of_kept=True)
    delivered, sent = b"", set[int]()
    for _ in range(20_000):
        if guest_half.state is not FromGuestState.OPEN and not guest_half.pending_bytes:
            break
        at = dice.randint(0, len(data))
        # mostly what comes next, as a retransmitting guest would
        if dice.random() < 0.5:
            at = seq.distance(START, guest_half.next)
        end = dice.randint(at, min(len(data), at + 50)) if at < len(data) else at
        flags = ACK | (FIN if end == len(data) else 0)
        cut = dice.randint(at, end)
        received = (
            in_pieces(at, data[at:cut], data[cut:end], flags=flags) if cut > at else segment(at, data[at:end], flags)
        )
        if guest_half.is_acceptable(received):
            guest_half.receive(received)
            sent.update(range(at, end + bool(flags & FIN)))
        blocks = told(guest_half)
        following = seq.distance(START, guest_half.next)
        assert all(following < left < right and sent.issuperset(range(left, right)) for left, right in blocks)
        taken = dice.randint(0, guest_half.pending_bytes)
        delivered += joined(guest_half)[:taken]
        guest_half.delivered(taken)
        if dice.random() < 0.5:
            guest_half.keep_pending()
        ack = guest_half.acknowledgeable(0)
        field = guest_half.window_after(dice.randint(0, window), ack)
        edge = seq.add(guest_half.next, guest_half.window)
        guest_half.acknowledged_to_guest(ack, field)
        assert seq.distance(edge, seq.add(guest_half.next, guest_half.window)) >= 0
        assert 0 <= guest_half.pending_bytes <= len(data)
    else:
        pytest.fail("never finished")
    assert delivered == data


def test_single_bytes_are_not_kept_one_by_one() -> None:
    """Each in a batch of its own, and the host takes nothing: what is kept is a few pieces, and all there is."""
    guest_half = half(window=20_000)
    data = random.Random(1).randbytes(20_000)
    for at in range(len(data)):
        assert guest_half.receive(in_pieces(at, data[at : at + 1])) is Receipt.IN_ORDER
        guest_half.keep_pending()
    assert len(guest_half.pending(10_000)) <= 1 + len(data) // SMALL_PIECE_BYTES
    guest_half.delivered(100)
    assert joined(guest_half) == data[100:]
