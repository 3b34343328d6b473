"""What the tests of real namespaces share."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from trio_passt.config import Namespace
from trio_passt.namespace.command import Command
from trio_passt.namespace.enter import Namespaces

WAIT_S = 30.0
"""However busy the machine is."""

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + WAIT_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.002)
    return answer


def children() -> set[int]:
    """Of this process, also those that have ended and were not waited for."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1


@contextmanager
def nothing_left() -> Iterator[None]:
    """Neither processes nor descriptors."""
    before = children(), descriptors()
    yield
    assert (children(), descriptors()) == before


@contextmanager
def new_namespaces() -> Iterator[Namespaces]:
    """With a command that has not been started."""
    command = Command(Namespace(command=("true",)), umask=None, user=None)
    try:
        yield command.namespaces
    finally:
        command.namespaces.close()
        command.close()
