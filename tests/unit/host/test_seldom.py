"""A warning now and then."""

import logging

import pytest
import trio
from trio.testing import MockClock

from trio_passt.host.seldom import WARN_EVERY_S, SeldomLog

log = logging.getLogger("trio_passt.test")


async def test_once_and_then_only_after_a_while(mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    seldom = SeldomLog()
    for number in range(3):
        seldom.warn(log, "%s %d", "number", number)
    mock_clock.jump(WARN_EVERY_S - 0.001)
    seldom.warn(log, "too early")
    assert [record.getMessage() for record in caplog.records] == ["number 0"]
    mock_clock.jump(0.001)
    seldom.warn(log, "again")
    seldom.warn(log, "not again")
    assert [record.getMessage() for record in caplog.records] == ["number 0", "again"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_silence_counts_from_the_last_line_that_was_written(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    seldom = SeldomLog()
    while trio.current_time() < 10 * WARN_EVERY_S:
        seldom.warn(log, "all the time")
        mock_clock.jump(1)
    assert len(caplog.records) == 10


async def test_kinds_of_events_do_not_silence_each_other(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    SeldomLog().warn(log, "one")
    SeldomLog().warn(log, "other")
    assert len(caplog.records) == 2
