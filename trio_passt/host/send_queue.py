"""The kernel's send queue of a TCP socket: what it takes, what of it the peer has, and how far away that peer is.

Each question is a system call.  They are asked when the answer may matter: room again after so many bytes, the round
trip now and then.
"""

import socket
from collections.abc import Sequence
from typing import Final

from trio_passt.host import sockets
from trio_passt.wire.checksum import Buffer

LOOK_AGAIN_BYTES: Final = 16 * 1024
"""Room is asked for again after so many bytes were written, or a quarter of the room there was, whichever is more;
until then it is taken to be less by what was written."""

ROUND_TRIP_GOOD_FOR_S: Final = 0.1


class SendQueue:
    """Write, and ask.

    `writable` is false when the queue was full, and nothing is known to have left it: `write` is not worth trying.
    """

    __slots__ = ("_free_bytes", "_look_again_at", "_looked_at", "_round_trip_s", "_sock", "_written_bytes", "writable")

    def __init__(self, sock: socket.socket, near_at: float = float("-inf")) -> None:
        """`near_at` is when the peer was seen to answer at once, if it was.  As to room, little is known at first, and
        need not be known until something was written."""
        self._sock = sock
        self.writable = True
        self._free_bytes = 0
        self._written_bytes = 0
        self._look_again_at = LOOK_AGAIN_BYTES
        self._round_trip_s = 0.0
        self._looked_at = near_at

    def has_room_again(self) -> None:
        """The socket was reported to be writable (which epoll also says when something else has happened)."""
        if not self.writable:
            self.writable = True
            self._look_again_at = 0

    def write(self, pieces: Sequence[Buffer]) -> int:
        """Write the pieces, as much as there is room for; returns how many bytes.  Raises OSError."""
        try:
            count = self._sock.send(pieces[0]) if len(pieces) == 1 else self._sock.sendmsg(pieces)
        except BlockingIOError:
            self.writable = False
            return 0
        self._written_bytes += count
        return count

    def free_bytes(self) -> int:
        """What there is room for, or a little less."""
        if self._written_bytes >= self._look_again_at:
            self._free_bytes = sockets.send_buffer_bytes(self._sock) - sockets.unacknowledged(self._sock)
            self._written_bytes = 0
            self._look_again_at = max(LOOK_AGAIN_BYTES, self._free_bytes // 4)
        return self._free_bytes - self._written_bytes

    def unacknowledged(self) -> int:
        """How many bytes the peer has not acknowledged yet, a FIN counted as one."""
        return sockets.unacknowledged(self._sock)

    def round_trip_s(self, now: float) -> float:
        """The kernel's smoothed round trip to the peer, not older than `ROUND_TRIP_GOOD_FOR_S`."""
        if now - self._looked_at >= ROUND_TRIP_GOOD_FOR_S:
            self._round_trip_s = sockets.round_trip_s(self._sock)
            self._looked_at = now
        return self._round_trip_s

    def shut_down(self) -> None:
        """No more will be written: a FIN to the peer, after all that is queued."""
        self._sock.shutdown(socket.SHUT_WR)
