"""`Doorbell.take_turns`: a turn at once, then at each ring on the spot, and at each deadline by the task itself."""

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.flow.doorbell import AGAIN, Doorbell

pytestmark = pytest.mark.usefixtures("standing_clock")

NEVER = math.inf


class Script:
    """A turn that gives what it is told, and remembers when and in which task it was taken.

    What it gives after the last of `answers` is the last one again.  An exception is raised.
    """

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)
        self.taken_at: list[float] = []
        self.tasks: list[trio.lowlevel.Task] = []

    def __call__(self) -> float | None:
        self.taken_at.append(trio.current_time())
        self.tasks.append(trio.lowlevel.current_task())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def count(self) -> int:
        return len(self.taken_at)


class Taker:
    """The task that takes the turns."""

    def __init__(self, bell: Doorbell, turn: Script) -> None:
        self.bell, self.turn = bell, turn
        self.task: trio.lowlevel.Task | None = None
        self.steps = 0
        self.ended = False
        self.error: Exception | None = None

    async def run(self) -> None:
        self.task = trio.lowlevel.current_task()
        try:
            await self.bell.take_turns(self.turn)
            self.ended = True
        except Exception as error:
            self.error = error


def clock() -> MockClock:
    ours = trio.lowlevel.current_clock()
    assert isinstance(ours, MockClock)
    return ours


class Steps(trio.abc.Instrument):
    """Counts how often a task runs."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task = task
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def started(nursery: trio.Nursery, *answers: float | Exception | None) -> tuple[Doorbell, Script, Taker, Steps]:
    """A task that takes turns, asleep after the first one (or over)."""
    bell, turn = Doorbell(), Script(*answers)
    taker = Taker(bell, turn)
    nursery.start_soon(taker.run)
    await wait_all_tasks_blocked()
    assert taker.task is not None
    steps = Steps(taker.task)
    trio.lowlevel.add_instrument(steps)
    return bell, turn, taker, steps


async def test_first_turn_comes_without_a_ring_and_without_waiting() -> None:
    turn = Script(None)
    await Doorbell().take_turns(turn)
    assert turn.count == 1


async def test_each_ring_is_a_turn_on_the_spot_in_the_ringers_task() -> None:
    async with trio.open_nursery() as nursery:
        bell, turn, taker, steps = await started(nursery, NEVER)
        assert turn.tasks == [taker.task]
        for count in (2, 3, 4):
            bell.ring()
            assert turn.count == count
            await wait_all_tasks_blocked()
        assert turn.tasks[1:] == [trio.lowlevel.current_task()] * 3
        assert (turn.count, steps.count) == (4, 0), "the task itself slept all the while"
        nursery.cancel_scope.cancel()


async def test_deadline_is_a_turn_of_the_task() -> None:
    async with trio.open_nursery() as nursery:
        _bell, turn, taker, _ = await started(nursery, 5.0, 7.0, NEVER)
        for time, count in ((4.9, 1), (5.0, 2), (6.9, 2), (7.0, 3), (1000.0, 3)):
            clock().jump(time - trio.current_time())
            await wait_all_tasks_blocked()
            assert turn.count == count
        assert turn.tasks == [taker.task] * 3
        nursery.cancel_scope.cancel()


async def test_deadline_that_has_passed_is_a_turn_soon() -> None:
    async with trio.open_nursery() as nursery:
        clock().jump(10)
        _, turn, _, _ = await started(nursery, 3.0, 10.0, NEVER)
        assert turn.count == 3
        nursery.cancel_scope.cancel()


async def test_earlier_deadline_of_a_turn_on_the_spot_is_kept() -> None:
    async with trio.open_nursery() as nursery:
        bell, turn, _, _ = await started(nursery, 60.0, 5.0, NEVER)
        bell.ring()
        clock().jump(4.9)
        await wait_all_tasks_blocked()
        assert turn.count == 2
        clock().jump(0.1)
        await wait_all_tasks_blocked()
        assert turn.taken_at == [0, 0, 5.0]
        nursery.cancel_scope.cancel()


async def test_later_deadline_of_a_turn_on_the_spot_is_found_out_at_the_earlier_one() -> None:
    async with trio.open_nursery() as nursery:
        bell, turn, _, _ = await started(nursery, 5.0, 60.0, 60.0, NEVER)
        bell.ring()
        clock().jump(5)
        await wait_all_tasks_blocked()
        assert turn.count == 3, "for nothing, which is harmless"
        clock().jump(54.9)
        await wait_all_tasks_blocked()
        assert turn.count == 3
        clock().jump(0.1)
        await wait_all_tasks_blocked()
        assert turn.taken_at[:4] == [0, 0, 5.0, 60.0]
        nursery.cancel_scope.cancel()


async def test_again_lets_others_run_first() -> None:
    order: list[str] = []
    bell = Doorbell()
    left = [10]

    def turn() -> float | None:
        order.append("turn")
        left[0] -= 1
        return AGAIN if left[0] else None

    async def other() -> None:
        while left[0]:
            order.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.take_turns, turn)
        nursery.start_soon(other)
    # One step of everybody in each round of Trio's, in any order: never a third turn before somebody else's step.
    assert "turn turn turn" not in " ".join(order)
    assert order.count("turn") == 10
    assert order.count("other") >= 9


async def test_again_on_the_spot_is_the_tasks_own_next_turn() -> None:
    """Not the ringer's: who rings many bells would be kept by the first."""
    async with trio.open_nursery() as nursery:
        bell, turn, taker, _ = await started(nursery, NEVER, AGAIN, AGAIN, NEVER)
        bell.ring()
        assert turn.count == 2
        await wait_all_tasks_blocked()
        assert turn.count == 4
        assert turn.tasks == [taker.task, trio.lowlevel.current_task(), taker.task, taker.task]
        bell.ring()
        assert turn.count == 5, "on the spot again"
        nursery.cancel_scope.cancel()


async def test_none_ends() -> None:
    async with trio.open_nursery() as nursery:
        bell, turn, taker, _ = await started(nursery, 1.0, None)
        clock().jump(1)
        await wait_all_tasks_blocked()
        assert taker.ended
        bell.ring()
        assert turn.count == 2


async def test_none_on_the_spot_ends() -> None:
    async with trio.open_nursery() as nursery:
        bell, turn, taker, _ = await started(nursery, NEVER, None)
        bell.ring()
        assert not taker.ended, "how it ends is the task's own business"
        bell.ring()
        await wait_all_tasks_blocked()
        assert taker.ended
        assert turn.count == 2, "and none after the last"
        bell.ring()
        assert turn.count == 2


async def test_exception_of_a_turn_on_the_spot_is_raised_in_the_task() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        bell, turn, taker, _ = await started(nursery, NEVER, problem)
        bell.ring()  # the ringer is none the worse for it
        bell.ring()
        assert turn.count == 2, "no more turns after that"
        await wait_all_tasks_blocked()
        assert taker.error is problem
        assert turn.count == 2


async def test_exception_of_a_turn_of_the_task() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        _, _, taker, _ = await started(nursery, 1.0, problem)
        clock().jump(1)
        await wait_all_tasks_blocked()
        assert taker.error is problem


async def test_exception_is_not_lost_when_the_deadline_comes_at_the_same_moment() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        bell, turn, taker, _ = await started(nursery, 1.0, problem, NEVER)
        bell.ring()
        clock().jump(1)
        await wait_all_tasks_blocked()
        assert taker.error is problem
        assert turn.count == 2


async def test_ring_inside_the_first_turn_is_one_more_turn() -> None:
    bell = Doorbell()
    taken: list[int] = []

    def turn() -> float | None:
        taken.append(1)
        if len(taken) == 1:
            bell.ring()
            bell.ring()
            return NEVER
        return None

    await bell.take_turns(turn)
    assert len(taken) == 2


async def test_ring_inside_a_turn_on_the_spot_is_no_turn_inside_another() -> None:
    """It does not happen (see the module), but a doorbell is no place for surprises."""
    bell = Doorbell()
    depth, deepest = [0], [0]
    rung = [0]

    def turn() -> float | None:
        depth[0] += 1
        deepest[0] = max(deepest[0], depth[0])
        depth[0] -= 1
        return None if rung[0] == 2 else NEVER

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.take_turns, turn)
        await wait_all_tasks_blocked()
        for _ in range(2):
            rung[0] += 1
            bell.ring()
    assert deepest == [1]


async def test_ring_before_the_turns_is_harmless() -> None:
    async with trio.open_nursery() as nursery:
        bell = Doorbell()
        bell.ring()
        turn = Script(NEVER)
        nursery.start_soon(bell.take_turns, turn)
        await wait_all_tasks_blocked()
        assert 1 <= turn.count <= 2
        count = turn.count
        bell.ring()
        assert turn.count == count + 1
        nursery.cancel_scope.cancel()


async def test_rings_while_the_task_is_scheduled_are_not_lost() -> None:
    """A turn follows each ring, now or soon."""
    async with trio.open_nursery() as nursery:
        bell, turn, _, _ = await started(nursery, NEVER, AGAIN, NEVER)
        bell.ring()  # asks for another turn, so the task is scheduled
        bell.ring()
        bell.ring()
        assert turn.count == 2
        await wait_all_tasks_blocked()
        assert turn.count >= 3
        count = turn.count
        bell.ring()
        assert turn.count == count + 1
        nursery.cancel_scope.cancel()


async def test_ring_while_the_task_lets_others_go_first() -> None:
    bell = Doorbell()
    left, served = [0], [0]

    def turn() -> float | None:
        served[0] += left[0]
        left[0] = 0
        return AGAIN if served[0] < 5 else None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.take_turns, turn)
        for _ in range(5):
            left[0] += 1
            bell.ring()
            await trio.lowlevel.checkpoint()
    assert served == [5]


async def test_cancellation_leaves_nothing_behind() -> None:
    bell, turn = Doorbell(), Script(NEVER)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.take_turns, turn)
            await wait_all_tasks_blocked()
            scope.cancel()
    bell.ring()
    assert turn.count == 1
    await bell.wait()  # it was remembered
    other = Script(NEVER, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.take_turns, other)
        await wait_all_tasks_blocked()
        bell.ring()
    assert turn.count == 1
    assert other.count >= 2


async def test_cancellation_while_there_is_always_more_to_do() -> None:
    bell, turn = Doorbell(), Script(AGAIN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.take_turns, turn)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turn.count >= 2
    bell.ring()
    await bell.wait()


async def test_waiting_for_a_ring_after_the_turns_is_waiting_again() -> None:
    """As a flow does that ends with a reset for which the link has no room."""
    bell, turn = Doorbell(), Script(ValueError("over"))
    with pytest.raises(ValueError, match="over"):
        await bell.take_turns(turn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await wait_all_tasks_blocked()
        bell.ring()
    assert turn.count == 1
