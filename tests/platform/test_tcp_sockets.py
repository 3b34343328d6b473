"""What the TCP data path takes for granted about the kernel's sockets: no documentation promises all of it."""

import errno
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from attrs import frozen

from trio_passt.host import sockets
from trio_passt.host.queue import has_peek_offset
from trio_passt.host.sockets import SO_PEEK_OFF

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@frozen
class Pair:
    """Both ends of a connection; `ours` does not block."""

    ours: socket.socket
    peer: socket.socket


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    family, address = request.param
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as peer:
            ours, _ = listener.accept()
            with ours:
                ours.setblocking(False)
                yield Pair(ours, peer)


def peek(sock: socket.socket, most: int = 100) -> bytes:
    return sock.recv(most, socket.MSG_PEEK)


def fill(sock: socket.socket) -> int:
    """Send until there is no room; how much was sent."""
    sent = 0
    while True:
        try:
            sent += sock.send(bytes(65536))
        except BlockingIOError:
            return sent


@pytest.fixture
def peeking(pair: Pair) -> Pair:
    if not has_peek_offset(pair.ours.family):
        pytest.skip("this kernel has no SO_PEEK_OFF for TCP (Linux 6.9+)")
    pair.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    return pair


class TestPeekOffset:
    def test_peeking_goes_on_where_it_left_off(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abcdef")
        assert peek(peeking.ours, 2) == b"ab"
        assert peek(peeking.ours, 3) == b"cde"
        assert peek(peeking.ours) == b"f"

    def test_at_the_end_of_what_is_there_it_would_block(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abc")
        assert peek(peeking.ours) == b"abc"
        with pytest.raises(BlockingIOError):
            peek(peeking.ours)
        peeking.peer.sendall(b"def")
        assert peek(peeking.ours) == b"def"

    def test_after_a_fin_it_gives_the_data_and_then_the_end(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abc")
        peeking.peer.shutdown(socket.SHUT_WR)
        assert peek(peeking.ours, 2) == b"ab"
        assert peek(peeking.ours) == b"c"
        assert peek(peeking.ours) == b""
        assert peek(peeking.ours) == b""

    def test_reading_moves_the_offset_along(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abcdef")
        assert peek(peeking.ours, 4) == b"abcd"
        assert peeking.ours.recv_into(bytearray(100), 3, socket.MSG_TRUNC) == 3
        assert peeking.ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 1
        assert peek(peeking.ours) == b"ef"

    def test_reading_more_than_was_peeked_leaves_the_offset_at_the_front(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abcdef")
        assert peek(peeking.ours, 1) == b"a"
        assert peeking.ours.recv(3) == b"abc"
        assert peek(peeking.ours) == b"def"

    def test_offset_can_be_set_back(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abcdef")
        assert peek(peeking.ours) == b"abcdef"
        peeking.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 2)
        assert peek(peeking.ours) == b"cdef"

    def test_fin_does_not_count(self, peeking: Pair) -> None:
        peeking.peer.sendall(b"abc")
        peeking.peer.shutdown(socket.SHUT_WR)
        assert peek(peeking.ours) == b"abc"
        assert peeking.ours.recv_into(bytearray(100), 3, socket.MSG_TRUNC) == 3
        assert peek(peeking.ours) == b""


def test_truncating_read_discards_without_a_buffer_of_that_size(pair: Pair) -> None:
    """tcp(7), MSG_TRUNC."""
    pair.peer.sendall(b"abcdef")
    assert pair.ours.recv_into(bytearray(4), 4, socket.MSG_TRUNC) == 4
    assert pair.ours.recv(100) == b"ef"


def test_peeking_without_an_offset_starts_at_the_front(pair: Pair) -> None:
    pair.peer.sendall(b"abc")
    assert peek(pair.ours) == peek(pair.ours) == b"abc"
    pair.peer.shutdown(socket.SHUT_WR)
    assert peek(pair.ours) == b"abc"


def test_unacknowledged_counts_what_the_peer_has_no_room_for(pair: Pair) -> None:
    assert sockets.unacknowledged(pair.ours) == 0
    sent = fill(pair.ours)
    waiting = sockets.unacknowledged(pair.ours)
    assert 0 < waiting < sent
    received = 0
    while received < sent:
        received += len(pair.peer.recv(1 << 20))


def test_unacknowledged_counts_a_fin_until_it_is_acknowledged(pair: Pair) -> None:
    """A peer that reads nothing has no room for the data before the FIN, so the FIN waits too."""
    fill(pair.ours)
    before = sockets.unacknowledged(pair.ours)
    pair.ours.shutdown(socket.SHUT_WR)
    assert sockets.unacknowledged(pair.ours) == before + 1


def test_linger_zero_is_a_reset(pair: Pair) -> None:
    pair.peer.sendall(b"unread")
    sockets.reset(pair.ours)
    with pytest.raises(ConnectionResetError):
        pair.peer.recv(1)


def test_linger_zero_is_a_reset_after_an_orderly_half_close_too(pair: Pair) -> None:
    pair.ours.shutdown(socket.SHUT_WR)
    assert pair.peer.recv(1) == b""
    sockets.reset(pair.ours)
    with pytest.raises(BrokenPipeError):  # at once: after an orderly end, the first write still succeeds
        pair.peer.sendall(b"x")


def test_round_trip_time_is_where_it_is_looked_for(pair: Pair) -> None:
    for _ in range(10):
        pair.peer.sendall(b"x")
        assert select.select([pair.ours], [], [], 5)[0]
        pair.ours.send(pair.ours.recv(1))
        pair.peer.recv(1)
    assert 0 < sockets.round_trip_s(pair.ours) < 5


def test_nested_epoll_is_readable_while_an_event_of_a_socket_in_it_is_not_fetched(pair: Pair) -> None:
    """epoll(7): an epoll descriptor can itself be polled; with edge-triggered events inside, too."""
    with select.epoll() as inner, select.epoll() as outer:
        outer.register(inner.fileno(), select.EPOLLIN)
        inner.register(pair.ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        assert outer.poll(0) == []
        pair.peer.sendall(b"x")
        assert outer.poll(1) == [(inner.fileno(), select.EPOLLIN)]
        assert inner.poll(0) == [(pair.ours.fileno(), select.EPOLLIN)]
        assert outer.poll(0) == []
        assert inner.poll(0) == []
        pair.peer.sendall(b"y")  # more of what was not read is an event again
        assert outer.poll(1) == [(inner.fileno(), select.EPOLLIN)]
        assert inner.poll(0) == [(pair.ours.fileno(), select.EPOLLIN)]
        pair.peer.shutdown(socket.SHUT_WR)
        assert inner.poll(1) == [(pair.ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]


def test_writability_is_an_event_when_there_is_room_again(pair: Pair) -> None:
    with select.epoll() as events:
        events.register(pair.ours.fileno(), select.EPOLLOUT | select.EPOLLET)
        assert events.poll(0) == [(pair.ours.fileno(), select.EPOLLOUT)]
        sent = fill(pair.ours)
        assert events.poll(0) == []
        while sent:
            sent -= len(pair.peer.recv(1 << 20))
        assert events.poll(1) == [(pair.ours.fileno(), select.EPOLLOUT)]


def test_reset_is_an_event_with_the_error_pending(pair: Pair) -> None:
    with select.epoll() as events:
        events.register(pair.ours.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        events.poll(0)
        pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.peer.close()
        ((_, mask),) = events.poll(1)
        assert mask & select.EPOLLERR
        assert mask & select.EPOLLHUP
        error = sockets.pending_error(pair.ours)
        assert isinstance(error, ConnectionResetError)
        assert sockets.pending_error(pair.ours) is None


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_refused_connection_is_told_by_the_call_or_by_the_error_of_the_socket(
    family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family) as nobody, socket.socket(family) as caller:
        nobody.bind((address, 0))
        caller.setblocking(False)
        with select.epoll() as events:
            events.register(caller.fileno(), select.EPOLLOUT | select.EPOLLET)
            number = caller.connect_ex(nobody.getsockname()[:2])
            if number == errno.EINPROGRESS:
                assert events.poll(1)
                number = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert number == errno.ECONNREFUSED
