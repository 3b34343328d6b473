"""Sockets that are watched, but not looked at for a while: nothing is reported of them, and nothing is lost."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.host import error_queue
from trio_passt.host.readiness import ERROR, READABLE, Readiness


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    watcher = Readiness()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        yield watcher
        nursery.cancel_scope.cancel()
    watcher.close()


class Watched:
    """A connected UDP socket, read whenever it is reported."""

    def __init__(self, readiness: Readiness) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.peer = socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        for sock in (self.sock, self.peer):
            sock.bind(("127.0.0.1", 0))
        self.sock.connect(self.peer.getsockname())
        self.peer.connect(self.sock.getsockname())
        error_queue.enable(self.sock)
        self.masks: list[int] = []
        self.received: list[bytes] = []
        readiness.watch(self.sock.fileno(), self.on_event, events=READABLE, edge_triggered=False)

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        if mask & READABLE:
            self.received.append(self.sock.recv(100))

    async def receives(self, *payloads: bytes) -> None:
        """These, so far, and no others."""
        await eventually(lambda: len(self.received) >= len(payloads) or None, "datagrams")
        await wait_all_tasks_blocked(0.001)
        assert self.received == list(payloads)

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture
async def watched(readiness: Readiness) -> AsyncIterator[Watched]:
    made = Watched(readiness)
    yield made
    readiness.forget(made.sock.fileno())
    made.close()


async def test_nothing_is_reported_meanwhile(readiness: Readiness, watched: Watched) -> None:
    readiness.suspend(watched.sock.fileno())
    for payload in (b"one", b"two"):
        watched.peer.send(payload)
        await wait_all_tasks_blocked(0.001)
    assert watched.masks == []


async def test_all_is_reported_afterwards(readiness: Readiness, watched: Watched) -> None:
    """What came before, meanwhile, and after."""
    watched.peer.send(b"before")
    await watched.receives(b"before")
    readiness.suspend(watched.sock.fileno())
    watched.peer.send(b"meanwhile")
    await wait_all_tasks_blocked(0.001)
    assert watched.received == [b"before"]
    readiness.resume(watched.sock.fileno(), events=READABLE)
    watched.peer.send(b"after")
    await watched.receives(b"before", b"meanwhile", b"after")


async def test_an_error_is_reported_once_meanwhile(readiness: Readiness, watched: Watched) -> None:
    """epoll(7): EPOLLERR can't be switched off; and again afterwards, as long as it is there."""
    readiness.suspend(watched.sock.fileno())
    watched.peer.close()
    watched.sock.send(b"to nobody")
    await eventually(lambda: watched.masks or None, "an error")
    with trio.fail_after(30):
        await wait_all_tasks_blocked(0.01)
    assert watched.masks == [ERROR]
    readiness.resume(watched.sock.fileno(), events=0)
    while len(watched.masks) < 3:
        await trio.lowlevel.checkpoint()
    assert set(watched.masks) == {ERROR}
    assert len(error_queue.read_all(watched.sock)) == 1
    await wait_all_tasks_blocked(0.001)


async def test_both_may_be_done_twice(readiness: Readiness, watched: Watched) -> None:
    for _ in range(2):
        readiness.suspend(watched.sock.fileno())
    for _ in range(2):
        readiness.resume(watched.sock.fileno(), events=READABLE)
    watched.peer.send(b"one")
    await watched.receives(b"one")


async def test_suspended_one_may_be_forgotten(readiness: Readiness, watched: Watched) -> None:
    readiness.suspend(watched.sock.fileno())
    readiness.forget(watched.sock.fileno())
    watched.peer.send(b"one")
    await wait_all_tasks_blocked(0.001)
    assert watched.masks == []
