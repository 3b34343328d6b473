"""contrib/qrap: QEMU's older `socket` back-end on the daemon, in both forms of the command."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.guest import machine
from tests.guest.image import Image
from tests.guest.machine import Guest
from tests.integration import servers
from tests.integration.daemon import Daemon, RawGuest, daemon_directory
from tests.integration.test_udp import EXCHANGE
from tests.integration.topology import (
    HOST4,
    REMOTE4,
    REMOTE6,
    UNPRIVILEGED_ID,
    Topology,
)

PROGRAM = Path(__file__).parents[2] / "contrib/qrap/qrap"
UNPRIVILEGED = (
    "setpriv",
    f"--reuid={UNPRIVILEGED_ID}",
    f"--regid={UNPRIVILEGED_ID}",
    "--clear-groups",
    "--",
)


class WrappedGuest(Guest):
    """A guest whose QEMU is started by another program, which is given QEMU's arguments or some of them."""

    def __init__(
        self,
        image: Image,
        directory: Path,
        wrapper: Sequence[str],
        network: Sequence[str],
    ) -> None:
        """`network` stands for the arguments that are about it."""

        def wrapped(*positional: object, **named: object) -> list[str]:
            _, *arguments = qemu_arguments(*positional, **named)  # type: ignore[arg-type]
            assert arguments[-4::2] == ["-netdev", "-device"]
            return [*wrapper, *arguments[:-4], *network]

        qemu_arguments = machine.qemu_arguments
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "qemu_arguments", wrapped)
            super().__init__(image, "", directory)


@pytest.fixture
def own_directory(directory: Path, request: pytest.FixtureRequest) -> Path:
    """Of one test's daemon and guest, who are the same user; with qrap, since that user may not enter the checkout."""
    made = daemon_directory(directory, f"qrap{abs(hash(request.node.name)) % 10**8}")
    shutil.copy(PROGRAM, made)
    return made


def _exchange(guest: Guest, topology: Topology, *addresses: str) -> None:
    """It gets its lease, and reaches these by TCP and UDP."""
    guest.check("online" if REMOTE6 in addresses else "online -4")
    assert f"ip={HOST4}" in guest.check("cat /run/udhcpc.bound").splitlines()
    for address in addresses:
        with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
            sent = guest.check("head -c 1000000 /dev/urandom | tee /tmp/sent | sha256sum")
            assert guest.check(f"socat -t 60 - TCP:{server.socat} </tmp/sent | sha256sum") == sent
        with servers.udp_server(topology.remote, address, lambda request: request[::-1]) as server:
            guest.check("printf abc >/tmp/request")
            guest.check(EXCHANGE.format(peer=server.socat, size=3))
            assert guest.check("cat /tmp/reply") == "cba"


def test_a_descriptor_and_a_command(topology: Topology, image: Image, own_directory: Path) -> None:
    with Daemon(topology.host, own_directory) as daemon:
        wrapper = [
            "env",
            f"QRAP_SOCKET={daemon.wait_ready().socket_path}",
            *UNPRIVILEGED,
            str(own_directory / "qrap"),
        ]
        network = [
            "-netdev",
            "socket,id=x,fd=5",
            "-device",
            "virtio-net-pci,netdev=x,romfile=",
        ]
        with WrappedGuest(image, own_directory, [*wrapper, "5", "qemu-system-x86_64"], network) as guest:
            _exchange(guest.boot(), topology, REMOTE4, REMOTE6)


def test_plain_it_finds_the_daemon_and_qemu(topology: Topology, image: Image, own_directory: Path) -> None:
    """Among the sockets in a /tmp of its own, the first is dead, the second's daemon has a guest."""
    second, third = (own_directory / name for name in ("second", "third"))
    for directory in (second, third):
        directory.mkdir()
        os.chown(directory, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    with (
        Daemon(topology.host, second) as occupied,
        Daemon(topology.host, third) as free,
    ):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(own_directory / "passt_1.socket"))
        os.chown(own_directory / "passt_1.socket", UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        os.link(occupied.wait_ready().socket_path, own_directory / "passt_2.socket")
        os.link(free.wait_ready().socket_path, own_directory / "passt_3.socket")
        (own_directory / "bin").mkdir()
        qemu = shutil.which("qemu-system-x86_64")
        assert qemu is not None
        (own_directory / "bin/qemu-system-x86_64").symlink_to(qemu)  # and no kvm, which would want /dev/kvm
        wrapper = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount --bind {own_directory} /tmp && exec "$@"',
            "sh",
        ]
        wrapper += [
            *UNPRIVILEGED,
            "env",
            f"PATH={own_directory}/bin",
            str(own_directory / "qrap"),
            "-M",
            "q35",
        ]
        network = ["-nic", "user,mac=52:54:00:00:00:77"]
        with (
            RawGuest(occupied.socket_path),
            WrappedGuest(image, own_directory, wrapper, network) as guest,
        ):
            _exchange(guest.boot(), topology, REMOTE4)
            assert guest.check("cat /sys/class/net/eth0/address") == "52:54:00:00:00:77\n"
            assert occupied.log_tail().count("refused a second guest") == 1
