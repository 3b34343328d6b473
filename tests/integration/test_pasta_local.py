"""What passes between the host's loopback and the namespace without the tap: forwarded ports of both directions, named
and automatic, as an ordinary user; the test's own sockets are at both sides.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - `Place` has a method of that name

import pytest

from tests.guest import tun
from tests.guest.unprivileged import Unprivileged
from tests.integration.daemon import daemon_directory
from tests.integration.namespace_guest import NamespaceDaemon
from tests.integration.topology import GATEWAY4, HOST4, HOST6, REMOTE4, Topology

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

TIMEOUT_S = 30.0
APPEARS_WITHIN_S = 30.0
"""A second, and what a busy machine needs."""

V4, V6 = socket.AF_INET, socket.AF_INET6
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
LOOPBACK: dict[int, str] = {V4: "127.0.0.1", V6: "::1"}
WILDCARD: dict[int, str] = {V4: "0.0.0.0", V6: "::"}
OWN: dict[int, str] = {V4: HOST4, V6: HOST6}

TO_GUEST, TO_HOST = 5001, 5011
REFUSED = 5002
RESOLVER = "127.0.0.53"
NAMED = [
    *("-t", "5001:6001,5002", "-u", "5001:6001,5002"),
    *("-T", "5011:6011", "-T", f"{RESOLVER}/5014", "-U", "5011:6011", "-U", f"{RESOLVER}/5014"),
]


class Place:
    """A network namespace, and sockets there."""

    def __init__(self, path: str) -> None:
        self._path = path

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert _libc.setns(there, CLONE_NEWNET) == 0
            yield
        finally:
            assert _libc.setns(here, CLONE_NEWNET) == 0
            os.close(here)
            os.close(there)

    def socket(self, family: int, kind: int = STREAM) -> Socket:
        with self.entered():
            sock = socket.socket(family, kind)
        sock.settimeout(TIMEOUT_S)
        return sock

    def serves(self, address: str, port: int, kind: int = STREAM, *, is_dual: bool = False) -> Socket:
        family = V6 if ":" in address else V4
        sock = self.socket(family, kind)
        if family == V6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == STREAM)
        sock.bind((address, port))
        if kind == STREAM:
            sock.listen()
        return sock

    def client(self, address: str, port: int, kind: int = STREAM) -> Socket:
        sock = self.socket(V6 if ":" in address else V4, kind)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock


@pytest.fixture(scope="module")
def host(topology: Topology) -> Place:
    return Place(f"/run/netns/{topology.host.name}")


@pytest.fixture(scope="module")
def namespace(topology: Topology) -> Iterator[Unprivileged]:
    with tun.open_to_everybody(), Unprivileged(topology.host.enter_unprivileged()) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def guest(namespace: Unprivileged) -> Place:
    return Place(str(namespace.path))


@contextlib.contextmanager
def serving(
    topology: Topology, directory: Path, namespace: Unprivileged, *arguments: str, name: str = "pasta-local"
) -> Iterator[NamespaceDaemon]:
    """The program, for the module's namespace; the tap is gone when it is."""
    own = daemon_directory(directory, name)
    daemon = NamespaceDaemon(topology.host, own, "--config-net", "-d", *arguments, str(namespace.process_id))
    with daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def named(topology: Topology, directory: Path, namespace: Unprivileged) -> Iterator[NamespaceDaemon]:
    with serving(topology, directory, namespace, *NAMED) as daemon:
        yield daemon


@pytest.fixture(params=[V4, V6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def joined(client: socket.socket, listener: socket.socket, opened: ExitStack) -> tuple[socket.socket, str]:
    """The server's end, and whom it takes its client for."""
    opened.enter_context(client)
    server, name = listener.accept()
    server.settimeout(TIMEOUT_S)
    opened.enter_context(server)
    return server, name[0]


def received(sock: socket.socket) -> bytes:
    """All until the end."""
    data = bytearray()
    while part := sock.recv(1 << 20):
        data += part
    return bytes(data)


def eventually(look: Callable[[], object], what: str, within_s: float = APPEARS_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class TestNamed:
    @pytest.fixture(params=["to the guest", "to the host"])
    def direction(
        self, request: pytest.FixtureRequest, host: Place, guest: Place, family: int, named: NamespaceDaemon
    ) -> tuple[Place, int, Place, str, int, str]:
        """Where the client is, the port it asks; where the server is, its address and port; how it sees the client."""
        if request.param == "to the guest":
            return host, TO_GUEST, guest, WILDCARD[family], 6001, OWN[family]
        return guest, TO_HOST, host, LOOPBACK[family], 6011, LOOPBACK[family]

    def test_tcp(self, direction: tuple[Place, int, Place, str, int, str], family: int) -> None:
        """Question, answer; a large one both ways at once, byte for byte; and each end by itself."""
        here, port, there, address, target, seen = direction
        data = [random.Random(number).randbytes(10_000_000) for number in range(2)]
        with ExitStack() as opened:
            listener = opened.enter_context(there.serves(address, target))
            client = here.client(LOOPBACK[family], port)
            server, peer = joined(client, listener, opened)
            assert peer == seen
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"

            def send(sock: socket.socket, what: bytes) -> None:
                sock.sendall(what)
                sock.shutdown(socket.SHUT_WR)

            senders = [threading.Thread(target=send, args=pair) for pair in zip((client, server), data, strict=True)]
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(received(client)))
            for thread in (*senders, reader):
                thread.start()
            got.insert(0, received(server))
            for thread in (*senders, reader):
                thread.join()
            assert list(map(_digest, got)) == list(map(_digest, data))

    def test_half_close(self, direction: tuple[Place, int, Place, str, int, str], family: int) -> None:
        here, port, there, address, target, _ = direction
        with ExitStack() as opened:
            listener = opened.enter_context(there.serves(address, target))
            client = here.client(LOOPBACK[family], port)
            server, _ = joined(client, listener, opened)
            client.sendall(b"all")
            client.shutdown(socket.SHUT_WR)
            assert received(server) == b"all"
            server.sendall(b"an answer")
            server.close()
            assert received(client) == b"an answer"

    def test_resets_go_both_ways(self, direction: tuple[Place, int, Place, str, int, str], family: int) -> None:
        here, port, there, address, target, _ = direction
        for is_client in (True, False):
            with ExitStack() as opened:
                listener = opened.enter_context(there.serves(address, target))
                client = here.client(LOOPBACK[family], port)
                server, _ = joined(client, listener, opened)
                one, other = (client, server) if is_client else (server, client)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.close()
                with pytest.raises(ConnectionResetError):
                    other.recv(1)

    def test_udp(self, direction: tuple[Place, int, Place, str, int, str], family: int) -> None:
        """Answers come from where the question went; also of bulk, and the largest one."""
        here, port, there, address, target, seen = direction
        with there.serves(address, target, DGRAM) as server, here.client(LOOPBACK[family], port, DGRAM) as client:
            client.send(b"question")
            question, peer = server.recvfrom(100)
            assert (question, peer[0]) == (b"question", seen)
            server.sendto(b"answer", peer)
            assert client.recv(100) == b"answer"
            for size, count in ((0, 20), (1, 20), (1400, 20), (60_000, 2)):
                payloads = [bytes([number]) * size for number in range(count)]
                for payload in payloads:
                    client.send(payload)
                assert [server.recv(65536) for _ in payloads] == payloads
                for payload in payloads:
                    server.sendto(payload, peer)
                assert [client.recv(65536) for _ in payloads] == payloads

    def test_it_passes_no_tap(
        self, direction: tuple[Place, int, Place, str, int, str], family: int, namespace: Unprivileged
    ) -> None:
        here, port, there, address, target, _ = direction
        before = _tap_bytes(namespace)
        with ExitStack() as opened:
            listener = opened.enter_context(there.serves(address, target))
            client = here.client(LOOPBACK[family], port)
            server, _ = joined(client, listener, opened)
            sender = threading.Thread(target=lambda: client.sendall(bytes(1_000_000)))
            sender.start()
            count = 0
            while count < 1_000_000:
                count += len(server.recv(1 << 20))
            sender.join()
        assert _tap_bytes(namespace) - before < 20_000

    def test_bulk_is_spliced(
        self, direction: tuple[Place, int, Place, str, int, str], family: int, named: NamespaceDaemon, directory: Path
    ) -> None:
        """strace(1) sees the bytes go through pipes, and hardly any in the program's hands."""
        here, port, there, address, target, _ = direction
        trace = directory / "local.strace"
        pid = int(Path(directory / "pasta-local" / "pid").read_text())
        with ExitStack() as opened:
            listener = opened.enter_context(there.serves(address, target))
            client = here.client(LOOPBACK[family], port)
            server, _ = joined(client, listener, opened)
            calls = "splice,recvfrom,sendto,recvmsg,sendmsg,read,write,readv,writev"
            tracer = subprocess.Popen(
                ["strace", "-q", "-f", "-e", f"trace={calls}", "-o", trace, "-p", str(pid)],
                stderr=subprocess.DEVNULL,
            )
            opened.callback(tracer.wait)
            opened.callback(tracer.terminate)
            eventually(lambda: _is_traced(pid), "strace", TIMEOUT_S)
            sender = threading.Thread(target=lambda: client.sendall(bytes(20_000_000)))
            sender.start()
            count = 0
            while count < 20_000_000:
                count += len(server.recv(1 << 20))
            sender.join()
        moved: dict[str, int] = {}
        for name, result in re.findall(r"(?m)^\d+ +(\w+)\(.*\) = (\d+)$", trace.read_text()):
            moved[name] = moved.get(name, 0) + int(result)
        spliced = moved.pop("splice", 0)
        assert spliced > 2 * 19_000_000
        assert sum(moved.values()) < 1_000_000, moved


def _digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def _tap_bytes(namespace: Unprivileged) -> int:
    command = [*namespace.enter(), "cat", "/proc/net/dev"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in text.splitlines() if line.strip().startswith("eth0:")]
    fields = line.partition(":")[2].split()
    return int(fields[0]) + int(fields[8])


def test_refused_is_a_reset(host: Place, guest: Place, family: int, named: NamespaceDaemon) -> None:
    for here, port in ((host, REFUSED), (guest, TO_HOST)):
        with pytest.raises(ConnectionResetError), here.client(LOOPBACK[family], port) as client:
            client.recv(1)


def test_address_that_is_dialled_is_the_one_that_is_reached(host: Place, guest: Place, named: NamespaceDaemon) -> None:
    """A stub resolver at 127.0.0.53."""
    with ExitStack() as opened:
        listener = opened.enter_context(host.serves(RESOLVER, 5014))
        joined(guest.client(RESOLVER, 5014), listener, opened)
        server = opened.enter_context(host.serves(RESOLVER, 5014, DGRAM))
        client = opened.enter_context(guest.client(RESOLVER, 5014, DGRAM))
        client.send(b"question")
        question, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        assert (question, client.recv(100)) == (b"question", b"answer")


def test_others_still_come_by_the_tap(
    topology: Topology, guest: Place, named: NamespaceDaemon, namespace: Unprivileged
) -> None:
    remote = Place(f"/run/netns/{topology.remote.name}")
    with ExitStack() as opened:
        listener = opened.enter_context(guest.serves("0.0.0.0", 6001))
        client = remote.socket(V4)
        client.bind((REMOTE4, 0))
        client.connect((HOST4, TO_GUEST))
        before = _tap_bytes(namespace)
        server, peer = joined(client, listener, opened)
        assert peer == REMOTE4
        client.sendall(bytes(100_000))
        count = 0
        while count < 100_000:
            count += len(server.recv(1 << 20))
        assert _tap_bytes(namespace) - before > 100_000


def test_status_lists_them(host: Place, guest: Place, named: NamespaceDaemon, directory: Path) -> None:
    pid = int(Path(directory / "pasta-local" / "pid").read_text())
    with ExitStack() as opened:
        listener = opened.enter_context(guest.serves("0.0.0.0", 6001))
        client = host.client(LOOPBACK[V4], TO_GUEST)
        server, _ = joined(client, listener, opened)
        client.send(b"12345")
        assert server.recv(100) == b"12345"
        os.kill(pid, signal.SIGUSR1)
        row = rf"local TCP +ESTABLISHED +{HOST4}:6001 +<- +{HOST4}:\d+ +127\.0\.0\.1:{client.getsockname()[1]} .* 5 B"
        eventually(lambda: re.search(row, named.log_tail()), "the table")
        assert re.search(r"forwarded to the host: TCP 5011 -> 6011, 127\.0\.0\.53/5014", named.log_tail())


def test_no_splice_goes_by_the_tap_but_to_the_host_there_is_no_other_way(
    topology: Topology, directory: Path, host: Place, guest: Place
) -> None:
    with (
        tun.open_to_everybody(),
        Unprivileged(topology.host.enter_unprivileged()) as own,
        serving(topology, directory, own, "--no-splice", *_moved(NAMED), name="pasta-no-splice"),
        ExitStack() as opened,
    ):
        guest = Place(str(own.path))
        listener = opened.enter_context(guest.serves("0.0.0.0", 7001))
        _, peer = joined(host.client(LOOPBACK[V4], TO_GUEST + 1000), listener, opened)
        assert peer == GATEWAY4
        listener = opened.enter_context(host.serves(LOOPBACK[V4], 7011))
        _, peer = joined(guest.client(LOOPBACK[V4], TO_HOST + 1000), listener, opened)
        assert peer == LOOPBACK[V4]


def test_loopback_to_loopback(topology: Topology, directory: Path, host: Place) -> None:
    with (
        tun.open_to_everybody(),
        Unprivileged(topology.host.enter_unprivileged()) as own,
        serving(topology, directory, own, "--host-lo-to-ns-lo", *_moved(NAMED), name="pasta-lo"),
        ExitStack() as opened,
    ):
        guest = Place(str(own.path))
        for family in (V4, V6):
            listener = opened.enter_context(guest.serves(LOOPBACK[family], 7001))
            _, peer = joined(host.client(LOOPBACK[family], TO_GUEST + 1000), listener, opened)
            assert peer == LOOPBACK[family]


def _moved(arguments: list[str]) -> list[str]:
    """All ports 1000 higher: the module's daemon has the others."""
    return [re.sub(r"\b[56](\d{3})\b", lambda match: str(int(match[0]) + 1000), argument) for argument in arguments]


def told(daemon: NamespaceDaemon, what: str) -> list[int]:
    """Ports of which the log says that."""
    ports: list[int] = []
    for line in daemon.log.read_text().splitlines():
        for run in filter(None, line.partition(what)[2].split(", ")):
            first, _, last = run.partition("-")
            ports += range(int(first), int(last or first) + 1)
    return ports


def are_told(daemon: NamespaceDaemon, what: str, ports: set[int]) -> bool:
    """Whether the log says that of all of them."""
    return ports <= {*told(daemon, what)}


AUTO = ["-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"]


def is_open(place: Place, address: str, port: int) -> bool:
    with contextlib.suppress(ConnectionResetError):  # by whoever listens
        try:
            place.client(address, port).close()
        except ConnectionRefusedError:
            return False
    return True


def is_closed(place: Place, address: str, port: int) -> bool:
    return not is_open(place, address, port)


@pytest.fixture(scope="module")
def followed_namespace(topology: Topology) -> Iterator[Unprivileged]:
    with tun.open_to_everybody(), Unprivileged(topology.host.enter_unprivileged()) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def before(host: Place) -> Iterator[socket.socket]:
    """Listens on the host before anything else is there."""
    with host.serves("0.0.0.0", 8100) as listener:
        yield listener


@pytest.fixture(scope="module")
def automatic(
    topology: Topology, directory: Path, followed_namespace: Unprivileged, before: socket.socket
) -> Iterator[NamespaceDaemon]:
    with serving(topology, directory, followed_namespace, *AUTO, name="pasta-auto") as daemon:
        yield daemon


class TestAutomatic:
    @pytest.fixture
    def guest(self, followed_namespace: Unprivileged) -> Place:
        return Place(str(followed_namespace.path))

    def test_what_is_there_at_start_is_open_at_once(self, automatic: NamespaceDaemon, guest: Place) -> None:
        guest.client("127.0.0.1", 8100).close()

    def test_they_come_and_go(self, automatic: NamespaceDaemon, host: Place, guest: Place) -> None:
        """Of both directions and families, each by itself; what is connected stays."""
        ways = [(host, LOOPBACK[family], guest, WILDCARD[family], 8001 + (family == V6)) for family in (V4, V6)] + [
            (guest, LOOPBACK[family], host, LOOPBACK[family], 8003 + (family == V6)) for family in (V4, V6)
        ]
        ways.append((guest, RESOLVER, host, RESOLVER, 8005))
        with ExitStack() as opened:
            servers = []
            with ExitStack() as listeners:
                sockets = [listeners.enter_context(there.serves(at, port)) for _, _, there, at, port in ways]
                for (here, address, _, _, port), listener in zip(ways, sockets, strict=True):
                    eventually(partial(is_open, here, address, port), "the port")
                    listener.accept()[0].close()
                    servers.append(joined(here.client(address, port), listener, opened)[0])
                for here, address, *_, port in ways:
                    for other in {*LOOPBACK.values()} - {address}:
                        assert not is_open(here, other, port), "only where it is asked for"
            for here, address, *_, port in ways:
                gone = f"the end of {address} port {port}"
                eventually(partial(is_closed, here, address, port), gone)
            for server in servers:
                server.sendall(b"still there")
        for what in (
            "forwarding TCP ports to the namespace: ",
            "TCP ports are not forwarded to the namespace any more, nobody listens there: ",
        ):
            eventually(partial(are_told, automatic, what, {8001, 8002}), what)
            assert [port for port in sorted(told(automatic, what)) if port in (8001, 8002)] == [8001, 8002], "each once"

    def test_what_is_not_for_the_other_side(self, automatic: NamespaceDaemon, host: Place, guest: Place) -> None:
        """The guest's loopback; the host's outside address; a port that the host has, until it is free."""
        with (
            ExitStack() as opened,
            guest.serves("127.0.0.1", 8006),
            host.serves(HOST4, 8007),
            host.serves("127.0.0.1", 8008) as others,
            guest.serves(HOST4, 8008) as listener,
            guest.serves("::", 8009, is_dual=True),
            host.serves("0.0.0.0", 8010),
        ):
            for family in (V4, V6):
                eventually(partial(is_open, host, LOOPBACK[family], 8009), "a port of both families")
            eventually(lambda: is_open(guest, "127.0.0.1", 8010), "a port of the host")
            assert not is_open(host, "127.0.0.1", 8006)
            assert not is_open(guest, "127.0.0.1", 8007)
            joined(host.client("127.0.0.1", 8008), others, opened)
            others.close()
            eventually(lambda: is_open(host, "127.0.0.1", 8008), "the port")
            listener.accept()[0].close()

    def test_udp(self, automatic: NamespaceDaemon, host: Place, guest: Place) -> None:
        ways = [(host, guest, 8011, V4), (host, guest, 8012, V6), (guest, host, 8013, V4), (guest, host, 8014, V6)]
        with ExitStack() as opened:
            servers = [opened.enter_context(way[1].serves(WILDCARD[way[3]], way[2], DGRAM)) for way in ways]
            for (here, _, port, family), server in zip(ways, servers, strict=True):
                client = opened.enter_context(here.client(LOOPBACK[family], port, DGRAM))
                server.settimeout(0.1)

                def asked(client: socket.socket = client, server: socket.socket = server) -> bool:
                    with contextlib.suppress(ConnectionRefusedError, TimeoutError):
                        client.send(b"question")
                        server.sendto(b"answer", server.recvfrom(100)[1])
                        return client.recv(100) == b"answer"
                    return False

                eventually(asked, "an answer")


def test_two_for_one_namespace_do_not_keep_each_others_ports_open(
    topology: Topology, directory: Path, host: Place
) -> None:
    """With loopback to loopback, each finds the other's listeners at both sides."""
    with (
        tun.open_to_everybody(),
        Unprivileged(topology.host.enter_unprivileged()) as own,
        serving(topology, directory, own, *AUTO, "--host-lo-to-ns-lo", name="pasta-one"),
        ExitStack() as opened,
    ):
        guest = Place(str(own.path))
        second = daemon_directory(directory, "pasta-two")
        arguments = [*AUTO, "--host-lo-to-ns-lo", "-I", "eth1", str(own.process_id)]
        daemon = opened.enter_context(NamespaceDaemon(topology.host, second, *arguments))
        daemon.wait_ready()
        ways = ((host, guest, 8201), (guest, host, 8202))
        with guest.serves("127.0.0.1", 8201), host.serves("127.0.0.1", 8202):
            for here, _, port in ways:
                eventually(partial(is_open, here, "127.0.0.1", port), "the port")
            time.sleep(1.2)
        for place, port in [(place, port) for *places, port in ways for place in places]:
            eventually(partial(is_closed, place, "127.0.0.1", port), "the port's end")
