"""The flows of one protocol: look-up, start, limits, and the one place that decides what an error ends.

A flow's expected errors (the peer resets, the host has no route) are its own business: it tells both sides and ends.
What escapes from a flow is a bug; it ends that flow, which tells the guest if it can, with one log line, and nothing
else.  Cancellation is the guest session's end.
"""

import heapq
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeVar

import trio

from trio_passt.flow.key import FlowKey
from trio_passt.flow.life import at_once
from trio_passt.host.seldom import SeldomLog

log = logging.getLogger("trio_passt.flow")

MAKE_WAY = 16
"""One flow in so many ends at a time: to find the idlest costs a look at all."""


class Flow(Protocol):
    """What the table asks of a flow."""

    @property
    def key(self) -> FlowKey:
        """Its name."""

    async def run(self) -> None:
        """Its whole life; it gives back what it holds when it returns, raises, or is cancelled."""

    def abandon(self) -> None:
        """After an unexpected error out of `run`: tell the guest that this is over.  Must not raise."""


F = TypeVar("F", bound=Flow)


class FlowLimit:
    """How many flows of one `kind` there may be."""

    __slots__ = ("_kind", "_seldom", "count", "most")

    def __init__(self, most: int, kind: str = "") -> None:
        self._kind = f"{kind} " if kind else ""
        self.most = most
        self.count = 0
        self._seldom = SeldomLog()

    def is_reached(self) -> bool:
        """True, with a log line now and then, when there is no room for one more."""
        if self.count < self.most:
            return False
        self._seldom.warn(log, "limit of %d %sflows reached, refusing new ones", self.most, self._kind)
        return True


class FlowTable(Generic[F]):
    """Flows by key, each running as a task in the guest session's nursery."""

    def __init__(
        self, nursery: trio.Nursery, limit: FlowLimit, later: Callable[[Callable[[], None]], None] = at_once
    ) -> None:
        """`later` calls back when there is time: a flow's life begins without its task."""
        self._nursery = nursery
        self._later = later
        self._limit = limit
        self._flows: dict[tuple[bytes, int, bytes, int], F] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[F]:
        return iter(self._flows.values())

    def newest(self, most: int) -> list[F]:
        """Up to so many flows, the newest first."""
        return list(islice(reversed(self._flows.values()), most))

    @property
    def limit(self) -> FlowLimit:
        """How many flows there may be; several tables may have one together."""
        return self._limit

    @property
    def most(self) -> int:
        """How many flows there may be."""
        return self._limit.most

    def get(self, key: tuple[bytes, int, bytes, int]) -> F | None:
        """The running flow with this key, given as `FlowKey` or as a tuple that equals it."""
        return self._flows.get(key)

    def start(self, flow: F) -> bool:
        """Start `flow`, whose key must be free; false if the limit is reached, and nothing was started."""
        if self._limit.is_reached():
            return False
        assert flow.key not in self._flows
        self._flows[flow.key] = flow
        self._limit.count += 1
        self._later(partial(self._begin, flow))
        return True

    def _begin(self, flow: F) -> None:
        self._nursery.start_soon(self._supervise, flow)

    def forget(self, flow: F) -> None:
        """A flow that has ended but for its task: its key is free from now on, and it does not count any more."""
        del self._flows[flow.key]
        self._limit.count -= 1

    async def _supervise(self, flow: F) -> None:
        try:
            await flow.run()
        except Exception:
            log.exception("flow %s ended by an internal error; please report this", flow.key)
            flow.abandon()
        finally:
            if self._flows.get(flow.key) is flow:
                self.forget(flow)


class BriefFlow(Flow, Protocol):
    """What a `BriefTable` asks of a flow besides."""

    @property
    def has_ended_well(self) -> bool:
        """Whether there is nothing left for its task to do, or to raise."""


B = TypeVar("B", bound=BriefFlow)


class BriefTable(FlowTable[B]):
    """Flows many of which are over before their task has begun: those need none any more."""

    def _begin(self, flow: B) -> None:
        if not flow.has_ended_well:
            super()._begin(flow)
        elif self.get(flow.key) is flow:
            self.forget(flow)


class SilentFlow(BriefFlow, Protocol):
    """What a `SilentTable` asks of a flow besides."""

    @property
    def active_at(self) -> float:
        """When something last passed, on Trio's clock."""

    def end(self) -> None:
        """End it on the spot."""


S = TypeVar("S", bound=SilentFlow)


class SilentTable(BriefTable[S]):
    """Flows that anybody can open and that end only by silence: where there are `most`, the idlest make way."""

    def __init__(
        self, nursery: trio.Nursery, most: int, kind: str, later: Callable[[Callable[[], None]], None] = at_once
    ) -> None:
        super().__init__(nursery, FlowLimit(most, kind), later)
        self._most = most

    def start(self, flow: S) -> bool:
        """Start `flow`, whose key must be free, or that of a flow that has ended but for its task."""
        former = self.get(flow.key)
        if former is not None:
            self.forget(former)
        if len(self) >= self._most:
            for other in heapq.nsmallest(max(1, len(self) // MAKE_WAY), self, key=_active_at):
                other.end()
                self.forget(other)
        return super().start(flow)


def _active_at(flow: SilentFlow) -> float:
    return flow.active_at
