"""Many connections: what they cost while nothing moves, and whether all get their share when everything does."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import measure
from tests.bench.cells import OURS, Direction
from tests.bench.programs import Running, running
from tests.bench.results import Idle, Sharing
from tests.guest.machine import DIE_WITH_PARENT
from tests.integration.daemon import resident_kib
from tests.integration.topology import REMOTE4, Topology

MTU_BYTES = 65520
SETTLED_AFTER_S = 2.0
"""Connections that were just opened have timers running, for a little while."""

HOLD_TIMEOUT_S = 60.0
SHARE_TIMEOUT_S = 90.0


@contextlib.contextmanager
def guest(topology: Topology, directory: Path, connection_count: int, program: str = OURS) -> Iterator[Running]:
    """A program with a guest, and a server for so many connections."""
    _allow_descriptors(connection_count + 1000)
    with measure.load_server(topology.remote.enter()), running(program, topology, directory, MTU_BYTES) as started:
        yield started


def idle(running: Running, count: int, seconds: float) -> Idle:
    """Open connections, and look at the process for some seconds. Raises `measure.MeasurementError`."""
    assert running.process_id is not None
    with _holding(running, 1):  # what is loaded once, at the first connection, is not the connections'
        pass
    cpu_before, resident_before = _cpu_share(running, seconds), resident_kib(running.process_id)
    with _holding(running, count):
        time.sleep(SETTLED_AFTER_S)
        cpu = _cpu_share(running, seconds)
        resident = resident_kib(running.process_id)
    return Idle(count, (resident - resident_before) / count, cpu, cpu_before)


def sharing(running: Running, direction: Direction, many: int, few: int, byte_count: int, rounds: int) -> Sharing:
    """The same bytes through many connections and through few, in turns. Raises `measure.MeasurementError`."""
    times: dict[int, list[float]] = {many: [], few: []}
    fairness = []
    for _ in range(rounds):
        for count in (many, few):
            command = [*measure.load(), "share", direction, REMOTE4, measure.LOAD_PORT, str(count), str(byte_count)]
            report = measure.client(running, command, SHARE_TIMEOUT_S)
            times[count].append(report["seconds"])
            if count == many:
                fairness.append(report["halfway_slowest"] / max(1, report["halfway_median"]))
    many_s, few_s = statistics.median(times[many]), statistics.median(times[few])
    return Sharing(running.name, direction, many, few, byte_count / 1e9, many_s, few_s, statistics.median(fairness))


def _allow_descriptors(count: int) -> None:
    """Of this process, and of those that it starts: the hard limit. Root may raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, count))


def _cpu_share(running: Running, seconds: float) -> float:
    before, start = running.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    return (running.cpu_seconds() - before) / (time.monotonic() - start)


@contextlib.contextmanager
def _holding(running: Running, count: int) -> Iterator[None]:
    """So many open connections, each of which has carried a byte there and back."""
    command = [*running.enter, *measure.load(), "hold", REMOTE4, measure.LOAD_PORT, str(count)]
    process = subprocess.Popen(
        [*DIE_WITH_PARENT, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            opened, _, _ = select.select([process.stdout], [], [], HOLD_TIMEOUT_S)
            line = process.stdout.readline().strip() if opened else f"not open after {HOLD_TIMEOUT_S:g} s"
            try:
                json.loads(line)
            except ValueError as error:
                raise measure.MeasurementError(f"{count} connections: {line}") from error
            yield
            process.stdin.close()  # the end of its input ends it
            process.wait(HOLD_TIMEOUT_S)
        finally:
            process.kill()
