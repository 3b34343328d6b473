"""A guest without a disk boots from the network, by the iPXE in QEMU's network devices (`--dhcp-boot`)."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.machine import DIE_WITH_PARENT
from tests.integration import boot_servers
from tests.integration.boot_servers import Asked
from tests.integration.clients import daemon_for_clients
from tests.integration.daemon import Daemon
from tests.integration.topology import GATEWAY4, HOST4, REMOTE4, RESOLVER4, RESOLVER6, SEARCH, Namespace, Topology

FILE = "boot.ipxe"
SETTINGS = {
    **{name: name for name in ("ip", "netmask", "gateway", "dns", "dns6", "domain", "hostname", "next-server")},
    "file": "filename:uristring",
}
"""What iPXE is asked, and what it calls that."""

LOOPBACK = "127.0.0.1"


@dataclass
class Booting:
    """What a machine on its way asks for: first a script, then a page whose name the script makes of settings."""

    scripts: Asked
    pages: Asked
    url: str

    def settings(self) -> dict[str, str]:
        """What the page was asked for with."""
        query = urllib.parse.urlsplit(self.pages.next()).query
        return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _script(url: str) -> str:
    """For iPXE: ask for a page, and say what you know. It is longer than a block of TFTP's."""
    query = "&".join(f"{name}=${{net0/{setting}}}" for name, setting in SETTINGS.items())
    return f"#!ipxe\n# {'-' * 1000}\nimgfetch {url}page?{query}\n"


@contextlib.contextmanager
def _machine(daemon: Daemon, directory: Path) -> Iterator[None]:
    """A machine with a network device, and nothing else to boot from."""
    log = directory / f"{daemon.log.parent.name}.console"
    with log.open("wb") as console:
        machine = subprocess.Popen(
            [
                *(*DIE_WITH_PARENT, "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-nographic"),
                *("-boot", "n", "-serial", "stdio"),
                *("-netdev", daemon.netdev(), "-device", "virtio-net-pci,netdev=n"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    with machine:
        try:
            yield
        finally:
            machine.kill()
            print(log.read_text(errors="replace"))  # shown if a test fails


@pytest.fixture(scope="module")
def booting(topology: Topology, directory: Path) -> Iterator[dict[str, Booting]]:
    """Three machines at once, since each takes seconds; each with a daemon and servers of its own."""
    with contextlib.ExitStack() as opened:
        machines: dict[str, Booting] = {}
        daemons: list[Daemon] = []

        def prepare(name: str, option: str, tftp: tuple[Namespace, str] | None = None) -> None:
            url, pages = opened.enter_context(boot_servers.http_server(topology.remote, REMOTE4, _script))
            scripts = opened.enter_context(boot_servers.tftp_server(*tftp, _script(url))) if tftp else pages
            arguments = ["--dhcp-boot", option.format(url=url), "--hostname", "guest"]
            daemons.append(opened.enter_context(daemon_for_clients(topology, directory, f"boot-{name}", *arguments)))
            machines[name] = Booting(scripts, pages, url)

        prepare("url", f"{{url}}{FILE}")
        prepare("tftp", f"{FILE},,{REMOTE4}", (topology.remote, REMOTE4))
        prepare("local", FILE, (topology.host, LOOPBACK))
        for daemon in daemons:
            opened.enter_context(_machine(daemon, directory))
        yield machines


def _told(**others: str) -> dict[str, str]:
    return {
        "ip": HOST4,
        "netmask": "255.255.255.0",
        "gateway": GATEWAY4,
        "dns": RESOLVER4,
        "dns6": RESOLVER6,
        "domain": SEARCH,
        "hostname": "guest",
    } | others


def test_a_guest_boots_from_a_url(booting: dict[str, Booting]) -> None:
    machine = booting["url"]
    assert machine.scripts.next() == f"/{FILE}"
    assert machine.settings() == _told(file=f"{machine.url}{FILE}", **{"next-server": GATEWAY4})


def test_a_guest_boots_by_tftp_from_another_server(booting: dict[str, Booting]) -> None:
    machine = booting["tftp"]
    assert machine.scripts.next() == FILE
    assert machine.settings() == _told(file=FILE, **{"next-server": REMOTE4})


def test_a_guest_boots_by_tftp_from_the_host(booting: dict[str, Booting]) -> None:
    """Its server listens on the host's loopback address only: that is where the gateway's address leads."""
    machine = booting["local"]
    assert machine.scripts.next() == FILE
    assert machine.settings() == _told(file=FILE, **{"next-server": GATEWAY4})
