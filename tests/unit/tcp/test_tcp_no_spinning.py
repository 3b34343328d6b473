"""A flow that waits takes no turns: whatever it waits for, the time of its next turn lies ahead."""

from collections.abc import Callable

import pytest
from harness.noise import noise
from harness.stage import V4, Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.tcp.bridge import Bridge
from trio_passt.tcp.riding import QUICK_ANSWERS
from trio_passt.wire.tcp import ACK, PSH

pytestmark = pytest.mark.usefixtures("standing_clock")

MOST_TURNS = 500
"""In a spin there would be millions, and no end."""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many turns were taken since the last call."""
    count = 0
    send = Bridge.send

    def counted(bridge: Bridge, now: float) -> None:
        nonlocal count
        count += 1
        assert count < MOST_TURNS, "the flow spins"
        send(bridge, now)

    def taken() -> int:
        nonlocal count
        before, count = count, 0
        return before

    monkeypatch.setattr(Bridge, "send", counted)
    return taken


async def used_to_quick_answers(guest: Stage) -> tuple[GuestTcp, HostSocket]:
    """A connection whose next acknowledgement waits for an answer."""
    tcp, host = await guest.connected(V4)
    for number in range(QUICK_ANSWERS):
        tcp.sends(ACK | PSH, b"question")
        await tcp.expects(ACK)
        await host.receives(b"question")
        host.sends(noise(100, number))
        await tcp.expects(ACK, noise(100, number))
        tcp.sends(ACK)
    await guest.settles()
    return tcp, host


async def test_acknowledgement_that_waited_and_went_out_because_of_a_gap(
    guest: Stage, turns: Callable[[], int]
) -> None:
    tcp, host = await used_to_quick_answers(guest)
    tcp.sends(ACK | PSH, b"question")
    await tcp.expects_nothing()
    tcp.sends(ACK, b"behind a gap", seq=tcp.next + 100)
    while await tcp.arrives_or_none():
        pass
    turns()
    await guest.passes(1)
    assert turns() < 5
    await host.receives(b"question")


async def test_acknowledgement_that_waits_while_the_link_is_full(guest: Stage, turns: Callable[[], int]) -> None:
    tcp, host = await used_to_quick_answers(guest)
    guest.link.set_capacity(frames=0)
    tcp.sends(ACK | PSH, b"question")
    await host.receives(b"question")
    turns()
    await guest.passes(1)
    assert turns() < 5
    guest.link.set_capacity()
    await tcp.expects(ACK)


async def test_acknowledgement_that_waits_when_the_host_resets(guest: Stage, turns: Callable[[], int]) -> None:
    tcp, host = await used_to_quick_answers(guest)
    tcp.sends(ACK, window=0)
    host.sends(b"nobody takes this")
    await guest.settles()
    tcp.sends(ACK | PSH, b"question", window=0)
    await host.receives(b"question")
    host.resets()
    await guest.settles()
    turns()
    await guest.passes(30)
    assert turns() < 100  # window probes, and no more
