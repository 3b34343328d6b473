"""When a silent connection is asked whether the guest still knows it (RFC 9293 section 3.8.4)."""

from trio_passt.tcp import timeouts


class Keepalive:
    """Counts the silence.  Times in seconds."""

    __slots__ = ("_heard", "_probed", "_probes")

    def __init__(self, now: float) -> None:
        self._heard = now
        self._probed = now
        self._probes = 0

    def heard(self, now: float) -> None:
        """Something acceptable came from the guest."""
        self._heard = now
        self._probes = 0

    def deadline(self, half_closed: bool) -> float:
        """When to probe next, or to give up; sooner for a connection that one side has closed."""
        if self._probes:
            return self._probed + timeouts.KEEPALIVE_INTERVAL_S
        return self._heard + (timeouts.HALF_CLOSED_PROBE_S if half_closed else timeouts.KEEPALIVE_S)

    def probe(self, now: float) -> bool:
        """The deadline has passed: true to probe now, false to give up."""
        self._probes += 1
        self._probed = now
        return self._probes <= timeouts.KEEPALIVE_PROBES
