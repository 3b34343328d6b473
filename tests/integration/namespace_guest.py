"""A guest that is a network namespace, served by `trio-pasta`: what is checked with a machine can be checked with it.

It has the QEMU guest's own files: the same programs, at the same places, called in the same way. Its device is eth0.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from tests.guest import image
from tests.guest.machine import CHANNEL_SLACK_S, COMMAND_TIMEOUT_S, DIE_WITH_PARENT, GuestError, Result
from tests.integration.daemon import READY_TIMEOUT_S, Daemon, namespace_program
from tests.integration.topology import Namespace
from tests.integration.userspace import Network, Userspace

DEVICE = "eth0"


class NamespaceDaemon(Daemon):
    """`trio-pasta` in the foreground, for a namespace that is there already; a context manager that ends it."""

    def __init__(
        self, host: Namespace, directory: Path, *arguments: str, as_root: bool = False, pass_fds: Sequence[int] = ()
    ) -> None:
        """Start it in the host's namespace with `arguments`, which say which namespace; as an ordinary user or not."""
        self._pid_file = directory / "pid"
        self._pid_file.unlink(missing_ok=True)
        enter = [*DIE_WITH_PARENT, *host.enter()] if as_root else host.enter_unprivileged()
        command = [*enter, *namespace_program(), "-f", "-P", str(self._pid_file), "-I", DEVICE, *arguments]
        self._start(command, directory, pass_fds)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Wait for its PID file: it is written when all is set up."""
        deadline = time.monotonic() + timeout_s
        while not (self._pid_file.exists() and self._pid_file.read_text()):
            if self.process.poll() is not None:
                raise AssertionError(f"trio-pasta: status {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"trio-pasta: not ready after {timeout_s} s\n{self.log_tail()}")
            time.sleep(0.005)
        return self


@dataclass
class Pending:
    """A command under way, as of a machine's `Guest`."""

    command: str
    deadline: float
    _process: subprocess.Popen[str]

    def result(self) -> Result:
        """Wait for the command's end. Raises `GuestError` if it does not end in time."""
        try:
            output, errors = self._process.communicate(timeout=max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise GuestError(f"no answer from the guest in time: {self.command}") from None
        return Result(self.command, self._process.returncode, output, errors)

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._process.poll() is not None


class NamespaceGuest:
    """Commands in a namespace, by a machine's `Guest`'s methods; a context manager that ends what still runs in it."""

    def __init__(self, network: Network, files: image.Image, mount_point: Path) -> None:
        """`mount_point` is a directory that is not there yet."""
        self._network, self._files, self._mount_point = network, files, mount_point

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._mount_point.mkdir()
            opened.callback(self._mount_point.rmdir)
            userspace = Userspace(self._network, image.unpacked(self._files), self._mount_point)
            self._userspace = opened.enter_context(userspace)
            self.check("ip link set lo up")
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Result:
        """A shell command's output and status, whatever it is; 137 if it was killed after `timeout_s`."""
        return self.start(command, timeout_s).result()

    def check(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Output of a shell command that must succeed."""
        return self.run(command, timeout_s).check().stdout

    def start(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Pending:
        """Begin a shell command, and go on."""
        killed_in_time = ["timeout", "-s", "KILL", f"{timeout_s:g}", "/bin/sh", "-c", command]
        process = subprocess.Popen(
            [*DIE_WITH_PARENT, *self._userspace.enter, *killed_in_time],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return Pending(command, time.monotonic() + timeout_s + CHANNEL_SLACK_S, process)


def checks(
    *modules: ModuleType, only: Collection[str] = (), without: Collection[str] = ()
) -> dict[str, Callable[..., None]]:
    """The tests of modules, named after module and test: whoever has them in a module of its own runs them there.

    They find that module's fixtures. `only` names all that are wanted, `without` those that are not; all have to exist.
    """
    found = {
        f"{module.__name__.rpartition('.')[2]}_{name.removeprefix('test_')}": value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("test_") and callable(value) and name not in without and (name in only or not only)
    }
    for name in (*only, *without):
        assert any(hasattr(module, name) for module in modules), name
    return found
