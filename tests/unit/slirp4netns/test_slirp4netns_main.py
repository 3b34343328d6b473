"""What its callers wait for, around a daemon that does nothing; and wrong usage."""

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_passt import daemon
from trio_passt.cli.options import Options
from trio_passt.config import Config, GuestNetwork
from trio_passt.errors import StartupError
from trio_passt.host import identity
from trio_passt.slirp4netns.main import main, run
from trio_passt.slirp4netns.options import Asked

GUEST = IPv4Address("10.0.2.100")
CONFIG = Config(GuestNetwork())

Done = list[str]


class Listeners:
    """Ports that are forwarded by asking only."""

    def __init__(self, done: Done) -> None:
        self.done = done

    def add(self, forward: Any, *, holder_within_s: float) -> None:
        self.done.append(f"forward {forward.first}")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    """What happens, in order, in a daemon that serves nobody."""
    done: Done = []

    async def run_daemon(
        config: Config,
        *,
        on_open: Callable[[], None],
        on_ready: Callable[[Path | None, list[Any]], None],
        watch: Any,
        namespace: Any,
        beside: Callable[[Any], Awaitable[None]] | None,
    ) -> int:
        on_open()
        done.append("open")
        on_ready(None, [])
        async with trio.open_nursery() as nursery:
            if beside is not None:
                nursery.start_soon(beside, Listeners(done))
            try:
                await trio.sleep_forever()
            finally:
                done.append("closed")
        return 0

    monkeypatch.setattr(daemon, "run", run_daemon)
    monkeypatch.setattr(
        identity, "give_up_capabilities", lambda *, but_binding: done.append(f"give up all but {but_binding}")
    )
    return done


async def serve(asked: Asked, done: Done) -> int:
    return await run(
        asked,
        CONFIG,
        on_open=lambda: done.append("on open"),
        on_ready=lambda path, forwards: done.append("on ready"),
        watch=None,  # type: ignore[arg-type]
        namespace=None,
    )


@pytest.mark.parametrize("how", ["closed", "written to"])
async def test_it_ends_when_exit_fd_has_an_event(done: Done, how: str) -> None:
    read_fd, write_fd = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            statuses = []

            async def serve_() -> None:
                statuses.append(await serve(Asked(Options(), GUEST, exit_fd=read_fd), done))

            nursery.start_soon(serve_)
            await trio.testing.wait_all_tasks_blocked()
            assert done == ["on open", "open", "on ready"]
            assert not statuses
            if how == "closed":
                os.close(write_fd)
            else:
                os.write(write_fd, b"x")
        assert statuses == [0]
        assert done == ["on open", "open", "on ready", "closed"]
    finally:
        os.close(read_fd)
        if how != "closed":
            os.close(write_fd)


async def test_it_is_over_before_it_began(done: Done) -> None:
    """Whoever waits for it has gone already."""
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    try:
        with trio.fail_after(30):
            assert await serve(Asked(Options(), GUEST, exit_fd=read_fd), done) == 0
        assert done[-1] == "closed"
    finally:
        os.close(read_fd)


async def test_ready_is_told_when_the_api_answers(done: Done, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    path = tmp_path / "api"
    asked = Asked(Options(), GUEST, write_fd, None, path, gives_up_capabilities=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, asked, done)
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(read_fd)
            assert done == ["on open", "give up all but True", "open", "on ready"]
            assert os.read(read_fd, 5) == b"1"
            assert os.read(read_fd, 5) == b""
            async with await trio.open_unix_socket(str(path)) as client:
                await client.send_all(
                    b'{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 80, "guest_port": 80}}'
                )
                assert await client.receive_some() == b'{"return":{"id":1}}'
        nursery.cancel_scope.cancel()
    os.close(read_fd)
    assert done[4:] == ["forward 80", "closed"]
    assert not path.exists()


async def test_without_its_api_socket_nothing_begins(done: Done, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="can't listen at the API socket"):
        await serve(Asked(Options(), GUEST, api_socket=tmp_path / "no" / "where"), done)
    assert done == []


# -- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the program changes of its process."""
    umask = os.umask(0o022)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGUSR1)}
    yield
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["x"], "'x' is not a process ID"),
        (["-e", "999999", "17"], "option '--exit-fd 999999': Bad file descriptor"),
        (["17", "a\nb"], "invalid value 'a\\x0ab' for option 'TAPNAME': an interface's name has 1 to 15 bytes"),
    ],
)
def test_wrong_usage_is_one_line_and_status_1(
    capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 1
    out, error = capfd.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert error.startswith(f"trio-slirp4netns: {message}")


@pytest.mark.usefixtures("undisturbed")
def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("slirp4netns version 1.2.0\n")
    assert main(["-h", "--bogus"]) == 0
    assert capfd.readouterr().out.startswith("Usage: trio-slirp4netns [OPTION]... PID|PATH [TAPNAME]\n")


def test_descriptors_of_a_socket_pair_will_do() -> None:
    """Nothing says that they have to be pipes."""
    from trio_passt.slirp4netns.main import check_descriptors

    one, other = socket.socketpair()
    with one, other:
        check_descriptors(Asked(Options(), GUEST, one.fileno(), other.fileno()))
