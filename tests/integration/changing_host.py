"""A host whose network changes, the world around it, and a guest that configures itself as a guest would.

        guest -- daemon [host] uplink ---- veth ---- uplink [world] lo 198.51.100.2, 2001:db8:2::2
                               vpn ------- veth ---- vpn

Both are made for one test. The world's side of a cable has the gateways of all networks that the host may join there
(`Attachment`); its servers tell who asks them that they see. The host's /etc is a directory of the test's, so that
resolv.conf can be rewritten, replaced, or be a link, as it happens on real hosts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

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
from tests.integration import servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import NAME_PREFIX, Namespace, named_namespace, run

WAIT_S = 20.0
"""For what comes within two seconds on a machine that has nothing else to do."""

POLL_S = 0.03

REMOTE = {4: "198.51.100.2", 6: "2001:db8:2::2"}
"""The world's servers."""

SO_RCVBUFFORCE = 33
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4

T = TypeVar("T")

_numbers = itertools.count(1)


@functools.cache
def busybox() -> str:
    """Its path, outside of the guest; it needs nothing else there."""
    return str(userland.build() / "bin/busybox")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """Ask again and again, until the answer is true; it is returned."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}; but {answer!r}")
        time.sleep(POLL_S)
    return answer


@dataclass(frozen=True)
class Attachment:
    """A network that the host may join, at one of its devices, and what it has there. Keys are IP versions."""

    device: str
    addresses: dict[int, str]
    gateways: dict[int, str]
    prefix_lengths: dict[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    metric: int = 100

    def address_lines(self, version: int, verb: str = "add") -> list[str]:
        """As iproute2 takes them in a batch."""
        nodad = " nodad" if version == 6 and verb != "del" else ""
        prefix_length = self.prefix_lengths[version]
        return [f"addr {verb} {self.addresses[version]}/{prefix_length} dev {self.device}{nodad}"]

    def route_lines(self, version: int, verb: str = "add") -> list[str]:
        """The same of the default route."""
        return [
            f"route {verb} default via {self.gateways[version]} dev {self.device} metric {self.metric}",
        ]


HOME = Attachment("uplink", {4: "192.0.2.2", 6: "2001:db8:1::2"}, {4: "192.0.2.1", 6: "fe80::a:1"})
OFFICE = Attachment("uplink", {4: "203.0.113.2", 6: "2001:db8:3::2"}, {4: "203.0.113.1", 6: "fe80::b:1"})
VPN = Attachment("vpn", {4: "198.18.0.2", 6: "2001:db8:4::2"}, {4: "198.18.0.1", 6: "fe80::c:1"}, metric=50)

OTHER_GATEWAYS = {4: "192.0.2.3", 6: "fe80::a:3"}
"""At home, beside the usual ones."""

_ROUTERS = {
    "uplink": (
        *("192.0.2.1/24", "192.0.2.3/24", "203.0.113.1/24"),
        *("2001:db8:1::1/64", "2001:db8:3::1/64", "fe80::a:1/64", "fe80::a:3/64", "fe80::b:1/64"),
    ),
    "vpn": ("198.18.0.1/24", "2001:db8:4::1/64", "fe80::c:1/64"),
}
"""The addresses of the world's devices."""


class ChangingHost(Namespace):
    """The host, at first connected to nothing."""

    def __init__(self) -> None:
        super().__init__(f"{NAME_PREFIX}{os.getpid()}-changing{next(_numbers)}", "")
        self.sysctl("net/ipv4/ping_group_range=0 2147483647")

    @property
    def resolv_conf(self) -> Path:
        """What is /etc/resolv.conf for a daemon on the host."""
        return Path("/etc/netns", self.name, "resolv.conf")

    def enter(self) -> list[str]:
        """Prefix that runs a command on the host, with an /etc that has nothing but resolv.conf."""
        return [*super().enter(), "sh", "-c", 'mount --bind "/etc/netns/$0" /etc && exec "$@"', self.name]

    def batch(self, *lines: str) -> None:
        """Lines for iproute2, within milliseconds."""
        command = ["ip", "-n", self.name, "-batch", "-"]
        result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{lines}: {result.stderr}")

    def join(self, place: Attachment, *versions: int) -> None:
        """Have addresses and default routes there, of all IP versions or of some."""
        lines = [f"link set {place.device} up"]
        for version in versions or (4, 6):
            lines += [*place.address_lines(version), *place.route_lines(version)]
        self.batch(*lines)

    def leave(self, place: Attachment, *versions: int) -> None:
        """The reverse."""
        for version in versions or (4, 6):
            self.batch(*place.route_lines(version, "del"), *place.address_lines(version, "del"))

    def rewrite_resolv_conf(self, text: str) -> None:
        """In place."""
        self.resolv_conf.write_text(text)

    def replace_resolv_conf(self, text: str) -> None:
        """By another file of the same name."""
        new = self.resolv_conf.with_name("resolv.conf.new")
        new.write_text(text)
        new.rename(self.resolv_conf)


class World:
    """The other end of the host's cables. Each answer of its servers is the address of who asks."""

    def __init__(self, namespace: Namespace, host: ChangingHost) -> None:
        self.namespace = namespace
        self._host = host
        self._tcp: dict[int, servers.Served] = {}
        self._udp: dict[int, servers.Served] = {}
        for setting in ("all", "default"):
            namespace.sysctl(f"net/ipv4/conf/{setting}/rp_filter=0")
        for address in REMOTE.values():
            namespace.ip("addr", "add", address, "dev", "lo")

    @contextlib.contextmanager
    def serving(self) -> Iterator[Self]:
        """With its servers."""
        with contextlib.ExitStack() as opened:
            for version, address in REMOTE.items():
                self._tcp[version] = opened.enter_context(servers.tcp_server(self.namespace, address, _tell_peer))
                self._udp[version] = opened.enter_context(servers.udp_server(self.namespace, address, _echo))
            yield self

    def plug(self, device: str) -> None:
        """A cable between the host and the world; that end has its addresses, the host's has none, and is down."""
        run(
            *("ip", "-n", self._host.name, "link", "add", device, "type", "veth"),
            *("peer", "name", device, "netns", self.namespace.name),
        )
        self._host.sysctl(f"net/ipv4/conf/{device}/rp_filter=0")
        self.namespace.ip("link", "set", device, "addrgenmode", "none")
        self.namespace.ip("link", "set", device, "up")
        for address in _ROUTERS[device]:
            nodad = ["nodad"] if ":" in address else []
            self.namespace.ip("addr", "add", address, "dev", device, *nodad)

    def connect(self, client: Namespace, version: int, timeout_s: float = WAIT_S) -> socket.socket:
        """A new TCP connection from there; `ask` it who it comes from."""
        connection = client.socket(servers.family(REMOTE[version]), socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect((REMOTE[version], self._tcp[version].port))
        except BaseException:
            connection.close()
            raise
        return connection

    def sees_tcp(self, client: Namespace, version: int) -> str:
        """Whose address it is that a new TCP connection comes from."""
        with self.connect(client, version) as connection:
            return ask(connection)

    def sees_udp(self, client: Namespace, version: int) -> str:
        """The same of a new socket's datagrams, of which one has to be answered."""
        server = self._udp[version]
        assert ask_datagram(client, server.address, server.port) == b"?"
        return server.peers[-1]


def ask(connection: socket.socket) -> str:
    """The address that the world has for this connection's other end."""
    connection.sendall(b"?")
    return connection.recv(100).decode()


def _name(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """As Python's sockets take it, from an address whose zone is given as a number, if it has one."""
    literal, _, zone = address.partition("%")
    return (literal, port, 0, int(zone)) if zone else (address, port)


def ask_datagram(client: Namespace, address: str, port: int, question: bytes = b"?") -> bytes:
    """What is answered from there to a new socket's datagram; a second one is sent where the first is lost."""
    with client.socket(servers.family(address), socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        asker.connect(_name(address, port))
        for _ in range(int(WAIT_S / 2)):
            asker.send(question)
            with contextlib.suppress(TimeoutError):
                return asker.recv(65536)
    raise AssertionError(f"no answer from {address} port {port}")


def ask_stream(client: Namespace, address: str, port: int, question: bytes = b"?") -> bytes:
    """What is answered over a new connection until its end."""
    with client.socket(servers.family(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(_name(address, port))
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        return servers.receive_all(connection)


def _tell_peer(connection: socket.socket) -> None:
    while connection.recv(1):
        connection.sendall(connection.getpeername()[0].encode())


def _echo(request: bytes) -> bytes:
    return request


@contextlib.contextmanager
def host_and_world() -> Iterator[tuple[ChangingHost, World]]:
    """Both, with a cable between their devices `uplink`."""
    with contextlib.ExitStack() as made:
        host = ChangingHost()
        made.callback(host.remove)
        namespace = named_namespace(f"world{next(_numbers)}")
        made.callback(namespace.remove)
        world = World(namespace, host)
        world.plug("uplink")
        yield host, made.enter_context(world.serving())


class Log:
    """What a daemon has said, line by line, each once."""

    def __init__(self, daemon: Daemon) -> None:
        self._path = daemon.log
        self._read_bytes = 0

    def more(self) -> list[str]:
        """What is new."""
        text = self._path.read_bytes()[self._read_bytes :]
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return whole.decode().splitlines()

    def until(self, text: str) -> list[str]:
        """What is new, up to and with the line that has this text, which may be to come."""
        lines: list[str] = []

        def is_there() -> bool:
            lines.extend(self.more())
            return any(text in line for line in lines)

        wait_for(is_there, f"a line with {text!r} in {lines}")
        last = max(number for number, line in enumerate(lines) if text in line)
        self._read_bytes -= sum(len(line.encode()) + 1 for line in lines[last + 1 :])
        return lines[: last + 1]


@dataclass
class Serving:
    """A daemon on a host, and what it says."""

    host: ChangingHost
    world: World
    daemon: Daemon
    log: Log


@contextlib.contextmanager
def serving(host: ChangingHost, world: World, directory: Path, *options: str) -> Iterator[Serving]:
    """Run a daemon; its log has been read as far as its start. What fails meanwhile shows the end of the log."""
    with Daemon(host, daemon_directory(directory, f"changes{next(_numbers)}"), *options) as daemon:
        daemon.wait_ready()
        log = Log(daemon)
        log.until("-device virtio-net-pci")
        try:
            yield Serving(host, world, daemon, log)
        except BaseException as error:
            error.add_note(f"log of the daemon:\n{daemon.log_tail()}")
            raise


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
        """The guest's IPv6 addresses of a /64, given as it begins, that are or are not to be used any more."""
        return [
            address["local"]
            for link in self._show(6, "addr", "show", "dev", DEVICE, "scope", "global")
            for address in link.get("addr_info", [])
            if address.get("local", "").startswith(prefix) and address.get("deprecated", False) is deprecated
        ]

    def online(self, *versions: int) -> Self:
        """Wait until it has an address and a router."""
        for version in versions or (4, 6):
            wait_for(functools.partial(self.default_routers, version), f"a default route of IPv{version}")
        return self

    def ping(self, address: str) -> None:
        """One echo, which has to come back."""
        self.run("ping", "-n", "-c", "1", "-W", "10", address)

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
