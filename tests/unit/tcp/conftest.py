"""Fixtures of the TCP tests."""

import socket

import pytest

from trio_passt.host import sockets


@pytest.fixture
def fixed_send_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The send buffers of the daemon's sockets do not grow, so that it is soon known how much they take."""
    prepare = sockets.prepare_tcp

    def and_fix_the_buffer(sock: socket.socket) -> None:
        prepare(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)

    monkeypatch.setattr(sockets, "prepare_tcp", and_fix_the_buffer)
