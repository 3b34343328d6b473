"""Sockets that can't be had leave nothing behind; what the kernel does is in `tests/platform`."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.queue import has_peek_offset

BROADCAST = Endpoint(ip_address("255.255.255.255").packed, 9)
"""A destination that the kernel refuses before anything leaves the machine."""


@pytest.mark.parametrize("start", [sockets.start_tcp_connection, sockets.open_udp])
def test_socket_that_cannot_be_connected_is_closed(start: Callable[[Endpoint], socket.socket]) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"unreachable|denied"):
        start(BROADCAST)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tcp_sockets_are_prepared(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        endpoint = Endpoint(ip_address(address).packed, server.getsockname()[1])
        with sockets.start_tcp_connection(endpoint) as sock:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            sockets.prepare_tcp(sock)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_kernel_without_peek_offset(monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily) -> None:
    def unknown(_sock: socket.socket, _level: int, option: int, _value: int) -> None:
        assert option == sockets.SO_PEEK_OFF
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(socket.socket, "setsockopt", unknown)
    assert has_peek_offset.__wrapped__(family) is False


def test_reset_of_a_socket_that_is_closed_already() -> None:
    sock = socket.socket()
    sock.close()
    sockets.reset(sock)


def test_connection_to_this_machine_is_there_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = Endpoint(ip_address("127.0.0.1").packed, server.getsockname()[1])
        with sockets.start_tcp_connection(endpoint) as sock:
            assert sockets.is_connected(sock, endpoint)
            assert sockets.is_connected(sock, endpoint), "asked again"


def test_connection_that_nobody_answers_yet() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as others:
        endpoint = Endpoint(ip_address("127.0.0.1").packed, server.getsockname()[1])
        for _ in range(5):  # the kernel takes one or two beyond the backlog, then it ignores SYNs
            sock = others.enter_context(sockets.start_tcp_connection(endpoint))
        assert not sockets.is_connected(sock, endpoint)
        assert sockets.pending_error(sock) is None, "to ask does no harm"


def test_connection_that_was_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = Endpoint(ip_address("127.0.0.1").packed, server.getsockname()[1])
    with socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect_ex(endpoint.sockaddr())
        with pytest.raises(ConnectionRefusedError, match="refused"):
            sockets.is_connected(sock, endpoint)
