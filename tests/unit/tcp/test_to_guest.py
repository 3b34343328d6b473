"""The sending half: what is in flight, what room there is, and what a timeout or an acknowledgement does."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_passt.tcp import seq, timeouts
from trio_passt.tcp.closing import ToGuestState
from trio_passt.tcp.to_guest import Acknowledgement, Timeout, ToGuest
from trio_passt.wire.tcp import ACK, SYN, TcpSegment

ISN = 2**32 - 1000
START = seq.add(ISN, 1)
GUEST_SEQ = 7


def ack_of(at: int, window: int = 10_000, *, guest_seq: int = GUEST_SEQ, payload: bytes = b"") -> TcpSegment:
    """The guest's acknowledgement of the first `at` bytes."""
    return TcpSegment(1, 2, guest_seq, seq.add(START, at), ACK, window, payload)


def half(mss: int = 1000, scale: int = 0, window: int = 10_000) -> ToGuest:
    return ToGuest(ISN, mss, scale, ack_of(0, window))


def state_of(to_guest: ToGuest) -> ToGuestState:
    return to_guest.state


def deadline_of(to_guest: ToGuest) -> float | None:
    return to_guest.deadline


def test_window_of_a_syn_is_not_scaled() -> None:
    syn_ack = TcpSegment(1, 2, 6, START, SYN | ACK, 1000)
    assert ToGuest(ISN, 1000, 7, syn_ack).window == 1000
    assert ToGuest(ISN, 1000, 7, ack_of(0, 1000)).window == 128_000


def test_in_flight_and_room() -> None:
    to_guest = half(window=5000)
    assert to_guest.room() == 5000
    to_guest.sent(3000, 0.0)
    assert (to_guest.in_flight, to_guest.queue_offset, to_guest.room()) == (3000, 3000, 2000)
    assert to_guest.acknowledge(ack_of(1000, 5000), 0.0) == Acknowledgement(1000)
    assert (to_guest.in_flight, to_guest.room()) == (2000, 3000)


def test_no_silly_windows() -> None:
    """RFC 9293 section 3.8.6.2.1: less than a segment only when nothing is in flight, or for half of the window."""
    to_guest = half(mss=1000, window=5000)
    to_guest.sent(4500, 0.0)
    assert to_guest.room() == 0
    to_guest.acknowledge(ack_of(4500, 500), 0.0)
    assert to_guest.room() == 500
    narrow = half(mss=1000, window=800)
    narrow.sent(400, 0.0)
    assert narrow.room() == 400


def test_shrunk_window_leaves_no_room() -> None:
    to_guest = half(window=5000)
    to_guest.sent(5000, 0.0)
    to_guest.acknowledge(ack_of(1000, 1000), 0.0)
    assert to_guest.room() == 0


def test_acknowledgement_of_what_was_never_sent() -> None:
    to_guest = half()
    to_guest.sent(10, 0.0)
    assert to_guest.acknowledge(ack_of(11), 0.0) == Acknowledgement(is_valid=False)
    assert to_guest.in_flight == 10


def test_old_acknowledgement() -> None:
    to_guest = half()
    to_guest.sent(10, 0.0)
    to_guest.acknowledge(ack_of(10), 0.0)
    assert to_guest.acknowledge(ack_of(5, 1), 0.0) == Acknowledgement()
    assert to_guest.window == 10_000


def test_window_is_taken_from_the_newest_segment() -> None:
    """SND.WL1 and SND.WL2 of RFC 9293 section 3.10.7.4."""
    to_guest = half()
    to_guest.acknowledge(ack_of(0, 500, guest_seq=GUEST_SEQ + 10), 0.0)
    to_guest.acknowledge(ack_of(0, 9000, guest_seq=GUEST_SEQ + 5), 0.0)
    assert to_guest.window == 500


def test_window_comes_with_every_acknowledgement_that_makes_progress() -> None:
    """Also with a retransmitted segment, which is older by its sequence number: else the right edge would move."""
    to_guest = half(window=3000)
    to_guest.sent(3000, 0.0)
    to_guest.acknowledge(ack_of(0, 3000, guest_seq=GUEST_SEQ + 500), 0.0)  # sent after data that was lost
    to_guest.acknowledge(ack_of(3000, 0, payload=b"retransmitted"), 0.0)
    assert (to_guest.window, to_guest.room()) == (0, 0)


def test_timer_runs_while_something_is_in_flight() -> None:
    to_guest = half()
    assert deadline_of(to_guest) is None
    to_guest.sent(1000, 5.0)
    assert deadline_of(to_guest) == 6.0
    to_guest.sent(1000, 5.5)
    assert deadline_of(to_guest) == 6.0
    to_guest.acknowledge(ack_of(1000), 5.6)
    assert deadline_of(to_guest) == pytest.approx(5.6 + to_guest.round_trip.timeout_s)
    to_guest.acknowledge(ack_of(2000), 5.7)
    assert deadline_of(to_guest) is None


def test_timeout_goes_back_to_the_first_unacknowledged_byte() -> None:
    to_guest = half()
    to_guest.sent(3000, 0.0)
    to_guest.acknowledge(ack_of(1000), 0.1)
    assert to_guest.timed_out(2.0) is Timeout.RETRANSMIT
    assert (to_guest.next, to_guest.queue_offset) == (seq.add(START, 1000), 0)
    assert to_guest.acknowledge(ack_of(3000), 2.1) == Acknowledgement(2000)
    assert to_guest.next == to_guest.una == seq.add(START, 3000)


def test_fin_takes_one_number_and_no_byte() -> None:
    to_guest = half()
    to_guest.sent(5, 0.0)
    to_guest.host_ended()
    to_guest.fin_sent(0.0)
    assert (to_guest.in_flight, to_guest.queue_offset) == (6, 5)
    assert to_guest.acknowledge(ack_of(5), 0.1) == Acknowledgement(5)
    assert state_of(to_guest) is ToGuestState.SENT
    assert to_guest.acknowledge(ack_of(6), 0.1) == Acknowledgement(0)
    assert state_of(to_guest) is ToGuestState.ACKNOWLEDGED
    assert deadline_of(to_guest) is None


@pytest.mark.parametrize("seen_again", ["nothing", "end", "fin"])
def test_first_fin_may_be_acknowledged_after_a_timeout(seen_again: str) -> None:
    to_guest = half()
    to_guest.sent(5, 0.0)
    to_guest.host_ended()
    to_guest.fin_sent(0.0)
    to_guest.timed_out(1.0)
    assert state_of(to_guest) is ToGuestState.OPEN
    if seen_again != "nothing":
        to_guest.sent(5, 1.0)
        to_guest.host_ended()
    if seen_again == "fin":
        to_guest.fin_sent(1.0)
    assert to_guest.acknowledge(ack_of(6), 1.1) == Acknowledgement(5)
    assert state_of(to_guest) is ToGuestState.ACKNOWLEDGED


def test_timeout_before_the_fin_went_out() -> None:
    to_guest = half()
    to_guest.sent(5, 0.0)
    to_guest.host_ended()
    to_guest.timed_out(1.0)
    assert state_of(to_guest) is ToGuestState.OPEN


def test_gives_up_after_so_many_timeouts_and_an_acknowledgement_starts_afresh() -> None:
    to_guest = half()
    now = 0.0
    to_guest.sent(1000, now)
    for _ in range(timeouts.RETRANSMISSIONS):
        assert to_guest.timed_out(now) is Timeout.RETRANSMIT
        to_guest.sent(1000, now)
    to_guest.acknowledge(ack_of(500), now)
    to_guest.sent(500, now)
    for _ in range(1 + timeouts.RETRANSMISSIONS):  # the first one is early, and does not count
        assert to_guest.timed_out(now) is Timeout.RETRANSMIT
        to_guest.sent(500, now)
    assert to_guest.timed_out(now) is Timeout.GIVE_UP


def test_probes_of_a_closed_window() -> None:
    to_guest = half(window=0)
    to_guest.window_closed(0.0)
    assert deadline_of(to_guest) == 1.0
    to_guest.window_closed(0.5)
    assert deadline_of(to_guest) == 1.0
    now, intervals = 1.0, []
    for _ in range(timeouts.RETRANSMISSIONS):
        assert to_guest.timed_out(now) is Timeout.PROBE
        assert to_guest.deadline is not None
        intervals.append(to_guest.deadline - now)
        now = to_guest.deadline
    assert intervals == [2, 4, 8, 16, 32, 60, 60, 60]
    assert to_guest.timed_out(now) is Timeout.GIVE_UP


def test_answered_probes_go_on_for_as_long_as_it_takes() -> None:
    to_guest = half(window=0)
    to_guest.window_closed(0.0)
    for now in range(100):
        assert to_guest.timed_out(float(now)) is Timeout.PROBE
        to_guest.acknowledge(ack_of(0, 0), float(now))
    to_guest.acknowledge(ack_of(0, 1000), 200.0)
    assert deadline_of(to_guest) is None
    to_guest.sent(1000, 200.0)
    assert deadline_of(to_guest) == 201.0


def test_third_duplicate_asks_for_the_first_segment_once() -> None:
    to_guest = half()
    to_guest.sent(5000, 0.0)
    to_guest.acknowledge(ack_of(1000), 0.0)
    answers = [to_guest.acknowledge(ack_of(1000), 0.0).resend_first for _ in range(6)]
    assert answers == [False, False, True, False, False, False]
    assert to_guest.acknowledge(ack_of(5000), 0.0) == Acknowledgement(4000)
    to_guest.sent(1000, 0.0)
    answers = [to_guest.acknowledge(ack_of(5000), 0.0).resend_first for _ in range(3)]
    assert answers == [False, False, True]


def test_partial_acknowledgement_takes_everything_back() -> None:
    to_guest = half()
    to_guest.sent(5000, 0.0)
    for _ in range(4):
        to_guest.acknowledge(ack_of(1000), 0.0)
    assert to_guest.acknowledge(ack_of(2000), 0.0) == Acknowledgement(1000, went_back=True)
    assert (to_guest.next, to_guest.highest) == (to_guest.una, seq.add(to_guest.una, 3000))


@pytest.mark.parametrize(("round_trip_s", "patience_s"), [(0.0001, 0.2), (0.02, 0.2), (0.1, 0.3)])
def test_going_back_once_more_when_there_is_no_progress_for_a_round_trip(
    round_trip_s: float, patience_s: float
) -> None:
    """Nor for the least timeout: until then duplicates may be the echo of what waits in the link, however quickly an
    idle guest answers."""
    to_guest = half()
    to_guest.sent(1000, 0.0)
    to_guest.acknowledge(ack_of(1000), round_trip_s)
    to_guest.sent(5000, 1.0)
    for _ in range(4):
        to_guest.acknowledge(ack_of(1000), 1.0)
    assert to_guest.acknowledge(ack_of(2000), 1.0).went_back
    to_guest.sent(4000, 1.0)
    for percent in range(1, 99):
        assert to_guest.acknowledge(ack_of(2000), 1.0 + patience_s * percent / 100) == Acknowledgement()
    assert to_guest.acknowledge(ack_of(2000), 1.01 + patience_s) == Acknowledgement(went_back=True)
    assert to_guest.next == to_guest.una
    to_guest.sent(4000, 1.5)
    assert to_guest.acknowledge(ack_of(2000), 3.0) == Acknowledgement()  # once after each progress


@pytest.mark.parametrize("echo_s", [0.0001, 0.05, 0.25, 0.5])
def test_segment_that_never_arrives_is_given_up_though_the_guest_answers_what_lies_behind_it(echo_s: float) -> None:
    """Its duplicates are no reason to go on for ever, nor to send more than the timeouts say (RFC 9293 3.8.3, R2)."""
    to_guest = half()
    to_guest.sent(1000, 0.0)
    to_guest.acknowledge(ack_of(1000), 0.0001)
    times = [1.0]
    to_guest.sent(5000, 1.0)
    while True:
        for number in range(4):
            now = times[-1] + echo_s + number / 1000
            deadline = deadline_of(to_guest)
            assert deadline is not None
            if now < deadline:
                assert not to_guest.acknowledge(ack_of(1000), now).went_back
        deadline = deadline_of(to_guest)
        assert deadline is not None
        if to_guest.timed_out(deadline) is Timeout.GIVE_UP:
            break
        to_guest.sent(5000, deadline)
        times.append(deadline)
    assert len(times) == 1 + timeouts.RETRANSMISSIONS
    assert 100 < deadline - times[0] < 110


def test_echo_of_what_was_sent_again_is_no_loss() -> None:
    """The guest had most of it, and answers each repetition with a duplicate."""
    to_guest = half()
    to_guest.sent(10_000, 0.0)
    to_guest.timed_out(1.0)
    to_guest.sent(10_000, 1.0)
    to_guest.acknowledge(ack_of(10_000), 1.01)
    to_guest.sent(10_000, 1.01)
    assert [to_guest.acknowledge(ack_of(10_000), 1.02) for _ in range(9)] == [Acknowledgement()] * 9
    assert to_guest.acknowledge(ack_of(11_000), 1.03) == Acknowledgement(1000)
    assert [to_guest.acknowledge(ack_of(11_000), 1.04).resend_first for _ in range(3)] == [False, False, True]


def test_what_is_no_duplicate() -> None:
    to_guest = half()
    assert not any(to_guest.acknowledge(ack_of(0), 0.0).resend_first for _ in range(5))  # nothing in flight
    to_guest.sent(3000, 0.0)
    assert not any(to_guest.acknowledge(ack_of(0, payload=b"x"), 0.0).resend_first for _ in range(5))
    assert not any(to_guest.acknowledge(ack_of(0, window), 0.0).resend_first for window in range(9000, 9005))


def test_timeout_ends_recovery() -> None:
    to_guest = half()
    to_guest.sent(5000, 0.0)
    for _ in range(3):
        to_guest.acknowledge(ack_of(0), 0.0)
    to_guest.timed_out(1.0)
    to_guest.sent(5000, 1.0)
    assert to_guest.acknowledge(ack_of(1000), 1.0) == Acknowledgement(1000)


def test_round_trip_is_that_of_the_first_segment() -> None:
    """What is behind it may be lost, and is then not measured."""
    to_guest = half()
    to_guest.sent(5000, 0.0)
    to_guest.acknowledge(ack_of(1000), 0.1)
    assert to_guest.round_trip.timeout_s == pytest.approx(0.3)


def test_nothing_is_early_unless_everything_is_being_sent_again() -> None:
    to_guest = half()
    to_guest.sent(3000, 0.0)
    to_guest.acknowledge(ack_of(1000), 0.1)
    assert deadline_of(to_guest) == pytest.approx(0.1 + 0.3)
    to_guest.timed_out(0.4)
    to_guest.sent(2000, 0.4)
    assert deadline_of(to_guest) == pytest.approx(0.4 + 2 * 0.3)
    to_guest.acknowledge(ack_of(2000), 0.5)
    assert deadline_of(to_guest) == pytest.approx(0.5 + 2 * 0.1)
    to_guest.acknowledge(ack_of(3000), 0.6)
    to_guest.sent(1000, 0.7)
    assert deadline_of(to_guest) == pytest.approx(0.7 + 2 * 0.3)


def test_round_trip_is_measured_of_new_data_only() -> None:
    to_guest = half()
    to_guest.sent(1000, 0.0)
    to_guest.timed_out(1.0)
    to_guest.sent(1000, 1.0)
    to_guest.acknowledge(ack_of(1000), 1.001)
    assert to_guest.round_trip.timeout_s == 2.0
    to_guest.sent(1000, 2.0)
    to_guest.acknowledge(ack_of(2000), 2.5)
    assert to_guest.round_trip.timeout_s == pytest.approx(1.5)


def test_round_trip_is_not_measured_over_a_fast_retransmission() -> None:
    """Karn's algorithm (RFC 6298 section 3): whichever of the two it was that arrived, nobody knows."""
    to_guest = half()
    to_guest.sent(5000, 0.0)
    assert [to_guest.acknowledge(ack_of(0), 0.1).resend_first for _ in range(3)] == [False, False, True]
    to_guest.acknowledge(ack_of(5000), 50.0)
    assert to_guest.round_trip.timeout_s == timeouts.RTO_INITIAL_S
    to_guest.sent(1000, 60.0)
    to_guest.acknowledge(ack_of(6000), 60.5)
    assert to_guest.round_trip.timeout_s == pytest.approx(1.5)


def test_old_window_does_not_replace_a_newer_one() -> None:
    """Nor does an acknowledgement that is older than the one that the window came with."""
    to_guest = half()
    to_guest.sent(2000, 0.0)
    to_guest.acknowledge(ack_of(2000, 700), 0.1)
    to_guest.acknowledge(ack_of(1000, 9000), 0.1)
    assert to_guest.window == 700
    to_guest.acknowledge(ack_of(2000, 800), 0.1)
    assert to_guest.window == 800


class SendingHalf(RuleBasedStateMachine):
    """Against a model: the guest has received some prefix, and acknowledges some of it, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.half = half(mss=100, window=1000)
        self.now = 0.0
        self.data = 2000
        """Bytes that the host has sent."""
        self.discarded = 0
        self.received = 0
        self.acknowledged = 0
        self.window = 1000
        self.reach = 1000

    @rule(most=st.integers(1, 400))
    @precondition(lambda self: self.half.state is ToGuestState.OPEN)
    def send(self, most: int) -> None:
        room = self.half.room()
        at = self.discarded + self.half.queue_offset
        count = min(most, room, self.data - at)
        if count > 0:
            assert at + count <= self.reach, "beyond the guest's window"
            if at <= self.received:
                self.received = max(self.received, at + count)
            self.half.sent(count, self.now)
        elif room > 0 and at == self.data:
            self.half.host_ended()

    @rule(arrives=st.booleans())
    @precondition(lambda self: self.half.state is ToGuestState.DUE)
    def send_fin(self, arrives: bool) -> None:
        if arrives and self.received == self.data:
            self.received += 1
        self.half.fin_sent(self.now)

    @rule(share=st.floats(0, 1), window=st.integers(0, 1000), elapsed=st.floats(0, 0.5))
    def acknowledge(self, share: float, window: int, elapsed: float) -> None:
        self.now += elapsed
        self.acknowledged += int((self.received - self.acknowledged) * share + 0.5)
        self.window = max(window, self.reach - self.acknowledged)  # a guest does not take back its window
        self.reach = max(self.reach, self.acknowledged + self.window)
        answer = self.half.acknowledge(ack_of(self.acknowledged, self.window), self.now)
        assert answer.is_valid
        self.discarded += answer.data_bytes
        assert self.discarded == min(self.acknowledged, self.data)

    @rule(lie=st.integers(1, 1000))
    def acknowledge_too_much(self, lie: int) -> None:
        ahead = seq.distance(self.half.una, self.half.highest)
        una = seq.distance(START, self.half.una)
        assert not self.half.acknowledge(ack_of(una + ahead + lie), self.now).is_valid

    @rule()
    @precondition(lambda self: self.half.deadline is not None)
    def time_out(self) -> None:
        assert self.half.deadline is not None
        self.now = max(self.now, self.half.deadline)
        self.half.timed_out(self.now)

    @invariant()
    def numbers_are_in_order(self) -> None:
        assert 0 <= self.half.in_flight <= seq.distance(self.half.una, self.half.highest)
        assert self.half.queue_offset >= 0
        assert self.discarded + self.half.queue_offset <= self.data

    @invariant()
    def end_is_the_end(self) -> None:
        if self.half.state is ToGuestState.ACKNOWLEDGED:
            assert self.discarded == self.data
            assert self.half.deadline is None


TestSendingHalf = SendingHalf.TestCase
TestSendingHalf.settings = settings(max_examples=60, deadline=None, stateful_step_count=60)
