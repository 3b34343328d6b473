"""Waiting for the kernel, without sleeping for a fixed time, while the clock of the flows stands still."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from trio.testing import wait_all_tasks_blocked

T = TypeVar("T")

_CUSHIONS_S = (0.0, 0.0, 0.0, 0.001, 0.001, 0.01, *([0.05] * 600))
"""Loopback is synchronous, so the first look nearly always succeeds; what takes longer has half a minute."""


async def eventually(look: Callable[[], T | None], what: str) -> T:
    """What `look` returns, once that is not None."""
    for cushion_s in _CUSHIONS_S:
        found = look()
        if found is not None:
            return found
        await wait_all_tasks_blocked(cushion_s)
    pytest.fail(f"waited in vain for {what}")
