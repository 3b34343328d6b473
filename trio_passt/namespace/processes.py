"""Processes that are forked before Trio runs: small ones, with nothing of ours open, that never return."""

import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn

from trio_passt.host.descriptors import close_all_but
from trio_passt.host.libc import call

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

END_WITHIN_S = 1.0
_LOOK_AGAIN_S = 0.001

NOT_OURS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal or a user sends to the whole process group is for the daemon, or for the command."""


def fork(task: Callable[[], int], *kept: int) -> int:
    """Have `task` done by a child, whose exit status it returns; the child's process ID.

    Of descriptors it has the standard ones and those that are `kept`.  Raises OSError.
    """
    child = os.fork()
    if child == 0:
        _live(task, kept)
    return child


def die_with_parent() -> None:
    """SIGKILL when the parent ends, unless this process changes its credentials after this (prctl(2)).

    That the parent has ended already has to be noticed in another way.
    """
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def be_dumpable(*, is_dumpable: bool) -> None:
    """Whether others of the same user may look into this process, trace it, or take its descriptors (ptrace(2)).

    If not, root in a user namespace below the first one may not either.  Its files in /proc are root's then, so it can
    write no map of user IDs (proc(5)).  The kernel sets this anew when credentials change, and on execve(2): a command
    is like any other.
    """
    call("prctl", _PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0)


def without_standard_descriptors() -> None:
    """For one that outlives who waits for the end of what is written there."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def status_of(process: int) -> int:
    """Wait for a child: its exit status as a shell has it, 128 + N if it was ended by signal N.

    1 if it is none, because who started us ignores SIGCHLD (wait(2), "NOTES").
    """
    try:
        return shell_status(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return 1


def end(process: int, grace_s: float = 0.0) -> None:
    """Kill a child that has not ended by itself after `grace_s`, and wait for it, but not for long.

    That may be denied to us, when we have become another user since; it ends by itself then, if nobody stops it.
    """
    if not _ends_within(process, grace_s):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
        _ends_within(process, END_WITHIN_S)


def _ends_within(process: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if os.waitpid(process, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)


def shell_status(wait_status: int) -> int:
    """The exit status, or 128 + the signal's number."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def _live(task: Callable[[], int], kept: Collection[int]) -> NoReturn:
    status = 1
    try:
        gc.disable()  # it would write to memory that is shared with the parent as long as nobody does
        signal.set_wakeup_fd(-1)
        for number in NOT_OURS:
            signal.signal(number, signal.SIG_IGN)
        close_all_but(kept)
        status = task()
    except (OSError, KeyboardInterrupt):
        pass  # who misses it says so; our log's descriptors are closed
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(status)
