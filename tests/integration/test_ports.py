"""Which ports of the host are forwarded: addresses, interfaces, ports of others, and all there are.

        daemon [host] left  192.0.2.2    2001:db8:1::2  fe80::2 ---- veth ---- left  192.0.2.1    2001:db8:1::1 [peer]
                      right 203.0.113.2  2001:db8:3::2          ---- veth ---- right 203.0.113.1  2001:db8:3::1

Without a guest a connection to a forwarded port is reset at once, and one to any other port refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether

from tests.integration.changing_host import wait_for
from tests.integration.daemon import Daemon, RawGuest, daemon_directory, program
from tests.integration.topology import Namespace, named_namespace, run

LEFT4, LEFT6, LINK_LOCAL6 = "192.0.2.2", "2001:db8:1::2", "fe80::2"
RIGHT4, RIGHT6 = "203.0.113.2", "2001:db8:3::2"
LATER4, LATER6 = "203.0.113.77", "2001:db8:3::77"
PEER4 = "192.0.2.1"
TIMEOUT_S = 30.0

NON_EPHEMERAL = 65535 - (60999 - 32768 + 1)
"""How many ports "all" are; a new namespace has the kernel's own ip_local_port_range."""

DESCRIPTORS = 8000
IDLE_S, IDLE_CPU_S = 2.0, 0.001
"""It is nothing at all, unless the host's network says something."""

ROUNDS, CONNECTIONS = 12, 10
COST_RATIO_LIMIT = 1.5
"""The noise of a connection's 2 ms; an epoll or a table that took longer with many sockets would make it hundreds."""

ATTEMPTS = 3
"""At what is computed from few sockets (as many as there may be descriptors): the noise counts ten times then."""

ALL_SOCKETS, ALL_LIMIT_MIB, ALL_LIMIT_S = 150_000, 150, 10.0
"""Of `-t all -u all`. The target is 5 s; the same takes twice as much of a CPU when the other one is busy, too."""


@dataclass
class Hosts:
    """The host, and who is at the other end of its two cables."""

    host: Namespace
    peer: Namespace


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Both, made and removed."""
    with contextlib.ExitStack() as made:
        host = named_namespace("ports-host", f"nameserver {PEER4}\n")
        made.callback(host.remove)
        peer = named_namespace("ports-peer", "")
        made.callback(peer.remove)
        for device, number in (("left", 1), ("right", 3)):
            cable = ("ip", "-n", host.name, "link", "add", device, "type", "veth", "peer", "name", device)
            run(*cable, "netns", peer.name)
            host.ip("link", "set", device, "addrgenmode", "none")
            for namespace, last in ((host, 2), (peer, 1)):
                subnet = "192.0.2" if number == 1 else "203.0.113"
                namespace.ip("link", "set", device, "up")
                namespace.ip("addr", "add", f"{subnet}.{last}/24", "dev", device)
                namespace.ip("addr", "add", f"2001:db8:{number}::{last}/64", "dev", device, "nodad")
        host.ip("addr", "add", f"{LINK_LOCAL6}/64", "dev", "left", "nodad")
        host.ip("addr", "add", f"{LINK_LOCAL6}/64", "dev", "right", "nodad")
        host.ip("route", "add", "default", "via", PEER4)
        host.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")
        yield Hosts(host, peer)


@pytest.fixture
def own_directory(directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory for this test's own daemon."""
    return daemon_directory(directory, f"ports{abs(hash(request.node.name)) % 10**8}")


def ready(daemon: Daemon) -> str:
    """Wait until it has said everything, which is returned."""
    daemon.wait_ready(60)
    return wait_for(lambda: said if "Start the guest with" in (said := daemon.log_tail()) else "", "all is said")


def is_forwarded(namespace: Namespace, kind: socket.SocketKind, address: str, port: int) -> bool:
    """Whether somebody is there who takes connections (and resets them), or datagrams (and drops them).

    A datagram that nobody takes is told by ICMP.
    """
    host, _, scope = address.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with namespace.socket(family, kind) as sock:
        sock.settimeout(TIMEOUT_S)
        destination = socket.getaddrinfo(host, port, family, kind)[0][4]
        if scope:
            index = int(run(*namespace.enter(), "cat", f"/sys/class/net/{scope}/ifindex"))
            destination = (host, port, 0, index)
        try:
            sock.connect(destination)
            if kind == socket.SOCK_STREAM:
                assert sock.recv(1) == b""
            else:
                sock.send(b"x")
                time.sleep(0.1)
                sock.send(b"x")
        except ConnectionResetError:
            return True
        except ConnectionRefusedError:
            return False
        return kind == socket.SOCK_DGRAM


TCP_SPECIFICATIONS = [
    *("-t", f"{LEFT4}/8001", "-t", f"{LEFT6}/8002", "-t", "%right/8003", "-t", f"{RIGHT4}%right/8004"),
    *("-t", f"{LINK_LOCAL6}%left/8005", "-t", "8006-8009:80-83,~8008", "-t", f"[{LATER6}]/8010,8011"),
    *("-t", f"{LATER4}/8010,8011"),
]
UDP_SPECIFICATIONS = ["-u", "%left/9001", "-u", f"[{RIGHT6}]/9002", "-u", "9003"]
DOCK4 = "198.51.100.2"
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
PLACES = {
    8001: {LEFT4},
    8002: {LEFT6},
    8003: {RIGHT4, RIGHT6, f"{LINK_LOCAL6}%right"},
    8004: {RIGHT4},
    8005: {f"{LINK_LOCAL6}%left"},
    8006: {LEFT4, LEFT6, RIGHT4, RIGHT6, f"{LINK_LOCAL6}%left", f"{LINK_LOCAL6}%right"},
    8008: set(),
    8009: {LEFT4, LEFT6, RIGHT4, RIGHT6, f"{LINK_LOCAL6}%left", f"{LINK_LOCAL6}%right"},
    9001: {LEFT4, LEFT6, f"{LINK_LOCAL6}%left"},
    9002: {RIGHT6},
    9003: {LEFT4, LEFT6, RIGHT4, RIGHT6, f"{LINK_LOCAL6}%left", f"{LINK_LOCAL6}%right"},
}
"""Where each port is forwarded, of what the peer may ask for: the addresses of the host, each by its own cable."""


def test_addresses_and_interfaces(hosts: Hosts, own_directory: Path) -> None:
    """Each port is where it was said to be, and nowhere else; also at an address that comes later."""
    with Daemon(hosts.host, own_directory, "--freebind", *TCP_SPECIFICATIONS, *UDP_SPECIFICATIONS) as daemon:
        said = ready(daemon)
        for port, places in PLACES.items():
            kind = STREAM if port < 9000 else DATAGRAM
            for address in PLACES[8006]:
                is_there = is_forwarded(hosts.peer, kind, address, port)
                assert is_there is (address in places), f"port {port} of {address}: {is_there}\n{daemon.log_tail()}"
        for address in ("127.0.0.1", "::1"):
            assert is_forwarded(hosts.host, STREAM, address, 8006)
            assert not is_forwarded(hosts.host, STREAM, address, 8003)
            assert not is_forwarded(hosts.host, DATAGRAM, address, 9001)
        for address, length in ((LATER4, 32), (LATER6, 128)):
            hosts.host.ip("addr", "add", f"{address}/{length}", "dev", "right", *(["nodad"] if ":" in address else []))
            try:
                assert is_forwarded(hosts.peer, STREAM, address, 8010)
                assert not is_forwarded(hosts.peer, STREAM, address, 8012)
            finally:
                hosts.host.ip("addr", "del", f"{address}/{length}", "dev", "right")
        for line in (
            f"    TCP      8001 on {LEFT4}",
            "    TCP      8003 on %right",
            f"    TCP      8004 on {RIGHT4}%right",
            f"    TCP      8005 on {LINK_LOCAL6}%left",
            "    TCP      8006-8007 -> 80-81, 8009 -> 83",
            "    UDP      9001 on %left",
        ):
            assert line in said.splitlines(), said


def plug_in(hosts: Hosts) -> None:
    """A third cable, with a number of its own each time."""
    cable = ("ip", "-n", hosts.host.name, "link", "add", "dock", "type", "veth", "peer", "name", "dock")
    run(*cable, "netns", hosts.peer.name)
    for namespace, last in ((hosts.peer, 1), (hosts.host, 2)):
        namespace.ip("link", "set", "dock", "up")
        namespace.ip("addr", "add", f"198.51.100.{last}/24", "dev", "dock")


def unplug(hosts: Hosts) -> None:
    hosts.host.ip("link", "delete", "dock")


def test_an_interface_that_comes_again(hosts: Hosts, own_directory: Path) -> None:
    """It has its name, but is another: what was listening at the former one would hear nothing any more."""

    def is_heard() -> bool:
        return all(is_forwarded(hosts.peer, kind, DOCK4, port) for kind, port in ((STREAM, 8003), (DATAGRAM, 9001)))

    plug_in(hosts)
    try:
        with Daemon(hosts.host, own_directory, "-t", "%dock/8003", "-u", "%dock/9001") as daemon:
            ready(daemon)
            for _ in range(2):
                wait_for(is_heard, "its ports are open")
                unplug(hosts)
                wait_for(lambda: "interface dock is gone" in daemon.log_tail(), "it is missed")
                plug_in(hosts)
            wait_for(is_heard, "its ports are open again")
    finally:
        unplug(hosts)


@contextlib.contextmanager
def holding(namespace: Namespace, *ports: int, is_ordinary: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that listens at these ports, in both families; the daemon's user's, or root's."""
    script = (
        "import socket, sys\n"
        "held = [socket.create_server(('::', int(port)), family=socket.AF_INET6, dualstack_ipv6=True)"
        " for port in sys.argv[1:]]\n"
        "print('there', flush=True)\n"
        "sys.stdin.read()\n"
    )
    enter = namespace.enter_unprivileged() if is_ordinary else namespace.enter()
    with subprocess.Popen(
        [*enter, sys.executable, "-c", script, *map(str, ports)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


def holder(process: subprocess.Popen[str]) -> str:
    """How it is called in messages."""
    return f"{Path(f'/proc/{process.pid}/comm').read_text().strip()} (pid {process.pid})"


def fails(hosts: Hosts, directory: Path, *arguments: str) -> list[str]:
    """What a daemon says that does not start."""
    (directory / "log").unlink(missing_ok=True)
    with Daemon(hosts.host, directory, *arguments) as daemon:
        assert daemon.process.wait(TIMEOUT_S) == 1
        lines = daemon.log.read_text().splitlines()
    assert not daemon.socket_path.exists()
    return [line.removeprefix("trio-passt: ") for line in lines]


def test_every_port_that_is_refused_is_said(hosts: Hosts, own_directory: Path) -> None:
    """Why, and who has it, if that may be seen; neighbours are one line."""
    in_use = "Address already in use by"
    with (
        holding(hosts.host, 8080, 8081, 8090, is_ordinary=True) as ours,
        holding(hosts.host, 9000, is_ordinary=False),
        hosts.host.socket(socket.AF_INET, DATAGRAM) as datagrams,
    ):
        datagrams.bind((LEFT4, 9053))
        needs = "CAP_NET_BIND_SERVICE (or a lower net.ipv4.ip_unprivileged_port_start, see sysctl(8))"
        assert fails(hosts, own_directory, "-t", "22-23,8079-8082,8090,9000", "-u", "9053") == [
            f"can't forward TCP ports 22-23 of 0.0.0.0 and ::: Permission denied: ports below 1024 need {needs}",
            f"can't forward TCP ports 8080-8081 of 0.0.0.0 and ::: {in_use} {holder(ours)}",
            f"can't forward TCP port 8090 of 0.0.0.0 and ::: {in_use} {holder(ours)}",
            f"can't forward TCP port 9000 of 0.0.0.0 and ::: {in_use} a process of user 0",
            f"can't forward UDP port 9053 of 0.0.0.0: {in_use} a process of user 0",
        ]
    missing = "Cannot assign requested address: this host does not have it (with --freebind it may come later)"
    assert fails(hosts, own_directory, "-t", f"{LATER4}/8000-8001") == [
        f"can't forward TCP ports 8000-8001 of {LATER4}: {missing}"
    ]
    assert fails(hosts, own_directory, "-t", "%nosuch/8000") == [
        "can't forward TCP port 8000 of 0.0.0.0%nosuch and ::%nosuch: No such device:"
        " this host has no interface 'nosuch'"
    ]
    assert fails(hosts, own_directory, "-4", "-t", f"{LEFT6}/8000") == [
        f"can't forward TCP port 8000 of {LEFT6}: IPv6 is off, by an option or because this host has no network for it"
    ]


def cpu_s(daemon: Daemon) -> float:
    """What it has used of a processor; /proc/PID/schedstat counts nanoseconds, of one thread."""
    (thread,) = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return int((thread / "schedstat").read_text().split()[0]) / 1e9


def cpu_while_idle_s(daemon: Daemon) -> float:
    """What it takes in `IDLE_S`."""
    time.sleep(0.2)
    before_s = cpu_s(daemon)
    time.sleep(IDLE_S)
    return cpu_s(daemon) - before_s


def limited(descriptors: int) -> list[str]:
    """The program with a limit of open files that it can't raise."""
    return ["prlimit", f"--nofile={descriptors}:{descriptors}", *program()]


def test_all_ports_as_far_as_the_limit_allows(hosts: Hosts, own_directory: Path) -> None:
    """Ports of others are left to them, and the guest's connections have their share of the descriptors."""
    with (
        holding(hosts.host, 1030, 1031, is_ordinary=True) as other,
        Daemon(
            hosts.host, own_directory, *("-t", "all", "-u", "all", "-t", "2222:22"), command_line=limited(DESCRIPTORS)
        ) as daemon,
    ):
        said = ready(daemon)
        found = re.search(
            r"forwarding only up to port (\d+), (\d+) of (\d+) sockets for non-ephemeral ports:"
            rf" this process may have {DESCRIPTORS} files open, (\d+) would be enough \(LimitNOFILE= or ulimit -n\)",
            said,
        )
        assert found, said
        last, there, every, enough = map(int, found.groups())
        assert every == 4 * NON_EPHEMERAL - 2
        assert every < enough < every + 20000
        assert DESCRIPTORS * 3 // 4 - 50 < there <= DESCRIPTORS * 3 // 4
        assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= DESCRIPTORS * 3 // 4 + 10
        assert last - 1023 == (there + 2 + 4) // 4  # all four sockets, but of 2222, 1030 and 1031
        needs = "1023 need CAP_NET_BIND_SERVICE (or a lower net.ipv4.ip_unprivileged_port_start, see sysctl(8))"
        in_use = f"2 in use by others: 1030-1031 by {holder(other)}"
        assert (
            f"forwarding {last - 1023 - 3} of {NON_EPHEMERAL - 1} non-ephemeral TCP ports; {needs}; {in_use}\n" in said
        )
        assert f"forwarding {last - 1023} of {NON_EPHEMERAL} non-ephemeral UDP ports; {needs}\n" in said
        assert f"    TCP      1024-1029, 1032-2221, 2222 -> 22, 2223-{last}" in said.splitlines()
        assert f"    UDP      1024-{last}" in said.splitlines()
        for address in (LEFT4, RIGHT6):
            for kind in (STREAM, DATAGRAM):
                assert is_forwarded(hosts.peer, kind, address, last)
                assert not is_forwarded(hosts.peer, kind, address, last + 1)
            assert is_forwarded(hosts.peer, DATAGRAM, address, 1030)
            assert is_forwarded(hosts.peer, STREAM, address, 2222)
        assert any(cpu_while_idle_s(daemon) < IDLE_CPU_S for _ in range(3))  # first, it has those connections to end
    with holding(hosts.host, 1030, is_ordinary=True) as other:
        assert fails(hosts, own_directory, "-t", "~1-1029,~1031-65535", "-u", "none") == [
            f"can't forward TCP port 1030 of 0.0.0.0 and ::: Address already in use by {holder(other)}"
        ]


class Connector:
    """A guest of a daemon, and a client of its forwarded port: how long is it from connect to the guest's SYN?"""

    def __init__(self, hosts: Hosts, daemon: Daemon, port: int) -> None:
        self._hosts, self._port = hosts, port
        self._guest = RawGuest(daemon.socket_path)
        self._mac = "52:54:00:12:34:56"
        ask = Ether(src=self._mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=self._mac, psrc=LEFT4, pdst=PEER4)
        self._guest.send_frame(bytes(ask))

    def connect(self) -> float:
        """Seconds; the guest refuses the connection then."""
        with self._hosts.peer.socket(socket.AF_INET, STREAM) as client:
            client.setblocking(False)
            start = time.perf_counter()
            with contextlib.suppress(BlockingIOError):
                client.connect((LEFT4, self._port))
            while not self._is_syn(frame := self._guest.receive_frame()):
                pass
            seconds = time.perf_counter() - start
            syn = Ether(frame)
            answer = TCP(sport=syn[TCP].dport, dport=syn[TCP].sport, flags="RA", seq=0, ack=syn[TCP].seq + 1)
            reset = Ether(src=self._mac, dst=syn.src) / IP(src=LEFT4, dst=syn[IP].src) / answer
            self._guest.send_frame(bytes(reset))
            select.select([client], [], [], TIMEOUT_S)
        return seconds

    def close(self) -> None:
        """The guest goes."""
        self._guest.connection.close()

    @staticmethod
    def _is_syn(frame: bytes) -> bool:
        """IPv4, TCP, and of the flags just SYN."""
        return frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP and frame[47] == 0x02


@pytest.mark.alone
def test_a_connection_costs_the_same_with_many_ports(hosts: Hosts, directory: Path, measurements: list[str]) -> None:
    """And what they take: memory for each, and time at start."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.ExitStack() as opened:

        def start(name: str, *arguments: str) -> Daemon:
            daemon = opened.enter_context(Daemon(hosts.host, daemon_directory(directory, name), *arguments))
            ready(daemon)
            return daemon

        for number in range(ATTEMPTS):
            opened.close()
            few = start(f"few-ports{number}", "-t", "65000", "-u", "none")
            many = start(f"many-ports{number}", "-t", "~65000", "-u", "~65000")
            sockets = len(os.listdir(f"/proc/{many.process.pid}/fd"))
            assert sockets > min(most // 2, 100_000)
            kib_each = (many.resident_kib() - few.resident_kib()) / sockets
            s_each = (cpu_s(many) - cpu_s(few)) / sockets
            all_mib = (few.resident_kib() + kib_each * ALL_SOCKETS) / 1024
            all_s = cpu_s(few) + s_each * ALL_SOCKETS
            each = f"{kib_each * 1024:.0f} bytes and {s_each * 1e6:.0f} µs of a CPU each"
            measurements.append(
                f"{sockets} sockets of forwarded ports: {each}, so {ALL_SOCKETS} {all_mib:.0f} MiB and {all_s:.1f} s"
            )
            if all_mib < ALL_LIMIT_MIB and all_s < ALL_LIMIT_S:
                break
        assert all_mib < ALL_LIMIT_MIB
        assert all_s < ALL_LIMIT_S
        with_few, with_many = Connector(hosts, few, 65000), Connector(hosts, many, 1024)
        opened.callback(with_few.close)
        opened.callback(with_many.close)
        ms: dict[Connector, list[float]] = {with_few: [], with_many: []}
        cpu_ms: dict[Connector, list[float]] = {with_few: [], with_many: []}
        for _ in range(ROUNDS):  # in turn, and the best of each counts: the machine may do something else meanwhile
            for connector, daemon in (with_few, few), (with_many, many):
                before_s = cpu_s(daemon)
                ms[connector].append(statistics.median(connector.connect() for _ in range(CONNECTIONS)) * 1000)
                cpu_ms[connector].append((cpu_s(daemon) - before_s) / CONNECTIONS * 1000)
        few_ms, many_ms = map(min, ms.values())
        few_cpu_ms, many_cpu_ms = map(min, cpu_ms.values())
        measurements.append(
            f"a connection to a forwarded port, of 2 sockets and of {sockets}: {few_ms:.2f} and {many_ms:.2f} ms,"
            f" {few_cpu_ms:.2f} and {many_cpu_ms:.2f} ms of a CPU"
        )
        assert many_ms / few_ms < COST_RATIO_LIMIT
        assert many_cpu_ms / few_cpu_ms < COST_RATIO_LIMIT
