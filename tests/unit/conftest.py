"""Fixtures of all tests that have a scripted guest."""

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

import pytest
import trio
from harness.own_namespace import own_namespace
from harness.stage import V4, V6, Family, Stage, on_stage
from hypothesis import settings
from trio.testing import MockClock

from trio_passt.tcp import flow, timeouts

# A property does not fail because the machine has something else to do.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def apart() -> Iterator[None]:
    """Nobody else on this machine has, or takes, a port that a test needs: not even the tests of another process."""
    with ExitStack() as stack:
        if os.geteuid() == 0:
            with suppress(OSError):  # without the privilege, or ip(8)
                stack.enter_context(own_namespace())
        yield


@pytest.fixture
def standing_clock() -> None:
    """Tests that use this run on a clock that stands still until they move it."""


@pytest.fixture
def jumping_clock() -> None:
    """Tests that use this run on a clock that jumps to the next deadline as soon as nothing else is to do."""


CLOCKS: dict[str, Callable[[], MockClock]] = {
    "standing_clock": MockClock,
    "jumping_clock": partial(MockClock, autojump_threshold=0),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-trio takes a clock only from a test's own arguments, not from those of its fixtures."""
    for item in items:
        for name, clock in CLOCKS.items():
            if name in getattr(item, "fixturenames", ()) and iscoroutinefunction(item.obj):  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.trio(run=_runner(clock)), append=False)


def _runner(clock: Callable[[], MockClock]) -> Callable[..., Any]:
    def run(test: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        return trio.run(test, *args, **(options | {"clock": clock()}))

    return run


@pytest.fixture(autouse=True)
def near_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's peers are near, so the guest's data is acknowledged when the kernel has it.

    What loopback's round trip is said to be depends on how busy the machine is.  Tests of distant peers say otherwise.
    """
    monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", math.inf)


@pytest.fixture(params=[V4, V6], ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Both IP versions."""
    assert isinstance(request.param, Family)
    return request.param


@pytest.fixture(params=[True, False], ids=["SO_PEEK_OFF", "no SO_PEEK_OFF"])
def peek_offset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's help in peeking, and without."""
    if not request.param:
        monkeypatch.setattr(flow, "has_peek_offset", lambda _family: False)


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test's sockets are in a network namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a namespace of its own")
    with own_namespace():
        yield


@pytest.fixture
async def guest(standing_clock: None) -> AsyncIterator[Stage]:
    """A guest that is online, with both families, on a link that is never full."""
    async with on_stage() as stage:
        yield stage
