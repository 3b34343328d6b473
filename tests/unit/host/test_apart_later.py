"""A function in a child process while other tasks run: its result, its exception, its end, and nothing left of it."""

import errno
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.errors import StartupError
from trio_passt.host.apart import while_others_run


def descriptors() -> dict[int, str]:
    """Those that are open, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children() -> list[int]:
    """Children of this process, dead ones too."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, no child process, and no zombie."""
    before, already = descriptors(), children()
    yield
    assert descriptors() == before
    assert children() == already


async def test_result_comes_back_and_the_process_was_another() -> None:
    child, parent = await while_others_run(lambda: (os.getpid(), os.getppid()))
    assert parent == os.getpid() != child


async def test_what_it_imports_stays_there() -> None:
    def imports() -> bool:
        import colorsys  # noqa: F401

        return "colorsys" in sys.modules

    sys.modules.pop("colorsys", None)
    assert await while_others_run(imports)
    assert "colorsys" not in sys.modules


async def test_large_results() -> None:
    assert await while_others_run(lambda: bytes(1_000_000)) == bytes(1_000_000)


async def test_exception_is_raised_here() -> None:
    def fails() -> None:
        raise StartupError("no netlink")

    with pytest.raises(StartupError, match="no netlink"):
        await while_others_run(fails)


@pytest.mark.parametrize(
    ("die", "status"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "-9"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "-15"),
        (lambda: os._exit(3), "3"),
        (lambda: os._exit(0), "0"),
        (lambda: sys.exit(0), "1"),
    ],
    ids=["SIGKILL", "SIGTERM", "3", "0", "SystemExit"],
)
async def test_child_that_ends_without_an_answer(die: Callable[[], None], status: str) -> None:
    with pytest.raises(RuntimeError, match=f"^a child process ended with status {status}$"):
        await while_others_run(die)


async def test_result_that_cannot_be_sent() -> None:
    with pytest.raises(Exception, match=r"pickle|lambda"):
        await while_others_run(lambda: lambda: None)


class Gate:
    """What a child waits at until the test opens it: a FIFO, since a child has none of our descriptors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)

    def passed(self) -> int:
        """In the child."""
        return self._path.read_bytes()[0]

    def open(self, number: int) -> None:
        self._path.write_bytes(bytes([number]))


@pytest.fixture
def gates(tmp_path: Path) -> list[Gate]:
    return [Gate(tmp_path / name) for name in "abc"]


async def test_several_at_once_while_others_run(gates: list[Gate]) -> None:
    """Each waits for what its own child says, and all others go on."""
    results: list[int] = []

    async def ask(gate: Gate) -> None:
        results.append(await while_others_run(gate.passed))

    async with trio.open_nursery() as nursery:
        for gate in gates:
            nursery.start_soon(ask, gate)
        await wait_all_tasks_blocked()
        assert results == []
        assert len(children()) == 3
        for number in (2, 0, 1):
            gates[number].open(number)
            await eventually(lambda number=number: True if number in results else None, "a result")
    assert results == [2, 0, 1]


async def test_cancelled_kills_the_child() -> None:
    with trio.move_on_after(0.01) as waiting:
        await while_others_run(lambda: time.sleep(60))
    assert waiting.cancelled_caught


async def test_already_cancelled() -> None:
    with trio.CancelScope() as waiting:
        waiting.cancel()
        await while_others_run(lambda: time.sleep(60))
    assert waiting.cancelled_caught


async def test_cancelled_when_the_child_is_dead_already(gates: list[Gate]) -> None:
    with trio.CancelScope() as waiting:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(while_others_run, gates[0].passed)
            await wait_all_tasks_blocked()
            (child,) = children()
            gates[0].open(7)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - nobody else may run meanwhile
            waiting.cancel()
    assert waiting.cancelled_caught


class TestIgnoredChildren:
    """Who started us may ignore SIGCHLD: then no status is kept, and a child may be gone before it is asked for."""

    @pytest.fixture(autouse=True)
    def ignored(self) -> Iterator[None]:
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        yield
        signal.signal(signal.SIGCHLD, before)

    async def test_result(self) -> None:
        assert await while_others_run(lambda: 7) == 7

    async def test_exception(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await while_others_run(lambda: 1 // 0)

    async def test_child_that_ends_without_an_answer(self) -> None:
        with pytest.raises(RuntimeError, match="status 0"):
            await while_others_run(lambda: os._exit(3))

    async def test_cancelled(self) -> None:
        with trio.move_on_after(0.01) as waiting:
            await while_others_run(lambda: time.sleep(60))
        assert waiting.cancelled_caught

    async def test_cancelled_when_the_child_is_gone_already(self, gates: list[Gate]) -> None:
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(while_others_run, gates[0].passed)
                await wait_all_tasks_blocked()
                (child,) = children()
                gates[0].open(7)
                while children() == [child]:
                    time.sleep(0.001)  # noqa: ASYNC251 - nobody else may run meanwhile
                waiting.cancel()
        assert waiting.cancelled_caught


async def test_answer_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child was killed while it wrote."""
    dumps = pickle.dumps
    monkeypatch.setattr(pickle, "dumps", lambda value: dumps(value)[:-3])
    with pytest.raises(RuntimeError, match="what a child process said can't be read"):
        await while_others_run(lambda: 7)


async def test_signals_mean_nothing_of_ours_to_the_child() -> None:
    """Trio's handlers would write to a socket that is the parent's, too."""

    def ends_itself() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        with pytest.raises(RuntimeError, match="status -15"):
            await while_others_run(ends_itself)
        with trio.move_on_after(0.01) as waiting:
            async for number in signals:
                pytest.fail(f"signal {number}")
        assert waiting.cancelled_caught


async def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        with pytest.raises(BlockingIOError):
            await while_others_run(lambda: 7)
