"""What echo flows take for granted of the kernel's ping sockets (icmp(7), net/ipv4/ping.c), and what they must not.

Each case is a script in a network namespace where ping sockets are allowed and whole subnets are local, so that two
remotes answer to one address of the host.
"""

import os
import shutil
import subprocess
import sys

import pytest

SETUP = """
set -e
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip route add local 203.0.113.0/24 dev lo src 192.0.2.1
ip address add 2001:db8::1/128 dev lo nodad
ip route add local 2001:db8:9::/64 dev lo src 2001:db8::1
echo 0 0 >/proc/sys/net/ipv4/ping_group_range
exec "$0" -W error -c "$1"
"""

PREAMBLE = """
import socket
from contextlib import suppress

V4, V6 = (socket.AF_INET, socket.IPPROTO_ICMP, "203.0.113.%d", 8), (socket.AF_INET6, 58, "2001:db8:9::%d", 128)


def ping_socket(version, identifier, *, shared=False):
    sock = socket.socket(version[0], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, version[1])
    if not shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.bind(("", identifier))
    return sock


def received(sock):
    with suppress(BlockingIOError):
        while True:
            yield sock.recvfrom(100)


for version in (V4, V6):
    remotes = [version[2] % last for last in (1, 2)]
    request, reply = version[3], 0 if version is V4 else 129
"""

CASES = {
    "identifier is kept, and filled in by the kernel": """
    sock = ping_socket(version, 4711)
    sock.connect((remotes[0], 0))
    sock.send(bytes((request, 0, 0, 0, 0xAA, 0xBB, 0, 7)) + b"data")
    ((packet, peer),) = received(sock)
    assert sock.getsockname()[1] == 4711
    assert (packet[0], packet[1], packet[4:]) == (reply, 0, (4711).to_bytes(2, "big") + b"\\0\\7data"), packet
    assert peer[0] == remotes[0]
    sock.close()
""",
    "identifier 0 is one that the kernel chooses": """
    sock = ping_socket(version, 0)
    assert sock.getsockname()[1] != 0
    sock.close()
""",
    "identifier in use is refused without SO_REUSEADDR": """
    for shared in (False, True):
        one = ping_socket(version, 4711)
        try:
            ping_socket(version, 4711, shared=shared)
        except OSError as error:
            assert error.errno == 98, error
        else:
            raise AssertionError("bound twice")
        one.close()
""",
    "ping sockets are born with SO_REUSEADDR, and one of those that share an identifier gets all replies": """
    socks = [ping_socket(version, 4711, shared=True) for _ in remotes]
    for sock, remote in zip(socks, remotes):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        sock.connect((remote, 0))
        sock.send(bytes((request, 0, 0, 0, 0, 0, 0, 7)))
    assert sorted(len(list(received(sock))) for sock in socks) == [0, 2]
    for sock in socks:
        sock.close()
""",
    "a connected socket takes replies of others too": """
    sock = ping_socket(version, 4711)
    sock.connect((remotes[0], 0))
    sock.sendto(bytes((request, 0, 0, 0, 0, 0, 0, 7)), (remotes[1], 0))
    ((_, peer),) = received(sock)
    assert peer[0] == remotes[1]
    sock.close()
""",
    "a request of another kind than echo is refused": """
    sock = ping_socket(version, 4711)
    try:
        sock.sendto(bytes((3, 0, 0, 0, 0, 0, 0, 7)), (remotes[0], 0))
    except OSError as error:
        assert error.errno == 22, error
    else:
        raise AssertionError("sent")
    sock.close()
""",
}


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """The command that gives a command a network namespace of its own; a user namespace too where that is needed."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare(1) and ip(8)")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, or user namespaces")
    return unshare


@pytest.mark.parametrize("case", CASES)
def test_ping_sockets(case: str, namespace: list[str]) -> None:
    command = [*namespace, "sh", "-c", SETUP, sys.executable, PREAMBLE + CASES[case]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
