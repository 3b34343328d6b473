"""/dev/net/tun as an ordinary user needs it: readable and writable by everybody, as udev makes it.

Where there is no udev (in a container, in a small virtual machine) it may be root's alone. Several processes may need
it at a time: the first one opens it, and the last one puts its mode back, also for one that was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.guest.image import work_directory

DEVICE = Path("/dev/net/tun")
EVERYBODY = 0o666


@contextlib.contextmanager
def open_to_everybody(device: Path = DEVICE, directory: Path | None = None) -> Iterator[None]:
    """Until the end of the block. Takes root, where it is not so already.

    `directory` is where those find each other who need it at the same time: in a file that has the mode to put back,
    and is locked by all of them.
    """
    path = (directory or work_directory()) / "tun-mode"
    path.parent.mkdir(parents=True, exist_ok=True)
    users = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        if (mode := stat.S_IMODE(device.stat().st_mode)) != EVERYBODY:
            os.pwrite(users, b"%o\n" % mode, 0)
            device.chmod(EVERYBODY)
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):  # not the last one
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if before := os.pread(users, 16, 0):
                    device.chmod(int(before, 8))
                    os.ftruncate(users, 0)
    finally:
        os.close(users)
