"""Debian packages, of this machine's release or of another, unpacked to be mounted over /usr: not installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.guest import image, packages

KEPT = 2
APT_CONFIGURATION = """\
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{directory}/lists";
Dir::Cache "{directory}/cache";
APT::Sandbox::User "root";
"""


def build(
    name: str, wanted: Sequence[str], *, suite: str, libraries: Sequence[str] = (), cache: Path | None = None
) -> Path:
    """What belongs into /usr, from the cache if it was unpacked before. Raises `packages.PackageError`.

    `name` is the cache's. The packages `wanted` are those of `suite`, and no others that they depend on; "" stands for
    the machine's own release. `libraries` and the libraries that they depend on are of that release, and left out where
    the machine has them.
    """
    cache = cache or image.work_directory() / "guest"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        apt = _configuration(cache / f"apt-{suite}", suite) if suite else None
        if apt is None:
            libraries = [*wanted, *libraries]
        versions = packages.resolve_cached(wanted, cache / f"{name}-versions.json", apt=apt) if apt else {}
        own = packages.resolve_cached(libraries, cache / f"{name}-libraries.json") if libraries else {}
        own = {library: own[library] for library in own.keys() - packages.installed(own)}
        directory = cache / f"{name}-{_key(versions | own)}"
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as temporary:
                root = Path(temporary, "root")
                packages.unpack(packages.download(versions, cache / "packages", apt), root)
                packages.unpack(packages.download(own, cache / "packages"), root)
                for top in ("bin", "lib"):  # what was packed before these were links into /usr
                    if (root / top).exists():
                        shutil.copytree(root / top, root / "usr" / top, symlinks=True, dirs_exist_ok=True)
                (root / "usr").mkdir(exist_ok=True)
                (root / "usr").rename(directory)
                os.utime(directory)  # packages have set it to a time of their own
            found = sorted(cache.glob(f"{name}-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in found[KEPT:]:
                shutil.rmtree(old)
        return directory


def own_release() -> str:
    """The machine's."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def _configuration(directory: Path, suite: str) -> Path:
    """apt's: that suite alone, from the mirror that the machine has its release from."""
    release = own_release()
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages"]
    targets = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    sites = [site for codename, _, site in (line.partition(" ") for line in targets) if codename == release]
    if not sites:
        raise packages.PackageError(f"apt knows no mirror of {release}")
    for subdirectory in ("lists/partial", "cache/archives/partial"):
        (directory / subdirectory).mkdir(parents=True, exist_ok=True)
    (directory / "sources.list").write_text(f"deb {sites[0]} {suite} main\n")
    configuration = directory / "apt.conf"
    configuration.write_text(APT_CONFIGURATION.format(directory=directory))
    return configuration


def _key(versions: packages.Versions) -> str:
    return hashlib.sha256(repr(sorted(versions.items())).encode() + Path(__file__).read_bytes()).hexdigest()[:16]
