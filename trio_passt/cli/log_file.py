"""`--log-file`: lines at the end of a file that never has more than a given size.

Theory of operation
-------------------
A line that would not fit makes room first, in place (a reader with the file open goes on reading): the newest lines,
up to three quarters of the size, are copied to the file's beginning, and the rest is cut off.  The descriptor is the
one that was opened at start, so what becomes of the path, the directory or our privileges does not matter.

Each line is written with the file locked (flock(2)), since two daemons may have one.  The size is asked for each time,
since others may cut the file (logrotate's copytruncate); a line goes to the end that the file has then (O_APPEND).

Nothing of it is a reason to fail or to wait: a line that can't be written (a full disk, somebody who keeps the lock) is
lost, and how many were is said as soon as one can be written again.  A line is never written in part.

A character device, or a pipe, is written to as it is.
"""

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trio_passt.errors import StartupError

MODE = 0o600

LOCK_TRIES = 20
LOCK_RETRY_S = 0.001

_COPY_BYTES = 1 << 20


class LogFile(logging.Handler):
    """Records to the end of the file at `path`, which has `size_bytes` at most."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Open the file, or create it with mode 0600; one that is larger is cut.

        Raises `StartupError` if it can't be written, or is nothing to write lines to.
        """
        self._fd = -1  # the end of the program closes every handler, also one that came to nothing
        super().__init__()
        self._size_bytes = size_bytes
        self._process = os.getpid()
        self._lost = 0
        self._reason = ""
        self._is_patient = True
        try:
            self._fd = _open(path)
            self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            with suppress(BlockingIOError):
                self._write(b"")
        except OSError as error:
            raise StartupError(f"can't log to '{path}': {error.strerror}") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or lose it."""
        if os.getpid() != self._process or self._fd < 0:  # a child that looks at the host has closed the descriptor
            return
        text = self.format(record)
        try:
            self._write(self._about_lost(record) + _encoded(text))
        except OSError as error:
            self._lost += 1
            self._reason = error.strerror or str(error)
        else:
            self._lost = 0

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        super().close()

    def _about_lost(self, record: logging.LogRecord) -> bytes:
        if not self._lost:
            return b""
        lines = "1 line was" if self._lost == 1 else f"{self._lost} lines were"
        note = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "args": ()})
        note.levelno, note.levelname = logging.WARNING, "WARNING"
        note.msg = f"{lines} lost here: {self._reason}"
        return _encoded(self.format(note))

    def _write(self, data: bytes) -> None:
        """Write all of `data` or nothing; nothing but making the file small enough if there is none."""
        if not self._is_file:
            if data:
                os.write(self._fd, data)
            return
        data = _fitting(data, self._size_bytes)
        with self._locked():
            size = os.fstat(self._fd).st_size
            if size + len(data) > self._size_bytes:
                size = self._make_room(size, len(data))
            try:
                written = os.write(self._fd, data)
            except OSError:
                self._truncate(size)  # some of it may be there
                raise
            if written < len(data):
                self._truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Who holds the lock is another daemon that writes a line; if it takes longer, it is not waited for again.

        A file system that has no locks has to do without.
        """
        tries = LOCK_TRIES if self._is_patient else 1
        for left in reversed(range(tries)):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if not left:
                    self._is_patient = False
                    raise BlockingIOError(errno.EWOULDBLOCK, "somebody else has locked the file") from error
                time.sleep(LOCK_RETRY_S)
            except OSError:
                break
            else:
                break
        self._is_patient = True
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _make_room(self, size: int, needed: int) -> int:
        """Remove the oldest lines of a file of `size`, so that `needed` bytes fit; its size then."""
        keep = min(self._size_bytes * 3 // 4, self._size_bytes - needed)
        start = _line_start(self._fd, size - keep, size)
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_APPEND)  # or pwrite(2) would append, see its "BUGS"
        try:
            to = 0
            while part := os.pread(self._fd, min(_COPY_BYTES, size - start), start):
                start += len(part)
                to += os.pwrite(self._fd, part, to)
            os.ftruncate(self._fd, to)
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
        return to

    def _truncate(self, size: int) -> None:
        with suppress(OSError):
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)


def _open(path: Path) -> int:
    """Nothing here waits: not for a reader of a pipe, nor for a modem."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags, MODE)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "neither a file, nor a character device, nor a pipe")


def _line_start(fd: int, least: int, size: int) -> int:
    """The offset of the first line that starts at `least` or after; `size` if there is none."""
    at = max(least, 0)
    if at == 0:
        return 0
    at -= 1
    while part := os.pread(fd, min(4096, size - at), at):
        found = part.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(part)
    return size


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _fitting(data: bytes, size_bytes: int) -> bytes:
    """As much of it as the file may have, the newline included."""
    if len(data) <= size_bytes:
        return data
    return data[: size_bytes - 1].decode("utf-8", "ignore").encode() + b"\n"
