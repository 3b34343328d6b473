"""The file of the API socket: whose it is, and who may use it.

It takes the place of a socket that is there, as with slirp4netns: a container that starts again has its old path, and
its former helper may not have ended yet.  So at the end the file is removed only if it is still this one's.  Who may
write to it may forward ports: its owner only.
"""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from trio_passt.errors import StartupError

BACKLOG = 256


class ApiSocket:
    """A listening UNIX socket at a path; `close` it at the end."""

    def __init__(self, path: Path) -> None:
        """Raises `StartupError`."""
        self._path = path
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                self._bind()
            except BaseException:
                self.socket.close()
                raise
        except OSError as error:
            raise StartupError(f"can't listen at the API socket '{path}': {error.strerror}") from error

    def _bind(self) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise StartupError(f"can't listen at the API socket '{self._path}': there is a file that is no socket")
            self._path.unlink()
        os.fchmod(self.socket.fileno(), 0o600)  # bind(2) gives the file the mode of the socket's own inode
        self.socket.bind(os.fsencode(self._path))
        self._file = os.lstat(self._path)
        try:
            self.socket.listen(BACKLOG)
        except OSError:
            self._remove()
            raise

    def close(self) -> None:
        """The file goes, too, if it is ours still, and we may."""
        self._remove()
        self.socket.close()

    def _remove(self) -> None:
        with suppress(OSError):
            if os.path.samestat(os.lstat(self._path), self._file):
                self._path.unlink()
