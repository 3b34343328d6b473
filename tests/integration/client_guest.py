"""Guests that are the kernel's stack, and configure themselves as a guest would; what they are told is recorded."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.guest import userland
from tests.guest.kernel import DEVICE, KernelGuest
from tests.guest.machine import DIE_WITH_PARENT
from tests.integration.changing_host import HOME, Serving, wait_for
from tests.integration.topology import Namespace, run

SO_RCVBUFFORCE = 33
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4

_numbers = itertools.count(1)


@functools.cache
def busybox() -> str:
    """Its path, outside of the guest; it needs nothing else there."""
    return str(userland.build() / "bin/busybox")


@dataclass(frozen=True)
class Advertisement:
    """A router advertisement, as scapy reads it: lifetimes are seconds."""

    router: str
    lifetime_s: int
    prefixes: dict[str, tuple[int, int]]
    """Valid and preferred lifetimes."""
    servers: dict[str, int]
    search: dict[str, int]

    @staticmethod
    def parse(packet: Packet) -> Advertisement:
        """Of a packet with one."""
        prefixes, dns_servers, search = {}, {}, {}
        for layer in packet.iterpayloads():
            if isinstance(layer, ICMPv6NDOptPrefixInfo):
                prefixes[layer.prefix] = (layer.validlifetime, layer.preferredlifetime)
            elif isinstance(layer, ICMPv6NDOptRDNSS):
                dns_servers.update(dict.fromkeys(layer.dns, layer.lifetime))
            elif isinstance(layer, ICMPv6NDOptDNSSL):
                search.update({_text(name): layer.lifetime for name in layer.searchlist})
        lifetime_s: int = packet[ICMPv6ND_RA].routerlifetime
        return Advertisement(packet[IPv6].src, lifetime_s, prefixes, dns_servers, search)


def _text(name: str | bytes) -> str:
    return (name.decode() if isinstance(name, bytes) else name).removesuffix(".")


class Frames:
    """Every frame at the guest's device, from when this is made."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        self._socket.bind((DEVICE, ETH_P_ALL))
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # packet(7): ENETDOWN, until the device is up
        self._socket.setblocking(False)
        self._advertisements: list[Advertisement] = []
        self.sent: list[Packet] = []
        """By the guest."""
        self.received: list[Packet] = []

    def close(self) -> None:
        """Capture no more."""
        self._socket.close()

    def update(self) -> None:
        """Take what has come since the last time."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(70000)
                packet = Ether(frame)
                (self.sent if address[2] == PACKET_OUTGOING else self.received).append(packet)
                if ICMPv6ND_RA in packet and address[2] != PACKET_OUTGOING:
                    self._advertisements.append(Advertisement.parse(packet))

    def advertisements(self) -> list[Advertisement]:
        """All of them that have been received since this was asked last."""
        self.update()
        advertisements, self._advertisements = self._advertisements, []
        return advertisements

    def advertisements_until(self, condition: Callable[[Advertisement], bool], what: str) -> list[Advertisement]:
        """Up to the one that meets the condition, which may be to come, and whatever has come after it."""
        seen: list[Advertisement] = []

        def is_there() -> bool:
            seen.extend(self.advertisements())
            return any(map(condition, seen))

        try:
            wait_for(is_there, what)
        except AssertionError as error:
            error.add_note("\n".join(map(str, seen)))
            raise
        return seen


LEASE_SCRIPT = """#!/bin/sh
# Called by udhcpc with what it learned in the environment: apply it, then say that it is done.
set -e
case $1 in
deconfig)
    ip -4 addr flush dev "$interface"
    ;;
bound | renew)
    [ "$1" = renew ] || ip -4 addr flush dev "$interface"
    ip -4 addr replace "$ip/$mask" dev "$interface"
    ip -4 route replace default via "$router" dev "$interface"
    ;;
esac
echo "$1,$ip,$mask,$router,$dns,$search,$lease,$serverid" >>"$EVENTS"
"""


@dataclass(frozen=True)
class LeaseEvent:
    """What udhcpc said to its script, which has applied it."""

    kind: str
    address: str
    prefix_length: str
    router: str
    dns: list[str]
    search: list[str]
    lease_s: str
    server: str

    @staticmethod
    def parse(line: str) -> LeaseEvent:
        """Of a line of the script's."""
        kind, address, prefix_length, router, dns, search, lease_s, server = line.split(",")
        return LeaseEvent(kind, address, prefix_length, router, dns.split(), search.split(), lease_s, server)


class DhcpClient:
    """busybox's udhcpc in the guest; a context manager that ends it."""

    def __init__(self, guest: KernelGuest, directory: Path) -> None:
        number = next(_numbers)
        script, self._events_path = directory / f"udhcpc{number}", directory / f"udhcpc{number}.events"
        script.write_text(LEASE_SCRIPT)
        script.chmod(0o755)
        self._events_path.write_text("")
        self._taken = 0
        self._command = [
            *(*DIE_WITH_PARENT, *guest.enter(), busybox(), "udhcpc"),
            *("-f", "-i", DEVICE, "-s", str(script), "-O", "search", "-t", "10", "-T", "1", "-A", "1"),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "EVENTS": str(self._events_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def next_event(self, *kinds: str) -> LeaseEvent:
        """The next of these kinds, which may be to come; others before it are passed over."""

        def find() -> LeaseEvent | None:
            lines = self._events_path.read_text().split("\n")[:-1]
            for number, line in enumerate(lines[self._taken :], self._taken):
                event = LeaseEvent.parse(line)
                if event.kind in kinds:
                    self._taken = number + 1
                    return event
            return None

        event = wait_for(find, f"udhcpc: {' or '.join(kinds)}")
        assert event is not None
        return event

    def renew(self) -> None:
        """Ask for the lease again, now."""
        self._process.send_signal(signal.SIGUSR1)


class ClientGuest(KernelGuest):
    """A guest whose IPv6 is the kernel's autoconfiguration, and its IPv4 what `dhcp` is told."""

    def __init__(self, serving: Serving, directory: Path) -> None:
        super().__init__(serving.daemon.socket_path, configured=False)
        self._directory = directory

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as opened:
            opened.push(super().__exit__)
            self.frames = Frames(self.namespace)
            opened.callback(self.frames.close)
            self.namespace.sysctl(f"net/ipv6/conf/{DEVICE}/router_solicitation_delay=0")
            self.namespace.ip("link", "set", DEVICE, "mtu", "65520", "up")
            self.dhcp = opened.enter_context(DhcpClient(self, self._directory))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    def default_routers(self, version: int = 6) -> set[str]:
        """Gateways of default routes."""
        return {route["gateway"] for route in self._show(version, "route", "show", "default")}

    def autoconfigured(self, prefix: str, *, deprecated: bool = False) -> list[str]:
        """The guest's IPv6 addresses of a /64, given as it begins, that are or are not to be used any more.

        One that is tentative still is not among them: the kernel sends nothing from there, and takes nothing.
        """
        return [
            address["local"]
            for link in self._show(6, "addr", "show", "dev", DEVICE, "scope", "global")
            for address in link.get("addr_info", [])
            if "local" in address  # iproute2 shows others of the device as empty
            and address["local"].startswith(prefix)
            and address.get("deprecated", False) is deprecated
            and not address.get("tentative", False)
        ]

    def online(self, *versions: int) -> Self:
        """Wait until it has a router, and an address: without a global one, the kernel sends from a link-local one."""
        for version in versions or (4, 6):
            wait_for(functools.partial(self.default_routers, version), f"a default route of IPv{version}")
        if 6 in (versions or (4, 6)):
            wait_for(functools.partial(self.autoconfigured, ""), "an IPv6 address")
        return self

    def ping(self, address: str) -> None:
        """One echo, which has to come back."""
        self.run("ping", "-n", "-c", "1", "-W", "20", address)

    def _show(self, version: int, *what: str) -> Any:
        return json.loads(run("ip", "-n", self.namespace.name, "-j", f"-{version}", *what) or "[]")


class SilentGuest(KernelGuest):
    """A guest with an IPv4 address that nobody gave it; it says nothing before it is asked, and has no IPv6."""

    def __init__(self, serving: Serving, address: str) -> None:
        super().__init__(serving.daemon.socket_path)
        self._address = address

    def _configure(self) -> None:
        self.namespace.sysctl(f"net/ipv6/conf/{DEVICE}/disable_ipv6=1")
        self.namespace.ip("addr", "add", f"{self._address}/{HOME.prefix_lengths[4]}", "dev", DEVICE)
        self.namespace.ip("link", "set", DEVICE, "up")
        self.namespace.ip("route", "add", "default", "via", HOME.gateways[4], "dev", DEVICE)
        self.frames = Frames(self.namespace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.frames.close()
        super().__exit__(kind, error, traceback)
