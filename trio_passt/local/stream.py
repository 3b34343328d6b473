"""One way of a local TCP connection: what comes out of one socket goes into the other.

Theory of operation
-------------------
Bulk goes by splice(2) through a pipe: nothing is copied.  A small message goes by recv(2) and send(2), which is as many
system calls, and needs no pipe: a connection of questions and answers never has one.  The first read that fills its
buffer is the beginning of bulk, which ends when there was little in it.

Sockets are watched edge-triggered: what an event has said holds until the socket says EAGAIN, or gives less than it was
asked for.  Nothing is read that can't be passed on, so a reader that is slow closes the window of the writer.

Urgent data (RFC 9293 section 3.8.5, RFC 6093) is read in line with the rest, and sent as urgent again: splice(2) does
not get past it.
"""

import fcntl
import socket
import struct

from trio_passt.local.pipes import Pipe, PipePool

SMALL_BYTES = 16 * 1024
"""Less than this is read at once, and no bulk."""

TURN_BYTES = 2 * 1024 * 1024
"""Then others have their turn."""

_SIOCATMARK = 0x8905  # asm-generic/sockios.h
_INT = struct.Struct("i")


class End:
    """One of the two sockets of a connection, and what went wrong at it: then its other end is gone."""

    __slots__ = ("error", "fd", "is_connected", "sock")

    def __init__(self, sock: socket.socket, *, is_connected: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.is_connected = is_connected
        """Whether that is known."""
        self.error: OSError | None = None


class Stream:
    """From `source` to `sink`.

    `is_readable` and `is_writable` are what is known of them: set by whoever hears of events, cleared here.
    """

    __slots__ = (
        "_has_ended",
        "_is_bulk",
        "_left",
        "_left_flags",
        "_pipe",
        "_pool",
        "_scratch",
        "_small",
        "has_urgent",
        "is_passed_on",
        "is_peer_closed",
        "is_readable",
        "is_through",
        "is_writable",
        "opposite",
        "sink",
        "source",
    )

    def __init__(self, source: End, sink: End, pool: PipePool, scratch: memoryview) -> None:
        """`scratch` holds what is read within one call."""
        self.source = source
        self.sink = sink
        self.opposite: Stream | None = None
        self._pool = pool
        self._scratch = scratch
        self._small = scratch[:SMALL_BYTES]
        self._pipe: Pipe | None = None
        self._left = b""
        self._left_flags = 0
        self._is_bulk = False
        self._has_ended = False
        self.is_readable = False
        self.is_writable = True
        self.is_peer_closed = False
        """The source's end is near: however little is read, there is something behind it."""
        self.has_urgent = False
        self.is_through = False
        """Nothing more will be moved."""
        self.is_passed_on = False
        """The sink has been told the end, as the source has told us."""

    def can_move(self) -> bool:
        """Whether `move` may find something to do."""
        if self.is_through or not self.is_writable:
            return False
        return self.is_readable or self._has_ended or self._pipe is not None or bool(self._left)

    def move(self) -> tuple[int, bool]:
        """Move what there is, as far as it is taken: how many bytes, and whether there is more for another turn.

        What goes wrong is found at the ends.
        """
        moved = 0
        while self.can_move():
            if self._pipe is not None or self._left:
                moved += self._write()
            elif self._has_ended:
                if not self._pass_end_on():
                    break
            elif moved >= TURN_BYTES:
                return moved, True
            else:
                moved += self._read()
        if moved < SMALL_BYTES:
            self._is_bulk = False
        return moved, False

    def _read(self) -> int:
        """Get something to write; of what was written at once, the count."""
        try:
            if self.has_urgent:
                return self._read_near_urgent()
            if self._is_bulk and (pipe := self._pool.take()) is not None:
                self._fill(pipe)
                return 0
            buffer = self._scratch if self._is_bulk else self._small
            count = self.source.sock.recv_into(buffer)
        except BlockingIOError:
            self.is_readable = self.has_urgent = False
            return 0
        except OSError as error:
            self._lose_source(error)
            return 0
        if count == len(buffer):
            self._is_bulk = True
        elif not count:
            self._has_ended = True
        elif not self.is_peer_closed:
            self.is_readable = False
        return self._send(self._scratch[:count], 0) if count else 0

    def _fill(self, pipe: Pipe) -> None:
        try:
            self._has_ended = not pipe.fill(self.source.fd)
        finally:
            if pipe.held_bytes:
                self._pipe = pipe
            else:
                self._pool.give_back(pipe)

    def _read_near_urgent(self) -> int:
        """A read ends before the urgent byte; that one is read alone, and sent as what it is."""
        sock = self.source.sock
        (is_there,) = _INT.unpack(fcntl.ioctl(sock, _SIOCATMARK, bytes(4)))
        count = sock.recv_into(self._small[: 1 if is_there else SMALL_BYTES])
        if not count:
            self._has_ended = True
            return 0
        if is_there:
            self.has_urgent = False
        return self._send(self._scratch[:count], socket.MSG_OOB if is_there else 0)

    def _send(self, data: memoryview, flags: int) -> int:
        """Into the sink, and keep what it does not take."""
        try:
            count = self.sink.sock.send(data, flags)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._lose_sink(error)
            return 0
        if count < len(data):
            self._left, self._left_flags = bytes(data[count:]), flags
        return count

    def _write(self) -> int:
        """More of what is kept."""
        try:
            pipe = self._pipe
            if pipe is not None:
                count = pipe.drain(self.sink.fd)
                if not pipe.held_bytes:
                    self._give_pipe_back()
            else:
                count = self.sink.sock.send(self._left, self._left_flags)
                self._left = self._left[count:]
        except BlockingIOError:
            self.is_writable = False
            return 0
        except OSError as error:
            self._lose_sink(error)
            return 0
        return count

    def _pass_end_on(self) -> bool:
        """Half-close the sink; not if the source has not ended well.

        False if that has to wait: to shut down a socket that is still connecting is to give up the connection.
        """
        if self.source.error is not None:
            self.is_through = True
        elif not self.sink.is_connected:
            return False
        else:
            self.is_through = True
            try:
                if self.opposite is None or not self.opposite.is_passed_on:  # else both will be closed
                    self.sink.sock.shutdown(socket.SHUT_WR)
                self.is_passed_on = True
            except OSError as error:
                self.sink.error = self.sink.error or error
        return True

    def _lose_source(self, error: OSError) -> None:
        self.source.error = error
        self._has_ended = True

    def _lose_sink(self, error: OSError) -> None:
        self.sink.error = self.sink.error or error
        self.stop()

    def stop(self) -> None:
        """Nobody takes it any more."""
        self.is_through = True
        self._left = b""
        self._give_pipe_back()

    def _give_pipe_back(self) -> None:
        if self._pipe is not None:
            self._pool.give_back(self._pipe)
            self._pipe = None
