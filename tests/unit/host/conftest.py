"""Fixtures of the tests of the host's side."""

from types import SimpleNamespace

import pytest
from ticks import Ticks

from trio_passt.host import readiness


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """Tests that use this run on a clock that events move."""
    clock = Ticks()
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock
