"""A network namespace as an ordinary user makes it: owned by a user namespace of this user's, and by no one else.

A process keeps it, which does nothing. Who joins it needs no privilege but to be the same user; root may enter it too.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_TIMEOUT_S = 60.0


class Unprivileged:
    """Such a namespace; a context manager that ends it, with what runs in it as its user's processes."""

    def __init__(self, as_user: Sequence[str]) -> None:
        """`as_user` is a prefix that runs a command as the user."""
        self._command = [*as_user, "unshare", "--user", "--map-root-user", "--net", "cat"]

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            self._await()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    @property
    def process_id(self) -> int:
        """Of the process that keeps it."""
        return self._keeper.pid

    @property
    def path(self) -> Path:
        """A file that stands for the network namespace."""
        return Path(f"/proc/{self.process_id}/ns/net")

    def enter(self) -> list[str]:
        """Prefix that runs a command in the network namespace, as root of the machine."""
        return ["nsenter", f"--net={self.path}"]

    def enter_as_its_root(self) -> list[str]:
        """Prefix that runs a command in the network and user namespace, as its own root: the user."""
        return ["nsenter", f"--target={self.process_id}", "--user", "--net", "--preserve-credentials"]

    def _await(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while Path(f"/proc/{self.process_id}/comm").read_text() != "cat\n":
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no namespace: {' '.join(self._command)}: status {self._keeper.poll()}")
            time.sleep(0.002)

    def _end(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()
