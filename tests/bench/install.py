"""What the benchmark needs from Debian, installed where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = {
    "ip": "iproute2",
    "setpriv": "util-linux",
    "gcc": "gcc",
    "iperf3": "iperf3",
    "passt": "passt",
    "slirp4netns": "slirp4netns",
}
"""By the command that shows that a package is there. gcc alone brings no headers."""

HEADERS = "libc6-dev"


class InstallError(Exception):
    """Something is missing and cannot be installed; the text says what."""


def install_missing(programs: tuple[str, ...]) -> None:
    """Install what is missing; of the programs that are compared, only those named."""
    wanted = {"passt" if name == "pasta" else name for name in programs}
    compared = {"passt", "slirp4netns"} - wanted
    missing = [
        package for command, package in PACKAGES.items() if command not in compared and not shutil.which(command)
    ]
    if "gcc" in missing:
        missing.append(HEADERS)
    if not missing:
        return
    if os.geteuid() != 0:
        raise InstallError(f"as root, first: apt-get install --no-install-recommends {' '.join(missing)}")
    command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *missing]
    if _run(command).returncode:
        _run(["apt-get", "update", "--quiet=2"])
        if (result := _run(command)).returncode:
            raise InstallError(f"apt-get install {' '.join(missing)}: {result.stderr.strip()}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
