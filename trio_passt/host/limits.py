"""The limits of this process and of its host that many sockets meet, and how they are told to the operator."""

import errno
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from trio_passt.host import sockets

LIMIT_ERRORS: frozenset[int] = sockets.EXHAUSTED | {errno.ENOSPC}
"""Errors that say that a limit has been reached: of descriptors, of memory, of what epoll may watch."""

MOST_FOR_FLOWS = 16384

_SYSCTLS = Path("/proc/sys")
_OF_THE_HOST = {errno.ENFILE: "fs.file-max", errno.ENOSPC: "fs.epoll.max_user_watches"}


def share_for_flows(descriptors: int) -> int:
    """How many of so many descriptors, or sockets, are left to the guest's connections: a quarter, up to 16384."""
    return min(descriptors // 4, MOST_FOR_FLOWS)


def limit_for(descriptors: int) -> int:
    """The limit of open files that has room for so many besides the flows' share."""
    return min(-(-descriptors * 4 // 3), descriptors + MOST_FOR_FLOWS)


def open_descriptors() -> int:
    """How many this process has."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 64


def describe(number: int, *, wanted: int = 0, missing: int = 0) -> str:
    """The limit that an error of `LIMIT_ERRORS` is about, its value, and to what it would have to be raised.

    That is for `wanted` descriptors of this process in all, `missing` of which it does not have.
    """
    if number == errno.EMFILE:
        limit = sockets.descriptor_limit()
        text, name, enough = f"this process may have {limit} files open", "LimitNOFILE= or ulimit -n", limit_for(wanted)
    elif number in _OF_THE_HOST:
        name = _OF_THE_HOST[number]
        value = sysctl(name, 0)
        text, name, enough = f"this host's {name} is {value}", "see sysctl(8)", value + missing + MOST_FOR_FLOWS
    else:
        return "this host has no memory for more sockets"
    return text + (f", {enough} would be enough ({name})" if missing else f" ({name})")


@cache
def unprivileged_port_start() -> int:
    """The first port that anybody may bind (ip(7), ip_unprivileged_port_start)."""
    return sysctl("net.ipv4.ip_unprivileged_port_start", 1024)


def sysctl(name: str, default: int) -> int:
    """The value of a sysctl(8) that is one number; the default if it can't be read."""
    with suppress(OSError, ValueError):
        return int((_SYSCTLS / name.replace(".", "/")).read_text())
    return default
