"""Which daemon's socket qrap takes."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from load_qrap import qrap

GREETING = b"\0\0\0\x2aframe"


class FakeDaemon:
    """Greets whom it accepts, or closes the connection."""

    def __init__(
        self,
        path: Path,
        *,
        greeting: bytes = GREETING,
        occupied: bool = False,
        delay_s: float = 0,
    ) -> None:
        self.accepted: list[socket.socket] = []
        self.has_guest = threading.Event()
        self.turned_away = 0
        self._greeting, self._occupied = greeting, occupied
        self._delay, self._delay_s = threading.Event(), delay_s
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in (self._listener, *self.accepted):
            sock.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._delay.wait(self._delay_s)
            if self._occupied:
                self.turned_away += 1
                connection.close()
            else:
                self.accepted.append(connection)
                self.has_guest.set()
                with suppress(BrokenPipeError):
                    connection.sendall(self._greeting)


Start = Callable[..., FakeDaemon]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(tmp_path / f"{number}.socket") for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon's thread has its turn, however busy the machine is."""
    monkeypatch.setattr(qrap, "join", partial(qrap.join, answer_s=30))


@pytest.fixture
def start(paths: list[str]) -> Iterator[Start]:
    """Starts a fake daemon at the path with an index."""
    with ExitStack() as stack:

        def start(index: int, **options: Any) -> FakeDaemon:
            daemon = FakeDaemon(Path(paths[index]), **options)
            stack.callback(daemon.close)
            return daemon

        yield start


@contextmanager
def connected(paths: list[str], *, wait_s: float = 0, **options: Any) -> Iterator[socket.socket]:
    with qrap.connect(paths, wait_s=wait_s, **{"of_anybody": False, **options}) as connection:
        yield connection


def failure(paths: list[str], **options: Any) -> str:
    with pytest.raises(qrap.QrapError) as raised, connected(paths, **options):
        pass
    return str(raised.value)


def leave_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)


def test_what_the_daemon_says_first_is_left_for_qemu(paths: list[str], start: Start) -> None:
    start(0)
    with connected(paths) as connection:
        assert connection.getblocking()
        assert connection.recv(100) == GREETING


def test_a_daemon_that_waits_for_its_guest_to_speak(paths: list[str], start: Start) -> None:
    daemon = start(0, greeting=b"")
    with qrap.join(paths[0], of_anybody=False, answer_s=0.05) as connection:
        connection.sendall(b"x")
        assert daemon.has_guest.wait(30)
        assert daemon.accepted[0].recv(1) == b"x"


def test_a_daemon_that_takes_its_time_to_turn_us_away(paths: list[str], start: Start) -> None:
    start(0, occupied=True, delay_s=0.1)
    with pytest.raises(qrap.OccupiedError):
        qrap.join(paths[0], of_anybody=False)


def test_dead_and_occupied_ones_are_passed_over(paths: list[str], start: Start) -> None:
    leave_dead(paths[0])
    occupied, free = start(1, occupied=True), start(2)
    with connected(paths):
        assert (occupied.turned_away, len(free.accepted)) == (1, 1)


def test_the_first_of_two_is_taken(paths: list[str], start: Start) -> None:
    first, second = start(1), start(2)
    with connected(paths):
        assert (len(first.accepted), len(second.accepted)) == (1, 0)


def test_a_daemon_may_still_be_starting(paths: list[str], start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied = start(0, occupied=True)
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            start(1)

    monkeypatch.setattr(qrap.time, "sleep", sleep)
    with connected(paths, wait_s=60):
        assert naps == [qrap.RETRY_S] * 3
        assert occupied.turned_away == 1  # its log has one line, not four


def test_it_does_not_wait_for_ever(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(qrap, "time", SimpleNamespace(monotonic=lambda: 7.0 + sum(naps), sleep=naps.append))
    assert failure(paths, wait_s=1.5 * qrap.RETRY_S).endswith(f": there is none of {paths[0]} to {paths[-1]}")
    assert naps == [qrap.RETRY_S] * 2


def test_every_socket_that_was_found_is_in_the_complaint(paths: list[str], start: Start) -> None:
    start(0, occupied=True)
    leave_dead(paths[2])
    said = failure(paths)
    assert said.endswith(f": {paths[0]}: has a guest already; {paths[2]}: Connection refused")
    assert "\n" not in said


def test_a_daemon_that_does_not_accept_holds_nobody_up(paths: list[str]) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(paths[0])
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)).connect(paths[0])
        assert failure(paths).endswith(f"{paths[0]}: Resource temporarily unavailable")


def test_a_path_that_was_chosen_and_is_not_there(paths: list[str]) -> None:
    assert failure(paths[:1], of_anybody=True).endswith(f": {paths[0]}: No such file or directory")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_not_a_socket_is_passed_over(paths: list[str], start: Start, kind: str) -> None:
    daemon = start(1)
    if kind == "file":
        Path(paths[0]).touch()
    else:
        Path(paths[0]).symlink_to(paths[1])
    assert "not a socket" in failure(paths[:1])
    assert daemon.accepted == []


def test_a_strangers_socket_is_not_even_touched(
    paths: list[str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = start(0, occupied=True)
    me = os.geteuid() + 1
    monkeypatch.setattr(
        qrap.os,
        "lstat",
        lambda path: os.stat_result((0o140600, 0, 0, 1, me + 1, 0, 0, 0, 0, 0)),
    )
    monkeypatch.setattr(qrap.os, "geteuid", lambda: me)
    assert f"belongs to user {me + 1}" in failure(paths[:1])
    assert strangers.turned_away == 0


def test_a_link_may_be_chosen(paths: list[str], start: Start) -> None:
    start(0)
    link = Path(paths[1])
    link.symlink_to(paths[0])
    with connected([str(link)], of_anybody=True) as connection:
        assert connection.recv(100) == GREETING


def test_where_it_looks() -> None:
    assert qrap.DEFAULT_PATHS[0] == "/tmp/passt_1.socket"
    assert qrap.DEFAULT_PATHS[-1] == "/tmp/passt_64.socket"
