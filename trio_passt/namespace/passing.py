"""Descriptors that come through a UNIX socket: SCM_RIGHTS of unix(7).

Like `socket.recv_fds`, which does not pass on its flags: what it receives would be a command's, too.
"""

import array
import errno
import os
import socket
import time
from collections.abc import Iterable, Sequence

PATIENCE_S, _TRY_AGAIN_S = 2.0, 0.01


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """A message with descriptors.  Raises OSError.

    Of one user's no more may be on their way than a process may have open (unix(7), ETOOMANYREFS), whoever sends them:
    so it may take a moment until there is room.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.send_fds(connection, [message], descriptors)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            if time.monotonic() >= deadline:
                text = "too many descriptors of this user's are on their way between processes (see ulimit -n)"
                raise OSError(error.errno, text) from error
            time.sleep(_TRY_AGAIN_S)
        else:
            return


def receive(connection: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """A message of `size` bytes at most, empty at the end, and `count` descriptors at most, closed on exec.

    There are fewer where this process may have no more; the kernel closes those that are too many.  Raises OSError.
    """
    descriptors = array.array("i")
    space = socket.CMSG_LEN(count * descriptors.itemsize)
    message, ancillary, _, _ = connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not message:
        close_all(descriptors)  # a message without a byte looks like the end, but may have some
        return message, []
    return message, list(descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close them."""
    for descriptor in descriptors:
        os.close(descriptor)
