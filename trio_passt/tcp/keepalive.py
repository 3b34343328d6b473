"""When a silent connection is asked whether the guest still knows it (RFC 9293 section 3.8.4)."""

from trio_passt.tcp import timeouts


class Keepalive:
    """Counts the silence.  Times in seconds.

    `due`: when to probe next, or to give up; sooner for a connection that one side has closed.
    """

    __slots__ = ("_patience_s", "_probes", "due")

    def __init__(self, now: float) -> None:
        self._patience_s = timeouts.KEEPALIVE_S
        self._probes = 0
        self.due = now + self._patience_s

    def heard(self, now: float) -> None:
        """Something acceptable came from the guest."""
        self.due = now + self._patience_s
        self._probes = 0

    def half_closed(self) -> None:
        """One side has closed; counts from what was last heard."""
        if not self._probes:
            self.due -= self._patience_s - timeouts.HALF_CLOSED_PROBE_S
        self._patience_s = timeouts.HALF_CLOSED_PROBE_S

    def probe(self, now: float) -> bool:
        """It is due: true to probe now, false to give up."""
        self._probes += 1
        self.due = now + timeouts.KEEPALIVE_INTERVAL_S
        return self._probes <= timeouts.KEEPALIVE_PROBES
