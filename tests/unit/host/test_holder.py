"""Who holds a port: real sockets of this process and of another one, and files of /proc that were made up."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from forwarded_ports import BOTH, OURSELVES
from harness.stage import V6, Family

from trio_passt.config import Protocol
from trio_passt.host.holder import BoundPort, Holder, find_holders

KIND = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
PATIENTLY_S = 30


@contextmanager
def held(protocol: Protocol, family: socket.AddressFamily, address: str, *, dual: bool = False) -> Iterator[int]:
    with socket.socket(family, KIND[protocol]) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind((address, 0))
        if protocol is Protocol.TCP:
            sock.listen()
        yield sock.getsockname()[1]


def holder(protocol: Protocol, address: str, port: int) -> str | None:
    key = BoundPort(protocol, ip_address(address), port)
    found = find_holders([key], within_s=PATIENTLY_S)
    assert set(found) <= {key}
    return str(found[key]) if found else None


@pytest.mark.parametrize("protocol", BOTH)
def test_this_process(family: Family, protocol: Protocol) -> None:
    wildcard = "::" if family is V6 else "0.0.0.0"
    for bound, asked in ((wildcard, family.local), (family.local, wildcard), (family.local, family.local)):
        with held(protocol, family.socket_family, bound) as port:
            assert holder(protocol, asked, port) == OURSELVES
        assert holder(protocol, asked, port) is None


@pytest.mark.parametrize("protocol", BOTH)
def test_other_addresses_and_protocols_are_not_in_the_way(protocol: Protocol) -> None:
    other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
    with held(protocol, socket.AF_INET, "127.0.0.2") as port:
        assert holder(protocol, "127.0.0.1", port) is None
        assert holder(protocol, "::", port) is None
        assert holder(other, "127.0.0.2", port) is None


@pytest.mark.parametrize("bound", ["::", "::ffff:127.0.0.1"])
def test_ipv6_socket_may_be_ipv4s_too(bound: str) -> None:
    with held(Protocol.TCP, socket.AF_INET6, bound, dual=True) as port:
        assert holder(Protocol.TCP, "127.0.0.1", port) == OURSELVES
        assert (holder(Protocol.TCP, "127.0.0.2", port) == OURSELVES) is (bound == "::")


def test_another_process() -> None:
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            port = int(other.stdout.readline())
            name = Path(f"/proc/{other.pid}/comm").read_text().strip()
            assert holder(Protocol.TCP, "0.0.0.0", port) == f"{name} (pid {other.pid})"
        finally:
            other.stdin.close()


def test_listener_comes_before_its_connections() -> None:
    """Which have the same port, and may be another process's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert holder(Protocol.TCP, "127.0.0.1", server.getsockname()[1]) == OURSELVES


def test_many_ports_at_once() -> None:
    with held(Protocol.TCP, socket.AF_INET, "127.0.0.1") as one, held(Protocol.UDP, socket.AF_INET6, "::1") as other:
        keys = [BoundPort(Protocol.TCP, ip_address("0.0.0.0"), port) for port in range(1, 65536)]
        keys += [BoundPort(Protocol.UDP, ip_address("::1"), port) for port in range(1, 65536)]
        found = find_holders(keys, within_s=PATIENTLY_S)
        assert str(found[BoundPort(Protocol.TCP, ip_address("0.0.0.0"), one)]) == OURSELVES
        assert str(found[BoundPort(Protocol.UDP, ip_address("::1"), other)]) == OURSELVES


def test_nothing_to_look_for() -> None:
    assert find_holders([]) == {}


HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
KEY = BoundPort(Protocol.TCP, ip_address("127.0.0.1"), 22)


def entry(local: str, *, state: str = "0A", uid: str = "7", inode: str = "1234") -> str:
    return (
        f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 {inode} 1 x 100 0 0 10 0\n"
    )


LOCAL = "0100007F:0016" if sys.byteorder == "little" else "7F000001:0016"


def proc(root: Path, entries: str, *, link: str = "socket:[1234]", name: str = "sshd\n") -> Path:
    (root / "net").mkdir()
    (root / "net" / "tcp").write_text(HEADER + entries)
    (root / "self").mkdir()
    (root / "77" / "fd").mkdir(parents=True)
    (root / "77" / "comm").write_text(name)
    (root / "77" / "fd" / "3").symlink_to("/dev/null")
    (root / "77" / "fd" / "4").symlink_to(link)
    return root


def test_files_of_proc(tmp_path: Path) -> None:
    assert find_holders([KEY], proc=proc(tmp_path, entry(LOCAL))) == {KEY: Holder(7, 77, "sshd")}


def test_process_that_may_not_be_seen(tmp_path: Path) -> None:
    (found,) = find_holders([KEY], proc=proc(tmp_path, entry(LOCAL), link="socket:[999]")).values()
    assert str(found) == "a process of user 7"


def test_name_is_what_can_be_printed(tmp_path: Path) -> None:
    (found,) = find_holders([KEY], proc=proc(tmp_path, entry(LOCAL), name="a\x1b[31m\nb\n")).values()
    assert str(found) == "a?[31m?b (pid 77)"


def test_process_that_has_just_gone(tmp_path: Path) -> None:
    root = proc(tmp_path, entry(LOCAL))
    (root / "77" / "comm").unlink()
    (root / "78").mkdir()
    (found,) = find_holders([KEY], proc=root).values()
    assert str(found) == "? (pid 77)"


@pytest.mark.parametrize(
    "entries",
    [
        "",
        "garbage\n\n",
        entry("XYZ:0016"),
        entry("0100:0016"),
        entry(LOCAL, uid="root"),
        entry(LOCAL, inode="0"),
        entry(LOCAL)[:40],
        entry("0200007F:0016"),
    ],
)
def test_what_does_not_help(tmp_path: Path, entries: str) -> None:
    assert find_holders([KEY], proc=proc(tmp_path, entries)) == {}


def test_no_proc_at_all(tmp_path: Path) -> None:
    assert find_holders([KEY], proc=tmp_path / "nowhere") == {}


def test_no_time_at_all(tmp_path: Path) -> None:
    assert find_holders([KEY], within_s=0, proc=proc(tmp_path, entry(LOCAL))) == {}


def test_descriptors_are_left_as_they_were() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with held(Protocol.TCP, socket.AF_INET, "127.0.0.1") as port:
        holder(Protocol.TCP, "127.0.0.1", port)
    assert set(os.listdir("/proc/self/fd")) == before
