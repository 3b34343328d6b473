"""Flows that end only by silence: where there are too many, those that have been idle for longest make way."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_passt.flow.key import FlowKey
from trio_passt.flow.table import MAKE_WAY, SilentTable


class Silent:
    """A flow that was last heard of at a given time."""

    def __init__(self, number: int, active_at: float = 0) -> None:
        self.key = FlowKey(b"\x0a\0\0\1", number, b"\x0a\0\0\2", 53)
        self.active_at = active_at
        self.told = trio.Event()
        self.is_ended = self.has_run = False
        self.error: Exception | None = None

    async def run(self) -> None:
        self.has_run = True
        await self.told.wait()
        if self.error is not None:
            raise self.error

    @property
    def has_ended_well(self) -> bool:
        return self.is_ended and self.error is None

    def end(self) -> None:
        self.is_ended = True
        self.told.set()

    def abandon(self) -> None:
        """Nothing to tell."""


def numbers(table: SilentTable[Silent]) -> list[int]:
    return sorted(flow.key.guest_port for flow in table)


@pytest.mark.parametrize("most", [1, 2, MAKE_WAY - 1, MAKE_WAY, MAKE_WAY + 1, 5 * MAKE_WAY])
async def test_idlest_make_way(most: int) -> None:
    """One in so many at a time, but one at least; the others stay."""
    async with trio.open_nursery() as nursery:
        table: SilentTable[Silent] = SilentTable(nursery, most, "silent")
        flows = [Silent(number, active_at=(number * 7) % 101) for number in range(most)]
        for flow in flows:
            assert table.start(flow)
        assert len(table) == most
        await wait_all_tasks_blocked()
        newest = Silent(1000, active_at=1000)
        assert table.start(newest)
        ended = [flow for flow in flows if flow.is_ended]
        assert len(ended) == max(1, most // MAKE_WAY)
        left = [flow.active_at for flow in flows if not flow.is_ended]
        assert not left or max(flow.active_at for flow in ended) <= min(left)
        assert len(table) == most - len(ended) + 1
        assert table.get(newest.key) is newest
        nursery.cancel_scope.cancel()


async def test_there_are_never_more(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        table: SilentTable[Silent] = SilentTable(nursery, 5, "silent")
        for number in range(50):
            assert table.start(Silent(number, active_at=number))
            assert len(table) <= 5
            await wait_all_tasks_blocked()
        assert numbers(table) == list(range(45, 50))
        assert not caplog.records
        nursery.cancel_scope.cancel()


async def test_former_one_with_the_key_makes_way(caplog: pytest.LogCaptureFixture) -> None:
    """It has ended but for its task, whose end does not take the new one away."""
    async with trio.open_nursery() as nursery:
        table: SilentTable[Silent] = SilentTable(nursery, 5, "silent")
        former, latter, other = Silent(1), Silent(1), Silent(2)
        for flow in (other, former, latter):
            assert table.start(flow)
        assert table.get(latter.key) is latter
        assert not other.is_ended
        former.end()
        await wait_all_tasks_blocked()
        assert table.get(latter.key) is latter
        assert numbers(table) == [1, 2]
        nursery.cancel_scope.cancel()


async def test_none_is_refused_for_those_whose_tasks_have_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Those that have made way do not count, however many of them there are at once."""
    async with trio.open_nursery() as nursery:
        table: SilentTable[Silent] = SilentTable(nursery, 2, "silent")
        flows = [Silent(number, active_at=number) for number in range(50)]
        assert all(table.start(flow) for flow in flows)
        assert numbers(table) == [48, 49]
        await wait_all_tasks_blocked()
        assert numbers(table) == [48, 49]
        assert not caplog.records
        nursery.cancel_scope.cancel()


class TestLater:
    """Where tasks begin when there is time."""

    async def test_one_that_has_ended_by_then_needs_none(self) -> None:
        waiting: list[Callable[[], None]] = []
        async with trio.open_nursery() as nursery:
            table: SilentTable[Silent] = SilentTable(nursery, 2, "silent", waiting.append)
            flows = [Silent(number, active_at=number) for number in range(4)]
            for flow in flows:
                table.start(flow)
            flows[2].end()  # by itself: it was answered
            for begin in waiting:
                begin()
            await wait_all_tasks_blocked()
            assert [flow.has_run for flow in flows] == [False, False, False, True]
            assert numbers(table) == [3]
            nursery.cancel_scope.cancel()

    async def test_one_that_has_failed_by_then_is_told_of(self, caplog: pytest.LogCaptureFixture) -> None:
        waiting: list[Callable[[], None]] = []
        async with trio.open_nursery() as nursery:
            table: SilentTable[Silent] = SilentTable(nursery, 2, "silent", waiting.append)
            flow = Silent(1)
            table.start(flow)
            flow.error = ZeroDivisionError("oops")
            flow.end()
            (begin,) = waiting
            begin()
            await wait_all_tasks_blocked()
            assert numbers(table) == []
            (record,) = caplog.records
            assert "oops" in caplog.text
            assert record.levelname == "ERROR"

    async def test_one_whose_key_is_anothers_by_then(self) -> None:
        waiting: list[Callable[[], None]] = []
        async with trio.open_nursery() as nursery:
            table: SilentTable[Silent] = SilentTable(nursery, 2, "silent", waiting.append)
            former, latter = Silent(1), Silent(1)
            table.start(former)
            former.end()
            table.start(latter)
            for begin in waiting:
                begin()
            await wait_all_tasks_blocked()
            assert table.get(latter.key) is latter
            assert (former.has_run, latter.has_run) == (False, True)
            nursery.cancel_scope.cancel()
