"""The tap, with the kernel's own stack at its other end: bytes arrive as they were, at any MTU, and nobody cuts them.

Each guest is a namespace with `--config-net`.  What is sent comes in sizes around those that a frame has room for.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import re
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.machine import DIE_WITH_PARENT
from tests.integration import servers
from tests.integration.daemon import daemon_directory
from tests.integration.namespace_guest import DEVICE, NamespaceDaemon
from tests.integration.topology import REMOTE4, REMOTE6, Namespace, Topology, named_namespace

BULK_BYTES = 6_000_000
UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
SIOCETHTOOL, ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO = 0x8946, 0x17, 0x1F, 0x24
"""linux/sockios.h, linux/ethtool.h"""

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", params=[1280, 1500, 65520])
def mtu_bytes(request: pytest.FixtureRequest) -> int:
    """Of the guest's interface."""
    assert isinstance(request.param, int)
    return request.param


@contextmanager
def attached(
    topology: Topology, directory: Path, name: str, mtu_bytes: int
) -> Iterator[tuple[Namespace, NamespaceDaemon]]:
    """A namespace as guest, and who serves it."""
    namespace = named_namespace(name)
    try:
        own = daemon_directory(directory, name)
        what = ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--config-net", "--netns", namespace.name]
        with NamespaceDaemon(topology.host, own, *what, "--mtu", str(mtu_bytes), as_root=True) as daemon:
            yield namespace, daemon.wait_ready()
    finally:
        namespace.remove()


@pytest.fixture(scope="module")
def guest(topology: Topology, directory: Path, mtu_bytes: int) -> Iterator[Namespace]:
    """One of this MTU."""
    with attached(topology, directory, f"tap-{mtu_bytes}", mtu_bytes) as (namespace, _daemon):
        yield namespace


# -- TCP ---------------------------------------------------------------------------------------------------------------


def upload(topology: Topology, guest: Namespace, address: str, byte_count: int) -> None:
    data, transfer = servers.payload(byte_count), servers.Transfer()
    with (
        servers.tcp_server(topology.remote, address, servers.receive_into(transfer)) as server,
        guest.socket(servers.family(address), socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(60)
        connection.connect((address, server.port))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"."
    assert (transfer.byte_count, transfer.digest) == (byte_count, hashlib.sha256(data).hexdigest())


def download(topology: Topology, guest: Namespace, address: str, byte_count: int) -> None:
    data = servers.payload(byte_count)
    with (
        servers.tcp_server(topology.remote, address, servers.send_from(data, servers.Transfer())) as server,
        guest.socket(servers.family(address), socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(60)
        connection.connect((address, server.port))
        assert hashlib.sha256(servers.receive_all(connection)).digest() == hashlib.sha256(data).digest()


@both_families
def test_bulk_both_ways(topology: Topology, guest: Namespace, address: str) -> None:
    upload(topology, guest, address, BULK_BYTES)
    download(topology, guest, address, BULK_BYTES)


@both_families
def test_streams_that_end_anywhere(topology: Topology, guest: Namespace, mtu_bytes: int, address: str) -> None:
    """At, before and after the end of a segment, and of a super-segment."""
    mss = mtu_bytes - (40 if address == REMOTE4 else 60)
    whole = 65495 // mss * mss
    for byte_count in (1, mss - 1, mss, mss + 1, 2 * mss + 1, whole - 1, whole, whole + 1, 2 * whole + mss - 1):
        upload(topology, guest, address, byte_count)
        download(topology, guest, address, byte_count)


@both_families
def test_a_guest_without_offloads(topology: Topology, guest: Namespace, address: str) -> None:
    """It sums, and cuts, all by itself."""
    with without_offloads(guest):
        upload(topology, guest, address, BULK_BYTES // 6)
        download(topology, guest, address, BULK_BYTES // 6)
        exchange(topology, guest, address, [b"by itself" * 100], 0)


@contextmanager
def without_offloads(guest: Namespace) -> Iterator[None]:
    """As `ethtool -K eth0 gso off tso off tx off` does it."""
    with guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:

        def switch(value: int, *commands: int) -> None:
            for command in commands:
                wanted = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
                fcntl.ioctl(asking, SIOCETHTOOL, struct.pack("=16sQ16x", DEVICE.encode(), ctypes.addressof(wanted)))

        switch(0, ETHTOOL_SGSO, ETHTOOL_STSO, ETHTOOL_STXCSUM)
        try:
            yield
        finally:
            switch(1, ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO)


# -- UDP ---------------------------------------------------------------------------------------------------------------


def exchange(topology: Topology, guest: Namespace, address: str, payloads: list[bytes], segment_bytes: int) -> None:
    """Datagrams there and back: as a train if a size is given, else one after the other; each arrives as it was."""
    with (
        servers.udp_socket(topology.remote, address) as remote,
        guest.socket(servers.family(address), socket.SOCK_DGRAM) as local,
    ):
        local.settimeout(30)
        local.connect(remote.getsockname()[:2])
        local.send(b"who is there?")
        remote.connect(remote.recvfrom(100)[1])
        for sender, receiver in ((local, remote), (remote, local)):
            for some in [payloads] if segment_bytes else [[payload] for payload in payloads]:
                send(sender, some, segment_bytes)
                arrived = [receiver.recv(65536) for _ in some]
                assert [len(data) for data in arrived] == [len(data) for data in some]
                assert arrived == some


def send(sock: socket.socket, payloads: list[bytes], segment_bytes: int) -> None:
    """With one call; the kernel cuts them, if they are several (udp(7), UDP_SEGMENT)."""
    cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment_bytes))] if segment_bytes else []
    sock.sendmsg([b"".join(payloads)], cut)


@both_families
def test_datagrams_of_any_size(topology: Topology, guest: Namespace, mtu_bytes: int, address: str) -> None:
    """Also such that go in fragments."""
    largest = mtu_bytes - (28 if address == REMOTE4 else 48)
    sizes = [0, 1, 2, 1400, largest - 1, largest, *([largest + 1, 3 * largest] if mtu_bytes < 10_000 else [])]
    exchange(
        topology,
        guest,
        address,
        [servers.payload(size, size) for size in sizes],
        0,
    )


@both_families
@pytest.mark.parametrize(
    ("size", "count", "last"),
    [
        (1200, 2, 0),
        (1200, 53, 0),
        (1200, 53, 1199),
        (1200, 1, 1),
        (1000, 64, 0),
        (1000, 63, 1),
        (100, 64, 0),
        (1, 63, 0),
    ],
)
def test_trains_of_datagrams(
    topology: Topology, guest: Namespace, address: str, size: int, count: int, last: int
) -> None:
    """As large as they may be, with as many datagrams as there may be, and with a last one that is smaller."""
    sizes = [size] * count + ([last] if last else [])
    payloads = [servers.payload(each, number) for number, each in enumerate(sizes)]
    exchange(topology, guest, address, payloads, size)


@both_families
def test_a_guest_that_takes_trains_gets_them(topology: Topology, guest: Namespace, address: str) -> None:
    """What was sent together arrives together (udp(7), UDP_GRO), and was nowhere taken apart."""
    data = servers.payload(1000 * 40)
    with (
        servers.udp_socket(topology.remote, address) as remote,
        guest.socket(servers.family(address), socket.SOCK_DGRAM) as local,
    ):
        local.settimeout(30)
        local.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        local.connect(remote.getsockname()[:2])
        for _ in range(8):  # a flow that has several in a row is expected to go on like that
            local.send(b"hello")
            remote.connect(remote.recvfrom(100)[1])
            for _ in range(8):
                remote.send(b"hello")
        received, largest = 0, 0
        send(remote, [data], 1000)
        whole = b""
        while len(whole) < len(data):
            part = local.recv(65536)
            if set(part) == set(b"hello"):
                continue
            largest = max(largest, len(part))
            whole += part
            received += 1
        assert whole == data
        assert largest > 1000, received


# -- what it costs -----------------------------------------------------------------------------------------------------

TRACED_BYTES = 30_000_000


@contextmanager
def traced(pid: int, path: Path) -> Iterator[Counter[str]]:
    """Counts the system calls of a process, those at the tap by themselves; filled in at the end of the block."""
    tracer = subprocess.Popen(
        [*DIE_WITH_PARENT, "strace", "-qq", "-f", "-y", "-s", "0", "-o", str(path), "-p", str(pid)],
        stdin=subprocess.DEVNULL,
    )
    calls: Counter[str] = Counter()
    try:
        status = Path(f"/proc/{pid}/status")
        deadline = time.monotonic() + 60
        while "TracerPid:\t0" in status.read_text():
            assert tracer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield calls
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
    for line in path.read_text(errors="replace").splitlines():
        if found := re.match(r"\d+ +(\w+)\((\d+</dev/net/tun>)?", line):
            name, is_tap = found.groups()
            failed = "EAGAIN" in line
            calls[f"{'tap ' if is_tap else ''}{name}{' again' if failed else ''}"] += 1


@pytest.mark.parametrize("transfer", [upload, download])
def test_system_calls_are_those_of_super_segments(
    topology: Topology, directory: Path, transfer: Callable[[Topology, Namespace, str, int], None]
) -> None:
    """One read and one write for each, and what is done for a batch of them; nothing is done for a packet of 1500."""
    name = f"tap-{transfer.__name__}"
    with (
        attached(topology, directory, name, 1500) as (namespace, daemon),
        traced(daemon.process.pid, directory / f"{name}.strace") as calls,
    ):
        transfer(topology, namespace, REMOTE4, TRACED_BYTES)
    packets, super_segments = TRACED_BYTES // 1460, TRACED_BYTES // 64_240
    reads, writes, looks = (calls[f"tap {kind}"] for kind in ("read", "writev", "read again"))
    assert {name for name in calls if name.startswith("tap ")} <= {"tap read", "tap writev", "tap read again"}, calls
    larger, smaller = (reads, writes) if transfer is upload else (writes, reads)
    assert super_segments <= larger < 1.5 * super_segments + 50, calls
    assert smaller < 1.5 * larger, calls
    assert looks < larger, calls
    assert sum(calls.values()) < packets / 3, calls
