"""`Life`: what is done for it outside of it, and what is not urgent."""

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_passt.flow.life import Life, rest

pytestmark = pytest.mark.usefixtures("standing_clock")


class Sleeper:
    """A life that rests until it is rung `rings` times, and remembers that it has cleaned up."""

    def __init__(self, rings: int = 1, later: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.cleaned_up = 0
        self._rings = rings
        self.life = Life(self._live) if later is None else Life(self._live, later)
        self.ended_with: list[Exception | None] = []

    async def _live(self) -> None:
        try:
            for _ in range(self._rings):
                await rest(math.inf)
        finally:
            self.cleaned_up += 1

    async def run(self) -> None:
        try:
            await self.life.run()
            self.ended_with.append(None)
        except Exception as error:
            self.ended_with.append(error)


async def test_failure_outside_ends_it_on_the_spot_and_its_task_raises() -> None:
    sleeper, failure = Sleeper(), RuntimeError("a bug")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper.run)
        await wait_all_tasks_blocked()
        sleeper.life.fail(failure)
        assert sleeper.life.is_over
        assert sleeper.cleaned_up == 1
        assert sleeper.ended_with == []
    assert sleeper.ended_with == [failure]


async def test_failure_before_the_task_has_run() -> None:
    sleeper, failure = Sleeper(), RuntimeError("a bug")
    sleeper.life.ring()
    sleeper.life.fail(failure)
    assert sleeper.cleaned_up == 1
    await sleeper.run()
    assert sleeper.ended_with == [failure]


async def test_failure_before_the_beginning() -> None:
    sleeper, failure = Sleeper(), RuntimeError("a bug")
    sleeper.life.fail(failure)
    await sleeper.run()
    assert sleeper.ended_with == [failure]
    assert sleeper.cleaned_up == 0


async def test_failure_after_the_end_means_nothing() -> None:
    sleeper = Sleeper()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper.run)
        await wait_all_tasks_blocked()
        sleeper.life.ring()
        assert sleeper.life.is_over
        sleeper.life.fail(RuntimeError("too late"))
    assert sleeper.ended_with == [None]
    assert sleeper.cleaned_up == 1


async def test_failure_inside_is_an_exception_like_others() -> None:
    async def live() -> None:
        life.fail(RuntimeError("a bug"))

    life = Life(live)
    with pytest.raises(RuntimeError, match="a bug"):
        await life.run()


async def test_end_is_told_the_task_when_there_is_time() -> None:
    left: list[Callable[[], None]] = []
    sleeper = Sleeper(later=left.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper.run)
        await wait_all_tasks_blocked()
        sleeper.life.ring()
        assert sleeper.life.is_over
        assert sleeper.cleaned_up == 1
        await wait_all_tasks_blocked()
        assert sleeper.ended_with == []
        (tell,) = left
        tell()
    assert sleeper.ended_with == [None]


async def test_end_that_is_never_told_is_no_harm_to_a_cancelled_task() -> None:
    left: list[Callable[[], None]] = []
    sleeper = Sleeper(later=left.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper.run)
        await wait_all_tasks_blocked()
        sleeper.life.ring()
        nursery.cancel_scope.cancel()
    for tell in left:
        tell()
    assert sleeper.cleaned_up == 1


async def test_what_has_ended_well() -> None:
    """Not what has failed, in it or outside of it, and not what has not ended."""
    sound, failed = Sleeper(), Sleeper()
    for sleeper in (sound, failed):
        sleeper.life.ring()
        assert not sleeper.life.has_ended_well
    sound.life.ring()
    failed.life.fail(RuntimeError("a bug"))
    assert sound.life.is_over
    assert failed.life.is_over
    assert (sound.life.has_ended_well, failed.life.has_ended_well) == (True, False)
