"""What trio-passt is to reach, and whether it did. Nothing here ends a run: the numbers are for people to judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.cells import FLOOR, OURS, PASST, Beside, Bulk, Flood, Lookups, Paced, Rate
from tests.bench.results import Results

THROUGHPUT_RATIO = 1.0
RATE_RATIO = 0.9
FLOOD_RATIOS = {1400: 0.7, 9000: 1.0}
"""By payload."""

FLOOD_LOSS_POINTS, PACED_LOSS_POINTS = 2.0, 0.1
"""More than passt's."""

STEADY = 0.7
"""Smallest sample, of the median."""

RESIDENT_KIB = 25.0
IDLE_CPU = 0.005
"""Of one CPU, more than with no connection: half a percent is what the clock's ticks resolve in some seconds."""

TIME_RATIO = 1.5
FAIR_SHARE = 0.5


@dataclass(frozen=True)
class Target:
    """One of them. `is_met` is None where it was not measured."""

    name: str
    is_met: bool | None
    found: str


def speed(results: Results) -> Iterator[Target]:
    """Targets for the cells of the table."""
    for cell in results.cells:
        if isinstance(cell, Bulk):
            yield _ratio(results, cell, THROUGHPUT_RATIO)
            yield _steady(results, cell)
            if cell.flow_count > 1:
                yield _not_slower(results, cell)
        elif isinstance(cell, Rate):
            yield _ratio(results, cell, RATE_RATIO)
        elif isinstance(cell, Flood):
            yield _ratio(results, cell, FLOOD_RATIOS[cell.payload_bytes])
            yield _loss(results, cell.lost, FLOOD_LOSS_POINTS)
        elif isinstance(cell, Paced):
            yield _loss(results, cell, PACED_LOSS_POINTS)
        elif isinstance(cell, Lookups):
            yield _none_lost(results, cell)


def scale(results: Results) -> Iterator[Target]:
    """Targets for many connections."""
    if idle := results.idle:
        resident, cpu = idle.kib_per_connection, idle.cpu - idle.cpu_before
        name = f"{idle.count} idle connections"
        yield Target(f"{name}: resident < {RESIDENT_KIB:g} KiB each", resident < RESIDENT_KIB, f"{resident:.1f} KiB")
        yield Target(f"{name}: no CPU time", cpu <= IDLE_CPU, f"{cpu:.2%} of a CPU more than with none")
    for one in (one for one in results.sharing if one.program == OURS):
        name = f"{one.many} connections at once, {one.direction}"
        in_time, fair = one.time_ratio <= TIME_RATIO, one.fairness >= FAIR_SHARE
        yield Target(f"{name}: ≤ {TIME_RATIO:g} times as long as {one.few}", in_time, f"{one.time_ratio:.2f}")
        yield Target(f"{name}: slowest ≥ {FAIR_SHARE:g} of the median", fair, f"{one.fairness:.2f}")
    for program, failure in results.scale_failures:
        if program == OURS:
            yield Target("many connections", False, failure)


def _ratio(results: Results, cell: Bulk | Rate | Flood, wanted: float) -> Target:
    ratio = results.ratio(cell, OURS, PASST)
    return Target(
        f"{cell.title}: ≥ {wanted:g} of {PASST}",
        None if ratio is None else ratio >= wanted,
        "not measured" if ratio is None else f"{ratio:.2f}",
    )


def _loss(results: Results, cell: Paced | Beside, points: float) -> Target:
    """In percent; as both may lose nothing, it is no ratio."""
    ours, passts = results.of(cell, OURS).median, results.of(cell, PASST).median
    name = f"{cell.title}: lost ≤ {PASST}'s + {points:g}"
    if ours is None or passts is None:
        return Target(name, None, "not measured")
    return Target(name, ours <= passts + points, f"{ours:.2f} ({PASST}: {passts:.2f})")


def _none_lost(results: Results, cell: Lookups) -> Target:
    """In no round."""
    samples, name = results.of(cell, OURS), f"{cell.queries_per_s} queries a second: none lost"
    if not samples.numbers:
        return Target(name, False if samples.failures else None, f"{len(samples.failures)} failures")
    lost, asked = sum(samples.numbers), cell.query_count * len(samples.numbers)
    return Target(name, lost == 0 and not samples.failures, f"{lost:.0f} of {asked}, {len(samples.failures)} failures")


def _steady(results: Results, cell: Bulk) -> Target:
    """With the floor's figure beside it: where that is low, it was the machine that was unsteady."""
    samples, name = results.of(cell, OURS), f"{cell.title}: minimum ≥ {STEADY:g} of median"
    share = samples.steadiness
    if share is None or samples.failures:
        return Target(name, False if samples.failures else None, f"{len(samples.failures)} failures")
    floor = results.of(cell, FLOOR).steadiness
    beside = "" if floor is None else f" (the floor's: {floor:.2f})"
    return Target(name, share >= STEADY, f"{share:.2f}{beside}")


def _not_slower(results: Results, cell: Bulk) -> Target:
    """Several flows together, compared with one."""
    several = results.of(cell, OURS).median
    one = results.of(Bulk(cell.direction, cell.mtu_bytes, 1), OURS).median
    ratio = several / one if several is not None and one else None
    return Target(
        f"{cell.title}: not slower than 1",
        None if ratio is None else ratio >= 1,
        "not measured" if ratio is None else f"{ratio:.2f}",
    )
