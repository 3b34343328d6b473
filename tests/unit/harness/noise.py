"""Data that tells when a byte of it is lost, moved, or repeated."""

import random


def noise(size: int, seed: int = 1) -> bytes:
    """The same bytes each time, no stretch of which is like another."""
    return random.Random(seed).randbytes(size)
