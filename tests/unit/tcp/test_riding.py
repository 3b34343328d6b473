"""When an acknowledgement waits for an answer, in made-up seconds."""

import math

import pytest

from trio_passt.flow.streak import Streak
from trio_passt.tcp.riding import QUICK_ANSWERS, Riding
from trio_passt.tcp.timeouts import ACK_RIDES_S

QUICK_S = ACK_RIDES_S / 2


def exchange(riding: Riding, at: float, answer_after_s: float = QUICK_S) -> float:
    """A question and its answer; returns the time after it."""
    riding.asked(at)
    riding.answered(at + answer_after_s)
    return at + answer_after_s + 1


def used_to_quick_answers(count: int = QUICK_ANSWERS) -> tuple[Riding, float]:
    riding, now = Riding(), 100.0
    for _ in range(count):
        now = exchange(riding, now)
    return riding, now


def test_waits_only_after_enough_quick_answers() -> None:
    riding, now = Riding(), 0.0
    for _ in range(QUICK_ANSWERS):
        riding.asked(now)
        assert not riding.may_wait(now)
        assert riding.due == math.inf
        riding.answered(now + QUICK_S)
        now += 1
    riding.asked(now)
    assert riding.may_wait(now)
    assert riding.due == now + ACK_RIDES_S


def test_waits_until_it_is_due_and_then_not_again_for_a_while() -> None:
    riding, now = used_to_quick_answers()
    riding.asked(now)
    assert riding.may_wait(now)
    assert riding.may_wait(now + ACK_RIDES_S * 0.9)
    assert riding.due == now + ACK_RIDES_S, "counted from the question"
    assert not riding.may_wait(now + 1.01 * ACK_RIDES_S)
    riding.nothing_waits()
    assert riding.due == math.inf
    riding.answered(now + 1)
    now += 2
    for _ in range(QUICK_ANSWERS):
        riding.asked(now)
        assert not riding.may_wait(now), "the first time in vain was the last"
        now = exchange(riding, now)
    riding.asked(now)
    assert not riding.may_wait(now), "two questions of each exchange were not answered by themselves"


def test_trust_comes_back_after_as_many_quick_answers() -> None:
    riding, now = used_to_quick_answers()
    riding.asked(now)
    assert not riding.may_wait(now + 1.01 * ACK_RIDES_S)
    riding.answered(now + 1)
    now += 2
    for _ in range(QUICK_ANSWERS):
        now = exchange(riding, now)
    riding.asked(now)
    assert riding.may_wait(now)


def test_slow_answer_breaks_the_row() -> None:
    riding, now = used_to_quick_answers()
    now = exchange(riding, now, 1.01 * ACK_RIDES_S)
    riding.asked(now)
    assert not riding.may_wait(now)


@pytest.mark.parametrize("slow_one", range(QUICK_ANSWERS))
def test_all_of_the_last_ones_have_to_be_quick(slow_one: int) -> None:
    riding, now = Riding(), 0.0
    for number in range(QUICK_ANSWERS):
        now = exchange(riding, now, 1.0 if number == slow_one else QUICK_S)
    riding.asked(now)
    assert not riding.may_wait(now)


def test_question_after_an_unanswered_one_breaks_the_row() -> None:
    """A guest that sends and sends is no conversation: it needs its acknowledgements."""
    riding, now = used_to_quick_answers()
    riding.asked(now)
    riding.asked(now + QUICK_S)
    assert not riding.may_wait(now + QUICK_S)


def test_no_question_no_waiting() -> None:
    riding, now = used_to_quick_answers()
    assert not riding.may_wait(now)
    assert riding.due == math.inf


def test_answers_that_nobody_asked_for_do_not_count() -> None:
    riding = Riding()
    for number in range(3 * QUICK_ANSWERS):
        riding.answered(float(number))
    riding.asked(100.0)
    assert not riding.may_wait(100.0)


def test_answer_takes_the_acknowledgement_with_it() -> None:
    riding, now = used_to_quick_answers()
    riding.asked(now)
    assert riding.may_wait(now)
    riding.nothing_waits()
    riding.answered(now + QUICK_S)
    assert riding.due == math.inf
    assert not riding.may_wait(now + QUICK_S)


def newcomer(firsts: Streak, first_answer_after_s: float = QUICK_S) -> Riding:
    riding = Riding(firsts)
    exchange(riding, 0, first_answer_after_s)
    return riding


def test_new_connection_trusts_in_what_others_have_seen() -> None:
    firsts = Streak()
    for _ in range(QUICK_ANSWERS):
        riding = Riding(firsts)
        riding.asked(0)
        assert not riding.may_wait(0)
        riding.answered(QUICK_S)
    riding = Riding(firsts)
    riding.asked(0)
    assert riding.may_wait(0)
    assert riding.due == ACK_RIDES_S


def test_first_window_waits_for_the_first_question_where_that_is_trusted_in() -> None:
    firsts = Streak()
    assert not Riding(firsts).may_wait(0)
    for _ in range(QUICK_ANSWERS):
        newcomer(firsts)
    riding = Riding(firsts)
    for now in (1, 1 + QUICK_S):
        riding.nothing_waits()
        assert riding.may_wait(now)
        assert riding.due == 1 + ACK_RIDES_S
    riding.asked(1 + QUICK_S)
    riding.answered(1 + QUICK_S)
    assert not riding.may_wait(1 + QUICK_S), "now it is one like others"
    riding = Riding(firsts)
    assert riding.may_wait(1)
    for _ in range(2):
        assert not riding.may_wait(1 + ACK_RIDES_S), "nobody asks: it is told, when the link has room"


@pytest.mark.parametrize("how", ["late", "in vain", "asked again"])
def test_one_first_answer_that_is_not_quick_ends_the_trust(how: str) -> None:
    firsts = Streak()
    for _ in range(2 * QUICK_ANSWERS):
        newcomer(firsts)
    riding = Riding(firsts)
    riding.asked(0)
    assert riding.may_wait(0)
    if how == "late":
        riding.answered(ACK_RIDES_S)
    elif how == "in vain":
        assert not riding.may_wait(ACK_RIDES_S)
    else:
        riding.asked(QUICK_S)
    other = Riding(firsts)
    other.asked(0)
    assert not other.may_wait(0)
    assert firsts.length == 0


def test_only_the_first_answer_of_a_connection_counts_for_others() -> None:
    firsts = Streak()
    riding = newcomer(firsts)
    for at in range(1, 2 * QUICK_ANSWERS):
        exchange(riding, at)
    assert firsts.length == 1
    exchange(riding, 100, ACK_RIDES_S)
    assert firsts.length == 1
