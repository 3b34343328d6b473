"""The programs that are compared, each with a guest, side by side in one host's namespace."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cells import FLOOR, OURS, PASST, SLIRP
from tests.guest.kernel import DEVICE, QUEUE_FRAMES, KernelGuest
from tests.guest.machine import DIE_WITH_PARENT
from tests.integration.daemon import Daemon, daemon_directory, program
from tests.integration.topology import Topology, named_namespace

READY_TIMEOUT_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Running:
    """A guest that is online by a program, and the program's process. The floor has none.

    `local_port` is the host's port that leads to a namespace's (`namespaces.INWARD_PORT`), past the tap.
    """

    name: str
    enter: list[str]
    process_id: int | None
    local_port: int = 0

    def cpu_seconds(self) -> float:
        """CPU time that the process has used, in user and in kernel mode, with the processes that it has started."""
        return sum(map(cpu_seconds, family(self.process_id))) if self.process_id is not None else 0.0

    def has_ended(self) -> bool:
        """Whether the process is no more, or a zombie."""
        return self.process_id is not None and _stat(self.process_id)[0] in ("", "Z")


def family(process_id: int) -> list[int]:
    """A process, its children (of its main thread, that is), theirs, and so on."""
    try:
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [process_id, *(each for child in children for each in family(int(child)))]


def cpu_seconds(process_id: int) -> float:
    """CPU time of a process, with all its threads, without its children (proc_pid_stat(5))."""
    user_ticks, system_ticks = _stat(process_id)[11:13]
    return (int(user_ticks or 0) + int(system_ticks or 0)) / TICKS_PER_S


def _stat(process_id: int) -> list[str]:
    """What follows the name in /proc/PID/stat; empty words if there is no such process."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 50


@contextlib.contextmanager
def running(name: str, topology: Topology, directory: Path, mtu_bytes: int) -> Iterator[Running]:
    """A program with its guest, by its name; the block ends both. `directory` must not be there yet."""
    if name == FLOOR:
        yield Running(name, topology.host.enter(), None)
    elif name == SLIRP:
        with _slirp4netns(topology, mtu_bytes) as guest:
            yield guest
    else:
        command_line = {OURS: program(), PASST: ["passt"]}[name]
        own = daemon_directory(directory.parent, directory.name)
        with (
            Daemon(topology.host, own, "--mtu", str(mtu_bytes), command_line=command_line) as daemon,
            KernelGuest(daemon.wait_ready().socket_path, mtu_bytes=mtu_bytes) as guest,
        ):
            yield Running(name, guest.enter(), daemon.process.pid)


@contextlib.contextmanager
def _slirp4netns(topology: Topology, mtu_bytes: int) -> Iterator[Running]:
    """It makes its tap itself, in the namespace that it is told: there is no relay."""
    namespace = named_namespace("slirp")
    ready, ready_writer = os.pipe()
    command = [
        *(*DIE_WITH_PARENT, *topology.host.enter(), "slirp4netns", "--configure", f"--mtu={mtu_bytes}"),
        *(f"--ready-fd={ready_writer}", "--netns-type=path", f"/run/netns/{namespace.name}", DEVICE),
    ]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[ready_writer],
        )
        try:
            readable, _, _ = select.select([ready], [], [], READY_TIMEOUT_S)
            if not readable or os.read(ready, 1) != b"1":
                raise RuntimeError(f"{SLIRP} is not ready, status {process.poll()}")
            namespace.ip("link", "set", DEVICE, "txqueuelen", str(QUEUE_FRAMES))
            yield Running(SLIRP, namespace.enter(), process.pid)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(ready)
        os.close(ready_writer)
        namespace.remove()
