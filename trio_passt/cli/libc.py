"""Functions of the C library that Python has no name for."""

import os


def call(name: str, *arguments: int | bytes) -> None:
    """Call one that answers -1, and sets errno, when it fails: then OSError."""
    import ctypes  # costs more than most of what is here

    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
