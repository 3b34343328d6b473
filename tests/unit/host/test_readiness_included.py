"""One set of sockets within another: whoever waits for the outer one's events has the inner one's, too."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.host.readiness import READABLE, Readiness


@pytest.fixture
def inner() -> Iterator[Readiness]:
    readiness = Readiness()
    yield readiness
    readiness.close()


@pytest.fixture
def outer() -> Iterator[Readiness]:
    readiness = Readiness(lingers=True)
    yield readiness
    readiness.close()


class Watched:
    """A pipe's end in the inner set, and how often it was told of."""

    def __init__(self, inner: Readiness) -> None:
        self._inner = inner
        self.read, self._write = os.pipe2(os.O_NONBLOCK)
        self.told = 0
        self.pause_s = 0.0
        inner.watch(self.read, self, events=READABLE, edge_triggered=False)

    def __call__(self, _mask: int) -> None:
        self.told += 1
        if self.pause_s:
            self._inner.pause(self.pause_s)
        else:
            os.read(self.read, 100)

    def happens(self) -> None:
        os.write(self._write, b"x")

    def close(self) -> None:
        os.close(self.read)
        os.close(self._write)


@pytest.fixture
async def watched(inner: Readiness) -> AsyncIterator[Watched]:
    watched = Watched(inner)
    yield watched
    inner.forget(watched.read)
    watched.close()


async def test_outer_one_delivers(inner: Readiness, outer: Readiness, watched: Watched) -> None:
    """Also if the inner one's own task does not run, or already waits."""
    for runs_inner in (False, True):
        async with trio.open_nursery() as nursery:
            if runs_inner:
                nursery.start_soon(inner.run)
                await wait_all_tasks_blocked()
            outer.include(inner)
            nursery.start_soon(outer.run)
            for _ in range(3):
                watched.happens()
                await wait_all_tasks_blocked(0.01)
            outer.exclude(inner)
            nursery.cancel_scope.cancel()
        assert watched.told == 3
        watched.told = 0


async def test_it_is_left_to_itself_again(inner: Readiness, outer: Readiness, watched: Watched) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inner.run)
        watched.happens()
        await wait_all_tasks_blocked(0.01)
        assert watched.told == 1
        outer.include(inner)
        watched.happens()
        await wait_all_tasks_blocked(0.01)
        assert watched.told == 1, "nobody runs the outer one"
        outer.exclude(inner)
        await wait_all_tasks_blocked(0.01)
        assert watched.told == 2
        outer.exclude(inner)
        nursery.cancel_scope.cancel()


async def test_later_is_after_the_outer_ones_events(inner: Readiness, outer: Readiness) -> None:
    order: list[str] = []
    read, write = os.pipe2(os.O_NONBLOCK)

    def on_event(_mask: int) -> None:
        os.read(read, 100)
        outer.later(lambda: order.append("later"))
        order.append("event")

    inner.watch(read, on_event, events=READABLE, edge_triggered=False)
    async with trio.open_nursery() as nursery:
        outer.include(inner)
        nursery.start_soon(outer.run)
        os.write(write, b"x")
        await wait_all_tasks_blocked(0.01)
        outer.exclude(inner)
        nursery.cancel_scope.cancel()
    os.close(read)
    os.close(write)
    assert order == ["event", "later"]


async def test_pause_of_the_inner_one_concerns_it_only(
    mock_clock: MockClock, inner: Readiness, outer: Readiness, watched: Watched
) -> None:
    other = Watched(outer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inner.run)
        outer.include(inner)
        nursery.start_soon(outer.run)
        await wait_all_tasks_blocked()
        watched.pause_s = 0.1
        watched.happens()
        await wait_all_tasks_blocked(0.01)
        assert watched.told == 1, "no busy loop"
        other.happens()
        await wait_all_tasks_blocked(0.01)
        assert other.told == 1
        watched.pause_s = 0.0
        mock_clock.jump(0.1)
        await wait_all_tasks_blocked(0.01)
        assert watched.told == 2
        outer.exclude(inner)
        nursery.cancel_scope.cancel()
    outer.forget(other.read)
    other.close()
