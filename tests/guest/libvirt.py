"""A libvirt that can run passt, unpacked, not installed.

Debian 12's own was built without: it refuses `<backend type='passt'/>`. The one among that release's backports takes
it. What of it the machine has not installed is unpacked into a directory, to be mounted over /usr by who uses it.

`python3 -m tests.guest.libvirt` builds it, and prints its path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.guest import image, packages

PACKAGES = ("libvirt-clients", "libvirt-common", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt0")
# What it is linked with, and QEMU is not; of the machine's own release.
LIBRARIES = (
    *("libapparmor1", "libaudit1", "libbsd0", "libcap-ng0", "libcurl3-gnutls", "libjson-c5", "libnl-3-200"),
    *("libreadline8", "libssh-4", "libtirpc3", "libxml2"),
)
KEPT = 2
APT_CONFIGURATION = """\
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{directory}/lists";
Dir::Cache "{directory}/cache";
APT::Sandbox::User "root";
"""


def build(cache: Path | None = None) -> Path:
    """What belongs into /usr, from the cache if it was unpacked before. Raises `packages.PackageError`."""
    cache = cache or image.work_directory() / "guest"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        apt = _with_backports(cache / "backports")
        versions = packages.resolve_cached(PACKAGES, cache / "libvirt-versions.json", apt=apt)
        libraries = packages.resolve_cached(LIBRARIES, cache / "libvirt-libraries.json")
        libraries = {name: libraries[name] for name in libraries.keys() - packages.installed(libraries)}
        directory = cache / f"libvirt-{_key(versions | libraries)}"
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
                root = Path(temporary, "root")
                packages.unpack(packages.download(versions, cache / "packages", apt), root)
                packages.unpack(packages.download(libraries, cache / "packages"), root)
                if (root / "lib").exists():  # what was packed before /lib was a link to /usr/lib
                    shutil.copytree(root / "lib", root / "usr/lib", symlinks=True, dirs_exist_ok=True)
                (root / "usr").rename(directory)
                os.utime(directory)  # packages have set it to a time of their own
            found = sorted(cache.glob("libvirt-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in found[KEPT:]:
                shutil.rmtree(old)
        return directory


def _with_backports(directory: Path) -> Path:
    """apt's configuration: the backports for the machine's release, from the mirror that it has the release from."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages"]
    targets = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    sites = [site for codename, _, site in (line.partition(" ") for line in targets) if codename == release]
    if not sites:
        raise packages.PackageError(f"apt knows no mirror of {release}")
    for subdirectory in ("lists/partial", "cache/archives/partial"):
        (directory / subdirectory).mkdir(parents=True, exist_ok=True)
    (directory / "sources.list").write_text(f"deb {sites[0]} {release}-backports main\n")
    configuration = directory / "apt.conf"
    configuration.write_text(APT_CONFIGURATION.format(directory=directory))
    return configuration


def _key(versions: packages.Versions) -> str:
    return hashlib.sha256(repr(sorted(versions.items())).encode() + Path(__file__).read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    print(build())
