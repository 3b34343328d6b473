"""`MemoryLink`: the contract, and what tests rely on besides."""

from collections.abc import Sequence

import trio
from check_link import FillingLinkContract, Guest, frame_of

from trio_passt.link.base import Link
from trio_passt.link.memory import MemoryLink, SentFrame
from trio_passt.wire.frames import Capabilities, Offload, single


class MemoryGuest:
    def __init__(self, link: MemoryLink) -> None:
        self.link = link

    def send(self, frames: Sequence[bytes]) -> None:
        self.link.push(frames)

    def receive(self) -> list[bytes]:
        return self.link.take_sent()

    def leave(self) -> None:
        self.link.disconnect()


class TestFramesContract(FillingLinkContract):
    def make(self) -> tuple[Link, Guest]:
        link = MemoryLink(capacity_frames=30)
        return link, MemoryGuest(link)


class TestBytesContract(FillingLinkContract):
    def make(self) -> tuple[Link, Guest]:
        link = MemoryLink(capacity_bytes=20_000)
        return link, MemoryGuest(link)


async def test_one_push_is_one_batch() -> None:
    link = MemoryLink()
    link.push([frame_of(1), frame_of(2)], [Offload(34, 16), None])
    link.push([])
    link.push([frame_of(3)])
    batch = await link.receive_batch()
    assert list(batch) == [frame_of(1), frame_of(2)]
    assert batch.offloads == [Offload(34, 16), None]
    assert list(await link.receive_batch()) == [frame_of(3)]


async def test_offloads_are_shown_to_the_test() -> None:
    capabilities = Capabilities(checksum=True, tso4=True, tso6=True)
    link = MemoryLink(capabilities)
    assert link.capabilities == capabilities
    offload = Offload(34, 16, 54, 1460)
    link.send([single(frame_of(1), offload=offload)])
    assert link.take_sent_frames() == [SentFrame(frame_of(1), offload)]


async def test_waits_for_a_sent_frame(autojump_clock: trio.testing.MockClock) -> None:
    link = MemoryLink()

    async def send_later() -> None:
        await trio.sleep(3600)
        link.send([single(frame_of(1)), single(frame_of(2))])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_later)
        assert await link.next_sent() == frame_of(1)
        assert await link.next_sent() == frame_of(2)
    assert trio.current_time() >= 3600


async def test_another_capacity_makes_it_ready() -> None:
    link = MemoryLink(capacity_frames=0)
    assert link.is_full
    called = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        link.when_ready(called.set)
        await trio.testing.wait_all_tasks_blocked()
        assert not called.is_set()
        link.set_capacity(frames=1)
        await called.wait()
        nursery.cancel_scope.cancel()
    assert link.send([single(frame_of(1)), single(frame_of(2))]) == 1
    link.set_capacity()
    assert link.send([single(frame_of(2))]) == 1
