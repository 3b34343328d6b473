"""A function in a child process: its result, its exception, its end."""

import os
import socket
import sys

import pytest

from trio_passt.errors import StartupError
from trio_passt.host.apart import in_child


def test_result_comes_back_and_the_process_was_another() -> None:
    child, parent = in_child(lambda: (os.getpid(), os.getppid()))
    assert parent == os.getpid() != child


def test_what_it_imports_stays_there() -> None:
    def imports() -> bool:
        import colorsys  # noqa: F401

        return "colorsys" in sys.modules

    sys.modules.pop("colorsys", None)
    assert in_child(imports)
    assert "colorsys" not in sys.modules


def test_it_holds_no_descriptors_of_ours() -> None:
    with open(os.devnull) as ours, socket.socket() as also_ours:
        before = {ours.fileno(), also_ours.fileno()}
        theirs = in_child(lambda: set(map(int, os.listdir("/proc/self/fd"))))
    assert not before & theirs


def test_large_results() -> None:
    assert in_child(lambda: bytes(1_000_000)) == bytes(1_000_000)


def test_exception_is_raised_here() -> None:
    def fails() -> None:
        raise StartupError("no netlink")

    with pytest.raises(StartupError, match="no netlink"):
        in_child(fails)


def test_child_that_dies() -> None:
    def dies() -> None:
        os.kill(os.getpid(), 9)

    with pytest.raises(RuntimeError, match="status -9"):
        in_child(dies)


def test_result_that_cannot_be_sent() -> None:
    with pytest.raises(Exception, match=r"pickle|lambda"):
        in_child(lambda: lambda: None)
