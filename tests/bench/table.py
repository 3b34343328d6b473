"""The results as text: Markdown that can be read as it is, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tests.bench.about import About
from tests.bench.cells import (
    CPU_OF_EACH,
    DNS,
    FLOOR,
    LOSSES,
    OURS,
    WHOLE,
    Attachment,
    Bulk,
    Cell,
    Cpu,
    Flood,
    Local,
    Paced,
    Rate,
    beside,
)
from tests.bench.datagrams import UDP_SHARE, UPLINK_MTU_BYTES, USUAL_UPLINK_MTU_BYTES, WARM_UP_S
from tests.bench.results import Results, Samples
from tests.bench.targets import Target, wanted

FAILED = "failed"
NOT_MEASURED = "–"


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
- UDP is measured by [tests/bench/datagrams.c](../tests/bench/datagrams.c) instead of iperf3, for {udp_seconds:g} s
  after {udp_warm_up_s:g} s of warm-up. Datagrams are numbered, and each end counts for itself. A *flood* is one socket
  that sends as fast as it can, one by one, or in *trains* that it hands to its kernel at once (UDP_SEGMENT), as who
  sends much does; then they are also taken joined (UDP_GRO). What it sends too much has to be lost: neither a tap nor a
  veth makes a sender wait. The losses at a rate are those of a sender that paces each datagram, and exchanges are lost
  that have no answer after 0.2 s. The receiver's own buffer is so large that it loses nothing: the floor shows that.
  Queries are DNS messages of 40 bytes to port 53, their answers have 120 bytes; one that has none after 1 s is lost.
  For them each program is started afresh and runs alone: passt needs, on the host, the ports whose numbers the guest
  chooses.
- While UDP is measured, the MTU of the veth is {uplink_mtu_bytes}, not {usual_uplink_mtu_bytes}: else the host's kernel
  would fragment datagrams of 9000 bytes, and that would be measured. The MTU of the guest's link is 65520.
- *Namespace*: the guest is a network namespace to which the program gives a tap of its own, without a relay. The
  programs are an ordinary user's there, and so is each namespace; they join it by the ID of a process in it. (The tap's
  queue is lengthened, as the relay's is: pasta does not get over it when a short one overflows, and hardly over any
  other loss.) *From loopback to loopback* is what bypasses the tap: a forwarded port of the host,
  asked from the host's own loopback address, and the other way; the bytes go from who has opened the connection. CPU
  time is that of all processes of a program.

![Throughput, rates and CPU time]({plot})
"""


def page(results: Results, targets: list[Target], about: About, plot: str) -> str:
    """The whole document."""
    facts = dataclasses.asdict(about) | {
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
        "udp_seconds": about.seconds * UDP_SHARE,
        "udp_warm_up_s": WARM_UP_S,
        "uplink_mtu_bytes": UPLINK_MTU_BYTES,
        "usual_uplink_mtu_bytes": USUAL_UPLINK_MTU_BYTES,
    }
    sections = {
        **_sections(results, Attachment.MACHINE),
        "Many connections": _scale(results),
        **_sections(results, Attachment.NAMESPACE),
        "Failures": _failures(results),
        "Targets": [f"- {_mark(target)} {target.name}: {target.found}" for target in targets],
    }
    text = EXPLANATION.format(**facts, plot=plot)
    for title, lines in sections.items():
        if lines:
            text += "\n".join(["", f"## {title}", "", *lines, ""])
    return text


def _sections(results: Results, attachment: Attachment) -> dict[str, list[str]]:
    """Tables of what was measured with an attachment, by title."""
    cells = [cell for cell in results.cells if cell.attachment is attachment]
    floods = [cell for cell in cells if isinstance(cell, Flood)]
    rates = [cell for cell in cells if isinstance(cell, Rate)]
    local = [cell for cell in cells if isinstance(cell, Local)]
    lost: list[Cell] = [
        *(flood.lost for flood in floods),
        *(cell for cell in cells if isinstance(cell, Paced)),
        *(cell.lost for cell in rates if cell.is_udp),
    ]
    lookups: list[Cell] = [DNS, *beside(DNS)] if DNS in cells else []
    tables: dict[str, Sequence[Cell]] = {
        "Throughput, Gbit/s": [cell for cell in cells if isinstance(cell, Bulk)],
        "UDP: what arrives of a flood, Gbit/s": floods,
        "UDP: what is lost (less is better)": lost,
        "Exchanges of a byte, one after the other, a second": rates,
        f"UDP: {DNS.queries_per_s} queries a second, each from a new socket, as of DNS (less is better)": lookups,
        "From loopback to loopback, Gbit/s": [cell for cell in local if cell.kind == "bulk"],
        "From loopback to loopback, exchanges of a byte a second": [cell for cell in local if cell.kind != "bulk"],
        "CPU seconds of the program for a gigabyte (less is better)": [cell for cell in cells if isinstance(cell, Cpu)],
        "CPU microseconds of the program for an exchange (less is better)": [
            cell for cell in cells if cell.unit == CPU_OF_EACH
        ],
    }
    prefix = "" if attachment is Attachment.MACHINE else "Namespace. "
    return {f"{prefix}{title}": table(results, rows_of_it) for title, rows_of_it in tables.items()}


def table(results: Results, cells: Sequence[Cell]) -> list[str]:
    """Lines of a table: a row for each cell, a column for each program, and ours compared with the others'.

    Nothing if there are no cells. A program of which there is nothing in any of them has no column. Losses are not
    compared. A ratio has beside it what it should be, if there is a target.
    """
    if not cells:
        return []
    attachment = cells[0].attachment
    programs = [
        name
        for name in attachment.programs
        if name in results.programs
        and any((samples := results.of(cell, name)).numbers or samples.failures for cell in cells)
    ]
    ours = attachment.ours
    has_ratios = ours in programs and any(cell.unit not in LOSSES for cell in cells)
    compared = [name for name in attachment.compared if name in programs and has_ratios]
    rows = [["", *programs, *(f"{ours} / {name}" for name in compared)]]
    for cell in cells:
        summaries = [summary(results.of(cell, name), is_whole=cell.unit in WHOLE) for name in programs]
        rows.append([cell.title, *summaries, *(_compared(results, cell, name) for name in compared)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return lines


def summary(samples: Samples, *, is_whole: bool = False) -> str:
    """Median, smallest and largest; how often it failed."""
    if samples.median is None or samples.spread is None:
        return FAILED if samples.failures else NOT_MEASURED
    number = _integer if is_whole else _decimal
    text = f"{number(samples.median)} ({number(samples.spread[0])}-{number(samples.spread[1])})"
    return f"{text}, {FAILED} {len(samples.failures)} times" if samples.failures else text


def _integer(number: float) -> str:
    return f"{number:.0f}"


def _decimal(number: float) -> str:
    return f"{number:.2f}"


def _compared(results: Results, cell: Cell, other: str) -> str:
    """Our median as a multiple of the other's; of a namespace with what it is to reach."""
    ratio = None if cell.unit in LOSSES else results.ratio(cell, cell.attachment.ours, other)
    if ratio is None:
        return NOT_MEASURED
    least = wanted(cell, other) if cell.attachment is Attachment.NAMESPACE else None
    return f"{ratio:.2f}" if least is None else f"{ratio:.2f} (to reach: {least:g})"


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
