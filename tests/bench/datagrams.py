"""Measurements of UDP: `datagrams.c` where the guest is, and at the other end in the remote namespace.

iperf3 does not serve here. With --omit it finds up to 120 % lost; it loses up to 80 % in the buffer of its own socket,
with nothing between; and its report travels through the program that it has just flooded.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.cells import (
    DNS_CPU,
    DNS_MEDIAN,
    DNS_P99,
    Cell,
    Cpu,
    Direction,
    Flood,
    Lookups,
    Paced,
    Rate,
)
from tests.bench.measure import GRACE_S, MeasurementError, client
from tests.bench.programs import Running
from tests.guest.machine import DIE_WITH_PARENT
from tests.guest.native import compiled
from tests.integration.topology import REMOTE4, Namespace, Topology

DATAGRAMS = Path(__file__).with_name("datagrams.c")
PORT, DNS_PORT = "5203", "53"
UDP_SHARE = 0.35
"""Of the time that other cells take: there are many of UDP, and they need no more."""

WARM_UP_S = 0.25
UPLINK_MTU_BYTES, USUAL_UPLINK_MTU_BYTES = 9216, 1500
OFFERED_SHARE = 0.5
"""Of the rate that it should have: a slower sender has measured something else. A stall of the machine is no such: the
sender does not make up for it, as that would be a burst."""


@contextlib.contextmanager
def wide_uplink(topology: Topology) -> Iterator[None]:
    """The host's uplink takes large datagrams as they are: else its kernel's fragmentation would be measured."""
    try:
        _set_uplink_mtu(topology, UPLINK_MTU_BYTES)
        yield
    finally:
        _set_uplink_mtu(topology, USUAL_UPLINK_MTU_BYTES)


def one_way(running: Running, remote: Namespace, cell: Flood | Paced, seconds: float) -> dict[Cell, float]:
    """What arrives, what is lost, and the CPU time that the program takes."""
    megabits_per_s = cell.megabits_per_s if isinstance(cell, Paced) else 0
    train = cell.train if isinstance(cell, Flood) else 1
    flow = [cell.direction, REMOTE4, PORT, str(cell.payload_bytes), str(train)]
    send = [*ends(), "send", *flow, str(megabits_per_s), str(WARM_UP_S), str(seconds)]
    receive = [*ends(), "receive", *flow]
    is_up = cell.direction is Direction.UP
    timeout_s = seconds + WARM_UP_S + GRACE_S
    before = running.cpu_seconds()
    with _far_end(remote, receive if is_up else send) as far:
        near_report = client(running, send if is_up else receive, timeout_s)
        far_report = _report(far)
    used_s = running.cpu_seconds() - before
    sent, received = (near_report, far_report) if is_up else (far_report, near_report)
    return numbers_of(cell, sent, received, used_s if running.process_id is not None else None)


def numbers_of(
    cell: Flood | Paced, sent: dict[str, Any], received: dict[str, Any], used_s: float | None
) -> dict[Cell, float]:
    """By row of the table, from what both ends say. Raises `MeasurementError` if one of them was not up to it."""
    if received["overflowed"]:
        raise MeasurementError(f"the receiver itself lost {received['overflowed']}")
    if not sent["sent"]:
        raise MeasurementError("the sender sent nothing")
    lost_percent = 100 * (1 - received["arrived"] / sent["sent"])
    if isinstance(cell, Paced):
        offered = sent["sent"] * cell.payload_bytes * 8 / 1e6 / sent["seconds"] / cell.megabits_per_s
        if offered < OFFERED_SHARE:
            raise MeasurementError(f"the sender sent {offered:.0%} of what it should")
        return {cell: lost_percent}
    numbers: dict[Cell, float] = {
        cell: received["measured_bytes"] * 8 / 1e9 / sent["seconds"],
        cell.lost: lost_percent,
    }
    if used_s is not None:
        numbers[Cpu(cell)] = used_s / (received["bytes"] / 1e9)
    return numbers


def exchanges(running: Running, remote: Namespace, cell: Rate, seconds: float) -> dict[Cell, float]:
    """Exchanges a second, and how many were lost: those were asked again."""
    with _far_end(remote, [*ends(), "answer", REMOTE4, PORT]):
        before = running.cpu_seconds()
        report = client(running, [*ends(), "rr", REMOTE4, PORT, str(seconds)], seconds + GRACE_S)
        used_s = running.cpu_seconds() - before
    if not report["count"]:
        raise MeasurementError("no answer")
    numbers: dict[Cell, float] = {cell: report["count"] / report["seconds"], cell.lost: report["lost"]}
    if running.process_id is not None:
        numbers[cell.cpu] = used_s * 1e6 / report["count"]
    return numbers


def lookups(running: Running, remote: Namespace, cell: Lookups) -> dict[Cell, float]:
    """How many are lost, how long the others take, and what share of a CPU the program takes meanwhile."""
    rate, count = cell.queries_per_s, cell.query_count
    with _far_end(remote, [*ends(), "answer", REMOTE4, DNS_PORT]):
        before, start = running.cpu_seconds(), time.monotonic()
        report = client(
            running,
            [*ends(), "dns", REMOTE4, DNS_PORT, str(rate), str(count)],
            count / rate + GRACE_S,
        )
        used_s, passed_s = running.cpu_seconds() - before, time.monotonic() - start
    numbers: dict[Cell, float] = {cell: report["asked"] - report["answered"]}
    if report["answered"]:
        numbers |= {DNS_MEDIAN: report["median_ms"], DNS_P99: report["p99_ms"]}
    if running.process_id is not None:
        numbers[DNS_CPU] = 100 * used_s / passed_s
    return numbers


def ends() -> list[str]:
    """The program that is at both ends."""
    return [str(compiled(DATAGRAMS))]


@contextlib.contextmanager
def _far_end(remote: Namespace, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """From when it is ready."""
    process = subprocess.Popen(
        [*DIE_WITH_PARENT, *remote.enter(), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            if (said := process.stdout.readline().strip()) != "ready":
                raise MeasurementError(said or "the far end has ended")
            yield process
        finally:
            process.kill()


def _report(far: subprocess.Popen[str]) -> dict[str, Any]:
    """What the far end says when it has ended by itself, which is soon after the near end."""
    try:
        said, _ = far.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError("the far end does not end") from error
    try:
        return dict(json.loads(said))
    except ValueError as error:
        raise MeasurementError(said.strip() or "the far end says nothing") from error


def _set_uplink_mtu(topology: Topology, mtu_bytes: int) -> None:
    for namespace in (topology.host, topology.remote):
        namespace.ip("link", "set", "uplink", "mtu", str(mtu_bytes))
