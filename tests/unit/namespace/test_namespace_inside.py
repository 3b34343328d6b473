"""Sockets of another network namespace, made by the real agent in a real one."""

import errno
import logging
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes_here import descriptors, new_namespaces, nothing_left, wait_for

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.opener import Opener
from trio_passt.namespace import inside as inside_module
from trio_passt.namespace.agent import Birth
from trio_passt.namespace.inside import FIRST_BATCH, LARGEST_BATCH, Inside

KINDS = [
    (family, kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]
MAC = bytes.fromhex("020000000102")


@pytest.fixture
def inside() -> Iterator[Inside]:
    with nothing_left(), new_namespaces() as namespaces:
        opened = Inside(Birth(namespaces, "tap7", MAC, None))
        yield opened
        opened.close()
        os.close(opened.tap_fd)


def agent_of(inside: Inside) -> int:
    (pid,) = (
        int(pid)
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if "tap7" in Path(f"/proc/{pid}/net/dev").read_text()
        and not Path(f"/proc/{pid}/task/{pid}/children").read_text()
    )
    return pid


def names(side: Inside) -> list[str]:
    return [line.partition(":")[0].strip() for line in side.proc_net("dev").decode().splitlines()[2:]]


def test_tap_and_loopback(inside: Inside) -> None:
    assert inside.mac == MAC
    assert set(names(inside)) == {"lo", "tap7"}
    assert not os.get_blocking(inside.tap_fd)
    assert not os.get_inheritable(inside.tap_fd)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_socket_is_of_the_namespace(inside: Inside, family: int, kind: int) -> None:
    """Its loopback is up, and is not ours: nobody listens at the port that this process listens at."""
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with inside.socket(family, kind) as there, socket.socket(family, kind) as here:
        here.bind((loopback, 0))
        there.bind((loopback, here.getsockname()[1]))
        assert (there.family, there.type & 0xF) == (family, kind)
        assert there.gettimeout() == 0
        assert not os.get_blocking(there.fileno())
        assert not os.get_inheritable(there.fileno())
        if kind == socket.SOCK_DGRAM:
            there.connect(there.getsockname())
            there.send(b"?")
            assert wait_for(lambda: there.recv(1)) == b"?"


def test_many_in_batches(inside: Inside) -> None:
    sockets = []
    before = descriptors()
    for _ in range(5 * LARGEST_BATCH):
        sockets.append(inside.socket(socket.AF_INET, socket.SOCK_STREAM))
        assert descriptors() - before - len(sockets) <= 2 * LARGEST_BATCH
    inodes = {os.fstat(one.fileno()).st_ino for one in sockets}
    assert len(inodes) == len(sockets)
    for one in sockets:
        one.close()


def test_first_one_does_not_have_many_made(inside: Inside) -> None:
    before = descriptors()
    inside.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    assert descriptors() - before <= FIRST_BATCH


def forward(port: int, protocol: Protocol = Protocol.TCP) -> PortForward:
    return PortForward(protocol, port, port, port)


@pytest.mark.parametrize("protocol", Protocol)
def test_port_is_bound_there_also_a_low_one(inside: Inside, protocol: Protocol) -> None:
    for opener in Opener.all_of(forward(80, protocol), freebind=False, on_loopback=True):
        with inside.open(opener, 80) as there:
            assert there.getsockname()[:2] == ("127.0.0.1" if opener.family == socket.AF_INET else "::1", 80)
            if protocol is Protocol.TCP:
                with inside.socket(opener.family, socket.SOCK_STREAM) as client:
                    assert client.connect_ex(there.getsockname()) in (0, errno.EINPROGRESS)
                    connection, _ = wait_for(there.accept)
                    connection.close()
            with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)) as refused:
                inside.open(opener, 80)
            assert refused.value.errno == errno.EADDRINUSE


def test_kernel_lists_the_sockets_there(inside: Inside) -> None:
    (opener, _) = Opener.all_of(forward(1234), freebind=False, on_loopback=True)
    with inside.open(opener, 1234), inside.diagnostics() as diagnostics:
        request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 1 << 10) + bytes(48)
        diagnostics.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)
        answer = wait_for(lambda: diagnostics.recv(65536))
        assert struct.unpack_from("=BBBB", answer, 16)[0] == socket.AF_INET
        assert struct.unpack_from(">H", answer, 20) == (1234,)


def test_no_such_file(inside: Inside) -> None:
    with pytest.raises(FileNotFoundError):
        inside.proc_net("nothing")


def test_agent_is_killed(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    kept = inside.socket(socket.AF_INET, socket.SOCK_STREAM)
    os.kill(agent_of(inside), signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        for family, kind in KINDS * (2 * LARGEST_BATCH):
            try:
                inside.socket(family, kind).close()
            except OSError:
                break
        else:
            pytest.fail("sockets without end")
        for call in (inside.diagnostics, lambda: inside.proc_net("tcp"), lambda: inside.socket(*KINDS[0])):
            with pytest.raises(OSError, match="gone"):
                call()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert kept.connect_ex(("127.0.0.1", 9)) in (errno.EINPROGRESS, errno.ECONNREFUSED)
    kept.close()


def test_agent_that_does_not_answer(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says later is for nobody, and the next answer is still for who asks."""
    agent = agent_of(inside)
    monkeypatch.setattr(inside_module, "WITHIN_S", 0.02)
    os.kill(agent, signal.SIGSTOP)
    before = descriptors()
    with pytest.raises(TimeoutError):
        inside.diagnostics()
    os.kill(agent, signal.SIGCONT)
    monkeypatch.setattr(inside_module, "WITHIN_S", 10.0)
    assert set(names(inside)) == {"lo", "tap7"}
    assert descriptors() == before


def test_agent_that_is_stopped_is_ended(inside: Inside) -> None:
    os.kill(agent_of(inside), signal.SIGSTOP)
    inside.close()


def test_no_descriptors_here(inside: Inside) -> None:
    inside.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(one) for one in os.listdir("/proc/self/fd")) + 2, hard))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        pass
    try:
        for call in (inside.diagnostics, lambda: inside.socket(socket.AF_INET6, socket.SOCK_DGRAM)):
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    inside.diagnostics().close()
    inside.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()


def test_no_descriptors_there(inside: Inside) -> None:
    pid, (soft, hard) = agent_of(inside), resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    fourth = sorted(set(range(100)) - used)[3]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (fourth, hard))
    sockets = [inside.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(10)]  # three at a time
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    for call in (inside.diagnostics, lambda: inside.socket(socket.AF_INET6, socket.SOCK_STREAM)):
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            call()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    sockets.append(inside.socket(socket.AF_INET6, socket.SOCK_STREAM))
    for one in sockets:
        one.close()


def test_agent_has_one_privilege_and_nothing_of_ours(inside: Inside) -> None:
    pid = agent_of(inside)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 10
    assert status["NoNewPrivs"] == "1"
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert sorted(links)[:3] == ["/dev/null"] * 3
    assert len(links) == 4


@pytest.mark.parametrize("name", ["lo", "a/b", "tap7"])
def test_name_that_can_not_be_had(inside: Inside, name: str) -> None:
    with nothing_left(), new_namespaces() as namespaces:
        if name != "tap7":
            with pytest.raises(StartupError, match=f"'{name}' in the namespace: that name is taken"):
                Inside(Birth(namespaces, name, None, None))
            return
        first = Inside(Birth(namespaces, name, None, None))
        with pytest.raises(StartupError, match="that name is taken"):
            Inside(Birth(namespaces, name, None, None))
        first.close()
        os.close(first.tap_fd)
