"""Debian packages as files: found, downloaded and unpacked without installing anything.

`apt` is a configuration file, apt.conf(5), that replaces some of the machine's settings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

Versions = dict[str, str]


class PackageError(Exception):
    """Packages cannot be had; the text says which and why."""


def resolve_cached(names: Iterable[str], file: Path, *, kernel: str | None = None, apt: Path | None = None) -> Versions:
    """`resolve` of the packages, and of the kernel that the metapackage `kernel` stands for; with `apt`, of them alone.

    Remembered in `file` until apt's lists or the question change: asking apt takes seconds.
    """
    names = sorted(names)
    lists = sorted((path.name, path.stat().st_mtime_ns) for path in Path("/var/lib/apt/lists").glob("*Packages*"))
    question = repr((names, kernel, lists, apt and apt.read_text()))
    try:
        remembered = json.loads(file.read_text())
        if remembered["question"] == question:
            return dict(remembered["versions"])
    except (OSError, ValueError, KeyError):
        pass
    if apt is not None:
        versions = candidates(names, apt)
    else:
        versions = resolve([*names, kernel_package(kernel)] if kernel else names)
    file.write_text(json.dumps({"question": question, "versions": versions}))
    return versions


def resolve(names: Iterable[str]) -> Versions:
    """Candidate version of each package and of all shared-library packages below it.

    Only dependencies called lib... are followed: what is run in the guest is named explicitly, and what
    maintainer scripts need (debconf, adduser ...) is not needed by files that are only unpacked.
    """
    versions: Versions = {}
    wanted = set(names)
    while wanted:
        stanzas = _known(wanted)
        versions |= {name: stanza["Version"] for name, stanza in stanzas.items()}
        wanted = {
            dependency
            for stanza in stanzas.values()
            for field in ("Depends", "Pre-Depends")
            for dependency in _first_alternatives(stanza.get(field, ""))
            if dependency.startswith("lib")
        } - versions.keys()
    return versions


def candidates(names: Iterable[str], apt: Path) -> Versions:
    """Candidate version of each package."""
    return {name: stanza["Version"] for name, stanza in _known(set(names), apt).items()}


def kernel_package(metapackage: str) -> str:
    """The versioned kernel package that a metapackage stands for."""
    depends = _show([metapackage]).get(metapackage, {}).get("Depends", "")
    for name in _first_alternatives(depends):
        if name.startswith("linux-image-"):
            return name
    raise PackageError(f"{metapackage} depends on no kernel: {depends!r}")


def installed(names: Iterable[str]) -> set[str]:
    """Those that the machine has."""
    result = _run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n", *names])
    return {line.removesuffix(" installed") for line in result.stdout.splitlines() if line.endswith(" installed")}


def download(versions: Versions, directory: Path, apt: Path | None = None) -> list[Path]:
    """Fetch the packages that `directory` does not have yet; the paths of all of them."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {name: _downloaded(directory, name, version) for name, version in versions.items()}
    missing = [f"{name}={versions[name]}" for name, path in found.items() if path is None]
    if missing:
        command = ["apt-get", "download", "--quiet=2", "-o", "APT::Sandbox::User=root", *missing]
        if _run(command, cwd=directory, apt=apt).returncode:
            # An index that is older than the archive names files that are gone.
            _update_index(apt)
            if (result := _run(command, cwd=directory, apt=apt)).returncode:
                raise PackageError(f"apt-get download: {result.stderr.strip()}")
    paths = [_downloaded(directory, name, version) for name, version in versions.items()]
    return [path for path in paths if path is not None]


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpack packages over each other into the directory `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if (result := _run(["dpkg-deb", "--extract", str(package), str(root)])).returncode:
            raise PackageError(f"{package.name}: {result.stderr.strip()}")


def _downloaded(directory: Path, name: str, version: str) -> Path | None:
    return next(directory.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"), None)


def _known(names: set[str], apt: Path | None = None) -> dict[str, dict[str, str]]:
    stanzas = _show(sorted(names), apt)
    if unknown := names - stanzas.keys():
        raise PackageError(f"apt knows no package {', '.join(sorted(unknown))}")
    return stanzas


def _show(names: list[str], apt: Path | None = None) -> dict[str, dict[str, str]]:
    stanzas = _stanzas(names, apt)
    if not stanzas.keys() >= set(names):
        _update_index(apt)
        stanzas = _stanzas(names, apt)
    return stanzas


def _stanzas(names: list[str], apt: Path | None) -> dict[str, dict[str, str]]:
    stanzas = {}
    for text in _run(["apt-cache", "show", "--no-all-versions", *names], apt=apt).stdout.split("\n\n"):
        stanza = dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
        if stanza:
            stanzas[stanza["Package"]] = stanza
    return stanzas


def _first_alternatives(depends: str) -> list[str]:
    return re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9.+-]*)", depends)


def _update_index(apt: Path | None) -> None:
    if os.geteuid() != 0:
        raise PackageError("the package index lacks something: run apt-get update as root")
    if (result := _run(["apt-get", "update", "--quiet=2"], apt=apt)).returncode:
        raise PackageError(f"apt-get update: {result.stderr.strip()}")


def _run(command: list[str], cwd: Path | None = None, apt: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if apt is not None:
        environment["APT_CONFIG"] = str(apt)
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
