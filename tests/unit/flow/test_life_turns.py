"""`Life.repeat`: turns that are taken without resuming the life, until there are no more."""

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.flow.life import SOON, Life, rest

pytestmark = pytest.mark.usefixtures("standing_clock")

NEVER = math.inf


class Repeating:
    """A life of turns that give, or raise, what they are told; it remembers all, and rests on after errors."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)
        self.happened: list[object] = []
        self.life = Life(self.live)

    def turn(self) -> float | None:
        answer = self.answers.pop(0)
        self.happened.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def live(self) -> None:
        self.happened.append("begun")
        try:
            await self.life.repeat(self.turn)
            self.happened.append("no more")
            await rest(NEVER)
            self.happened.append("resumed")
        except LookupError as error:
            self.happened.append(error)
            await rest(NEVER)
            self.happened.append("resumed after the error")
        finally:
            self.happened.append("cleaned up")


def test_each_ring_is_a_turn_until_there_are_no_more() -> None:
    ours = Repeating(NEVER, 5.0, None)
    ours.life.ring()
    assert ours.happened == ["begun", NEVER]
    ours.life.ring()
    assert ours.happened == ["begun", NEVER, 5.0]
    ours.life.ring()
    assert ours.happened == ["begun", NEVER, 5.0, None, "no more"]
    ours.life.ring()
    assert ours.happened[5:] == ["resumed", "cleaned up"]
    assert ours.life.has_ended_well


def test_the_first_turn_may_be_the_last() -> None:
    ours = Repeating(None)
    ours.life.ring()
    assert ours.happened == ["begun", None, "no more"]


@pytest.mark.parametrize("turns_before", [0, 1])
def test_what_a_turn_raises_is_raised_in_the_life(turns_before: int) -> None:
    error = LookupError()
    ours = Repeating(*[NEVER] * turns_before, error)
    for _ in range(turns_before + 1):
        ours.life.ring()
    assert ours.happened == ["begun", *[NEVER] * turns_before, error, error]
    ours.life.ring()
    assert ours.happened[-2:] == ["resumed after the error", "cleaned up"]
    assert ours.life.has_ended_well


@pytest.mark.parametrize("turns_before", [0, 1])
async def test_what_nobody_expects_is_raised_in_the_task(turns_before: int) -> None:
    ours = Repeating(*[NEVER] * turns_before, ValueError("a bug"))
    for _ in range(turns_before + 1):
        ours.life.ring()
    assert ours.happened[-1] == "cleaned up"
    with pytest.raises(ValueError, match="a bug"):
        await ours.life.run()


async def test_a_turn_comes_when_its_time_does(nursery: trio.Nursery) -> None:
    ours = Repeating(3.0, NEVER)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    nursery.start_soon(ours.life.run)
    await wait_all_tasks_blocked()
    assert ours.happened == ["begun", 3.0]
    clock.jump(3.0)
    await wait_all_tasks_blocked()
    assert ours.happened == ["begun", 3.0, NEVER]


async def test_soon_is_the_tasks_business(nursery: trio.Nursery) -> None:
    ours = Repeating(NEVER, SOON, SOON, NEVER)
    nursery.start_soon(ours.life.run)
    await wait_all_tasks_blocked()
    ours.life.ring()
    assert ours.happened == ["begun", NEVER, SOON]
    await wait_all_tasks_blocked()
    assert ours.happened == ["begun", NEVER, SOON, SOON, NEVER]


async def test_a_ring_from_inside_a_turn_is_remembered(nursery: trio.Nursery) -> None:
    ours = Repeating(NEVER, NEVER, NEVER)
    inner: Callable[[], float | None] = ours.turn

    def turn() -> float | None:
        if len(ours.answers) == 2:
            ours.life.ring()
        return inner()

    ours.turn = turn  # type: ignore[method-assign]
    nursery.start_soon(ours.life.run)
    await wait_all_tasks_blocked()
    assert ours.happened == ["begun", NEVER]
    ours.life.ring()
    assert ours.happened == ["begun", NEVER, NEVER]
    await wait_all_tasks_blocked()
    assert ours.happened == ["begun", NEVER, NEVER, NEVER]


async def test_cancellation_closes_it_between_turns() -> None:
    ours = Repeating(NEVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.life.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ours.happened == ["begun", NEVER, "cleaned up"]
    ours.life.ring()
    assert ours.happened[-1] == "cleaned up"
