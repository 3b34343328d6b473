"""What UDP and echo flows take for granted about the kernel's sockets.

Ping sockets need `net.ipv4.ping_group_range`, so they are tried in a network namespace of their own, with root's help.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trio_passt.config import PortForward, Protocol
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import PortListeners, UdpPort

PING = """
import socket, sys
from trio_passt.host import sockets

family_bytes, address, request, reply = {4: (4, "127.0.0.1", 8, 0), 6: (16, "::1", 128, 129)}[int(sys.argv[1])]
sock = sockets.open_ping(family_bytes, 0x1234)
assert sock.getsockname()[1] == 0x1234, sock.getsockname()
sock.setblocking(True)
sock.connect((address, 0))
sock.send(bytes((request, 0, 0, 0)) + b"\\xff\\xff" + b"\\x00\\x07" + b"data")
packet = sock.recv(1000)
assert packet[0] == reply, packet
assert packet[4:6] == b"\\x12\\x34", packet  # the socket's identifier, not the one that was sent
assert packet[6:8] == b"\\x00\\x07" and packet[8:] == b"data", packet

other = sockets.open_ping(family_bytes, 0x1234)  # taken: the kernel chooses
assert other.getsockname()[1] not in (0, 0x1234), other.getsockname()

elsewhere = socket.socket(sock.family, socket.SOCK_DGRAM, sock.proto)
elsewhere.bind((address, 0x4321))
elsewhere.setblocking(False)
elsewhere.connect((address, 0))
sock.send(bytes((request, 0, 0, 0)) + bytes(4))
sock.recv(1000)
try:
    elsewhere.recv(1000)
except BlockingIOError:
    print("well")
else:
    raise AssertionError("a reply for another identifier")
"""

NO_PERMISSION = """
from trio_passt.host import sockets

for family_bytes in (4, 16):
    try:
        sockets.open_ping(family_bytes, 1)
    except PermissionError:
        continue
    raise AssertionError("opened without permission")
print("well")
"""

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="needs root, unshare and iproute2",
)


def in_namespace(shell: str, script: str, *arguments: str) -> str:
    """What `script` prints in a new network namespace, after `shell`."""
    command = f'ip link set lo up; {shell}; exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "-n", "sh", "-ec", command, sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


@needs_namespaces
@pytest.mark.parametrize("version", ["4", "6"])
def test_ping_socket_keeps_its_identifier_and_sees_its_own_replies_only(version: str) -> None:
    allowed = 'echo "0 0" > /proc/sys/net/ipv4/ping_group_range'
    assert in_namespace(allowed, PING, version) == "well"


@needs_namespaces
def test_ping_sockets_need_permission() -> None:
    """A new namespace starts with an empty range, which not even root is in."""
    assert in_namespace('echo "1 0" > /proc/sys/net/ipv4/ping_group_range', NO_PERMISSION) == "well"


@contextmanager
def port_and_client(family: socket.AddressFamily, address: str) -> Iterator[tuple[UdpPort, socket.socket]]:
    wildcard = "0.0.0.0" if family == socket.AF_INET else "::"
    with socket.socket(family, socket.SOCK_DGRAM) as served, socket.socket(family, socket.SOCK_DGRAM) as client:
        served.bind((wildcard, 0))
        served.settimeout(5)
        client.bind((address, 0))
        client.settimeout(5)
        listeners = PortListeners.bind([])
        try:
            port = served.getsockname()[1]
            yield UdpPort(served, PortForward(Protocol.UDP, port, port, 80), port, listeners), client
        finally:
            listeners.close()


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2", "127.77.0.9"])
def test_packet_info_chooses_the_source_of_a_datagram_ipv4(source: str) -> None:
    with port_and_client(socket.AF_INET, "127.0.0.5") as (port, client):
        port.send([b"reply"], [], Endpoint.of(client.getsockname()), socket.inet_aton(source))
        assert client.recvfrom(100) == (b"reply", (source, port.socket.getsockname()[1]))


def test_packet_info_chooses_the_source_of_a_datagram_ipv6() -> None:
    with port_and_client(socket.AF_INET6, "::1") as (port, client):
        port.send([b"reply"], [], Endpoint.of(client.getsockname()), socket.inet_pton(socket.AF_INET6, "::1"))
        data, name = client.recvfrom(100)
        assert (data, name[:2]) == (b"reply", ("::1", port.socket.getsockname()[1]))
        with pytest.raises(OSError, match=r"Invalid argument|Cannot assign"):
            port.send([b"x"], [], Endpoint.of(client.getsockname()), socket.inet_pton(socket.AF_INET6, "2001:db8::77"))


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_packet_info_tells_which_address_was_asked_ipv4(asked: str) -> None:
    with port_and_client(socket.AF_INET, "127.0.0.5") as (port, client):
        port.socket.setsockopt(socket.IPPROTO_IP, 8, 1)
        client.sendto(b"question", (asked, port.socket.getsockname()[1]))
        _, ((level, kind, data),), _, _ = port.socket.recvmsg(100, 100)
        assert (level, kind) == (socket.IPPROTO_IP, 8)
        assert struct.unpack("=i4s4s", data)[1] == socket.inet_aton(asked)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connected_udp_socket_hears_of_a_refusal(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as nobody, socket.socket(family, socket.SOCK_DGRAM) as caller:
        nobody.bind((address, 0))
        caller.connect(nobody.getsockname()[:2])
        nobody.close()
        caller.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            caller.recv(100)
