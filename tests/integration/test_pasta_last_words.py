"""What a command has sent arrives, though its end is the namespace's: by the tap and past it, to a slow peer."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.guest import tun
from tests.integration.daemon import namespace_program
from tests.integration.topology import GATEWAY4, Topology

PORT = 7301
TIMEOUT_S = 60.0
PYTHON = "/usr/bin/python3"
SAYS_AND_ENDS = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
connection.sendall(bytes(range(256)) * (int(sys.argv[3]) // 256))
connection.close()
"""
BUSY_S = 0.3
"""How long the server does not read."""


@pytest.fixture(scope="module")
def tap_for_everybody() -> Iterator[None]:
    with tun.open_to_everybody():
        yield


def received(listener: socket.socket) -> bytes:
    """What one client says until its end; a reset is an error."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(TIMEOUT_S)
        time.sleep(BUSY_S)
        data = bytearray()
        while part := connection.recv(1 << 20):
            data += part
    return bytes(data)


@pytest.mark.parametrize("size", [256, 4 << 20])
@pytest.mark.parametrize("address", [GATEWAY4, "127.0.0.1"], ids=["by-tap", "local"])
@pytest.mark.usefixtures("tap_for_everybody")
def test_what_was_sent_last_gets_out(topology: Topology, address: str, size: int) -> None:
    listener = topology.host.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", PORT))
    listener.listen()
    listener.settimeout(TIMEOUT_S)
    with listener:
        said: list[bytes] = []
        server = threading.Thread(target=lambda: said.append(received(listener)))
        server.start()
        command = [*namespace_program(), "-q", "-T", str(PORT), "--", PYTHON, "-c", SAYS_AND_ENDS]
        ended = subprocess.run(
            [*topology.host.enter_unprivileged(), *command, address, str(PORT), str(size)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        server.join()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert said == [bytes(range(256)) * (size // 256)]
