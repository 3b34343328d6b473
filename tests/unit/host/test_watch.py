"""When to look at the host again: a kernel that is played by the test, real files, and a clock that jumps."""

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from netlink_messages import DELROUTE, address, link, route

from trio_passt.host import watch as module
from trio_passt.host.watch import MAX_SETTLE_S, RESOLV_CONF_INTERVAL_S, SETTLE_S, HostWatch

LONG_S = 250.0

pytestmark = pytest.mark.usefixtures("jumping_clock")


class Kernel:
    """The other end of a netlink socket."""

    def __init__(self) -> None:
        self._end, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._errors: list[OSError] = []
        self.bound: tuple[int, int] | None = None

    def says(self, *messages: bytes) -> None:
        self._end.send(b"".join(messages))

    def has(self, number: int) -> None:
        """The next read fails."""
        self._errors.append(OSError(number, os.strerror(number)))
        self.says(b"")

    def watched(self, resolv_conf: Path) -> HostWatch:
        """A watch that has this end."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "socket", lambda *_arguments: self)
            return HostWatch(resolv_conf)

    def close_end(self) -> None:
        self._end.close()

    # What `HostWatch` has.

    def bind(self, address: tuple[int, int]) -> None:
        self.bound = address

    def setsockopt(self, *_option: int) -> None:
        """Groups beyond those of `bind`."""

    def recv(self, size: int) -> bytes:
        if self._errors:
            raise self._errors.pop(0)
        return self._socket.recv(size)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    played = Kernel()
    yield played
    played.close()
    played.close_end()


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    """A file, last written long ago."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")
    os.utime(path, (1, 1))
    return path


@pytest.fixture
def watch(kernel: Kernel, resolv_conf: Path) -> Iterator[HostWatch]:
    with kernel.watched(resolv_conf) as watch:
        yield watch


async def changes(watch: HostWatch, within_s: float = LONG_S) -> float | None:
    """After how many seconds the host has changed; None if it does not."""
    start = trio.current_time()
    with trio.move_on_after(within_s):
        await watch.changed()
        return trio.current_time() - start
    return None


async def at(schedule: dict[float, Callable[[], None]]) -> None:
    """Do these things at these times from now."""
    start = trio.current_time()
    for when, what in schedule.items():
        await trio.sleep_until(start + when)
        what()


async def changes_while(watch: HostWatch, schedule: dict[float, Callable[[], None]]) -> float | None:
    """As `changes`, while things happen."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, schedule)
        found = await changes(watch)
        nursery.cancel_scope.cancel()
    return found


class TestKernel:
    def test_what_is_asked_for(self, watch: HostWatch, kernel: Kernel) -> None:
        """Links, addresses and routes, of both families: rtnetlink(7)."""
        assert kernel.bound == (0, 0x1 | 0x10 | 0x40 | 0x100 | 0x400)

    async def test_nothing_is_no_change(self, watch: HostWatch) -> None:
        assert await changes(watch) is None

    async def test_news_when_it_is_quiet_again(self, watch: HostWatch, kernel: Kernel) -> None:
        found = await changes_while(watch, {10.0: lambda: kernel.says(route())})
        assert found == pytest.approx(10.0 + SETTLE_S)

    async def test_news_since_the_watch_was_made(self, watch: HostWatch, kernel: Kernel) -> None:
        """Before anybody waits: so nothing is missed between the first look and the first wait."""
        kernel.says(route())
        await trio.sleep(60)
        assert await changes(watch) == pytest.approx(SETTLE_S)

    async def test_one_thing_after_the_other_is_one_change(self, watch: HostWatch, kernel: Kernel) -> None:
        """A lease that is renewed by taking the address away and giving it back."""
        schedule = {0.0: lambda: kernel.says(link(flags=0)), 0.2: lambda: kernel.says(link())}
        schedule[0.4] = lambda: kernel.says(address(), route())
        assert await changes_while(watch, schedule) == pytest.approx(0.4 + SETTLE_S)
        assert await changes(watch) is None

    async def test_host_that_is_never_quiet(self, watch: HostWatch, kernel: Kernel) -> None:
        schedule = {step * 0.2: lambda step=step: kernel.says(route(metric=step)) for step in range(100)}
        found = await changes_while(watch, schedule)
        assert found == pytest.approx(MAX_SETTLE_S)

    async def test_what_came_after_that_counts_for_the_next_time(self, watch: HostWatch, kernel: Kernel) -> None:
        kernel.says(route())
        assert await changes(watch) is not None
        kernel.says(route(DELROUTE))
        assert await changes(watch) == pytest.approx(SETTLE_S)
        assert await changes(watch) is None

    async def test_refreshes_are_no_change_and_do_not_delay_one(self, watch: HostWatch, kernel: Kernel) -> None:
        kernel.says(address())
        assert await changes(watch) is not None
        refreshes = {step * 0.1: lambda: kernel.says(address(lifetimes_s=(1, 1))) for step in range(1000)}
        assert await changes_while(watch, refreshes | {200.0: lambda: kernel.says(route())}) == pytest.approx(
            200.0 + SETTLE_S
        )
        kernel.says(route(DELROUTE))
        assert await changes_while(watch, refreshes) == pytest.approx(SETTLE_S)

    async def test_more_was_said_than_there_was_room_for(self, watch: HostWatch, kernel: Kernel) -> None:
        """What was lost is unknown, and what was said before it worth nothing."""
        kernel.says(route())
        assert await changes(watch) is not None
        kernel.has(errno.ENOBUFS)
        assert await changes(watch) is not None
        kernel.says(route())
        assert await changes(watch) is not None
        assert await changes(watch) is None

    async def test_messages_behind_those_that_were_lost(self, watch: HostWatch, kernel: Kernel) -> None:
        kernel.has(errno.ENOBUFS)
        kernel.says(route())
        assert await changes(watch) is not None
        kernel.says(route())
        assert await changes(watch) is None

    async def test_other_errors_are_not_hidden(self, watch: HostWatch, kernel: Kernel) -> None:
        kernel.has(errno.ENOMEM)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            await watch.changed()


class TestWithoutNetlink:
    """Some sandboxes have none."""

    def refuse(self, *_arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async def test_the_file_only(
        self, monkeypatch: pytest.MonkeyPatch, resolv_conf: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", self.refuse)
            watch = HostWatch(resolv_conf)
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.WARNING, "changes of the host's network will go unnoticed: no netlink: Permission denied")
        ]
        assert await changes(watch) is None
        cut_short_in_the_same_moment(resolv_conf)
        assert await changes(watch) is not None
        assert await changes(watch) is None
        watch.close()

    async def test_no_groups(self, monkeypatch: pytest.MonkeyPatch, kernel: Kernel, resolv_conf: Path) -> None:
        monkeypatch.setattr(kernel, "bind", self.refuse)
        with kernel.watched(resolv_conf) as watch:
            assert kernel.fileno() == -1  # closed
            assert await changes(watch) is None


def test_closed_at_the_end(kernel: Kernel, resolv_conf: Path) -> None:
    with kernel.watched(resolv_conf) as watch:
        assert kernel.fileno() >= 0
    assert kernel.fileno() == -1
    watch.close()  # again


def descriptors() -> dict[int, str]:
    """Those that are open, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def test_real_socket_is_not_handed_on_to_other_programs_and_is_closed() -> None:
    before = descriptors()
    with HostWatch(Path("/nonexistent")):
        (opened,) = descriptors().keys() - before.keys()
        assert not os.get_inheritable(opened)
    assert descriptors() == before


def replaced_by_rename(path: Path) -> None:
    other = path.with_name("new")
    other.write_text("nameserver 192.0.2.54\n")
    os.utime(other, (1, 1))  # the same size and time
    other.rename(path)


def rewritten_in_place(path: Path) -> None:
    path.write_text("nameserver 192.0.2.54\n")  # the same size


def cut_short_in_the_same_moment(path: Path) -> None:
    path.write_text("")
    os.utime(path, (1, 1))


def replaced_by_link(path: Path) -> None:
    other = path.with_name("stub.conf")
    other.write_text("nameserver 127.0.0.53\n")
    path.unlink()
    path.symlink_to(other)


def made_readable(path: Path) -> None:
    path.chmod(0o604)


def made_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "run" / "resolv.conf")


@pytest.mark.parametrize(
    "change",
    [
        replaced_by_rename,
        rewritten_in_place,
        cut_short_in_the_same_moment,
        replaced_by_link,
        made_readable,
        made_dangling,
        Path.unlink,
    ],
    ids=lambda change: change.__name__,
)
class TestResolvConf:
    async def test_seen_soon_and_once(
        self, watch: HostWatch, resolv_conf: Path, change: Callable[[Path], None]
    ) -> None:
        found = await changes_while(watch, {60.5: lambda: change(resolv_conf)})
        assert found is not None
        assert 60.5 < found <= 60.5 + RESOLV_CONF_INTERVAL_S + SETTLE_S
        assert await changes(watch) is None

    async def test_seen_while_the_kernel_chatters(
        self, watch: HostWatch, kernel: Kernel, resolv_conf: Path, change: Callable[[Path], None]
    ) -> None:
        kernel.says(address())
        assert await changes(watch) is not None
        schedule = {step * 0.1: lambda: kernel.says(address()) for step in range(1000)}
        schedule[3.05] = lambda: change(resolv_conf)
        found = await changes_while(watch, dict(sorted(schedule.items())))
        assert found is not None
        assert found <= 3.05 + RESOLV_CONF_INTERVAL_S + SETTLE_S

    async def test_together_with_news_of_the_kernels_it_is_one_change(
        self, watch: HostWatch, kernel: Kernel, resolv_conf: Path, change: Callable[[Path], None]
    ) -> None:
        """A VPN comes up: first its interface and route, then its nameserver."""
        schedule = {1.0: lambda: kernel.says(link(), route()), 1.2: lambda: change(resolv_conf)}
        assert await changes_while(watch, schedule) == pytest.approx(1.0 + SETTLE_S)
        assert await changes(watch) is None

    async def test_since_the_watch_was_made(
        self, watch: HostWatch, resolv_conf: Path, change: Callable[[Path], None]
    ) -> None:
        change(resolv_conf)
        assert await changes(watch) == pytest.approx(SETTLE_S)


async def test_resolv_conf_that_is_written_in_two_steps_is_one_change(watch: HostWatch, resolv_conf: Path) -> None:
    schedule = {
        RESOLV_CONF_INTERVAL_S - 0.1: lambda: cut_short_in_the_same_moment(resolv_conf),
        RESOLV_CONF_INTERVAL_S + 0.1: lambda: rewritten_in_place(resolv_conf),
    }
    assert await changes_while(watch, schedule) == pytest.approx(RESOLV_CONF_INTERVAL_S + SETTLE_S)
    assert await changes(watch) is None


async def test_file_that_appears(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    with kernel.watched(path) as watch:
        assert await changes(watch) is None
        path.write_text("")
        assert await changes(watch) is not None
        assert await changes(watch) is None


async def test_dangling_link_whose_target_appears(kernel: Kernel, tmp_path: Path) -> None:
    """/etc/resolv.conf → ../run/systemd/resolve/stub-resolv.conf, before systemd-resolved runs."""
    path = tmp_path / "resolv.conf"
    target = tmp_path / "run" / "resolve" / "stub.conf"
    path.symlink_to(target)
    with kernel.watched(path) as watch:
        target.parent.mkdir(parents=True)
        assert await changes(watch) is None
        target.write_text("nameserver 127.0.0.53\n")
        assert await changes(watch) is not None
        target.unlink()
        assert await changes(watch) is not None
        assert await changes(watch) is None


async def test_file_that_is_read_is_not_changed(watch: HostWatch, resolv_conf: Path) -> None:
    os.utime(resolv_conf, (2, 1))
    assert await changes(watch) is None


def test_the_intervals_are_what_the_documentation_says() -> None:
    assert module.SETTLE_S < module.MAX_SETTLE_S <= module.RESOLV_CONF_INTERVAL_S


async def test_cancelled_and_asked_again(watch: HostWatch, kernel: Kernel) -> None:
    assert await changes(watch, within_s=1.0) is None
    kernel.says(route())
    assert await changes(watch) == pytest.approx(SETTLE_S)
