"""The log file: never larger than its size, whole lines only, the newest ones, whatever others do to it."""

import fcntl
import logging
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from trio_passt.cli import log_file
from trio_passt.cli.log import LOGGER, OneLine, Prefix
from trio_passt.cli.log_file import LOCK_RETRY_S, LOCK_TRIES, LogFile
from trio_passt.errors import StartupError

SIZE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def opened(path: Path, size_bytes: int = SIZE, prefix: Prefix = Prefix.NONE) -> Iterator[LogFile]:
    file = LogFile(path, size_bytes)
    file.setFormatter(OneLine(prefix))
    try:
        yield file
    finally:
        file.close()


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(f"{LOGGER}.tcp", level, __file__, 1, text, (), None)


def test_a_line_has_time_process_level_and_module(path: Path) -> None:
    with opened(path, prefix=Prefix.DATE) as file:
        line = record("the guest\nsays", logging.WARNING)
        line.created, line.msecs = 1_700_000_000.0625, 62.5
        file.emit(line)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
    assert path.read_text() == f"{stamp}.062 [{os.getpid()}] warning: tcp: the guest\\x0asays\n"


def test_it_is_created_for_its_owner_and_appended_to(path: Path) -> None:
    before = os.umask(0)
    try:
        for text in ("one", "two"):
            with opened(path) as file:
                file.emit(record(text))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.read_text() == "one\ntwo\n"


def test_it_never_has_more_than_its_size(path: Path) -> None:
    """After each line: the same file, small enough, with whole lines, of which the newest are there without a gap."""
    chance = random.Random(6)
    lines: list[str] = []
    cuts = size = 0
    with opened(path) as file:
        inode = path.stat().st_ino
        for number in range(1500):
            lines.append(f"{number} {'x' * chance.randrange(120)}")
            file.emit(record(lines[-1]))
            text = path.read_text()
            assert len(text) <= SIZE
            if len(text) < size:
                cuts += 1
                assert SIZE / 2 < len(text) <= SIZE * 3 / 4 + 130  # a good part is free again, and no more
            size = len(text)
            kept = text.splitlines()
            assert kept == lines[-len(kept) :]
            assert text.endswith("\n")
        assert path.stat().st_ino == inode
    assert cuts > 50


def test_a_file_that_is_larger_is_cut_at_the_start(path: Path) -> None:
    lines = [f"line {number}" for number in range(5000)]
    path.write_text("\n".join(lines) + "\n")
    with opened(path):
        kept = path.read_text().splitlines()
        assert SIZE / 2 < path.stat().st_size <= SIZE * 3 / 4
        assert kept == lines[-len(kept) :]


@pytest.mark.parametrize("rest", ["", "\n"])
def test_a_file_with_one_line_that_is_larger_loses_it(path: Path, rest: str) -> None:
    path.write_text("x" * 10_000 + rest)
    with opened(path) as file:
        file.emit(record("short"))
    assert path.read_text() == "short\n"


def test_a_cut_exactly_between_two_lines(path: Path) -> None:
    """What fits is kept: a line that begins where the rest begins is whole."""
    lines = [f"{number:07}" for number in range(SIZE // 8 + 1)]
    path.write_text("\n".join(lines) + "\n")
    with opened(path):
        assert path.read_text() == "\n".join(lines[-SIZE * 3 // 4 // 8 :]) + "\n"


def test_a_line_that_is_longer_than_the_file_may_be_is_cut(path: Path) -> None:
    with opened(path, 64) as file:
        file.emit(record("before"))
        file.emit(record("ä" * 100))
        assert path.read_text() == "ä" * 31 + "\n"  # 63 bytes: no half letter
        file.emit(record("after"))
        assert path.read_text() == "after\n"


def test_a_traceback_is_in_it(path: Path) -> None:
    with opened(path) as file:
        try:
            raise ValueError("inside")
        except ValueError as error:
            failed = record("a flow failed")
            failed.exc_info = (ValueError, error, error.__traceback__)
            file.emit(failed)
    assert path.read_text().splitlines()[0] == "a flow failed"
    assert path.read_text().splitlines()[-1] == "ValueError: inside"


def test_somebody_else_cuts_it(path: Path) -> None:
    """As logrotate's copytruncate does: no hole is left where the lines were."""
    with opened(path) as file:
        file.emit(record("one"))
        os.truncate(path, 0)
        file.emit(record("two"))
        assert path.read_bytes() == b"two\n"


def test_somebody_else_writes_too_much(path: Path) -> None:
    with opened(path) as file:
        file.emit(record("one"))
        with path.open("a") as other:
            other.write("other\n" * 10_000)
        file.emit(record("two"))
        assert path.stat().st_size <= SIZE
        assert path.read_text().endswith("other\ntwo\n")


def test_somebody_removes_it_and_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with opened(directory / "log") as file:
        (directory / "log").unlink()
        directory.rmdir()
        for number in range(1000):
            file.emit(record(f"line {number}"))
    assert not directory.exists()


def test_two_daemons_with_one_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LOCK_TRIES", 30_000)  # who has the lock may be kept waiting by others

    def write(name: str) -> None:
        with opened(path) as file:
            for number in range(400):
                file.emit(record(f"{name} {number:03} {name * 20}"))
                assert path.stat().st_size <= SIZE

    child = os.fork()
    if child == 0:
        status = 1
        try:
            write("a")
            status = 0
        finally:
            os._exit(status)
    write("b")
    assert os.waitpid(child, 0)[1] == 0
    kept = path.read_text().splitlines()
    for name in "ab":
        numbers = [int(line.split()[1]) for line in kept if line.startswith(name)]
        assert numbers == sorted(set(numbers))
    assert {line[:1] + line[5:] for line in kept} <= {f"{name} {name * 20}" for name in "ab"}
    assert kept[-1][2:5] == "399"


def test_somebody_keeps_it_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are lost then, and only the first one waits a moment; that they were is said afterwards."""
    naps: list[float] = []
    monkeypatch.setattr(log_file, "time", SimpleNamespace(sleep=naps.append))
    with opened(path) as file, path.open("a") as other:
        file.emit(record("one"))
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(1000):
            file.emit(record("lost"))
        assert naps == [LOCK_RETRY_S] * (LOCK_TRIES - 1)
        fcntl.flock(other, fcntl.LOCK_UN)
        file.emit(record("two"))
        file.emit(record("three"))
    assert path.read_text().splitlines() == [
        "one",
        "1000 lines were lost here: somebody else has locked the file",
        "two",
        "three",
    ]


@contextmanager
def files_may_have(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_whole_line(path: Path) -> None:
    """A part of it can be written, and is not left there."""
    with opened(path) as file:
        with files_may_have(100):
            for number in range(4):
                file.emit(record(f"{number} {'x' * 37}"))
            after = path.read_text()
        file.emit(record("later"))
    assert after.splitlines() == [f"0 {'x' * 37}", f"1 {'x' * 37}"]
    assert path.read_text() == f"{after}2 lines were lost here: No space left on device\nlater\n"


def test_one_line_that_is_lost(path: Path) -> None:
    with opened(path) as file:
        with files_may_have(10):
            file.emit(record("x" * 37))
        file.emit(record("later"))
    assert path.read_text() == "1 line was lost here: No space left on device\nlater\n"


def test_a_file_that_can_only_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with chattr +a: what does not fit is lost."""

    def may_not(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    with opened(path) as file:
        monkeypatch.setattr(fcntl, "fcntl", may_not)
        for number in range(1000):
            file.emit(record(f"line {number}"))
        assert path.stat().st_size <= SIZE
        assert path.read_text().splitlines()[0] == "line 0"


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: object, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with opened(path) as file:
        for number in range(1000):
            file.emit(record(f"line {number}"))
    assert path.stat().st_size <= SIZE
    assert path.read_text().endswith("line 998\nline 999\n")


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with opened(path) as file:
        for _ in range(3000):
            file.emit(record("x" * 99))
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(reader, 200) == b"x" * 99 + b"\n" + b"x" * 99 + b"\n"
        while len(os.read(reader, 65536)) == 65536:
            pass
        file.emit(record("later"))
        assert b" lines were lost here: Resource temporarily unavailable\nlater\n" in os.read(reader, 65536)
        os.close(reader)


def test_a_device(path: Path) -> None:
    path.symlink_to("/dev/full")
    with opened(path) as file:
        file.emit(record("lost"))
    with opened(Path("/dev/null")) as file:
        file.emit(record("as well"))


def test_a_symbolic_link_to_a_file_is_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with opened(path) as file:
        file.emit(record("here"))
    assert (tmp_path / "elsewhere").read_text() == "here\n"


def test_what_is_nothing_to_write_to(path: Path) -> None:
    with pytest.raises(StartupError, match="Is a directory"):
        LogFile(path.parent, SIZE)
    with pytest.raises(StartupError, match="No such file or directory"):
        LogFile(path / "log", SIZE)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        with pytest.raises(StartupError, match="No such device or address"):
            LogFile(path, SIZE)


def test_a_child_does_not_write_into_its_parents_descriptors(path: Path) -> None:
    """It has closed the log file, and the number may be a socket's."""
    with opened(path) as file:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                file.emit(record("from the child"))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    assert path.read_text() == ""


def test_closed_twice(path: Path) -> None:
    file = LogFile(path, SIZE)
    file.setFormatter(OneLine(Prefix.NONE))
    file.close()
    with path.open() as other:
        file.close()
        file.emit(record("nowhere"))
        assert other.read() == ""


def test_one_that_came_to_nothing_can_be_closed(path: Path) -> None:
    """As the end of the program does with all handlers, printing what they raise."""
    before = set(logging._handlerList)  # type: ignore[attr-defined]
    with pytest.raises(StartupError):
        LogFile(path / "nowhere", SIZE)
    for reference in set(logging._handlerList) - before:  # type: ignore[attr-defined]
        if (handler := reference()) is not None:
            handler.close()
