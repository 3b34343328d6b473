"""`Life`: resumed on the spot by whoever rings, and by its task when its time comes, and after others' turns."""

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.flow.life import SOON, Life, rest

pytestmark = pytest.mark.usefixtures("standing_clock")

NEVER = math.inf


class Script:
    """A life that rests until what it is told, and remembers when and in which task it was resumed.

    What it gives after the last of `answers` is the last one again.  `None` ends it, an exception is raised.
    """

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)
        self.resumed_at: list[float] = []
        self.tasks: list[trio.lowlevel.Task] = []
        self.cleaned_up = 0

    async def live(self) -> None:
        try:
            while True:
                self.resumed_at.append(trio.current_time())
                self.tasks.append(trio.lowlevel.current_task())
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    return
                await rest(answer)
        finally:
            self.cleaned_up += 1

    @property
    def count(self) -> int:
        return len(self.resumed_at)


class Runner:
    """The task."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.task: trio.lowlevel.Task | None = None
        self.ended = False
        self.error: Exception | None = None

    async def run(self) -> None:
        self.task = trio.lowlevel.current_task()
        try:
            await self.life.run()
            self.ended = True
        except Exception as error:
            self.error = error


class Steps(trio.abc.Instrument):
    """Counts how often a task runs."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task = task
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


def clock() -> MockClock:
    ours = trio.lowlevel.current_clock()
    assert isinstance(ours, MockClock)
    return ours


async def passes(seconds: float) -> None:
    clock().jump(seconds)
    await wait_all_tasks_blocked()


async def started(nursery: trio.Nursery, *answers: float | Exception | None) -> tuple[Life, Script, Runner, Steps]:
    """A life whose task has begun it, and sleeps (or is over)."""
    script = Script(*answers)
    life = Life(script.live)
    runner = Runner(life)
    nursery.start_soon(runner.run)
    await wait_all_tasks_blocked()
    assert runner.task is not None
    steps = Steps(runner.task)
    trio.lowlevel.add_instrument(steps)
    return life, script, runner, steps


async def test_task_begins_it_without_a_ring() -> None:
    script = Script(None)
    await Life(script.live).run()
    assert script.count == 1


async def test_ring_begins_it_before_its_task_runs() -> None:
    async with trio.open_nursery() as nursery:
        script = Script(NEVER)
        life = Life(script.live)
        runner = Runner(life)
        nursery.start_soon(runner.run)
        life.ring()
        assert script.tasks == [trio.lowlevel.current_task()]
        assert runner.task is None
        await wait_all_tasks_blocked()
        assert script.count == 1, "the task has nothing to add"
        nursery.cancel_scope.cancel()
    assert script.cleaned_up == 1


@pytest.mark.parametrize("last", [None, ValueError("bad luck")])
async def test_it_may_be_over_before_its_task_runs(last: Exception | None) -> None:
    script = Script(NEVER, last)
    life = Life(script.live)
    life.ring()
    life.ring()
    life.ring()
    assert (script.count, script.cleaned_up) == (2, 1)
    runner = Runner(life)
    await runner.run()
    assert runner.error is last
    assert runner.ended is (last is None)


async def test_one_that_never_began_leaves_nothing_behind() -> None:
    """As that of a flow that is refused: a coroutine that is never awaited would be a warning, here an error."""
    script = Script(None)
    Life(script.live)
    assert script.count == 0


async def test_each_ring_resumes_it_on_the_spot_in_the_ringers_task() -> None:
    async with trio.open_nursery() as nursery:
        life, script, runner, steps = await started(nursery, NEVER)
        assert script.tasks == [runner.task]
        for count in (2, 3, 4):
            life.ring()
            assert script.count == count
            await wait_all_tasks_blocked()
        assert script.tasks[1:] == [trio.lowlevel.current_task()] * 3
        assert (script.count, steps.count) == (4, 0), "the task itself slept all the while"
        nursery.cancel_scope.cancel()


async def test_task_resumes_it_when_its_time_comes() -> None:
    async with trio.open_nursery() as nursery:
        _, script, runner, _ = await started(nursery, 5.0, 7.0, NEVER)
        for time, count in ((4.9, 1), (5.0, 2), (6.9, 2), (7.0, 3), (1000.0, 3)):
            await passes(time - trio.current_time())
            assert script.count == count
        assert script.tasks == [runner.task] * 3
        nursery.cancel_scope.cancel()


async def test_time_that_has_passed_comes_soon() -> None:
    async with trio.open_nursery() as nursery:
        clock().jump(10)
        _, script, _, _ = await started(nursery, 3.0, 10.0, NEVER)
        assert script.count == 3
        nursery.cancel_scope.cancel()


async def test_earlier_time_given_on_the_spot_is_kept() -> None:
    async with trio.open_nursery() as nursery:
        life, script, _, _ = await started(nursery, 60.0, 5.0, NEVER)
        life.ring()
        await passes(4.9)
        assert script.count == 2
        await passes(0.1)
        assert script.resumed_at == [0, 0, 5.0]
        nursery.cancel_scope.cancel()


async def test_later_time_given_on_the_spot_is_kept_too() -> None:
    """The task wakes at the earlier one, finds out, and sleeps on: the life is not resumed for nothing."""
    async with trio.open_nursery() as nursery:
        life, script, _, steps = await started(nursery, 5.0, 60.0, NEVER)
        life.ring()
        await passes(5)
        assert (script.count, steps.count) == (2, 1)
        await passes(54.9)
        assert (script.count, steps.count) == (2, 1)
        await passes(0.1)
        assert script.resumed_at == [0, 0, 60.0]
        nursery.cancel_scope.cancel()


async def test_soon_lets_others_run_first() -> None:
    order: list[str] = []
    left = [10]

    async def busy() -> None:
        while left[0]:
            order.append("life")
            left[0] -= 1
            await rest(SOON)

    async def other() -> None:
        while left[0]:
            order.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Life(busy).run)
        nursery.start_soon(other)
    # One step of everybody in each round of Trio's, in any order: never a third turn before somebody else's step.
    assert "life life life" not in " ".join(order)
    assert order.count("life") == 10
    assert order.count("other") >= 9


async def test_soon_given_on_the_spot_is_the_tasks_business() -> None:
    """Not the ringer's: who rings many would be kept by the first."""
    async with trio.open_nursery() as nursery:
        life, script, runner, _ = await started(nursery, NEVER, SOON, SOON, NEVER)
        life.ring()
        assert script.count == 2
        await wait_all_tasks_blocked()
        assert script.count == 4
        assert script.tasks == [runner.task, trio.lowlevel.current_task(), runner.task, runner.task]
        life.ring()
        assert script.count == 5, "on the spot again"
        nursery.cancel_scope.cancel()


async def test_soon_given_before_the_task_runs() -> None:
    async with trio.open_nursery() as nursery:
        script = Script(SOON, NEVER)
        life = Life(script.live)
        life.ring()
        life.ring()
        assert script.count == 1, "it goes on by itself"
        nursery.start_soon(life.run)
        await wait_all_tasks_blocked()
        assert script.count == 2
        nursery.cancel_scope.cancel()


async def test_rings_while_it_is_to_go_on_soon_are_not_lost() -> None:
    served, left = [0], [0]

    async def serve() -> None:
        while served[0] < 5:
            served[0] += left[0]
            left[0] = 0
            await rest(SOON)

    life = Life(serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        for _ in range(5):
            left[0] += 1
            life.ring()
            await trio.lowlevel.checkpoint()
    assert served == [5]


async def test_end_by_the_task() -> None:
    async with trio.open_nursery() as nursery:
        life, script, runner, _ = await started(nursery, 1.0, None)
        await passes(1)
        assert runner.ended
        life.ring()
        assert script.count == 2


async def test_end_on_the_spot() -> None:
    async with trio.open_nursery() as nursery:
        life, script, runner, _ = await started(nursery, NEVER, None)
        life.ring()
        assert script.cleaned_up == 1
        assert not runner.ended, "what follows is the task's own business"
        life.ring()
        await wait_all_tasks_blocked()
        assert runner.ended
        life.ring()
        assert script.count == 2, "it has only one"


async def test_exception_on_the_spot_is_raised_in_the_task() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        life, script, runner, _ = await started(nursery, NEVER, problem)
        life.ring()  # the ringer is none the worse for it
        life.ring()
        await wait_all_tasks_blocked()
        assert runner.error is problem
        assert (script.count, script.cleaned_up) == (2, 1)


async def test_exception_in_the_task() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        _, _, runner, _ = await started(nursery, 1.0, problem)
        await passes(1)
        assert runner.error is problem


async def test_exception_is_not_lost_when_the_time_comes_at_the_same_moment() -> None:
    problem = ValueError("bad luck")
    async with trio.open_nursery() as nursery:
        life, script, runner, _ = await started(nursery, 1.0, problem, NEVER)
        life.ring()
        await passes(1)
        assert runner.error is problem
        assert script.count == 2


async def in_the_ringer(life: Life, nursery: trio.Nursery) -> None:
    life.ring()
    nursery.start_soon(life.run)


async def in_the_task(life: Life, nursery: trio.Nursery) -> None:
    nursery.start_soon(life.run)


@pytest.mark.parametrize("begin", [in_the_ringer, in_the_task])
async def test_ring_from_inside_is_remembered(begin: Callable[[Life, trio.Nursery], object]) -> None:
    depth, deepest, count = [0], [0], [0]

    async def live() -> None:
        while True:
            depth[0] += 1
            deepest[0] = max(deepest[0], depth[0])
            count[0] += 1
            if count[0] == 1:
                life.ring()
                life.ring()
            depth[0] -= 1
            await rest(NEVER)

    life = Life(live)
    async with trio.open_nursery() as nursery:
        await begin(life, nursery)  # type: ignore[misc]
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (count, deepest) == ([2], [1])


async def test_ring_from_inside_at_the_end_is_nothing() -> None:
    async def live() -> None:
        life.ring()

    life = Life(live)
    await life.run()
    life.ring()


async def test_cancellation_closes_it() -> None:
    async with trio.open_nursery() as nursery:
        life, script, _, _ = await started(nursery, NEVER)
        nursery.cancel_scope.cancel()
    assert script.cleaned_up == 1
    life.ring()
    assert script.count == 1


async def test_cancellation_while_there_is_always_more_to_do() -> None:
    script = Script(SOON)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Life(script.live).run)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert script.count >= 2
    assert script.cleaned_up == 1


async def test_cancellation_before_the_task_runs_closes_what_had_begun() -> None:
    script = Script(NEVER)
    life = Life(script.live)
    life.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        nursery.cancel_scope.cancel()
    assert script.cleaned_up == 1
