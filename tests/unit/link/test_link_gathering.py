"""`StreamLink` between `gather` and `release`: one system call for many small frames, and an unbroken stream."""

import random
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from attrs import frozen
from check_link import frame_of, run_of, until_received
from test_link_stream import StreamGuest
from trio.testing import wait_all_tasks_blocked

from trio_passt.link.base import LinkClosed
from trio_passt.link.stream import SMALL_FRAME_BYTES, StreamLink
from trio_passt.wire import framing
from trio_passt.wire.frames import PREFIX_BYTES, single


class NarrowSocket(socket.socket):
    """A socket that takes only so many bytes, whatever the kernel would; `None` for no limit."""

    room: int | None = None
    calls = 0

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        self.calls += 1
        if self.room is None:
            return super().sendmsg(buffers, *arguments)
        data = b"".join(buffers)[: self.room]
        if not data:
            raise BlockingIOError
        self.room -= len(data)
        return super().sendmsg([data], *arguments)


@frozen
class Ends:
    link: StreamLink
    socket: NarrowSocket
    guest: StreamGuest


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair()
    sock = NarrowSocket(fileno=ours.detach())
    link = StreamLink(sock)
    yield Ends(link, sock, StreamGuest(theirs))
    link.close()
    theirs.close()


def small(number: int) -> bytes:
    return frame_of(number, 54 + number % 7)


def gathers(link: StreamLink, frames: Sequence[bytes]) -> None:
    """Everything is taken."""
    link.gather()
    for frame in frames:
        assert link.send([single(frame[:14], frame[14:])]) == 1


async def test_small_frames_are_kept_and_written_with_one_call(ends: Ends) -> None:
    frames = [small(number) for number in range(2000)]
    gathers(ends.link, frames)
    assert ends.socket.calls == 0
    assert ends.guest.receive() == []
    ends.link.release()
    assert ends.socket.calls == 1
    assert await until_received(ends.guest, 2000) == frames


async def test_size_up_to_which_frames_are_kept(ends: Ends) -> None:
    largest = SMALL_FRAME_BYTES - PREFIX_BYTES
    ends.link.gather()
    ends.link.send([single(frame_of(1, largest))])
    assert ends.socket.calls == 0
    ends.link.send([single(frame_of(2, largest + 1))])
    assert ends.socket.calls == 1
    assert ends.guest.receive() == [frame_of(1, largest), frame_of(2, largest + 1)]
    ends.link.release()
    assert ends.socket.calls == 1


async def test_what_is_kept_is_a_copy(ends: Ends) -> None:
    frame = bytearray(frame_of(1))
    ends.link.gather()
    ends.link.send([single(memoryview(frame))])
    frame[:] = bytes(len(frame))
    ends.link.release()
    assert ends.guest.receive() == [frame_of(1)]


async def test_data_takes_what_was_gathered_along(ends: Ends) -> None:
    frames = [frame_of(number, 1000) for number in range(3)]
    gathers(ends.link, [small(1), small(2)])
    assert ends.link.send([run_of(frames)]) == 3
    assert ends.socket.calls == 1
    assert ends.guest.receive() == [small(1), small(2), *frames]


def lengths(frames: Sequence[bytes]) -> int:
    return sum(PREFIX_BYTES + len(frame) for frame in frames)


async def test_full_at_each_byte_of_a_gathered_block(ends: Ends) -> None:
    """What was taken comes, to the byte, and nothing in between; what is sent meanwhile is not taken."""
    frames = [small(number) for number in range(3)]
    sent: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.link.run)
        for room in range(lengths(frames) + 1):
            ends.socket.room = room
            gathers(ends.link, frames)
            ends.link.release()
            sent += frames
            is_all = room == lengths(frames)
            assert ends.link.is_full != is_all
            if not is_all:
                assert ends.link.send([single(small(9))]) == 0
                ends.link.gather()
                assert ends.link.send([single(small(9))]) == 0, "an acknowledgement inside a frame would be the end"
                ends.link.release()
            ends.socket.room = None
            await wait_all_tasks_blocked()
            assert not ends.link.is_full
        assert await until_received(ends.guest, len(sent)) == sent
        nursery.cancel_scope.cancel()
    assert ends.guest.raw == framing.join(sent).data


async def test_full_at_each_byte_of_a_gathered_block_with_data_behind(ends: Ends) -> None:
    frames = [small(1), small(2)]
    data = [frame_of(number, 130) for number in range(3)]
    sent: list[bytes] = []
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.link.run)
        for room in range(lengths(frames + data) + 1):
            ends.socket.room = room
            gathers(ends.link, frames)
            taken = ends.link.send([single(data[0]), run_of(data[1:])])
            begun = max(0, room - lengths(frames))
            assert taken == -(-begun // (PREFIX_BYTES + 130)), "a frame once begun is taken"
            ends.link.release()
            sent += frames + data[:taken]
            ends.socket.room = None
            await wait_all_tasks_blocked()
            got += await until_received(ends.guest, len(sent) - len(got))
        nursery.cancel_scope.cancel()
    assert got == sent
    assert ends.guest.raw == framing.join(sent).data


async def test_room_that_comes_bit_by_bit(ends: Ends) -> None:
    frames = [small(number) for number in range(5)]
    ends.socket.room = 0
    gathers(ends.link, frames)
    ends.link.release()
    for _ in range(lengths(frames)):
        ends.socket.room = 1
        assert ends.link.send([]) == 0
    ends.socket.room = None
    assert ends.guest.receive() == frames
    assert ends.guest.raw == framing.join(frames).data


async def test_callbacks_wait_until_the_gathered_block_is_out(ends: Ends) -> None:
    frames = [small(1), small(2)]
    called: list[int] = []
    ends.socket.room = 10
    gathers(ends.link, frames)
    ends.link.release()
    ends.link.when_ready(lambda: called.append(ends.link.send([single(small(3))])))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.link.run)
        for room in (1, lengths(frames) - 12, 0):
            ends.socket.room = room
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert ends.socket.room == 0
            assert not called, "a byte is missing"
        ends.socket.room = None
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert called == [1]
    assert await until_received(ends.guest, 3) == [*frames, small(3)]


async def test_guest_that_leaves_while_frames_are_gathered(ends: Ends) -> None:
    gathers(ends.link, [small(1)])
    ends.guest.leave()
    ends.link.release()
    assert ends.link.send([single(small(2))]) == 1
    with pytest.raises(LinkClosed):
        ends.link.receive_now()
    gathers(ends.link, [small(3)])
    ends.link.release()


async def test_any_mix_of_frames_and_room_is_an_unbroken_stream(ends: Ends) -> None:
    dice = random.Random(3)
    taken: list[bytes] = []
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.link.run)
        for number in range(1500):
            match dice.randrange(6):
                case 0:
                    ends.link.gather()
                case 1:
                    ends.link.release()
                case 2:
                    ends.socket.room = dice.choice([None, 0, 1, dice.randrange(3000)])
                case 3:
                    some = [frame_of(number * 16 + index, 700) for index in range(5)]
                    taken += some[: ends.link.send([run_of(some)])]
                case _:
                    frame = small(number * 16)
                    taken += [frame][: ends.link.send([single(frame)])]
            if dice.random() < 0.1:
                ends.socket.room = None
                await wait_all_tasks_blocked()
            got += ends.guest.receive()
        ends.socket.room = None
        ends.link.release()
        got += await until_received(ends.guest, len(taken) - len(got))
        nursery.cancel_scope.cancel()
    assert len(taken) > 500
    assert got == taken
    assert ends.guest.unread == b""
