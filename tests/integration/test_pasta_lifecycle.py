"""The life of `trio-pasta`: commands and their ends, namespaces that are joined, and that nothing is left.

As an ordinary user where nothing else is said; on the topology's host.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.guest import tun
from tests.integration.daemon import namespace_program
from tests.integration.topology import HOST4, UNPRIVILEGED_ID, Namespace, Topology, named_namespace, run

WAIT_S = 60.0
NO_PORTS = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]

T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def tap_for_everybody() -> Iterator[None]:
    """As udev has it."""
    with tun.open_to_everybody():
        yield


@pytest.fixture(scope="module")
def host(topology: Topology) -> Namespace:
    """Where the program runs."""
    return topology.host


class Pasta(subprocess.Popen[str]):
    """The program, in the foreground unless it goes away by itself; a context manager that ends it."""

    def __init__(
        self,
        host: Namespace,
        *arguments: str,
        as_root: bool = False,
        enter: list[str] | None = None,
        ports: list[str] = NO_PORTS,
        **values: object,
    ) -> None:
        enter = enter or (host.enter() if as_root else host.enter_unprivileged())
        defaults: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        command = [*enter, *namespace_program(), *ports, *arguments]
        super().__init__(command, text=True, cwd="/", process_group=0, **(defaults | values))  # type: ignore[call-overload]

    def __exit__(self, *reason: object) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(*reason)  # type: ignore[arg-type]

    def says(self) -> tuple[int, str, str]:
        """Its status, and what it says until its end."""
        output, errors = self.communicate(timeout=WAIT_S)
        return self.returncode, output, errors

    def whole_family(self, count: int) -> list[int]:
        """All of them, when so many are there, and those that only set up have ended."""

        def whole() -> list[int] | None:
            found = self.family()
            return found if len(found) == count and not any(gone([pid]) for pid in found) else None

        return wait_for(whole, f"{count} processes")

    def family(self) -> list[int]:
        """Its process ID, and those of all processes below it."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found


def wait_for(condition: Callable[[], T | None], what: str) -> T:
    """Ask again and again, until the answer is true."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {WAIT_S} s: {what}; but {answer!r}")
        time.sleep(0.01)
    return answer


def gone(pids: list[int]) -> bool:
    """Whether none of these is there any more, or waits only to be noticed."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return not any(runs(pid) for pid in pids)


def wait_for_end(pids: list[int]) -> None:
    """Of all of them."""
    wait_for(lambda: gone(pids), f"the end of {pids}")


def interfaces(pid: int) -> set[str]:
    """Of the network that a process is in."""
    return {line.partition(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]}


@contextlib.contextmanager
def sleeping(host: Namespace, *unshare: str) -> Iterator[int]:
    """An ordinary user's process with namespaces of its own."""
    command = [*host.enter_unprivileged(), "unshare", *unshare, "sleep", "1000"]
    with subprocess.Popen(command, cwd="/") as process:
        try:
            comm = Path(f"/proc/{process.pid}/comm")
            wait_for(lambda: comm.read_text() == "sleep\n", "a process in its namespaces")
            yield process.pid
        finally:
            process.kill()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_exit_statuses(host: Namespace) -> None:
    """The command's; 128 and the signal's number; as a shell's for what can't be executed."""
    commands = {
        ("sh", "-c", "exit 42"): (42, ""),
        ("sh", "-c", "kill -KILL $$"): (137, ""),
        ("no-such-command",): (127, "trio-pasta: can't run 'no-such-command': No such file or directory\n"),
        ("/etc/passwd",): (126, "trio-pasta: can't run '/etc/passwd': Permission denied\n"),
    }
    with contextlib.ExitStack() as opened:
        started = {words: opened.enter_context(Pasta(host, "-q", "--", *words)) for words in commands}
        found = {words: process.says() for words, process in started.items()}
    assert {words: (status, errors) for words, (status, _, errors) in found.items()} == commands


def test_command_takes_and_gives_what_we_do(host: Namespace) -> None:
    """Standard input and output, environment, directory, mask; it is root there, and nobody else is to be seen."""
    script = "cat; echo $MARK; pwd; umask; id -u; cat /proc/self/uid_map; ps -e | wc -l; exit 3"
    environment = os.environ | {"MARK": "a b"}
    mask = os.umask(0o027)
    try:
        process = Pasta(host, "-q", "sh", "-c", script, stdin=subprocess.PIPE, env=environment)
    finally:
        os.umask(mask)
    with process:
        output, errors = process.communicate("input\n", timeout=WAIT_S)
    assert (process.returncode, errors) == (3, "")
    *lines, processes = output.splitlines()
    assert lines == ["input", "a b", "/", "0027", "0", f"         0 {UNPRIVILEGED_ID:10} {1:10}"]
    assert int(processes) < 8


def test_network_is_there_when_the_command_begins(host: Namespace) -> None:
    """Nothing to configure, nothing to wait for: all addresses can be used, and the loopback device is up."""
    script = "ip -brief addr; ip -oneline addr show tentative; ping -c1 -W5 127.0.0.1 >&2; ping -c1 -W5 ::1 >&2"
    with Pasta(host, "-q", "sh", "-c", script) as process:
        status, output, errors = process.says()
    assert status == 0, errors
    loopback, uplink = output.splitlines()
    assert loopback.split()[0] == "lo"
    assert uplink.split()[0] == "uplink"
    assert f"{HOST4}/24" in uplink.split()


def test_what_a_command_leaves_is_ended(host: Namespace) -> None:
    """In the background, in another session, and ours."""
    with Pasta(
        host, "-q", "sh", "-c", "sleep 1000 & setsid sleep 1000 & echo; read line", stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        family = process.whole_family(7)
        process.communicate("\n", timeout=WAIT_S)
        assert process.returncode == 0
        assert gone(family)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_the_commands(host: Namespace, number: signal.Signals) -> None:
    """It decides what that means."""
    script = f"trap 'echo trapped; exit 9' {number.name.removeprefix('SIG')}; echo; while :; do sleep 0.01; done"
    with Pasta(host, "-q", "sh", "-c", script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.says()[:2] == (9, "trapped\n")


def test_killed_with_all_that_is_there(host: Namespace) -> None:
    """SIGKILL, to the program or to one that serves it or that it waits for: no other remains."""
    for victim in range(3):
        with Pasta(host, "-q", "sh", "-c", "sleep 1000 & echo; wait") as process:
            assert process.stdout is not None
            process.stdout.readline()
            family = process.whole_family(6)
            is_agent = victim == _agent(family)
            os.kill(family[victim], signal.SIGKILL)
            if is_agent:
                time.sleep(0.2)
                assert process.poll() is None, "the command goes on, without new local connections"
                process.terminate()
            wait_for_end(family)


def _agent(family: list[int]) -> int:
    """Which of the program's processes serves it with sockets: it is in the namespace, and has no child."""
    for number, pid in enumerate(family[1:], 1):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            if b"trio-pasta" in command and not children:
                return number
    return -1


def test_shell_of_an_account(host: Namespace) -> None:
    """A user with an entry in the password database, without $SHELL; as a shell, it says who it is called as."""
    name = f"tpasst{os.getpid()}"
    run("useradd", "--no-create-home", "--shell", "/bin/dash", name)
    try:
        uid, gid = run("id", "-u", name).strip(), run("id", "-g", name).strip()
        become = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--pdeathsig=KILL"]
        command = [*host.enter(), *become, "env", "-u", "SHELL", *namespace_program(), "-q", *NO_PORTS]
        script = "echo $0; cat /proc/self/uid_map; exit 7\n"
        result = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd="/"
        )
        assert (result.returncode, result.stderr) == (7, "")
        assert result.stdout.split() == ["-dash", "0", uid, "1"]
    finally:
        run("userdel", name)


class Terminal:
    """A terminal whose session leader is a shell with job control."""

    def __init__(self, host: Namespace) -> None:
        self._leader, self._terminal = pty.fork()
        if self._leader == 0:
            os.chdir("/")
            os.environ.update(PS1="outer> ", SHELL="/bin/bash", TERM="dumb")
            os.execvp("ip", [*host.enter_unprivileged(), "bash", "--norc", "--noprofile", "-i"])
        self._said = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._leader, signal.SIGKILL)
        os.waitpid(self._leader, 0)
        os.close(self._terminal)

    def type(self, keys: str) -> None:
        """Press them."""
        os.write(self._terminal, keys.encode())

    def until_runs(self, name: str) -> None:
        """Wait until it is the turn of a program with this name, and nobody of its job is stopped."""

        def runs() -> bool:
            states = {}
            for path in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    command, _, rest = path.read_text().partition("(")[2].rpartition(")")
                    state, _parent, group, *_ = rest.split()
                    if int(group) == os.tcgetpgrp(self._terminal):
                        states[command] = state
            return name in states and "T" not in states.values()

        wait_for(runs, f"{name} in the foreground")

    def until(self, pattern: str) -> str:
        """What is said, from where the last such call has ended, until it has this at its end."""
        deadline = time.monotonic() + WAIT_S
        while not re.search(pattern + r"\Z", self._said):
            if not select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self._said!r}")
            self._said += os.read(self._terminal, 4096).decode()
        said, self._said = self._said, ""
        return said


def test_terminal(host: Namespace) -> None:
    """A shell in there is interactive: what is interrupted and stopped is its job. Then the terminal is ours again."""
    program = " ".join(namespace_program())
    with Terminal(host) as terminal:
        terminal.until(r"outer> ")
        terminal.type(f"{program} -q {' '.join(NO_PORTS)} -- bash --norc --noprofile -i\n")
        terminal.type("PS1='inner> '\n")
        terminal.until(r"\ninner> ")
        terminal.type("sleep 1000; echo ended with $?\n")
        terminal.until(r"\$\?\r\n")
        terminal.until_runs("sleep")
        terminal.type("\x03")
        terminal.until(r"inner> ")
        terminal.type("sleep 1000\n")
        terminal.until(r"1000\r\n")
        terminal.until_runs("sleep")
        terminal.type("\x1a")
        assert "Stopped" in terminal.until(r"\ninner> ")
        terminal.type("fg\n")
        terminal.until(r"1000\r\n")
        terminal.until_runs("sleep")
        terminal.type("\x03")
        terminal.until(r"inner> ")
        terminal.type("exit 9\n")
        terminal.until(r"outer> ")
        terminal.type("echo status $?\n")
        assert "status 9" in terminal.until(r"\nouter> ")
        terminal.type(f"{program} -q {' '.join(NO_PORTS)} -- sh -c 'echo here; exec sleep 1000'\n")
        terminal.until(r"here\r\n")
        terminal.type("\x1a")
        assert "Stopped" in terminal.until(r"\nouter> ")
        terminal.type("fg\n")
        terminal.until(r"1000'\r\n")
        terminal.until_runs("sleep")
        terminal.type("\x03")
        terminal.until(r"outer> ")
        terminal.type("echo status $?\n")
        assert "status 130" in terminal.until(r"\nouter> ")


# -- namespaces that are there -----------------------------------------------------------------------------------------


def test_process_of_a_namespace(host: Namespace, tmp_path: Path) -> None:
    """In the background: all is there when the parent returns. It ends with the process."""
    directory = tmp_path / "own"
    directory.mkdir()
    os.chown(directory, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    for parent in directory.parents[:-1]:
        parent.chmod(parent.stat().st_mode | 0o11)
    with sleeping(host, "--user", "--map-root-user", "--net") as pid:
        with Pasta(host, "-q", "--config-net", "-P", str(directory / "pid"), str(pid)) as program:
            assert program.says() == (0, "", "")
        assert interfaces(pid) == {"lo", "uplink"}
        daemon = int((directory / "pid").read_text())
        enter = ["nsenter", f"--target={pid}", "--user", "--net", "--preserve-credentials"]
        assert f"{HOST4}/24" in run(*enter, "ip", "-brief", "address", "show", "dev", "uplink")
        pidfd = os.pidfd_open(daemon)
    assert select.select([pidfd], [], [], WAIT_S)[0], "it ends with the process"
    os.close(pidfd)
    assert not (directory / "pid").exists()


TAKE_DESCRIPTORS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
def take(pid):
    there = os.pidfd_open(int(pid))
    return any(libc.syscall(438, there, number, 0) >= 0 for number in range(64))  # pidfd_getfd(2)
print(*map(take, sys.argv[1:]))
"""


def test_root_in_there_gets_hold_of_none_of_our_processes(host: Namespace) -> None:
    """Though it sees them; what it can do is stop them, and then they end with the program still."""
    with contextlib.ExitStack() as opened:
        pid = opened.enter_context(sleeping(host, "--user", "--map-root-user", "--net"))
        process = opened.enter_context(Pasta(host, "-q", "-f", "--config-net", str(pid)))
        shown = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-brief", "address", "show"]
        wait_for(lambda: f"{HOST4}/24" in run(*shown), "the configured tap")
        family = process.whole_family(2)
        enter = [*host.enter_unprivileged(), "nsenter", f"--target={pid}", "--user", "--net"]
        attack = ["--preserve-credentials", "/usr/bin/python3", "-c", TAKE_DESCRIPTORS]
        answers = run(*enter, *attack, str(pid), *map(str, family)).split()
        assert answers == ["True", *["False"] * len(family)]
        os.kill(family[1], signal.SIGSTOP)
        process.kill()
        wait_for_end(family)


@pytest.mark.parametrize("is_command", [True, False])
def test_root_becomes_nobody_also_where_there_is_a_user_namespace(host: Namespace, is_command: bool) -> None:
    """Main and the process that serves it, though root of the host has to join what is an ordinary user's."""
    with contextlib.ExitStack() as opened:
        pid = opened.enter_context(sleeping(host, "--user", "--map-root-user", "--net"))
        arguments = ["sleep", "1000"] if is_command else ["-f", "--config-net", str(pid)]
        ports = ["-t", "none", "-u", "none", "-T", "80", "-U", "none"]
        process = opened.enter_context(Pasta(host, "-q", *arguments, as_root=True, ports=ports))

        def serving() -> set[str]:
            family = process.family()
            both = {family[0], family[_agent(family)]} if len(family) >= (5 if is_command else 2) else set()
            return {_user_ids(one) for one in both}

        wait_for(lambda: serving() == {"\t".join(["65534"] * 4)}, "being nobody")
        if not is_command:
            listening = Path(f"/proc/{pid}/net/tcp")
            wait_for(lambda: " 0100007F:0050 " in listening.read_text(), "a low port, by its one privilege")


def _user_ids(pid: int) -> str:
    """Real, effective, saved and of the file system; of a process that has just ended, none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return line.removeprefix("Uid:\t")
    return ""


def test_path_of_a_process_and_what_is_left_there(host: Namespace) -> None:
    """Killed, it leaves nothing there but that the loopback device is up; another one may come after it."""
    with sleeping(host, "--user", "--map-root-user", "--net") as pid:
        arguments = ["-q", "-f", "--config-net", "--netns", f"/proc/{pid}/ns/net", "--userns", f"/proc/{pid}/ns/user"]
        for _ in range(2):
            with Pasta(host, *arguments) as process:
                wait_for(lambda: interfaces(pid) == {"lo", "uplink"}, "the tap")
                family = process.whole_family(2)
                process.kill()
                wait_for_end(family)
            wait_for(lambda: interfaces(pid) == {"lo"}, "the end of the tap")
        with Pasta(host, *arguments) as process:
            wait_for(lambda: interfaces(pid) == {"lo", "uplink"}, "the tap")
            os.kill(pid, signal.SIGKILL)
            assert process.says() == (0, "", "")


@pytest.mark.parametrize("stays", [False, True])
def test_name_of_a_namespace(host: Namespace, stays: bool) -> None:
    """As root, who becomes nobody; it ends when the name does, unless it is told not to."""
    namespace = named_namespace("joined")
    try:
        options = ["--no-netns-quit"] if stays else []
        with Pasta(host, "-q", "-f", "--netns", namespace.name, *options, as_root=True) as process:
            wait_for(lambda: "uplink" in run("ip", "-n", namespace.name, "link"), "the tap")

            def owners() -> set[int]:
                found = set()
                for pid in process.family():
                    with contextlib.suppress(FileNotFoundError):  # it has just ended
                        found.add(Path(f"/proc/{pid}").stat().st_uid)
                return found

            wait_for(lambda: 0 not in owners(), "all its processes being somebody else's")
            namespace.remove()
            if stays:
                time.sleep(0.3)
                assert process.poll() is None
                process.terminate()
            assert process.says() == (0, "", "")
    finally:
        namespace.remove()


def test_path_that_is_unmounted(host: Namespace, tmp_path: Path) -> None:
    """What container engines do at the end."""
    (tmp_path / "ns").touch()
    for parent in (tmp_path / "ns").parents[:-1]:
        parent.chmod(parent.stat().st_mode | 0o11)
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as made:
        wait_for(lambda: Path(f"/proc/{made.pid}/comm").read_text() == "sleep\n", "a namespace")
        run("mount", "--bind", f"/proc/{made.pid}/ns/net", str(tmp_path / "ns"))
        made.kill()
    mounted = True
    try:
        enter = ["nsenter", f"--net=/run/netns/{host.name}"]  # "ip netns exec" has mounts of its own
        with Pasta(host, "-q", "-f", "--netns", str(tmp_path / "ns"), enter=enter) as process:
            wait_for(lambda: "uplink" in run("nsenter", f"--net={tmp_path / 'ns'}", "ip", "link"), "the tap")
            run("umount", "--lazy", str(tmp_path / "ns"))
            mounted = False
            assert process.says() == (0, "", "")
    finally:
        if mounted:
            run("umount", "--lazy", str(tmp_path / "ns"))


def test_command_does_not_begin_without_network(host: Namespace) -> None:
    """Where there are too few descriptors, one line says so; no number is so low that it says nothing."""
    enter = [*host.enter_unprivileged(), "prlimit"]
    with contextlib.ExitStack() as opened:
        started = [
            opened.enter_context(Pasta(host, "-q", "echo", "begun", enter=[*enter, f"--nofile={limit}:{limit}"]))
            for limit in (12, 16, 20, 24, 28)
        ]
        for process in started:
            status, output, errors = process.says()
            assert (status, output) == (1, ""), errors
            assert errors.startswith("trio-pasta: ")
            assert errors.count("\n") == 1, errors
            assert "ulimit -n" in errors


def test_what_can_not_be_joined_is_said_in_one_line(host: Namespace) -> None:
    """With the status for wrong usage, and without anything that is left."""
    with sleeping(host, "--user", "--map-root-user", "--net") as pid, contextlib.ExitStack() as opened:
        foreign = opened.enter_context(subprocess.Popen(["unshare", "--net", "sleep", "1000"]))
        opened.callback(foreign.kill)
        cases = {
            (str(foreign.pid),): f"can't open the namespaces of process {foreign.pid}: Permission denied",
            ("--netns-only", str(pid)): "can't join the network namespace: Operation not permitted",
            ("--netns", "/proc/self/ns/net"): "/proc/self/ns/net has the network namespace that this program runs in",
            ("-I", "lo", str(pid)): "can't make the interface 'lo' in the namespace: that name is taken",
            ("--netns-only", "true"): "can't make a network namespace: Operation not permitted (without a user",
        }
        started = {words: opened.enter_context(Pasta(host, "-q", "-f", *words)) for words in cases}
        for words, process in started.items():
            status, output, errors = process.says()
            assert (status, output) == (1, ""), words
            assert errors.startswith(f"trio-pasta: {cases[words]}"), errors
            assert errors.count("\n") == 1, errors
        assert interfaces(pid) == {"lo"}


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_start_and_memory(host: Namespace, measurements: list[str]) -> None:
    """The processes beside the program itself are small."""
    with Pasta(host, "-q", "sh", "-c", "echo; exec sleep 1000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        helpers = process.whole_family(5)[1:]
        private = {}
        for pid in helpers:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            private[pid] = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        process.terminate()
    began = time.monotonic()
    with Pasta(host, "-q", "true") as process:
        assert process.says() == (0, "", "")
    measurements.append(
        f"trio-pasta -- true: {time.monotonic() - began:.2f} s; private KiB of helpers: {list(private.values())}"
    )
    assert max(private.values()) < 10_240
