"""`python -m tests.bench`, as root: measures trio-passt beside passt, slirp4netns and nothing at all.

And trio-pasta beside pasta, in the same way. Without options it measures everything, for half an hour, and writes
docs/benchmark.{json,md,svg}. A run of which something was left out only prints its table, unless there is an --output.
`--short` is a smoke test: it fails if ours fails anywhere, and judges no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import cells, plot, scale, schedule, table, targets
from tests.bench.about import about
from tests.bench.install import InstallError, install_missing
from tests.bench.measure import MeasurementError
from tests.bench.progress import Progress
from tests.bench.results import Results
from tests.guest.image import work_directory
from tests.integration.topology import Topology

DOCS = Path(__file__).parents[2] / "docs"
NAME = "benchmark"
ROUNDS, SECONDS = 5, 2.0
SHORT_SECONDS = 0.5
IDLE_CONNECTIONS, IDLE_SECONDS = 10_000, 5.0
MANY, FEW, SHARED_BYTES, SHARING_ROUNDS = 1000, 8, 1_000_000_000, 3
SHARING_ROUNDS_OF_OTHERS = 1
SCALE_CELLS = ("scale-idle", *(f"scale-{direction}" for direction in cells.Direction))
PR_SET_PDEATHSIG = 1


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=(__doc__ or "").partition("\n")[2])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each cell is measured")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="cells whose name matches: up-1500-8, crr ...")
    parser.add_argument("--programs", type=lambda text: tuple(text.split(",")), default=cells.PROGRAMS, metavar="A,B")
    parser.add_argument("--short", action="store_true", help="smoke test: one round, few cells")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="where the files go")
    parser.add_argument("--gate", action="store_true", help="status 1 if a target is missed")
    parser.add_argument("--list", action="store_true", help="names of the cells")
    parsed = parser.parse_args()
    if unknown := set(parsed.programs) - set(cells.PROGRAMS):
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    return parsed


def main() -> int:
    """The exit status."""
    options = arguments()
    chosen = [cell for cell in (cells.SHORT if options.short else cells.ALL) if _is_wanted(options, cell.name)]
    scale_cells = [] if options.short or cells.OURS not in options.programs else _wanted(options, SCALE_CELLS)
    if options.list:
        print("\n".join([*(cell.name for cell in cells.ALL), *SCALE_CELLS]))
        return 0
    plan = schedule.Plan(
        cells=tuple(chosen),
        programs=tuple(name for name in cells.PROGRAMS if name in options.programs),
        rounds=1 if options.short else options.rounds,
        seconds=SHORT_SECONDS if options.short else options.seconds,
        warm_up_s=0 if options.short else 1,
        is_smoke_test=options.short,
    )
    install_missing(plan.programs)
    results = Results(plan.programs, cells.rows(plan.cells))
    facts = about(plan.programs, plan.rounds, plan.seconds)
    progress = Progress(plan.measurement_count() + len(scale_cells) * len(cells.Attachment.MACHINE.programs))
    with _directory() as directory, Topology() as topology:
        schedule.execute(plan, results, topology, directory, progress)
        _measure_scale(plan, scale_cells, results, topology, directory, progress)

    found = [] if options.short else [*targets.speed(results), *targets.scale(results)]
    page = table.page(results, found, facts, f"{NAME}.svg")
    is_complete = not options.only and plan.programs == cells.PROGRAMS and not options.short and plan.rounds >= ROUNDS
    output: Path | None = options.output or (DOCS if is_complete else None)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        document = {
            "about": dataclasses.asdict(facts),
            **results.to_json(),
            "targets": list(map(dataclasses.asdict, found)),
        }
        (output / f"{NAME}.json").write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (output / f"{NAME}.md").write_text(page, encoding="utf-8")
        plot.draw(results, output / f"{NAME}.svg")
    print(page[page.index("## ") :])
    if options.short:
        return 0 if _is_positive(results) else 1
    return 1 if options.gate and any(target.is_met is False for target in found) else 0


def _measure_scale(
    plan: schedule.Plan,
    wanted: list[str],
    results: Results,
    topology: Topology,
    directory: Path,
    progress: Progress,
) -> None:
    """Each with a fresh process. The others share connections once, to compare; nobody's memory is compared."""
    for name in wanted:
        progress.begin(name)
        others = [each for each in cells.Attachment.MACHINE.programs if each in plan.programs]
        for program in (cells.OURS,) if name == "scale-idle" else others:
            try:
                with scale.guest(topology, directory / f"{name}-{program}", IDLE_CONNECTIONS, program) as guest:
                    if name == "scale-idle":
                        results.idle = scale.idle(guest, IDLE_CONNECTIONS, IDLE_SECONDS)
                        shown = f"{results.idle.kib_per_connection:.1f} KiB each"
                    else:
                        direction = cells.Direction(name.removeprefix("scale-"))
                        rounds = SHARING_ROUNDS if program == cells.OURS else SHARING_ROUNDS_OF_OTHERS
                        one = scale.sharing(guest, direction, MANY, FEW, SHARED_BYTES, rounds)
                        results.sharing.append(one)
                        shown = f"{one.time_ratio:.2f} times as long, slowest has {one.fairness:.2f} of median"
            except (MeasurementError, OSError, RuntimeError, AssertionError) as error:
                shown = f"failed ({str(error).partition(chr(10))[0]})"
                results.scale_failures.append((program, f"{name}: {error}"))
            progress.add(program, shown)
        progress.end()


def _is_positive(results: Results) -> bool:
    """Whether there is a number of ours in every cell. A loss may be none."""

    def is_good(cell: cells.Cell) -> bool:
        median = results.of(cell, cell.attachment.ours).median
        return median is not None and (median > 0 or cell.unit in cells.LOSSES)

    bad = [cell.name for cell in results.cells if not is_good(cell)]
    if bad:
        print(f"bench: our program has no result in {', '.join(bad)}", file=sys.stderr)
    return not bad


def _is_wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.only or bool(options.only.search(name))


def _wanted(options: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _is_wanted(options, name)]


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """For sockets and logs; what a killed run left is removed."""
    parent = work_directory()
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob("bench-*"):
        if not Path("/proc", leftover.name.removeprefix("bench-")).exists():
            shutil.rmtree(leftover)
    path = parent / f"bench-{os.getpid()}"
    path.mkdir(mode=0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as at ^C
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        sys.exit(main())
    except InstallError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
