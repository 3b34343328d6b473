"""Who waited for room in a link and is no more is not called, and leaves nothing there; every link must pass this."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from attrs import define
from check_link import Guest, fill, until_received
from test_link_memory import MemoryGuest
from test_link_stream import StreamGuest

from trio_passt.link.base import Link
from trio_passt.link.capture import CapturingLink, open_capture
from trio_passt.link.memory import MemoryLink
from trio_passt.link.stream import StreamLink

MANY = 60_000


@define(eq=False)
class Waiter:
    """Somebody who waits for room, and writes down in `log` that it was called."""

    name: str
    log: list[str]
    then: Callable[[], None] = lambda: None

    def on_room(self) -> None:
        self.log.append(self.name)
        self.then()


class ForgetContract:
    """To be subclassed; `ends` gives a link that is full, with nobody waiting yet, and its guest."""

    @pytest.fixture
    def ends(self) -> Iterator[tuple[Link, Guest]]:
        raise NotImplementedError

    async def gets_room(self, ends: tuple[Link, Guest], frames: list[bytes]) -> None:
        """The guest takes all frames, and whoever waits is called."""
        link, guest = ends
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            assert await until_received(guest, len(frames)) == frames
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def test_forgotten_one_is_not_called_and_the_others_are_in_their_order(
        self, ends: tuple[Link, Guest]
    ) -> None:
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiters = [Waiter(name, log) for name in "abcde"]
        for waiter in waiters:
            link.when_ready(waiter.on_room)
        for waiter in (waiters[0], waiters[2], waiters[4]):
            link.forget(waiter.on_room)
        assert link.waiting == 2
        await self.gets_room(ends, frames)
        assert log == ["b", "d"]
        assert link.waiting == 0

    async def test_all_forgotten(self, ends: tuple[Link, Guest]) -> None:
        """The link's own task finds nobody, and is none the worse for it."""
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiter = Waiter("gone", log)
        link.when_ready(waiter.on_room)
        link.forget(waiter.on_room)
        assert link.waiting == 0
        await self.gets_room(ends, frames)
        assert log == []

    async def test_who_does_not_wait_may_be_forgotten(self, ends: tuple[Link, Guest]) -> None:
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiter, other = Waiter("waits", log), Waiter("other", log)
        link.when_ready(waiter.on_room)
        link.forget(other.on_room)
        await self.gets_room(ends, frames)
        link.forget(waiter.on_room)
        assert log == ["waits"]

    async def test_who_asks_twice_is_called_once_in_its_first_place(self, ends: tuple[Link, Guest]) -> None:
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiters = [Waiter(name, log) for name in "ab"]
        for waiter in (*waiters, waiters[0]):
            link.when_ready(waiter.on_room)
        assert link.waiting == 2
        await self.gets_room(ends, frames)
        assert log == ["a", "b"]

    async def test_who_was_forgotten_and_asks_again_is_the_last(self, ends: tuple[Link, Guest]) -> None:
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiters = [Waiter(name, log) for name in "ab"]
        for waiter in waiters:
            link.when_ready(waiter.on_room)
        link.forget(waiters[0].on_room)
        link.when_ready(waiters[0].on_room)
        await self.gets_room(ends, frames)
        assert log == ["b", "a"]

    async def test_first_one_has_all_others_forgotten(self, ends: tuple[Link, Guest]) -> None:
        """In the round in which they would have been called: the end of one flow may be that of others."""
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        others = [Waiter(name, log) for name in "bcd"]

        def forget_others() -> None:
            for other in others:
                link.forget(other.on_room)

        for waiter in (Waiter("a", log, forget_others), *others):
            link.when_ready(waiter.on_room)
        await self.gets_room(ends, frames)
        assert log == ["a"]
        assert link.waiting == 0

    async def test_thousands_that_wait_are_called_in_no_time(self, ends: tuple[Link, Guest]) -> None:
        """To take the first one of all has its price, but it does not grow with how many there were before it.

        Measured by what it costs to ask: about the same, and not some hundred times as much.
        """
        link, frames, log = ends[0], fill(ends[0]), list[str]()
        waiters = [Waiter("", log) for _ in range(MANY)]
        started = time.process_time()
        for waiter in waiters:
            link.when_ready(waiter.on_room)
        asking_s = time.process_time() - started
        assert link.waiting == MANY
        started = time.process_time()
        await self.gets_room(ends, frames)
        assert len(log) == MANY
        assert time.process_time() - started < 20 * asking_s


class TestMemoryLink(ForgetContract):
    @pytest.fixture
    def ends(self) -> Iterator[tuple[Link, Guest]]:
        link = MemoryLink(capacity_frames=30)
        yield link, MemoryGuest(link)
        link.close()


class TestStreamLink(ForgetContract):
    @pytest.fixture
    def ends(self) -> Iterator[tuple[Link, Guest]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield StreamLink(ours), StreamGuest(theirs)


class TestCapturingLink(ForgetContract):
    @pytest.fixture
    def ends(self, tmp_path: Path) -> Iterator[tuple[Link, Guest]]:
        capture = open_capture(tmp_path / "guest.pcap")
        link = MemoryLink(capacity_frames=30)
        yield CapturingLink(link, capture), MemoryGuest(link)
        capture.close()
