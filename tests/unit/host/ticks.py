"""A clock that events move: how long somebody is kept waiting does not depend on what else the machine has to do."""

import math

import trio

EVENT_S = 0.0001
"""What an event takes."""

_LOOK_S = 1e-6
"""What it takes to look at the clock, so that nobody looks at it for ever."""


class Ticks(trio.abc.Clock):
    """Trio's clock, and that of the readiness task, which may be running while Trio is not."""

    def __init__(self) -> None:
        self._now = 0.0

    def event(self) -> None:
        """Something has happened."""
        self.passes(EVENT_S)

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self._now += seconds

    def monotonic(self) -> float:
        self._now += _LOOK_S
        return self._now

    # As Trio has it.

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Nothing is waited for in vain, as long as events go on."""
        return 0.0 if deadline < math.inf else 1.0
