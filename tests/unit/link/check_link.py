"""The contract of `trio_passt.link.base.Link` as a test, which every link must pass.

A subclass of `LinkContract`, or of `FillingLinkContract` if the link can be full, says how to make a link and what its
guest is; see `test_link_stream.py`.
"""

import random
import select
from collections.abc import Sequence
from typing import Protocol

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_passt.link.base import Link, LinkClosed
from trio_passt.wire.frames import PREFIX, PREFIX_BYTES, FrameRun, single


class Guest(Protocol):
    """The other end, as the test sees it."""

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a few frames (64 KiB together at most), at once."""

    def receive(self) -> list[bytes]:
        """The frames that came completely since the last call; does not wait."""

    def leave(self) -> None:
        """Disconnect."""


def frame_of(number: int, length: int = 60) -> bytes:
    """A frame that tells which one it is: of every 4 bytes, none equals those of another frame."""
    return (number.to_bytes(4, "big") * (length // 4 + 1))[:length]


def run_of(frames: Sequence[bytes]) -> FrameRun:
    """Equal long frames as one run in one block."""
    block = b"".join(PREFIX.pack(len(frame)) + frame for frame in frames)
    return FrameRun((memoryview(block),), len(frames), PREFIX_BYTES + len(frames[0]))


async def read_frames(link: Link, count: int) -> list[bytes]:
    """The next frames, from however many batches."""
    frames: list[bytes] = []
    while len(frames) < count:
        batch = await link.receive_batch()
        assert len(batch) > 0
        frames.extend(map(bytes, batch))
    return frames


async def until_received(guest: Guest, count: int) -> list[bytes]:
    """The next frames at the guest's end, while the link's task runs."""
    frames = guest.receive()
    while len(frames) < count:
        await trio.testing.wait_all_tasks_blocked()
        frames += guest.receive()
    return frames


def fill(link: Link, length: int = 1000) -> list[bytes]:
    """Send until the link is full; the frames that it took."""
    frames: list[bytes] = []
    while link.send([single(frame := frame_of(len(frames), length))]):
        frames.append(frame)
        assert len(frames) < 100_000, "never full"
    return frames


class LinkContract:
    """To be subclassed; `make` gives a link, and its guest.

    `farewell` is what `LinkClosed` says of a guest that has left.  What such a guest had sent before is still read,
    unless the link `forgets_what_was_unread`.
    """

    farewell = "disconnected"
    forgets_what_was_unread = False

    def make(self) -> tuple[Link, Guest]:
        raise NotImplementedError

    async def test_batch_has_all_frames_in_order(self) -> None:
        link, guest = self.make()
        sent = [frame_of(number, 14 + 50 * number) for number in range(20)]
        guest.send(sent)
        assert await read_frames(link, 20) == sent
        link.close()

    async def test_batch_is_immutable_and_independent(self) -> None:
        link, guest = self.make()
        guest.send([frame_of(1)])
        first = await link.receive_batch()
        guest.send([frame_of(2)])
        second = await link.receive_batch()
        assert memoryview(first.data).readonly
        assert list(first) == [frame_of(1)]
        assert list(second) == [frame_of(2)]
        link.close()

    async def test_receive_is_a_checkpoint_and_loses_nothing_when_cancelled(self) -> None:
        link, guest = self.make()
        guest.send([frame_of(1)])
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.receive_batch()
        assert scope.cancelled_caught
        assert await read_frames(link, 1) == [frame_of(1)]
        with trio.move_on_after(0) as scope:
            await link.receive_batch()
        assert scope.cancelled_caught
        guest.send([frame_of(2)])
        assert await read_frames(link, 1) == [frame_of(2)]
        link.close()

    async def test_leaving_guest_ends_the_link(self) -> None:
        link, guest = self.make()
        guest.send([frame_of(1)])
        guest.leave()
        if not self.forgets_what_was_unread:
            assert await read_frames(link, 1) == [frame_of(1)]
        for _ in range(2):
            with pytest.raises(LinkClosed, match=self.farewell):
                await link.receive_batch()
        assert link.send([single(frame_of(1)), run_of([frame_of(2), frame_of(3)])]) == 3
        link.close()

    async def test_sending_to_a_guest_that_left(self) -> None:
        link, guest = self.make()
        guest.leave()
        for _ in range(3):
            assert link.send([run_of([frame_of(number, 1000) for number in range(100)])]) == 100
        with pytest.raises(LinkClosed):
            await link.receive_batch()
        link.close()

    async def test_close_wakes_the_reader_and_may_be_repeated(self) -> None:
        link, _guest = self.make()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expect_closed, link)
            await trio.testing.wait_all_tasks_blocked()
            link.close()
            link.close()
        await self._expect_closed(link)
        assert link.send([single(frame_of(1))]) == 1

    async def _expect_closed(self, link: Link) -> None:
        with pytest.raises(LinkClosed):
            await link.receive_batch()

    async def test_sends_runs_and_single_frames(self) -> None:
        link, guest = self.make()
        frames = [frame_of(number, 60) for number in range(10)]
        header, payload = frames[0][:20], memoryview(frames[0])[20:]
        assert link.send([single(header, payload), run_of(frames[1:8]), run_of(frames[8:])]) == 10
        assert await until_received(guest, 10) == frames
        assert link.send([]) == 0
        link.close()

    async def test_sends_more_parts_than_one_system_call_takes(self) -> None:
        link, guest = self.make()
        frames = [frame_of(number, 14) for number in range(700)]
        sent: list[bytes] = []
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            while len(sent) < len(frames):
                rest = frames[len(sent) :]
                count = link.send([single(frame[:7], frame[7:]) for frame in rest])
                sent += rest[:count]
                got += await until_received(guest, len(sent) - len(got))
            nursery.cancel_scope.cancel()
        assert got == frames
        link.close()

    async def test_a_link_that_is_not_full_calls_back_too(self) -> None:
        """Whoever saw a full link, and registers when it is ready again, must not wait forever."""
        link, _guest = self.make()
        called = trio.Event()
        link.when_ready(called.set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await called.wait()
            again = trio.Event()
            link.when_ready(again.set)
            await again.wait()
            nursery.cancel_scope.cancel()
        link.close()

    async def test_receives_without_waiting(self) -> None:
        link, guest = self.make()
        assert link.receive_now() is None
        sent = [frame_of(number) for number in range(5)]
        guest.send(sent)
        batch = link.receive_now()
        assert batch is not None
        assert list(map(bytes, batch)) == sent
        assert link.receive_now() is None
        guest.send(sent[:1])
        guest.leave()
        if not self.forgets_what_was_unread:
            last = link.receive_now()
            assert last is not None
            assert list(map(bytes, last)) == sent[:1]
        for _ in range(2):
            with pytest.raises(LinkClosed, match=self.farewell):
                link.receive_now()
        link.close()

    async def test_closed_link_receives_nothing(self) -> None:
        link, guest = self.make()
        guest.send([frame_of(1)])
        link.close()
        with pytest.raises(LinkClosed):
            link.receive_now()

    async def test_descriptor_is_readable_when_there_is_something(self) -> None:
        link, guest = self.make()
        descriptor = link.fileno()
        if descriptor is not None:
            watch = select.poll()
            watch.register(descriptor, select.POLLIN)
            assert not watch.poll(0)
            guest.send([frame_of(1)])
            assert watch.poll(1000)
            assert link.receive_now() is not None
            assert not watch.poll(0)
            guest.leave()
            assert watch.poll(1000)
        link.close()

    async def test_gathered_frames_come_in_order_with_the_others(self) -> None:
        link, guest = self.make()
        frames = [frame_of(number, length) for number, length in enumerate([54, 66, 1000, 54, 80, 60, 60, 70])]
        link.gather()
        for at, frame in enumerate(frames[:5]):
            assert link.send([single(frame[:20], frame[20:])]) == 1, at
        assert link.send([run_of(frames[5:7])]) == 2
        assert link.send([single(frames[7])]) == 1
        link.release()
        assert await until_received(guest, len(frames)) == frames
        assert link.send([single(frames[0])]) == 1
        assert await until_received(guest, 1) == frames[:1]
        link.release()
        assert guest.receive() == []
        link.close()

    async def test_closing_while_frames_are_gathered(self) -> None:
        link, _guest = self.make()
        link.gather()
        assert link.send([single(frame_of(1))]) == 1
        link.close()
        assert link.send([single(frame_of(2))]) == 1
        link.release()
        assert link.send([single(frame_of(3))]) == 1

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=10, deadline=None)
    async def test_senders_do_not_mix_frames(self, seed: int) -> None:
        """Bulk senders that wait for room, and two that send now or never: each frame comes as it was."""
        dice = random.Random(seed)
        link, guest = self.make()
        taken: list[bytes] = []
        got: list[bytes] = []

        async def bulk(sender: int) -> None:
            left = [frame_of(sender << 16 | number, 600 + sender) for number in range(100)]
            while left:
                some = left[: dice.randint(1, 20)]
                count = link.send([run_of(some)] if dice.random() < 0.5 else [single(f[:54], f[54:]) for f in some])
                taken.extend(some[:count])
                del left[:count]
                if count < len(some):
                    ready = trio.Event()
                    link.when_ready(ready.set)
                    await ready.wait()
                else:
                    await trio.lowlevel.checkpoint()

        async def acknowledge() -> None:
            for number in range(300):
                frame = frame_of(number, dice.randint(14, 80))
                if link.send([single(frame)]):
                    taken.append(frame)
                await trio.lowlevel.checkpoint()

        async def gather() -> None:
            """The same as the dispatcher does it, without a checkpoint inside; now and then with data in between."""
            for number in range(100):
                link.gather()
                for _ in range(dice.randint(0, 20)):
                    frame = frame_of(0x50000 | number, dice.choice([54, 60, 74, 80]))
                    if link.send([single(frame)]):
                        taken.append(frame)
                link.release()
                await trio.lowlevel.checkpoint()

        async def read() -> None:
            while True:
                got.extend(guest.receive())
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as outer:
            outer.start_soon(link.run)
            outer.start_soon(read)
            async with trio.open_nursery() as senders:
                for sender in range(1, 4):
                    senders.start_soon(bulk, sender)
                senders.start_soon(acknowledge)
                senders.start_soon(gather)
            while len(got) < len(taken):
                await trio.lowlevel.checkpoint()
            outer.cancel_scope.cancel()
        assert got == taken
        assert len([frame for frame in got if len(frame) > 80]) == 300
        link.close()


class FillingLinkContract(LinkContract):
    """Of a link that gets full; its guest reads nothing unasked."""

    async def test_close_calls_those_who_wait(self) -> None:
        """A closed link takes everything; nobody is left waiting for room in it."""
        link, _guest = self.make()
        fill(link)
        called = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            link.when_ready(called.set)
            await trio.testing.wait_all_tasks_blocked()
            assert not called.is_set()
            link.close()
            await called.wait()
            nursery.cancel_scope.cancel()

    async def test_says_how_many_it_took_and_touches_no_more(self) -> None:
        link, guest = self.make()
        frames = [frame_of(number, 1000) for number in range(1000)]
        taken = link.send([run_of(frames[:10]), run_of(frames[10:])])
        assert 0 < taken < 1000
        assert link.send([single(frame_of(0))]) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await until_received(guest, taken) == frames[:taken]
            await trio.testing.wait_all_tasks_blocked()
            assert guest.receive() == []
            nursery.cancel_scope.cancel()
        link.close()

    async def test_calls_back_in_order_when_there_is_room(self) -> None:
        link, guest = self.make()
        frames = fill(link)
        called: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for number in range(5):
                link.when_ready(lambda number=number: called.append(number))
            await trio.testing.wait_all_tasks_blocked()
            assert called == []
            assert await until_received(guest, len(frames)) == frames
            await trio.testing.wait_all_tasks_blocked()
            assert called == [0, 1, 2, 3, 4]
            nursery.cancel_scope.cancel()
        link.close()

    async def test_a_callback_that_fills_the_link_leaves_the_next_turn_to_the_others(self) -> None:
        link, guest = self.make()
        frames = fill(link)
        order: list[str] = []

        def greedy() -> None:
            order.append("greedy")
            if len(order) < 6:
                fill(link)
                link.when_ready(greedy)

        def modest() -> None:
            order.append("modest" if link.send([single(frame_of(1))]) else "too early")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            link.when_ready(greedy)
            link.when_ready(modest)
            await until_received(guest, len(frames))
            await trio.testing.wait_all_tasks_blocked()
            while len(order) < 6:
                guest.receive()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert order[:3] == ["greedy", "modest", "greedy"]
        link.close()

    async def test_run_survives_cancellation_with_a_rest_pending(self) -> None:
        link, guest = self.make()
        frames = fill(link, 999)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await until_received(guest, len(frames)) == frames
            nursery.cancel_scope.cancel()
        link.close()

    async def test_says_whether_it_is_full_and_how_many_wait(self) -> None:
        link, guest = self.make()
        assert (link.is_full, link.waiting) == (False, 0)
        frames = fill(link)
        assert link.is_full
        called: list[int] = []
        for number in range(3):
            link.when_ready(lambda number=number: called.append(number))
        assert link.waiting == 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await until_received(guest, len(frames)) == frames
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert called == [0, 1, 2]
        assert (link.is_full, link.waiting) == (False, 0)
        link.close()
        assert not link.is_full, "a closed link takes everything"

    async def test_gathering_with_nothing_to_gather(self) -> None:
        link, guest = self.make()
        link.gather()
        link.release()
        link.release()
        assert guest.receive() == []
        frames = fill(link)
        link.gather()
        link.release()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await until_received(guest, len(frames)) == frames
            nursery.cancel_scope.cancel()
        link.close()

    async def test_gathering_on_a_full_link_loses_nothing_that_was_taken(self) -> None:
        for length in range(990, 1010, 3):
            link, guest = self.make()
            taken = fill(link, length)
            link.gather()
            for number in range(50):
                frame = frame_of(0x10000 + number, 54 + number)
                if link.send([single(frame)]):
                    taken.append(frame)
            link.release()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                assert await until_received(guest, len(taken)) == taken
                await trio.testing.wait_all_tasks_blocked()
                assert guest.receive() == []
                nursery.cancel_scope.cancel()
            assert link.send([single(frame_of(1))]) == 1
            link.close()
