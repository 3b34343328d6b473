"""Supervision: what ends a flow, and what does not end anything else."""

import logging
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.flow.key import FlowKey
from trio_passt.flow.table import BriefTable, FlowLimit, FlowTable
from trio_passt.host.seldom import WARN_EVERY_S


class StubFlow:
    """A flow that does what it is told."""

    def __init__(self, number: int) -> None:
        self.key = FlowKey(b"\x0a\0\0\1", number, b"\x0a\0\0\2", 80)
        self.told = trio.Event()
        self.error: Exception | None = None
        self.abandoned = self.cancelled = self.has_run = self.has_ended_well = False

    async def run(self) -> None:
        self.has_run = True
        try:
            await self.told.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        if self.error:
            raise self.error

    def abandon(self) -> None:
        self.abandoned = True

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.told.set()


async def test_flow_is_in_the_table_while_it_runs() -> None:
    async with trio.open_nursery() as nursery:
        limit = FlowLimit(10)
        table: FlowTable[StubFlow] = FlowTable(nursery, limit)
        one, other = StubFlow(1), StubFlow(2)
        assert table.start(one)
        assert table.start(other)
        assert (table.get(one.key), table.get(other.key)) == (one, other)
        assert (len(table), limit.count) == (2, 2)
        one.end()
        await wait_all_tasks_blocked()
        assert table.get(one.key) is None
        assert (len(table), limit.count) == (1, 1)
        other.end()
    assert not one.abandoned


async def test_newest_flows() -> None:
    async with trio.open_nursery() as nursery:
        table: FlowTable[StubFlow] = FlowTable(nursery, FlowLimit(10))
        flows = [StubFlow(number) for number in range(5)]
        for flow in flows:
            assert table.start(flow)
        assert table.newest(2) == [flows[4], flows[3]]
        assert table.newest(10) == flows[::-1]
        assert table.most == 10
        table.forget(flows[4])
        assert table.newest(1) == [flows[3]]
        nursery.cancel_scope.cancel()


async def test_all_flows_are_told_one_by_one() -> None:
    async with trio.open_nursery() as nursery:
        table: FlowTable[StubFlow] = FlowTable(nursery, FlowLimit(10))
        flows = [StubFlow(number) for number in range(3)]
        for flow in flows:
            table.start(flow)
        assert list(table) == flows
        table.forget(flows[1])
        assert list(table) == [flows[0], flows[2]]
        nursery.cancel_scope.cancel()


async def test_flow_that_is_forgotten_counts_no_more() -> None:
    """And its task's end does not take away another one that has its key by then."""
    async with trio.open_nursery() as nursery:
        limit = FlowLimit(10)
        table: FlowTable[StubFlow] = FlowTable(nursery, limit)
        former, latter = StubFlow(1), StubFlow(1)
        table.start(former)
        table.forget(former)
        assert (len(table), limit.count) == (0, 0)
        table.start(latter)
        former.end()
        await wait_all_tasks_blocked()
        assert table.get(latter.key) is latter
        assert (len(table), limit.count) == (1, 1)
        latter.end()
        await wait_all_tasks_blocked()
        assert (len(table), limit.count) == (0, 0)


async def test_flow_that_has_ended_before_its_task_begins_needs_none() -> None:
    waiting: list[Callable[[], None]] = []
    async with trio.open_nursery() as nursery:
        limit = FlowLimit(3)
        table: BriefTable[StubFlow] = BriefTable(nursery, limit, waiting.append)
        former, latter, lasting = StubFlow(1), StubFlow(1), StubFlow(2)
        assert table.start(former)
        former.has_ended_well = True
        table.forget(former)
        assert table.start(latter)
        assert table.start(lasting)
        latter.has_ended_well = True
        for begin in waiting:
            begin()
        lasting.end()
        await wait_all_tasks_blocked()
        assert [flow.has_run for flow in (former, latter, lasting)] == [False, False, True]
        assert (len(table), limit.count) == (0, 0)


async def test_task_may_begin_later_than_the_flow() -> None:
    """It is in the table, and counts, from the start."""
    waiting: list[Callable[[], None]] = []
    async with trio.open_nursery() as nursery:
        limit = FlowLimit(1)
        table: FlowTable[StubFlow] = FlowTable(nursery, limit, waiting.append)
        flow = StubFlow(1)
        flow.end()
        assert table.start(flow)
        assert not table.start(StubFlow(2))
        await wait_all_tasks_blocked()
        assert table.get(flow.key) is flow
        (begin,) = waiting
        begin()
        await wait_all_tasks_blocked()
        assert (len(table), limit.count) == (0, 0)


async def test_error_ends_one_flow_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        table: FlowTable[StubFlow] = FlowTable(nursery, FlowLimit(10))
        sick, sound = StubFlow(1), StubFlow(2)
        table.start(sick)
        table.start(sound)
        sick.end(ZeroDivisionError("oops"))
        await wait_all_tasks_blocked()
        assert sick.abandoned
        assert table.get(sick.key) is None
        assert table.get(sound.key) is sound
        sound.end()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "10.0.0.1 port 1" in record.getMessage()
    assert "oops" in caplog.text


async def test_session_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        table: FlowTable[StubFlow] = FlowTable(nursery, FlowLimit(10))
        flow = StubFlow(1)
        table.start(flow)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert flow.cancelled
    assert not flow.abandoned
    assert len(table) == 0
    assert not caplog.records


async def test_limit_is_shared_and_told_now_and_then(caplog: pytest.LogCaptureFixture, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        limit = FlowLimit(2)
        one: FlowTable[StubFlow] = FlowTable(nursery, limit)
        other: FlowTable[StubFlow] = FlowTable(nursery, limit)
        first = StubFlow(1)
        assert one.start(first)
        assert other.start(StubFlow(2))
        for _ in range(3):
            assert not one.start(StubFlow(3))
            assert not other.start(StubFlow(3))
        assert [record.getMessage() for record in caplog.records] == ["limit of 2 flows reached, refusing new ones"]
        mock_clock.jump(WARN_EVERY_S)
        assert not one.start(StubFlow(3))
        assert len(caplog.records) == 2
        first.end()
        await wait_all_tasks_blocked()
        assert one.start(StubFlow(3))
        nursery.cancel_scope.cancel()
