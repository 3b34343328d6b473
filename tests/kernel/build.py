"""A kernel that configures its network by itself at boot: `ip=dhcp` on its command line, before there is a program.

Debian's kernels are built without CONFIG_IP_PNP, so this one is built from Debian's source, with as little in it as
makes such a guest. That takes 140 MB, 5 minutes and the packages in `NEEDED`, and is kept in the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.guest import packages
from tests.guest.image import work_directory

SOURCE_PACKAGE = "linux-source-6.1"
NEEDED = {"make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc"}
"""Commands, and the packages that they are in."""

OPTIONS = (
    *("64BIT", "ACPI", "HYPERVISOR_GUEST", "PRINTK", "MULTIUSER", "HIGH_RES_TIMERS"),
    *("TTY", "SERIAL_8250", "SERIAL_8250_CONSOLE", "PCI", "VIRTIO_MENU", "VIRTIO_PCI"),
    *("NETDEVICES", "NET_CORE", "VIRTIO_NET", "NET", "PACKET", "UNIX", "INET"),
    *("IP_PNP", "IP_PNP_DHCP", "IP_PNP_BOOTP", "IPV6"),
)


def build() -> Path:
    """The kernel's image. Raises `packages.PackageError` or `CalledProcessError`."""
    if missing := [package for command, package in NEEDED.items() if not shutil.which(command)]:
        raise packages.PackageError(f"not installed: {' '.join(missing)}")
    cache = work_directory() / "own-kernel"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        versions = {SOURCE_PACKAGE: packages.resolve_cached([SOURCE_PACKAGE], cache / "versions.json")[SOURCE_PACKAGE]}
        key = hashlib.sha256(repr((versions, OPTIONS)).encode()).hexdigest()[:16]
        image = cache / f"bzImage-{key}"
        if not image.exists():
            _build(versions, cache, image)
        return image


def _build(versions: packages.Versions, cache: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
        packages.unpack(packages.download(versions, cache / "packages"), Path(temporary))
        archive = next(Path(temporary).glob("usr/src/linux-source-*.tar.xz"))
        _run("tar", "-xf", str(archive), "-C", temporary)
        source = next(Path(temporary).glob("linux-source-*"))
        _run("make", "-C", str(source), "tinyconfig")
        fragment = source / "fragment"
        fragment.write_text("".join(f"CONFIG_{option}=y\n" for option in OPTIONS))
        _run(str(source / "scripts/kconfig/merge_config.sh"), "-m", ".config", fragment.name, cwd=source)
        _run("make", "-C", str(source), "olddefconfig")
        _run("make", "-C", str(source), f"-j{os.cpu_count()}", "bzImage")
        shutil.copyfile(source / "arch/x86/boot/bzImage", image.with_suffix(".unfinished"))
        image.with_suffix(".unfinished").rename(image)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
