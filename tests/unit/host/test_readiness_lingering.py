"""Events that follow each other quickly are waited for on the spot, if nobody else has anything to do.

On a clock that stands still everything is quick, and a chain of events would go on for ever: so the chains end, and
what counts is how often Trio was asked in the meantime.  On a clock that is moved by events others are kept waiting for
milliseconds.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from harness.waiting import eventually
from ticks import EVENT_S, Ticks
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.host.readiness import LINGER_MOST_S, READABLE, URGENT, Readiness

EVENTS = 100

PATIENCE_S = LINGER_MOST_S + 2 * EVENT_S
"""Nobody waits longer than this."""


@pytest.fixture
def readiness() -> Iterator[Readiness]:
    ours = Readiness(lingers=True)
    yield ours
    ours.close()


class Chain:
    """Each event causes the next one, `length` times; `at_event` is called with the number of each."""

    def __init__(self, readiness: Readiness, length: float = EVENTS) -> None:
        self.count = 0
        self.length = length
        self.at_event: Callable[[int], None] = lambda _number: None
        self.socket, self._peer = socket.socketpair()
        self.socket.setblocking(False)
        readiness.watch(self.socket.fileno(), self._on_event, events=READABLE, edge_triggered=False)

    def start(self) -> None:
        self._peer.send(b"x")

    def _on_event(self, mask: int) -> None:
        assert mask == READABLE
        self.socket.recv(1)
        self.count += 1
        if self.count < self.length:
            self._peer.send(b"x")
        self.at_event(self.count)

    def close(self) -> None:
        self.socket.close()
        self._peer.close()


class Rounds(trio.abc.Instrument):
    """How often Trio looked for what is ready."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.count += 1


async def rounds_of(chain: Chain) -> int:
    """Let the chain run to its end; how many rounds of Trio's it took."""
    await wait_all_tasks_blocked()
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    chain.start()
    await eventually(lambda: chain.count >= chain.length or None, "the end of the chain")
    trio.lowlevel.remove_instrument(rounds)
    return rounds.count


def fill(sock: socket.socket) -> None:
    """Write until there is no room."""
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


@asynccontextmanager
async def delivering(readiness: Readiness, *others: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """While the readiness task runs, and `others`."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        for other in others:
            nursery.start_soon(other)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def chain(readiness: Readiness) -> Iterator[Chain]:
    ours = Chain(readiness)
    yield ours
    ours.close()


@pytest.mark.usefixtures("standing_clock")
async def test_events_that_follow_each_other_cost_no_rounds(readiness: Readiness, chain: Chain) -> None:
    async with delivering(readiness):
        assert await rounds_of(chain) < EVENTS // 4


@pytest.mark.usefixtures("standing_clock")
async def test_tasks_that_wait_for_something_far_away_do_not_matter(readiness: Readiness, chain: Chain) -> None:
    ours, peer = socket.socketpair()

    async def read() -> None:
        await trio.lowlevel.wait_readable(ours)

    async def sleep() -> None:
        await trio.sleep(0.1)

    with ours, peer:
        async with delivering(readiness, read, sleep):
            assert await rounds_of(chain) < EVENTS // 4


@pytest.mark.usefixtures("standing_clock")
async def test_near_deadline_is_not_lingered_over(readiness: Readiness, chain: Chain) -> None:
    async def sleep() -> None:
        await trio.sleep(1e-6)

    async with delivering(readiness, sleep):
        assert await rounds_of(chain) >= EVENTS // 2


class AskedAt(trio.abc.Instrument):
    """How many events there had been each time that Trio looked for what is ready."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.counts: list[int] = []

    def before_io_wait(self, _timeout: float) -> None:
        self.counts.append(self._chain.count)


@pytest.mark.usefixtures("standing_clock")
async def test_task_that_an_event_wakes_ends_it(readiness: Readiness, chain: Chain) -> None:
    woken = trio.Event()
    asked = AskedAt(chain)

    async def sleep() -> None:
        await woken.wait()

    def wake(number: int) -> None:
        if number == EVENTS // 2:
            woken.set()

    chain.at_event = wake
    async with delivering(readiness, sleep):
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(asked)
        chain.start()
        await eventually(lambda: chain.count >= EVENTS or None, "the end of the chain")
        trio.lowlevel.remove_instrument(asked)
    assert EVENTS // 2 in asked.counts
    assert len(set(asked.counts)) < EVENTS // 4


@pytest.mark.usefixtures("standing_clock")
async def test_task_that_waits_to_write_ends_it(readiness: Readiness, chain: Chain) -> None:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    fill(ours)

    async def write() -> None:
        await trio.lowlevel.wait_writable(ours)

    with ours, peer:
        async with delivering(readiness, write):
            assert await rounds_of(chain) >= EVENTS


async def test_deadline_that_an_event_brings_about_is_met_soon(readiness: Readiness, ticks: Ticks) -> None:
    """Beside a chain that never ends: no later than Trio looks for itself."""
    chain = Chain(readiness, length=float("inf"))
    late: list[float] = []
    scopes: list[trio.CancelScope] = []

    async def sleep() -> None:
        for _ in range(10):
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await trio.sleep_forever()
            late.append(trio.current_time() - scope.deadline)

    def bring_about(_number: int) -> None:
        ticks.event()
        if scopes:
            scopes.pop().deadline = trio.current_time() + 0.001

    chain.at_event = bring_about
    async with delivering(readiness):
        chain.start()
        with trio.fail_after(20):
            await sleep()
    chain.close()
    assert len(late) == 10
    assert max(late) < PATIENCE_S


async def test_pause_ends_it(readiness: Readiness, chain: Chain, mock_clock: MockClock) -> None:
    def pause(number: int) -> None:
        if number == EVENTS // 2:
            readiness.pause(1.0)

    chain.at_event = pause
    async with delivering(readiness):
        await wait_all_tasks_blocked()
        chain.start()
        await wait_all_tasks_blocked(0.001)
        assert chain.count == EVENTS // 2
        mock_clock.jump(1)
        await wait_all_tasks_blocked(0.001)
        assert chain.count == EVENTS


async def test_events_without_end_leave_the_others_their_turn(readiness: Readiness, ticks: Ticks) -> None:
    """A reader, a writer, a sleeper and a runnable task beside a chain that never ends."""
    chain = Chain(readiness, length=float("inf"))
    chain.at_event = lambda _number: ticks.event()
    sockets = [socket.socketpair() for _ in range(2)]
    (reader, its_peer), (writer, reads_it) = sockets
    for ours in (reader, writer):
        ours.setblocking(False)
    late: dict[str, float] = {}

    def note(who: str, since: float) -> None:
        late[who] = max(late.get(who, 0.0), trio.current_time() - since)

    async def read() -> None:
        for _ in range(10):
            its_peer.send(b"x")
            since = trio.current_time()
            await trio.lowlevel.wait_readable(reader)
            reader.recv(1)
            note("reader", since)

    async def write() -> None:
        for _ in range(10):
            fill(writer)
            reads_it.recv(1 << 20)
            since = trio.current_time()
            await trio.lowlevel.wait_writable(writer)
            note("writer", since)

    async def sleep() -> None:
        for _ in range(10):
            due = trio.current_time() + 0.001
            await trio.sleep_until(due)
            note("sleeper", due)

    async def run() -> None:
        for _ in range(10):
            since = trio.current_time()
            await trio.lowlevel.checkpoint()
            note("runner", since)

    async with delivering(readiness):
        chain.start()
        with trio.fail_after(20):
            async with trio.open_nursery() as others:
                for other in (read, write, sleep, run):
                    others.start_soon(other)
    assert set(late) == {"reader", "writer", "sleeper", "runner"}
    assert max(late.values()) < PATIENCE_S, late
    assert chain.count > 10
    chain.close()
    for ours, peer in sockets:
        ours.close()
        peer.close()


@pytest.mark.usefixtures("standing_clock")
async def test_callback_that_forgets_its_own_socket_ends_it(readiness: Readiness, chain: Chain) -> None:
    chain.at_event = lambda number: readiness.forget(chain.socket.fileno()) if number == 10 else None
    async with delivering(readiness):
        chain.start()
        await wait_all_tasks_blocked(0.002)
    assert chain.count == 10


@pytest.mark.usefixtures("standing_clock")
async def test_urgent_data_is_reported_as_such(readiness: Readiness) -> None:
    masks: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with ours, peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        readiness.watch(ours.fileno(), masks.append, events=READABLE | URGENT)
        async with delivering(readiness):
            peer.send(b"ordinary")
            await eventually(lambda: masks or None, "an event")
            assert not any(mask & URGENT for mask in masks)
            peer.send(b"!", socket.MSG_OOB)
            await eventually(lambda: any(mask & URGENT for mask in masks) or None, "urgent data")
