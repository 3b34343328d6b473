"""The benchmark's samples: medians, failures that are no zeros, the floor that has no MTU."""

import json

import pytest

from tests.bench.cells import (
    ALL,
    CRR,
    FLOOR,
    NAMESPACE,
    OURS,
    PASST,
    PROGRAMS,
    RR,
    UDP,
    Attachment,
    Bulk,
    Cpu,
    Direction,
    Flood,
    Local,
    rows,
)
from tests.bench.results import Idle, Results, Samples, Sharing

UP = Bulk(Direction.UP, 65520, 1)


@pytest.fixture
def results() -> Results:
    return Results(PROGRAMS, rows(ALL))


def test_all_conditions_are_measured_each_once() -> None:
    bulk = [cell for cell in ALL if isinstance(cell, Bulk) and cell.attachment is Attachment.MACHINE]
    assert len(bulk) == 2 * 3 * 2
    assert len(ALL) == len(bulk) + 2 + len(UDP) + len(NAMESPACE)
    assert {cell.attachment for cell in NAMESPACE} == {Attachment.NAMESPACE}
    assert len({row.name for row in rows(ALL)}) == len(rows(ALL))


def test_cpu_time_has_a_row_for_each_cell_with_one_flow() -> None:
    cpu = [row.bulk for row in rows(ALL) if isinstance(row, Cpu)]
    assert set(cpu) == {
        cell
        for cell in ALL
        if isinstance(cell, Flood)
        or (isinstance(cell, Bulk) and cell.flow_count == 1)
        or (isinstance(cell, Local) and cell.kind == "bulk")
    }


def test_a_flood_has_a_row_for_what_is_lost() -> None:
    floods = [cell for cell in ALL if isinstance(cell, Flood)]
    assert len(floods) == 2 * 2 + 2 * 2
    assert {flood.lost for flood in floods} < set(rows(ALL))


def test_median_and_spread() -> None:
    samples = Samples([3.0, 1.0, 2.0, 10.0])
    assert samples.median == 2.5
    assert samples.spread == (1.0, 10.0)


def test_what_failed_is_no_zero(results: Results) -> None:
    results.add_failure(UP, PASST, "no way")
    results.add(UP, OURS, 5.0)
    assert results.of(UP, PASST).median is None
    assert results.of(UP, PASST).spread is None
    assert results.ratio(UP, OURS, PASST) is None


def test_failures_do_not_change_the_median_of_what_succeeded(results: Results) -> None:
    results.add(UP, OURS, 5.0)
    results.add_failure(UP, OURS, "once")
    assert results.of(UP, OURS).median == 5.0
    assert results.of(UP, OURS).failures == ["once"]


def test_a_ratio_is_one_of_medians(results: Results) -> None:
    for ours, theirs in ((1.0, 8.0), (6.0, 2.0), (4.0, 1.0)):
        results.add(RR, OURS, ours)
        results.add(RR, PASST, theirs)
    assert results.ratio(RR, OURS, PASST) == 2.0


def test_nothing_was_measured(results: Results) -> None:
    assert results.of(CRR, OURS) == Samples()
    assert results.ratio(CRR, OURS, PASST) is None


def test_the_floor_has_no_mtu(results: Results) -> None:
    results.add(UP, FLOOR, 12.0)
    results.add(UP, OURS, 5.0)
    small = Bulk(Direction.UP, 1500, 1)
    assert results.of(small, FLOOR).median == 12.0
    assert results.of(small, OURS).median is None
    assert results.of(Bulk(Direction.UP, 1500, 8), FLOOR).median is None
    assert results.of(Bulk(Direction.UP, 1500, 1, Attachment.NAMESPACE), FLOOR).median is None


def test_json_has_everything(results: Results) -> None:
    results.add(UP, OURS, 5.0)
    results.add_failure(UP, PASST, "no way")
    results.idle = Idle(10_000, 8.1, 0.001, 0.0)
    results.sharing.append(Sharing(OURS, "up", 1000, 8, 1.0, 3.0, 2.0, 0.9))
    document = json.loads(json.dumps(results.to_json()))
    (cell,) = [cell for cell in document["cells"] if cell["cell"] == "up-65520-1"]
    assert cell["unit"] == "Gbit/s"
    assert cell["programs"][OURS] == {"min": 5.0, "median": 5.0, "max": 5.0, "samples": [5.0], "failures": []}
    assert cell["programs"][PASST] == {
        "min": None,
        "median": None,
        "max": None,
        "samples": [],
        "failures": ["no way"],
    }
    assert FLOOR not in cell["programs"]
    assert document["idle"]["kib_per_connection"] == 8.1
    assert document["sharing"][0]["fairness"] == 0.9


def test_sharing_compares_times() -> None:
    assert Sharing(OURS, "up", 1000, 8, 1.0, many_s=3.0, few_s=2.0, fairness=1.0).time_ratio == 1.5
