"""A host whose network changes, the world around it, and a daemon there.

        guest -- daemon [host] uplink ---- veth ---- uplink [world] lo 198.51.100.2, 2001:db8:2::2
                               vpn ------- veth ---- vpn

Both are made for one test. The world's side of a cable has the gateways of all networks that the host may join there
(`Attachment`); its servers tell whoever asks which address they see. The host's /etc is a directory of the test's, so
that resolv.conf can be rewritten, replaced, or be a link, as it happens on real hosts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from tests.integration import servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import NAME_PREFIX, Namespace, named_namespace, run

WAIT_S = 60.0
"""For what comes within two seconds on a machine that has nothing else to do."""

POLL_S = 0.03

REMOTE = {4: "198.51.100.2", 6: "2001:db8:2::2"}
"""The world's servers."""


T = TypeVar("T")

_numbers = itertools.count(1)


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
        return [f"route {verb} default via {self.gateways[version]} dev {self.device} metric {self.metric}"]

    def joining(self, *versions: int) -> list[str]:
        """The device up, with addresses and default routes."""
        lines = [f"link set {self.device} up"]
        for version in versions:
            lines += [*self.address_lines(version), *self.route_lines(version)]
        return lines

    def leaving(self, *versions: int) -> list[str]:
        """Without them again."""
        return [
            line
            for version in versions
            for line in (*self.route_lines(version, "del"), *self.address_lines(version, "del"))
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
        self.batch(*place.joining(*versions or (4, 6)))

    def move(self, place: Attachment, to: Attachment) -> None:
        """From one to another, at once."""
        self.batch(*place.leaving(4, 6), *to.joining(4, 6))

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
