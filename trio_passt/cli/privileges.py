"""Who a daemon that was started as root goes on as: `--runas`, by default `nobody`.

Theory of operation
-------------------
All that needs root (ports below 1024, files in directories of root's, the socket) is opened before; then the user
changes once, for good, before anybody is told that the daemon is ready.  Capabilities go with it, also those that
would stay because the one who had them was not root, and no program that is executed could bring them back
(PR_SET_NO_NEW_PRIVS).  One stays if ports are to be bound later, too (`-t auto`, slirp4netns' API), for those below
1024: CAP_NET_BIND_SERVICE.  The kernel makes such a process one that others of the same user can't trace
(PR_SET_DUMPABLE of prctl(2)), which is left so: `nobody` may be several.

What is imported later, by the process that looks at the host's network again, may lie where the new user can't read: an
interpreter below root's home.  So the first look is that user's, too, and if it fails, all of it is imported before.

Root of a user namespace is an ordinary user, and stays what it is unless told otherwise.
"""

import errno
import grp
import os
import pwd
from contextlib import suppress
from functools import partial
from pathlib import Path

from trio_passt.cli.values import invalid, number
from trio_passt.config import RunAs
from trio_passt.errors import StartupError
from trio_passt.host import identity
from trio_passt.host.network import Host

LARGEST_ID = 2**32 - 2
"""Of a user or group; one more means "unchanged" to setresuid(2)."""

NOBODY = 65534
"""Where the name is unknown: the kernel's own overflowuid."""


class NotAllowedError(StartupError):
    """This process may not become that user."""


def run_as(option: str, value: str) -> RunAs:
    """`UID`, `UID:GID`, `LOGIN` or `LOGIN:GROUP` as passt(1); names and numbers may be mixed.

    A user alone has its primary group; a number that is nobody's has the group of the same number.  Raises
    `UsageError`.
    """
    user, colon, group = value.partition(":")
    uid = _identifier(option, value, user)
    gid = _identifier(option, value, group) if colon else None
    if uid is None:
        uid, primary = _user_of_name(option, value, user)
    else:
        primary = _primary_group(uid)
    if not colon:
        return RunAs(uid, primary)
    return RunAs(uid, _group_of_name(option, value, group) if gid is None else gid)


def next_user(asked_for: RunAs | None) -> RunAs | None:
    """Who to go on as: whom was asked for, `nobody` in root's place; `None`: as we are."""
    wanted = asked_for
    if wanted is None:
        if not is_real_root():
            return None
        wanted = _nobody()
    return None if wanted == RunAs(os.geteuid(), os.getegid()) else wanted


def is_real_root() -> bool:
    """Root of a user namespace of one's own is an ordinary user."""
    if os.geteuid() != 0:
        return False
    with suppress(OSError):
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return True


def become(user: RunAs, *, binds_later: bool = False) -> None:
    """Be that user from now on, without a way back.  Raises `NotAllowedError`."""
    try:
        identity.become(user, keeps_capabilities=binds_later)
        if user.uid != 0:
            identity.give_up_capabilities(but_binding=binds_later)
        identity.gain_no_more()
    except OSError as error:
        text = f"can't go on as user {user.uid}, group {user.gid}: {error.strerror}"
        needs = " (only root may, or who has CAP_SETUID and CAP_SETGID)" if error.errno == errno.EPERM else ""
        raise NotAllowedError(text + needs) from error


def discover_as(user: RunAs) -> Host:
    """Look at the host as that user will, later on.

    If that fails, look as we are, and keep what was imported for it.  Raises what `discover` does, and
    `NotAllowedError` before anything has been opened in vain.
    """
    from trio_passt.host.discovery import discover

    try:
        return discover(become=partial(become, user))
    except NotAllowedError:
        raise
    except StartupError:
        from trio_passt.host.netlink import read_host_network

        read_host_network()  # most of it is imported by doing so
        return discover()


def _nobody() -> RunAs:
    try:
        entry = pwd.getpwnam("nobody")
    except (KeyError, OSError):
        return RunAs(NOBODY, NOBODY)
    return RunAs(entry.pw_uid, entry.pw_gid)


def _identifier(option: str, value: str, text: str) -> int | None:
    """The number that `text` is; `None` for a name."""
    if not text:
        raise invalid(option, value, "UID, UID:GID, LOGIN or LOGIN:GROUP is expected")
    if not text.isascii() or not text.isdigit():
        return None
    identifier = number(text)
    if identifier is None or identifier > LARGEST_ID:
        raise invalid(option, value, f"{text} is larger than {LARGEST_ID}, the largest user or group")
    return identifier


def _user_of_name(option: str, value: str, name: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError, OSError) as error:
        raise invalid(option, value, f"there is no user '{name}'") from error
    return entry.pw_uid, entry.pw_gid


def _primary_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except (KeyError, OSError):
        return uid


def _group_of_name(option: str, value: str, name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError, OSError) as error:
        raise invalid(option, value, f"there is no group '{name}'") from error
