"""A guest on a tap device (Documentation/networking/tuntap.rst): a network namespace, whose kernel is the guest.

Theory of operation
-------------------
Offloads.  A header of virtio-net before each frame (IFF_VNET_HDR) says what its sender left to do: a checksum, and the
cutting into segments (`wire.virtio`).  So a frame either way is up to 64 KiB, whatever the interface's MTU, and neither
side cuts or sums it.  What the guest's kernel may leave to us is asked for once (TUNSETOFFLOAD); where it does not know
a feature, without that one.  What it knows to leave to others it knows to do for others.

Reading.  The descriptor gives one frame a read.  Frames are read one after the other into the same memory, until there
are no more or enough for one turn, and that is the batch; as with `stream`, the memory is used again as soon as nobody
looks at it.

Writing.  One `writev` a frame, in which the guest's kernel takes the frame through its stack, to the receiving socket.
So there is no queue that could be full.  What the guest's sockets have no room for its kernel drops, as any other's.
Short of memory the kernel may refuse a frame; then the link is full for a moment.

Ends.  The descriptor of a device that was deleted reports an error, and nothing else.  (It keeps the namespace that it
was opened in: that this is of no use any more has to be found out otherwise.)  An interface that is down takes nothing
and gives nothing, but may come up again: meanwhile frames are dropped.
"""

import errno
import fcntl
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from typing import Final

import trio

from trio_passt.errors import StartupError
from trio_passt.link.base import LinkClosed
from trio_passt.link.waiting import WaitingLine
from trio_passt.wire import finish, framing, virtio
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.frames import (
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    PREFIX_BYTES,
    Capabilities,
    FrameBatch,
    FrameRun,
    Offload,
)

READ_BYTES: Final = 1024 * 1024
"""What is read in one turn, and a frame more."""

READ_FRAMES: Final = 512
"""How many frames, at the most: they may be small."""

ALONE_TURNS: Final = 8
ALONE_MOST_TURNS: Final = 64
"""After so many turns that found one small frame and no more, only one is read: questions come one by one, and to ask
whether there is another costs as much as a frame.  The device stays readable if there is.  After so many, it is asked
again."""

COPY_UP_TO_BYTES: Final = 16 * 1024
"""Batches up to this size are copied: it costs next to nothing, and who keeps a view of a small one keeps little."""

RETRY_S = 0.005
"""After the kernel had no memory for a frame."""

OFFLOADS_KNOWN = 4096
"""Headers whose meaning is remembered; of a guest's there are few, but it may send any."""

# linux/if_tun.h
TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETVNETLE = 0x800454D2, 0x400454D0, 0x400454D8, 0x400454DC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
CHECKSUM, TSO4, TSO6, USO = 0x01, 0x02, 0x04, 0x20 | 0x40
"""TUN_F_*.  Linux has USO only for both versions of IP at once (since 6.2)."""

FEATURES = (
    CHECKSUM | TSO4 | TSO6 | USO,
    CHECKSUM | TSO4 | TSO6,
    CHECKSUM | TSO4,
    CHECKSUM | TSO6,
    CHECKSUM,
)
"""What is asked for, until it is granted.  Segments have checksums, and who can do USO can do TSO."""

_SLOT_BYTES: Final = virtio.HEADER_BYTES + MAX_FRAME_BYTES + 1
"""The kernel cuts off what is longer, and does not tell: a read that fills it is of a frame that is too long."""

_BUFFER_BYTES = READ_BYTES + _SLOT_BYTES

_IFREQ = struct.Struct("=16sH22x")
_INT = struct.Struct("=i")

_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})


class TapLink:
    """The `Link` over the descriptor of a tap device, which it owns from now on.

    The device has IFF_NO_PI, and better IFF_VNET_HDR: without that there are no offloads.  Raises StartupError for a
    descriptor of anything else.
    """

    def __init__(self, descriptor: int) -> None:
        self.drops: Counter[str] = Counter()
        self._file = FileIO(descriptor, "r+")
        try:
            has_header = _has_header(descriptor)
            self._layout = _header_layout(descriptor) if has_header else None
            self.capabilities = _capabilities(_ask_for_offloads(descriptor)) if has_header else Capabilities()
        except BaseException:
            self._file.close()
            raise
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._header_bytes = virtio.HEADER_BYTES if has_header else 0
        self._closed: str | None = None
        self._turns_alone = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._references_without_views = sys.getrefcount(self._buffer)
        self._offloads: dict[bytes, Offload | None] = {}
        self._latest: tuple[Offload | None, bytes] = (None, self._header_of(None))
        self._full = False
        self._waiting = WaitingLine()
        self._wanted = trio.Event()

    def fileno(self) -> int | None:
        """The tap's descriptor."""
        return self._descriptor

    # -- from the guest ----------------------------------------------------------------------------------------------

    async def receive_batch(self) -> FrameBatch:
        """The frames that are there, at least one; `LinkClosed` when there will be no more.

        The daemon uses `receive_now`; this is for who has nothing else to wait for.
        """
        while True:
            if self._closed is None:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._descriptor)
            batch = self.receive_now()
            if batch is not None:
                return batch

    def receive_now(self) -> FrameBatch | None:
        """The frames that are there, as many as fit into one turn; it stays readable if there are more."""
        self._check_open()
        if self._turns_alone >= ALONE_TURNS:
            return self._receive_one()
        view = memoryview(self._empty_buffer())
        bounds: framing.Bounds = []
        offloads: list[Offload | None] = []
        position, header_bytes, has_offloads = 0, self._header_bytes, False
        for _ in range(READ_FRAMES):
            if position >= READ_BYTES:
                break
            try:
                count = self._file.readinto(view[position : position + _SLOT_BYTES])
            except OSError as error:
                self._mark_closed(_reason(error))
                break
            if not count:
                break
            start, end = position + header_bytes, position + count
            try:
                offload = self._offload_of(bytes(view[position:start]), count)
            except MalformedPacket:
                continue
            has_offloads |= offload is not None
            offloads.append(offload)
            bounds.append((start, end))
            position = end
        self._turns_alone = self._turns_alone + 1 if len(bounds) == 1 and position <= COPY_UP_TO_BYTES else 0
        if bounds:
            batch = view[:position].toreadonly()
            data = bytes(batch) if position <= COPY_UP_TO_BYTES else batch
            return FrameBatch(data, bounds, offloads if has_offloads else None)
        self._check_open()
        return None

    def _receive_one(self) -> FrameBatch | None:
        """A small frame, which is expected to come alone."""
        try:
            data = os.read(self._descriptor, _SLOT_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            self._mark_closed(_reason(error))
            self._check_open()
            return None
        self._turns_alone += 1
        if len(data) > COPY_UP_TO_BYTES:
            self._turns_alone = 0
        elif self._turns_alone >= ALONE_MOST_TURNS:
            self._turns_alone = ALONE_TURNS - 1
        start = self._header_bytes
        try:
            offload = self._offload_of(data[:start], len(data))
        except MalformedPacket:
            return None
        return FrameBatch(data, [(start, len(data))], None if offload is None else [offload])

    def _check_open(self) -> None:
        if self._closed is not None:
            raise LinkClosed(self._closed)

    def _empty_buffer(self) -> bytearray:
        """The same as before, or a new one if somebody still looks at that."""
        if sys.getrefcount(self._buffer) > self._references_without_views:
            self._buffer = bytearray(_BUFFER_BYTES)
        return self._buffer

    def _offload_of(self, header: bytes, count: int) -> Offload | None:
        """What its sender left to do on a frame of `count` bytes, with its header if there are any.

        Raises MalformedPacket for one that is to be dropped, and has been counted.
        """
        if not MIN_FRAME_BYTES <= count - len(header) <= MAX_FRAME_BYTES:
            self.drops["link: frame too long or too short"] += 1
            raise MalformedPacket(f"frame of {count} bytes with its header")
        known = self._offloads
        offload = known.get(header)
        if offload is not None or self._layout is None or header in known:
            return offload
        try:
            offload = virtio.parse(header, self._layout)
        except MalformedPacket:
            self.drops["link: header that asks for what we can't do"] += 1
            raise
        if len(known) >= OFFLOADS_KNOWN:
            known.clear()
        known[header] = offload
        return offload

    # -- to the guest ------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the kernel has refused a frame just now."""
        return self._full

    @property
    def room_bytes(self) -> int:
        """As much as anybody has to send, or nothing."""
        return 0 if self._full else sys.maxsize

    @property
    def waiting(self) -> int:
        """How many callbacks wait for room."""
        return len(self._waiting)

    def gather(self) -> None:
        """Nothing is kept: there is no way to write two frames at once."""

    def release(self) -> None:
        """Nothing was kept."""

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Write all frames, unless the kernel has no memory for one; see `Link.send`."""
        taken = 0
        for run in runs:
            if run.count == 1:
                taken += self._take(run.parts, run.offload)
            else:
                for parts in framing.parts_of_frames(run):
                    if not self._take(parts, run.offload):
                        return taken
                    taken += 1
            if self._full:
                break
        return taken

    def _take(self, parts: Sequence[Buffer], offload: Offload | None) -> bool:
        """Write one frame, given with its prefix, or drop it; false if there is no room."""
        if self._closed is not None:
            return True
        if self._full:
            return False
        try:
            self._write(parts, offload)
        except OSError as error:
            return self._is_done_with(error, parts, offload)
        return True

    def _write(self, parts: Sequence[Buffer], offload: Offload | None) -> None:
        first, header = parts[0], self._latest[1]
        if offload is not self._latest[0]:
            header = self._header_of(offload)
            self._latest = (offload, header)
        if len(parts) == 2:
            os.writev(self._descriptor, (header, memoryview(first)[PREFIX_BYTES:], parts[1]))
        elif len(first) > PREFIX_BYTES:
            os.writev(self._descriptor, (header, memoryview(first)[PREFIX_BYTES:], *parts[1:]))
        else:
            os.writev(self._descriptor, (header, *parts[1:]))

    def _header_of(self, offload: Offload | None) -> bytes:
        return b"" if self._layout is None else virtio.emit(offload, self._layout)

    def _is_done_with(self, error: OSError, parts: Sequence[Buffer], offload: Offload | None) -> bool:
        """A frame that could not be written: whether there is nothing more to do about it."""
        if error.errno in _FULL:
            self._full = True
            self._wanted.set()
            return False
        if error.errno in _GONE:
            self._mark_closed(_reason(error))
        elif error.errno == errno.EIO:
            self.drops["link: the guest's interface is down"] += 1
        elif error.errno == errno.EINVAL and offload is not None:
            self._write_finished(b"".join(parts), offload)
        else:
            self.drops[f"link: refused by the kernel: {error.strerror}"] += 1
        return True

    def _write_finished(self, frame: bytes, offload: Offload) -> None:
        """The kernel does not like what was left to it: it gets what it would have made of the frame."""
        try:
            for piece in finish.finish(memoryview(frame)[PREFIX_BYTES:], offload):
                self._write((bytes(PREFIX_BYTES), piece), None)
        except (MalformedPacket, OSError):
            self.drops["link: refused by the kernel"] += 1

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Have `run` call `callback` once when there is room; first come, first served."""
        self._waiting.add(callback)
        self._wanted.set()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call `callback`."""
        self._waiting.forget(callback)

    async def run(self) -> None:
        """Call back, a moment later if the link is full, until cancelled."""
        while True:
            await self._wanted.wait()
            if self._full and self._closed is None:
                await trio.sleep(RETRY_S)
            else:
                await trio.lowlevel.checkpoint()
            self._full = False
            self._waiting.call_back(self._is_full)
            if not self._full and not len(self._waiting):
                self._wanted = trio.Event()

    def _is_full(self) -> bool:
        return self._full

    # -- the end -----------------------------------------------------------------------------------------------------

    def _mark_closed(self, reason: str) -> None:
        if self._closed is None:
            self._closed = reason
        self._full = False
        self._wanted.set()

    def close(self) -> None:
        """Close the descriptor; a task that waits in `receive_batch` gets `LinkClosed`."""
        if self._descriptor < 0:
            return
        self._mark_closed("closed")
        with suppress(RuntimeError):  # outside of Trio nobody waits
            trio.lowlevel.notify_closing(self._descriptor)
        self._descriptor = -1
        self._file.close()


def _has_header(descriptor: int) -> bool:
    """Whether a header comes before each frame; StartupError for what is no tap."""
    try:
        _, flags = _IFREQ.unpack(fcntl.ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size)))
    except OSError as error:
        raise StartupError(f"not a tap device: {error.strerror}") from error
    if not flags & IFF_TAP:
        raise StartupError("not a tap device, which has frames, but a tun device")
    return bool(flags & IFF_VNET_HDR)


def _header_layout(descriptor: int) -> struct.Struct:
    """Ten bytes, with little-endian numbers if the kernel can be told so."""
    with suppress(OSError):  # it is so by default, and a kernel older than 2.6.32 has nothing else
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, _INT.pack(virtio.HEADER_BYTES))
    try:
        fcntl.ioctl(descriptor, TUNSETVNETLE, _INT.pack(1))
    except OSError:
        return virtio.NATIVE
    return virtio.LITTLE_ENDIAN


def _ask_for_offloads(descriptor: int) -> int:
    """What the guest's kernel may leave to us from now on: as much as it knows of."""
    for features in FEATURES:
        with suppress(OSError):
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, features)
            return features
    return 0


def _capabilities(features: int) -> Capabilities:
    """What it says that the kernel knows these."""
    return Capabilities(
        checksum=bool(features & CHECKSUM),
        tso4=bool(features & TSO4),
        tso6=bool(features & TSO6),
        uso=bool(features & USO),
    )


def _reason(error: OSError) -> str:
    if error.errno in _GONE:
        return "its interface has been deleted"
    return f"the tap device failed: {error.strerror}"
