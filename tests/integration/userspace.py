"""The rest of a guest that is a namespace: its own files, processes and host name, beside its own network.

What runs in it finds Debian's programs, and may write where it likes: /etc/resolv.conf, leases, process IDs, the host
name. None of it is the real machine's, and all of it is gone at the end of the block, running programs as well.
"""

from __future__ import annotations

import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.guest.machine import DIE_WITH_PARENT

# The first process. $1: the files, which are only read; $2: a directory to mount on, in this mount
# namespace only. It says its process ID as it is seen from outside; then it stays, and waits for orphans.
INIT = """
set -e
read -r pid _ </proc/self/stat
mount -t tmpfs tmpfs "$2"
cd "$2"
mkdir changes work root
mount -t overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" overlay root
mount -t proc proc root/proc
mount -t sysfs -o ro sysfs root/sys
for directory in dev run tmp; do mount -t tmpfs tmpfs root/$directory; done
for device in null zero full random urandom; do
    : >root/dev/$device
    mount --bind /dev/$device root/dev/$device
done
hostname localhost
mkdir root/.old
pivot_root root root/.old
exec </dev/null
cd /
umount -l /.old
echo "$pid"
while :; do sleep 1000 & wait $!; done
"""
ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C")
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0


class Network(Protocol):
    """A network namespace, however it was made."""

    def enter(self) -> list[str]:
        """Prefix that runs a command in it, as root of the machine."""


class Userspace:
    """Runs commands in a namespace with the files of `userland`; a context manager that ends what still runs.

    `mount_point` is an empty directory, and stays one.
    """

    def __init__(self, namespace: Network, userland: Path, mount_point: Path) -> None:
        self._command = [
            *(*DIE_WITH_PARENT, *namespace.enter()),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", INIT, "sh", str(userland), str(mount_point)),
        ]

    def __enter__(self) -> Self:
        self._init = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._init.stdout is not None
        ready = select.select([self._init.stdout], [], [], START_TIMEOUT_S)[0]
        said = self._init.stdout.readline() if ready else "nothing"
        if not said.strip().isdecimal():
            self._end()
            raise RuntimeError(f"the guest's first process does not start: {said}")
        self.enter = [
            *("nsenter", "--target", said.strip(), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"),
            *ENVIRONMENT,
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def check(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Output of a shell command, which must succeed."""
        result = subprocess.run(
            [*DIE_WITH_PARENT, *self.enter, "/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if result.returncode:
            raise AssertionError(f"{command}\nstatus {result.returncode}\n{result.stdout}{result.stderr}".rstrip())
        return result.stdout

    def _end(self) -> None:
        self._init.kill()
        self._init.communicate()
