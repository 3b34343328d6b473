"""The kernel's own autoconfiguration (`ip=`), by DHCP and by BOOTP, and its SLAAC, without one program in the guest."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.machine import DIE_WITH_PARENT
from tests.integration import topology as net
from tests.integration.capture import examine
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import Topology
from tests.kernel.build import build

BOOT_TIMEOUT_S = 120.0


def boot(kernel: Path, netdev: str, arguments: str, console: Path) -> str:
    """What the kernel says until it panics, since it has nothing to start."""
    command = [
        *DIE_WITH_PARENT,
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-nographic", "-no-reboot"),
        *("-kernel", str(kernel), "-append", f"console=ttyS0 panic=-1 {arguments}", "-serial", f"file:{console}"),
        *("-netdev", netdev, "-device", "virtio-net-pci,netdev=n,romfile="),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        try:
            while qemu.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            qemu.kill()
    return console.read_text(errors="replace")


@pytest.mark.parametrize("how", ["dhcp", "bootp"])
def test_the_kernel_configures_itself(topology: Topology, directory: Path, how: str) -> None:
    own = daemon_directory(directory, f"kernel-{how}")
    arguments = ("-1", "-H", "guest", "--dhcp-boot", "/srv/root,fileserver,198.51.100.9", "-p", str(own / "pcap"))
    with Daemon(topology.host, own, *arguments) as daemon:
        said = boot(build(), daemon.wait_ready().netdev(), f"ip=:::::eth0:{how}", directory / f"kernel-{how}.console")
    assert "IP-Config: Complete" in said, said
    for what in (
        f"ipaddr={net.HOST4}",
        "mask=255.255.255.0",
        f"gw={net.GATEWAY4}",
        f"nameserver0={net.RESOLVER4}",
        "bootserver=198.51.100.9",
        "host=guest",
        f"domain={net.SEARCH}",
    ):
        assert re.search(rf"\b{re.escape(what)}", said), (what, said)
    verdict = examine(own / "pcap")
    assert verdict.protocols["dhcp"] >= 1
    assert verdict.problems == []
