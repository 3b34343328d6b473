"""One epoll for many sockets, watched by one task."""

import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.host.readiness import ERROR, HANG_UP, PEER_CLOSED, READABLE, WRITABLE, Readiness


@pytest.fixture
def readiness() -> Iterator[Readiness]:
    ours = Readiness()
    yield ours
    ours.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with ours, peer:
        yield ours, peer


class Log:
    """Remembers events."""

    def __init__(self) -> None:
        self.masks: list[int] = []

    def __call__(self, mask: int) -> None:
        self.masks.append(mask)


async def test_edge_is_reported_once_and_again_when_there_is_more(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = pair
    log = Log()
    readiness.watch(ours.fileno(), log, events=READABLE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        assert log.masks == []
        for count in (1, 2):
            peer.send(b"x")
            await wait_all_tasks_blocked(0.001)
            assert log.masks == [READABLE] * count
        nursery.cancel_scope.cancel()


async def test_level_is_reported_until_it_is_dealt_with(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, peer = pair
    left = [3]

    def read(mask: int) -> None:
        assert mask == READABLE
        ours.recv(1)
        left[0] -= 1

    readiness.watch(ours.fileno(), read, events=READABLE, edge_triggered=False)
    peer.send(b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        assert left == [0]
        nursery.cancel_scope.cancel()


async def test_writable_and_closed(readiness: Readiness, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    log = Log()
    readiness.watch(ours.fileno(), log, events=READABLE | WRITABLE | PEER_CLOSED)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        peer.close()
        await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    assert log.masks[0] == WRITABLE
    assert log.masks[-1] & PEER_CLOSED
    assert log.masks[-1] & HANG_UP
    assert not log.masks[-1] & ERROR


async def test_forgotten_descriptor_is_silent_also_in_the_round_in_which_it_was_forgotten(
    readiness: Readiness,
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def forget_all(index: int, _mask: int) -> None:
        called.append(index)
        for ours, _ in pairs:
            readiness.forget(ours.fileno())

    for index, (ours, peer) in enumerate(pairs):
        readiness.watch(ours.fileno(), partial(forget_all, index), events=READABLE)
        peer.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    assert len(called) == 1
    readiness.forget(999_999)
    for ours, peer in pairs:
        ours.close()
        peer.close()


async def test_pause(readiness: Readiness, pair: tuple[socket.socket, socket.socket], mock_clock: MockClock) -> None:
    ours, peer = pair
    rounds: list[float] = []

    def cannot(_mask: int) -> None:
        rounds.append(trio.current_time())
        readiness.pause(1.0)

    readiness.watch(ours.fileno(), cannot, events=READABLE, edge_triggered=False)
    peer.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        for count in (1, 2, 3):
            await wait_all_tasks_blocked(0.001)
            assert len(rounds) == count
            mock_clock.jump(0.9)
            await wait_all_tasks_blocked(0.001)
            assert len(rounds) == count
            mock_clock.jump(0.1)
        nursery.cancel_scope.cancel()


async def test_many_sockets_take_turns(readiness: Readiness) -> None:
    pairs = [socket.socketpair() for _ in range(300)]
    log = Log()
    for ours, peer in pairs:
        readiness.watch(ours.fileno(), log, events=READABLE)
        peer.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    assert len(log.masks) == 300
    for ours, peer in pairs:
        ours.close()
        peer.close()


async def test_callback_that_raises_ends_its_own_socket_only(
    readiness: Readiness, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    log = Log()

    def fails(_mask: int) -> None:
        raise ValueError("a bug")

    callbacks: tuple[Callable[[int], None], ...] = (fails, log)
    for (ours, peer), callback in zip(pairs, callbacks, strict=True):
        readiness.watch(ours.fileno(), callback, events=READABLE)
        peer.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await wait_all_tasks_blocked(0.001)
        pairs[0][1].send(b"y")
        await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    assert len(log.masks) == 1
    assert len([record for record in caplog.records if "internal error" in record.message]) == 1
    for ours, peer in pairs:
        ours.close()
        peer.close()


async def test_socket_that_is_closed_at_once_makes_room_for_the_next_by_its_number(readiness: Readiness) -> None:
    former, latter = Log(), Log()
    closed, peer = socket.socketpair()
    number = closed.fileno()
    readiness.watch(number, former, events=READABLE)
    peer.send(b"x")
    readiness.closes(number)
    closed.close()
    ours, other = socket.socketpair()
    with peer, ours, other:
        assert number in (ours.fileno(), other.fileno())
        new, sender = (ours, other) if ours.fileno() == number else (other, ours)
        readiness.watch(number, latter, events=READABLE)
        sender.send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            await wait_all_tasks_blocked(0.001)
            nursery.cancel_scope.cancel()
        assert new.recv(2) == b"x"
    assert (former.masks, latter.masks) == ([], [READABLE])
