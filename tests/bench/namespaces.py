"""The programs that attach a namespace: as an ordinary user's, to a namespace that this user has made.

All of them get it the same way, by the process ID of who keeps it, and set up a tap of their own in it.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.cells import OURS_PASTA, PASTA, SLIRP
from tests.bench.programs import Running
from tests.guest import tun
from tests.guest.kernel import QUEUE_FRAMES
from tests.guest.unprivileged import Unprivileged
from tests.integration.daemon import namespace_program
from tests.integration.topology import Topology, run

READY_TIMEOUT_S = 20.0
DEVICE = "tap0"
INWARD_PORT, OUTWARD_PORT, HOST_PORT = 5211, 5212, 5213
"""Of the namespace: where its own server listens, and where the host's is found; of the host: where that listens."""

_inward_ports = itertools.count(20000)
"""Of the host, for `INWARD_PORT`: each program has another, as they run side by side."""

LISTEN = "0A"
"""TCP_LISTEN in the state's column of /proc/net/tcp."""


@contextlib.contextmanager
def running(name: str, topology: Topology, directory: Path, mtu_bytes: int) -> Iterator[Running]:
    """A program with its guest, by its name, from when the guest is online; the block ends both."""
    as_user = topology.host.enter_unprivileged()
    port = next(_inward_ports)
    with tun.open_to_everybody(), Unprivileged(as_user) as guest:
        log = directory.with_suffix(".log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*as_user, *_command(name, guest.process_id, port, mtu_bytes)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _await(guest, process, None if name == SLIRP else port, log)
            run(*guest.enter(), "ip", "link", "set", DEVICE, "txqueuelen", str(QUEUE_FRAMES))
            yield Running(name, guest.enter(), process.pid, local_port=port)
        finally:
            process.terminate()
            try:
                process.wait(READY_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command(name: str, process_id: int, port: int, mtu_bytes: int) -> list[str]:
    if name == SLIRP:
        return [SLIRP, "--configure", f"--mtu={mtu_bytes}", str(process_id), DEVICE]
    return [
        *{OURS_PASTA: namespace_program(), PASTA: [PASTA]}[name],
        *(
            "--foreground",
            "--config-net",
            "--ns-ifname",
            DEVICE,
            "--mtu",
            str(mtu_bytes),
            "--udp-ports",
            "none",
            "--udp-ns",
            "none",
        ),
        *("--tcp-ports", f"{port}:{INWARD_PORT}", "--tcp-ns", f"{OUTWARD_PORT}:{HOST_PORT}", str(process_id)),
    ]


def _await(guest: Unprivileged, process: subprocess.Popen[bytes], port: int | None, log: Path) -> None:
    """Until there is a default route, and the host's port."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not (_has_default_route(guest.process_id) and (port is None or _listens(process.pid, port))):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"not ready, status {process.poll()}: {said[-1] if said else 'it says nothing'}")
        time.sleep(0.01)


def _has_default_route(process_id: int) -> bool:
    """proc_pid_net(5): interface, destination ..., with a header."""
    lines = Path(f"/proc/{process_id}/net/route").read_text().splitlines()
    return any(line.split()[1] == "00000000" for line in lines[1:])


def _listens(process_id: int, port: int) -> bool:
    """proc_pid_net(5): number, local address and port in hexadecimal, remote one, state ..., with a header."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # it may have ended
            for line in Path(f"/proc/{process_id}/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == LISTEN and columns[1].endswith(f":{port:04X}"):
                    return True
    return False
