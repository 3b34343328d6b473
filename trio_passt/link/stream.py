"""A guest on a connected stream socket: QEMU's `-netdev stream`, and whatever speaks its framing.

Theory of operation
-------------------
Reading.  One `recv_into` of up to `READ_BYTES` goes to a buffer, behind the incomplete frame that the last read ended
with; the complete frames there are the batch.  A large one is not copied: nearly always all views of it are gone by the
time of the next read, and the buffer is used again; its reference count tells.  Where somebody still holds one, the
next read gets a new buffer, and the old one lives for as long as its views do.

Writing.  One `sendmsg` for all runs.  A short write may end inside a frame; the rest of *that* frame is
copied, and until it is written nothing else is: an ACK slipped in between would end the guest's connection.
The frames after it were not taken.

Gathering.  While a batch from the guest is worked off, each flow in it acknowledges: a system call for each, and a
wake-up of whoever reads.  So between `gather` and `release` small frames are kept, and written together.  They count as
taken; what the socket has no room for then is treated like the rest of a frame.

Waiting.  `run` waits for writability only when somebody asked for it or a rest is left.  Linux calls a UNIX
socket writable when no more than a quarter of its send buffer is used, so there is room for more than one
frame.
"""

import errno
import fcntl
import os
import select
import socket
import sys
import termios
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from trio_passt.link.base import LinkClosed
from trio_passt.link.waiting import WaitingLine
from trio_passt.wire import framing
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import MAX_FRAME_BYTES, PREFIX_BYTES, Capabilities, FrameBatch, FrameRun

READ_BYTES = 2048 * 1024
"""Asked for in one read; a UNIX socket with the kernel's default buffers holds about 200 KB."""

BUFFER_BYTES = READ_BYTES + PREFIX_BYTES + MAX_FRAME_BYTES

COPY_UP_TO_BYTES = 16 * 1024
"""Batches up to this size are copied: it costs next to nothing, and who keeps a view of a small one keeps little."""

SOCKET_BUFFER_BYTES = 1024 * 1024
"""Wished for; the kernel gives an unprivileged process no more than net.core.wmem_max."""

IOV_MAX = 1024
"""Parts that one `sendmsg` takes (sysconf(_SC_IOV_MAX) on Linux)."""

ROOM_KNOWN_BYTES = 512 * 1024
"""While there is known to be more room than this, the kernel is not asked how much."""

SMALL_FRAME_BYTES = 128
"""Frames up to this size, with their prefix, are worth gathering: those with little data or none."""

_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class StreamLink:
    """The `Link` over a connected stream socket, which it owns from now on.  It offers no offloads."""

    capabilities = Capabilities()

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            _raise_buffer(sock, option)
        self._send_buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._room_bytes = 0
        self.drops: Counter[str] = Counter()
        self._socket = sock
        self._closed: str | None = None
        self._buffer = bytearray(BUFFER_BYTES)
        self._references_without_views = sys.getrefcount(self._buffer)
        self._begin = 0
        self._filled = 0
        self._rest: Buffer = b""
        self._gathered: list[bytes] = []
        self._gathers = False
        self._full = False
        self._waiting = WaitingLine()
        self._wanted = trio.Event()

    def has_hung_up(self) -> bool:
        """Whether the guest has closed its end, though some of what it sent may not have been read yet."""
        if self._closed is not None:
            return True
        hang_up = select.poll()
        hang_up.register(self._socket, select.POLLRDHUP)
        return bool(hang_up.poll(0))

    def fileno(self) -> int | None:
        """The socket's descriptor."""
        return self._socket.fileno()

    async def receive_batch(self) -> FrameBatch:
        """All complete frames that are there, at least one; `LinkClosed` when there will be no more.

        The daemon uses `receive_now`; this is for who has nothing else to wait for.
        """
        while True:
            bounds = self._complete_frames()
            if bounds:
                return self._take_batch(bounds)
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._socket.fileno())
            self._read()

    def receive_now(self) -> FrameBatch | None:
        """What one look at the socket brings; it stays readable if there is more."""
        if self._closed is None:
            self._read()
        bounds = self._complete_frames()
        batch = self._take_batch(bounds) if bounds else None
        if self._begin < self._filled:
            self._look_at_the_rest()
        return batch

    def _look_at_the_rest(self) -> None:
        """A frame that can't be one ends the link now, since nothing more need come: its descriptor tells."""
        try:
            framing.split(memoryview(self._buffer)[self._begin : self._filled], self._filled - self._begin)
        except MalformedPacket as problem:
            self._mark_closed(f"the guest broke the framing: {problem}")

    def _complete_frames(self) -> framing.Bounds:
        if self._closed is not None:
            raise LinkClosed(self._closed)
        self._make_ready()
        try:
            return framing.split(self._buffer, self._filled)
        except MalformedPacket as problem:
            raise LinkClosed(f"the guest broke the framing: {problem}") from problem

    def _take_batch(self, bounds: framing.Bounds) -> FrameBatch:
        self._begin = bounds[-1][1]
        view = memoryview(self._buffer).toreadonly()[: self._begin]
        return FrameBatch(bytes(view) if self._begin <= COPY_UP_TO_BYTES else view, bounds)

    def _make_ready(self) -> None:
        """What came after the last batch to the front: of the same buffer, or of a new one if that batch is held."""
        begin = self._begin
        if begin:
            rest = self._buffer[begin : self._filled]
            if sys.getrefcount(self._buffer) > self._references_without_views:
                self._buffer = bytearray(BUFFER_BYTES)
            self._buffer[: len(rest)] = rest
            self._begin, self._filled = 0, len(rest)

    def _read(self) -> None:
        """Read once."""
        if self._closed is not None:
            raise LinkClosed(self._closed)
        self._make_ready()
        try:
            count = self._socket.recv_into(memoryview(self._buffer)[self._filled :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(_reason(error))
        else:
            if count == 0:
                self._fail("the guest disconnected" + (" in the middle of a frame" if self._filled else ""))
            self._filled += count

    @property
    def is_full(self) -> bool:
        """Whether `send` is known to take nothing."""
        return self._full

    @property
    def room_bytes(self) -> int:
        """What is left of the send buffer (unix(7), SIOCOUTQ), or less; the kernel counts overhead, too."""
        if self._full or self._closed is not None:
            return 0
        if self._room_bytes < ROOM_KNOWN_BYTES:
            queued = fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0\0\0\0")
            self._room_bytes = self._send_buffer_bytes - int.from_bytes(queued, sys.byteorder)
        return self._room_bytes

    @property
    def waiting(self) -> int:
        """How many callbacks wait for room."""
        return len(self._waiting)

    def gather(self) -> None:
        """Keep small frames until `release`, or until something larger is sent."""
        self._gathers = True

    def release(self) -> None:
        """Write what was gathered."""
        self._gathers = False
        if self._gathered:
            self.send(())

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Take as many frames as the socket does; see `Link.send`."""
        if self._rest:
            self._finish_rest()
        if self._closed is not None:
            self._gathered.clear()
            return sum(run.count for run in runs)
        if self._rest:
            return 0
        if self._gathers and len(runs) == 1 and runs[0].stride <= SMALL_FRAME_BYTES:
            self._gathered.append(b"".join(runs[0].parts))
            return runs[0].count
        return self._send_now(runs)

    def _send_now(self, runs: Sequence[FrameRun]) -> int:
        """What was gathered, and then `runs`."""
        gathered = b"".join(self._gathered)
        self._gathered.clear()
        parts: list[Buffer] = [gathered] if gathered else []
        size = len(gathered)
        for run in runs:
            parts += run.parts
            size += run.count * run.stride
        written = self._write(parts)
        self._full = written < size and self._closed is None
        if not self._full:
            return sum(run.count for run in runs)
        frames = 0
        if written < len(gathered):
            self._rest = gathered[written:]
        else:
            frames, self._rest = framing.taken(runs, written - len(gathered))
        if self._rest:
            self._wanted.set()
        return frames

    def _write(self, parts: Sequence[Buffer]) -> int:
        """Write as much as the socket takes, and return the count of bytes; an error closes the link."""
        written = 0
        try:
            for first in range(0, len(parts), IOV_MAX):
                some = parts[first : first + IOV_MAX]
                count = self._socket.sendmsg(some, (), _SEND_FLAGS)
                written += count
                if count < sum(map(len, some)):
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._mark_closed(_reason(error))
        self._room_bytes -= 2 * written
        return written

    def _finish_rest(self) -> None:
        written = self._write((self._rest,))
        self._rest = b"" if self._closed is not None else memoryview(self._rest)[written:]

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Have `run` call `callback` once when there is room; first come, first served."""
        self._waiting.add(callback)
        self._wanted.set()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call `callback`."""
        self._waiting.forget(callback)

    async def run(self) -> None:
        """Finish partly written frames and call back, until cancelled."""
        while True:
            await self._wanted.wait()
            if self._closed is None and self._full:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._socket.fileno())
            else:
                await trio.lowlevel.checkpoint()
            if self._rest:
                self._finish_rest()
            self._full = bool(self._rest)
            self._waiting.call_back(self._is_full)
            if not self._rest and not len(self._waiting):
                self._wanted = trio.Event()

    def _is_full(self) -> bool:
        return self._full

    def _fail(self, reason: str) -> None:
        self._mark_closed(reason)
        raise LinkClosed(reason)

    def _mark_closed(self, reason: str) -> None:
        """No more is written or read; the shutdown wakes whoever waits for either."""
        if self._closed is None:
            self._closed = reason
        self._rest = b""
        self._full = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; a task that waits in `receive_batch` gets `LinkClosed`."""
        if self._socket.fileno() < 0:
            return
        self._mark_closed("closed")
        trio.lowlevel.notify_closing(self._socket.fileno())
        self._socket.close()


def _raise_buffer(sock: socket.socket, option: int) -> None:
    """Make a buffer larger if the kernel lets us (it answers with twice what was asked for)."""
    with suppress(OSError):
        if sock.getsockopt(socket.SOL_SOCKET, option) < 2 * SOCKET_BUFFER_BYTES:
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def _reason(error: OSError) -> str:
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the guest disconnected"
    return f"the guest's socket failed: {os.strerror(error.errno or 0)}"
