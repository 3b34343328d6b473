"""A task that Trio has taken up for the same round is not kept waiting, though Trio's statistics do not count it."""

import os
import select
import socket
from unittest.mock import patch

import trio
from trio.testing import wait_all_tasks_blocked

from trio_passt.host.readiness import READABLE, Readiness


class Polls:
    """An epoll set that counts how often it was waited for in vain."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.in_vain = 0

    def poll(self, timeout_s: float, most: int) -> list[tuple[int, int]]:
        events = self._epoll.poll(timeout_s, most)
        self.in_vain += timeout_s > 0 and not events
        return events

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)


async def test_runnable_task_is_not_kept_waiting_while_nothing_happens() -> None:
    polls = Polls()
    with patch.object(select, "epoll", lambda: polls):
        readiness = Readiness(lingers=True)
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    readiness.watch(ours.fileno(), lambda _mask: ours.recv(100), events=READABLE, edge_triggered=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        for _ in range(1000):
            peer.send(b"x")
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    readiness.close()
    ours.close()
    peer.close()
    assert polls.in_vain < 50, "it was 250 to 500 of 1000, a millisecond each"


async def test_event_of_a_socket_that_is_closed_is_not_told_to_one_that_has_its_number_now() -> None:
    """Both sockets have something to say; whoever is called first closes the other and opens a new one."""
    readiness = Readiness()
    told: list[str] = []
    pairs = [socket.socketpair() for _ in range(2)]
    new, new_peer = socket.socketpair()
    new.setblocking(False)

    def take_new(_mask: int) -> None:
        told.append("new")
        new.recv(1)

    def take(number: int) -> None:
        told.append("old")
        pairs[number][0].recv(1)
        other = pairs[1 - number][0]
        readiness.forget(other.fileno())
        os.dup2(new.fileno(), other.fileno())  # closes the old one, and the new one has its number
        readiness.watch(other.fileno(), take_new, events=READABLE, edge_triggered=False)

    for number, (ours, peer) in enumerate(pairs):
        readiness.watch(ours.fileno(), lambda _mask, number=number: take(number), events=READABLE)  # type: ignore[misc]
        peer.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.01)
        assert told == ["old"]
        new_peer.send(b"x")
        await wait_all_tasks_blocked(0.01)
        assert told == ["old", "new"]
        nursery.cancel_scope.cancel()
    readiness.close()
    for one in (*pairs[0], *pairs[1], new, new_peer):
        one.close()
