"""Ports of the host that lead into the guest. The session's daemon forwards `conftest.FORWARDS`."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from dataclasses import dataclass

import pytest

from tests.guest.machine import Guest
from tests.integration import servers
from tests.integration.topology import GATEWAY4, GATEWAY6, HOST4, HOST6, REMOTE4, REMOTE6, Namespace, Topology

TIMEOUT_S = 60.0
PARALLEL, PARALLEL_BYTES = 100, 100_000


@dataclass(frozen=True)
class Path:
    """How a client comes to a forwarded port, and the address that the guest should see."""

    namespace: str
    client: str
    server: str
    seen: str

    def connect(self, topology: Topology, kind: socket.SocketKind, port: int) -> socket.socket:
        """A connected socket."""
        namespace: Namespace = getattr(topology, self.namespace)
        connection = namespace.socket(servers.family(self.server), kind)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.bind((self.client, 0))
            connection.connect((self.server, port))
        except BaseException:
            connection.close()
            raise
        return connection


from_anywhere = pytest.mark.parametrize(
    "path",
    [
        pytest.param(Path("remote", REMOTE4, HOST4, seen=REMOTE4), id="remote-ipv4"),
        pytest.param(Path("remote", REMOTE6, HOST6, seen=REMOTE6), id="remote-ipv6"),
        pytest.param(Path("host", "127.0.0.1", "127.0.0.1", seen=GATEWAY4), id="loopback-ipv4"),
        pytest.param(Path("host", "::1", "::1", seen=GATEWAY6), id="loopback-ipv6"),
    ],
)
ports = pytest.mark.parametrize(
    ("host_port", "guest_port"), [(8022, 8022), (8085, 8085), (2222, 22)], ids=["one", "range", "translated"]
)


@from_anywhere
@ports
def test_tcp_port(guest: Guest, topology: Topology, path: Path, host_port: int, guest_port: int) -> None:
    family = 6 if ":" in path.server else 4
    listen = f"TCP{family}-LISTEN:{guest_port},reuseaddr,fork"
    command = f"socat -t 60 {listen} 'SYSTEM:echo $SOCAT_PEERADDR; cat'"
    with (
        servers.guest_service(guest, guest_port, command),
        path.connect(topology, socket.SOCK_STREAM, host_port) as connection,
    ):
        connection.sendall(b"through the port\n")
        connection.shutdown(socket.SHUT_WR)
        seen, received = servers.receive_all(connection).decode().splitlines()
    assert _address(seen) == ipaddress.ip_address(path.seen)
    assert received == "through the port"


@from_anywhere
@pytest.mark.parametrize(("host_port", "guest_port"), [(9053, 9053), (6053, 7053)], ids=["one", "translated"])
def test_udp_port(guest: Guest, topology: Topology, path: Path, host_port: int, guest_port: int) -> None:
    family = 6 if ":" in path.server else 4
    listen = f"UDP{family}-RECVFROM:{guest_port},reuseaddr,fork"
    command = f"socat -t 60 {listen} 'SYSTEM:read line; echo $SOCAT_PEERADDR $line'"
    with (
        servers.guest_service(guest, guest_port, command),
        path.connect(topology, socket.SOCK_DGRAM, host_port) as connection,
    ):
        connection.sendall(b"datagram\n")
        seen, received = connection.recv(65536).decode().split()
    assert _address(seen) == ipaddress.ip_address(path.seen)
    assert received == "datagram"


@from_anywhere
def test_a_port_that_nobody_listens_at_is_refused(guest: Guest, topology: Topology, path: Path) -> None:
    def refused_after_s() -> float:
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # while it connects, or, where the daemon accepts first, just after
            _read(path.connect(topology, socket.SOCK_STREAM, 8089))
        return time.monotonic() - start

    assert any(refused_after_s() < 2 for _ in range(3))  # the machine may do something else meanwhile


@pytest.mark.parametrize(("client", "server"), [(REMOTE4, HOST4), (REMOTE6, HOST6)], ids=["ipv4", "ipv6"])
def test_parallel_connections_stay_apart(guest: Guest, topology: Topology, client: str, server: str) -> None:
    family = servers.family(server)
    connections = topology.remote.sockets(PARALLEL, family, socket.SOCK_STREAM)
    echoed: dict[int, bool] = {}

    def exchange(number: int, connection: socket.socket) -> None:
        data = servers.payload(PARALLEL_BYTES, seed=number)
        with connection:
            connection.settimeout(60)
            connection.bind((client, 0))
            connection.connect((server, 8080))
            sender = threading.Thread(target=_send_and_end, args=(connection, data))
            sender.start()
            echoed[number] = servers.receive_all(connection) == data
            sender.join()

    listen = f"TCP{6 if family is socket.AF_INET6 else 4}-LISTEN:8080,reuseaddr,fork,backlog=128"
    with servers.guest_service(guest, 8080, f"socat -t 60 {listen} EXEC:cat"):
        threads = [
            threading.Thread(target=exchange, args=(number, connection))
            for number, connection in enumerate(connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert echoed == dict.fromkeys(range(PARALLEL), True)


def _read(connection: socket.socket) -> bytes:
    with connection:
        return connection.recv(1)


def _send_and_end(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def _address(said_by_socat: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(said_by_socat.strip("[]").partition("%")[0])
