"""`StreamLink`: the contract over a socket pair, and what only a byte stream can do wrong."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import trio
from check_link import FillingLinkContract, Guest, fill, frame_of, read_frames, run_of, until_received

from trio_passt.link.base import Link, LinkClosed
from trio_passt.link.stream import StreamLink
from trio_passt.wire import framing
from trio_passt.wire.frames import MAX_FRAME_BYTES, PREFIX, single

SMALL_BUFFER_BYTES = 16 * 1024


class StreamGuest:
    """A guest at the other end of the socket; `read_limit` makes it a slow reader."""

    def __init__(self, sock: socket.socket, read_limit: int = 1 << 20) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket = sock
        self.read_limit = read_limit
        self.unread = b""
        self.raw = bytearray()

    def send(self, frames: Sequence[bytes]) -> None:
        self.send_bytes(framing.join(frames).data)

    def send_bytes(self, data: bytes) -> None:
        assert self.socket.send(data) == len(data)

    def receive(self) -> list[bytes]:
        try:
            data = self.socket.recv(self.read_limit)
        except BlockingIOError:
            return []
        self.raw += data
        self.unread += data
        bounds = framing.split(self.unread, len(self.unread))
        frames = [self.unread[start:end] for start, end in bounds]
        self.unread = self.unread[bounds[-1][1] :] if bounds else self.unread
        return frames

    def leave(self) -> None:
        self.socket.close()


_open: list[StreamLink | socket.socket] = []


def connected(send_buffer: int = SMALL_BUFFER_BYTES, read_limit: int = 1 << 20) -> tuple[StreamLink, StreamGuest]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    link = StreamLink(ours)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    _open.extend([ours, theirs])
    return link, StreamGuest(theirs, read_limit)


@pytest.fixture(autouse=True)
def _no_socket_left_open() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


class TestStreamFillingLinkContract(FillingLinkContract):
    def make(self) -> tuple[Link, Guest]:
        return connected()


class TestSlowReaderContract(FillingLinkContract):
    """The smallest buffer that the kernel allows, and a guest that reads 97 bytes at a time."""

    def make(self) -> tuple[Link, Guest]:
        return connected(send_buffer=1, read_limit=97)


async def test_frames_split_at_every_byte() -> None:
    frames = [frame_of(1, 14), frame_of(2, 19), frame_of(3, 14)]
    data = framing.join(frames).data
    for split in range(1, len(data)):
        link, guest = connected()
        async with trio.open_nursery() as nursery:
            guest.send_bytes(data[:split])

            async def read(link: StreamLink = link) -> None:
                assert await read_frames(link, 3) == frames

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            guest.send_bytes(data[split:])
        guest.leave()
        with pytest.raises(LinkClosed, match=r"disconnected$"):
            await link.receive_batch()
        link.close()


async def test_one_byte_at_a_time() -> None:
    link, guest = connected()
    frames = [frame_of(1, 20), frame_of(2, 14)]

    async def read() -> None:
        assert await read_frames(link, 2) == frames

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for byte in framing.join(frames).data:
            await trio.testing.wait_all_tasks_blocked()
            guest.send_bytes(bytes([byte]))
    link.close()


async def test_largest_frames_and_more_than_one_read() -> None:
    link, guest = connected()
    frames = [frame_of(number, MAX_FRAME_BYTES) for number in range(12)]

    async def feed() -> None:
        view = memoryview(framing.join(frames).data)
        while view:
            await trio.lowlevel.wait_writable(guest.socket.fileno())
            view = view[guest.socket.send(view) :]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert await read_frames(link, 12) == frames
    link.close()


async def test_all_that_is_there_is_one_batch() -> None:
    link, guest = connected()
    for number in range(100):
        guest.send([frame_of(number)])
    assert len(await link.receive_batch()) == 100
    link.close()


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
async def test_length_out_of_bounds_ends_the_link_after_what_came_before(length: int) -> None:
    link, guest = connected()
    guest.send_bytes(framing.join([frame_of(1), frame_of(2)]).data + PREFIX.pack(length) + bytes(100))
    assert [bytes(frame) for frame in await link.receive_batch()] == [frame_of(1), frame_of(2)]
    for _ in range(2):
        with pytest.raises(LinkClosed, match=f"framing: frame of {length} bytes"):
            await link.receive_batch()
    link.close()


@pytest.mark.parametrize("cut", [1, 4, 5, 63])
async def test_leaving_inside_a_frame_is_told(cut: int) -> None:
    link, guest = connected()
    guest.send_bytes(framing.join([frame_of(1), frame_of(2)]).data[: 64 + cut])
    guest.leave()
    assert await read_frames(link, 1) == [frame_of(1)]
    with pytest.raises(LinkClosed, match="in the middle of a frame"):
        await link.receive_batch()
    link.close()


async def test_guest_that_leaves_with_frames_unread() -> None:
    """The kernel answers ECONNRESET instead of an end of file then."""
    link, guest = connected()
    assert link.send([single(frame_of(1))]) == 1
    guest.leave()
    with pytest.raises(LinkClosed, match="disconnected"):
        await link.receive_batch()
    link.close()


async def test_failed_send_wakes_the_reader() -> None:
    """A guest that only stops reading still sends nothing: it is the link that must end it."""
    link, guest = connected()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(LinkClosed, match="disconnected"):
                await link.receive_batch()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        guest.socket.shutdown(socket.SHUT_RD)
        assert link.send([single(frame_of(1))]) == 1
    link.close()


async def test_guest_that_leaves_while_a_rest_is_pending() -> None:
    link, guest = connected()
    fill(link, 60_000)
    called = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        link.when_ready(called.set)
        await trio.testing.wait_all_tasks_blocked()
        guest.leave()
        await called.wait()
        assert link.send([single(frame_of(1))]) == 1
        nursery.cancel_scope.cancel()
    link.close()


@pytest.mark.parametrize("shape", ["run", "parts"])
async def test_partial_writes_are_continued_to_the_byte(shape: str) -> None:
    """Whatever the place at which the buffer gets full, the guest reads an unbroken stream."""
    for length in range(3000, 3060, 7):
        link, guest = connected(send_buffer=1, read_limit=501)
        frames = [frame_of(number, length) for number in range(8)]
        sent = got = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            while got < len(frames):
                rest = frames[sent:]
                if rest:
                    runs = [run_of(rest)] if shape == "run" else [single(f[:54], f[54:60], f[60:]) for f in rest]
                    sent += link.send(runs)
                got += len(guest.receive())
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert bytes(guest.raw) == framing.join(frames).data
        link.close()


async def test_the_rest_is_a_copy() -> None:
    """What `send` was given may be overwritten as soon as it returns."""
    link, guest = connected()
    block = bytearray(framing.join([frame_of(7, 60_000)]).data)
    link.send([single(memoryview(block)[4:])])
    block[:] = bytes(len(block))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        assert await until_received(guest, 1) == [frame_of(7, 60_000)]
        nursery.cancel_scope.cancel()
    link.close()


async def test_send_itself_finishes_the_rest_when_it_can() -> None:
    link, guest = connected()
    frames = fill(link, 1000)
    got: list[bytes] = []
    while len(got) < len(frames):
        got += guest.receive()
        link.send([])
    assert got == frames
    assert link.send([single(frame_of(9))]) == 1
    assert guest.receive() == [frame_of(9)]
    link.close()


async def test_raises_the_socket_buffers() -> None:
    ours, theirs = socket.socketpair()
    before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    link = StreamLink(ours)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= before
    link.close()
    theirs.close()


class FlakySocket(socket.socket):
    """A socket whose reads fail as told before they work."""

    errors: list[OSError]

    def recv_into(self, *args: Any) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return super().recv_into(*args)


async def test_errors_while_reading() -> None:
    ours, theirs = socket.socketpair()
    sock = FlakySocket(fileno=ours.detach())
    sock.errors = [BlockingIOError(errno.EAGAIN, "a false alarm")]
    link = StreamLink(sock)
    theirs.sendall(framing.join([frame_of(1)]).data * 2)
    assert await read_frames(link, 2) == [frame_of(1)] * 2
    sock.errors = [OSError(errno.ENOMEM, "Cannot allocate memory")]
    theirs.sendall(b"x")
    with pytest.raises(LinkClosed, match="the guest's socket failed: Cannot allocate memory"):
        await link.receive_batch()
    link.close()
    theirs.close()


async def test_one_look_may_bring_a_part_of_a_frame() -> None:
    link, guest = connected()
    data = framing.join([frame_of(1), frame_of(2)]).data
    guest.send_bytes(data[:70])
    batch = link.receive_now()
    assert batch is not None
    assert list(map(bytes, batch)) == [frame_of(1)]
    assert link.receive_now() is None
    guest.send_bytes(data[70:])
    batch = link.receive_now()
    assert batch is not None
    assert list(map(bytes, batch)) == [frame_of(2)]
    guest.send_bytes(data[:70])
    guest.leave()
    assert link.receive_now() is not None
    with pytest.raises(LinkClosed, match="in the middle of a frame"):
        link.receive_now()
    link.close()


async def test_one_look_at_a_broken_frame_ends_the_link() -> None:
    link, guest = connected()
    guest.send_bytes(PREFIX.pack(3) + bytes(20))
    with pytest.raises(LinkClosed, match="framing: frame of 3 bytes"):
        link.receive_now()
    link.close()


async def test_more_than_one_look_is_needed_for_more_than_one_buffer() -> None:
    link, guest = connected()
    frames = [frame_of(number, MAX_FRAME_BYTES) for number in range(12)]
    view = memoryview(framing.join(frames).data)
    got: list[bytes] = []
    while len(got) < len(frames):
        if view:
            with suppress(BlockingIOError):
                view = view[guest.socket.send(view) :]
        got += map(bytes, link.receive_now() or ())
    assert got == frames
    link.close()


async def test_memory_of_a_batch_is_used_again_when_nobody_looks_at_it_any_more() -> None:
    link, guest = connected()
    used: set[int] = set()
    for number in range(10):
        guest.send([frame_of(number), frame_of(number + 1)])
        batch = await link.receive_batch()
        assert list(batch) == [frame_of(number), frame_of(number + 1)]
        used.add(id(memoryview(batch.data).obj))
        del batch
    assert len(used) == 1


async def test_what_somebody_looks_at_does_not_change() -> None:
    """Whatever else comes: whole batches, and the part of a frame that was there already."""
    link, guest = connected()
    held: list[memoryview] = []
    stream = b"".join(framing.join([frame_of(number, 14 + number)]).data for number in range(200))
    for start in range(0, len(stream), 130):  # frames of 14 to 213 bytes: most are cut
        guest.send_bytes(stream[start : start + 130])
        batch = link.receive_now()
        if batch is not None and len(held) % 3 != 2:
            held += batch
        elif batch is not None:
            held += map(memoryview, map(bytes, batch))
        del batch
    assert held == [frame_of(number, 14 + number) for number in range(200)]


async def test_room_is_what_the_kernel_says() -> None:
    link, guest = connected(send_buffer=1 << 20)
    link = StreamLink(link._socket)  # which asks for the size of its buffer
    whole = link.room_bytes
    assert whole >= 200_000
    sent = 0
    while not link.is_full:
        before = link.room_bytes
        assert before > 0 or sent > whole // 4
        sent += 1500 * link.send([single(bytes(1496))])
    assert link.room_bytes == 0
    assert whole // 4 < sent <= whole
    while guest.receive():
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        called = trio.Event()
        link.when_ready(called.set)
        await called.wait()
        nursery.cancel_scope.cancel()
    assert link.room_bytes == whole
