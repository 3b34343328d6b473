"""Datagrams that are larger than the guest's MTU: whole on both sides, in fragments on the link between.

The guest is the kernel's stack with an MTU of 1500: it fragments what it sends, and reassembles what the daemon has
fragmented. Scapy reads the daemon's fragments from its capture, and makes others that no honest kernel would send.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Packet

from tests.guest.kernel import DEVICE, KernelGuest
from tests.integration import fragments, servers
from tests.integration.capture import DAEMON_MAC, examine
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.pinging import all_answered, echoes
from tests.integration.topology import REMOTE4, REMOTE6, Namespace, Topology, run

MTU_BYTES = 1500
ETHERNET_BYTES = 14
GUEST_PORT, SERVER_PORT = 21000, 21001
HEADER_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}
LARGEST = {socket.AF_INET: 65535 - 28, socket.AF_INET6: 65535 - 8}
"""Of UDP's payload: IPv4 counts its own header, too (RFC 791), IPv6 does not (RFC 8200 section 3)."""

WAVES, WAVE, FLOOD_LIMIT_KIB = 6, 5000, 20 * 1024
"""Of fragments that never become whole: 42 MB, in portions that fit into the device's queue; what the daemon may grow
by."""

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for this file's guest; it has nothing to warn of."""
    arguments = ["--quiet", "--mtu", str(MTU_BYTES)]
    with Daemon(topology.host, daemon_directory(directory, "fragments"), *arguments) as daemon:
        yield daemon.wait_ready()
        assert daemon.process.poll() is None
        assert daemon.log_tail() == ""


@pytest.fixture(scope="module")
def guest(own_daemon: Daemon) -> Iterator[KernelGuest]:
    """A guest of that daemon."""
    with KernelGuest(own_daemon.socket_path, mtu_bytes=MTU_BYTES) as guest:
        yield guest


def exchange(namespace: Namespace, topology: Topology, address: str, sizes: list[int]) -> list[bytes]:
    """Datagrams from the namespace, each of which is answered by its bytes in reverse order; the answers."""
    requests = [servers.payload(size, seed=size) for size in sizes]
    answers = []
    with (
        servers.udp_socket(topology.remote, address) as server,
        namespace.socket(servers.family(address), socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(30)
        client.connect((address, server.getsockname()[1]))
        for request in requests:
            client.send(request)
            received, peer = server.recvfrom(65536)
            assert received == request
            server.sendto(request[::-1], peer)
            answers.append(client.recv(65536))
    assert answers == [request[::-1] for request in requests]
    return answers


def sizes_of(address: str) -> list[int]:
    """Just one frame, just two, and more, up to what IP can say."""
    fits = MTU_BYTES - HEADER_BYTES[servers.family(address)]
    return [fits, fits + 1, 9_000, 60_000, LARGEST[servers.family(address)]]


@both_families
def test_datagrams_of_all_sizes(guest: KernelGuest, topology: Topology, address: str) -> None:
    exchange(guest.namespace, topology, address, sizes_of(address))


@both_families
@pytest.mark.parametrize("size", [4000, 60_000])
def test_ping(guest: KernelGuest, address: str, size: int) -> None:
    output = guest.run("ping", *echoes(3, 0.1).split(), "-s", str(size), address)
    assert all_answered(output, 3)
    assert f"{size + 8} bytes from {address}" in output


@both_families
def test_several_senders_at_a_time(guest: KernelGuest, topology: Topology, address: str) -> None:
    """The kernel sends the fragments of one datagram after those of the other; all are there before any is answered."""
    wildcard = "::" if ":" in address else "0.0.0.0"
    requests = {GUEST_PORT + 10 + number: servers.payload(9_000, seed=number) for number in range(10)}
    with servers.udp_socket(topology.remote, address) as server:
        clients = {port: servers.udp_socket(guest.namespace, wildcard, port) for port in requests}
        try:
            for port, client in clients.items():
                client.sendto(requests[port], server.getsockname())
            received = [server.recvfrom(65536) for _ in clients]
            assert {name[1]: data for data, name in received} == requests
            for data, name in received:
                server.sendto(data, name)
            assert {port: client.recv(65536) for port, client in clients.items()} == requests
        finally:
            for client in clients.values():
                client.close()


def test_the_daemons_fragments_are_what_others_reassemble(topology: Topology, directory: Path) -> None:
    own = daemon_directory(directory, "fragments-captured")
    capture = own / "capture.pcap"
    arguments = ["--mtu", str(MTU_BYTES), "--pcap", str(capture)]
    with (
        Daemon(topology.host, own, *arguments) as daemon,
        KernelGuest(daemon.wait_ready().socket_path, mtu_bytes=MTU_BYTES) as guest,
    ):
        answers = [exchange(guest.namespace, topology, address, sizes_of(address)) for address in (REMOTE4, REMOTE6)]
        guest.run("ping", "-n", "-c", "1", "-W", "20", "-s", "4000", REMOTE4)
        guest.run("ping", "-n", "-c", "1", "-W", "20", "-s", "4000", REMOTE6)
    frames = fragments.sent_by_daemon(capture)
    assert max(map(len, frames)) == ETHERNET_BYTES + MTU_BYTES
    whole = [frame for frame in frames if not fragments.is_fragment(frame)] + fragments.reassembled(frames)
    payloads = [fragments.udp_payload(packet) for packet in whole if UDP in packet]
    assert sorted(payloads) == sorted(answer for of_family in answers for answer in of_family)
    verdict = examine(capture)
    assert verdict.problems == []
    assert verdict.kinds["ipv4 fragment"] > 90
    assert verdict.kinds["ipv6 fragment"] > 90


@pytest.fixture(params=[REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])
def destination(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Where hand-made fragments go."""
    return request.param, SERVER_PORT


@pytest.fixture
def server(destination: tuple[str, int], topology: Topology) -> Iterator[socket.socket]:
    """Who waits there."""
    with servers.udp_socket(topology.remote, *destination) as server:
        yield server


@pytest.fixture(params=["kernel", "daemon"])
def sender(
    request: pytest.FixtureRequest, destination: tuple[str, int], topology: Topology
) -> Iterator[fragments.Sender]:
    """Who sends them: the guest; and the host, for the remote machine's kernel is what the daemon is compared with."""
    if request.param == "kernel":
        namespace, device = topology.host, "uplink"
        to = run(*topology.remote.enter(), "cat", f"/sys/class/net/{device}/address").strip()
    else:
        namespace, device, to = (request.getfixturevalue("guest").namespace, DEVICE, DAEMON_MAC)
    sender = fragments.Sender(namespace, device, to, source_port=GUEST_PORT, destination=destination)
    yield sender
    sender.close()


FIRST, SECOND = servers.payload(5000, seed=1), servers.payload(5000, seed=2)


def test_fragments_in_any_order(sender: fragments.Sender, server: socket.socket) -> None:
    sender.send(*reversed(sender.datagram(FIRST)))
    assert server.recv(65536) == FIRST
    first, *others, last = sender.datagram(SECOND)
    sender.send(last, first, *others)
    assert server.recv(65536) == SECOND


def test_fragments_of_two_datagrams_in_turn(sender: fragments.Sender, server: socket.socket) -> None:
    for pair in zip(sender.datagram(FIRST), sender.datagram(SECOND), strict=True):
        sender.send(*pair)
    assert [server.recv(65536), server.recv(65536)] == [FIRST, SECOND]


def test_the_smallest_fragments(sender: fragments.Sender, server: socket.socket) -> None:
    """Of eight bytes, so that the first one has UDP's header and nothing else."""
    sender.send(*sender.datagram(FIRST[:100], size=8))
    assert server.recv(65536) == FIRST[:100]


def without(parts: list[Packet], *missing: int) -> list[Packet]:
    """All but these."""
    return [part for number, part in enumerate(parts) if number not in missing]


def with_another(parts: list[Packet], at: int, by_bytes: int) -> list[Packet]:
    """All, and before one of them the same one at another offset."""
    at %= len(parts)
    return [*parts[:at], fragments.moved(parts[at], by_bytes), *parts[at:]]


NO_DATAGRAM: dict[str, Callable[[list[Packet]], list[Packet]]] = {
    "the-first-missing": lambda parts: without(parts, 0),
    "one-missing": lambda parts: without(parts, 1),
    "the-last-missing": lambda parts: without(parts, 4),
    "overlapping": lambda parts: with_another(parts, 2, -8),
    "overlapping-the-first": lambda parts: with_another(parts, 1, -512),
    "two-ends": lambda parts: with_another(parts, -1, 1024),
    "longer-than-a-packet": lambda parts: [*parts[:4], fragments.moved(parts[4], fragments.LAST_OFFSET - 4 * 1024)],
}
"""What becomes of a datagram's five fragments. All bytes are there where some contradict others: RFC 5722."""


@pytest.mark.parametrize("spoil", NO_DATAGRAM.values(), ids=NO_DATAGRAM)
def test_what_is_no_datagram_is_not_delivered_and_the_next_one_is(
    sender: fragments.Sender, server: socket.socket, spoil: Callable[[list[Packet]], list[Packet]]
) -> None:
    sender.send(*spoil(sender.datagram(FIRST)))
    sender.send(*sender.datagram(SECOND))
    assert server.recv(65536) == SECOND


@pytest.mark.parametrize("sender", ["daemon"], indirect=True)
def test_what_never_becomes_whole_is_forgotten(
    sender: fragments.Sender, server: socket.socket, own_daemon: Daemon
) -> None:
    before_kib = own_daemon.resident_kib()
    for wave in range(WAVES):
        sender.flood(range(wave * WAVE, (wave + 1) * WAVE))
        sender.send(*sender.datagram(SECOND))
        assert server.recv(65536) == SECOND
    assert own_daemon.resident_kib() - before_kib < FLOOD_LIMIT_KIB
