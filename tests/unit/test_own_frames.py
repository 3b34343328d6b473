"""The root task with a link that has a descriptor: it is watched together with the host's sockets."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import field, frozen
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.guests import own_frames
from trio_passt.host.readiness import READABLE, Readiness
from trio_passt.link.base import LinkClosed
from trio_passt.link.memory import MemoryLink
from trio_passt.link.stream import StreamLink
from trio_passt.wire import framing
from trio_passt.wire.frames import FrameBatch, single

pytestmark = pytest.mark.usefixtures("standing_clock")


class Frames:
    """Where the batches go, instead of a `Dispatcher`."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.searches = 0
        self.responder = self
        self.on_frame: Callable[[bytes], None] = lambda _frame: None

    def find_guest(self) -> None:
        self.searches += 1

    def dispatch(self, batch: FrameBatch) -> None:
        for frame in batch:
            self.frames.append(bytes(frame))
            self.on_frame(bytes(frame))


@frozen
class Scene:
    link: StreamLink
    guest: socket.socket
    readiness: Readiness
    frames: Frames = field(factory=Frames)
    ends: list[Exception] = field(factory=list)

    async def run(self) -> None:
        """As the daemon has it; the end is noted."""
        try:
            await own_frames(self.link, self.frames, self.readiness)  # type: ignore[arg-type]
        except Exception as reason:
            self.ends.append(reason)

    def sends(self, *frames: bytes) -> None:
        self.guest.sendall(framing.join(frames).data)

    async def expects(self, *frames: bytes) -> None:
        await eventually(lambda: len(self.frames.frames) >= len(frames) or None, "frames")
        assert self.frames.frames == list(frames)
        self.frames.frames.clear()

    async def end(self) -> Exception:
        return await eventually(lambda: self.ends[0] if self.ends else None, "the end")


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    ours, theirs = socket.socketpair()
    readiness = Readiness()
    scene = Scene(StreamLink(ours), theirs, readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(scene.link.run)
        nursery.start_soon(scene.run)
        await wait_all_tasks_blocked()
        yield scene
        nursery.cancel_scope.cancel()
    scene.link.close()
    readiness.close()
    theirs.close()


def frame(number: int) -> bytes:
    return number.to_bytes(4, "big") * 15


async def test_frames_are_dispatched_as_they_come() -> None:
    async with scene() as stage:
        assert stage.frames.searches == 1, "the guest is looked for first"
        stage.sends(frame(1), frame(2))
        await stage.expects(frame(1), frame(2))
        data = framing.join([frame(3), frame(4)]).data
        stage.guest.sendall(data[:70])
        await stage.expects(frame(3))
        stage.guest.sendall(data[70:])
        await stage.expects(frame(4))
        assert not stage.ends


async def test_more_than_one_read_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one read leaves behind makes the descriptor readable still."""
    async with scene() as stage:
        monkeypatch.setattr(stage.link, "_buffer", bytearray(200))
        frames = [frame(number) for number in range(100)]
        stage.sends(*frames)
        await stage.expects(*frames)


async def test_frames_that_were_there_before() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(framing.join([frame(1)]).data)
    readiness = Readiness()
    stage = Scene(StreamLink(ours), theirs, readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(stage.run)
        await stage.expects(frame(1))
        nursery.cancel_scope.cancel()
    stage.link.close()
    readiness.close()
    theirs.close()


async def test_guest_that_hangs_up_ends_it_after_its_last_frames() -> None:
    async with scene() as stage:
        stage.sends(frame(1))
        stage.guest.close()
        end = await stage.end()
        assert isinstance(end, LinkClosed)
        assert "disconnected" in str(end)
        assert stage.frames.frames == [frame(1)]


async def test_guest_that_only_shuts_down_ends_it() -> None:
    async with scene() as stage:
        stage.guest.shutdown(socket.SHUT_WR)
        assert isinstance(await stage.end(), LinkClosed)


async def test_broken_framing_ends_it() -> None:
    async with scene() as stage:
        stage.guest.sendall(bytes(100))
        end = await stage.end()
        assert isinstance(end, LinkClosed)
        assert "framing" in str(end)


async def test_write_that_fails_ends_it() -> None:
    """A guest that reads no more is found out by what is sent to it."""
    async with scene() as stage:
        stage.guest.shutdown(socket.SHUT_RD)
        stage.link.gather()
        assert stage.link.send([single(frame(1))]) == 1
        stage.link.release()
        assert isinstance(await stage.end(), LinkClosed)


async def test_error_while_dispatching_surfaces_and_nothing_more_is_read(caplog: pytest.LogCaptureFixture) -> None:
    problem = ValueError("a bug")

    def fail(data: bytes) -> None:
        if data == frame(2):
            raise problem

    async with scene() as stage:
        stage.frames.on_frame = fail
        stage.sends(frame(1), frame(2))
        assert await stage.end() is problem
        stage.sends(frame(3))
        await wait_all_tasks_blocked(0.001)
        assert frame(3) not in stage.frames.frames
        assert not caplog.records, "it is not one of the callbacks' bugs that are only logged"


async def test_other_sockets_go_on_after_an_error() -> None:
    def fail(_data: bytes) -> None:
        raise ValueError("a bug")

    masks: list[int] = []
    ours, peer = socket.socketpair()
    async with scene() as stage:
        stage.frames.on_frame = fail
        stage.readiness.watch(ours.fileno(), masks.append, events=READABLE)
        stage.sends(frame(1))
        peer.send(b"x")
        await stage.end()
        await eventually(lambda: masks or None, "an event")
    ours.close()
    peer.close()


async def test_cancellation_forgets_the_descriptor() -> None:
    ours, theirs = socket.socketpair()
    readiness = Readiness()
    stage = Scene(StreamLink(ours), theirs, readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    readiness.watch(ours.fileno(), lambda _mask: None, events=READABLE)  # or it would be there already
    stage.link.close()
    readiness.close()
    theirs.close()


async def test_link_without_a_descriptor() -> None:
    link, frames, readiness = MemoryLink(), Frames(), Readiness()
    link.push([frame(1)])
    link.push([frame(2)])
    link.disconnect("bye")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LinkClosed, match="bye"):
        await own_frames(link, frames, readiness)  # type: ignore[arg-type]
    assert frames.frames == [frame(1), frame(2)]
    assert frames.searches == 1
    assert len(os.listdir("/proc/self/fd")) == before
    readiness.close()
