"""The UNIX socket that guests connect to: ours, or one that a service manager listens at for us; and guests that come
connected already (`--fd`).

Theory of operation
-------------------
The socket's file is created with mode 0600: on Linux `bind` gives the file the mode of the socket's own
inode, which `fchmod` sets before, so there is no moment at which others could connect.

A file that is there already is either another daemon's, or was left behind by one that was killed.  To tell,
connect a *datagram* socket to it: for a live stream socket the kernel answers EPROTOTYPE, without a
connection that the other daemon would take for its guest; for a dead one ECONNREFUSED (unix(7)).

Two daemons may find the same dead file, and the slower one must not remove the file that the quicker one has
put in its place.  So they take turns, by a lock on the directory (flock(2)).  Where that can't be had (a
directory that may be written but not read), they go on without.  Who gets a free path, `bind` decides.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import trio

from trio_passt.errors import StartupError
from trio_passt.link.stream import StreamLink

_log = logging.getLogger(__name__)

DEFAULT_PATHS = tuple(Path(f"/tmp/passt_{number}.socket") for number in range(1, 65))

MAX_PATH_BYTES = 107
"""sun_path has 108, with a zero byte at the end (unix(7))."""

MODE = 0o600

BACKLOG = 8

LOCK_TRIES = 20
LOCK_RETRY_S = 0.01

WARN_EVERY_S = 10.0
"""How often a line is written that comes with each try."""

RETRY_ACCEPT_S = 0.1
"""Out of descriptors or memory: by then others may be free.  `trio.serve_listeners` waits as long."""

_ACCEPT_LATER = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class GuestListener:
    """A listening socket at `path`, absolute; `None`: one without a file (an abstract address of unix(7)).

    Its file is removed at the end if it `owns_file`.
    """

    def __init__(self, sock: socket.socket, path: Path | None, *, owns_file: bool = True) -> None:
        self._socket = sock
        self._identity = _identity(path) if path is not None and owns_file else None
        self._warned_at = float("-inf")
        self.path = path

    async def accept(self) -> StreamLink:
        """Wait for the next guest.  `trio.ClosedResourceError` if the listener is closed meanwhile."""
        while True:
            await trio.lowlevel.wait_readable(self._socket.fileno())
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _ACCEPT_LATER:
                    if trio.current_time() - self._warned_at >= WARN_EVERY_S:
                        self._warned_at = trio.current_time()
                        _log.warning("can't accept a guest now: %s", error.strerror)
                    await trio.sleep(RETRY_ACCEPT_S)
                continue
            return StreamLink(connection)

    def give_to(self, uid: int, gid: int) -> None:
        """Make the file that user's, if it is ours to give; `StartupError` if that fails."""
        if self.path is None or self._identity is None:
            return
        try:
            descriptor = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _identity_of(os.fstat(descriptor)) == self._identity:  # or it is another's by now
                    os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StartupError(f"can't give {self.path} to user {uid}, group {gid}: {error.strerror}") from error

    def close(self) -> None:
        """Close the socket and remove its file, unless another has taken the file's place."""
        if self._socket.fileno() < 0:
            return
        if self.path is not None and self._identity is not None and _identity(self.path) == self._identity:
            with suppress(OSError):
                self.path.unlink()
        with suppress(RuntimeError):  # outside of trio.run there is nobody to notify
            trio.lowlevel.notify_closing(self._socket.fileno())
        self._socket.close()


def listen(path: Path | None) -> GuestListener:
    """Listen at `path`, or at the first free one of `DEFAULT_PATHS`; `StartupError` if that fails."""
    if path is not None:
        try:
            return _listen(path)
        except OSError as error:
            raise StartupError(f"can't listen on {path}: {error.strerror or error}") from error
    for default in DEFAULT_PATHS:
        with suppress(OSError):
            return _listen(default)
    raise StartupError(f"all of {DEFAULT_PATHS[0]} to {DEFAULT_PATHS[-1]} are in use or not ours to replace")


def _listen(path: Path) -> GuestListener:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {MAX_PATH_BYTES} bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), MODE)
        _bind(sock, path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return GuestListener(sock, path.absolute())


def _bind(sock: socket.socket, path: Path) -> None:
    """Bind, in the place of a dead socket's file if need be."""
    with _turn_in(path.parent):
        try:
            sock.bind(os.fspath(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _check_dead(path)
            path.unlink()
            _log.info("replacing %s, on which nobody listens", path)
            sock.bind(os.fspath(path))


@contextmanager
def _turn_in(directory: Path) -> Iterator[None]:
    """Be the only daemon that makes or replaces sockets in `directory`.

    Others hold the lock for microseconds.  Anybody may lock /tmp for longer; who does is not waited for.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            for _ in range(LOCK_TRIES):
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(LOCK_RETRY_S)
        yield


def _check_dead(path: Path) -> None:
    """`OSError` unless `path` is the file of a socket that is no more."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return _identity_of(status)


def _identity_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def from_listening_fd(fd: int) -> GuestListener:
    """A socket that listens already, and whose file is somebody else's; `StartupError` if it does not."""
    sock = _socket_at(fd)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise StartupError(f"descriptor {fd}: not a socket that listens")
    sock.set_inheritable(False)
    sock.setblocking(False)
    name = sock.getsockname()
    return GuestListener(sock, Path(name) if isinstance(name, str) and name else None, owns_file=False)


def from_fd(fd: int) -> StreamLink:
    """The guest at the other end of an inherited descriptor.

    `StartupError` unless it is a connected stream socket.
    """
    sock = _socket_at(fd)
    problem = _not_a_guest(sock)
    if problem is not None:
        sock.detach()
        raise StartupError(f"descriptor {fd}: {problem}")
    sock.set_inheritable(False)
    return StreamLink(sock)


def _socket_at(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        raise StartupError(f"descriptor {fd}: {getattr(error, 'strerror', None) or error}") from error


def _not_a_guest(sock: socket.socket) -> str | None:
    if sock.type != socket.SOCK_STREAM:
        return "not a stream socket"
    try:
        sock.getpeername()
    except OSError:
        return "not connected"
    return None
