"""The retransmission timeout towards the guest (RFC 6298)."""

from typing import Final

from trio_passt.tcp import timeouts

_GRANULARITY_S: Final = 0.001


class RoundTrip:
    """Smoothed round trip, its variation, and the timeout that follows from them.  Times in seconds."""

    __slots__ = ("_backed_off_until", "_smoothed_s", "_variation_s", "timeout_s")

    def __init__(self) -> None:
        self._smoothed_s: float | None = None
        self._variation_s = 0.0
        self._backed_off_until: float | None = None
        self.timeout_s = timeouts.RTO_INITIAL_S

    def sample(self, measured_s: float) -> None:
        """Take a measurement of a segment that was sent once (RFC 6298 section 2; Karn's rule is the caller's)."""
        if self._smoothed_s is None:
            self._smoothed_s = measured_s
            self._variation_s = measured_s / 2
        else:
            self._variation_s += (abs(self._smoothed_s - measured_s) - self._variation_s) / 4
            self._smoothed_s += (measured_s - self._smoothed_s) / 8
        self._follow()

    @property
    def expected_s(self) -> float:
        """Within this an answer comes, as far as was measured; the initial timeout before that."""
        return timeouts.RTO_INITIAL_S if self._smoothed_s is None else self._smoothed_s + 4 * self._variation_s

    @property
    def early_s(self) -> float:
        """After so long what was sent is probably lost (RFC 8985 section 7.2); the timeout if that is less.

        It is two round trips, and more for a guest that answers now soon and now late, as one does that gets a
        processor now and then: it has what it has not acknowledged, and to send it once more makes it later still.
        """
        smoothed_s = self._smoothed_s
        if smoothed_s is None:
            return self.timeout_s
        early_s = smoothed_s + max(smoothed_s, 2 * self._variation_s)
        return min(self.timeout_s, max(early_s, timeouts.EARLY_MIN_S))

    def back_off(self, now: float) -> None:
        """Double the timeout after it expired (RFC 6298 section 5.5)."""
        self._limit(self.timeout_s * 2)
        self._backed_off_until = now + self.timeout_s

    def progressed(self, now: float) -> None:
        """Something new was acknowledged.

        A measurement ends a back-off, but while a window with several losses is sent once more there is none.  So it
        ends, too, when a timeout's time has passed without another one (RFC 8961 section 4, requirement 3, case b).
        """
        if self._backed_off_until is not None and now >= self._backed_off_until:
            self._follow()

    def _follow(self) -> None:
        """The timeout that follows from what was measured."""
        self._backed_off_until = None
        smoothed_s = self._smoothed_s
        self._limit(
            timeouts.RTO_INITIAL_S if smoothed_s is None else smoothed_s + max(_GRANULARITY_S, 4 * self._variation_s)
        )

    def _limit(self, timeout_s: float) -> None:
        self.timeout_s = min(max(timeout_s, timeouts.RTO_MIN_S), timeouts.RTO_MAX_S)
