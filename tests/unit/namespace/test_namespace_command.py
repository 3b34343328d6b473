"""The command of a new namespace, with real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from processes_here import WAIT_S, nothing_left, wait_for

from trio_passt.config import Namespace, RunAs
from trio_passt.errors import StartupError
from trio_passt.namespace import command as command_module
from trio_passt.namespace.command import Command

ANYBODY = 61124


@contextmanager
def made(
    *words: str, umask: int | None = None, user: RunAs | None = None, joins_user: bool = True
) -> Iterator[Command]:
    wanted = Namespace(command=words, joins_user=joins_user)
    with nothing_left():
        command = Command(wanted, umask=umask, user=user)
        command.namespaces.close()
        try:
            yield command
        finally:
            command.close()


async def status_of(command: Command) -> int:
    command.start()
    with trio.fail_after(WAIT_S):
        return await command.wait()


async def says(script: str, path: Path, **values: int) -> list[str]:
    """The lines that a shell's script prints."""
    with made("sh", "-c", f"{{ {script}; }} >{path} 2>&1", **values) as command:
        assert await status_of(command) == 0
    return (await trio.Path(path).read_text()).splitlines()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
async def test_status(script: str, status: int) -> None:
    with made("sh", "-c", script) as command:
        assert await status_of(command) == status


async def test_who_and_where_it_is(tmp_path: Path) -> None:
    lines = await says(
        "id -u; id -g; echo $$ $PPID; pwd; cat /proc/self/setgroups; ls /proc | grep -c '^[0-9]'", tmp_path / "said"
    )
    assert lines[:2] == ["0", "0"]
    assert lines[2] == "2 1"
    assert lines[3:5] == [os.getcwd(), "deny"]
    assert int(lines[5]) <= 5, "the processes of /proc are those in there"


async def test_another_user_in_there(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    with made("sh", "-c", f"cat /proc/self/uid_map >{tmp_path}/said", user=RunAs(ANYBODY, ANYBODY)) as command:
        assert await status_of(command) == 0
    assert (tmp_path / "said").read_text().split() == ["0", str(ANYBODY), "1"]
    assert (tmp_path / "said").stat().st_uid == ANYBODY


async def test_without_a_user_namespace(tmp_path: Path) -> None:
    own = os.readlink("/proc/self/ns/user")
    path = tmp_path / "said"
    with made("sh", "-c", f"readlink /proc/self/ns/user /proc/self/ns/net >{path}", joins_user=False) as command:
        assert command.namespaces.user is None
        assert await status_of(command) == 0
    user, net = path.read_text().split()
    assert user == own
    assert net != os.readlink("/proc/self/ns/net")


async def test_environment_and_mask_are_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "x y")
    assert await says("echo $MARK; umask", tmp_path / "said", umask=0o027) == ["x y", "0027"]


async def test_signals_are_as_at_first(tmp_path: Path) -> None:
    """But those that who called us ignores are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        lines = await says("cat /proc/self/status", tmp_path / "said")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGHUP, before)
    wanted = {"SigBlk", "SigIgn", "SigCgt"}
    found = {name: int(value, 16) for name, value in (line.split(":\t") for line in lines) if name in wanted}
    assert found == {"SigBlk": 0, "SigIgn": 1 << (signal.SIGHUP - 1), "SigCgt": 0}


async def test_descriptors_are_the_standard_ones(tmp_path: Path) -> None:
    other = os.dup(2)
    os.set_inheritable(other, True)
    try:
        lines = await says("ls /proc/self/fd", tmp_path / "said")
    finally:
        os.close(other)
    assert lines == ["0", "1", "2", "3"], "the last is the list's own"


async def test_ping_is_permitted(tmp_path: Path) -> None:
    assert await says("cat /proc/sys/net/ipv4/ping_group_range", tmp_path / "said") == ["0\t0"]


async def test_it_waits_for_its_start(tmp_path: Path) -> None:
    with made("touch", str(tmp_path / "there")) as command:
        await trio.sleep(0.05)
        assert not (tmp_path / "there").exists()
        assert await status_of(command) == 0
        assert (tmp_path / "there").exists()


async def test_never_started(tmp_path: Path) -> None:
    with made("touch", str(tmp_path / "there")):
        pass
    assert not (tmp_path / "there").exists()


async def test_signal_is_passed_on() -> None:
    with made("sh", "-c", "trap 'exit 5' USR2; while :; do sleep 0.01; done") as command:
        command.start()
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:

                async def until_it_ends() -> None:
                    while True:
                        command.signal(signal.SIGUSR2)
                        await trio.sleep(0.02)

                nursery.start_soon(until_it_ends)
                assert await command.wait() in (5, 128 + signal.SIGUSR2)
                nursery.cancel_scope.cancel()
        command.signal(signal.SIGTERM)  # for nobody any more


async def test_shell_is_the_callers_and_hangs_up_when_we_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interactive shell ignores SIGTERM; this one ends by SIGHUP only."""
    shell = tmp_path / "my-shell"
    shell.write_text(
        f"#!/bin/sh\ntrap 'exit 6' HUP\ntrap '' TERM\necho $0 $# >{tmp_path}/said\nwhile :; do sleep 0.01; done\n"
    )
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))
    with made() as command:
        command.start()
        said = await trio.to_thread.run_sync(lambda: wait_for(lambda: line_of(tmp_path / "said")))
        assert said.split() == [str(shell), "0"]
        command.signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S):
            assert await command.wait() == 6


async def test_what_it_leaves_is_ended(tmp_path: Path) -> None:
    mark = f"76543.{os.getpid()}"
    with made("sh", "-c", f"sleep {mark} & setsid sleep {mark} & exit 3") as command:
        assert await status_of(command) == 3
        assert not running(mark)


async def test_close_ends_it() -> None:
    mark = f"76544.{os.getpid()}"
    with made("sleep", mark) as command:
        command.start()
        await trio.to_thread.run_sync(lambda: wait_for(lambda: running(mark)))
    assert not running(mark)


async def test_orphans_do_not_stay(tmp_path: Path) -> None:
    """There are the first process and the shell again, in the end."""
    count = "set -- /proc/[0-9]*"
    script = (
        f"for i in 1 2 3 4 5; do (true &) ; done; {count}; while [ $# -gt 2 ]; do sleep 0.01; {count}; done; echo $*"
    )
    assert await says(script, tmp_path / "said") == ["/proc/1 /proc/2"]


def line_of(path: Path) -> str:
    """What another process writes there, when it has written all of it."""
    text = path.read_text() if path.exists() else ""
    return text if text.endswith("\n") else ""


def open_to_all(directory: Path) -> None:
    """Any user may write there."""
    directory.chmod(0o777)
    for parent in directory.parents[:-1]:
        parent.chmod(parent.stat().st_mode | 0o11)


def running(mark: str) -> list[str]:
    return [
        path.name
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and ends_with(path / "cmdline", mark.encode() + b"\0")
    ]


def ends_with(path: Path, end: bytes) -> bool:
    try:
        return path.read_bytes().endswith(b"\0" + end)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("make", "status", "text"),
    [
        (lambda path: path / "absent", 127, "No such file or directory"),
        (lambda path: path, 126, "Permission denied"),
        (lambda path: Path("/dev/null/x"), 127, "No such file or directory"),
    ],
)
async def test_command_that_can_not_run(
    make: Callable[[Path], Path], status: int, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = make(tmp_path)
    with made(str(file)) as command:
        assert await status_of(command) == status
    assert capfd.readouterr().err == f"trio-pasta: can't run '{file}': {text}\n"


async def test_command_that_is_in_no_directory_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/dev/null:{tmp_path}/absent")
    with made("no-such-command") as command:
        assert await status_of(command) == 127
    (tmp_path / "no-such-command").write_text("exit 4")
    with made("no-such-command") as command:
        assert await status_of(command) == 126
    (tmp_path / "no-such-command").chmod(0o755)
    with made("no-such-command") as command:
        assert await status_of(command) == 4, "a script without a line that says whose it is"
    assert "can't run 'no-such-command': Permission denied" in capfd.readouterr().err


REFUSED = """
import sys
from trio_passt.config import Namespace
from trio_passt.errors import StartupError
from trio_passt.namespace.command import Command
try:
    Command(Namespace(command=("true",)), umask=None, user=None)
except StartupError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("name", ["user", "net", "pid"])
def test_namespaces_that_are_used_up(name: str) -> None:
    script = f'echo 0 >/proc/sys/user/max_{name}_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, sys.executable, REFUSED]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert f"sysctl user.max_{name}_namespaces is 0" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")]
)
def test_user_namespaces_that_are_switched_off(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels say that have these settings, which ours lacks."""

    def refuse(_name: str, *_arguments: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    def setting(asked: str) -> str | None:
        return value if asked == f"kernel.{name}" else None

    monkeypatch.setattr(command_module, "call", refuse)
    monkeypatch.setattr(command_module, "_setting", setting)
    with nothing_left(), pytest.raises(StartupError, match=rf"user namespace: .* \(sysctl kernel.{name} is {value}\)"):
        Command(Namespace(command=("true",)), umask=None, user=None)
