"""Servers for a guest that boots from the network: each serves one file, and remembers what was asked for."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.integration import servers
from tests.integration.topology import Namespace

READ_REQUEST, DATA, ACKNOWLEDGEMENT = 1, 3, 4
TFTP_PORT = 69
BLOCK_BYTES = 512
REQUEST_TIMEOUT_S = 180.0


@dataclass
class Asked:
    """Paths in the order in which they were asked for."""

    _paths: queue.Queue[str] = field(default_factory=queue.Queue)

    def note(self, path: str) -> None:
        """The server's."""
        self._paths.put(path)

    def next(self) -> str:
        """The next path; waits for a guest that is not so far yet."""
        try:
            return self._paths.get(timeout=REQUEST_TIMEOUT_S)
        except queue.Empty:
            raise AssertionError("nothing was asked for") from None


@contextlib.contextmanager
def http_server(namespace: Namespace, address: str, file: Callable[[str], str]) -> Iterator[tuple[str, Asked]]:
    """What is there, whatever is asked for, is `file` of the server's URL; the URL ends with a slash."""
    asked = Asked()
    content = ""

    def handle(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (more := connection.recv(4096)):
                return
            request += more
        asked.note(request.split()[1].decode())
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        connection.sendall(f"{head}{content}".encode())

    with servers.tcp_server(namespace, address, handle) as served:
        url = f"http://{servers.bracketed(address)}:{served.port}/"
        content = file(url)
        yield url, asked


@contextlib.contextmanager
def tftp_server(namespace: Namespace, address: str, content: str) -> Iterator[Asked]:
    """RFC 1350, for one client at a time, without options; it answers from port 69 itself (RFC 1350 section 4 wants
    another one), since a socket of the daemon hears only whom it was sent to."""
    asked, data = Asked(), content.encode()

    def answer(packet: bytes) -> bytes | None:
        (operation,) = struct.unpack_from("!H", packet)
        if operation == READ_REQUEST:
            asked.note(packet[2:].split(b"\0")[0].decode())
            return _block(data, 1)
        if operation == ACKNOWLEDGEMENT:
            (number,) = struct.unpack_from("!H", packet, 2)
            return _block(data, number + 1) if number * BLOCK_BYTES <= len(data) else None
        return None

    with servers.udp_server(namespace, address, answer, TFTP_PORT):
        yield asked


def _block(data: bytes, number: int) -> bytes:
    return struct.pack("!2H", DATA, number) + data[(number - 1) * BLOCK_BYTES : number * BLOCK_BYTES]
