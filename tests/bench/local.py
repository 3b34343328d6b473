"""What goes past the tap: from a loopback address of the host to a port of the namespace, and the other way."""

from __future__ import annotations

from tests.bench import measure
from tests.bench.cells import Cell, Local
from tests.bench.namespaces import HOST_PORT, INWARD_PORT, OUTWARD_PORT
from tests.bench.programs import Running
from tests.integration.topology import Namespace

LOOPBACK, ANY = "127.0.0.1", "0.0.0.0"


def numbers(running: Running, host: Namespace, cell: Local, seconds: float, warm_up_s: int) -> dict[Cell, float]:
    """A connection's throughput, with the CPU time that it takes, or exchanges a second."""
    here, there = (host.enter(), running.enter) if cell.is_inward else (running.enter, host.enter())
    port = str(running.local_port if cell.is_inward else OUTWARD_PORT)
    # Older versions of pasta connect to the namespace's loopback address, newer ones to its own.
    address, server_port = (ANY, str(INWARD_PORT)) if cell.is_inward else (LOOPBACK, str(HOST_PORT))
    if cell.kind == "bulk":
        seconds = max(1, round(seconds))
        command = ["iperf3", "--json", "--client", LOOPBACK, "--port", port]
        command += ["--time", str(seconds), "--omit", str(warm_up_s)]
        with measure.iperf_server(there, address, server_port):
            return measure.iperf(running, [*here, *command], cell, seconds + warm_up_s + measure.GRACE_S)
    with measure.load_server(there, address, server_port):
        command = [*here, *measure.load(), cell.kind, LOOPBACK, port, str(seconds)]
        return measure.exchanges(running, command, cell, seconds)
