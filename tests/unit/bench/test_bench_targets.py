"""What the benchmark says of trio-passt's targets."""

import pytest

from tests.bench import targets
from tests.bench.cells import (
    ALL,
    CRR,
    DNS,
    FLOOR,
    NAMESPACE,
    OURS,
    OURS_PASTA,
    PASST,
    PASTA,
    PROGRAMS,
    RR,
    SHORT,
    SLIRP,
    UDP_RR,
    Attachment,
    Bulk,
    Cell,
    Direction,
    Flood,
    Local,
    Paced,
    Rate,
    rows,
)
from tests.bench.results import Idle, Results, Sharing

ONE, EIGHT = Bulk(Direction.DOWN, 9000, 1), Bulk(Direction.DOWN, 9000, 8)


@pytest.fixture
def results() -> Results:
    return Results(PROGRAMS, rows(ALL))


def _found(results: Results, name: str) -> targets.Target:
    found = [target for target in [*targets.speed(results), *targets.scale(results)] if name in target.name]
    (of_a_machine,) = [target for target in found if not target.name.startswith("namespace")]
    return of_a_machine


def _measured(results: Results, cell: Cell, program: str, *numbers: float) -> None:
    for number in numbers:
        results.add(cell, program, number)


def test_nothing_is_met_by_not_measuring_it(results: Results) -> None:
    found = list(targets.speed(results))
    of_tcp = 12 + 12 + 6 + 2  # ratio and steadiness of a bulk cell, 8 flows to 1, ratio of a rate
    of_udp = 4 + 4 + 4 + 1 + 1  # ratio and loss of a flood, loss at a rate, ratio of a rate, lookups
    of_a_namespace = 4 * 3 + 2 + 3 + 6 + 2  # ratios of bulk cells, small MTU to large, of rates, local ones, floods
    assert len(found) == of_tcp + of_udp + of_a_namespace
    assert {target.is_met for target in found} == {None}


@pytest.mark.parametrize(("ours", "is_met"), [(4.0, True), (3.9, False)])
def test_throughput_is_at_least_passts(results: Results, ours: float, is_met: bool) -> None:
    _measured(results, ONE, OURS, ours)
    _measured(results, ONE, PASST, 0.1, 4.0, 9.0)
    assert _found(results, f"{ONE.title}: ≥ 1 of passt").is_met is is_met


@pytest.mark.parametrize("cell", [RR, CRR, UDP_RR])
@pytest.mark.parametrize(("ours", "is_met"), [(900.0, True), (890.0, False)])
def test_rates_are_at_least_nine_tenths_of_passts(results: Results, cell: Rate, ours: float, is_met: bool) -> None:
    _measured(results, cell, OURS, ours)
    _measured(results, cell, PASST, 1000.0)
    name = next(target.name for target in targets.speed(results) if target.name.startswith(f"{cell.title}:"))
    assert _found(results, name).is_met is is_met


@pytest.mark.parametrize(
    ("payload", "ours", "is_met"), [(1400, 0.7, True), (1400, 0.69, False), (9000, 1.0, True), (9000, 0.99, False)]
)
def test_of_a_flood_as_much_arrives_as_passts(results: Results, payload: int, ours: float, is_met: bool) -> None:
    flood = Flood(Direction.UP, payload)
    _measured(results, flood, OURS, ours)
    _measured(results, flood, PASST, 1.0)
    assert _found(results, f"{flood.title}: ≥").is_met is is_met


@pytest.mark.parametrize(("ours", "is_met"), [(0.0, True), (12.0, True), (12.1, False)])
def test_of_a_flood_no_more_is_lost_than_passts(results: Results, ours: float, is_met: bool) -> None:
    lost = Flood(Direction.UP, 9000).lost
    _measured(results, lost, OURS, ours)
    _measured(results, lost, PASST, 10.0)
    found = _found(results, f"{lost.title}:")
    assert found.is_met is is_met
    assert found.found == f"{ours:.2f} (passt: 10.00)"


@pytest.mark.parametrize(("ours", "is_met"), [(0.0, True), (0.1, True), (0.2, False)])
def test_at_a_rate_no_more_is_lost_than_passts(results: Results, ours: float, is_met: bool) -> None:
    (paced, *_) = (cell for cell in ALL if isinstance(cell, Paced))
    _measured(results, paced, OURS, ours)
    assert _found(results, f"{paced.title}:").is_met is None
    _measured(results, paced, PASST, 0.0)
    assert _found(results, f"{paced.title}:").is_met is is_met


@pytest.mark.parametrize(("lost", "is_met"), [(0, True), (1, False)])
def test_no_query_is_lost_in_any_round(results: Results, lost: int, is_met: bool) -> None:
    _measured(results, DNS, OURS, 0, 0, lost)
    found = _found(results, "queries a second")
    assert found.is_met is is_met
    assert found.found == f"{lost} of 9000, 0 failures"


def test_a_round_without_queries_is_no_round_without_losses(results: Results) -> None:
    _measured(results, DNS, OURS, 0)
    results.add_failure(DNS, OURS, "its process has ended")
    assert _found(results, "queries a second").is_met is False


@pytest.mark.parametrize(("slowest", "is_met"), [(7.0, True), (6.9, False)])
def test_throughput_is_steady(results: Results, slowest: float, is_met: bool) -> None:
    _measured(results, ONE, OURS, slowest, 10.0, 30.0)
    assert _found(results, f"{ONE.title}: minimum").is_met is is_met


def test_the_floor_shows_whether_the_machine_was_steady(results: Results) -> None:
    _measured(results, ONE, OURS, 5.0, 10.0, 30.0)
    _measured(results, Bulk(Direction.DOWN, 65520, 1), FLOOR, 4.0, 10.0, 10.0)
    assert _found(results, f"{ONE.title}: minimum").found == "0.50 (the floor's: 0.40)"


def test_what_failed_once_is_not_steady(results: Results) -> None:
    _measured(results, ONE, OURS, 10.0, 10.0)
    results.add_failure(ONE, OURS, "once")
    assert _found(results, f"{ONE.title}: minimum").is_met is False


@pytest.mark.parametrize(("together", "is_met"), [(5.0, True), (4.9, False)])
def test_eight_flows_are_not_slower_than_one(results: Results, together: float, is_met: bool) -> None:
    _measured(results, ONE, OURS, 5.0)
    _measured(results, EIGHT, OURS, together)
    assert _found(results, f"{EIGHT.title}: not slower").is_met is is_met


def test_the_short_form_compares_what_it_has() -> None:
    results = Results(PROGRAMS, rows(SHORT))
    (not_slower,) = [target for target in targets.speed(results) if "not slower" in target.name]
    assert not_slower.is_met is None


IN_NAMESPACE = Attachment.NAMESPACE
LARGE, SMALL = (Bulk(Direction.UP, mtu, 1, IN_NAMESPACE) for mtu in (65520, 1500))


@pytest.mark.parametrize(
    ("cell", "other", "least"),
    [
        (LARGE, PASTA, 2.0),
        (LARGE, SLIRP, 2.0),
        (LARGE, FLOOR, 0.75),
        (SMALL, PASTA, 5.0),
        (SMALL, SLIRP, 4.0),
        (Bulk(Direction.DOWN, 65520, 1, IN_NAMESPACE), PASTA, 1.0),
        (Bulk(Direction.DOWN, 1500, 1, IN_NAMESPACE), PASTA, 5.0),
        (Rate("crr", "", IN_NAMESPACE), PASTA, 0.9),
        (Local("crr", is_inward=True), PASTA, 0.8),
        (Flood(Direction.DOWN, 1400, IN_NAMESPACE, train=40), PASTA, 2.0),
    ],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("is_met", [True, False])
def test_a_namespaces_ratios(cell: Cell, other: str, least: float, is_met: bool) -> None:
    results = Results(PROGRAMS, [cell])
    _measured(results, cell, OURS_PASTA, 100.0 * least if is_met else 99.0 * least)
    _measured(results, cell, other, 100.0)
    (found,) = [target for target in targets.speed(results) if target.name.endswith(f"≥ {least:g} of {other}")]
    assert found.name.startswith("namespace, ")
    assert found.is_met is is_met
    assert targets.wanted(cell, other) == least


def test_a_namespace_is_not_compared_with_passt() -> None:
    assert {targets.wanted(cell, PASST) for cell in NAMESPACE} == {None}


@pytest.mark.parametrize(("small", "is_met"), [(9.0, True), (8.9, False)])
def test_a_small_mtu_is_nearly_as_fast_in_a_namespace(small: float, is_met: bool) -> None:
    results = Results(PROGRAMS, [LARGE, SMALL])
    _measured(results, LARGE, OURS_PASTA, 10.0)
    _measured(results, SMALL, OURS_PASTA, small)
    (found,) = [target for target in targets.speed(results) if target.name.endswith("of MTU 65520")]
    assert found.is_met is is_met


@pytest.mark.parametrize(("kib", "is_met"), [(24.9, True), (25.0, False)])
def test_idle_connections_are_small(results: Results, kib: float, is_met: bool) -> None:
    results.idle = Idle(10_000, kib, 0.0, 0.0)
    assert _found(results, "resident").is_met is is_met


@pytest.mark.parametrize(("cpu", "is_met"), [(0.0140, True), (0.0160, False)])
def test_idle_connections_take_no_cpu_time(results: Results, cpu: float, is_met: bool) -> None:
    results.idle = Idle(10_000, 8.0, cpu=cpu, cpu_before=0.01)
    assert _found(results, "no CPU time").is_met is is_met


@pytest.mark.parametrize(("many_s", "fairness", "expected"), [(3.0, 0.5, True), (3.1, 0.4, False)])
def test_many_connections_at_once(results: Results, many_s: float, fairness: float, expected: bool) -> None:
    results.sharing.append(Sharing(OURS, "up", 1000, 8, 1.0, many_s, 2.0, fairness))
    assert _found(results, "times as long").is_met is expected
    assert _found(results, "slowest").is_met is expected


def test_a_failure_is_a_missed_target(results: Results) -> None:
    results.scale_failures += [(PASST, "scale-up: nothing moves"), (OURS, "scale-up: nothing moves")]
    assert _found(results, "many connections").is_met is False
