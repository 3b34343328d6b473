"""Arithmetic on sequence numbers: 32 bits, modulo 2**32 (RFC 9293 section 3.4)."""

from typing import Final

MODULO: Final = 1 << 32
_HALF: Final = 1 << 31


def add(seq: int, count: int) -> int:
    """`seq` moved by `count` (which may be negative)."""
    return (seq + count) % MODULO


def distance(start: int, end: int) -> int:
    """How far `end` lies after `start`: -2**31 to 2**31 - 1, negative when it lies before."""
    return (end - start + _HALF) % MODULO - _HALF
