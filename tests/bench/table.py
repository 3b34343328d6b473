"""The results as text: Markdown that can be read as it is, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tests.bench.about import About
from tests.bench.cells import FLOOR, OURS, PASST, SLIRP, Bulk, Cell, Cpu, Rate
from tests.bench.results import Results, Samples
from tests.bench.targets import Target

FAILED = "failed"
NOT_MEASURED = "–"
COMPARED = (PASST, SLIRP)


EXPLANATION = """\
# Benchmark

Made by `nox -s bench` (or `sh tests/run.sh -s bench`), not by hand. Compare the programs with each other, not with what
another machine shows.

- {date}, Linux {kernel}, {cpu}, {cpu_count} CPUs. The machine is shared, and a virtual one itself: its speed
  changes from minute to minute. Its load average when the run began was {load:g}. TCP's congestion control is
  {congestion_control} everywhere, the machine's default.
- {versions}. The programs other than trio-passt are Debian's.
- {rounds} rounds. A cell takes {seconds:g} s, after 1 s of warm-up. It shows the median of the rounds and, in brackets,
  the smallest and the largest. The programs run side by side, and a cell is measured with one right after the other, in
  an order that rotates.
- The guest is the kernel's own TCP/IP stack, in a network namespace. A small relay in C
  ([tests/guest/relay.c](../tests/guest/relay.c)) passes its frames to the program as QEMU would. QEMU itself would take
  so much CPU time that it would hide what is measured. slirp4netns has no socket for QEMU: it opens the tap itself,
  which spares it the relay.
- The server is in another namespace, behind a veth. The *floor* is that veth with nothing between: a namespace
  that speaks to the server directly. The MTU of the guest's link does not concern it.
- Sender, receiver, relay and program share the CPUs.

![Throughput, rates and CPU time]({plot})
"""


def page(results: Results, targets: list[Target], about: About, plot: str) -> str:
    """The whole document."""
    facts = dataclasses.asdict(about) | {
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items())
    }
    sections = {
        "Throughput, Gbit/s": table(results, [cell for cell in results.cells if isinstance(cell, Bulk)]),
        "Exchanges of a byte, one after the other, a second": table(
            results, [cell for cell in results.cells if isinstance(cell, Rate)]
        ),
        "CPU seconds of the program for a gigabyte (less is better)": table(
            results, [cell for cell in results.cells if isinstance(cell, Cpu)]
        ),
        "Many connections": _scale(results),
        "Failures": _failures(results),
        "Targets": [f"- {_mark(target)} {target.name}: {target.found}" for target in targets],
    }
    text = EXPLANATION.format(**facts, plot=plot)
    for title, lines in sections.items():
        if lines:
            text += "\n".join(["", f"## {title}", "", *lines, ""])
    return text


def table(results: Results, cells: Sequence[Cell]) -> list[str]:
    """Lines of a table: a row for each cell, a column for each program, and ours compared with the others'.

    Nothing if there are no cells. A program of which there is nothing in any of them has no column.
    """
    if not cells:
        return []
    programs = [
        name
        for name in results.programs
        if any((samples := results.of(cell, name)).numbers or samples.failures for cell in cells)
    ]
    compared = [name for name in COMPARED if name in programs and OURS in programs]
    rows = [["", *programs, *(f"{OURS} / {name}" for name in compared)]]
    for cell in cells:
        summaries = [summary(results.of(cell, name), is_rate=isinstance(cell, Rate)) for name in programs]
        rows.append([cell.title, *summaries, *(_ratio(results.ratio(cell, OURS, name)) for name in compared)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return lines


def summary(samples: Samples, *, is_rate: bool = False) -> str:
    """Median, smallest and largest; how often it failed."""
    if samples.median is None or samples.spread is None:
        return FAILED if samples.failures else NOT_MEASURED
    number = _integer if is_rate else _decimal
    text = f"{number(samples.median)} ({number(samples.spread[0])}-{number(samples.spread[1])})"
    return f"{text}, {FAILED} {len(samples.failures)} times" if samples.failures else text


def _integer(number: float) -> str:
    return f"{number:.0f}"


def _decimal(number: float) -> str:
    return f"{number:.2f}"


def _ratio(ratio: float | None) -> str:
    return NOT_MEASURED if ratio is None else f"{ratio:.2f}"


def _scale(results: Results) -> list[str]:
    lines = []
    if idle := results.idle:
        each = f"{idle.kib_per_connection:.1f} KiB resident each"
        cpu = f"{idle.cpu:.2%} of a CPU (without any: {idle.cpu_before:.2%})"
        lines.append(f"- {OURS}, {idle.count} open connections, idle: {each}, {cpu}.")
    for one in results.sharing:
        times = f"{one.many_s:.2f} s through {one.many} connections at once, {one.few_s:.2f} s through {one.few}"
        lines += [
            f"- {one.program}, {one.gigabytes:g} GB {one.direction}: {times}: {one.time_ratio:.2f} times as long.",
            f"  When half had arrived, the slowest of {one.many} had {one.fairness:.2f} of what the median one had.",
        ]
    return lines + [f"- {program}, {FAILED}: {failure}" for program, failure in results.scale_failures]


def _failures(results: Results) -> list[str]:
    return [
        f"- {cell.title}, {program}: {reason}"
        for cell in results.cells
        for program in results.programs
        for reason in results.of(cell, program).failures
        if program != FLOOR or not isinstance(cell, Bulk) or cell.has_floor
    ]


def _mark(target: Target) -> str:
    return {True: "met:", False: "**missed**:", None: "not measured:"}[target.is_met]
