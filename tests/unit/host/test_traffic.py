"""What the kernel counts of a connection."""

import socket
import time
from collections.abc import Iterator

import pytest

from trio_passt.host import traffic
from trio_passt.host.traffic import Traffic

TICK_S = 0.02
"""What the kernel's clock for this may be wrong by: its ticks are 1/CONFIG_HZ apart."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            one.settimeout(30)
            other.settimeout(30)
            yield one, other


def counted(sock: socket.socket) -> tuple[int, int]:
    passed = traffic.of(sock)
    return passed.sent_bytes, passed.received_bytes


def test_data_both_ways_and_an_end(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    assert counted(one) == counted(other) == (0, 0), "a SYN is no data"
    one.sendall(bytes(100_000))
    got = 0
    while got < 100_000:
        got += len(other.recv(100_000))
    other.sendall(b"thanks")
    assert one.recv(100) == b"thanks"
    assert counted(one) == (100_000, 6)
    assert counted(other) == (6, 100_000)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    assert counted(one) == (100_000, 6)
    assert counted(other) == (6, 100_001), "a FIN counts where it comes"


def test_idle_time_is_since_data_passed_either_way(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    time.sleep(0.05)
    assert traffic.of(one).idle_s >= 0.05 - TICK_S
    since = time.monotonic()
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    for end in ends:
        assert traffic.of(end).idle_s <= time.monotonic() - since + TICK_S


def test_an_older_kernel_says_less() -> None:
    """struct tcp_info has grown at its end."""

    class Old:
        def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
            return b"\0" * 44 + (1500).to_bytes(4, "little") + b"\0" * 4 + (700).to_bytes(4, "little") + b"\0" * 48

    assert traffic.of(Old()) == Traffic(0, 0, 0.7)  # type: ignore[arg-type]
