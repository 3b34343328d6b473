"""The words that are no options, and the options about the namespace → which namespace is the guest.  Pure."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from trio_passt.cli.values import UsageError, absolute_path, invalid, number
from trio_passt.config import Namespace

NAMED = Path("/run/netns")
"""Where ip-netns(8) keeps the namespaces that have a name."""

LARGEST_PID = 2**22
"""PID_MAX_LIMIT of proc(5), where /proc/sys/kernel/pid_max is described."""


def namespace_path(option: str, value: str, directory: Path) -> Path:
    """A path, which has a slash in it, or the name of ip-netns(8)."""
    if "/" in value:
        return absolute_path(option, value, directory)
    if value in ("", ".", ".."):
        raise invalid(option, value, "a path or a name as in ip-netns(8) is expected")
    return absolute_path(option, value, NAMED)


def namespace(
    words: Sequence[str],
    flags: Collection[str],
    paths: Mapping[str, Path],
    interface: str | None,
    mac: bytes | None,
) -> Namespace:
    """Which one: one word of digits is a process, other words are a command; with `--netns` there are none.

    Raises `UsageError`.
    """
    path, user_path = paths.get("netns"), paths.get("userns")
    pid = process(words[0]) if len(words) == 1 and words[0].isascii() and words[0].isdigit() else None
    command = tuple(words) if pid is None else ()
    if path is not None and words:
        what = "a process ID" if pid is not None else "a command"
        raise UsageError(f"option '--netns {path}' and {what} ('{words[0]}') contradict each other")
    if pid is None and path is None and user_path is not None:
        raise UsageError(
            f"option '--userns {user_path}' is for a namespace that is there: a process ID or '--netns' is expected"
        )
    is_new = pid is None and path is None
    return Namespace(
        command=command,
        pid=pid,
        path=path,
        user_path=user_path,
        joins_user="netns-only" not in flags,
        quits="no-netns-quit" not in flags,
        interface=interface,
        mac=mac,
        configures="config-net" in flags or (is_new and "no-config-net" not in flags),
        copies_addresses="no-copy-addrs" not in flags,
        copies_routes="no-copy-routes" not in flags,
        splices="no-splice" not in flags,
        loopback_to_loopback="host-lo-to-ns-lo" in flags,
    )


def process(word: str) -> int:
    """A process ID.  Raises `UsageError`."""
    pid = number(word)
    if pid is None or not 1 <= pid <= LARGEST_PID:
        raise UsageError(f"'{word}' is not a process ID")
    return pid
