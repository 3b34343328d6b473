"""The first process of a new namespace of process IDs: it starts the command, and ends with it (`command`)."""

import errno
import os
import select
import signal
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from trio_passt.host.libc import call
from trio_passt.namespace import processes
from trio_passt.namespace.enter import Namespaces
from trio_passt.namespace.passing import send
from trio_passt.namespace.report import Report

START = 0
"""In place of a signal's number: the command may begin."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses, as of a shell."""

PROGRAM = "trio-pasta"

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x8, 0x4000, 0x80000


@frozen
class Execution:
    """What is executed, whether that is a shell for its user, and what it has of who called us.

    That is the mask of new files' modes (`None`: ours), and which signals are ignored.
    """

    file: str
    arguments: tuple[str, ...]
    is_shell: bool
    umask: int | None
    ignored: Collection[int]


def live(daemon: socket.socket, namespaces: Namespaces, execution: Execution) -> int:
    """Report to the daemon, wait for its word, and for the command; its status, as a shell has it."""
    processes.die_with_parent()
    for number in processes.NOT_OURS:
        signal.signal(number, signal.SIG_DFL)  # which means nothing here, and is one thing less to undo
    _mount_proc()
    _permit_ping()
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        send(daemon, Report().packed(), namespaces.descriptors)
    except OSError as error:
        daemon.send(Report(reason=f"can't make the namespace: {error.strerror}").packed())
        return 1
    namespaces.close()
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    poll.register(reader, select.POLLIN)
    command = 0
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if reader in ready:
            with suppress(BlockingIOError):
                os.read(reader, 4096)
            status = _reap(command)
            if status is not None:
                return status
        if daemon.fileno() in ready:
            word = _word(daemon)
            if word is None:
                return 1  # nobody wants to know
            if word == START and not command:
                command = processes.fork(lambda: _execute(execution))
            elif word != START and command:
                with suppress(ProcessLookupError):
                    os.kill(command, _meant(word, execution))


def _word(daemon: socket.socket) -> int | None:
    """None: the daemon is gone."""
    with suppress(ConnectionError):
        message = daemon.recv(1)
        return message[0] if message else None
    return None


def _meant(number: int, execution: Execution) -> int:
    """An interactive shell ignores SIGTERM: what ends it is that its terminal does."""
    return signal.SIGHUP if number == signal.SIGTERM and execution.is_shell else number


def _reap(command: int) -> int | None:
    """Take note of all that have ended; the command's status, if it is among them."""
    status = None
    with suppress(ChildProcessError):
        while True:
            process, wait_status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            if process == command:
                status = processes.shell_status(wait_status)
    return status


def _mount_proc() -> None:
    """So that ps(1) and /proc/PID are about the processes in here.  Where that is forbidden, they are about all."""
    with suppress(OSError):
        call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
        call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)


def _permit_ping() -> None:
    """To the one group that there is: icmp(7), ping_group_range."""
    with suppress(OSError):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0", encoding="ascii")


def _execute(execution: Execution) -> int:
    """Become the command; returns only if that fails."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):  # not SIGKILL and SIGSTOP
            signal.signal(number, signal.SIG_IGN if number in execution.ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if execution.umask is not None:
        os.umask(execution.umask)
    return _exec(execution.file, execution.arguments)


def _exec(file: str, arguments: tuple[str, ...]) -> int:
    """Look for the file as a shell does."""
    reason: OSError | ValueError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    paths = [file] if "/" in file else [os.path.join(folder, file) for folder in os.get_exec_path()]
    for path in paths:
        try:
            _exec_or_script(path, arguments)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            if "/" in file or os.path.isfile(path):  # else a directory that this user can't look into
                reason = error
    text = reason.strerror if isinstance(reason, OSError) else str(reason)
    os.write(2, os.fsencode(f"{PROGRAM}: can't run '{file}': {text}\n"))
    return NOT_FOUND if isinstance(reason, FileNotFoundError) else NOT_EXECUTABLE


def _exec_or_script(path: str, arguments: tuple[str, ...]) -> NoReturn:
    """What has no line that says what it is for is a shell's, as for execvp(3)."""
    try:
        os.execv(path, arguments)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execv("/bin/sh", ("sh", path, *arguments[1:]))
