"""Rounds: every cell is measured with one program right after the other, in an order that rotates.

The machine may be shared and its speed may drift. So what is compared is measured seconds apart, and no program
is always the first. The programs of a round run side by side, each with its guest, and wait while another is measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.bench import datagrams, local, measure, namespaces, programs
from tests.bench.cells import (
    FLOOR,
    OURS_PASTA,
    WHOLE,
    Attachment,
    Bulk,
    Cell,
    Local,
    Lookups,
    Measured,
    Rate,
    beside,
    has,
)
from tests.bench.programs import Running
from tests.bench.progress import Progress
from tests.bench.results import Results
from tests.integration.topology import Topology

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much is measured. A smoke test measures nothing but our program with a namespace."""

    cells: tuple[Measured, ...]
    programs: tuple[str, ...]
    rounds: int
    seconds: float
    warm_up_s: int = 1
    is_smoke_test: bool = False

    def turns(self) -> Iterator[Turn]:
        """Everything that is measured, in order."""
        for round_number in range(self.rounds):
            for attachment in Attachment:
                of_it = [cell for cell in self.cells if cell.attachment is attachment]
                for mtu in sorted({cell.mtu_bytes for cell in of_it}, reverse=True):
                    cells = [cell for cell in of_it if cell.mtu_bytes == mtu]
                    yield Turn(
                        round_number,
                        attachment,
                        mtu,
                        [
                            (
                                cell,
                                rotated(
                                    [name for name in self.programs if self._has(cell, name)], round_number + index
                                ),
                            )
                            for index, cell in enumerate(cells)
                        ],
                    )

    def _has(self, cell: Measured, program: str) -> bool:
        is_one_too_many = self.is_smoke_test and cell.attachment is Attachment.NAMESPACE and program != OURS_PASTA
        return has(cell, program) and not is_one_too_many

    def measurement_count(self) -> int:
        """How many there will be, for the progress that is shown."""
        return sum(len(programs) for turn in self.turns() for _, programs in turn.cells)


@dataclass(frozen=True)
class Turn:
    """Cells with guests of one attachment and MTU, each with its programs in the order of this round."""

    round_number: int
    attachment: Attachment
    mtu_bytes: int
    cells: list[tuple[Measured, list[str]]]

    def uses(self, program: str) -> bool:
        """Whether it is measured in any of them."""
        return any(program in names for _, names in self.cells)


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Another one first."""
    start = by % max(1, len(items))
    return [*items[start:], *items[:start]]


def execute(plan: Plan, results: Results, topology: Topology, directory: Path, progress: Progress) -> None:
    """Measure. What fails becomes a failure in the results."""
    with measure.load_server(topology.remote.enter()):
        for turn in plan.turns():
            with contextlib.ExitStack() as stack:
                started = {
                    name: stack.enter_context(_Program(name, topology, directory, turn))
                    for name in plan.programs
                    if turn.uses(name)
                }
                for cell, names in turn.cells:
                    progress.begin(f"round {turn.round_number + 1}/{plan.rounds}  {cell.name}")
                    for name in names:
                        if isinstance(cell, Lookups):  # passt needs the ports whose numbers the guest chooses
                            for other in started.values():
                                other.stop()
                        progress.add(name, _measure(plan, started[name], cell, topology, results))
                    progress.end()


def _measure(plan: Plan, program: _Program, cell: Measured, topology: Topology, results: Results) -> str:
    """Numbers into the results; what to show of them."""
    try:
        numbers = _numbers(plan, program.ready(), cell, topology)
    except (measure.MeasurementError, OSError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        if program.has_ended():
            reason = f"its process has ended: {reason}"
        results.add_failure(cell, program.name, reason)
        program.stop()
        return f"failed ({reason})"
    for row in (cell, *beside(cell)):
        if row in numbers:
            results.add(row, program.name, numbers[row])
    return f"{numbers[cell]:.0f}" if cell.unit in WHOLE else f"{numbers[cell]:.3g}"


def _numbers(plan: Plan, guest: Running, cell: Measured, topology: Topology) -> dict[Cell, float]:
    """By row of the table: the cell's, and some beside it."""
    match cell:
        case Bulk():
            seconds = max(1, round(plan.seconds))  # iperf3 counts whole ones
            return measure.bulk(guest, topology.remote, cell, seconds, plan.warm_up_s)
        case Local():
            return local.numbers(guest, topology.host, cell, plan.seconds, plan.warm_up_s)
        case Rate() if not cell.is_udp:
            return measure.rate(guest, cell, plan.seconds)
    with datagrams.wide_uplink(topology):
        match cell:
            case Rate():
                return datagrams.exchanges(guest, topology.remote, cell, plan.seconds * datagrams.UDP_SHARE)
            case Lookups():
                return datagrams.lookups(guest, topology.remote, cell)
        return datagrams.one_way(guest, topology.remote, cell, plan.seconds * datagrams.UDP_SHARE)


class _Program:
    """A program that runs from when it is needed, and is started again after a failure."""

    def __init__(self, name: str, topology: Topology, directory: Path, turn: Turn) -> None:
        self.name = name
        self._topology, self._directory, self._turn = topology, directory, turn
        self._stack = contextlib.ExitStack()
        self._running: Running | None = None

    def ready(self) -> Running:
        """Start it, if it does not run."""
        if self._running is None:
            directory = self._directory / f"{self.name}-{time.monotonic_ns()}"
            is_namespaces = self._turn.attachment is Attachment.NAMESPACE and self.name != FLOOR
            running = namespaces.running if is_namespaces else programs.running
            started = running(self.name, self._topology, directory, self._turn.mtu_bytes)
            self._running = self._stack.enter_context(started)
        return self._running

    def has_ended(self) -> bool:
        """Whether it was started, and has ended by itself."""
        return self._running is not None and self._running.has_ended()

    def stop(self) -> None:
        """End it and its guest."""
        self._running = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
