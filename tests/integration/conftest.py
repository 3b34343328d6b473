"""Fixtures: namespaces, one daemon, and one guest that is online, for the whole session.

What these tests need is not optional: without root, namespaces, QEMU or tshark they end with an error, never skip.

Several processes may share the tests, see sharing.py: each has a session of its own then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.workermanage import WorkerController

from tests.guest import image as guest_image
from tests.guest.machine import Guest
from tests.integration import sharing
from tests.integration.changing_host import wait_for
from tests.integration.daemon import Daemon, daemon_directory, program
from tests.integration.namespace_guest import NamespaceGuest
from tests.integration.topology import Topology

REQUIRED_COMMANDS = (
    *("dpkg-deb", "gcc", "ip", "iperf3", "ping", "qemu-system-x86_64", "setpriv", "slirp4netns", "traceroute"),
    *("strace", "tshark"),
)
PR_SET_PDEATHSIG = 1

FORWARDS = ["-t", "8022,8080-8089", "-t", "2222:22", "-u", "9053,6053:7053"]
"""What the session's daemon forwards: see test_forward.py."""


@dataclass
class Configured:
    """What the guest's own DHCP clients were told when it went online."""

    dhcp: dict[str, str] = field(default_factory=dict)
    dhcpv6_lease: str = ""


def go_online(guest: Guest | NamespaceGuest) -> Configured:
    """With udhcpc, the kernel's SLAAC, and dhclient -6."""
    guest.check("online")
    settings = guest.check("cat /run/udhcpc.bound")
    return Configured(
        dhcp=dict(line.split("=", 1) for line in settings.splitlines()),
        dhcpv6_lease=guest.check("cat /run/dhclient6.leases"),
    )


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM cleans up as ^C does, and so does the death of the process that runs pytest."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    config.addinivalue_line("markers", "last: runs after all other tests")
    config.addinivalue_line("markers", "alone: measures time, and has the machine to itself, see noxfile.py")
    config.stash[_measurements_key] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run, loudly, where it could not mean anything."""
    if session.config.option.collectonly:
        return
    if problem := _missing():
        pytest.exit(f"the integration tests cannot run: {problem} (sh tests/run.sh installs packages)", 1)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Each is where it belongs."""
    sharing.check(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the whole session's capture comes last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of the daemon's and of the guest's log."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Daemon):
                report.sections.append((f"log of the daemon {value.process.pid}", value.log_tail()))
            elif isinstance(value, Guest):
                report.sections.append(("log of QEMU and the guest's console", value.log()))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> sharing.Scheduling:
    """For pytest -n."""
    return sharing.Scheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands over what it measured."""
    if output := getattr(session.config, "workeroutput", None):
        output["measurements"] = session.config.stash[_measurements_key]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Take it over."""
    node.config.stash[_measurements_key].extend(getattr(node, "workeroutput", {}).get("measurements", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    if measurements := config.stash[_measurements_key]:
        terminalreporter.section("measured (QEMU without KVM: for comparison with itself only)")
        for line in measurements:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def measurements(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the summary."""
    return pytestconfig.stash[_measurements_key]


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory for this session's files, readable by every user; paths in it fit a UNIX socket's address."""
    parent = guest_image.work_directory()
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob("session-*"):
        if not Path("/proc", leftover.name.removeprefix("session-")).exists():
            shutil.rmtree(leftover, ignore_errors=True)  # another run may be at it, too
    path = parent / f"session-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    wait_for(lambda: _is_removed(path), "nobody writing there any more")


def _is_removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
    return not path.exists()


@pytest.fixture(scope="session")
def image() -> guest_image.Image:
    """The guest's kernel and initramfs."""
    return guest_image.build()


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    """The namespaces."""
    with Topology() as topology:
        yield topology


@pytest.fixture(scope="session")
def capture(directory: Path) -> Path:
    """The session's capture file; the daemon writes it."""
    return daemon_directory(directory, "capture") / "session.pcap"


@pytest.fixture(scope="session")
def daemon(topology: Topology, directory: Path, capture: Path) -> Iterator[Daemon]:
    """The session's daemon."""
    arguments = ["-p", str(capture), *FORWARDS]
    with Daemon(topology.host, daemon_directory(directory, "main"), *arguments) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="session")
def offline_guest(image: guest_image.Image, daemon: Daemon, directory: Path) -> Iterator[Guest]:
    """The session's guest, booted, its network device down."""
    with Guest(image, daemon.netdev(), directory) as guest:
        yield guest.boot()


@pytest.fixture(scope="session")
def configured(offline_guest: Guest) -> Configured:
    """The guest goes online, once."""
    return go_online(offline_guest)


@pytest.fixture
def guest(offline_guest: Guest, configured: Configured) -> Guest:
    """The session's guest, online."""
    return offline_guest


_measurements_key = pytest.StashKey[list[str]]()


def _missing() -> str | None:
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "they need root, to make namespaces"
    if absent := [command for command in REQUIRED_COMMANDS if not shutil.which(command)]:
        return f"not installed: {', '.join(absent)}"
    if not shutil.which(program()[0]):
        return f"there is no program to test at {program()[0]}"
    return None
