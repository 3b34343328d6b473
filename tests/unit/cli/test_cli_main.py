"""The program called as a function, in the foreground, with a daemon of the test's."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio

from trio_passt.cli import main as main_module
from trio_passt.cli import privileges
from trio_passt.cli.log import LOGGER
from trio_passt.cli.main import main
from trio_passt.config import Config, NetworkBoot, PortForward, RunAs
from trio_passt.errors import StartupError
from trio_passt.host.network import LOCAL_IPV4, Host
from trio_passt.host.watch import HostWatch

Open = Callable[[], None]
Ready = Callable[[Path | None, Sequence[PortForward]], None]
ONE_FAMILY = "no IPv4 default route: local mode, in which the guest reaches this host only"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An offline host and an ordinary user; the process stays as it was."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    umask = os.umask(0o022)
    os.umask(umask)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    of_children = signal.getsignal(signal.SIGCHLD)
    of_status = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(main_module, "discover", Host)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    logger = logging.getLogger(LOGGER)
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGCHLD, of_children)
    signal.signal(signal.SIGUSR1, of_status)


async def ready_at_once(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
    on_open()
    on_ready(config.attachment.socket_path, config.forwards)
    return 0


def test_the_configuration_arrives(tmp_path: Path) -> None:
    seen: list[Config] = []

    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        seen.append(config)
        on_open()
        on_ready(None, ())
        assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
        return 0

    with open(os.devnull) as file:
        words = ["-f", "-q", "-4", "-F", str(file.fileno()), "-P", str(tmp_path / "pid")]
        assert main(words, run=run) == 0
        assert (seen[0].attachment.fd, seen[0].one_off) == (file.fileno(), True)
    assert seen[0].network.ipv4 == LOCAL_IPV4
    assert seen[0].network.ipv6 is None
    assert not (tmp_path / "pid").exists()


def test_notes_and_message(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-f", "-4"], run=ready_at_once) == 0
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[0] == f"trio-passt: {ONE_FAMILY}"
    assert "trio-passt: the guest gets" in output.err.splitlines()


def test_debug_shows_the_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-f", "-d", "-4", "-s", "/tmp/guest"], run=ready_at_once) == 0
    lines = [line.split(maxsplit=1)[1] for line in capfd.readouterr().err.splitlines() if ": " in line]
    assert {
        f"cli.main: network.ipv4.address = {LOCAL_IPV4.address}",
        "cli.main: attachment.socket_path = /tmp/guest",
    } <= set(lines)


def test_a_warning_is_shown_even_if_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-fq", "-m", "1000"], run=ready_at_once) == 0
    assert capfd.readouterr().err == "trio-passt: IPv6 is off: an MTU of 1000 is below the 1280 it needs\n"


def test_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--bogus"], run=ready_at_once) == 1
    assert capfd.readouterr().err == "trio-passt: unrecognized option '--bogus'\n"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_show(capfd: pytest.CaptureFixture[str], word: str) -> None:
    assert main([word], run=ready_at_once) == 0
    assert "trio-passt" in capfd.readouterr().out


def failing(error: BaseException) -> main_module.Run:
    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        raise error

    return run


def test_several_reasons_are_several_lines(capfd: pytest.CaptureFixture[str]) -> None:
    inner = ExceptionGroup("inner", [StartupError("two")])
    assert main(["-fq"], run=failing(ExceptionGroup("outer", [StartupError("one"), inner]))) == 1
    assert capfd.readouterr().err == "trio-passt: one\ntrio-passt: two\n"


@pytest.mark.parametrize("error", [KeyError("x"), ExceptionGroup("", [StartupError("one"), KeyError("x")])])
def test_a_mistake_is_never_hidden(capfd: pytest.CaptureFixture[str], error: Exception) -> None:
    assert main(["-fq"], run=failing(error)) == 1
    assert "ended by a mistake in the program itself" in capfd.readouterr().err


def test_interrupted_before_the_daemon_handles_it() -> None:
    assert main(["-fq"], run=failing(KeyboardInterrupt())) == 130


def test_it_really_is_trio() -> None:
    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    assert main(["-fq"], run=run) == 0


def test_root_is_told_that_a_user_would_do(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(privileges, "is_real_root", lambda: True)
    monkeypatch.setattr(privileges, "next_user", lambda _asked_for: None)
    assert main(["-fq"], run=ready_at_once) == 0
    assert capfd.readouterr().err == "trio-passt: running as root, where an ordinary user would do\n"


def test_privileges_are_given_up_when_all_is_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And when the PID file is: only then does the user change, and somebody may be told."""
    done: list[str] = []
    user = RunAs(12345, 23456)
    monkeypatch.setattr(privileges, "next_user", {user: user}.get)
    monkeypatch.setattr(privileges, "discover_as", lambda user: done.append(f"look as {user.uid}") or Host())
    monkeypatch.setattr(privileges, "become", lambda user, *, binds_later: done.append(f"become {user.uid}:{user.gid}"))

    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        assert config.run_as == user
        done.append("open")
        assert not (tmp_path / "pid").exists()
        on_open()
        assert (tmp_path / "pid").exists()
        done.append("ready")
        on_ready(None, ())
        return 0

    assert main(["-fq", "--runas", "12345:23456", "-P", str(tmp_path / "pid")], run=run) == 0
    assert done == ["look as 12345", "open", "become 12345:23456", "ready"]


def test_a_log_file_has_the_log(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-f", "-4", "-m", "1000", "-l", str(tmp_path / "log")], run=ready_at_once) == 0
    message = capfd.readouterr().err.splitlines()
    assert message[0] == "trio-passt: the guest gets"
    logged = [line.split(maxsplit=5)[-1] for line in (tmp_path / "log").read_text().splitlines()]
    assert logged[0] == ONE_FAMILY
    assert [line.strip() for line in message] == logged[1:]


def test_a_log_file_in_a_quiet_daemon(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-fq", "-l", str(tmp_path / "log")], run=ready_at_once) == 0
    assert (capfd.readouterr().err, (tmp_path / "log").read_text()) == ("", "")


def test_why_the_start_failed_is_said_in_both_places(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-fq", "-l", str(tmp_path / "log")], run=failing(StartupError("a reason"))) == 1
    assert capfd.readouterr().err == "trio-passt: a reason\n"
    assert (tmp_path / "log").read_text().endswith(" error: cli.main: a reason\n")


def test_what_fails_later_is_for_the_log_file_only(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        on_ready(None, ())
        raise KeyError("a mistake")

    assert main(["-fq", "-l", str(tmp_path / "log")], run=run) == 1
    assert capfd.readouterr().err == ""
    assert "critical: cli.main: ended by a mistake in the program itself" in (tmp_path / "log").read_text()


def test_a_log_file_that_can_not_be_written(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-f", "-l", str(tmp_path)], run=ready_at_once) == 1
    assert capfd.readouterr().err == f"trio-passt: can't log to '{tmp_path}': Is a directory\n"


def test_a_descriptor_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-fq", "-F", "9999"], run=ready_at_once) == 1
    assert (
        capfd.readouterr().err
        == "trio-passt: option '--fd 9999': Bad file descriptor: a connected socket is expected\n"
    )


def test_a_deleted_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["-fq"], run=ready_at_once) == 0


def test_the_real_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert any(link.loopback for link in main_module.discover().links)


def test_the_daemon_is_told_of_changes_since_before_the_host_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens between the look and the daemon's start must not be missed; and the watch ends with it."""
    done: list[str] = []
    begin, end = HostWatch.__init__, HostWatch.close

    def begins(watch: HostWatch, resolv_conf: Path) -> None:
        done.append(f"watches {resolv_conf}")
        begin(watch, resolv_conf)

    def ends(watch: HostWatch) -> None:
        done.append("ends")
        end(watch)

    def look() -> Host:
        done.append("looks")
        return Host()

    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        done.append("runs")
        assert isinstance(watch, HostWatch)
        return 0

    monkeypatch.setattr(HostWatch, "__init__", begins)
    monkeypatch.setattr(HostWatch, "close", ends)
    monkeypatch.setattr(main_module, "discover", look)
    assert main(["-fq"], run=run) == 0
    assert done == ["watches /etc/resolv.conf", "looks", "runs", "ends"]


def test_names_reach_the_daemon_and_its_user(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []

    async def run(config: Config, *, on_open: Open, on_ready: Ready, watch: HostWatch, namespace: object) -> int:
        seen.append(config)
        on_ready(None, ())
        return 0

    words = [
        "-f",
        "-H",
        "guest",
        "--fqdn",
        "guest.example.",
        "--dhcp-boot",
        "pxelinux.0",
        "--dns-forward",
        "192.0.2.53",
    ]
    assert main(words, run=run) == 0
    (config,) = seen
    assert config.wishes.dns_forwards == (IPv4Address("192.0.2.53"),)
    assert (config.network.hostname, config.network.fqdn) == ("guest", "guest.example")
    assert config.network.boot == config.wishes.boot == NetworkBoot("pxelinux.0")
    lines = [line.strip() for line in capfd.readouterr().err.splitlines()]
    assert {"Name     guest", "FQDN     guest.example", "Boot     pxelinux.0 from 169.254.2.2"} <= set(lines)
