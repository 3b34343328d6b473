"""A root file system for a guest without a machine: Debian's own network clients, unpacked, not installed.

`image.py` makes a machine's initramfs of a few of them; these are more, larger, and just as they come: with their
scripts and their defaults. Nothing is written to it: who uses it puts a file system in memory over it (see
tests/integration/machine.py).

`python3 -m tests.guest.userland` builds it, and prints its path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.guest import image, packages

PACKAGES = (
    "bsdutils",
    "busybox-static",
    "coreutils",
    "dash",
    "debianutils",
    "dhcpcd-base",
    "dhcping",
    "iproute2",
    "iputils-arping",
    "isc-dhcp-client",
    "klibc-utils",
    "lua-lpeg",
    "ndisc6",
    "netbase",
    "nmap",
    "nmap-common",
    "rdnssd",
    "systemd",
    "udhcpc",
    "wide-dhcpv6-client",
    "zlib1g",
)
# What Debian's alternatives would link when a package is installed.
ALTERNATIVES = {"usr/lib/x86_64-linux-gnu/libblas.so.3": "blas/libblas.so.3", "var/run": "/run"}
NOT_NEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man")
DIRECTORIES = ("dev", "proc", "root", "run", "sys", "tmp", "var/lib/dhcp")
FILES = {
    "etc/passwd": (
        "root::0:0:root:/root:/bin/sh\n"
        "dhcpcd:x:100:100::/usr/lib/dhcpcd:/bin/false\n"
        "systemd-network:x:101:101::/:/bin/false\n"
        "rdnssd:x:102:102::/run/rdnssd:/bin/false\n"
        "nobody:x:65534:65534::/:/bin/false\n"
    ),
    "etc/group": "root:x:0:\ndhcpcd:x:100:\nsystemd-network:x:101:\nrdnssd:x:102:\nnogroup:x:65534:\n",
    "etc/fstab": "",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
}
USERLANDS_KEPT = 3


def build(cache: Path | None = None) -> Path:
    """The root file system, from the cache if it was unpacked before. Raises `packages.PackageError`."""
    cache = cache or image.work_directory() / "guest"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        versions = packages.resolve_cached(PACKAGES, cache / "userland-versions.json")
        directory = cache / f"userland-{_key(versions)}"
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
                root = Path(temporary, "root")
                packages.unpack(packages.download(versions, cache / "packages"), root)
                _complete(root)
                root.chmod(0o755)
                os.utime(root)  # packages have set it to a time of their own
                root.rename(directory)
            userlands = sorted(cache.glob("userland-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in userlands[USERLANDS_KEPT:]:
                shutil.rmtree(old)
        return directory


def _complete(root: Path) -> None:
    for unneeded in NOT_NEEDED:
        shutil.rmtree(root / unneeded, ignore_errors=True)
    for directory in DIRECTORIES:
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for path, text in FILES.items():
        (root / path).write_text(text)
    present = [
        path.name for directory in ("bin", "sbin", "usr/bin", "usr/sbin") for path in (root / directory).iterdir()
    ]
    for path, target in {**ALTERNATIVES, **dict.fromkeys(image.busybox_links(root, present), "/bin/busybox")}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("dash")


def _key(versions: packages.Versions) -> str:
    return hashlib.sha256(repr(sorted(versions.items())).encode() + Path(__file__).read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    print(build())
