"""The results as a picture: medians as bars, smallest and largest as a line across their ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.bench.cells import FLOOR, OURS, PASST, SLIRP, Bulk, Cell, Cpu, Direction, Flood, Rate
from tests.bench.results import Results

COLOURS = {OURS: "#1f6f8b", PASST: "#e0a030", SLIRP: "#a0a0a0", FLOOR: "#d8d8d8"}
BAR_WIDTH = 0.8
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text as text: small, and it can be searched
    "svg.hashsalt": OURS,  # the same numbers make the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, file: Path) -> None:
    """Write an SVG. Of UDP it has throughput and exchanges: losses are numbers to read."""
    panels: list[tuple[str, list[Cell]]] = []
    for direction in Direction:
        bulk = [cell for cell in results.cells if isinstance(cell, Bulk) and cell.direction is direction]
        panels.append((f"{direction.described}, Gbit/s", [*bulk]))
    panels.append(("UDP, Gbit/s", [cell for cell in results.cells if isinstance(cell, Flood)]))
    panels.append(("exchanges a second", [cell for cell in results.cells if isinstance(cell, Rate)]))
    cpu = [cell for cell in results.cells if isinstance(cell, Cpu) and isinstance(cell.bulk, Bulk)]
    panels.append(("CPU seconds for a gigabyte", [*cpu]))
    drawn = [(title, cells) for title, cells in panels if cells]
    with matplotlib.rc_context(SETTINGS):
        figure, axes = pyplot.subplots(len(drawn), 1, figsize=(9, 2.6 * len(drawn)), squeeze=False)
        for panel, (title, cells) in zip(axes[:, 0], drawn, strict=True):
            are_rates = isinstance(cells[0], Rate)  # the floor's are so high that the others would not be seen
            programs = [name for name in results.programs if not (are_rates and name == FLOOR)]
            _bars(panel, results, programs, cells)
            panel.set_title(title, loc="left")
        axes[0, 0].legend(ncols=len(results.programs), frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _bars(panel: Axes, results: Results, programs: Sequence[str], cells: Sequence[Cell]) -> None:
    width = BAR_WIDTH / len(programs)
    for index, program in enumerate(programs):
        places, medians, below, above = [], [], [], []
        for place, cell in enumerate(cells):
            samples = results.of(cell, program)
            at = place + (index - (len(programs) - 1) / 2) * width
            if samples.median is None or samples.spread is None:
                if samples.failures:
                    panel.text(at, 0, "failed", rotation=90, ha="center", va="bottom", fontsize=7)
                continue
            places.append(at)
            medians.append(samples.median)
            below.append(samples.median - samples.spread[0])
            above.append(samples.spread[1] - samples.median)
        panel.bar(places, medians, width * 0.95, color=COLOURS[program], label=program)
        panel.errorbar(places, medians, yerr=[below, above], fmt="none", ecolor="#333333", elinewidth=0.8)
    panel.set_xticks(range(len(cells)), [_label(cell) for cell in cells])
    panel.tick_params(axis="x", length=0)


def _label(cell: Cell) -> str:
    """Below the bars: what the panel's title does not say."""
    if isinstance(cell, Bulk):
        flows = "1 flow" if cell.flow_count == 1 else f"{cell.flow_count} flows"
        return f"MTU {cell.mtu_bytes}\n{flows}"
    if isinstance(cell, Flood):
        return f"{cell.direction.described}\n{cell.payload_bytes} bytes"
    if isinstance(cell, Cpu) and isinstance(cell.bulk, Bulk):
        return f"{cell.bulk.direction.described}\nMTU {cell.bulk.mtu_bytes}"
    return cell.title
