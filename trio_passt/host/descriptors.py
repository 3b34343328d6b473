"""What a process that was forked does not take along."""

import os
from collections.abc import Iterable

_ALL = 2**31 - 1
"""No descriptor has a larger number; the limit may have been higher when one was opened."""


def close_all_but(kept: Iterable[int]) -> None:
    """All descriptors but the standard ones and these."""
    first = 3
    for descriptor in sorted({descriptor for descriptor in kept if descriptor > 2}):
        os.closerange(first, descriptor)  # which would close all if that were 0
        first = descriptor + 1
    os.closerange(first, _ALL)
