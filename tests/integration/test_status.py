"""What a running daemon says of what it does: the table that SIGUSR1 asks for, and `--trace`."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.guest.kernel import DEVICE, KernelGuest
from tests.integration import servers
from tests.integration.capture import DAEMON_MAC
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import GATEWAY4, GATEWAY6, HOST4, HOST6, REMOTE4, REMOTE6, Topology

PATIENCE_S = 30.0
STARTS = 10
HOST_PORT = 3222
"""Another than the session's daemon has, on the same host."""

_numbers = itertools.count(1)

PROGRAM = "trio-passt: "
IGNORED = f"{1 << (signal.SIGUSR1 - 1):x}"


def _asked(daemon: Daemon, lines: int) -> str:
    """The table, which has so many lines."""
    before = len(daemon.log.read_text().splitlines())
    daemon.process.send_signal(signal.SIGUSR1)
    table = _until(lambda: daemon.log.read_text().splitlines()[before:], lines)
    assert all(line.startswith(PROGRAM) for line in table)
    return "\n".join(line.removeprefix(PROGRAM) for line in table)


def _until(look: Callable[[], list[str]], count: int) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := look()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def _connection(guest: KernelGuest, address: str, port: int) -> Iterator[socket.socket]:
    with guest.namespace.socket(servers.family(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect((address, port))
        yield connection


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


@contextlib.contextmanager
def _client(guest: KernelGuest, topology: Topology) -> Iterator[int]:
    """A client of the guest's port 22, by `HOST_PORT`, who has said something; his port."""
    with (
        guest.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("", 22))
        server.listen()
        client.settimeout(PATIENCE_S)
        client.connect((HOST4, HOST_PORT))
        server.settimeout(PATIENCE_S)
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(100) == b"hello"
            yield client.getsockname()[1]


def test_all_flows_are_in_the_table_also_of_a_quiet_daemon(topology: Topology, directory: Path) -> None:
    done = threading.Event()

    def hold(_connection: socket.socket) -> None:
        done.wait(4 * PATIENCE_S)

    with (
        Daemon(topology.host, daemon_directory(directory, "status"), "-q", "-t", f"{HOST_PORT}:22") as daemon,
        servers.tcp_server(topology.remote, REMOTE4, _echo) as remote,
        servers.tcp_server(topology.host, "127.0.0.1", hold) as local,
        servers.udp_server(topology.remote, REMOTE6, lambda request: request) as echo,
    ):
        assert "no guest is connected" in _asked(daemon.wait_ready(), 4)
        with (
            KernelGuest(daemon.socket_path) as guest,
            _connection(guest, REMOTE4, remote.port) as out,
            _connection(guest, GATEWAY4, local.port) as to_host,
            _client(guest, topology) as client_port,
            guest.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
        ):
            out.sendall(bytes(3000))
            received = 0
            while received < 3000:
                received += len(out.recv(3000))
            to_host.shutdown(socket.SHUT_WR)
            udp.settimeout(PATIENCE_S)
            udp.connect((REMOTE6, echo.port))
            udp.send(b"question")
            assert udp.recv(100) == b"question"
            guest.run("ping", "-n", "-c", "1", "-W", "20", "-e", "4711", REMOTE4)
            ports = [sock.getsockname()[1] for sock in (out, to_host, udp)]
            table = _asked(daemon, 13)
            done.set()
    for line in (
        r"status after \S+ s: a guest is connected, for \S+ s",
        r"descriptors: \d\d of \d+ are open",
        rf"forwarded: TCP {HOST_PORT} -> 22",
        rf"forwarded: UDP {HOST_PORT}",
        rf"guest: [0-9a-f:]{{17}}, {HOST4}, {HOST6}(, fe80::\S+)?",
        r"link: has room, 0 flows wait; 0 bytes of datagrams wait",
        r"flows: 3 TCP \(of 65536\), 1 UDP \(of \d+\), 1 echo \(of \d+\)",
        r"PROTOCOL +STATE +GUEST +REMOTE +ON THE HOST +IDLE +FROM GUEST +TO GUEST",
        rf"TCP +ESTABLISHED +{HOST4}:{ports[0]} +-> +{REMOTE4}:{remote.port} +\d\S* s +2.9 KiB +2.9 KiB",
        rf"TCP +FIN-WAIT-2 +{HOST4}:{ports[1]} +-> +{GATEWAY4}:{local.port} +127.0.0.1:{local.port} +\d\S* s +0 B +0 B",
        rf"TCP +ESTABLISHED +{HOST4}:22 +<- +{GATEWAY4}:{client_port} +\d\S* s +0 B +5 B",
        rf"UDP +answered +\[{HOST6}\]:{ports[2]} +-> +\[{REMOTE6}\]:{echo.port} +\d\S* s +1 datagram +1 datagram",
        rf"echo +open +{HOST4} id 4711 +-> +{REMOTE4} +\d\S* s +- +-",
    ):
        assert re.search(f"^{line}$", table, re.MULTILINE), f"{line} is not in:\n{table}"


def test_a_signal_during_the_start_harms_nobody(topology: Topology, directory: Path) -> None:
    """From the moment on at which the program can do something about it. It is soon over, and so tried again."""
    sent = 0
    for _ in range(STARTS):
        sent += _signals_during_start(topology, directory)
        if sent > 5:
            return
    raise AssertionError(f"only {sent} signals in {STARTS} starts")


def _signals_during_start(topology: Topology, directory: Path) -> int:
    """How many were sent."""
    with Daemon(topology.host, daemon_directory(directory, f"early{next(_numbers)}")) as daemon:
        status = Path(f"/proc/{daemon.process.pid}/status")
        deadline, sent = time.monotonic() + PATIENCE_S, 0
        while not (daemon.log.exists() and "Start the guest with" in daemon.log.read_text()):
            assert daemon.process.poll() is None, daemon.log_tail()
            assert time.monotonic() < deadline
            masks = dict(line.split(":\t") for line in status.read_text().splitlines() if line.startswith("Sig"))
            if int(masks["SigIgn"], 16) & int(IGNORED, 16) or int(masks["SigCgt"], 16) & int(IGNORED, 16):
                daemon.process.send_signal(signal.SIGUSR1)
                sent += 1
        daemon.process.send_signal(signal.SIGUSR1)
        _until(lambda: [line for line in daemon.log.read_text().splitlines() if "no guest is connected" in line], 1)
        assert daemon.stop() == 0
    return sent


def test_trace_has_a_line_for_each_frame(topology: Topology, directory: Path) -> None:
    """As many as the capture of the same session, and the same ones to each side."""
    own = daemon_directory(directory, "trace")
    capture = own / "capture.pcap"
    with (
        Daemon(topology.host, own, "--trace", "-p", str(capture)) as daemon,
        servers.tcp_server(topology.remote, REMOTE4, _echo) as remote,
    ):
        with (
            KernelGuest(daemon.wait_ready().socket_path) as guest,
            _connection(guest, REMOTE4, remote.port) as connection,
        ):
            # It may know our MAC address by our own request, at the start; then it has to ask.
            guest.namespace.ip("neigh", "flush", "dev", DEVICE)
            guest.run("ping", "-n", "-c", "1", "-W", "20", "-s", "100", "-e", "4711", REMOTE4)
            guest.run("ping", "-n", "-c", "1", "-W", "20", "-e", "4711", REMOTE6)
            connection.sendall(b"question")
            assert connection.recv(100) == b"question"
            port = connection.getsockname()[1]
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        _until(lambda: [line for line in daemon.log.read_text().splitlines() if "guest gone" in line], 1)
        assert daemon.stop() == 0
        log = daemon.log.read_text()
    lines = re.findall(
        r"^ +\d+\.\d{4} trace: (from guest: |to guest:   )(\S+) > \S+ (\d+) bytes: (.*)$", log, re.MULTILINE
    )
    shown = subprocess.run(
        ["tshark", "-n", "-r", str(capture), "-T", "fields", "-e", "eth.src", "-e", "frame.len"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [f"{mac}\t{size}" for _, mac, size, _ in lines] == shown
    assert {direction for direction, mac, _, _ in lines if mac == DAEMON_MAC} == {"to guest:   "}
    assert {direction for direction, mac, _, _ in lines if mac != DAEMON_MAC} == {"from guest: "}
    described = "\n".join(f"{direction}{text}" for direction, _, _, text in lines)
    there, back = f"{HOST4}:{port} > {REMOTE4}:{remote.port} ttl=64", f"{REMOTE4}:{remote.port} > {HOST4}:{port} ttl=64"
    for expected in (
        rf"from guest: IPv4 {there} TCP SYN seq=\d+ win=\d+ len=0 mss=65480 sackOK ts=\d+/0 wscale=\d+",
        rf"to guest:   IPv4 {back} TCP SYN\|ACK seq=\d+ ack=\d+ win=65535 len=0 mss=65480 wscale=\d+ sackOK",
        rf"from guest: IPv4 {there} TCP PSH\|ACK seq=\d+ ack=\d+ win=\d+ len=8",
        rf"to guest:   IPv4 {back} TCP PSH\|ACK seq=\d+ ack=\d+ win=\d+ len=8",
        rf"from guest: IPv4 {there} TCP FIN\|ACK seq=\d+ ack=\d+ win=\d+ len=0",
        rf"from guest: IPv4 {HOST4} > {REMOTE4} ttl=64 ICMP echo request id=4711 seq=1 len=100",
        rf"to guest:   IPv4 {REMOTE4} > {HOST4} ttl=64 ICMP echo reply id=4711 seq=1 len=100",
        rf"to guest:   IPv6 {REMOTE6} > {HOST6} hlim=\d+ ICMPv6 echo reply id=4711 seq=1 len=56",
        rf"to guest:   IPv6 {GATEWAY6} > ff02::1:ff00:2 hlim=255 ICMPv6 neighbor solicitation: who has {HOST6}.*",
        rf"to guest:   ARP reply: {GATEWAY4} is at {DAEMON_MAC}",
    ):
        assert re.search(f"^{expected}$", described, re.MULTILINE), f"{expected} is not in:\n{described}"
    assert "wrong checksum" not in described
    assert "malformed" not in described
