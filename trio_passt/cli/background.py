"""Going into the background: two processes, the first of which ends when the second is ready.

Theory of operation
-------------------
`fork` comes first, before anything of Trio, threads or netlink exists.  The child does all the work, with the
caller's standard error still its own, and in the end says one byte through a pipe.  The parent waits for that
byte: its exit status is 0 if it came, and the child's (never 0) if the pipe closed without it.  So a caller that
waits for the parent knows that the daemon is ready, and one that reads standard error until its end isn't kept
waiting by the daemon.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trio_passt.cli.log import one_line, write_to_stderr
from trio_passt.cli.messages import PROGRAM
from trio_passt.errors import StartupError

_READY = b"\0"
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Child:
    """The side of the fork that becomes the daemon."""

    def __init__(self, report_fd: int) -> None:
        self._report_fd = report_fd

    def detach(self, keep_fd: int | None = None) -> None:
        """Leave the caller's session, directory and standard descriptors (except `keep_fd`: the guest's socket)."""
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for standard in {0, 1, 2} - {keep_fd}:
            os.dup2(null, standard)
        os.close(null)

    def report_ready(self) -> None:
        """Let the parent exit with 0.  Raises `StartupError` if it is gone: nobody knows of this daemon."""
        try:
            os.write(self._report_fd, _READY)
        except OSError as error:
            raise StartupError("the process that started this one is gone") from error
        finally:
            os.close(self._report_fd)


def fork(keep_fd: int | None = None) -> Child | int:
    """In the child: its handle, at once.  In the parent: the exit status, when the child is ready or has failed.

    The child closes what it inherited beyond the standard descriptors and `keep_fd`: the caller's pipes and locks
    are not to live as long as a daemon.
    """
    try:
        read_fd, write_fd = os.pipe()
        child = os.fork()
    except OSError as error:
        write_to_stderr(one_line(f"{PROGRAM}: can't go into the background: {error.strerror}") + "\n")
        return 1
    if child == 0:
        _close_all_but(write_fd, keep_fd)
        return Child(write_fd)
    os.close(write_fd)
    with _signals_forwarded_to(child):
        ready = os.read(read_fd, 1)
    os.close(read_fd)
    return 0 if ready else _status_of_failed(child)


def fill_standard_descriptors() -> None:
    """Open /dev/null on those of 0, 1 and 2 that are closed: no socket may end up there and be taken for stderr."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    os.close(null)


def _close_all_but(*kept: int | None) -> None:
    start = 3
    for fd in sorted({fd for fd in kept if fd is not None and fd > 2}):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


@contextmanager
def _signals_forwarded_to(process: int) -> Iterator[None]:
    """Who ends the waiting parent means the child; its end then ends the parent."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    previous = {number: signal.signal(number, forward) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _status_of_failed(child: int) -> int:
    try:
        _, wait_status = os.waitpid(child, 0)
    except ChildProcessError:  # who started us ignores SIGCHLD, and so the kernel keeps no status
        return 1
    status = os.waitstatus_to_exitcode(wait_status)
    if status < 0:
        name = signal.Signals(-status).name
        write_to_stderr(one_line(f"{PROGRAM}: ended by {name} before it was ready") + "\n")
        return 128 - status
    return status or 1
