"""What the processes in a namespace say to the daemon, which believes nothing that it has not looked at.

Theory of operation
-------------------
These processes are the daemon's own, but whoever is root in the namespace may get hold of one, or of its end of the
connection (pidfd_getfd(2)).  The daemon is outside, with the rights of who called it.  So what comes from in there has
one fixed form, and is short; and descriptors that come with it are checked to be what was asked for.

A report is a byte (1: it went wrong), an errno or 0, and either data or a reason, in UTF-8.
"""

import errno
import os
import struct

from attrs import frozen

MOST_BYTES = 1024
MOST_ERRNO = 4095
"""MAX_ERRNO of linux/err.h."""

_HEADER = struct.Struct("=BI")


@frozen
class Report:
    """`reason`, one line, is why it went wrong, if it did; `error`, an errno, explains that, or what is missing."""

    data: bytes = b""
    reason: str | None = None
    error: int = 0

    def packed(self) -> bytes:
        """As it is sent; what is too long is cut."""
        has_failed = self.reason is not None
        content = self.data if self.reason is None else self.reason.encode(errors="replace")
        return (_HEADER.pack(has_failed, self.error) + content)[:MOST_BYTES]


def parse(message: bytes) -> Report:
    """Raises OSError, EPROTO."""
    if not _HEADER.size <= len(message) <= MOST_BYTES:
        raise nonsense()
    has_failed, error = _HEADER.unpack_from(message)
    content = message[_HEADER.size :]
    if has_failed > 1 or error > MOST_ERRNO:
        raise nonsense()
    if not has_failed:
        return Report(content, error=error)
    text = content.decode(errors="replace")
    return Report(reason="".join(one if one.isprintable() else "?" for one in text), error=error)


def nonsense() -> OSError:
    """What is said about who sends something else than he should."""
    return OSError(errno.EPROTO, os.strerror(errno.EPROTO))
