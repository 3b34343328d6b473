"""RFC 9293 section 3.10.7.3-4: a verdict on every combination of flags and numbers, in both ways of opening."""

from itertools import product

import pytest

from trio_passt.tcp.opening import Opening, Verdict
from trio_passt.wire.tcp import ACK, FIN, RST, SYN, TcpSegment

OURS = 2**32 - 1
NEXT = 0
THEIRS = 500


def segment(flags: int, seq: int = THEIRS + 1, ack: int = NEXT) -> TcpSegment:
    return TcpSegment(1, 2, seq, ack, flags, 1000)


@pytest.fixture
def active() -> Opening:
    """We sent a SYN: SYN-SENT."""
    return Opening(OURS, None)


@pytest.fixture
def passive() -> Opening:
    """The guest sent a SYN, we answered: SYN-RECEIVED."""
    return Opening(OURS, segment(SYN, seq=THEIRS))


def test_numbers(active: Opening, passive: Opening) -> None:
    assert (active.ack, active.reset_numbers) == (0, (NEXT, 0))
    assert (passive.ack, passive.reset_numbers) == (THEIRS + 1, (NEXT, THEIRS + 1))


@pytest.mark.parametrize(
    ("flags", "ack", "verdict"),
    [
        (SYN | ACK, NEXT, Verdict.COMPLETES),
        (SYN | ACK | FIN, NEXT, Verdict.COMPLETES),
        (SYN | ACK, NEXT + 1, Verdict.WRONG),
        (SYN | ACK, OURS, Verdict.WRONG),
        (ACK, NEXT, Verdict.MEANS_NOTHING),
        (ACK, NEXT + 1, Verdict.WRONG),
        (SYN, NEXT, Verdict.MEANS_NOTHING),
        (RST | ACK, NEXT, Verdict.RESETS),
        (RST | ACK, NEXT + 1, Verdict.MEANS_NOTHING),
        (RST, NEXT, Verdict.MEANS_NOTHING),
        (0, NEXT, Verdict.MEANS_NOTHING),
        (FIN, NEXT, Verdict.MEANS_NOTHING),
    ],
)
def test_after_our_syn(active: Opening, flags: int, ack: int, verdict: Verdict) -> None:
    assert active.judge(segment(flags, ack=ack)) is verdict


@pytest.mark.parametrize(
    ("flags", "seq", "ack", "verdict"),
    [
        (ACK, THEIRS + 1, NEXT, Verdict.COMPLETES),
        (ACK | FIN, THEIRS + 1, NEXT, Verdict.COMPLETES),
        (ACK, THEIRS + 100, NEXT, Verdict.COMPLETES),  # the ACK before it was lost
        (ACK, THEIRS, NEXT, Verdict.MEANS_NOTHING),
        (ACK, THEIRS + 1, NEXT + 1, Verdict.WRONG),
        (ACK, THEIRS + 1, OURS, Verdict.WRONG),
        (SYN, THEIRS, 0, Verdict.REPEATS),
        (SYN, THEIRS + 1, 0, Verdict.CHALLENGES),
        (RST, THEIRS + 1, 0, Verdict.RESETS),
        (RST | ACK, THEIRS + 1, NEXT, Verdict.RESETS),
        (RST, THEIRS, 0, Verdict.MEANS_NOTHING),
        (RST, THEIRS + 2, 0, Verdict.MEANS_NOTHING),
        (FIN, THEIRS + 1, 0, Verdict.MEANS_NOTHING),
        (0, THEIRS + 1, 0, Verdict.MEANS_NOTHING),
    ],
)
def test_after_the_guests_syn(passive: Opening, flags: int, seq: int, ack: int, verdict: Verdict) -> None:
    assert passive.judge(segment(flags, seq, ack)) is verdict


def test_every_combination_has_a_verdict_and_resets_are_never_answered(active: Opening, passive: Opening) -> None:
    near = (OURS - 1, OURS, NEXT, NEXT + 1, THEIRS, THEIRS + 1, THEIRS + 2, 2**31)
    for flags, seq, ack, opening in product(range(64), near, near, (active, passive)):
        verdict = opening.judge(segment(flags, seq, ack))
        assert verdict in Verdict
        if flags & RST:
            assert verdict in (Verdict.RESETS, Verdict.MEANS_NOTHING)
        if verdict is Verdict.COMPLETES:
            assert flags & ACK
            assert ack == NEXT
