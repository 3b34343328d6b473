"""The command of a new namespace: who makes its namespaces, who starts it, and how its end comes to be known.

Theory of operation
-------------------
    daemon ── keeper ── first process ── command ── ...

The **keeper** is forked from the daemon and makes the namespaces: a user namespace, in which the caller is root, and
network, process IDs, mounts, host name and IPC.  A process that makes a namespace of process IDs does not enter it, its
next child does: the **first process** in there, whose death is that of all others in there (pid_namespaces(7)).  So
whatever a command leaves in the background ends with it.  The kernel protects a first process from signals that it has
no handler for, which would make a command immortal; so it is one of ours, and the command is its child.

The daemon has one end of a connection to the first process.  It says when the command may start, and which signals are
to be sent to it: the daemon can't do that itself, it may have become another user.  When the connection ends, because
the daemon has ended, however that was, the first process ends, and everything with it.

All of them are in the process group and session of who called us, as if the command had been called directly: the
terminal's signals reach it, and a shell can be interactive in there.  Ours ignore them; the command does not, except
those that were ignored when we were called.
"""

import errno
import os
import pwd
import signal
import socket
from contextlib import suppress

import trio
from attrs import frozen

from trio_passt.config import Namespace, RunAs
from trio_passt.errors import StartupError
from trio_passt.host import identity
from trio_passt.host.libc import call
from trio_passt.namespace import first_process, processes
from trio_passt.namespace.enter import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    Namespaces,
    kind_of,
    of_this_process,
)
from trio_passt.namespace.first_process import START, Execution
from trio_passt.namespace.passing import close_all, receive
from trio_passt.namespace.report import MOST_BYTES, Report, parse

GRACE_S = 1.0
"""What the kernel may take to end everything in there."""

_CHANGED_BY_US = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGUSR1}
"""Ignored by Python, and by us until the daemon listens."""

_SETTINGS = (
    *((f"user.max_{kind}_namespaces", "0") for kind in ("user", "net", "pid", "mnt", "uts", "ipc")),
    ("kernel.unprivileged_userns_clone", "0"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
)
"""Of sysctl(8): with these values, ordinary users have no namespaces."""


@frozen
class _Making:
    """What the keeper has to do."""

    makes_user: bool
    user: RunAs | None
    execution: Execution


class Command:
    """The daemon's side of a command that waits to be started.

    Until the caller closes them, `namespaces` are those that were made.
    """

    def __init__(self, wanted: Namespace, *, umask: int | None, user: RunAs | None) -> None:
        """Make the namespaces.  Raises `StartupError`."""
        shell = _shell()
        execution = Execution(
            wanted.command[0] if wanted.command else shell,
            wanted.command or ("-" + os.path.basename(shell),),  # a login shell, as pasta's is
            is_shell=not wanted.command,
            umask=umask,
            ignored=_ignored(),
        )
        making = _Making(wanted.joins_user, user, execution)
        try:
            self._connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StartupError(f"can't make the namespace: {error.strerror}") from error
        self._keeper = 0
        try:
            with its:
                self._keeper = processes.fork(lambda: _keep(its, making), its.fileno())
            self._pidfd = os.pidfd_open(self._keeper)
        except OSError as error:
            self._end()
            raise StartupError(f"can't start a process for the namespace: {error.strerror}") from error
        try:
            self.namespaces = self._made(makes_user=wanted.joins_user)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Let it begin."""
        self._say(START)

    def signal(self, number: int) -> None:
        """Have a signal sent to it, if it runs."""
        self._say(number)

    async def wait(self) -> int:
        """Wait for its end; its exit status, as a shell has it."""
        await trio.lowlevel.wait_readable(self._pidfd)
        return self._status()

    def close(self) -> None:
        """End it and all that runs in there."""
        self._end()
        os.close(self._pidfd)

    def _end(self) -> None:
        self._connection.close()
        if self._keeper:
            processes.end(self._keeper, GRACE_S)
            self._keeper = 0

    def _status(self) -> int:
        keeper, self._keeper = self._keeper, 0
        return processes.status_of(keeper)

    def _say(self, number: int) -> None:
        with suppress(OSError):  # it has just ended
            self._connection.send(bytes([number]))

    def _made(self, *, makes_user: bool) -> Namespaces:
        kinds = [CLONE_NEWNET, CLONE_NEWUSER][: 2 if makes_user else 1]
        message, descriptors = receive(self._connection, MOST_BYTES, len(kinds))
        if not message:
            raise StartupError(f"can't make the namespace: its process has ended with status {self._status()}")
        try:
            report = parse(message)
            if report.reason is not None:
                raise StartupError(report.reason + _hint(report.error, makes_user=makes_user))
            if len(descriptors) < len(kinds):
                raise StartupError("no descriptors are left for the namespace (see ulimit -n)")
            if [kind_of(descriptor) for descriptor in descriptors] != kinds:
                raise StartupError("can't make the namespace: its process has sent another one")
        except OSError as error:
            close_all(descriptors)
            raise StartupError(f"can't make the namespace: {error.strerror}") from error
        except BaseException:
            close_all(descriptors)
            raise
        net, *user = descriptors
        return Namespaces(net, user[0] if user else None)


def _shell() -> str:
    """The caller's: $SHELL, or else what the password database says."""
    if shell := os.environ.get("SHELL"):
        return shell
    with suppress(KeyError, OSError):
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    return "/bin/sh"


def _ignored() -> frozenset[int]:
    """The signals that who called us wants to be ignored, as nohup(1) does."""
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN}
    return frozenset(ignored - _CHANGED_BY_US)


def _keep(daemon: socket.socket, making: _Making) -> int:
    """The keeper's life; its exit status is the command's."""
    foreground = _Foreground()
    try:
        if making.user is not None:
            identity.become(making.user)
            processes.be_dumpable(is_dumpable=True)  # else /proc/self is root's
        _make_namespaces(makes_user=making.makes_user)
        processes.die_with_parent()
        namespaces = of_this_process(user=making.makes_user)
        processes.be_dumpable(is_dumpable=False)
        first = processes.fork(
            lambda: first_process.live(daemon, namespaces, making.execution),
            daemon.fileno(),
            *(descriptor for descriptor in (namespaces.net, namespaces.user) if descriptor is not None),
        )
    except _RefusedError as error:
        daemon.send(Report(reason=error.what, error=error.number).packed())
        return 1
    except OSError as error:
        daemon.send(Report(reason=f"can't make the namespace: {error.strerror}").packed())
        return 1
    namespaces.close()
    daemon.close()
    status = processes.status_of(first)
    foreground.take_back()
    return status


class _Foreground:
    """The terminal's foreground process group, if it is ours: a shell in there takes it, and can't give it back.

    Our group has no number in there.
    """

    def __init__(self) -> None:
        self._terminal: int | None = None
        for descriptor in (0, 1, 2):
            with suppress(OSError):
                if os.tcgetpgrp(descriptor) == os.getpgrp():
                    self._terminal = descriptor
                    return

    def take_back(self) -> None:
        """Be it again."""
        if self._terminal is not None:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else who is not in the foreground is stopped
            with suppress(OSError):
                os.tcsetpgrp(self._terminal, os.getpgrp())


class _RefusedError(Exception):
    """Namespaces are refused; the daemon, which is outside still, knows more."""

    def __init__(self, what: str, error: OSError) -> None:
        self.number = error.errno or 0
        self.what = f"can't make a {what} namespace: {os.strerror(self.number)}"
        super().__init__(self.what)


def _make_namespaces(*, makes_user: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if makes_user:
        try:
            call("unshare", CLONE_NEWUSER)
            _write("setgroups", "deny")  # user_namespaces(7): else gid_map is not ours to write
            _write("uid_map", f"0 {uid} 1")
            _write("gid_map", f"0 {gid} 1")
        except OSError as error:
            raise _RefusedError("user", error) from error
    try:
        call("unshare", CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
    except OSError as error:
        raise _RefusedError("network", error) from error


def _write(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
        file.write(text)


def _hint(number: int, *, makes_user: bool) -> str:
    """What forbids a new namespace, as far as it can be told: only to be asked from outside."""
    if number == errno.EINVAL:
        return " (this kernel has none)"
    if number not in (errno.EPERM, errno.EACCES, errno.ENOSPC):
        return ""
    for name, value in _SETTINGS:
        if _setting(name) == value:
            return f" (sysctl {name} is {value})"
    if number == errno.ENOSPC:
        return " (a limit is reached: sysctl user.max_user_namespaces, or another user.max_..._namespaces)"
    if not makes_user:
        return " (without a user namespace of its own, that takes CAP_SYS_ADMIN)"
    return " (a sandbox, such as a container's, forbids it)"


def _setting(name: str) -> str | None:
    with suppress(OSError), open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
        return file.read().strip()
    return None
