"""TCP connections that the guest opens."""

from __future__ import annotations

import hashlib
import re
import socket
import struct

import pytest

from tests.guest.machine import Guest
from tests.integration import servers
from tests.integration.changing_host import wait_for
from tests.integration.topology import GATEWAY4, GATEWAY6, REMOTE4, REMOTE6, Topology

BULK_BYTES = 20_000_000
PARALLEL, PARALLEL_BYTES = 100, 100_000

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def random_file(offline_guest: Guest) -> str:
    """SHA-256 of /tmp/random in the guest."""
    offline_guest.check(f"head -c {BULK_BYTES} /dev/urandom >/tmp/random")
    return offline_guest.check("sha256sum /tmp/random").split()[0]


@both_families
def test_upload_arrives_as_it_was(
    guest: Guest, topology: Topology, random_file: str, address: str, measurements: list[str]
) -> None:
    transfer = servers.Transfer()
    with servers.tcp_server(topology.remote, address, servers.receive_into(transfer)) as server:
        assert guest.check(f"socat -b 262144 -t 60 - TCP:{server.socat} </tmp/random", 60) == "."
    assert transfer.byte_count == BULK_BYTES
    assert transfer.digest == random_file
    measurements.append(f"upload to {address}: {transfer.megabits_per_second:.0f} Mbit/s")


@both_families
def test_download_arrives_as_it_was(guest: Guest, topology: Topology, address: str, measurements: list[str]) -> None:
    data, transfer = servers.payload(BULK_BYTES), servers.Transfer()
    with servers.tcp_server(topology.remote, address, servers.send_from(data, transfer)) as server:
        guest.check(f"socat -u -b 262144 TCP:{server.socat} CREATE:/tmp/download", 60)
        assert transfer.finished.wait(60)
    assert guest.check("sha256sum /tmp/download").split()[0] == hashlib.sha256(data).hexdigest()
    guest.check("rm /tmp/download")
    measurements.append(f"download from {address}: {transfer.megabits_per_second:.0f} Mbit/s")


@both_families
def test_both_directions_at_a_time(guest: Guest, topology: Topology, random_file: str, address: str) -> None:
    def echo(connection: socket.socket) -> None:
        while chunk := connection.recv(servers.CHUNK):
            connection.sendall(chunk)

    with servers.tcp_server(topology.remote, address, echo) as server:
        echoed = guest.check(f"socat -b 262144 -t 60 - TCP:{server.socat} </tmp/random | sha256sum", 60)
    assert echoed.split()[0] == random_file


@both_families
def test_one_byte_each_way(guest: Guest, topology: Topology, address: str) -> None:
    with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
        assert guest.check(f"printf x | socat -t 60 - TCP:{server.socat}") == "x"


@both_families
def test_nothing_at_all(guest: Guest, topology: Topology, address: str) -> None:
    with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
        assert guest.check(f"socat -t 60 - TCP:{server.socat}") == ""


@both_families
def test_the_guest_still_receives_after_its_end_of_file(
    guest: Guest, topology: Topology, random_file: str, address: str
) -> None:
    with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
        command = f"head -c 1000000 /tmp/random | tee /tmp/sent | socat -t 60 - TCP:{server.socat} | sha256sum"
        received = guest.check(command)
    assert received.split()[0] == guest.check("sha256sum /tmp/sent").split()[0]


@both_families
def test_the_guest_still_sends_after_its_peers_end_of_file(guest: Guest, topology: Topology, address: str) -> None:
    received = []

    def end_then_receive(connection: socket.socket) -> None:
        connection.sendall(b"go on")
        connection.shutdown(socket.SHUT_WR)
        received.append(servers.receive_all(connection))

    with servers.tcp_server(topology.remote, address, end_then_receive) as server:
        output = guest.check(f"(sleep 1; echo late) | socat -t 60 - TCP:{server.socat}")
    assert output == "go on"
    wait_for(lambda: received, "the end of the server's connection, which may be later than the client's")
    assert received == [b"late\n"]


@both_families
def test_a_refused_connection_is_refused_at_once(guest: Guest, address: str) -> None:
    assert_refused_at_once(guest, f"socat -u TCP:{servers.bracketed(address)}:9 -")


def assert_refused_at_once(guest: Guest, command: str) -> None:
    """Within a second, in one of a few attempts: the machine may do something else meanwhile."""

    def refused_after_s() -> float:
        result = guest.run(f"cat /proc/uptime; {command}; status=$?; cat /proc/uptime; exit $status")
        assert result.status != 0
        assert "Connection refused" in result.stderr
        start, end = (float(line.split()[0]) for line in result.stdout.splitlines())
        return end - start

    assert any(refused_after_s() < 1 for _ in range(4))


@both_families
def test_a_reset_reaches_the_guest(guest: Guest, topology: Topology, address: str) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with servers.tcp_server(topology.remote, address, reset) as server:
        result = guest.run(f"(echo; sleep 1) | socat -t 20 -d - TCP:{server.socat}")
    assert "Connection reset by peer" in result.stderr


@both_families
def test_parallel_connections_stay_apart(guest: Guest, topology: Topology, random_file: str, address: str) -> None:
    guest.check(
        f"mkdir /tmp/parallel; cd /tmp/parallel; for part in $(seq {PARALLEL}); do"
        f" dd if=/tmp/random of=in.$part bs={PARALLEL_BYTES} skip=$part count=1 2>/dev/null; done"
    )
    with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
        # busybox's nc starts five times as fast as socat
        client = f"nc {server.address} {server.port} <in.$part >out.$part"
        guest.check(f"cd /tmp/parallel; for part in $(seq {PARALLEL}); do {client} & done; wait", 90)
    assert len(server.peers) == PARALLEL
    sent, echoed = guest.check(
        "cd /tmp/parallel; cat in.* | sha256sum; cat out.* | sha256sum; rm -r /tmp/parallel"
    ).split("\n", 1)
    assert sent == echoed.strip()


@pytest.mark.parametrize(
    ("gateway", "loopback"), [(GATEWAY4, "127.0.0.1"), (f"{GATEWAY6}%eth0", "::1")], ids=["ipv4", "ipv6"]
)
def test_the_gateways_address_leads_to_the_hosts_loopback(
    guest: Guest, topology: Topology, gateway: str, loopback: str
) -> None:
    with servers.tcp_server(topology.host, loopback, servers.echo_after_end) as server:
        address = f"{servers.bracketed(gateway)}:{server.port}"
        assert guest.check(f"echo local | socat -t 60 - TCP:{address}") == "local\n"
    assert server.peers == [loopback]


@both_families
@pytest.mark.parametrize("option", ["", "-R"], ids=["forward", "reverse"])
def test_iperf3(guest: Guest, topology: Topology, address: str, option: str, measurements: list[str]) -> None:
    with servers.process(
        [*topology.remote.enter(), "iperf3", "-s", "-1", "-B", address, "-p", "5201", "--forceflush"],
        ready=b"Server listening",
    ):
        output = guest.check(f"iperf3 -c {address} -p 5201 -n 40M -f m {option}", 60)
    rates = re.findall(r"([\d.]+) Mbits/sec.*receiver", output)
    assert len(rates) == 1, output
    measurements.append(f"iperf3 {option or '  '} {address}: {rates[0]} Mbit/s")
