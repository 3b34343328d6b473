"""When a namespace that was joined is gone: with the process that was named, or from the path that was named.

Theory of operation
-------------------
A namespace does not end as long as somebody is in it, and our own agent is.  What ends is the way that it was named.
A process's end makes its pidfd_open(2) readable.  A path is looked at again whenever something goes from its directory
(inotify(7)) or a file system is mounted or unmounted anywhere (poll(2) on /proc/self/mountinfo, see
proc_pid_mountinfo(5)): `ip netns delete` does both.  It is the same as long as the file has the same device and inode.

A path below /proc is a process's, which is watched in its place.
"""

import os
import re
import select
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import trio

from trio_passt.config import Namespace
from trio_passt.errors import StartupError
from trio_passt.host.libc import call

_IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x80, 0x200, 0x400, 0x800
_IN_ONLYDIR = 0x01000000
_SOMETHING_GOES = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR

_OF_A_PROCESS = re.compile(r"/proc/(\d+)/(task/\d+/)?ns/net")
_MOST_LINKS = 40
_READ_BYTES = 65536


class Departure(Protocol):
    """Something to wait for."""

    async def wait(self) -> str:
        """Returns when it has come, with a reason for the log."""

    def close(self) -> None:
        """Wait no more."""


class ProcessEnds:
    """A process that need not be a child."""

    def __init__(self, pid: int) -> None:
        """Raises `StartupError`."""
        self._pid = pid
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise StartupError(f"there is no process {pid}") from error
        except OSError as error:
            raise StartupError(f"can't watch process {pid}: {error.strerror}") from error

    async def wait(self) -> str:
        """It has ended."""
        await trio.lowlevel.wait_readable(self._descriptor)
        return f"process {self._pid} has ended"

    def close(self) -> None:
        """Watch no more."""
        os.close(self._descriptor)


class PathGoes:
    """A path at which another file is, or none, than there was at first."""

    def __init__(self, path: Path) -> None:
        """Raises `StartupError`."""
        self._path = path
        with ExitStack() as opened:
            try:
                self._first = _identity(path)
                self._inotify = call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
                opened.callback(os.close, self._inotify)
                call("inotify_add_watch", self._inotify, os.fsencode(_followed(path).parent), _SOMETHING_GOES)
                mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, mounts)
                self._both = select.epoll()
                opened.callback(self._both.close)
                self._both.register(self._inotify, select.EPOLLIN)
                self._both.register(mounts, select.EPOLLPRI)
            except OSError as error:
                raise StartupError(f"can't watch {path}: {error.strerror}") from error
            self._opened = opened.pop_all()

    async def wait(self) -> str:
        """It is gone."""
        while _identity(self._path) == self._first:
            await trio.lowlevel.wait_readable(self._both.fileno())
            self._forget_events()
        return f"{self._path} is gone"

    def close(self) -> None:
        """Watch no more."""
        self._opened.close()

    def _forget_events(self) -> None:
        self._both.poll(0)
        try:
            os.read(self._inotify, _READ_BYTES)
        except BlockingIOError:
            return


class Never:
    """What is not waited for."""

    async def wait(self) -> str:
        """Only cancelled."""
        await trio.sleep_forever()

    def close(self) -> None:
        """Nothing is open."""


def departure(wanted: Namespace) -> Departure:
    """Of a namespace that was not made here.  Raises `StartupError`."""
    if not wanted.quits:
        return Never()
    if wanted.pid is not None:
        return ProcessEnds(wanted.pid)
    assert wanted.path is not None
    if process := _OF_A_PROCESS.fullmatch(str(_followed(wanted.path))):
        return ProcessEnds(int(process[1]))
    return PathGoes(wanted.path)


def _followed(path: Path) -> Path:
    """The path without symbolic links, but a namespace's in /proc, which leads to no path."""
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        if _OF_A_PROCESS.fullmatch(str(path)) or not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return path


def _identity(path: Path) -> tuple[int, int] | None:
    """None: there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
