"""The guest's listening socket, and descriptors that come connected."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import trio

from trio_passt.errors import StartupError
from trio_passt.link import listener
from trio_passt.link.base import LinkClosed
from trio_passt.link.listener import from_fd, from_listening_fd, listen
from trio_passt.wire import framing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.socket"


def connect(path: Path) -> socket.socket:
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        guest.connect(str(path))
    except OSError:
        guest.close()
        raise
    return guest


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()


async def test_accepts_one_guest_after_the_other(path: Path) -> None:
    guests = listen(path)
    assert guests.path == path
    for number in range(3):
        with connect(path) as guest:
            link = await guests.accept()
            guest.sendall(framing.join([bytes([number]) * 20]).data)
            assert list(await link.receive_batch()) == [bytes([number]) * 20]
        with pytest.raises(LinkClosed):
            await link.receive_batch()
        link.close()
    guests.close()
    guests.close()
    with pytest.raises(FileNotFoundError):
        connect(path)


def test_only_the_owner_may_connect(path: Path) -> None:
    before = os.umask(0)
    try:
        guests = listen(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    guests.close()


async def test_close_ends_accept(path: Path) -> None:
    guests = listen(path)
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await guests.accept()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        guests.close()


def test_dead_socket_is_replaced(path: Path) -> None:
    leave_dead_socket(path)
    guests = listen(path)
    connect(path).close()
    guests.close()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("listening", [True, False])
def test_socket_in_use_is_left_alone(path: Path, kind: socket.SocketKind, listening: bool) -> None:
    """Also one that is bound and will listen in a moment, and without a connection to the one that listens."""
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if listening and kind != socket.SOCK_DGRAM:
            other.listen()
            other.setblocking(False)
        with pytest.raises(StartupError, match=f"{path}: another process listens there"):
            listen(path)
        if listening and kind != socket.SOCK_DGRAM:
            with pytest.raises(BlockingIOError):
                other.accept()
        assert path.exists()


def test_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(StartupError, match=f"{path}: there is a file that is not a socket"):
        listen(path)
    assert path.read_text() == "precious"
    with pytest.raises(StartupError, match="not a socket"):
        listen(path.parent)


def test_close_leaves_a_successor_alone(path: Path) -> None:
    first = listen(path)
    path.rename(path.with_name("moved"))
    second = listen(path)
    first.close()
    connect(path).close()
    second.close()
    assert not path.exists()
    second.close()


def test_close_when_the_file_is_gone(path: Path) -> None:
    guests = listen(path)
    path.unlink()
    guests.close()


def test_relative_path_is_removed_from_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    guests = listen(Path(path.name))
    assert guests.path == path
    monkeypatch.chdir("/")
    guests.close()
    assert not path.exists()


def test_paths_that_do_not_work(path: Path) -> None:
    with pytest.raises(StartupError, match="longer than 107 bytes"):
        listen(Path("/tmp") / ("x" * 103))
    with pytest.raises(StartupError, match=f"can't listen on {path}/x: No such file or directory"):
        listen(path / "x")


def test_directory_that_is_not_ours() -> None:
    before = os.geteuid()
    if before == 0:
        os.seteuid(61124)  # root may write anywhere
    try:
        with pytest.raises(StartupError, match="Permission denied"):
            listen(Path("/usr/guest.socket"))
    finally:
        os.seteuid(before)


class TestDefaultPath:
    @pytest.fixture(autouse=True)
    def defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        paths = [tmp_path / f"passt_{number}.socket" for number in range(1, 9)]
        monkeypatch.setattr(listener, "DEFAULT_PATHS", tuple(paths))
        return paths

    def test_first_free_one(self, defaults: list[Path]) -> None:
        defaults[1].write_text("no socket")
        leave_dead_socket(defaults[2])
        opened = [listen(None) for _ in range(3)]
        assert [guests.path for guests in opened] == [defaults[0], defaults[2], defaults[3]]
        for guests in opened:
            guests.close()

    def test_none_left(self, defaults: list[Path]) -> None:
        opened = [listen(None) for _ in defaults]
        with pytest.raises(StartupError, match=r"passt_1.socket to .*passt_8.socket are in use"):
            listen(None)
        for guests in opened:
            guests.close()

    def test_racing_daemons_get_one_each(self, defaults: list[Path]) -> None:
        """Eight at once, where eight dead sockets lie: each path is somebody's, and each listener is reachable."""
        for path in defaults:
            leave_dead_socket(path)
        opened: list[listener.GuestListener] = []
        gate = threading.Barrier(4)

        def start_two() -> None:
            gate.wait()
            opened.extend([listen(None), listen(None)])

        threads = [threading.Thread(target=start_two) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(guests.path for guests in opened) == defaults
        for path in defaults:
            connect(path).close()
        for guests in opened:
            guests.close()
        assert list(defaults[0].parent.iterdir()) == []


def test_the_real_default_paths() -> None:
    assert listener.DEFAULT_PATHS[0] == Path("/tmp/passt_1.socket")
    assert listener.DEFAULT_PATHS[-1] == Path("/tmp/passt_64.socket")


class FlakyListener(socket.socket):
    """A socket whose `accept` fails a few times before it works."""

    def __init__(self, errors: list[OSError]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.errors = errors

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            raise self.errors.pop(0)
        return super().accept()


async def test_accept_waits_when_descriptors_are_short(
    path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [
        OSError(errno.EMFILE, "Too many open files"),
        ConnectionAbortedError(errno.ECONNABORTED, "aborted"),
        BlockingIOError(errno.EAGAIN, "nobody there"),
    ]
    sock = FlakyListener(errors)
    sock.bind(str(path))
    sock.listen()
    guests = listener.GuestListener(sock, path)
    with connect(path):
        (await guests.accept()).close()
    guests.close()
    assert errors == []
    assert trio.current_time() >= listener.RETRY_ACCEPT_S
    assert [record.getMessage() for record in caplog.records] == ["can't accept a guest now: Too many open files"]


async def test_descriptor_that_listens(path: Path) -> None:
    """Its file is somebody else's: it stays, and who made it goes on listening."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        fd = os.dup(theirs.fileno())
        os.set_inheritable(fd, True)
        guests = from_listening_fd(fd)
        assert not os.get_inheritable(fd)
        assert guests.path == path
        guests.give_to(os.geteuid() + 1, os.getegid() + 1)
        assert os.stat(path).st_uid == os.geteuid()
        with connect(path) as guest:
            link = await guests.accept()
            guest.sendall(framing.join([bytes(20)]).data)
            assert len(await link.receive_batch()) == 1
            link.close()
        guests.close()
        connect(path).close()  # the file is there, and somebody listens


async def test_descriptor_that_listens_at_an_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        theirs.bind(f"\0trio-passt-test-{os.getpid()}")
        theirs.listen()
        guests = from_listening_fd(os.dup(theirs.fileno()))
        assert guests.path is None
        guests.give_to(0, 0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
            guest.connect(theirs.getsockname())
            (await guests.accept()).close()
        guests.close()


def test_descriptor_that_does_not_listen() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(StartupError, match=f"descriptor {ours.fileno()}: not a socket that listens"):
        from_listening_fd(ours.fileno())
    with pytest.raises(StartupError, match="descriptor 9999: Bad file descriptor"):
        from_listening_fd(9999)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_file_is_given_to_somebody(path: Path) -> None:
    guests = listen(path)
    guests.give_to(61124, 61125)
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (61124, 61125, 0o600)
    guests.close()
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("other", ["a file", "a link"])
def test_another_file_in_its_place_is_not_given_away(path: Path, other: str) -> None:
    guests = listen(path)
    path.unlink()
    precious = path.with_name("precious")
    precious.write_text("precious")
    if other == "a file":
        path.hardlink_to(precious)
    else:
        path.symlink_to(precious)
    guests.give_to(61124, 61125)
    assert precious.stat().st_uid == 0
    guests.close()
    assert path.lstat().st_uid == 0


def test_a_file_that_is_gone_can_not_be_given_away(path: Path) -> None:
    guests = listen(path)
    path.unlink()
    with pytest.raises(StartupError, match=f"can't give {path} to user 1, group 2: No such file or directory"):
        guests.give_to(1, 2)
    guests.close()


async def test_connected_descriptor() -> None:
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    os.set_inheritable(fd, True)
    link = from_fd(fd)
    assert not os.get_inheritable(fd)
    theirs.sendall(framing.join([bytes(20)]).data)
    assert len(await link.receive_batch()) == 1
    link.close()
    theirs.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_descriptor_that_is_no_guest() -> None:
    with socket.socket() as lonely, pytest.raises(StartupError, match=f"descriptor {lonely.fileno()}: not connected"):
        from_fd(lonely.fileno())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, pytest.raises(StartupError, match="not a stream socket"):
        from_fd(ours.fileno())
    with open("/dev/null") as file, pytest.raises(StartupError, match=r"not a socket|non-socket"):
        from_fd(file.fileno())
    for bad in (-1, 9999):
        with pytest.raises(StartupError, match=f"descriptor {bad}: "):
            from_fd(bad)
