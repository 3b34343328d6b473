"""Quick answers are polled for; late ones, and bulk data, are left to the kernel to report.

On the real clock, since it is the kernel that waits; what is asserted holds on a busy machine, too.
"""

import select
import socket
import threading
import time
from contextlib import ExitStack, suppress
from unittest.mock import patch

import pytest
import trio
from ticks import Ticks

from trio_passt.host import readiness
from trio_passt.host.readiness import BULK_BYTES, READABLE, Readiness

ANSWERS = 100


class Polls:
    """An epoll set that counts how it is asked."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.waiting = 0
        self.not_waiting = 0

    def poll(self, timeout_s: float, most: int) -> list[tuple[int, int]]:
        if timeout_s:
            self.waiting += 1
        else:
            self.not_waiting += 1
        return self._epoll.poll(timeout_s, most)

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)


async def exchange(delay_s: float, count: int, moved_bytes: int = 1) -> Polls:
    """Questions, one after the other, each answered after a while by a thread."""
    polls = Polls()
    ended = trio.Event()
    left = [count]
    with ExitStack() as opened:
        ours, theirs = map(opened.enter_context, socket.socketpair())
        with patch.object(select, "epoll", lambda: polls):
            ready = Readiness(lingers=True)
        opened.callback(ready.close)

        def answer() -> None:
            with suppress(OSError):
                while theirs.recv(1):
                    time.sleep(delay_s)
                    theirs.send(b"a")

        def on_answer(_mask: int) -> None:
            ours.recv(1)
            ready.moved(moved_bytes)
            left[0] -= 1
            if left[0]:
                ours.send(b"q")
            else:
                ended.set()

        thread = threading.Thread(target=answer)
        thread.start()
        opened.callback(thread.join)
        opened.callback(ours.shutdown, socket.SHUT_RDWR)
        ready.watch(ours.fileno(), on_answer, events=READABLE, edge_triggered=False)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ready.run)
                ours.send(b"q")
                await ended.wait()
                nursery.cancel_scope.cancel()
    return polls


async def test_quick_answers_are_polled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SPIN_S", 0.5)
    monkeypatch.setattr(readiness, "LINGER_MOST_S", 1.0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    polls = await exchange(0.0002, ANSWERS)
    assert polls.waiting < ANSWERS // 4
    assert polls.not_waiting > ANSWERS


async def test_late_answers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SPIN_S", 0.0001)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    polls = await exchange(0.005, 20)
    assert polls.not_waiting < 20 * 10


async def test_one_processor_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SPIN_S", 0.5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0})
    polls = await exchange(0.0002, ANSWERS)
    assert polls.not_waiting < ANSWERS * 4


async def test_bulk_data_is_not_polled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SPIN_S", 0.5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    polls = await exchange(0.0002, ANSWERS, BULK_BYTES + 1)
    assert polls.not_waiting < ANSWERS * 4


@pytest.mark.parametrize("takes_s", [0.0, 0.06], ids=["free", "busy"])
async def test_processor_is_offered_unless_somebody_keeps_it(
    monkeypatch: pytest.MonkeyPatch, ticks: Ticks, takes_s: float
) -> None:
    """One who comes back late from an offer makes none for a second."""
    offers = []

    def offer() -> None:
        offers.append(ticks.current_time())
        ticks.passes(takes_s)

    monkeypatch.setattr(readiness, "SPIN_S", 0.05)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr("os.sched_yield", offer)
    polls = await exchange(0.0002, ANSWERS)
    assert polls.not_waiting > ANSWERS
    if takes_s:
        assert 1 <= len(offers) <= 1 + ticks.current_time() / readiness.NO_OFFER_S
    else:
        assert len(offers) > ANSWERS // 4
