"""A function in a process of its own: what it imports takes no memory here.

pyroute2 is needed for a few milliseconds at start, and would take 12 MiB for as long as the daemon runs.
"""

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_child(function: Callable[[], T]) -> T:
    """Call `function` in a forked child and return its result, or raise its exception; both have to be picklable.

    For a process with one thread.  RuntimeError: the child ended without either.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(function, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not answer:
        raise RuntimeError(f"a child process ended with status {os.waitstatus_to_exitcode(status)}")
    result, error = pickle.loads(answer)  # our own child's
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _answer(function: Callable[[], T], writer: int) -> None:
    """The child's whole life: nothing of the parent's clean-up may run in it."""
    status = 1
    try:
        try:
            answer = pickle.dumps((function(), None))
        except Exception as error:
            answer = pickle.dumps((None, error))
        with open(writer, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        os._exit(status)
