"""Pipes for splice(2): what goes through one is moved from socket to socket without being copied.

A pipe is needed only while something is in it, so a few serve very many connections: those whose receiver does not take
what has been read for it keep theirs until it does.  One of 1 MiB takes half the time of one of 64 KiB for each byte.
An ordinary user may have 64 of that size (pipe(7), pipe-user-pages-soft); further ones are smaller.
"""

import fcntl
import os
from contextlib import suppress

PIPE_BYTES = 1024 * 1024
KEPT = 8
"""Empty ones that wait for their next use."""

MOST = 256
"""A connection that gets none passes its data on by recv(2) and send(2)."""

SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A pipe, and how much is in it."""

    __slots__ = ("held_bytes", "read_fd", "size_bytes", "write_fd")

    def __init__(self, read_fd: int, write_fd: int, size_bytes: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.size_bytes = size_bytes
        self.held_bytes = 0

    def fill(self, fd: int) -> int:
        """Move what there is at a socket's descriptor into it; 0 at the end of the stream.

        BlockingIOError: the socket has nothing now, or the pipe has no room.  Raises OSError.
        """
        count = os.splice(fd, self.write_fd, self.size_bytes, None, None, SPLICE_FLAGS)
        self.held_bytes += count
        return count

    def drain(self, fd: int) -> int:
        """Move what it has to a socket's descriptor, as much as that takes.  Raises BlockingIOError, and OSError."""
        count = os.splice(self.read_fd, fd, self.held_bytes, None, None, SPLICE_FLAGS)
        self.held_bytes -= count
        return count

    def close(self) -> None:
        """With what is in it."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Pipes to borrow."""

    def __init__(self) -> None:
        self._empty: list[Pipe] = []
        self._count = 0
        self._most_empty = KEPT

    def take(self) -> Pipe | None:
        """An empty one; `None` if there are too many, or no descriptors left."""
        if self._empty:
            return self._empty.pop()
        if self._count >= MOST:
            return None
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        self._count += 1
        size_bytes = 0
        with suppress(OSError):  # EPERM: this user has many
            size_bytes = fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return Pipe(read_fd, write_fd, size_bytes or 65536)

    def give_back(self, pipe: Pipe) -> None:
        """One that is not needed any more; what is in it is lost."""
        if pipe.held_bytes or len(self._empty) >= self._most_empty:
            self._count -= 1
            pipe.close()
        else:
            self._empty.append(pipe)

    def close(self) -> None:
        """Close those that nobody has; and all others as they come back."""
        self._most_empty = 0
        while self._empty:
            self._count -= 1
            self._empty.pop().close()
