"""What is not urgent is done when it is Trio's turn, after the events that follow each other quickly."""

import socket
from collections.abc import Iterator

import pytest
import trio
from harness.waiting import eventually
from ticks import EVENT_S, Ticks

from trio_passt.host.readiness import LATER_MOST_S, LINGER_MOST_S, READABLE, Readiness


@pytest.fixture(params=[False, True], ids=["", "lingers"])
def readiness(request: pytest.FixtureRequest) -> Iterator[Readiness]:
    ours = Readiness(lingers=request.param)
    yield ours
    ours.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


async def test_at_once_while_nothing_is_delivered(readiness: Readiness) -> None:
    done: list[str] = []
    readiness.later(lambda: done.append("now"))
    assert done == ["now"]


async def test_after_the_events_in_order_and_once(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    told: list[str] = []

    def on_event(_mask: int) -> None:
        one.recv(1)
        for name in ("first", "second"):
            readiness.later(lambda name=name: told.append(name))  # type: ignore[misc]
        told.append("event")

    readiness.watch(one.fileno(), on_event, events=READABLE, edge_triggered=False)
    other.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await eventually(lambda: len(told) == 3 or None, "what was left")
        other.send(b"x")
        await eventually(lambda: len(told) == 6 or None, "what was left of the second event")
        nursery.cancel_scope.cancel()
    assert told == ["event", "first", "second"] * 2


async def test_does_not_end_the_lingering(pair: tuple[socket.socket, socket.socket]) -> None:
    """Events that cause each other are delivered without Trio, though something is left to be done after each."""
    one, other = pair
    readiness = Readiness(lingers=True)
    order: list[str] = []

    def on_event(_mask: int) -> None:
        one.recv(1)
        order.append("event")
        readiness.later(lambda: order.append("later"))
        if order.count("event") < 5:
            other.send(b"x")

    readiness.watch(one.fileno(), on_event, events=READABLE, edge_triggered=False)
    other.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await eventually(lambda: order.count("later") == 5 or None, "five events and what they left")
        nursery.cancel_scope.cancel()
    readiness.close()
    assert order[:2] == ["event", "event"]


async def test_is_done_though_a_callback_raises(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    done: list[str] = []

    def on_event(_mask: int) -> None:
        readiness.later(lambda: done.append("later"))
        raise RuntimeError("a bug")

    readiness.watch(one.fileno(), on_event, events=READABLE, edge_triggered=False)
    other.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await eventually(lambda: done or None, "what was left")
        nursery.cancel_scope.cancel()
    assert done == ["later"]


async def test_is_done_in_time_while_events_go_on(pair: tuple[socket.socket, socket.socket], ticks: Ticks) -> None:
    one, other = pair
    readiness = Readiness(lingers=True)
    waited: list[float] = []
    asked_at: list[float] = []

    def do_it() -> None:
        waited.append(trio.current_time() - asked_at.pop())

    def on_event(_mask: int) -> None:
        one.recv(1)
        ticks.event()
        if not asked_at:
            asked_at.append(trio.current_time())
            readiness.later(do_it)
        if trio.current_time() < 0.2:
            other.send(b"x")

    readiness.watch(one.fileno(), on_event, events=READABLE, edge_triggered=False)
    other.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        await eventually(lambda: (trio.current_time() >= 0.2 and not asked_at) or None, "the end of the events")
        nursery.cancel_scope.cancel()
    readiness.close()
    assert len(waited) >= 0.2 / (LATER_MOST_S + LINGER_MOST_S) - 1
    assert max(waited) < LATER_MOST_S + LINGER_MOST_S + 2 * EVENT_S


async def test_what_is_left_is_done_at_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    readiness = Readiness(lingers=True)
    done: list[str] = []

    def on_event(_mask: int) -> None:
        one.recv(1)
        readiness.later(lambda: done.append("later"))
        other.send(b"x")
        nursery.cancel_scope.cancel()

    readiness.watch(one.fileno(), on_event, events=READABLE, edge_triggered=False)
    other.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
    readiness.close()
    assert done
