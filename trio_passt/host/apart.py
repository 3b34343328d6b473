"""A function in a process of its own: what it imports takes no memory here.

pyroute2 is needed for a few milliseconds at start and when the host's network changes, and would take 12 MiB for as
long as the daemon runs.
"""

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio

from trio_passt.host.descriptors import close_all_but

T = TypeVar("T")

_READ_BYTES = 65536


def in_child(function: Callable[[], T]) -> T:
    """Call `function` in a forked child and return its result, or raise its exception; both have to be picklable.

    For a process with one thread.  RuntimeError: the child ended without either.  OSError: no process, or no pipe.
    """
    child, reader = _start(function)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    return _result(child, answer)  # type: ignore[no-any-return]


async def while_others_run(function: Callable[[], T]) -> T:
    """The same within Trio, whose other tasks go on meanwhile.  Cancelled, it kills the child.

    A child ends as soon as it has answered, so its end is waited for without Trio.
    """
    child, reader = _start(function)
    answer = b""
    try:
        os.set_blocking(reader, False)
        while True:
            await trio.lowlevel.wait_readable(reader)
            part = os.read(reader, _READ_BYTES)
            answer += part
            if not part:
                break
    except BaseException:
        _end(child)
        raise
    finally:
        os.close(reader)
    return _result(child, answer)  # type: ignore[no-any-return]


def _start(function: Callable[[], object]) -> tuple[int, int]:
    """The child's process ID, and the pipe that it answers into."""
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if child == 0:
        _answer(function, writer)
    os.close(writer)
    return child, reader


def _end(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _wait(child)


def _wait(child: int) -> int:
    """Its status; 0 if the kernel keeps none, because who started us ignores SIGCHLD (wait(2), "NOTES")."""
    with suppress(ChildProcessError):
        return os.waitpid(child, 0)[1]
    return 0


def _result(child: int, answer: bytes) -> Any:
    status = _wait(child)
    if status or not answer:
        raise RuntimeError(f"a child process ended with status {os.waitstatus_to_exitcode(status)}")
    try:
        result, error = pickle.loads(answer)  # our own child's
    except Exception as reason:  # it was killed amid it, and its status is not known
        raise RuntimeError(f"what a child process said can't be read: {reason!r}") from reason
    if error is not None:
        raise error
    return result


def _answer(function: Callable[[], object], writer: int) -> None:
    """The child's whole life: nothing of the parent's clean-up may run in it, nor do signals mean anything to it."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        close_all_but((writer,))  # a guest whose socket is closed by its daemon shall not wait for us
        try:
            answer = pickle.dumps((function(), None))
        except Exception as error:
            answer = pickle.dumps((None, error))
        with open(writer, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        os._exit(status)
