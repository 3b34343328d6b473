"""The PID file: there while its writer lives, taken over after a crash, and nobody else's file harmed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trio_passt.cli.pid_file import PidFile
from trio_passt.errors import StartupError


def test_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o7777 == 0o600
    pid_file.remove()
    assert not path.exists()


def test_a_stale_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("99999999999999\n")
    path.chmod(0o644)
    PidFile(path).remove()
    path.write_text("99999999999999\n")
    pid_file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o7777 == 0o600
    pid_file.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to have a file that is another user's")
def test_another_users_file_is_left_alone(tmp_path: Path) -> None:
    """Whoever has it could write another number into it, for root to kill."""
    path = tmp_path / "pid"
    path.write_text("12\n")
    os.chown(path, 1234, 1234)
    with pytest.raises(StartupError, match="it is another user's"):
        PidFile(path)
    assert path.read_text() == "12\n"


NOBODYS = "4194305\n"
"""More than the largest number of a process (proc(5), pid_max)."""

WRITER = """
import pathlib, sys
from trio_passt.cli.pid_file import PidFile
pid_file = PidFile(pathlib.Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def test_a_running_writer_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StartupError, match=f"belongs to a running process \\({other.pid}\\)"):
            PidFile(path)
        assert path.read_text() == f"{other.pid}\n"
        other.kill()
        other.wait()
    PidFile(path).remove()


def test_of_many_daemons_one_gets_the_file(tmp_path: Path) -> None:
    """Round after round, as one ends and others start: exactly one at a time, and it is the one that is named."""
    path = tmp_path / "pid"
    (tmp_path / "winners").touch()

    def compete() -> None:
        for _ in range(300):
            try:
                pid_file = PidFile(path)
            except StartupError:
                continue
            with (tmp_path / "winners").open("a") as winners:
                winners.write("in")
                winners.flush()
                assert path.read_text() == f"{os.getpid()}\n"
                winners.write("out ")
            pid_file.remove()

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                compete()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert set((tmp_path / "winners").read_text().split()) == {"inout"}
    assert not path.exists()


def test_a_daemon_that_may_not_remove_it_empties_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def may_not(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "pid"
    pid_file = PidFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", may_not)
        pid_file.remove()
    assert path.read_text() == ""
    PidFile(path).remove()
    assert not path.exists()


def test_one_that_is_starting_has_no_number_yet(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StartupError, match=r"belongs to a running process \(starting, or ending\)"):
            PidFile(path)


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file = PidFile(path)
    path.unlink()
    path.write_text("somebody else's\n")
    pid_file.remove()
    assert path.read_text() == "somebody else's\n"


def test_a_file_that_is_gone_need_not_be_removed(tmp_path: Path) -> None:
    pid_file = PidFile(tmp_path / "pid")
    (tmp_path / "pid").unlink()
    pid_file.remove()


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "pid").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("precious\n")
    with pytest.raises(StartupError, match="can't write PID file"):
        PidFile(tmp_path / "pid")
    assert (tmp_path / "precious").read_text() == "precious\n"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"can't write PID file '.*/no/pid': No such file or directory"):
        PidFile(tmp_path / "no" / "pid")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="Is a directory"):
        PidFile(tmp_path)


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    with pytest.raises(StartupError, match="not a regular file"):
        PidFile(tmp_path / "pid")


def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my notes\n")
    with pytest.raises(StartupError, match="holds something else"):
        PidFile(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "my notes\n"


@pytest.mark.parametrize("writes", [True, False])
def test_number_that_was_left_behind_is_not_its_new_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    path = tmp_path / "pid"
    path.write_text(NOBODYS)

    def meanwhile(_seconds: float) -> None:
        if writes:
            path.write_text(f"{os.getpid()}\n")

    monkeypatch.setattr("time.sleep", meanwhile)
    with path.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        holder = os.getpid() if writes else "starting, or ending"
        with pytest.raises(StartupError, match=rf"belongs to a running process \({holder}\)"):
            PidFile(path)
