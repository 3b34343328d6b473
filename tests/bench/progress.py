"""What is shown while it runs: a line for each cell, that grows."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """How far a run of `total` measurements is."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._start = time.monotonic()
        self._stream = stream or sys.stderr

    def begin(self, what: str) -> None:
        """A line: how far, how long already, how long still if it goes on like this."""
        passed_s = time.monotonic() - self._start
        left = f", {_minutes(passed_s / self._done * (self._total - self._done))} left" if self._done else ""
        share = self._done / self._total if self._total else 1.0
        self._write(f"[{share:4.0%}, {_minutes(passed_s)}{left}] {what}:")

    def add(self, name: str, found: str) -> None:
        """A measurement is done."""
        self._done += 1
        self._write(f"  {name} {found}")

    def end(self) -> None:
        """Of the line."""
        self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
