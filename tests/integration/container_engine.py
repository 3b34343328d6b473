"""Podman and RootlessKit as an ordinary user runs them, with programs of the test's for the network.

They run in the host's namespace, with mounts and process IDs of their own: their files appear in /usr, the user gets a
name and subordinate IDs, and all of it is gone at the end of the block, running containers as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest import tun
from tests.guest.machine import DIE_WITH_PARENT
from tests.integration.client_guest import busybox
from tests.integration.topology import UNPRIVILEGED_ID, Namespace

SET_UP = """
set -e
mount --make-rprivate /
mount -t overlay -o "lowerdir=$1:/usr" overlay /usr
cat /etc/resolv.conf >"$2/etc/resolv.conf"
mount -t overlay -o "lowerdir=$2/etc:/etc" overlay /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 700 /run/user
chown "$3:$3" /run/user
mount --make-rshared /
read -r pid _ </proc/self/stat
mount -t proc proc /proc
exec </dev/null
echo "$pid"
while :; do sleep 1000 & wait $!; done
"""
"""The first process, as `Userspace`'s. $1: what belongs into /usr; $2: the user's directory; $3: the user. crun does
not stand cgroups of the first version beside those of the second, even if it is told to use none."""

START_TIMEOUT_S, COMMAND_TIMEOUT_S = 60.0, 120.0
USER = "tester"
SUBORDINATE_IDS = f"{USER}:700000:65536\n"
IMAGE = "test"

CONFIGURATION = {
    "storage.conf": '[storage]\ndriver = "vfs"\n',
    "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
    "registries.conf": "",
    "containers.conf": """\
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
helper_binaries_dir = ["{bin}", "/usr/lib/podman", "/usr/libexec/podman"]
""",
}
"""Of ~/.config/containers: nothing that needs a file system, a service or a registry of its own."""


class Engine:
    """Such a user; a context manager that ends all that this user runs."""

    def __init__(self, host: Namespace, usr: Path, directory: Path, helpers: Mapping[str, Path]) -> None:
        """`usr` is for /usr; `directory` is the user's home, and empty; `helpers` are found before others, by name."""
        self.directory = directory
        self.bin = directory / "bin"
        self._environment = {
            "HOME": str(directory),
            "LC_ALL": "C",
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            **{f"XDG_{name}_HOME": str(directory / f".{name.lower()}") for name in ("CACHE", "CONFIG", "DATA")},
            "XDG_RUNTIME_DIR": "/run/user",
            "TMPDIR": str(directory),
        }
        self._helpers = helpers
        self._set_up = [
            *(*DIE_WITH_PARENT, *host.enter(), "unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", SET_UP, "sh", str(usr), str(directory), str(UNPRIVILEGED_ID)),
        ]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._write_files()
            opened.enter_context(tun.open_to_everybody())
            self._first = subprocess.Popen(
                self._set_up, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            opened.callback(self._end)
            assert self._first.stdout is not None
            ready = select.select([self._first.stdout], [], [], START_TIMEOUT_S)[0]
            said = self._first.stdout.readline() if ready else "nothing"
            if not said.strip().isdecimal():
                raise RuntimeError(f"no place for containers: {said}")
            self.process_id = int(said)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def command(self, *words: str) -> list[str]:
        """A command line that runs them as the user."""
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return [
            *("nsenter", f"--target={self.process_id}", "--mount", "--net", "--pid", f"--wdns={self.directory}"),
            *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"),
            *("--inh-caps=-all", "--pdeathsig=KILL", "--", "env", "-i", *variables, *words),
        ]

    def run(self, *words: str) -> str:
        """Output of the user's command, which must succeed."""
        result = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if result.returncode:
            raise AssertionError(f"{' '.join(words)}: status {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def import_image(self) -> None:
        """An image with busybox, and nothing else, for Podman."""
        archive = self.directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(busybox(), "bin/busybox")
            for name in ("cat", "echo", "httpd", "nslookup", "sh", "sleep", "wget"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
            page = tarfile.TarInfo("www/index.html")
            page.size, page.mode = len(PAGE), 0o644
            tar.addfile(page, io.BytesIO(PAGE))
        archive.chmod(0o644)
        self.run("podman", "import", "--quiet", str(archive), IMAGE)

    def helpers(self) -> dict[int, list[str]]:
        """The helpers that run, by process ID (as seen from outside): their arguments, without interpreter and name."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().decode().split("\0")[:-1]
                for position, word in enumerate(words[:2]):
                    if Path(word).parent == self.bin:
                        found[int(path.name)] = words[position + 1 :]
        return found

    def _write_files(self) -> None:
        home = self.directory
        for path in ("bin", "etc", ".cache", ".config", ".config/containers", ".data"):
            (home / path).mkdir(mode=0o700)
            os.chown(home / path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        (home / "etc/passwd").write_text(
            f"root:x:0:0::/root:/bin/sh\n{USER}:x:{UNPRIVILEGED_ID}:{UNPRIVILEGED_ID}::{home}:/bin/sh\n"
        )
        (home / "etc/group").write_text(f"root:x:0:\n{USER}:x:{UNPRIVILEGED_ID}:\n")
        for name in ("subuid", "subgid"):
            (home / "etc" / name).write_text(SUBORDINATE_IDS)
        for name, text in CONFIGURATION.items():
            (home / ".config/containers" / name).write_text(text.replace("{bin}", str(self.bin)))
        for name, program in self._helpers.items():
            (self.bin / name).symlink_to(program)
        (home / "etc").chmod(0o755)

    def _end(self) -> None:
        self._first.kill()
        self._first.communicate()


PAGE = b"a page of the container's\n"


@contextlib.contextmanager
def running(engine: Engine, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of the user's that stays, until the end of the block."""
    process = subprocess.Popen(
        engine.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
