"""What was measured: samples by row of the table and program; failures are kept as such."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.cells import FLOOR, MTUS, Bulk, Cell

Key = tuple[str, str]
"""Name of the cell, and of the program."""


@dataclass
class Samples:
    """Of one program in one cell: a number for each round that succeeded, and why others did not."""

    numbers: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Nothing, where nothing was measured: a failure is not a zero."""
        return statistics.median(self.numbers) if self.numbers else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Smallest and largest."""
        return (min(self.numbers), max(self.numbers)) if self.numbers else None

    @property
    def steadiness(self) -> float | None:
        """The smallest, as a share of the median."""
        return min(self.numbers) / self.median if self.median else None

    def to_json(self) -> dict[str, Any]:
        """Everything, and the summary that the table shows."""
        low, high = self.spread or (None, None)
        return {
            "min": low,
            "median": self.median,
            "max": high,
            "samples": [float(f"{number:.5g}") for number in self.numbers],
            "failures": self.failures,
        }


@dataclass(frozen=True)
class Idle:
    """What open connections cost while nothing moves. CPU time is a share of one CPU's."""

    count: int
    kib_per_connection: float
    cpu: float
    cpu_before: float


@dataclass(frozen=True)
class Sharing:
    """The same bytes through many connections at once and through few; medians of some rounds.

    `fairness` is how much the slowest of the many had received when half of all bytes had arrived, as a share of
    what the median one had.
    """

    program: str
    direction: str
    many: int
    few: int
    gigabytes: float
    many_s: float
    few_s: float
    fairness: float

    @property
    def time_ratio(self) -> float:
        """How much longer the many take."""
        return self.many_s / self.few_s


class Results:
    """Of one run."""

    def __init__(self, programs: Iterable[str], cells: Iterable[Cell]) -> None:
        self.programs = list(programs)
        self.cells = list(cells)
        self.idle: Idle | None = None
        self.sharing: list[Sharing] = []
        self.scale_failures: list[tuple[str, str]] = []
        """Program, and what failed."""
        self._samples: dict[Key, Samples] = {}

    def add(self, cell: Cell, program: str, number: float) -> None:
        """A round's result."""
        self._samples.setdefault((cell.name, program), Samples()).numbers.append(number)

    def add_failure(self, cell: Cell, program: str, reason: str) -> None:
        """A round without one."""
        self._samples.setdefault((cell.name, program), Samples()).failures.append(reason)

    def of(self, cell: Cell, program: str) -> Samples:
        """Samples; none if it was not measured. The floor of a cell is that of the same cell at the first MTU."""
        if program == FLOOR and isinstance(cell, Bulk) and not cell.has_floor:
            cell = dataclasses.replace(cell, mtu_bytes=MTUS[0])
        return self._samples.get((cell.name, program), Samples())

    def ratio(self, cell: Cell, program: str, other: str) -> float | None:
        """Of the medians of two programs; nothing if one has none."""
        mine, others = self.of(cell, program).median, self.of(cell, other).median
        return mine / others if mine is not None and others else None

    def to_json(self) -> dict[str, Any]:
        """All cells, and what many connections cost."""
        cells = [
            {
                "cell": cell.name,
                "title": cell.title,
                "unit": cell.unit,
                "programs": {
                    program: samples.to_json()
                    for program in self.programs
                    if (samples := self._samples.get((cell.name, program)))
                },
            }
            for cell in self.cells
        ]
        return {
            "cells": cells,
            "idle": dataclasses.asdict(self.idle) if self.idle else None,
            "sharing": [dataclasses.asdict(one) for one in self.sharing],
            "scale_failures": self.scale_failures,
        }
