"""The results as a picture: medians as bars, smallest and largest as a line across their ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.bench.cells import (
    FLOOR,
    OURS,
    OURS_PASTA,
    PASST,
    PASTA,
    SLIRP,
    Attachment,
    Bulk,
    Cell,
    Cpu,
    Direction,
    Flood,
    Local,
    Rate,
)
from tests.bench.results import Results

COLOURS = {OURS: "#1f6f8b", PASST: "#e0a030", SLIRP: "#a0a0a0", FLOOR: "#d8d8d8"}
COLOURS |= {OURS_PASTA: COLOURS[OURS], PASTA: COLOURS[PASST]}
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
    drawn = [panel for attachment in Attachment for panel in _panels(results, attachment) if panel[1]]
    with matplotlib.rc_context(SETTINGS):
        figure, axes = pyplot.subplots(len(drawn), 1, figsize=(9, 2.6 * len(drawn)), squeeze=False)
        explained: set[Attachment] = set()
        for panel, (title, cells) in zip(axes[:, 0], drawn, strict=True):
            are_rates = isinstance(cells[0], Rate)  # the floor's are so high that the others would not be seen
            of_it = [name for name in cells[0].attachment.programs if name in results.programs]
            programs = [name for name in of_it if not (are_rates and name == FLOOR)]
            _bars(panel, results, programs, cells)
            panel.set_title(title, loc="left")
            if cells[0].attachment not in explained:
                explained.add(cells[0].attachment)
                panel.legend(ncols=len(of_it), frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panels(results: Results, attachment: Attachment) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells of each."""
    cells = [cell for cell in results.cells if cell.attachment is attachment]
    kind = "" if attachment is Attachment.MACHINE else "namespace: "
    for direction in Direction:
        bulk = [cell for cell in cells if isinstance(cell, Bulk) and cell.direction is direction]
        yield f"{kind}{direction.described}, Gbit/s", [*bulk]
    local = [cell for cell in cells if isinstance(cell, Local) and cell.kind == "bulk"]
    yield f"{kind}from loopback to loopback, Gbit/s", [*local]
    yield f"{kind}UDP, Gbit/s", [cell for cell in cells if isinstance(cell, Flood)]
    yield f"{kind}exchanges a second", [cell for cell in cells if isinstance(cell, Rate)]
    local = [cell for cell in cells if isinstance(cell, Local) and cell.kind != "bulk"]
    yield f"{kind}from loopback to loopback, exchanges a second", [*local]
    cpu = [cell for cell in cells if isinstance(cell, Cpu) and isinstance(cell.bulk, Bulk)]
    yield f"{kind}CPU seconds for a gigabyte", [*cpu]


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
    if isinstance(cell, Local):
        way = "into the namespace" if cell.is_inward else "out of it"
        return way if cell.kind == "bulk" else f"{cell.kind}\n{way}"
    return cell.title
