"""A kernel's TCP behind a link that loses, duplicates, delays and reorders frames: all arrives, in bounded time.

The relay between the guest and the daemon does so to both directions, by seed (`tests/guest/relay.c`).  The bounds are
wide: a retransmission timeout here and there, on a busy machine, is not what this is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.guest.kernel import Impairments, KernelGuest
from tests.integration import servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import REMOTE4, REMOTE6, Topology

FAR = Impairments(loss_permille=10, delay_ms=50, seed=3)
HARSH = Impairments(loss_permille=50, duplicate_permille=50, reorder_permille=50, delay_ms=10, seed=3)

MTU_BYTES = 1500
UPLOAD_BYTES, DOWNLOAD_BYTES = 100_000, 500_000
PARALLEL, PARALLEL_BYTES = 8, 30_000
UPLOADS = 30
REQUESTS = 20
TIME_LIMIT_S = 60.0

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", params=[FAR, HARSH], ids=["far", "harsh"])
def lossy(request: pytest.FixtureRequest, topology: Topology, directory: Path) -> Iterator[KernelGuest]:
    """A guest behind a bad link, and a daemon of its own."""
    name = "lossy-harsh" if request.param is HARSH else "lossy-far"
    with (
        Daemon(topology.host, daemon_directory(directory, name), "--mtu", str(MTU_BYTES)) as daemon,
        KernelGuest(daemon.wait_ready().socket_path, mtu_bytes=MTU_BYTES, impairments=request.param) as guest,
    ):
        yield guest
        assert daemon.process.poll() is None
        assert "internal error" not in daemon.log_tail()


def connect(guest: KernelGuest, server: servers.Served) -> socket.socket:
    """A connection that the guest opens."""
    connection = guest.namespace.socket(servers.family(server.address), socket.SOCK_STREAM)
    connection.settimeout(TIME_LIMIT_S)
    connection.connect((server.address, server.port))
    return connection


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


@both_families
def test_upload(lossy: KernelGuest, topology: Topology, address: str, measurements: list[str]) -> None:
    data, transfer = servers.payload(UPLOAD_BYTES), servers.Transfer()
    with (
        servers.tcp_server(topology.remote, address, servers.receive_into(transfer)) as server,
        connect(lossy, server) as connection,
    ):

        def upload() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"."

        seconds = timed(upload)
    assert transfer.byte_count == UPLOAD_BYTES
    assert transfer.digest == hashlib.sha256(data).hexdigest()
    measurements.append(f"bad link, upload to {address}: {UPLOAD_BYTES * 8 / 1e6 / seconds:.2f} Mbit/s")


@both_families
def test_download(lossy: KernelGuest, topology: Topology, address: str, measurements: list[str]) -> None:
    data, transfer = servers.payload(DOWNLOAD_BYTES), servers.Transfer()
    received = []
    with (
        servers.tcp_server(topology.remote, address, servers.send_from(data, transfer)) as server,
        connect(lossy, server) as connection,
    ):
        seconds = timed(lambda: received.append(servers.receive_all(connection)))
    assert hashlib.sha256(received[0]).digest() == hashlib.sha256(data).digest()
    measurements.append(f"bad link, download from {address}: {DOWNLOAD_BYTES * 8 / 1e6 / seconds:.2f} Mbit/s")


@both_families
def test_both_directions_at_a_time_and_several_connections(
    lossy: KernelGuest, topology: Topology, address: str
) -> None:
    """Each has its own data, and gets it back while it still sends."""

    def echo(connection: socket.socket) -> None:
        while chunk := connection.recv(servers.CHUNK):
            connection.sendall(chunk)

    with servers.tcp_server(topology.remote, address, echo) as server:

        def transfer(number: int) -> bool:
            data = servers.payload(PARALLEL_BYTES, number)

            def send() -> None:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)

            with connect(lossy, server) as connection:
                sender = threading.Thread(target=send)
                sender.start()
                received = servers.receive_all(connection)
                sender.join()
                return received == data

        with ThreadPoolExecutor(PARALLEL) as pool:
            assert all(pool.map(transfer, range(PARALLEL), timeout=TIME_LIMIT_S))


@both_families
def test_no_upload_of_many_takes_long(lossy: KernelGuest, topology: Topology, address: str) -> None:
    """What is lost is repaired in round trips, not in timeouts that double each time.

    Those of Linux' TCP go on doubling until something is acknowledged that was sent only once, which does not come to
    pass behind a receiver that drops what lies behind a gap.
    """
    data = servers.payload(UPLOAD_BYTES)

    def receive(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(servers.receive_all(connection)).digest())

    with servers.tcp_server(topology.remote, address, receive) as server:

        def upload(_number: int) -> bytes:
            with connect(lossy, server) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return servers.receive_all(connection)

        with ThreadPoolExecutor(UPLOADS) as pool:
            digests = set(pool.map(upload, range(UPLOADS), timeout=TIME_LIMIT_S))
    assert digests == {hashlib.sha256(data).digest()}


@both_families
def test_the_guest_still_receives_after_its_end_of_file(lossy: KernelGuest, topology: Topology, address: str) -> None:
    data = servers.payload(PARALLEL_BYTES)
    with (
        servers.tcp_server(topology.remote, address, servers.echo_after_end) as server,
        connect(lossy, server) as connection,
    ):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert servers.receive_all(connection) == data


@both_families
def test_the_guest_still_sends_after_its_peers_end_of_file(
    lossy: KernelGuest, topology: Topology, address: str
) -> None:
    data, transfer = servers.payload(PARALLEL_BYTES), servers.Transfer()

    def end_then_receive(connection: socket.socket) -> None:
        connection.sendall(b"go on")
        connection.shutdown(socket.SHUT_WR)
        transfer.digest = hashlib.sha256(servers.receive_all(connection)).hexdigest()
        transfer.finished.set()

    with (
        servers.tcp_server(topology.remote, address, end_then_receive) as server,
        connect(lossy, server) as connection,
    ):
        assert servers.receive_all(connection) == b"go on"
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert transfer.finished.wait(TIME_LIMIT_S)
    assert transfer.digest == hashlib.sha256(data).hexdigest()


@both_families
def test_requests_and_responses(lossy: KernelGuest, topology: Topology, address: str) -> None:
    def respond(connection: socket.socket) -> None:
        while request := connection.recv(100):
            connection.sendall(request[::-1])

    with (
        servers.tcp_server(topology.remote, address, respond) as server,
        connect(lossy, server) as connection,
    ):
        begun = time.monotonic()
        for number in range(REQUESTS):
            request = servers.payload(100, number)
            connection.sendall(request)
            response = b""
            while len(response) < len(request):
                response += connection.recv(100)
            assert response == request[::-1]
        assert time.monotonic() - begun < TIME_LIMIT_S


@both_families
def test_a_refused_connection_is_refused(lossy: KernelGuest, address: str) -> None:
    with lossy.namespace.socket(servers.family(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(TIME_LIMIT_S)
        with pytest.raises(ConnectionRefusedError):
            connection.connect((address, 9))


def talk_until_reset(connection: socket.socket) -> None:
    """Say something, again and again: it ends with an error, or never."""
    connection.settimeout(0.5)
    while True:
        connection.sendall(b"x")
        with contextlib.suppress(TimeoutError):
            assert connection.recv(1), "an orderly end instead of a reset"


@both_families
def test_a_reset_reaches_the_guest(lossy: KernelGuest, topology: Topology, address: str) -> None:
    """Also if it is lost: then the guest is told when it asks."""

    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with servers.tcp_server(topology.remote, address, reset) as server:
        for _ in range(5):
            with connect(lossy, server) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
                talk_until_reset(connection)
