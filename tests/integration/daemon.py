"""The program under test, as an unprivileged process in the host's namespace.

TRIO_PASST_UNDER_TEST is its command line if it is not the `trio-passt` installed beside the running Python.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.topology import UNPRIVILEGED_ID, Namespace

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
LISTENING = "00010000"
"""SO_ACCEPTCON in the flags column of /proc/net/unix."""


def program() -> list[str]:
    """The program under test."""
    if configured := os.environ.get("TRIO_PASST_UNDER_TEST"):
        return shlex.split(configured)
    return [str(Path(sys.executable).parent / "trio-passt")]


def namespace_program() -> list[str]:
    """The one for namespaces; TRIO_PASTA_UNDER_TEST is its command line if it is not the `trio-pasta` beside Python."""
    if configured := os.environ.get("TRIO_PASTA_UNDER_TEST"):
        return shlex.split(configured)
    return [str(Path(sys.executable).parent / "trio-pasta")]


def slirp4netns_program() -> list[str]:
    """The one that is called as slirp4netns; TRIO_SLIRP4NETNS_UNDER_TEST in the same way."""
    if configured := os.environ.get("TRIO_SLIRP4NETNS_UNDER_TEST"):
        return shlex.split(configured)
    return [str(Path(sys.executable).parent / "trio-slirp4netns")]


def daemon_directory(parent: Path, name: str) -> Path:
    """A directory in which only the daemon may write."""
    directory = parent / name
    directory.mkdir(mode=0o700)
    os.chown(directory, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    return directory


class Daemon:
    """A daemon in the foreground; a context manager that ends it. Its messages go to the file `log`."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *arguments: str,
        pass_fds: Sequence[int] = (),
        command_line: Sequence[str] = (),
    ) -> None:
        """Start it with `arguments` and -f, and unless -F is among them, -s.

        `command_line` is another program that takes the same options (passt) in its stead.
        """
        self.socket_path = directory / "socket"
        command = [*namespace.enter_unprivileged(), *(command_line or program()), "-f"]
        if "-F" not in arguments:
            command += ["-s", str(self.socket_path)]
        self._start([*command, *arguments], directory, pass_fds)

    def _start(self, command: Sequence[str], directory: Path, pass_fds: Sequence[int]) -> None:
        self.log = directory / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                process_group=0,
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Wait until it accepts a guest, without being one."""
        deadline = time.monotonic() + timeout_s
        while not self._listens():
            if self.process.poll() is not None:
                raise AssertionError(f"daemon: status {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"daemon: no socket after {timeout_s} s\n{self.log_tail()}")
            time.sleep(0.005)
        return self

    def netdev(self) -> str:
        """QEMU's -netdev that connects to it."""
        return f"stream,id=n,server=off,addr.type=unix,addr.path={self.socket_path}"

    def resident_kib(self) -> int:
        """Resident memory."""
        return resident_kib(self.process.pid)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and wait; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def log_tail(self, lines: int = 40) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            self.process.kill()
            self.process.wait()

    def _listens(self) -> bool:
        try:
            sockets = Path(f"/proc/{self.process.pid}/net/unix").read_text()
        except OSError:
            return False
        return any(
            columns[3] == LISTENING and columns[7:] == [str(self.socket_path)]
            for columns in (line.split() for line in sockets.splitlines())
        )


def resident_kib(process_id: int) -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {process_id} has no memory")


def end_process(process_id: int, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """SIGTERM to a process that need not be a child, and wait until it has ended."""
    descriptor = os.pidfd_open(process_id)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        assert select.select([descriptor], [], [], timeout_s)[0], f"process {process_id} ignores SIGTERM"
    finally:
        os.close(descriptor)


class RawGuest:
    """A guest of hand-made frames on the daemon's socket; a context manager that disconnects."""

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(timeout_s)
        self.connection.connect(str(path))

    def send_frame(self, frame: bytes) -> None:
        """One frame, with its length before it."""
        self.connection.sendall(len(frame).to_bytes(4, "big") + frame)

    def receive_frame(self) -> bytes:
        """The next frame; empty if the daemon closed the connection."""
        length = int.from_bytes(self._receive(4), "big")
        return self._receive(length)

    def closed_by_daemon(self) -> bool:
        """Whether the connection ends before the time-out; frames that come before the end are ignored."""
        try:
            while self.connection.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.connection.recv(count - len(data))):
            data += more
        return data
