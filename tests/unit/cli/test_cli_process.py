"""The program as a process: exit status, standard error, readiness, PID file, and what a daemon leaves behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_passt import __version__

STUB = Path(__file__).with_name("stub_daemon.py")
ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

WAIT_S = 30
"""However busy the machine is."""

AS_WE_ARE = ("--runas", f"{os.geteuid()}:{os.getegid()}")
"""Whoever runs the tests may remove files at the end; what root's daemon does is test_process.py's."""


def command(behaviour: str, *words: str) -> list[str]:
    """With signals as they are usually, also if these tests are run by nohup(1)."""
    program = [sys.executable, "-W", "error", str(STUB), behaviour, *AS_WE_ARE, *words]
    return ["env", "--default-signal=HUP", *program]


def finished(behaviour: str, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """The program has ended, and everything that had its standard error open."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command(behaviour, *words),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=ENVIRONMENT,
        **options,
    )


@pytest.fixture
def pid_path(tmp_path: Path) -> Iterator[Path]:
    """Where the daemon writes its PID; whatever runs there at the end is ended."""
    path = tmp_path / "pid"
    yield path
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGKILL)


def is_gone(path: Path) -> bool:
    """Wait until the daemon has removed its PID file."""
    deadline = time.monotonic() + WAIT_S
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not path.exists()


def messages(stderr: str) -> list[str]:
    """Without the line that root gets."""
    return [line for line in stderr.splitlines() if "running as root" not in line]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--bogus",), "trio-passt: unrecognized option '--bogus'\n"),
        (("-m", "a\nb"), "trio-passt: invalid value 'a\\x0ab' for option '--mtu': 68 to 65520 is expected,"
         " or 0 to tell the guest none\n"),
        (("-p", "\udcff", "-Z"), "trio-passt: invalid option -- 'Z'\n"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_1(words: tuple[str, ...], line: str) -> None:
    result = finished("ends", *words)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)


def test_version_and_help_are_for_standard_output() -> None:
    result = finished("ends", "--version", "--bogus")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"trio-passt {__version__}\n", "")
    result = finished("ends", "-fh")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: trio-passt")


def test_python_dash_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "trio_passt", "--version"],
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
        timeout=WAIT_S,
    )
    assert result.stdout.decode() == f"trio-passt {__version__}\n"


def test_help_to_a_full_device() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            command("ends", "--help"), stdout=full, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT, timeout=WAIT_S
        )
    assert result.returncode == 1
    assert result.stderr == b"trio-passt: can't write to standard output: No space left on device\n"


def test_help_to_a_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        command("ends", "--help"), stdout=writer, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT, timeout=WAIT_S
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "0<&- 1>&- 2>&-"])
def test_no_use_of_standard_error_is_no_failure(redirection: str) -> None:
    script = f'exec "$@" {redirection}'
    result = subprocess.run(
        ["sh", "-c", script, "sh", *command("ends", "-f")], check=False, env=ENVIRONMENT, timeout=WAIT_S
    )
    assert result.returncode == 0


@pytest.mark.parametrize("where", [(), ("-f",)], ids=["background", "foreground"])
@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        ("refuses", "trio-passt: port 22 of TCP can't be bound:\\x0aPermission denied"),
        ("refuses in a nursery", "trio-passt: port 22 of TCP can't be bound"),
    ],
)
def test_a_start_that_fails_says_why(behaviour: str, line: str, where: tuple[str, ...]) -> None:
    result = finished(behaviour, "-q", *where)
    assert result.returncode == 1
    assert messages(result.stderr) == [line]


@pytest.mark.parametrize("where", [(), ("-f",)], ids=["background", "foreground"])
def test_a_mistake_in_the_program_is_reported_with_its_place(where: tuple[str, ...]) -> None:
    result = finished("is mistaken", "-q", *where)
    assert result.returncode == 1
    assert "trio-passt: ended by a mistake in the program itself: KeyError('a mistake')" in result.stderr
    assert "stub_daemon.py" in result.stderr


def test_a_daemon_that_dies_before_it_is_ready() -> None:
    result = finished("is killed", "-q")
    assert result.returncode == 128 + signal.SIGKILL
    assert messages(result.stderr) == ["trio-passt: ended by SIGKILL before it was ready"]


def test_who_ignores_the_end_of_children_still_hears_of_it() -> None:
    """The kernel keeps no status for a process with SIGCHLD ignored, and that is inherited."""
    words = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *command("is killed", "-q")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False, env=ENVIRONMENT)
    assert result.returncode == 128 + signal.SIGKILL
    assert messages(result.stderr) == ["trio-passt: ended by SIGKILL before it was ready"]


def test_an_end_without_being_ready_is_no_success() -> None:
    assert finished("ends without being ready", "-q").returncode == 1


def test_the_pid_file_can_fail() -> None:
    result = finished("waits", "-q", "-P", "/nowhere/pid")
    assert result.returncode == 1
    assert messages(result.stderr) == ["trio-passt: can't write PID file '/nowhere/pid': No such file or directory"]


def test_the_start_up_message(tmp_path: Path) -> None:
    result = finished("ends", "-f", "-s", "relative.socket", "-t", "8000-8001", cwd=tmp_path)
    assert result.returncode == 0
    assert "trio-passt: the guest gets\n" in result.stderr
    assert "TCP      8000-8001\n" in result.stderr
    assert f"addr.path={tmp_path}/relative.socket\n" in result.stderr


def test_quiet_has_none_of_it() -> None:
    result = finished("ends", "-f", "-q")
    assert (result.returncode, messages(result.stderr)) == (0, [])


def test_background(pid_path: Path) -> None:
    inherited = os.open(os.devnull, os.O_RDONLY)
    result = finished("waits", "-P", "pid", cwd=pid_path.parent, pass_fds=[inherited])
    os.close(inherited)
    assert result.returncode == 0, result.stderr  # and standard error has been closed, or this would still wait
    assert "trio-passt: the guest gets" in result.stderr
    pid = int(pid_path.read_text())
    assert os.getsid(pid) not in (pid, os.getsid(0))  # a new session, and one that it does not lead
    process = Path(f"/proc/{pid}")
    assert (process / "cwd").readlink() == Path("/")
    descriptors = {}
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            descriptors[int(fd.name)] = str(fd.readlink())
    assert {descriptors[standard] for standard in (0, 1, 2)} == {"/dev/null"}
    assert inherited not in descriptors or descriptors[inherited] != "/dev/null"
    os.kill(pid, signal.SIGTERM)
    assert is_gone(pid_path)


def test_it_never_comes_by_a_terminal(pid_path: Path, tmp_path: Path) -> None:
    """A process that leads a session without one gets the first that it opens (credentials(7))."""
    assert finished("opens a terminal", "-q", "-P", str(pid_path), "-p", str(tmp_path / "stat")).returncode == 0
    deadline = time.monotonic() + WAIT_S
    while not ((tmp_path / "stat").exists() and (tmp_path / "stat").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    name, _, rest = (tmp_path / "stat").read_text().rpartition(") ")
    terminal = rest.split()[4]
    assert terminal == "0", f"{name}: controlling terminal {terminal}, see proc_pid_stat(5)"
    os.kill(int(pid_path.read_text()), signal.SIGTERM)
    assert is_gone(pid_path)


def test_signals_that_the_caller_has_blocked(pid_path: Path) -> None:
    """Blocked signals and the umask are inherited: a daemon with them could not be ended."""

    def bad_manners() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        os.umask(0o777)

    assert finished("waits", "-q", "-P", str(pid_path), preexec_fn=bad_manners).returncode == 0
    assert pid_path.stat().st_mode & 0o7777 == 0o600
    pid = int(pid_path.read_text())
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    assert "SigBlk:\t0000000000000000" in lines
    assert "Umask:\t0077" in lines
    os.kill(pid, signal.SIGTERM)
    assert is_gone(pid_path)


def test_a_daemon_whose_caller_has_died_ends(pid_path: Path) -> None:
    """While it starts: then nobody knows of it."""
    with subprocess.Popen(
        command("is slow", "-q", "-P", str(pid_path)),
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        while process.stderr.readline() != "slow\n":
            pass
        process.kill()
        process.wait()
        process.stdin.close()  # goes on
        process.stderr.read()  # ends when the daemon has left it
    assert is_gone(pid_path)


def test_the_foreground_is_the_same_process(pid_path: Path) -> None:
    with subprocess.Popen(command("waits", "-fq", "-P", str(pid_path)), env=ENVIRONMENT) as process:
        deadline = time.monotonic() + WAIT_S
        while not pid_path.exists() or not pid_path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert pid_path.read_text() == f"{process.pid}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
    assert not pid_path.exists()


def test_a_mistake_later_removes_the_pid_file(pid_path: Path) -> None:
    assert finished("is mistaken later", "-fq", "-P", str(pid_path)).returncode == 1
    assert not pid_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_ending_the_waiting_parent_ends_the_child(number: signal.Signals) -> None:
    with subprocess.Popen(command("hangs", "-q"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "hanging\n":
            pass
        process.send_signal(number)
        assert process.wait(WAIT_S) > 0
        process.stderr.read()  # ends only when the child has ended, too


@pytest.mark.parametrize("descriptor", ["passed", "standard input"])
@pytest.mark.parametrize("where", [(), ("-f",)], ids=["background", "foreground"])
def test_an_inherited_socket_survives(descriptor: str, where: tuple[str, ...], pid_path: Path) -> None:
    ours, guests = socket.socketpair()
    with ours, guests:
        ours.settimeout(WAIT_S)
        fd = guests.fileno() if descriptor == "passed" else 0
        with subprocess.Popen(
            command("listens at its descriptor", "-q", "-F", str(fd), "-P", str(pid_path), *where),
            env=ENVIRONMENT,
            stdin=guests,
            pass_fds=[guests.fileno()],
        ) as process:
            guests.close()
            assert ours.recv(100) == b"here"
            os.kill(int(pid_path.read_text()), signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
    assert is_gone(pid_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signals_while_the_program_is_imported(number: signal.Signals, tmp_path: Path) -> None:
    """The first thing that it does is to be deaf for one, and quiet for the other."""
    slow = tmp_path / "attrs.py"
    slow.write_text("import sys\nprint(flush=True)\nsys.stdin.read()\nraise SystemExit(7)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "trio_passt"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        process.stdin.close()
        assert process.wait(timeout=WAIT_S) == (7 if number is signal.SIGUSR1 else -signal.SIGINT)
        assert process.stderr.read() == b""


@pytest.mark.parametrize("limit", [8, 10, 12, 14])
def test_too_few_descriptors_are_one_line(limit: int) -> None:
    code = (
        "import resource, sys; from trio_passt.cli.main import main;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); sys.exit(main(['-f', '-s', '/nowhere/x']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Too many open files" in result.stderr.splitlines()[-1] or "/nowhere/x" in result.stderr.splitlines()[-1]
