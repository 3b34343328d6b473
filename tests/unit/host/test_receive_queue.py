"""Peek, then discard: the same with and without SO_PEEK_OFF."""

import random
import socket
from collections.abc import Iterator

import pytest
from harness.noise import noise

from trio_passt.host import queue
from trio_passt.host.queue import ReceiveQueue, has_peek_offset

SCRATCH = 10_000


class Peeking:
    """A queue, and what its peer does."""

    def __init__(self, *, use_peek_offset: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.socket, _ = listener.accept()
        self.socket.setblocking(False)
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scratch = memoryview(bytearray(SCRATCH))
        self.queue = ReceiveQueue(self.socket, self.scratch, use_peek_offset=use_peek_offset)

    def peek(self, offset: int, most: int = 1000) -> bytes | None:
        view = self.queue.peek(offset, most)
        return None if view is None else bytes(view)

    def ends(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        self.queue.at_end = True  # as whoever watches the socket has it from EPOLLRDHUP


@pytest.fixture(params=[True, False], ids=["SO_PEEK_OFF", "no SO_PEEK_OFF"])
def peeking(request: pytest.FixtureRequest) -> Iterator[Peeking]:
    if request.param and not has_peek_offset(socket.AF_INET):
        pytest.skip("this kernel has no SO_PEEK_OFF for TCP (Linux 6.9+)")
    ours = Peeking(use_peek_offset=request.param)
    with ours.peer, ours.socket:
        yield ours


def test_peek_on_and_on(peeking: Peeking) -> None:
    peeking.peer.sendall(b"abcdef")
    assert peeking.peek(0, 2) == b"ab"
    assert peeking.peek(2, 2) == b"cd"
    assert peeking.peek(4) == b"ef"
    assert peeking.peek(6) is None
    peeking.peer.sendall(b"ghi")
    assert peeking.peek(6) == b"ghi"


def test_peek_again_after_a_loss(peeking: Peeking) -> None:
    peeking.peer.sendall(b"abcdef")
    assert peeking.peek(0) == b"abcdef"
    assert peeking.peek(0, 3) == b"abc"
    assert peeking.peek(2) == b"cdef"


def test_discard_moves_the_front(peeking: Peeking) -> None:
    peeking.peer.sendall(b"abcdef")
    assert peeking.peek(0) == b"abcdef"
    peeking.queue.discard(2)
    assert peeking.peek(0) == b"cdef"
    assert peeking.peek(3) == b"f"
    peeking.queue.discard(4)
    assert peeking.peek(0) is None


def test_end(peeking: Peeking) -> None:
    assert peeking.peek(0) is None
    peeking.peer.sendall(b"abc")
    peeking.ends()
    assert peeking.peek(0) == b"abc"
    assert peeking.peek(3) == b""
    assert peeking.peek(1) == b"bc"
    peeking.queue.discard(3)
    assert peeking.peek(0) == b""


def test_end_of_nothing(peeking: Peeking) -> None:
    peeking.ends()
    assert peeking.peek(0) == b""


def test_reset_is_an_error(peeking: Peeking) -> None:
    peeking.socket.sendall(b"unread, so that closing resets")
    peeking.peer.close()
    with pytest.raises(ConnectionResetError):
        peeking.peek(0)


def test_discarding_what_is_not_there_is_an_error(peeking: Peeking) -> None:
    peeking.peer.sendall(b"abc")
    peeking.ends()
    with pytest.raises(ConnectionResetError):
        peeking.queue.discard(4)


def test_one_peek_is_bounded(peeking: Peeking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PEEK_BYTES", 100)
    peeking.peer.sendall(bytes(500))
    assert peeking.peek(0, 400) == bytes(100)
    assert peeking.peek(100, 400) == bytes(100)


def test_discard_more_than_the_scratch_buffer_holds(peeking: Peeking) -> None:
    data = noise(3 * SCRATCH)
    peeking.peer.sendall(data)
    peeking.queue.discard(2 * SCRATCH + 5)
    assert peeking.peek(0, 20) == data[2 * SCRATCH + 5 :][:20]


def test_reach_without_peek_offset_is_the_scratch_buffer() -> None:
    peeking = Peeking(use_peek_offset=False)
    with peeking.peer, peeking.socket:
        peeking.peer.sendall(noise(SCRATCH + 500))
        assert peeking.queue.reach == SCRATCH
        assert peeking.peek(SCRATCH - 10) == noise(SCRATCH + 500)[SCRATCH - 10 : SCRATCH]
        assert peeking.peek(SCRATCH) is None
        peeking.queue.discard(100)
        assert peeking.peek(SCRATCH - 100, 100) == noise(SCRATCH + 500)[SCRATCH : SCRATCH + 100]


def test_any_order_of_peeks_and_discards_sees_the_same_bytes(peeking: Peeking) -> None:
    dice = random.Random(5)
    data = noise(50_000)
    sent = front = 0
    while front < len(data):
        if sent - front < SCRATCH // 2 and dice.random() < 0.3:
            piece = data[sent : sent + dice.randrange(1, 3000)]
            peeking.peer.sendall(piece)
            sent += len(piece)
        offset = dice.randrange(0, sent - front + 1)
        view = peeking.peek(offset, dice.randrange(1, 3000))
        if offset == sent - front:
            assert view is None
            continue
        assert view
        assert view == data[front + offset :][: len(view)]
        if dice.random() < 0.5:
            peeking.queue.discard(offset + len(view))
            front += offset + len(view)


# -- what is known about the next peek ---------------------------------------------------------------------------------


def test_readable_until_a_peek_finds_less_than_it_asked_for(peeking: Peeking) -> None:
    queue = peeking.queue
    assert queue.readable, "nothing is known yet"
    peeking.peer.sendall(b"abcdef")
    assert peeking.peek(0, 2) == b"ab"
    assert queue.readable
    assert peeking.peek(2, 4) == b"cdef"
    assert queue.readable, "all that was asked for was there, and perhaps more"
    assert peeking.peek(2, 5) == b"cdef"
    assert not queue.readable


def test_nothing_there_is_not_readable(peeking: Peeking) -> None:
    assert peeking.peek(0) is None
    assert not peeking.queue.readable
    peeking.peer.sendall(b"abc")
    peeking.queue.readable = True  # as whoever watches the socket says
    assert peeking.peek(0, 3) == b"abc"
    assert peeking.queue.readable
    assert peeking.peek(3) is None
    assert not peeking.queue.readable


def test_readable_at_the_end_however_little_is_found(peeking: Peeking) -> None:
    """The end is still to be seen, and no event will tell of it again."""
    peeking.peer.sendall(b"abc")
    peeking.ends()
    assert peeking.peek(0) == b"abc"
    assert peeking.queue.readable
    assert peeking.peek(3) == b""


def test_readable_behind_urgent_data_however_little_is_found(peeking: Peeking) -> None:
    """A peek stops in front of the urgent byte, and what follows was reported already."""
    sock, queue = peeking.socket, peeking.queue
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    peeking.peer.sendall(b"ordinary")
    peeking.peer.send(b"!", socket.MSG_OOB)
    peeking.peer.sendall(b"and on")
    queue.has_urgent = True
    received = bytearray()
    while len(received) < len(b"ordinary!and on"):  # in however many pieces
        piece = peeking.peek(0)
        assert piece
        assert queue.readable
        queue.discard(len(piece))
        received += piece
    assert received == b"ordinary!and on"


def test_discarding_shows_what_is_behind_where_peeks_start_at_the_front() -> None:
    peeking = Peeking(use_peek_offset=False)
    with peeking.peer, peeking.socket:
        peeking.peer.sendall(b"abc")
        assert peeking.peek(0) == b"abc"
        assert not peeking.queue.readable
        peeking.queue.discard(2)
        assert peeking.queue.readable
        assert peeking.peek(0) == b"c"
        assert not peeking.queue.readable


def test_peek_from_the_front_that_finds_nothing_new_is_not_readable() -> None:
    peeking = Peeking(use_peek_offset=False)
    with peeking.peer, peeking.socket:
        peeking.peer.sendall(b"abc")
        assert peeking.peek(0, 3) == b"abc"
        assert peeking.queue.readable
        assert peeking.peek(3) is None
        assert not peeking.queue.readable
