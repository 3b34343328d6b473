"""A guest that is configured by a client of its own, and what the client made of it.

Such a guest is a namespace with Debian's programs; each test has a new one, at a daemon that the tests of a file share.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.guest import userland
from tests.guest.kernel import DEVICE, KernelGuest
from tests.integration.capture import DAEMON_MAC
from tests.integration.changing_host import wait_for
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.exchanges import Wire
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    PREFIX4,
    PREFIX6,
    RESOLVER4,
    RESOLVER6,
    SEARCH,
    Topology,
)
from tests.integration.userspace import Userspace

MTU = 65520
LEASE_S = 86400
RENEWAL_S = 600
REBINDING_S = 75600
CAPTURE = "link.pcap"
"""Name of the captures of all daemons that clients are tested with: test_capture.py looks at them."""

NETWORKD = """mkdir -p /etc/systemd/network /run/systemd/netif && chown systemd-network /run/systemd/netif
cat >/etc/systemd/network/tap0.network <<END
[Match]
Name=tap0
[Network]
DHCP=yes
[DHCPv4]
UseDomains=yes
UseMTU=yes
[IPv6AcceptRA]
UseDomains=yes
END
"""
"""Prepares for systemd-networkd; it takes search lists and the MTU only if told to."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Configuration:
    """What a client has set up for one family; names without the dot that some leave at their end.

    Addresses that the client made itself, of an announced prefix, are not among them.
    """

    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    nameservers: tuple[str, ...]
    search: frozenset[str]


IPV4 = Configuration((f"{HOST4}/{PREFIX4}",), (GATEWAY4,), (RESOLVER4,), frozenset({SEARCH}))
DHCPV6 = Configuration((f"{HOST6}/128",), (GATEWAY6,), (RESOLVER6,), frozenset({SEARCH}))
PREFIX = ipaddress.IPv6Interface(f"{HOST6}/{PREFIX6}").network


def settings(text: str) -> dict[str, str]:
    """Lines of the form name=value, as many programs write them; quotes around the value are left out."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip("'") for name, _, value in pairs}


@contextlib.contextmanager
def daemon_for_clients(topology: Topology, directory: Path, name: str, *arguments: str) -> Iterator[Daemon]:
    """A daemon that writes a capture beside its log."""
    own = daemon_directory(directory, name)
    with Daemon(topology.host, own, "-p", str(own / CAPTURE), *arguments) as daemon:
        yield daemon.wait_ready()


class Client:
    """A new guest without configuration; a context manager, it is gone after the block.

    Its device is up, and the kernel asks for a router; unless `up` is false.
    """

    def __init__(self, daemon: Daemon, *, up: bool = True) -> None:
        self._daemon = daemon
        self._up = up

    def __enter__(self) -> Self:
        mount_point = self._daemon.log.with_name(f"userspace{next(_numbers)}")
        with contextlib.ExitStack() as opened:
            mount_point.mkdir()
            opened.callback(mount_point.rmdir)
            self.wire = Wire(self._daemon.log.with_name(CAPTURE))
            self.namespace = opened.enter_context(KernelGuest(self._daemon.socket_path, configured=False)).namespace
            self._userspace = opened.enter_context(Userspace(self.namespace, _userland(), mount_point))
            if self._up:
                self.check(f"ip link set {DEVICE} up")
                self.until(f"grep -qx up /sys/class/net/{DEVICE}/operstate")  # see KernelGuest._await_device
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def check(self, command: str) -> str:
        """Output of a shell command, which must succeed."""
        return self._userspace.check(command)

    def until(self, condition: str) -> str:
        """Output of a shell command, as soon as it succeeds."""
        return self.check(f"for _ in $(seq 600); do {condition} && exit; sleep 0.1; done; {condition}")

    def start(self, command: str) -> None:
        """Begin a program that stays; its messages go to /tmp/log."""
        self.check(f"setsid {command} </dev/null >/tmp/log 2>&1 &")

    def meets_gateway(self) -> None:
        """Its kernel knows the gateway's link-layer address, as after some traffic: what a client says with its last
        breath would be lost with its address, if it had to wait for ARP."""
        self.check(f"ip neigh replace {GATEWAY4} lladdr {DAEMON_MAC} nud reachable dev {DEVICE}")

    def addresses(self, version: int) -> list[dict[str, Any]]:
        """The global addresses of the device, as iproute2 tells about them."""
        devices = json.loads(self.check(f"ip -json -{version} addr show dev {DEVICE}"))
        addresses = [address for device in devices for address in device.get("addr_info", [])]
        return [address for address in addresses if address["scope"] == "global"]

    def routes(self, version: int) -> list[dict[str, Any]]:
        """The routes through the device, as iproute2 tells about them."""
        return list(json.loads(self.check(f"ip -json -{version} route show dev {DEVICE}")))

    def becomes(self, configuration: Configuration, version: int) -> None:
        """Wait until this is in force: scripts of clients have several steps, and rewrite resolv.conf in place."""
        seen: list[Configuration] = []

        def has_it() -> bool:
            seen[:] = [self.configuration(version)]
            return seen == [configuration]

        try:
            wait_for(has_it, f"{configuration}")
        except AssertionError as error:
            error.add_note(f"but {seen}")
            raise

    def mtu_bytes(self) -> int:
        """The MTU of the device."""
        return int(self.check(f"cat /sys/class/net/{DEVICE}/mtu"))

    def configuration(self, version: int) -> Configuration:
        """What is in force for one family."""
        nameservers, search = [], set()
        for line in self.check("cat /etc/resolv.conf 2>/dev/null || true").splitlines():
            match line.split():
                case ["nameserver", server] if ipaddress.ip_address(server).version == version:
                    nameservers.append(server)
                case ["search" | "domain", *names]:
                    search |= {name.removesuffix(".") for name in names}
        given = [address for address in self.addresses(version) if not address.get("mngtmpaddr")]
        gateways = {route["gateway"] for route in self.routes(version) if route["dst"] == "default"}
        return Configuration(
            tuple(f"{address['local']}/{address['prefixlen']}" for address in given),
            tuple(gateways),
            tuple(nameservers),
            frozenset(search),
        )


@functools.cache
def _userland() -> Path:
    return userland.build()
