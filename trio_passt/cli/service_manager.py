"""systemd: a socket that it listens at for us (sd_listen_fds(3)), and what we tell it (sd_notify(3)).

Both are protocols of environment variables and sockets, without its library.  The variables are taken out of the
environment: they are meant for this process.
"""

import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import evolve

from trio_passt.cli.options import Options
from trio_passt.cli.values import UsageError, number
from trio_passt.config import Attachment

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

_FAMILIES = {socket.AF_UNIX: "UNIX", socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6", socket.AF_NETLINK: "netlink"}
_TYPES = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram", socket.SOCK_SEQPACKET: "sequential-packet"}
_FILES = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFREG: "a file",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a directory",
}


def inherited(environment: MutableMapping[str, str]) -> int | None:
    """The descriptor that was passed to this process; `None`: none was.

    Raises `UsageError` if there are several.
    """
    variables = {name: environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if number(variables["LISTEN_PID"]) != os.getpid():
        return None  # meant for who started us, or for nobody any more
    count = number(variables["LISTEN_FDS"])
    if count is None:
        raise UsageError(f"the service manager's LISTEN_FDS is '{variables['LISTEN_FDS']}': a number is expected")
    for fd in range(FIRST_FD, FIRST_FD + min(count, 1024)):
        with suppress(OSError):
            os.set_inheritable(fd, False)
    if count > 1:
        names = f" ({variables['LISTEN_FDNAMES']})" if variables["LISTEN_FDNAMES"] else ""
        raise UsageError(f"the service manager passed {count} sockets{names}, where one is expected")
    return FIRST_FD if count else None


def attached(options: Options, fd: int) -> Options:
    """`options` with the descriptor as the guest's: one that listens, or the guest itself.

    Raises `UsageError` if it is neither, or if the options say something else.
    """
    attachment = options.attachment
    given = None
    if attachment.socket_path is not None:
        given = f"'--socket {attachment.socket_path}'"
    elif attachment.fd is not None:
        given = f"'--fd {attachment.fd}'"
    if given is not None:
        raise UsageError(
            f"option {given} and the socket that the service manager passed (LISTEN_FDS) contradict each other"
        )
    kind, listens = _kind(fd)
    if kind != "a UNIX stream socket":
        raise UsageError(f"the service manager passed {kind}, where a UNIX stream socket is expected")
    if listens:
        return evolve(options, attachment=Attachment(listen_fd=fd))
    return evolve(options, attachment=Attachment(fd=fd), one_off=True)


class Notifier:
    """Tells the service manager, if there is one that wants to know; never waits, never fails."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        name = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._is_wanted = name.startswith(("/", "@"))

    def ready(self, socket_path: Path | None, main_process: int | None = None) -> None:
        """Everything is open; `main_process` where it isn't the one that the manager started."""
        status = f"waiting for a guest at {socket_path}" if socket_path is not None else "serving the guest"
        lines = ["READY=1", f"STATUS={status}"]
        if main_process is not None:
            lines.append(f"MAINPID={main_process}")
        self._tell(lines)

    def stopping(self) -> None:
        """It is ending in order."""
        self._tell(["STOPPING=1", "STATUS=ending"])

    def _tell(self, lines: Sequence[str]) -> None:
        if not self._is_wanted:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(message.encode("utf-8", "surrogateescape"), os.fsencode(self._address))


def _kind(fd: int) -> tuple[str, bool]:
    """What it is, in words, and whether it is a socket that listens."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        return f"descriptor {fd}, which can't be used ({error.strerror})", False
    if not stat.S_ISSOCK(mode):
        return _FILES.get(stat.S_IFMT(mode), "something else than a socket"), False
    sock = socket.socket(fileno=fd)
    try:
        listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        family = _FAMILIES.get(sock.family, f"family {sock.family}")
        return f"a {family} {_TYPES.get(sock.type, 'other')} socket".replace("a IP", "an IP"), listens
    finally:
        sock.detach()
