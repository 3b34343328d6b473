"""What trio-passt is to reach, and whether it did. Nothing here ends a run: the numbers are for people to judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.cells import (
    FLOOR,
    MTUS,
    OURS,
    PASST,
    PASTA,
    SLIRP,
    Attachment,
    Beside,
    Bulk,
    Cell,
    Direction,
    Flood,
    Local,
    Lookups,
    Paced,
    Rate,
)
from tests.bench.results import Results

THROUGHPUT_RATIO = 1.0
RATE_RATIO = 0.9
FLOOD_RATIOS = {1400: 0.7, 9000: 1.0}
"""By payload."""

SMALL_MTU_RATIO = 0.9
"""Of a namespace's throughput with the largest MTU: the smallest one's."""

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


def wanted(cell: Cell, other: str) -> float | None:
    """The ratio to another program that ours should reach; nothing if there is no such target."""
    if isinstance(cell, Bulk | Rate | Flood | Local) and cell.attachment is Attachment.NAMESPACE:
        return _wanted_of_a_namespace(cell, other)
    if other != PASST:
        return None
    match cell:
        case Bulk():
            return THROUGHPUT_RATIO
        case Rate():
            return RATE_RATIO
        case Flood():
            return FLOOD_RATIOS[cell.payload_bytes]
    return None


def _wanted_of_a_namespace(cell: Bulk | Rate | Flood | Local, other: str) -> float | None:
    """Frames that the kernel joins make MTUs equal: so more where the others' are small."""
    match cell, other:
        case Bulk(mtu_bytes=1500), _:
            return {PASTA: 5.0, SLIRP: 4.0, FLOOR: 0.75}.get(other)
        case Bulk(direction=Direction.UP), _:
            return {PASTA: 2.0, SLIRP: 2.0, FLOOR: 0.75}.get(other)
        case Bulk(), _:
            return {PASTA: 1.0, SLIRP: 2.0, FLOOR: 0.75}.get(other)
        case Rate(), "pasta":
            return 0.9
        case Local(), "pasta":
            return 0.8
        case Flood(train=train), "pasta" if train > 1:
            return 2.0  # one by one, whoever sends them is the limit
    return None


def speed(results: Results) -> Iterator[Target]:
    """Targets for the cells of the table."""
    for cell in results.cells:
        if cell.attachment is Attachment.NAMESPACE:
            yield from _ratios(results, cell)
            if isinstance(cell, Bulk) and cell.mtu_bytes == MTUS[-1]:
                yield _as_fast_as_large(results, cell)
        elif isinstance(cell, Bulk):
            yield from _ratios(results, cell)
            yield _steady(results, cell)
            if cell.flow_count > 1:
                yield _not_slower(results, cell)
        elif isinstance(cell, Rate):
            yield from _ratios(results, cell)
        elif isinstance(cell, Flood):
            yield from _ratios(results, cell)
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


def _ratios(results: Results, cell: Cell) -> Iterator[Target]:
    """To each program that there is a target for."""
    kind = "" if cell.attachment is Attachment.MACHINE else "namespace, "
    for other in cell.attachment.compared:
        if (least := wanted(cell, other)) is not None:
            ratio = results.ratio(cell, cell.attachment.ours, other)
            target = _target(f"{kind}{cell.title}: ≥ {least:g} of {other}", ratio, least)
            yield (
                target
                if ratio is None or not kind
                else dataclasses.replace(
                    target, found=f"{target.found} (the best rounds: {_of_best_rounds(results, cell, other):.2f})"
                )
            )


def _of_best_rounds(results: Results, cell: Cell, other: str) -> float:
    """Beside the ratio of medians: where another program stalls now and then, that is very large, and this is not."""
    return max(results.of(cell, cell.attachment.ours).numbers) / max(results.of(cell, other).numbers)


def _target(name: str, ratio: float | None, least: float) -> Target:
    return Target(
        name,
        None if ratio is None else ratio >= least,
        "not measured" if ratio is None else f"{ratio:.2f}",
    )


def _as_fast_as_large(results: Results, cell: Bulk) -> Target:
    """A small MTU, compared with the largest."""
    ours = cell.attachment.ours
    small = results.of(cell, ours).median
    large = results.of(dataclasses.replace(cell, mtu_bytes=MTUS[0]), ours).median
    ratio = small / large if small is not None and large else None
    return _target(f"namespace, {cell.title}: ≥ {SMALL_MTU_RATIO:g} of MTU {MTUS[0]}", ratio, SMALL_MTU_RATIO)


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
    return _target(f"{cell.title}: not slower than 1", ratio, 1)
