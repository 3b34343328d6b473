"""Where and when it was measured, and with which programs."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.bench.cells import FLOOR, OURS, OURS_PASTA, PASST, PASTA

PACKAGES = {OURS_PASTA: OURS, PASTA: PASST}
"""Where they are in another of that name."""


@dataclass(frozen=True)
class About:
    """A run. `load` is the machine's load average when the run began: what others do shows in it.

    `congestion_control` is the machine's default, which all namespaces inherit: much depends on it.
    """

    date: str
    kernel: str
    cpu: str
    cpu_count: int
    load: float
    congestion_control: str
    versions: dict[str, str]
    rounds: int
    seconds: float


def about(programs: tuple[str, ...], rounds: int, seconds: float) -> About:
    """This machine, now."""
    packages = dict.fromkeys(PACKAGES.get(name, name) for name in programs if name != FLOOR)
    versions = {package: _version(package) for package in packages}
    versions |= {"Python": platform.python_version(), "iperf3": _version("iperf3")}
    return About(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        kernel=platform.release(),
        cpu=_cpu_model(Path("/proc/cpuinfo").read_text()),
        cpu_count=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        congestion_control=Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        versions=versions,
        rounds=rounds,
        seconds=seconds,
    )


def _cpu_model(cpuinfo: str) -> str:
    found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(name: str) -> str:
    """Debian's version of a package; of ours, also the commit, and whether it is compiled."""
    if name == OURS:
        commit = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
        module = _output(sys.executable, "-P", "-c", "import trio_passt.tcp.seq as it; print(it.__file__)")
        build = "compiled" if module.endswith(".so") else "not compiled"
        return f"{metadata.version(OURS)} ({commit or 'not from git'}, {build})"
    return _output("dpkg-query", "--show", "--showformat=${Version}", name) or "(not a Debian package)"


def _output(*command: str) -> str:
    """Nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
