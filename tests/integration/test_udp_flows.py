"""UDP, datagram by datagram, with a guest that is the kernel's stack: who sent what from where, both ways."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.kernel import KernelGuest
from tests.integration import error_queue, servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    REMOTE4,
    REMOTE6,
    RESOLVER4,
    RESOLVER6,
    Topology,
)

ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
GUEST_PORT = 20000
"""Of the guest's sockets where the port counts: outside of the host's ephemeral range, so that nobody else has it."""

SOCKETS = 300
NTP_PORT = 123
NTP_REQUEST = bytes([4 << 3 | 3]) + bytes(39) + b"our time"
"""RFC 5905 section 7.3: version 4, a client, and when it has transmitted; the rest is of no concern."""

HOP_LIMITS = (64, 3, 255, 77)
LATE_S = 5.0
ANSWERS = 2

FORWARDED_PORT, TRANSLATED_PORT, TRANSLATED_TO = 9101, 9102, 9112
FORWARDS = ["-u", f"{FORWARDED_PORT},{TRANSLATED_PORT}:{TRANSLATED_TO}"]

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])
families = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for this file's guest; it has nothing to warn of."""
    with Daemon(topology.host, daemon_directory(directory, "udp-flows"), "--quiet", *FORWARDS) as daemon:
        yield daemon.wait_ready()
        assert daemon.process.poll() is None
        assert daemon.log_tail() == ""


@pytest.fixture(scope="module")
def guest(own_daemon: Daemon) -> Iterator[KernelGuest]:
    """A guest of that daemon."""
    with KernelGuest(own_daemon.socket_path) as guest:
        yield guest


def any_address(address: str) -> str:
    """The wildcard of the same family."""
    return ANY[servers.family(address)]


@both_families
def test_the_server_sees_the_guests_port(guest: KernelGuest, topology: Topology, address: str) -> None:
    with (
        servers.udp_socket(topology.remote, address) as server,
        servers.udp_socket(guest.namespace, any_address(address), GUEST_PORT - 1) as client,
    ):
        client.sendto(b"question", server.getsockname())
        question, (host, port, *_) = server.recvfrom(65536)
        assert (question, host, port) == (b"question", HOST6 if ":" in address else HOST4, GUEST_PORT - 1)
        server.sendto(b"answer", (host, port))
        answer, (host, port, *_) = client.recvfrom(65536)
        assert (answer, host, port) == (b"answer", *server.getsockname()[:2])


@both_families
def test_many_sockets_at_once(guest: KernelGuest, topology: Topology, address: str) -> None:
    with servers.udp_server(topology.remote, address, bytes.upper) as server, contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(servers.udp_socket(guest.namespace, any_address(address), GUEST_PORT + number))
            for number in range(SOCKETS)
        ]
        for number, client in enumerate(clients):
            client.sendto(b"socket %d" % number, (address, server.port))
        answers = [client.recv(65536) for client in clients]
    assert answers == [b"SOCKET %d" % number for number in range(SOCKETS)]
    assert sorted(server.peer_ports) == [GUEST_PORT + number for number in range(SOCKETS)]


@both_families
def test_a_socket_that_asks_many(guest: KernelGuest, topology: Topology, address: str) -> None:
    """Each has its own answers, whatever port of the host the guest's is where it is taken already."""
    other = RESOLVER6 if ":" in address else RESOLVER4
    with (
        contextlib.ExitStack() as opened,
        servers.udp_socket(guest.namespace, any_address(address), GUEST_PORT + SOCKETS) as client,
    ):
        asked = [
            opened.enter_context(servers.udp_server(topology.remote, server_address, bytes.upper))
            for server_address in (address, address, other, other)
        ]
        for number, server in enumerate(asked):
            client.sendto(b"from server %d" % number, (server.address, server.port))
        answers = {client.recvfrom(65536) for _ in asked}
        assert {(answer, name[:2]) for answer, name in answers} == {
            (b"FROM SERVER %d" % number, (server.address, server.port)) for number, server in enumerate(asked)
        }


@both_families
def test_nobody_but_who_was_asked_may_answer(guest: KernelGuest, topology: Topology, address: str) -> None:
    other = RESOLVER6 if ":" in address else RESOLVER4
    with (
        servers.udp_socket(topology.remote, address) as server,
        servers.udp_socket(topology.remote, address) as other_port,
        servers.udp_socket(topology.remote, other, server.getsockname()[1]) as other_address,
        servers.udp_socket(guest.namespace, any_address(address)) as client,
    ):
        client.sendto(b"question", server.getsockname())
        _, peer = server.recvfrom(65536)
        for stranger in (other_port, other_address):
            stranger.sendto(b"lie", peer)
        server.sendto(b"answer", peer)
        assert client.recvfrom(65536)[0] == b"answer"
        for stranger in (other_port, other_address):
            stranger.sendto(b"lie", peer)
        server.sendto(b"another answer", peer)
        assert client.recvfrom(65536)[0] == b"another answer"


@both_families
def test_the_guests_hop_limit_is_the_hosts(guest: KernelGuest, topology: Topology, address: str) -> None:
    """As it is sent, datagram by datagram of one flow: the remote machine is the host's neighbour."""
    is_ipv6 = ":" in address
    level = socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP
    with (
        servers.udp_socket(topology.remote, address) as server,
        servers.udp_socket(guest.namespace, any_address(address)) as client,
    ):
        server.setsockopt(level, socket.IPV6_RECVHOPLIMIT if is_ipv6 else error_queue.IP_RECVTTL, 1)
        seen: list[int] = []
        for limit in HOP_LIMITS:
            client.setsockopt(level, socket.IPV6_UNICAST_HOPS if is_ipv6 else socket.IP_TTL, limit)
            client.sendto(b"datagram", server.getsockname())
            _, ((_, _, data),), _, _ = server.recvmsg(65536, 512)
            seen += struct.unpack("=i", data)
    assert seen == list(HOP_LIMITS)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [(RESOLVER4, False), (RESOLVER6, False), (REMOTE4, True), (REMOTE6, True)],
    ids=["unprivileged-ipv4", "unprivileged-ipv6", "allowed-ipv4", "allowed-ipv6"],
)
def test_an_ntp_client_at_the_servers_port(guest: KernelGuest, topology: Topology, address: str, allowed: bool) -> None:
    """The daemon keeps port 123 if it may bind it; whether or not, the answer comes to where the question came from."""
    with (
        topology.host.changed(f"net/ipv4/ip_unprivileged_port_start={NTP_PORT if allowed else 1024}"),
        servers.udp_server(topology.remote, address, servers.ntp, NTP_PORT) as server,
        servers.udp_socket(guest.namespace, any_address(address), NTP_PORT) as client,
    ):
        client.connect((address, NTP_PORT))
        client.send(NTP_REQUEST)
        answer = client.recv(65536)
    assert len(answer) == len(NTP_REQUEST)
    assert answer[24:32] == NTP_REQUEST[40:]
    (port,) = server.peer_ports
    assert (port == NTP_PORT) == allowed


@dataclass(frozen=True)
class Way:
    """From a client, at a port of its own, to an address of the host; and what the guest sees for the client's."""

    namespace: str
    client: str
    asked: str
    seen: str

    def __str__(self) -> str:
        return f"{self.namespace}-{self.client}-{self.asked}"

    def connect(self, topology: Topology, port: int) -> socket.socket:
        """A client that takes answers from the asked address and port only."""
        namespace = topology.remote if self.namespace == "remote" else topology.host
        client = servers.udp_socket(namespace, self.client, timeout_s=LATE_S + 30)
        client.connect((self.asked, port))
        return client


WAYS = {
    socket.AF_INET: [
        Way("remote", REMOTE4, HOST4, seen=REMOTE4),
        Way("remote", REMOTE4, HOST4, seen=REMOTE4),
        Way("remote", RESOLVER4, HOST4, seen=RESOLVER4),
        Way("host", "127.0.0.1", "127.0.0.1", seen=GATEWAY4),
        Way("host", "127.0.0.1", "127.0.0.2", seen=GATEWAY4),
        Way("host", HOST4, HOST4, seen=GATEWAY4),
    ],
    socket.AF_INET6: [
        Way("remote", REMOTE6, HOST6, seen=REMOTE6),
        Way("remote", REMOTE6, HOST6, seen=REMOTE6),
        Way("remote", RESOLVER6, HOST6, seen=RESOLVER6),
        Way("host", "::1", "::1", seen=GATEWAY6),
        Way("host", HOST6, HOST6, seen=GATEWAY6),
    ],
}


class Clients:
    """One client on each of a family's ways, numbered."""

    def __init__(
        self, topology: Topology, family: socket.AddressFamily, port: int, opened: contextlib.ExitStack
    ) -> None:
        self._clients = [(way, opened.enter_context(way.connect(topology, port))) for way in WAYS[family]]

    def ask(self) -> None:
        """A datagram of each."""
        for number, (_, client) in enumerate(self._clients):
            client.send(b"client %d" % number)

    def are_seen_by(self, server: socket.socket) -> dict[bytes, tuple[str, int]]:
        """Questions, and where the server is to send its answers: to each client's address, as it is to be seen."""
        questions = dict(server.recvfrom(65536) for _ in self._clients)
        for number, (way, client) in enumerate(self._clients):
            host, port, *_ = questions[b"client %d" % number]
            assert (host.partition("%")[0], port) == (way.seen, client.getsockname()[1])
        return questions

    def have_their_answers(self) -> None:
        """And nobody else's."""
        for number, (_, client) in enumerate(self._clients):
            for count in range(ANSWERS):
                assert client.recv(65536) == b"answer %d to client %d" % (count, number)


@families
@pytest.mark.parametrize(
    ("host_port", "guest_port"),
    [(FORWARDED_PORT, FORWARDED_PORT), (TRANSLATED_PORT, TRANSLATED_TO)],
    ids=["same-port", "translated"],
)
def test_clients_of_a_forwarded_port(
    guest: KernelGuest, topology: Topology, family: socket.AddressFamily, host_port: int, guest_port: int
) -> None:
    """All at a time. The guest's server sees who they are; each gets its own answers, from where it asked."""
    with servers.udp_socket(guest.namespace, ANY[family], guest_port) as server, contextlib.ExitStack() as opened:
        clients = Clients(topology, family, host_port, opened)
        clients.ask()
        questions = clients.are_seen_by(server)
        for question, peer in reversed(questions.items()):
            for count in range(ANSWERS):
                server.sendto(b"answer %d to %s" % (count, question), peer)
        clients.have_their_answers()


def test_a_server_behind_a_forwarded_port_may_be_late(guest: KernelGuest, topology: Topology) -> None:
    with contextlib.ExitStack() as opened:
        asked = []
        for family in WAYS:
            server = opened.enter_context(servers.udp_socket(guest.namespace, ANY[family], FORWARDED_PORT))
            clients = Clients(topology, family, FORWARDED_PORT, opened)
            clients.ask()
            asked.append((server, clients, clients.are_seen_by(server)))
        time.sleep(LATE_S)
        for server, clients, questions in asked:
            for question, peer in questions.items():
                for count in range(ANSWERS):
                    server.sendto(b"answer %d to %s" % (count, question), peer)
            clients.have_their_answers()


def test_answers_leave_from_the_address_that_was_asked_last(guest: KernelGuest, topology: Topology) -> None:
    """A client that is not connect()ed asks one address of the host after the other."""
    with (
        servers.udp_socket(guest.namespace, ANY[socket.AF_INET], FORWARDED_PORT) as server,
        servers.udp_socket(topology.host, "127.0.0.1") as client,
    ):
        for asked in ("127.0.0.1", "127.0.0.2", HOST4, "127.0.0.1"):
            client.sendto(b"question", (asked, FORWARDED_PORT))
            _, peer = server.recvfrom(65536)
            assert peer == (GATEWAY4, client.getsockname()[1])
            server.sendto(b"answer", peer)
            assert client.recvfrom(65536) == (b"answer", (asked, FORWARDED_PORT))


@both_families
def test_a_guests_server_may_speak_first_to_its_client(guest: KernelGuest, topology: Topology, address: str) -> None:
    """From the forwarded port to somebody who has not asked: what the client answers is the same conversation."""
    host = HOST6 if ":" in address else HOST4
    with (
        servers.udp_socket(guest.namespace, any_address(address), FORWARDED_PORT) as server,
        servers.udp_socket(topology.remote, address) as client,
    ):
        server.sendto(b"first", client.getsockname())
        said, (seen, port, *_) = client.recvfrom(65536)
        assert (said, seen) == (b"first", host)
        client.sendto(b"second", (seen, port))
        assert server.recvfrom(65536)[0] == b"second"


@pytest.mark.parametrize("way", [way for ways in WAYS.values() for way in ways[1:]], ids=str)
def test_a_guests_server_hears_that_its_client_has_gone(guest: KernelGuest, topology: Topology, way: Way) -> None:
    """The error is the client's, the socket on the host is everybody's: all others go on."""
    wildcard = any_address(way.asked)
    with (
        servers.udp_socket(guest.namespace, wildcard, FORWARDED_PORT) as server,
        way.connect(topology, FORWARDED_PORT) as staying,
    ):
        error_queue.demand(server)
        with way.connect(topology, FORWARDED_PORT) as going:
            going.send(b"going")
            _, gone = server.recvfrom(65536)
        server.sendto(b"are you there?", gone)
        report = error_queue.next_report(server, 30.0)
        assert errno.errorcode[report.error] == "ECONNREFUSED"
        assert report.destination == (way.seen, gone[1])
        assert report.payload == b"are you there?"
        staying.send(b"staying")
        server.sendto(b"answer", server.recvfrom(65536)[1])
        assert staying.recv(65536) == b"answer"
