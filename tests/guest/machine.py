"""Run the guest under QEMU, and commands in it.

`Guest.run` hands a command to the shell loop in rootfs/bin/control over a virtio-serial port, which QEMU
shows as a UNIX socket, and waits for its output and status. Any number of commands may be under way: `Guest.start`.

`python3 -m tests.guest.machine run SOCKET COMMAND` does the same from a shell script (see docs/demo.sh), and
`python3 -m tests.guest.machine argv ...` prints QEMU's arguments for it.
"""

from __future__ import annotations

import base64
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest.image import Image

KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off lsm="
BOOT_TIMEOUT_S = 240.0
COMMAND_TIMEOUT_S = 60.0
CHANNEL_SLACK_S = 10.0
# Before a command: it is killed when the thread that started it ends, however that ends.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class GuestError(Exception):
    """The guest cannot answer: it ended, or it does not react. The text has the end of its console's log."""


@dataclass(frozen=True)
class Result:
    """What a command in the guest came to."""

    command: str
    status: int
    stdout: str
    stderr: str

    def check(self) -> Self:
        """Itself, if the status is 0."""
        if self.status != 0:
            raise AssertionError(
                f"in the guest: {self.command}\nstatus {self.status}\n{self.stdout}{self.stderr}".rstrip()
            )
        return self


@dataclass
class Pending:
    """A command under way."""

    command: str
    deadline: float
    _answered: threading.Event = field(default_factory=threading.Event)
    _result: Result | GuestError | None = None

    def answer(self, result: Result | GuestError) -> None:
        """Called once, by the channel."""
        self._result = result
        self._answered.set()

    def result(self) -> Result:
        """Wait for the command's end. Raises `GuestError` if the guest ends, or says nothing in time."""
        if not self._answered.wait(max(0.0, self.deadline - time.monotonic())):
            raise GuestError(f"no answer from the guest in time: {self.command}")
        if isinstance(self._result, GuestError):
            raise self._result
        assert self._result is not None
        return self._result

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._answered.is_set()


class ControlChannel:
    """The host's end of the virtio-serial port: the protocol is described in rootfs/bin/control."""

    def __init__(self, path: Path, *, connect_timeout_s: float = 60.0) -> None:
        self._socket = _connect(path, connect_timeout_s)
        self._ids = itertools.count(time.monotonic_ns())
        self._pending: dict[int, Pending] = {}
        self._lock = threading.Lock()
        self._gone = False
        self._reader = threading.Thread(target=self._read_answers, name="guest-control", daemon=True)
        self._reader.start()

    def start(self, command: str, timeout_s: float, slack_s: float = CHANNEL_SLACK_S) -> Pending:
        """Begin a command that the guest kills after `timeout_s`."""
        pending = Pending(command, time.monotonic() + timeout_s + slack_s)
        request_id = next(self._ids)
        encoded = base64.b64encode(command.encode())
        with self._lock:
            if self._gone:
                pending.answer(GuestError("the guest is gone"))
                return pending
            self._pending[request_id] = pending
            self._socket.sendall(b"%d %.1f %s\n" % (request_id, timeout_s, encoded))
        return pending

    def close(self) -> None:
        """Disconnect; commands under way get a `GuestError`."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read_answers(self) -> None:
        try:
            with self._socket.makefile("rb") as file:
                while header := file.readline():
                    request_id, status, output_bytes, error_bytes = map(int, header.split())
                    output = file.read(output_bytes).decode(errors="replace")
                    errors = file.read(error_bytes).decode(errors="replace")
                    pending = self._pending.pop(request_id, None)
                    if pending is not None:
                        pending.answer(Result(pending.command, status, output, errors))
        except OSError:
            pass
        with self._lock:
            self._gone = True
            for pending in self._pending.values():
                pending.answer(GuestError(f"the guest went while it ran: {pending.command}"))


class Guest:
    """One virtual machine; a context manager that ends it."""

    def __init__(
        self,
        image: Image,
        netdev: str,
        directory: Path,
        *,
        name: str = "guest",
        mac: str = "52:54:00:12:34:56",
        memory_mib: int = 512,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start QEMU; `netdev` is the value of its -netdev, with id=n. `boot()` waits until it is usable."""
        self.console_log = directory / f"{name}.console"
        self._control_path = directory / f"{name}.control"
        self._control_path.unlink(missing_ok=True)
        self.console_log.unlink(missing_ok=True)
        arguments = qemu_arguments(
            image,
            netdev,
            self._control_path,
            serial=f"file:{self.console_log}",
            mac=mac,
            memory_mib=memory_mib,
        )
        self.errors_log = directory / f"{name}.qemu"
        with self.errors_log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*DIE_WITH_PARENT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=pass_fds,
                process_group=0,
            )
        self._channel: ControlChannel | None = None

    def boot(self, timeout_s: float = BOOT_TIMEOUT_S) -> Self:
        """Wait until commands can be run."""
        try:
            self._channel = ControlChannel(self._control_path)
            self._channel.start("true", timeout_s, slack_s=0).result().check()
        except (GuestError, OSError) as error:
            raise GuestError(f"the guest does not boot: {error}\n{self.log()}") from None
        return self

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Result:
        """A shell command's output and status, whatever it is; 137 if it was killed after `timeout_s`."""
        try:
            return self.start(command, timeout_s).result()
        except GuestError as error:
            raise GuestError(f"{error}\n{self.log()}") from None

    def check(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Output of a shell command that must succeed."""
        return self.run(command, timeout_s).check().stdout

    def start(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Pending:
        """Begin a shell command, and go on."""
        assert self._channel is not None, "not booted"
        return self._channel.start(command, timeout_s)

    def log(self) -> str:
        """The end of what QEMU and the guest's console said."""
        said = [path.read_text(errors="replace") for path in (self.errors_log, self.console_log) if path.exists()]
        return "\n".join(line for text in said for line in text.splitlines()[-40:])

    def kill(self) -> None:
        """End the machine as a power cut would, and forget its control channel."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._control_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def qemu_arguments(
    image: Image,
    netdev: str,
    control: Path,
    *,
    serial: str,
    mac: str = "52:54:00:12:34:56",
    memory_mib: int = 512,
    kernel_arguments: str = "",
) -> list[str]:
    """QEMU's command line: no KVM, no disk, one network device, the console on `serial`."""
    return [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(memory_mib), "-nodefaults", "-nographic"),
        *("-no-reboot", "-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}".rstrip()),
        *("-serial", serial),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=control,path={control},server=on,wait=off"),
        *("-device", "virtserialport,chardev=control,name=control"),
        *("-netdev", netdev, "-device", f"virtio-net-pci,netdev=n,mac={mac},romfile="),
    ]


def _connect(path: Path, timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _main(arguments: list[str]) -> int:
    match arguments:
        case ["run", path, command]:
            channel = ControlChannel(Path(path))
            result = channel.start(command, BOOT_TIMEOUT_S).result()
            print(result.stdout, end="", flush=True)
            print(result.stderr, end="", flush=True, file=sys.stderr)
            return result.status
        case ["argv", kernel, initramfs, netdev, control, serial, kernel_arguments]:
            image = Image(Path(kernel), Path(initramfs))
            argv = qemu_arguments(image, netdev, Path(control), serial=serial, kernel_arguments=kernel_arguments)
            print("\n".join(argv))
            return 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
