"""The PID file: mode 0600, the number and a newline, there only while the daemon is ready.

It is locked (flock(2)) as long as the daemon lives: a file that is left behind by a crash is overwritten, one
whose writer lives is not.  A daemon that has given up its privileges may not be allowed to remove the file any more:
then it is left empty.
"""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from trio_passt.errors import StartupError

LOOKS, LOOK_AGAIN_S = 20, 0.01


class PidFile:
    """A PID file of this process's.  `remove` it at the end."""

    def __init__(self, path: Path) -> None:
        """Create the file, or take over one whose writer is gone.

        Raises `StartupError` if it can't be written, is a symbolic link or no regular file, holds something else
        than a number, or belongs to a running process.
        """
        self._path = path
        try:
            self._fd = _open_and_lock(path)
            try:
                os.fchmod(self._fd, 0o600)
                os.ftruncate(self._fd, 0)
                os.write(self._fd, b"%d\n" % os.getpid())
            except OSError:
                self.remove()
                raise
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise StartupError(f"can't write PID file '{path}': {reason}") from error

    def remove(self) -> None:
        """Remove the file if it is still ours, or at least what is in it."""
        try:
            if _is_open_as(self._path, self._fd):
                self._path.unlink()
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _open_and_lock(path: Path) -> int:
    """A descriptor of the file that is at `path` while it is locked."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StartupError(f"can't write PID file '{path}': not a regular file")
            if os.fstat(fd).st_uid != os.getresuid()[1]:  # who could write another number into it
                raise StartupError(f"can't write PID file '{path}': it is another user's")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.pread(fd, 20, 0).strip().isdigit() and os.fstat(fd).st_size:
                raise StartupError(f"can't write PID file '{path}': there is a file that holds something else")
            if _is_open_as(path, fd):
                return fd
        except BlockingIOError as error:
            holder = _holder(fd)
            os.close(fd)
            raise StartupError(f"PID file '{path}' belongs to a running process ({holder})") from error
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its writer ended, and removed it between the two calls


def _holder(fd: int) -> str:
    """The process that has the lock, by the file; one that has just got it needs a moment to write its number."""
    for _ in range(LOOKS):
        number = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        if number.isdigit() and Path("/proc", number).exists():
            return number
        time.sleep(LOOK_AGAIN_S)
    return "starting, or ending"


def _is_open_as(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
