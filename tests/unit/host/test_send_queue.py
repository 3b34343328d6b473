"""The send queue of a real socket: what it takes, what the peer has, and how seldom the kernel is asked."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from harness.noise import noise
from harness.waiting import eventually

from trio_passt.host import sockets
from trio_passt.host.send_queue import LOOK_AGAIN_BYTES, ROUND_TRIP_GOOD_FOR_S, SendQueue

BUFFER_BYTES = 100_000


class Connection:
    """A queue and its peer, which reads when told to."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
            self.socket = socket.create_connection(listener.getsockname())
            self.peer, _ = listener.accept()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.queue = SendQueue(self.socket)

    def fill(self) -> bytes:
        """Write until nothing more is taken."""
        written = b""
        while self.queue.writable:
            piece = noise(30_000, len(written))
            written += piece[: self.queue.write([piece[:10_000], memoryview(piece)[10_000:]])]
        return written

    async def receives(self, data: bytes) -> None:
        received = bytearray()

        def look() -> bool | None:
            try:
                received.extend(self.peer.recv(1 << 20))
            except BlockingIOError:
                return None
            return True

        while len(received) < len(data):
            await eventually(look, "data at the peer")
        assert received == data


@pytest.fixture
def connection() -> Iterator[Connection]:
    ours = Connection()
    with ours.socket, ours.peer:
        yield ours


class Asked:
    """How often the kernel was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.count = 0
        for name in names:
            monkeypatch.setattr(sockets, name, self._counting(getattr(sockets, name)))

    def _counting(self, ask: Any) -> Any:
        def counting(sock: socket.socket) -> Any:
            self.count += 1
            return ask(sock)

        return counting


async def test_pieces_arrive_in_order(connection: Connection) -> None:
    pieces = [b"one", bytearray(b" two"), memoryview(b" three")]
    assert connection.queue.write(pieces) == 13
    assert connection.queue.write([b"!"]) == 1
    await connection.receives(b"one two three!")


async def test_full_queue_says_so_and_is_tried_again_when_told(connection: Connection) -> None:
    queue = connection.queue
    assert queue.writable
    written = connection.fill()
    assert not queue.writable
    await connection.receives(written)
    assert not queue.writable, "nobody has said anything yet"
    queue.has_room_again()
    assert queue.writable
    assert queue.write([b"more"]) == 4
    await connection.receives(b"more")


async def test_a_write_that_is_taken_in_part(connection: Connection) -> None:
    data = noise(3_000_000)
    count = connection.queue.write([data])
    assert 0 < count < len(data)
    assert connection.queue.writable, "only a write that takes nothing shows that it is full"
    while connection.queue.writable:
        count += connection.queue.write([data[count:]])
    assert count < len(data)
    await connection.receives(data[:count])


async def test_free_bytes_follow_what_is_written_and_what_the_peer_takes(connection: Connection) -> None:
    queue = connection.queue
    size = sockets.send_buffer_bytes(connection.socket)
    assert queue.free_bytes() == 0, "nobody has asked yet"
    written = connection.fill()
    assert queue.free_bytes() <= size - sockets.unacknowledged(connection.socket)
    await connection.receives(written)
    await eventually(lambda: sockets.unacknowledged(connection.socket) == 0 or None, "the last acknowledgement")
    queue.has_room_again()
    assert queue.free_bytes() == sockets.send_buffer_bytes(connection.socket)


async def test_room_is_never_said_to_be_more_than_it_is(connection: Connection) -> None:
    queue = connection.queue
    for size in (1, 100, 5000, 3000, LOOK_AGAIN_BYTES, 7):
        assert queue.write([bytes(size)]) == size
        truth = sockets.send_buffer_bytes(connection.socket) - sockets.unacknowledged(connection.socket)
        assert queue.free_bytes() <= truth


async def test_kernel_is_asked_for_room_once_in_a_while(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch, "send_buffer_bytes")
    queue = connection.queue

    def writes(count: int) -> None:
        assert queue.write([bytes(count)]) == count
        connection.peer.recv(count)

    assert queue.free_bytes() == 0
    writes(LOOK_AGAIN_BYTES - 1)
    queue.free_bytes()
    assert asked.count == 0
    writes(1000)
    room = queue.free_bytes()
    assert asked.count == 1
    interval = max(LOOK_AGAIN_BYTES, room // 4)
    for number in range(1, (interval - 1) // 1000 + 1):
        writes(1000)
        assert queue.free_bytes() == room - 1000 * number
    assert asked.count == 1
    writes(1000)
    queue.free_bytes()
    assert asked.count == 2
    queue.free_bytes()
    assert asked.count == 2


async def test_writable_again_while_it_was_writable_asks_nothing(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll says so whenever anything happens at the socket."""
    asked = Asked(monkeypatch, "send_buffer_bytes")
    for _ in range(5):
        connection.queue.has_room_again()
        connection.queue.free_bytes()
    assert asked.count == 0


async def test_peer_that_answered_at_once_is_taken_for_near(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "round_trip_s", lambda _sock: 0.25)
    queue = SendQueue(connection.socket, near_at=100.0)
    assert queue.round_trip_s(100.0 + 0.9 * ROUND_TRIP_GOOD_FOR_S) == 0
    assert queue.round_trip_s(100.0 + 1.1 * ROUND_TRIP_GOOD_FOR_S) == 0.25


async def test_round_trip_is_asked_for_when_the_last_answer_is_old(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.25, 0.5])
    monkeypatch.setattr(sockets, "round_trip_s", lambda _sock: next(told))
    queue = connection.queue
    assert queue.round_trip_s(1000.0) == 0.25
    assert queue.round_trip_s(1000.0 + ROUND_TRIP_GOOD_FOR_S * 0.99) == 0.25
    assert queue.round_trip_s(1000.1 + ROUND_TRIP_GOOD_FOR_S) == 0.5


async def test_round_trip_on_loopback(connection: Connection) -> None:
    assert 0 < connection.queue.round_trip_s(0.0) < 1


async def test_shutting_down_comes_after_all_data(connection: Connection) -> None:
    queue = connection.queue
    written = connection.fill()
    queue.shut_down()
    assert queue.unacknowledged() > 0
    await connection.receives(written)
    assert await eventually(lambda: _end_of(connection.peer), "the end") == b""
    await eventually(lambda: queue.unacknowledged() == 0 or None, "the FIN's acknowledgement")
    with pytest.raises(BrokenPipeError):
        queue.write([b"x"])


def _end_of(peer: socket.socket) -> bytes | None:
    try:
        return peer.recv(1)
    except BlockingIOError:
        return None


async def test_reset_is_an_error(connection: Connection) -> None:
    sockets.reset(connection.peer)
    with pytest.raises(ConnectionResetError):
        connection.queue.write([b"x", b"y"])
