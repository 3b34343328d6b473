"""Unsolicited router advertisements: when they come (RFC 4861 sections 6.2.1, 6.2.4), on a clock that jumps."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from itertools import pairwise

import pytest
import trio
from attrs import evolve
from harness.oracle import SeenOther, see
from harness.stage import GUEST_MAC, V6, network
from scapy.layers.inet6 import ICMPv6ND_RA
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import Config, GuestNetwork, Resolvers
from trio_passt.guests import Current, Serving, serve_guest
from trio_passt.host.listeners import PortListeners
from trio_passt.link.memory import MemoryLink

pytestmark = pytest.mark.usefixtures("jumping_clock")

SOON_S, MIN_S, MAX_S = 16, 200, 600
LONG_S = 4 * 3600


class Heard:
    """What a guest hears of its router, and when."""

    def __init__(self, current: Current) -> None:
        self.current = current
        self._times: list[float] = []
        self._start = trio.current_time()

    async def listen(self, link: MemoryLink) -> None:
        while True:
            seen = see(await link.next_sent(), GUEST_MAC.hex(":"))
            if isinstance(seen, SeenOther) and seen.packet.haslayer(ICMPv6ND_RA):
                assert (seen.source, seen.destination, seen.packet.hlim) == (V6.gateway, "ff02::1", 255)
                self._times.append(trio.current_time())

    def intervals(self) -> list[float]:
        """Between the advertisements since the last time that this was called, the first one from then on."""
        times = [self._start, *self._times]
        self._start, self._times = trio.current_time(), []
        return [later - earlier for earlier, later in pairwise(times)]


@asynccontextmanager
async def served(first: GuestNetwork) -> AsyncIterator[Heard]:
    """A guest that does nothing but listen."""
    link, listeners = MemoryLink(), PortListeners.bind([])
    current = Current(first)
    heard = Heard(current)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_guest, link, Serving(Config(first), current, listeners))
        nursery.start_soon(heard.listen, link)
        await wait_all_tasks_blocked()
        yield heard
        nursery.cancel_scope.cancel()
    listeners.close()


def check(intervals: list[float]) -> None:
    """Three soon, and then as rarely as routers should."""
    soon, later = intervals[:3], intervals[3:]
    assert len(later) > LONG_S / MAX_S - 2
    assert all(0 < interval_s <= SOON_S for interval_s in soon), soon
    assert all(MIN_S <= interval_s <= MAX_S for interval_s in later), later


async def test_three_soon_and_then_rarely() -> None:
    async with served(network()) as heard:
        await trio.sleep(LONG_S)
        check(heard.intervals())


@pytest.mark.parametrize(("dice", "interval_s"), [(0.0, MIN_S), (1.0, MAX_S)])
async def test_intervals_are_drawn(monkeypatch: pytest.MonkeyPatch, dice: float, interval_s: float) -> None:
    """So that routers do not fall in step."""
    monkeypatch.setattr(random, "random", lambda: dice)
    async with served(network()) as heard:
        await trio.sleep(LONG_S)
        assert heard.intervals()[3:] == pytest.approx([interval_s] * ((LONG_S - 3 * SOON_S) // int(interval_s)))


@pytest.mark.parametrize("after_s", [1000.0, 20.0], ids=["rarely", "soon"])
async def test_change_is_told_at_once_and_then_again_as_at_first(after_s: float) -> None:
    async with served(network()) as heard:
        await trio.sleep(after_s)
        heard.intervals()
        heard.current.change(evolve(network(), resolvers=Resolvers((), (IPv6Address("2001:db8::53"),))))
        await trio.sleep(LONG_S)
        at_once, *then = heard.intervals()
        assert at_once == 0
        check(then)


async def test_change_that_ipv6_has_no_part_in_is_a_change_all_the_same() -> None:
    """A guest that missed the one about the change before hears of it again."""
    async with served(network()) as heard:
        await trio.sleep(1000)
        heard.intervals()
        heard.current.change(network(ipv4=False))
        await trio.sleep(LONG_S)
        check(heard.intervals())


async def test_changes_one_after_the_other() -> None:
    """Each starts it anew, and none of them makes it faster than that."""
    changes, every_s = 20, SOON_S - 1
    async with served(network()) as heard:
        for step in range(changes):
            heard.current.change(evolve(network(), ipv6_offline=step % 2 == 0))
            await trio.sleep(every_s)
        unasked = len(heard.intervals()) - changes
        assert unasked == pytest.approx(changes * every_s / SOON_S, abs=1)


@pytest.mark.parametrize("every_s", [1.0, SOON_S - 1, SOON_S, MIN_S / 2])
async def test_host_that_keeps_changing_does_not_put_them_off(every_s: float) -> None:
    """Or the guest's router would expire: its IPv4 flaps, and IPv6 has no part in that."""
    async with served(network()) as heard:
        for step in range(int(900 / every_s)):
            heard.current.change(network(ipv4=step % 2 == 0))
            await trio.sleep(every_s)
        assert max(heard.intervals()) <= max(SOON_S, every_s)


async def test_ipv6_appears_later() -> None:
    async with served(network(ipv6=False)) as heard:
        await trio.sleep(LONG_S)
        assert heard.intervals() == []
        heard.current.change(network())
        await trio.sleep(LONG_S)
        at_once, *then = heard.intervals()
        assert at_once == 0
        check(then)


async def test_responder_is_there_for_as_long_as_its_guest() -> None:
    async with served(network()) as heard:
        current = heard.current
        assert current.responder is not None
    assert current.responder is None
    current.change(network(ipv4=False))  # for the next guest
    assert current.network == network(ipv4=False)
