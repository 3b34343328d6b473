"""The kernel's receive queue of a TCP socket, used as the retransmission buffer of the guest's connection.

Data is *peeked* at an offset, and discarded when the guest has acknowledged it; until then the kernel keeps it, and
its window to the peer shrinks by it.  Where the kernel has SO_PEEK_OFF for TCP (Linux 6.9+), peeking continues where
it left off; elsewhere each peek starts at the front and copies what was peeked before once more.
"""

import functools
import socket
import sys

from trio_passt.host import sockets
from trio_passt.host.sockets import SO_PEEK_OFF

PEEK_BYTES = 256 * 1024
"""Most that one peek copies: the copy stays in the cache for the one that follows."""

SCRATCH_BYTES = 1024 * 1024
"""Size of the buffer all queues share: without SO_PEEK_OFF it bounds how much can be in flight to the guest."""


@functools.cache
def has_peek_offset(family: int) -> bool:
    """Whether TCP sockets of this family know SO_PEEK_OFF; asked of the kernel once."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
    return True


class ReceiveQueue:
    """Peek, then discard.  `scratch` is shared: a peeked view is good until the next peek of any queue.

    `readable` is false when a peek is known to find nothing: the last one found less than it asked for, and nothing was
    said to have come since.  Who watches the socket (edge-triggered, see `readiness`) sets it.
    """

    __slots__ = ("_advances", "_offset", "_scratch", "_sock", "at_end", "has_urgent", "is_last", "readable")

    def __init__(self, sock: socket.socket, scratch: memoryview, *, use_peek_offset: bool) -> None:
        self._sock = sock
        self._scratch = scratch
        self._offset: int | None = 0 if use_peek_offset else None
        self._advances = False
        """Whether the kernel has been told of an offset: until then a peek is one at the front, and leaves it there."""
        self.readable = True
        self.has_urgent = False
        """Set by whoever learns of urgent data (EPOLLPRI): a peek stops short of it though there is more."""
        self.at_end = False
        """Set by whoever learns that the peer has sent its FIN (EPOLLRDHUP): needed without SO_PEEK_OFF, where the
        end of the data can't be told from its present end."""
        self.is_last = False
        """After a peek that has given something: it was the last of the data, since the FIN behind it is known of."""

    @property
    def reach(self) -> int:
        """The largest offset at which there is something to peek."""
        return len(self._scratch) if self._offset is None else sys.maxsize

    def peek(self, offset: int, most: int) -> memoryview | None:
        """Up to `most` bytes from `offset` on: `None` if there are none yet, an empty view at the end of the data.

        Raises OSError if the connection was reset.
        """
        most = min(most, PEEK_BYTES)
        if self._offset is None:
            return self._peek_from_front(offset, most)
        if self._offset != offset:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
            self._offset = offset
            self._advances = True
        count = self._peek(most)
        if count is None:
            return None
        if self._advances:
            self._offset += count
        return self._scratch[:count]

    def _peek(self, most: int) -> int | None:
        try:
            count = self._sock.recv_into(self._scratch, most, socket.MSG_PEEK)
        except BlockingIOError:
            self.readable = False
            return None
        is_all = count < most and not self.has_urgent  # epoll(7): a stream that gives less than asked for is exhausted
        self.is_last = is_all and self.at_end
        if is_all and not self.at_end:
            self.readable = False
        return count

    def _peek_from_front(self, offset: int, most: int) -> memoryview | None:
        end = min(offset + most, len(self._scratch))
        if end <= offset:
            return None
        at_end = self.at_end
        count = self._peek(end)
        if count is None:
            return None
        if count <= offset:  # the end, unless an urgent byte is what stopped the peek
            if count == 0 or (at_end and count == sockets.received_bytes(self._sock)):
                return self._scratch[:0]
            self.readable = False
            return None
        return self._scratch[offset:count]

    def discard(self, count: int) -> None:
        """The first `count` bytes, all of them peeked before, are no longer needed (tcp(7), MSG_TRUNC)."""
        while count:
            dropped = self._sock.recv_into(self._scratch, min(count, len(self._scratch)), socket.MSG_TRUNC)
            if dropped == 0:
                raise ConnectionResetError("the receive queue is shorter than what was peeked from it")
            count -= dropped
            if self._offset is None:
                self.readable = True  # a peek stops at an urgent byte; what follows is found when what precedes is gone
            elif self._advances:
                self._offset = max(0, self._offset - dropped)
