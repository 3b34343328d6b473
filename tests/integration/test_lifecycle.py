"""Starting and ending: the daemon, its guests, and guests that misbehave."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.guest.image import Image
from tests.guest.machine import Guest, GuestError
from tests.integration import servers
from tests.integration.capture import examine
from tests.integration.daemon import (
    READY_TIMEOUT_S,
    STOP_TIMEOUT_S,
    Daemon,
    RawGuest,
    daemon_directory,
    end_process,
    program,
    resident_kib,
)
from tests.integration.pinging import all_answered, echoes
from tests.integration.topology import GATEWAY4, HOST4, REMOTE4, REMOTE6, UNPRIVILEGED_ID, Topology

READY_WITHIN_S = 1.0
RESIDENT_LIMIT_KIB = 60 * 1024
ETHERNET_MTU = 1500
TRANSFER_BYTES = 5_000_000


@pytest.fixture
def own_directory(directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory for this test's own daemon."""
    return daemon_directory(directory, f"own{abs(hash(request.node.name)) % 10**8}")


def _arp_request() -> bytes:
    mac = "52:54:00:12:34:56"
    return bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=mac, psrc=HOST4, pdst=GATEWAY4))


def _is_answered(guest: RawGuest) -> bool:
    guest.send_frame(_arp_request())
    while frame := guest.receive_frame():
        packet = Ether(frame)
        if ARP in packet and packet[ARP].op == 2 and packet[ARP].psrc == GATEWAY4:
            return True
    return False


@pytest.mark.alone
def test_ready_within_a_second_and_small_at_rest(
    topology: Topology, own_directory: Path, measurements: list[str]
) -> None:
    for _ in range(3):  # the machine may do something else meanwhile
        seconds, kib = [], []
        for _ in range(3):
            start = time.monotonic()
            with Daemon(topology.host, own_directory) as daemon:
                daemon.wait_ready()
                seconds.append(time.monotonic() - start)
                with RawGuest(daemon.socket_path) as guest:
                    assert _is_answered(guest)
                kib.append(daemon.resident_kib())
        if statistics.median(seconds) < READY_WITHIN_S:
            break
    measurements.append(f"ready after {statistics.median(seconds):.2f} s")
    measurements.append(f"resident at rest: {statistics.median(kib) / 1024:.1f} MiB")
    assert statistics.median(seconds) < READY_WITHIN_S
    assert statistics.median(kib) < RESIDENT_LIMIT_KIB


def test_a_second_guest_is_turned_away_and_the_first_goes_on(guest: Guest, daemon: Daemon) -> None:
    under_way = guest.start(f"ping {echoes(10, 0.2)} {REMOTE4}")
    with RawGuest(daemon.socket_path) as second:
        assert second.closed_by_daemon()
    assert all_answered(under_way.result().check().stdout, 10)


def _written(pid_file: Path) -> str:
    """What is in it, as soon as there is something: in the foreground it is written when the socket listens already."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return pid_file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_it_cleanly(topology: Topology, own_directory: Path, number: signal.Signals) -> None:
    pid_file = own_directory / "pid"
    with Daemon(topology.host, own_directory, "-P", str(pid_file)) as daemon:
        daemon.wait_ready()
        assert _written(pid_file) == f"{daemon.process.pid}\n"
        with RawGuest(daemon.socket_path) as guest:
            assert _is_answered(guest)
            assert daemon.stop(number) == 0
            assert guest.closed_by_daemon()
        assert not daemon.socket_path.exists()
        assert not pid_file.exists()


def test_one_off_ends_with_its_guest(topology: Topology, own_directory: Path) -> None:
    with Daemon(topology.host, own_directory, "-1") as daemon:
        daemon.wait_ready()
        with RawGuest(daemon.socket_path) as guest:
            assert _is_answered(guest)
        assert daemon.process.wait(STOP_TIMEOUT_S) == 0
        assert not daemon.socket_path.exists()


def test_without_foreground_the_parent_returns_when_all_is_ready(topology: Topology, own_directory: Path) -> None:
    socket_path, pid_file = own_directory / "socket", own_directory / "pid"
    command = [*topology.host.enter_unprivileged(), *program(), "-s", str(socket_path), "-P", str(pid_file)]
    started = subprocess.run(
        [*command, "-t", "7001"], stdin=subprocess.DEVNULL, capture_output=True, timeout=READY_TIMEOUT_S, check=False
    )
    assert started.returncode == 0, started.stderr.decode()
    process_id = int(pid_file.read_text())
    try:
        assert socket_path.is_socket()
        assert pid_file.read_text() == f"{process_id}\n"
        assert stat.S_IMODE(pid_file.stat().st_mode) == 0o600
        assert process_id in topology.host.process_ids()
        assert f"Uid:\t{UNPRIVILEGED_ID}\t" in Path(f"/proc/{process_id}/status").read_text()
        assert os.getsid(process_id) != os.getsid(0)
        with RawGuest(socket_path) as guest:
            assert _is_answered(guest)
        assert resident_kib(process_id) < RESIDENT_LIMIT_KIB
    finally:
        end_process(process_id)
    assert not socket_path.exists()
    assert not pid_file.exists()


def test_without_foreground_the_parent_reports_what_failed(topology: Topology, own_directory: Path) -> None:
    socket_path = own_directory / "missing" / "socket"
    started = subprocess.run(
        [*topology.host.enter_unprivileged(), *program(), "-s", str(socket_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=READY_TIMEOUT_S,
        check=False,
    )
    assert started.returncode == 1
    assert str(socket_path) in started.stderr.decode()


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(bytes(4), id="length-0"),
        pytest.param((13).to_bytes(4, "big") + bytes(13), id="length-13"),
        pytest.param((65535 + 14 + 5).to_bytes(4, "big"), id="length-65554"),
        pytest.param(b"\xff" * 4096, id="length-4G"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="text"),
    ],
)
def test_garbage_ends_that_guest_but_not_the_daemon(topology: Topology, own_directory: Path, garbage: bytes) -> None:
    with Daemon(topology.host, own_directory) as daemon:
        daemon.wait_ready()
        with RawGuest(daemon.socket_path) as guest:
            assert _is_answered(guest)
            guest.connection.sendall(garbage)
            assert guest.closed_by_daemon()
        assert daemon.process.poll() is None
        with RawGuest(daemon.socket_path) as guest:
            assert _is_answered(guest)


def test_frames_that_are_no_packets_are_survived(topology: Topology, own_directory: Path) -> None:
    with Daemon(topology.host, own_directory) as daemon:
        daemon.wait_ready()
        with RawGuest(daemon.socket_path) as guest:
            header = bytes(6) + bytes.fromhex("525400123456")
            for ether_type in ("0800", "86dd", "0806", "88cc"):
                for size in (0, 1, 20, 40, 1000):
                    frame = header + bytes.fromhex(ether_type) + servers.payload(size, seed=size)
                    guest.send_frame(frame)
            assert _is_answered(guest)


def test_a_killed_guest_can_start_again_with_an_mtu_of_1500(
    image: Image, topology: Topology, own_directory: Path, measurements: list[str]
) -> None:
    capture = own_directory / "capture.pcap"
    arguments = ["-m", str(ETHERNET_MTU), "-p", str(capture), "-t", "7002"]
    with Daemon(topology.host, own_directory, *arguments) as daemon:
        daemon.wait_ready()
        for _ in range(2):
            with Guest(image, daemon.netdev(), daemon.log.parent) as guest:
                guest.boot()
                guest.check("online")
                assert f"mtu {ETHERNET_MTU} " in guest.check("ip link show dev eth0")
                for address in (REMOTE4, REMOTE6):
                    _download_and_upload(guest, topology, address, measurements)
                under_way = guest.start(f"ping -n -i 0.2 {REMOTE4}")
                guest.kill()
                with pytest.raises(GuestError):
                    under_way.result()
        assert daemon.stop() == 0
    assert examine(capture).problems == []


def _download_and_upload(guest: Guest, topology: Topology, address: str, measurements: list[str]) -> None:
    data, download = servers.payload(TRANSFER_BYTES), servers.Transfer()
    with servers.tcp_server(topology.remote, address, servers.send_from(data, download)) as server:
        guest.check(f"socat -u -b 262144 TCP:{server.socat} CREATE:/tmp/data", 60)
    upload = servers.Transfer()
    with servers.tcp_server(topology.remote, address, servers.receive_into(upload)) as server:
        guest.check(f"socat -b 262144 -t 60 - TCP:{server.socat} </tmp/data", 60)
    measurements.append(
        f"MTU {ETHERNET_MTU}: {address}: download {download.megabits_per_second:.0f},"
        f" upload {upload.megabits_per_second:.0f} Mbit/s"
    )
    assert upload.digest == hashlib.sha256(data).hexdigest()


def test_a_guest_on_an_inherited_socket(image: Image, topology: Topology, own_directory: Path) -> None:
    for_daemon, for_qemu = socket.socketpair()
    with for_daemon, for_qemu:
        descriptor = for_daemon.fileno()
        with (
            Daemon(topology.host, own_directory, "-F", str(descriptor), pass_fds=[descriptor]) as daemon,
            Guest(
                image,
                f"stream,id=n,addr.type=fd,addr.str={for_qemu.fileno()}",
                own_directory,
                pass_fds=[for_qemu.fileno()],
            ) as guest,
        ):
            for_daemon.close()
            for_qemu.close()
            guest.boot()
            guest.check("online")
            assert all_answered(guest.check(f"ping {echoes(3, 0.2)} {REMOTE6}"), 3)
            guest.kill()
            assert daemon.process.wait(STOP_TIMEOUT_S) == 0
