import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_passt.flow.doorbell import Doorbell

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_ring_wakes_the_sleeper() -> None:
    bell, woken = Doorbell(), []

    async def sleep() -> None:
        await bell.wait()
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await wait_all_tasks_blocked()
        assert not woken
        bell.ring()
    assert woken


async def test_ring_is_remembered_once() -> None:
    bell = Doorbell()
    bell.ring()
    bell.ring()
    await bell.wait()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


async def test_several_rings_before_the_sleeper_runs_are_one() -> None:
    bell, rounds = Doorbell(), []

    async def sleep() -> None:
        while True:
            await bell.wait()
            rounds.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await wait_all_tasks_blocked()
        for _ in range(5):
            bell.ring()
        await wait_all_tasks_blocked()
        assert len(rounds) == 1
        bell.ring()
        await wait_all_tasks_blocked()
        assert len(rounds) == 2
        nursery.cancel_scope.cancel()


async def test_cancelled_sleep_leaves_nobody_to_wake() -> None:
    bell = Doorbell()
    with trio.move_on_after(0):
        await bell.wait()
    bell.ring()
    await bell.wait()


async def test_wait_is_a_checkpoint_when_a_ring_was_remembered() -> None:
    bell = Doorbell()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait()
    assert scope.cancelled_caught
