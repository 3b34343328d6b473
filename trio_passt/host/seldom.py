"""A log line that a guest, or anybody who connects, can cause at will: written now and then only."""

import logging

import trio

WARN_EVERY_S = 10.0


class SeldomLog:
    """One kind of event, reported at most every `WARN_EVERY_S`, on Trio's clock."""

    __slots__ = ("_warned_at",)

    def __init__(self) -> None:
        self._warned_at = float("-inf")

    def warn(self, log: logging.Logger, text: str, *arguments: object) -> None:
        """Log a warning, unless there was one a moment ago."""
        now = trio.current_time()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            log.warning(text, *arguments)
