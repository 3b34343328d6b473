"""Descriptors that can't be sent just now: too many of the user's are on their way (unix(7))."""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from trio_passt.namespace import passing

send_fds = socket.send_fds


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the next attempts raise."""
    numbers: list[int] = []

    def refuse(connection: socket.socket, messages: Sequence[bytes], descriptors: list[int]) -> int:
        if numbers:
            number = numbers.pop()
            raise OSError(number, os.strerror(number))
        return send_fds(connection, messages, descriptors)

    monkeypatch.setattr("socket.send_fds", refuse)
    return numbers


def test_they_are_sent_when_there_is_room_again(full: list[int]) -> None:
    with ExitStack() as opened:
        ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sent = opened.enter_context(open(os.devnull, "rb"))
        full += [errno.ETOOMANYREFS] * 3
        passing.send(ours, b"here", [sent.fileno()])
        message, descriptors = passing.receive(theirs, 100, 1)
        opened.callback(passing.close_all, descriptors)
        assert message == b"here"
        assert [os.path.samestat(os.fstat(one), os.fstat(sent.fileno())) for one in descriptors] == [True]


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.EPIPE])
def test_what_lasts_is_told(full: list[int], number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "PATIENCE_S", 0.0)
    full += [number] * 2
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="ulimit -n" if number == errno.ETOOMANYREFS else "pipe") as caught:
        passing.send(ours, b"here", [0])
    assert caught.value.errno == number
    assert len(full) == 1, "once only"
