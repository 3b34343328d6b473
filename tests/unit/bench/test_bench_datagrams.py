"""What the two ends of a flow of datagrams have counted, as numbers of the table."""

from typing import Any

import pytest

from tests.bench.cells import Cpu, Direction, Flood, Paced
from tests.bench.datagrams import numbers_of
from tests.bench.measure import MeasurementError

FLOOD, PACED = Flood(Direction.UP, 1000), Paced(Direction.UP, 1000, megabits_per_s=8)
SENT = {"sent": 2000, "seconds": 2.0}


def _received(**counts: int) -> dict[str, Any]:
    return {"arrived": 1500, "bytes": 2_500_000, "measured_bytes": 1_250_000, "overflowed": 0} | counts


def test_a_flood() -> None:
    """CPU time is for all that arrives, the rate is of what arrives in time, and what is numbered may be lost."""
    assert numbers_of(FLOOD, SENT, _received(), used_s=0.005) == {FLOOD: 0.005, FLOOD.lost: 25.0, Cpu(FLOOD): 2.0}


def test_the_floor_takes_no_cpu_time() -> None:
    assert numbers_of(FLOOD, SENT, _received(), used_s=None) == {FLOOD: 0.005, FLOOD.lost: 25.0}


def test_what_the_receiver_loses_is_not_the_programs_loss() -> None:
    with pytest.raises(MeasurementError, match="receiver itself lost 3"):
        numbers_of(FLOOD, SENT, _received(overflowed=3), used_s=0.005)


def test_at_a_rate_the_loss_is_all_that_counts() -> None:
    assert numbers_of(PACED, SENT, _received(arrived=1999), used_s=0.005) == {PACED: pytest.approx(0.05)}


@pytest.mark.parametrize("sent", [0, 990])
def test_a_sender_that_is_too_slow_has_measured_something_else(sent: int) -> None:
    with pytest.raises(MeasurementError, match="sender sent"):
        numbers_of(PACED, SENT | {"sent": sent}, _received(), used_s=0.005)
