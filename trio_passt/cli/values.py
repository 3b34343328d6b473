"""One word of the command line → a value, or `UsageError` that names what is wrong with it."""

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

_DECIMAL = re.compile(r"[0-9]+", re.ASCII)


class UsageError(Exception):
    """The command line can't be understood; the text is one line for the user, without the program's name."""


def invalid(option: str, value: str, reason: str) -> UsageError:
    """The error for `value` given to `option` (as in `--mtu`)."""
    return UsageError(f"invalid value '{value}' for option '{option}': {reason}")


def number(text: str) -> int | None:
    """A decimal number: ASCII digits and nothing else (no sign, no blanks, no underscores); otherwise `None`.

    A number of more than 18 digits is none either: nothing here is that large, and `int` refuses thousands of
    digits.
    """
    return int(text) if _DECIMAL.fullmatch(text) and len(text) <= 18 else None


def descriptor(option: str, value: str) -> int:
    """A file descriptor's number."""
    fd = number(value)
    if fd is None or fd > 0x7FFFFFFF:
        raise invalid(option, value, "a file descriptor's number is expected")
    return fd


def address(text: str) -> IPv4Address | IPv6Address | None:
    """An IP address: IPv4, or IPv6 with or without brackets, no zone; otherwise `None`."""
    bracketed = text.startswith("[") and text.endswith("]")
    try:
        if bracketed:
            return IPv6Address(text[1:-1]) if "%" not in text else None
        return IPv6Address(text) if ":" in text and "%" not in text else IPv4Address(text)
    except ValueError:
        return None


def absolute_path(option: str, text: str, directory: Path) -> Path:
    """The path, made absolute from `directory`: it must still be right after the daemon changed to `/`."""
    if not text:
        raise invalid(option, text, "a path must not be empty")
    if "\0" in text:  # can't come from a shell, but from a caller of main()
        raise invalid(option, text.replace("\0", "\\0"), "a path can't contain a NUL byte")
    return directory / text
