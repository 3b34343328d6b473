"""Peers for the guest: small servers on sockets of a namespace, each connection in a thread of this process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.guest.machine import DIE_WITH_PARENT, Guest
from tests.integration.topology import Namespace

CONNECTION_TIMEOUT_S = 60.0
CHUNK = 1 << 18
RECEIVE_BUFFER_BYTES = 1 << 22
"""Has room for all that a test sends before anybody reads."""

SO_RCVBUFFORCE = 33
NTP_EPOCH_S = 2_208_988_800
"""From 1900 to 1970."""

Handler = Callable[[socket.socket], None]


@dataclass
class Served:
    """A server's address, and who came."""

    address: str
    port: int
    peers: list[str] = field(default_factory=list)
    peer_ports: list[int] = field(default_factory=list)

    @property
    def socat(self) -> str:
        """The address as socat takes it behind TCP: or UDP:."""
        return f"{bracketed(self.address)}:{self.port}"


@dataclass
class Transfer:
    """What one connection carried, seen from the server."""

    digest: str = ""
    byte_count: int = 0
    seconds: float = 0.0
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def megabits_per_second(self) -> float:
        """Rate between the first byte and the end."""
        return self.byte_count * 8 / 1e6 / max(self.seconds, 1e-9)


def bracketed(address: str) -> str:
    """An IPv6 address in brackets, an IPv4 address as it is."""
    return f"[{address}]" if ":" in address else address


def family(address: str) -> socket.AddressFamily:
    """The address family of a literal address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def payload(byte_count: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat, and are the same each time."""
    return random.Random(seed).randbytes(byte_count)


@contextlib.contextmanager
def tcp_server(namespace: Namespace, address: str, handler: Handler, port: int = 0) -> Iterator[Served]:
    """Serve each connection with `handler` in a thread; the connection is closed when it returns."""
    listener = namespace.socket(family(address), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(256)
    served = Served(address, listener.getsockname()[1])

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(CONNECTION_TIMEOUT_S)
            handler(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                served.peers.append(peer[0])
                served.peer_ports.append(peer[1])
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        thread.join()
        listener.close()


@contextlib.contextmanager
def udp_server(
    namespace: Namespace, address: str, reply: Callable[[bytes], bytes | None], port: int = 0
) -> Iterator[Served]:
    """Answer each datagram with `reply` of it."""
    endpoint = namespace.socket(family(address), socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    endpoint.bind((address, port))
    served = Served(address, endpoint.getsockname()[1])
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            with contextlib.suppress(ConnectionError):
                request, peer = endpoint.recvfrom(65536)
                if stopping.is_set():
                    break
                served.peers.append(peer[0])
                served.peer_ports.append(peer[1])
                if (answer := reply(request)) is not None:
                    endpoint.sendto(answer, peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        stopping.set()
        with contextlib.suppress(OSError):  # it is not connected, but that wakes recvfrom() all the same
            endpoint.shutdown(socket.SHUT_RD)
        thread.join()
        endpoint.close()


def udp_socket(namespace: Namespace, address: str, port: int = 0, *, timeout_s: float = 30.0) -> socket.socket:
    """A bound socket, for tests that say themselves what is received and sent, and when; IPv6's takes no IPv4."""
    endpoint = namespace.socket(family(address), socket.SOCK_DGRAM)
    try:
        if endpoint.family is socket.AF_INET6:
            endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        endpoint.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        endpoint.bind((address, port))
    except BaseException:
        endpoint.close()
        raise
    endpoint.settimeout(timeout_s)
    return endpoint


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the peer's end of file."""
    received = bytearray()
    while chunk := connection.recv(CHUNK):
        received += chunk
    return bytes(received)


def receive_into(transfer: Transfer) -> Handler:
    """Take everything until end of file, then say one byte: the sender knows that all has arrived."""

    def handle(connection: socket.socket) -> None:
        digest, start = hashlib.sha256(), None
        while chunk := connection.recv(CHUNK):
            start = start or time.monotonic()
            digest.update(chunk)
            transfer.byte_count += len(chunk)
        transfer.seconds = time.monotonic() - (start or time.monotonic())
        transfer.digest = digest.hexdigest()
        transfer.finished.set()
        connection.sendall(b".")

    return handle


def send_from(data: bytes, transfer: Transfer) -> Handler:
    """Send everything, then end of file; the time ends when the peer has closed too."""

    def handle(connection: socket.socket) -> None:
        start = time.monotonic()
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        receive_all(connection)
        transfer.seconds = time.monotonic() - start
        transfer.byte_count = len(data)
        transfer.finished.set()

    return handle


def echo_after_end(connection: socket.socket) -> None:
    """Answer with everything that was received, but only after the peer's end of file."""
    connection.sendall(receive_all(connection))


def resolver(addresses: dict[str, tuple[str, str]]) -> Callable[[bytes], bytes | None]:
    """DNS (RFC 1035): A and AAAA records of some names, NXDOMAIN for others. One question a query."""
    records = {
        (name, kind): socket.inet_pton(family(address), address)
        for name, pair in addresses.items()
        for kind, address in zip((1, 28), pair, strict=True)
    }

    def answer(query: bytes) -> bytes | None:
        labels, offset = [], 12
        while length := query[offset]:
            labels.append(query[offset + 1 : offset + 1 + length].decode())
            offset += 1 + length
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from("!H", query, offset + 1)
        question = query[12 : offset + 5]
        record = records.get((name, kind))
        known = any(name == known_name for known_name, _ in records)
        flags = 0x8580 | (0 if known else 3)
        header = query[:2] + struct.pack("!5H", flags, 1, 1 if record else 0, 0, 0)
        resource = struct.pack("!3HIH", 0xC00C, kind, 1, 60, len(record)) + record if record else b""
        return header + question + resource

    return answer


def ntp(request: bytes) -> bytes:
    """The time, by a server of stratum 1 (RFC 5905 section 7.3); it takes none from its receipt to its answer."""
    now = struct.pack("!Q", int((time.time() + NTP_EPOCH_S) * 2**32))
    leap_version_mode, stratum, poll, precision = 0 << 6 | 4 << 3 | 4, 1, 6, -20
    header = struct.pack("!3BbII4s", leap_version_mode, stratum, poll, precision, 0, 0, b"TEST")
    originate = request[40:48]
    return header + now + originate + now + now


@contextlib.contextmanager
def process(command: list[str], ready: bytes, timeout_s: float = 60.0) -> Iterator[None]:
    """Run a command from when it has said `ready` until the end of the block."""
    server = subprocess.Popen(
        [*DIE_WITH_PARENT, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with server:
        assert server.stdout is not None
        try:
            said, deadline = b"", time.monotonic() + timeout_s
            while ready not in said:
                readable, _, _ = select.select([server.stdout], [], [], max(0, deadline - time.monotonic()))
                chunk = os.read(server.stdout.fileno(), 4096) if readable else b""
                if not chunk:
                    raise AssertionError(f"{' '.join(command)}: not ready: {said.decode(errors='replace')}")
                said += chunk
            yield
        finally:
            server.kill()


@contextlib.contextmanager
def guest_service(guest: Guest, listening_port: int, command: str) -> Iterator[None]:
    """Run a server in the guest, from when it listens at the port until the end of the block."""
    process_id = guest.check(f"setsid {command} </dev/null >/dev/null 2>/tmp/service & echo $!").strip()
    listens = f"ss -Hlntu 'sport = :{listening_port}' | grep -q ."
    try:
        guest.check(f"for _ in $(seq 300); do {listens} && exit; sleep 0.1; done; cat /tmp/service; exit 1")
        yield
    finally:
        guest.check(f"kill -- -{process_id}; for _ in $(seq 300); do {listens} || exit 0; sleep 0.1; done; exit 1")
