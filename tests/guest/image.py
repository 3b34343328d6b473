"""Build the guest: Debian's cloud kernel, and an initramfs of busybox, and of the network programs named below.

Nothing is installed on the machine that builds: packages are unpacked in a cache directory. The
result is kept there under a key of the package versions and of this directory's own files, and used again
while they last.

`python3 -m tests.guest.image` builds it, and prints the paths of the kernel and of the initramfs.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guest import cpio, packages
from tests.guest.cpio import CpioWriter

HERE = Path(__file__).parent
ROOTFS = HERE / "rootfs"

PROGRAMS = {
    "busybox-static": ["bin/busybox"],
    "dash": ["bin/dash"],
    "iperf3": ["usr/bin/iperf3"],
    "iproute2": ["bin/ip", "bin/ss", "sbin/tc"],
    "iputils-ping": ["bin/ping"],
    "isc-dhcp-client": ["sbin/dhclient", "sbin/dhclient-script"],
    "rdate": ["usr/sbin/rdate"],
    "socat": ["usr/bin/socat"],
    "traceroute": ["usr/bin/traceroute.db"],
    "util-linux": ["usr/bin/flock"],
}
# These have a loader of their own, which is their C library, too.
KLIBC_PROGRAMS = {"klibc-utils": ["usr/lib/klibc/bin/ipconfig"]}
KLIBC_LOADER = "lib/klibc-*.so"
# What Debian's alternatives would link when a package is installed.
ALTERNATIVES = {"usr/bin/traceroute": "traceroute.db"}
# Loaded in this order, each after the modules that it depends on; what is built into the kernel is skipped.
MODULES = ["virtio_pci", "virtio_net", "virtio_console", "virtio_rng", "af_packet", "ipv6"]
LIBRARY_DIRECTORIES = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
LOADER = "lib64/ld-linux-x86-64.so.2"
IMAGES_KEPT = 3


@dataclass(frozen=True)
class Image:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def work_directory() -> Path:
    """Where everything that is built or unpacked goes: readable by every user, outside the checkout."""
    return Path(os.environ.get("TRIO_PASST_WORK", f"/var/tmp/trio-passt-{os.geteuid()}"))


def build(cache: Path | None = None) -> Image:
    """The guest's image, from the cache if it was built before. Raises `packages.PackageError`."""
    if platform.machine() != "x86_64":
        raise packages.PackageError(f"the guest is built for x86_64 only, this is {platform.machine()}")
    cache = cache or work_directory() / "guest"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = [*PROGRAMS, *KLIBC_PROGRAMS]
        versions = packages.resolve_cached(wanted, cache / "versions.json", kernel="linux-image-cloud-amd64")
        directory = cache / f"image-{_key(versions)}"
        if not directory.exists():
            _build(versions, cache, directory)
            _forget_old_images(cache)
        return Image(directory / "vmlinuz", directory / "initramfs")


def unpacked(image: Image) -> Path:
    """The files of its initramfs, in a directory beside it: a guest that is no machine can use them, too."""
    directory = image.initramfs.with_name("root")
    with (image.initramfs.parent.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=image.initramfs.parent, prefix="build-") as temporary:
                with image.initramfs.open("rb") as file:
                    cpio.unpack(file, Path(temporary, "root"))
                Path(temporary, "root").chmod(0o755)
                Path(temporary, "root").rename(directory)
    return directory


def _build(versions: packages.Versions, cache: Path, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
        root = Path(temporary, "root")
        packages.unpack(packages.download(versions, cache / "packages"), root)
        made = Path(temporary, "image")
        made.mkdir()
        shutil.copyfile(next(root.glob("boot/vmlinuz-*")), made / "vmlinuz")
        with (made / "initramfs").open("wb") as file:
            _write_initramfs(root, CpioWriter(file))
        (made / "packages").write_text("".join(f"{name} {versions[name]}\n" for name in sorted(versions)))
        made.chmod(0o755)
        made.rename(directory)


def _write_initramfs(root: Path, archive: CpioWriter) -> None:
    for directory in ("dev", "proc", "sys", "run", "root", "var/lib/dhcp"):
        archive.add_directory(directory)
    archive.add_directory("tmp", 0o1777)
    archive.add_character_device("dev/console", 5, 1)
    programs = [program for paths in PROGRAMS.values() for program in paths]
    klibc_programs = [program for paths in KLIBC_PROGRAMS.values() for program in paths]
    klibc_loader = [str(path.relative_to(root)) for path in root.glob(KLIBC_LOADER)]
    for path in [*programs, *_libraries(root, programs), *klibc_programs, *klibc_loader]:
        archive.add_file(path, (root / path).read_bytes(), 0o755)
    for path, target in ALTERNATIVES.items():
        archive.add_symlink(path, target)
    for path in busybox_links(root, [*programs, *ALTERNATIVES]):
        archive.add_symlink(path, "/bin/busybox")
    archive.add_symlink("bin/sh", "dash")
    archive.add_file("etc/dhcp/dhclient.conf", (root / "etc/dhcp/dhclient.conf").read_bytes())
    modules = list(_modules(root))
    for module in modules:
        archive.add_file(f"lib/modules/{module.name.partition('.')[0]}.ko", _read_module(module))
    names = "".join(f"{module.name.partition('.')[0]}\n" for module in modules)
    archive.add_file("etc/modules", names.encode())
    for path in _rootfs_files():
        source = ROOTFS / path
        archive.add_file(path, source.read_bytes(), 0o755 if source.read_bytes().startswith(b"#!") else 0o644)
    archive.close()


def _rootfs_files() -> list[str]:
    return [str(path.relative_to(ROOTFS)) for path in sorted(ROOTFS.rglob("*")) if path.is_file()]


def _libraries(root: Path, programs: list[str]) -> list[str]:
    """The loader, and every library that it says it would load for the programs."""
    library_path = ":".join(str(root / directory) for directory in LIBRARY_DIRECTORIES)
    found = {LOADER}
    for program in programs:
        command = [str(root / LOADER), "--library-path", library_path, "--list", str(root / program)]
        listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if "not found" in listing:
            raise packages.PackageError(f"{program} lacks a library:\n{listing}")
        found |= {os.path.relpath(path, root) for path in re.findall(r"=> (/\S+)", listing)}
    return sorted(found)


def busybox_links(root: Path, programs: list[str]) -> list[str]:
    """Paths of busybox's applets, less the commands (anywhere in PATH) that another package brings."""
    command = [str(root / "bin/busybox"), "--list-full"]
    applets = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    taken = {Path(path).name for path in programs} | {"sh"}
    return [path for path in applets if Path(path).name not in taken]


def _modules(root: Path) -> Iterator[Path]:
    """Files of `MODULES` and of what they depend on, dependencies first.

    modules.dep is written when the kernel is installed, so the modules themselves are asked.
    """
    (tree,) = root.glob("lib/modules/*")
    files = {_module_name(path.name): path for path in tree.rglob("*.ko*")}
    builtin = {_module_name(line) for line in (tree / "modules.builtin").read_text().split()}
    done: set[str] = set()

    def needed(name: str) -> Iterator[Path]:
        if name in done or name in builtin:
            return
        done.add(name)
        if name not in files:
            raise packages.PackageError(f"the kernel has no module {name}")
        information = re.search(rb"\0depends=([^\0]*)\0", _read_module(files[name]))
        for dependency in information[1].decode().split(",") if information else []:
            yield from needed(_module_name(dependency)) if dependency else ()
        yield files[name]

    for name in MODULES:
        yield from needed(name)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _key(versions: packages.Versions) -> str:
    digest = hashlib.sha256(repr(sorted(versions.items())).encode())
    for path in [HERE / "image.py", HERE / "cpio.py", *(ROOTFS / name for name in _rootfs_files())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _forget_old_images(cache: Path) -> None:
    images = sorted(cache.glob("image-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for image in images[IMAGES_KEPT:]:
        shutil.rmtree(image)


if __name__ == "__main__":
    image = build()
    print(image.kernel)
    print(image.initramfs)
