"""One measurement: a client where the guest is, a server in the remote namespace, both in C."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.cells import Bulk, Cell, Cpu, Direction, Local, Rate
from tests.bench.programs import Running
from tests.guest.machine import DIE_WITH_PARENT
from tests.guest.native import compiled
from tests.integration import servers
from tests.integration.topology import REMOTE4, Namespace

LOAD = Path(__file__).with_name("load.c")
IPERF_PORT, LOAD_PORT = "5201", "5202"
GRACE_S = 10.0
"""A measurement that takes so much longer than it should has failed."""


class MeasurementError(Exception):
    """There is no number; the text says why, in a line."""


def bulk(running: Running, remote: Namespace, cell: Bulk, seconds: int, warm_up_s: int) -> dict[Cell, float]:
    """What arrives, without the warm-up: iperf3's word for it. And what CPU time it takes, of all bytes."""
    with iperf_server(remote.enter(), REMOTE4, IPERF_PORT):
        command = [
            *(*running.enter, "iperf3", "--json", "--client", REMOTE4, "--port", IPERF_PORT),
            *("--parallel", str(cell.flow_count), "--time", str(seconds), "--omit", str(warm_up_s)),
            *(["--reverse"] if cell.direction is Direction.DOWN else []),
        ]
        return iperf(running, command, cell, seconds + warm_up_s + GRACE_S)


def iperf(running: Running, command: list[str], cell: Bulk | Local, timeout_s: float) -> dict[Cell, float]:
    """By a client, the rate that it tells, and the program's CPU time for a gigabyte."""
    before = running.cpu_seconds()
    report = reported(command, timeout_s)
    used_s = running.cpu_seconds() - before
    try:
        gigabits = report["end"]["sum_received"]["bits_per_second"] / 1e9
        gigabytes = sum(interval["sum"]["bytes"] for interval in report["intervals"]) / 1e9
    except (KeyError, TypeError) as error:
        raise MeasurementError(f"iperf3: {report.get('error', 'no result')}") from error
    if gigabits <= 0:
        raise MeasurementError("iperf3: nothing arrived")
    numbers: dict[Cell, float] = {cell: gigabits}
    if running.process_id is not None and gigabytes > 0:
        numbers[Cpu(cell)] = used_s / gigabytes
    return numbers


def rate(running: Running, cell: Rate, seconds: float) -> dict[Cell, float]:
    """Exchanges a second. Needs a `load_server`."""
    return exchanges(running, [*running.enter, *load(), cell.kind, REMOTE4, LOAD_PORT, str(seconds)], cell, seconds)


def exchanges(running: Running, command: list[str], cell: Rate | Local, seconds: float) -> dict[Cell, float]:
    """By a client, how many a second there are, and the program's CPU time for each."""
    before = running.cpu_seconds()
    report = reported(command, seconds + GRACE_S)
    used_s = running.cpu_seconds() - before
    numbers: dict[Cell, float] = {cell: report["count"] / report["seconds"]}
    if running.process_id is not None:
        numbers[cell.cpu] = used_s * 1e6 / report["count"]
    return numbers


def load() -> list[str]:
    """The load program."""
    return [str(compiled(LOAD))]


@contextlib.contextmanager
def load_server(enter: list[str], address: str = REMOTE4, port: str = LOAD_PORT) -> Iterator[None]:
    """The other end of what `load` measures; `enter` is a prefix for where it is."""
    with servers.process([*enter, *load(), "serve", address, port], b"ready"):
        yield


def client(running: Running, command: list[str], timeout_s: float) -> dict[str, Any]:
    """The JSON that a command prints where the guest is. Raises `MeasurementError`."""
    return reported([*running.enter, *command], timeout_s)


def reported(command: list[str], timeout_s: float) -> dict[str, Any]:
    """The JSON that a command prints. Raises `MeasurementError`."""
    try:
        result = subprocess.run(
            [*DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"not finished after {timeout_s:g} s") from error
    try:
        report = json.loads(result.stdout)
    except ValueError as error:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise MeasurementError(said[-1] if said else f"status {result.returncode}") from error
    if not isinstance(report, dict):
        raise MeasurementError(f"unexpected: {report!r}")
    if result.returncode:
        raise MeasurementError(str(report.get("error", f"status {result.returncode}")))
    return report


@contextlib.contextmanager
def iperf_server(enter: list[str], address: str, port: str) -> Iterator[None]:
    """For one client: what a failed one leaves behind does not meet the next. `enter` is a prefix for where it is."""
    command = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", address, "--port", port]
    with servers.process([*enter, *command], b"listening"):
        yield
