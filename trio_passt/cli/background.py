"""Going into the background: the process that was started ends when the daemon is ready.

Theory of operation
-------------------
`fork` comes first, before anything of Trio, threads or netlink exists.  It forks twice: the process between makes a new
session and ends at once, so that the daemon, which does not lead that session, can never come by a terminal
(credentials(7)).  The one that was started, the parent, adopts the daemon in init's place until it ends itself
(PR_SET_CHILD_SUBREAPER of prctl(2)), and so can say what became of it.

The daemon does all the work, with the caller's standard error still its own.  Through a pipe it tells its process ID,
and in the end one byte more.  The parent waits for that byte: its exit status is 0 if it came, and the daemon's (never
0) if the pipe closed without it.  So a caller that waits for the parent knows that the daemon is ready, and one that
reads standard error until its end isn't kept waiting by the daemon.
"""

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trio_passt.cli.log import one_line, write_to_stderr
from trio_passt.cli.mode import PROGRAM
from trio_passt.errors import StartupError
from trio_passt.host.descriptors import close_all_but
from trio_passt.host.libc import call

UMASK = 0o077
"""What is created here is for its owner, and has the mode that is asked for."""

_READY = b"\0"
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_PROCESS_ID = struct.Struct("=i")
_PR_SET_CHILD_SUBREAPER = 36


class Child:
    """The side of the fork that becomes the daemon."""

    def __init__(self, report_fd: int, null_fd: int) -> None:
        self._report_fd = report_fd
        self._null_fd = null_fd  # opened as long as there were descriptors to be had

    def detach(self, keep_fd: int | None = None) -> None:
        """Leave the caller's directory and standard descriptors (except `keep_fd`: the guest's socket)."""
        os.chdir("/")
        for standard in {0, 1, 2} - {keep_fd}:
            os.dup2(self._null_fd, standard)
        os.close(self._null_fd)

    def report_ready(self) -> None:
        """Let the parent exit with 0.  Raises `StartupError` if it is gone: nobody knows of this daemon."""
        try:
            os.write(self._report_fd, _READY)
        except OSError as error:
            raise StartupError("the process that started this one is gone") from error
        finally:
            os.close(self._report_fd)


def fork(keep_fd: int | None = None) -> Child | int:
    """In the daemon: its handle, at once.  In the parent: the exit status, when the daemon is ready or has failed.

    The daemon closes what it inherited beyond the standard descriptors and `keep_fd`: the caller's pipes and locks
    are not to live as long as a daemon.
    """
    with suppress(OSError):
        call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        read_fd, write_fd = os.pipe()
        between = os.fork()
    except OSError as error:
        return _cannot_fork(error)
    if between == 0:
        os.close(read_fd)
        _fork_again()
        with suppress(BrokenPipeError):  # then it will not be ready either
            os.write(write_fd, _PROCESS_ID.pack(os.getpid()))
        close_all_but(fd for fd in (write_fd, null_fd, keep_fd) if fd is not None)
        return Child(write_fd, null_fd)
    os.close(null_fd)
    os.close(write_fd)
    _wait(between)
    with open(read_fd, "rb", buffering=0) as pipe:
        return _wait_for_daemon(pipe.fileno())


def reset_inherited() -> int:
    """Undo what is no business of who started us: blocked signals, an ignored SIGCHLD, the mask of new files' modes.

    Returns that mask, which a command that we run has again.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return os.umask(UMASK)


def fill_standard_descriptors() -> None:
    """Open /dev/null on those of 0, 1 and 2 that are closed: no socket may end up there and be taken for stderr.

    Raises OSError where there is no /dev/null.
    """
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    os.close(null)


def _fork_again() -> None:
    """Returns in the daemon only."""
    try:
        os.setsid()
        daemon = os.fork()
    except OSError as error:
        os._exit(_cannot_fork(error))
    if daemon:
        os._exit(0)


def _wait_for_daemon(read_fd: int) -> int:
    started = os.read(read_fd, _PROCESS_ID.size)
    if len(started) < _PROCESS_ID.size:
        return 1  # and why has been said
    (daemon,) = _PROCESS_ID.unpack(started)
    with _signals_forwarded_to(daemon):
        ready = os.read(read_fd, 1)
    return 0 if ready else _status_of_failed(daemon)


def _cannot_fork(error: OSError) -> int:
    write_to_stderr(one_line(f"{PROGRAM}: can't go into the background: {error.strerror}") + "\n")
    return 1


@contextmanager
def _signals_forwarded_to(process: int) -> Iterator[None]:
    """Who ends the waiting parent means the daemon; its end then ends the parent."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    previous = {number: signal.signal(number, forward) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(process: int) -> int | None:
    """Its wait status; `None` if it is not our child."""
    try:
        return os.waitpid(process, 0)[1]
    except ChildProcessError:
        return None


def _status_of_failed(daemon: int) -> int:
    wait_status = _wait(daemon)
    status = 1 if wait_status is None else os.waitstatus_to_exitcode(wait_status)
    if status < 0:
        name = signal.Signals(-status).name
        write_to_stderr(one_line(f"{PROGRAM}: ended by {name} before it was ready") + "\n")
        return 128 - status
    return status or 1
