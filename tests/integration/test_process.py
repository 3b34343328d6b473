"""The program as a process: readiness, signals, privileges, PID file, log, syslog, systemd.

Each daemon has a network namespace of its own, without a network: the guest would get local mode.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.integration.daemon import STOP_TIMEOUT_S, RawGuest, daemon_directory, end_process, program
from tests.integration.topology import UNPRIVILEGED_ID

NOBODY = 65534
START_TIMEOUT_S = 60.0
LISTENS = "0A"
"""TCP_LISTEN in the state column of /proc/net/tcp."""

APART = ("unshare", "--net", "--")
UNPRIVILEGED = (
    *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"),
)


@pytest.fixture
def place(directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory for this test, of the ordinary user."""
    return daemon_directory(directory, f"process{abs(hash(request.node.name)) % 10**8}")


@frozen
class Started:
    """A daemon in the background, as its caller and the kernel know it."""

    pid: int
    stderr: str
    status: dict[str, list[str]]

    def file(self, path: str) -> Path:
        """As the daemon sees it, which may be in a mount namespace of its own."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextmanager
def started(place: Path, *arguments: str, prefix: Sequence[str] = (*APART, *UNPRIVILEGED)) -> Iterator[Started]:
    """A daemon whose caller has come back with 0 and seen the end of standard error; it is ended afterwards."""
    words = [*prefix, *program(), "-s", str(place / "socket"), "-P", str(place / "pid"), *arguments]
    result = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False, cwd=place
    )
    assert result.returncode == 0, result.stderr
    pid = int((place / "pid").read_text())
    try:
        yield Started(pid, result.stderr, status_of(pid))
    finally:
        if is_alive(pid):
            end_process(pid)


@contextmanager
def in_foreground(
    place: Path, *arguments: str, prefix: Sequence[str] = (*APART, *UNPRIVILEGED), **options: object
) -> Iterator[subprocess.Popen[str]]:
    """A daemon as our child, its log in a pipe; whatever the test does, it is ended."""
    words = [*prefix, *program(), "-f", *arguments]
    with subprocess.Popen(  # type: ignore[call-overload]
        words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=place, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status_of(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def is_alive(pid: int) -> bool:
    """Whether it runs, and is not only waited for."""
    try:
        return status_of(pid)["State"][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], object], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


def await_end(pid: int) -> None:
    """Wait until the process has ended."""
    eventually(lambda: not is_alive(pid), f"the end of process {pid}")


def bound_ports(pid: int) -> set[int]:
    """The TCP ports that are listened at in the process's network namespace, over IPv4."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == LISTENS}


def mode(path: Path) -> int:
    """Permissions."""
    return path.stat().st_mode & 0o7777


# -- readiness and the end -----------------------------------------------------------------------------------------


def test_all_is_ready_when_the_caller_comes_back(place: Path) -> None:
    """The caller's own descriptors, umask, blocked and ignored signals are no reason for anything to be different."""

    def bad_manners() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.umask(0o777)

    held, writer = os.pipe()
    words = ["-s", "socket", "-P", "pid", "-t", "8022,8080-8089", "-l", "log"]
    result = subprocess.run(
        [*APART, *UNPRIVILEGED, *program(), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
        cwd=place,
        pass_fds=[writer],
        preexec_fn=bad_manners,
    )
    os.close(writer)
    assert result.returncode == 0, result.stderr
    pid = int((place / "pid").read_text())
    try:
        with RawGuest(place / "socket"):
            pass
        assert bound_ports(pid) == {8022, *range(8080, 8090)}
        assert (place / "pid").read_text() == f"{pid}\n"
        assert {mode(place / name) for name in ("pid", "socket", "log")} == {0o600}
        assert select.select([held], [], [], 0)[0], "the daemon has kept a pipe of its caller's"
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)} == {"/dev/null"}
        message = result.stderr.splitlines()
        assert message[0] == "trio-passt: the guest gets"
        assert f"addr.path={place}/socket" in message[-1]
        logged = [line.split(": ", 2)[2] for line in (place / "log").read_text().splitlines()]
        assert message == logged[logged.index(message[0]) : logged.index(message[-1]) + 1]
    finally:
        os.close(held)
        end_process(pid)
    assert [path.name for path in place.iterdir()] == ["log"]


def test_closed_descriptors_and_a_reader_that_is_gone(place: Path) -> None:
    """Nobody reads what it says: that is no reason not to start."""
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    with started(place, prefix=(*APART, *closed, *UNPRIVILEGED)) as daemon, RawGuest(place / "socket"):
        assert daemon.stderr == ""
    for path in ("socket", "pid"):
        assert not (place / path).exists()
    reader, writer = os.pipe()
    os.close(reader)
    words = [*APART, *UNPRIVILEGED, *program(), "-d", "-s", str(place / "socket"), "-P", str(place / "pid")]
    assert subprocess.run(words, stderr=writer, timeout=START_TIMEOUT_S, check=False).returncode == 0
    os.close(writer)
    end_process(int((place / "pid").read_text()))
    no_devices = ("unshare", "--mount", "--", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    words = [*APART, *no_devices, *UNPRIVILEGED, *program(), "-s", str(place / "socket")]
    result = subprocess.run(words, capture_output=True, timeout=START_TIMEOUT_S, check=False)
    assert result.returncode == 1
    assert result.stderr == b"trio-passt: can't open /dev/null: No such file or directory\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_no_process_to_be_had(processes: int) -> None:
    """Neither the first fork nor the second one fails without a word."""
    nobody_else = (
        "setpriv",
        "--reuid=61126",
        "--regid=61126",
        "--clear-groups",
        "--",
        "prlimit",
        f"--nproc={processes}",
    )
    result = subprocess.run(
        [*APART, *nobody_else, *program()], capture_output=True, timeout=START_TIMEOUT_S, check=False
    )
    assert result.returncode == 1
    assert result.stderr == b"trio-passt: can't go into the background: Resource temporarily unavailable\n"


def test_signals_end_it_in_order(place: Path) -> None:
    """All at the same time; SIGHUP does not, if it comes from nohup(1), which means that it shall not."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    with ExitStack() as stack:
        ignoring = ("env", "--ignore-signal=HUP,INT")
        daemons = []
        for name in [*(number.name for number in numbers), "nohup"]:
            before = ignoring if name == "nohup" else ("env", "--default-signal=HUP,INT,QUIT")
            words = ("-s", f"{name}.socket", "-P", f"{name}.pid")
            prefix = (*APART, *UNPRIVILEGED, *before)
            daemons.append(stack.enter_context(in_foreground(place, *words, prefix=prefix)))
        eventually(lambda: [path.read_text() != "" for path in place.glob("*.pid")] == [True] * 5, "all have started")
        ignores = daemons[-1]
        for daemon, number in zip(daemons, [*numbers, signal.SIGHUP], strict=True):
            daemon.send_signal(number)
        assert [daemon.wait(STOP_TIMEOUT_S) for daemon in daemons[:-1]] == [0] * len(numbers)
        for daemon, number in zip(daemons, numbers, strict=False):
            assert daemon.stderr is not None
            assert daemon.stderr.read().endswith(f"trio-passt: ended by {number.name}\n")
        assert {path.name for path in place.iterdir()} == {"nohup.socket", "nohup.pid"}
        with RawGuest(place / "nohup.socket"):
            pass
        ignores.send_signal(signal.SIGINT)
        assert ignores.wait(STOP_TIMEOUT_S) == 0
    assert [*place.iterdir()] == []


def test_of_daemons_that_want_one_pid_file_one_starts(place: Path) -> None:
    """Twice: a new file, and one that was left behind by a daemon that was killed."""
    for _ in range(2):
        words = [*UNPRIVILEGED, *program(), "-q", "-P", str(place / "pid")]
        callers = [
            subprocess.Popen(
                [*APART, *words, "-s", str(place / f"{number}")], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
            for number in range(4)
        ]
        said = [caller.communicate(timeout=START_TIMEOUT_S)[1].decode() for caller in callers]
        statuses = [caller.returncode for caller in callers]
        pid = int((place / "pid").read_text())
        try:
            assert sorted(statuses) == [0, 1, 1, 1], said
            winner = statuses.index(0)
            belongs = f"trio-passt: PID file '{place}/pid' belongs to a running process"
            told = [f"{belongs} ({holder})" for holder in (pid, "starting, or ending")]
            assert [any(line in text for line in told) for text in said] == [bool(status) for status in statuses], said
            assert {path.name for path in place.iterdir()} == {"pid", str(winner)}
            with RawGuest(place / str(winner)):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)
            await_end(pid)


def test_descriptors_that_are_no_guest(place: Path) -> None:
    """Each is refused with its reason, one line and status 1; a guest on standard input is one."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(place / "listening"))
        listening.listen()
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        file = stack.enter_context((place / "file").open("w"))
        reasons = {
            listening.fileno(): f"descriptor {listening.fileno()}: not connected",
            datagrams.fileno(): f"descriptor {datagrams.fileno()}: not a stream socket",
            file.fileno(): f"descriptor {file.fileno()}: Socket operation on non-socket",
            999: "option '--fd 999': Bad file descriptor: a connected socket is expected",
        }
        running = {
            fd: subprocess.Popen(
                [*APART, *UNPRIVILEGED, *program(), "-q", *options, "-F", str(fd)],
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[fd for fd in reasons if fd != 999],
            )
            for fd, options in zip(reasons, ((), ("-f",), (), ()), strict=True)
        }
        for fd, process in running.items():
            said = process.communicate(timeout=START_TIMEOUT_S)[1]
            lines = [line for line in said.splitlines() if "ping sockets" not in line]
            assert (process.returncode, lines) == (1, [f"trio-passt: {reasons[fd]}"])
        ours, guests = map(stack.enter_context, socket.socketpair())
        words = [*APART, *UNPRIVILEGED, *program(), "-q", "-P", str(place / "pid"), "-F", "999", "-F", "0"]
        assert subprocess.run(words, stdin=guests.fileno(), timeout=START_TIMEOUT_S, check=False).returncode == 0
        guests.close()
        ours.settimeout(START_TIMEOUT_S)
        assert len(ours.recv(4)) == 4  # it asks who is there
        ours.close()
        eventually(lambda: not (place / "pid").exists(), "it ends with its guest")


# -- privileges ----------------------------------------------------------------------------------------------------


def test_root_goes_on_as_nobody(place: Path) -> None:
    """With what only root could open, and nothing else; what it may not remove is left harmless."""
    os.chown(place, 0, 0)
    with started(place, "-t", "22", "-l", "log", "-p", "capture", prefix=APART) as daemon:
        assert "running as root" not in daemon.stderr
        assert daemon.status["Uid"] == daemon.status["Gid"] == [f"{NOBODY}"] * 4
        assert daemon.status["Groups"] == []
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert daemon.status[name] == ["0000000000000000"]
        assert daemon.status["NoNewPrivs"] == ["1"]
        assert bound_ports(daemon.pid) == {22}
        assert ((place / "socket").stat().st_uid, mode(place / "socket")) == (NOBODY, 0o600)
        assert ((place / "pid").stat().st_uid, mode(place / "pid")) == (0, 0o600)
        place.chmod(0o711)
        nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
        connects = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        subprocess.run([*nobody, "/usr/bin/python3", "-c", connects, str(place / "socket")], check=True)
    await_end(daemon.pid)
    assert (place / "pid").read_text() == ""
    assert "trio_passt: ended by SIGTERM\n" in (place / "log").read_text()
    with started(place, "-q", prefix=APART) as daemon:  # in the place of both
        assert (place / "pid").read_text() == f"{daemon.pid}\n"


def test_who_it_goes_on_as_can_be_chosen(place: Path) -> None:
    with started(place, "--runas", f"{UNPRIVILEGED_ID}:{NOBODY}", prefix=APART) as daemon:
        assert daemon.status["Uid"] == [f"{UNPRIVILEGED_ID}"] * 4
        assert daemon.status["Gid"] == [f"{NOBODY}"] * 4
        assert (place / "socket").stat().st_uid == UNPRIVILEGED_ID
    assert [*place.iterdir()] == []  # that user may
    with started(place, "-q", "--runas", "root", prefix=APART) as daemon:
        assert daemon.status["Uid"] == daemon.status["Gid"] == ["0"] * 4
        assert "trio-passt: running as root, where an ordinary user would do\n" in daemon.stderr
    assert [*place.iterdir()] == []
    with started(place, "-q", "--runas", f"{UNPRIVILEGED_ID}:{UNPRIVILEGED_ID}") as daemon:
        assert daemon.status["Uid"] == [f"{UNPRIVILEGED_ID}"] * 4
    refused = subprocess.run(
        [*APART, *UNPRIVILEGED, *program(), "-s", str(place / "socket"), "--runas", "nobody"],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert refused.returncode == 1
    needs = "Operation not permitted (only root may, or who has CAP_SETUID and CAP_SETGID)"
    assert f"trio-passt: can't go on as user {NOBODY}, group {NOBODY}: {needs}\n" in refused.stderr
    assert [*place.iterdir()] == []


def test_root_of_a_user_namespace_stays_what_it_is(place: Path) -> None:
    with started(place, "-q", prefix=(*UNPRIVILEGED, "unshare", "--user", "--map-root-user", "--net", "--")) as daemon:
        assert daemon.status["Uid"] == [f"{UNPRIVILEGED_ID}"] * 4  # as seen from here
        assert "running as root" not in daemon.stderr
    assert [*place.iterdir()] == []


def test_a_program_that_nobody_can_read_still_follows_the_host(place: Path) -> None:
    """An environment below a directory of root's: what the daemon has not imported by then it can't any more."""
    private = place / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 0, 0)
    (private / "environment").symlink_to(sys.prefix)
    python = private / "environment" / "bin" / "python"
    network = """
ip link set lo up
ip link add uplink type veth peer name other
ip link set uplink up
ip link set other up
ip addr add 192.0.2.2/24 dev uplink
ip route add default via 192.0.2.1
exec "$@"
"""
    words = (str(python), "-m", "trio_passt", "-f", "-4", "-s", str(place / "socket"), "-l", str(place / "log"))
    with subprocess.Popen([*APART, "sh", "-c", network, "sh", *words], stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: (place / "log").exists() and "-netdev stream" in (place / "log").read_text(), "started")
            assert status_of(process.pid)["Uid"] == [f"{NOBODY}"] * 4
            change = ("ip", "route", "replace", "default", "via", "192.0.2.9")
            subprocess.run(["nsenter", f"--net=/proc/{process.pid}/ns/net", *change], check=True)
            eventually(lambda: "gateway 192.0.2.9 (from uplink)" in (place / "log").read_text(), "the change is seen")
            assert "can't" not in (place / "log").read_text()
            process.terminate()
            assert process.wait(STOP_TIMEOUT_S) == 0
        finally:
            process.kill()


# -- the log -------------------------------------------------------------------------------------------------------


def flood(socket_path: Path, lines: int) -> None:
    """Make the daemon log as many lines: each guest that comes while one is there is one."""
    for _ in range(lines):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
            second.connect(str(socket_path))
            second.settimeout(START_TIMEOUT_S)
            assert second.recv(1) == b""


def test_the_log_file_never_exceeds_its_size(place: Path) -> None:
    log, size = place / "log", 8192
    log.write_text("an older line\n" * 10_000)
    os.chown(log, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    inode = log.stat().st_ino
    sizes: list[int] = []
    with started(place, "-q", "-l", str(log), "--log-size", str(size)), RawGuest(place / "socket"):
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                sizes.append(log.stat().st_size)

        watcher = threading.Thread(target=watch)
        watcher.start()
        flood(place / "socket", 400)
        done.set()
        watcher.join()
        assert 0 < max(sizes) <= size
        assert log.stat().st_ino == inode
        text = log.read_text()
        assert "an older line" not in text
        line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[\d+\] warning: trio_passt: refused a second guest: .*"
        assert all(re.fullmatch(line, one) for one in text.splitlines())
        assert len({a > b for a, b in zip(sizes[1:], sizes, strict=False)}) == 2, "it has been cut meanwhile"
    assert "refused a second guest" in log.read_text().splitlines()[-1]  # the end is an information: it is quiet


def test_a_full_disk_stops_nothing(place: Path) -> None:
    """And afterwards the log says how much is missing."""
    disk = "mount -t tmpfs -o size=64k,mode=777 none /mnt && head -c 40000 /dev/zero >/mnt/other"
    mount = f'{disk} && exec {shlex.join(UNPRIVILEGED)} "$@"'
    prefix = ("unshare", "--net", "--mount", "--", "sh", "-c", mount, "sh")
    with started(place, "-l", "/mnt/log", prefix=prefix) as daemon, RawGuest(place / "socket"):
        log = daemon.file("/mnt/log")
        flood(place / "socket", 400)
        assert 10_000 < log.stat().st_size < 64 * 1024
        daemon.file("/mnt/other").unlink()
        flood(place / "socket", 2)

        def total() -> int:
            losses = re.findall(
                r" warning: trio_passt: (\d+) lines were lost here: No space left on device\n", log.read_text()
            )
            assert len(losses) < 2
            return log.read_text().count("refused a second guest") + sum(map(int, losses))

        eventually(lambda: total() == 402, "all lines are accounted for")
        assert "lost here" in log.read_text()
        assert log.read_text().count("\n") == len(re.findall(r"(?m)^\d{4}-\d\d-\d\d .*$", log.read_text()))


@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
def test_syslog(place: Path, present: bool) -> None:
    """/dev/log of a mount namespace: it has what is logged in the background, and need not be there."""
    place.chmod(0o755)
    devices = (
        "mount -t tmpfs none /mnt && touch /mnt/null && mount --bind /dev/null /mnt/null && mount --move /mnt /dev"
    )
    link = f"ln -s {place}/log /dev/log" if present else ":"
    script = f'{devices} && {link} && exec {shlex.join(UNPRIVILEGED)} "$@"'
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(place / "log"))
        (place / "log").chmod(0o666)
        syslog.settimeout(START_TIMEOUT_S)
        prefix = ("unshare", "--net", "--mount", "--", "sh", "-c", script, "sh")
        with started(place, prefix=prefix) as daemon:
            assert "local mode" in daemon.stderr
            with RawGuest(place / "socket"):
                flood(place / "socket", 2)
            if present:
                stamp = r"<28>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d "
                said = [syslog.recv(1000).decode() for _ in range(3)]
                assert said[0].endswith(f" trio-passt[{daemon.pid}]: guest connected")
                line = rf"{stamp}trio-passt\[{daemon.pid}\]: refused a second guest: one is connected already"
                assert all(re.fullmatch(line, one) for one in said[1:])
            else:
                syslog.setblocking(False)
                with pytest.raises(BlockingIOError):
                    syslog.recv(1000)


# -- systemd -------------------------------------------------------------------------------------------------------


def with_sockets(count: int = 1) -> tuple[str, ...]:
    """As systemd starts a service: its sockets are descriptors 3 and following; here 3 is what was standard input."""
    return ("sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES=guest exec "$@" 3<&0 </dev/null', "sh")


def notices(manager: socket.socket) -> list[str]:
    """The next message to the service manager."""
    return manager.recv(1000).decode().splitlines()


def test_socket_activation_and_notifications(place: Path) -> None:
    """In the foreground, as with Type=notify: the socket is systemd's before and after."""
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(place / "notify"))
        (place / "notify").chmod(0o666)
        manager.settimeout(START_TIMEOUT_S)
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(str(place / "door"))
        door.listen()
        early = stack.enter_context(RawGuest(_open_to_all(place / "door"), timeout_s=START_TIMEOUT_S))
        prefix = (*APART, *UNPRIVILEGED, *with_sockets())
        words = [*prefix, *program(), "-f"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        process = stack.enter_context(
            subprocess.Popen(words, stdin=door.fileno(), stderr=subprocess.PIPE, text=True, env=environment)
        )
        stack.callback(process.kill)
        assert notices(manager) == ["READY=1", f"STATUS=waiting for a guest at {place}/door"]
        assert early.receive_frame()  # who came before it started is served
        process.terminate()
        assert notices(manager) == ["STOPPING=1", "STATUS=ending"]
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert process.stderr is not None
        assert f"addr.path={place}/door\n" in process.stderr.read()
        late = stack.enter_context(RawGuest(place / "door"))
        door.settimeout(START_TIMEOUT_S)
        door.accept()[0].close()
        assert late.closed_by_daemon()


def _open_to_all(path: Path) -> Path:
    path.chmod(0o666)
    return path


def test_socket_activation_in_the_background(place: Path) -> None:
    """The descriptor outlives the fork, the manager hears of another main process; a connected socket is the guest."""
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(place / "notify"))
        (place / "notify").chmod(0o666)
        manager.settimeout(START_TIMEOUT_S)
        ours, guests = map(stack.enter_context, socket.socketpair())
        words = [*APART, *UNPRIVILEGED, *with_sockets(), *program(), "-q", "-P", str(place / "pid")]
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        done = subprocess.run(words, stdin=guests.fileno(), env=environment, timeout=START_TIMEOUT_S, check=False)
        assert done.returncode == 0
        guests.close()
        pid = int((place / "pid").read_text())
        assert notices(manager) == ["READY=1", "STATUS=serving the guest", f"MAINPID={pid}"]
        ours.settimeout(START_TIMEOUT_S)
        assert len(ours.recv(4)) == 4
        ours.close()
        assert notices(manager) == ["STOPPING=1", "STATUS=ending"]
        eventually(lambda: not (place / "pid").exists(), "it ends with its guest")


def test_what_systemd_passes_in_vain(place: Path) -> None:
    with socket.socket(socket.AF_INET) as tcp, socket.socket(socket.AF_UNIX) as door:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        door.bind(str(place / "door"))
        door.listen()
        manager = "the service manager passed"
        for sock, count, words, reason in (
            (tcp, 1, (), f"{manager} an IPv4 stream socket, where a UNIX stream socket is expected"),
            (door, 2, (), f"{manager} 2 sockets (guest), where one is expected"),
            (door, 1, ("-s", "/a"), "option '--socket /a' and the socket that the service manager passed"),
            (door, 1, ("-F", "7"), "option '--fd 7' and the socket that the service manager passed"),
        ):
            result = subprocess.run(
                [*APART, *UNPRIVILEGED, *with_sockets(count), *program(), *words],
                stdin=sock.fileno(),
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
            assert result.returncode == 1
            assert result.stderr.startswith(f"trio-passt: {reason}")
            assert result.stderr.count("\n") == 1
