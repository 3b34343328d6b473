"""The kernel's stack as guest, behind the relay: it is online, bytes arrive as they were, impairments impair."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.kernel import Impairments, KernelGuest
from tests.integration import servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import GATEWAY4, GATEWAY6, REMOTE4, REMOTE6, Topology

BULK_BYTES = 10_000_000
LOSS_PERMILLE = 50
DELAY_MS = 20

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for the guests of this file, one after the other."""
    with Daemon(topology.host, daemon_directory(directory, "kernel-guest")) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def online(own_daemon: Daemon) -> Iterator[KernelGuest]:
    """A guest on a good link."""
    with KernelGuest(own_daemon.socket_path) as guest:
        yield guest


@pytest.mark.parametrize("gateway", [GATEWAY4, f"{GATEWAY6}%tap0"], ids=["ipv4", "ipv6"])
def test_the_gateway_answers(online: KernelGuest, gateway: str) -> None:
    online.run("ping", "-c", "3", "-i", "0.1", "-W", "20", gateway)


@both_families
def test_upload(online: KernelGuest, topology: Topology, address: str) -> None:
    data, transfer = servers.payload(BULK_BYTES), servers.Transfer()
    with (
        servers.tcp_server(topology.remote, address, servers.receive_into(transfer)) as server,
        online.namespace.socket(servers.family(address), socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(60)
        connection.connect((address, server.port))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"."
    assert transfer.byte_count == BULK_BYTES
    assert transfer.digest == hashlib.sha256(data).hexdigest()


@both_families
def test_download(online: KernelGuest, topology: Topology, address: str) -> None:
    data, transfer = servers.payload(BULK_BYTES), servers.Transfer()
    with (
        servers.tcp_server(topology.remote, address, servers.send_from(data, transfer)) as server,
        online.namespace.socket(servers.family(address), socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(60)
        connection.connect((address, server.port))
        received = servers.receive_all(connection)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def test_a_link_with_impairments(topology: Topology, directory: Path) -> None:
    impairments = Impairments(LOSS_PERMILLE, LOSS_PERMILLE, LOSS_PERMILLE, DELAY_MS)
    with (
        Daemon(topology.host, daemon_directory(directory, "kernel-guest-impaired")) as daemon,
        KernelGuest(daemon.wait_ready().socket_path, impairments=impairments) as guest,
    ):
        said = guest.run("sh", "-c", f"ping -q -c 300 -i 0.01 -W 2 {GATEWAY4} || true")
        counted = guest.disconnect()
    (received,) = map(int, re.findall(r"(\d+) received", said))
    (fastest,) = map(float, re.findall(r"= ([\d.]+)/", said))
    assert 150 <= received <= 299  # of 300, each passes twice with 0.95
    assert "duplicates" in said
    assert fastest >= 2 * DELAY_MS
    for counter in ("lost", "duplicated", "reordered"):
        assert all(int(number) > 0 for number in re.findall(rf"(\d+) {counter}", counted)), counted
