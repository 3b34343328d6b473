"""Functions of the C library that Python has no name for."""

import os


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call one that answers -1, and sets errno, when it fails: then OSError.  None is a null pointer."""
    import ctypes  # costs more than most of what is here

    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc[name](*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
