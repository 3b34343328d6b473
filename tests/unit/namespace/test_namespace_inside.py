"""Sockets of another network namespace, made by the real agent in a real one."""

import errno
import logging
import os
import pickle
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes_here import descriptors, new_namespaces, nothing_left, wait_for

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.opener import Opener
from trio_passt.namespace import agent as agent_module
from trio_passt.namespace import inside as inside_module
from trio_passt.namespace import processes
from trio_passt.namespace.agent import Birth, Open
from trio_passt.namespace.enter import Namespaces
from trio_passt.namespace.inside import FIRST_BATCH, LARGEST_BATCH, Inside
from trio_passt.namespace.report import MOST_BYTES, Report

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


def open_at_rest(agent: int) -> dict[int, str]:
    """The agent's descriptors, when it has closed what it has sent: the standard ones, and its connection."""

    def look() -> dict[int, str] | None:
        with suppress(FileNotFoundError):  # it has just been closed
            found = {int(link.name): os.readlink(link) for link in Path(f"/proc/{agent}/fd").iterdir()}
            return found if len(found) == 4 else None
        return None

    return wait_for(look)


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


@pytest.fixture
def waits(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long, in seconds, the agent has been waited for since: at most."""
    waits: list[float] = []

    class Poll:
        def __init__(self) -> None:
            self._poll = select.poll()

        def register(self, descriptor: socket.socket, events: int) -> None:
            self._poll.register(descriptor, events)

        def poll(self, most_ms: float) -> list[tuple[int, int]]:
            waits.append(most_ms / 1000)
            return self._poll.poll(most_ms)

    monkeypatch.setattr(inside_module, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    return waits


def test_agent_that_does_not_answer(
    inside: Inside, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for once.  What it says later is for nobody, and the next answer is still for who asks."""
    agent = agent_of(inside)
    os.kill(agent, signal.SIGSTOP)
    before = descriptors()
    with monkeypatch.context() as impatient:
        impatient.setattr(inside_module, "WITHIN_S", 0.02)
        with pytest.raises(TimeoutError):
            inside.diagnostics()
    for call in (inside.diagnostics, lambda: names(inside), lambda: inside.socket(*KINDS[0])):
        with pytest.raises(TimeoutError):
            call()
    assert len(waits) == 1
    assert waits[0] <= 0.02
    os.kill(agent, signal.SIGCONT)
    assert wait_for(lambda: names_or_none(inside)) == {"lo", "tap7"}
    inside.diagnostics().close()
    assert descriptors() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def names_or_none(side: Inside) -> set[str] | None:
    try:
        return set(names(side))
    except TimeoutError:
        return None


def test_connection_does_not_wait_long_for_its_socket(
    inside: Inside, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the next one; those that are ready are used meanwhile."""
    inside.socket(*KINDS[0]).close()
    os.kill(agent_of(inside), signal.SIGSTOP)
    monkeypatch.setattr(inside_module, "NEW_SOCKET_WITHIN_S", 0.02)
    waits.clear()
    count = 0
    while count < FIRST_BATCH:
        try:
            inside.socket(*KINDS[0]).close()
        except TimeoutError:
            break
        count += 1
    assert count == FIRST_BATCH - 1
    with pytest.raises(TimeoutError):
        inside.socket(*KINDS[0])
    assert len(waits) == 1
    assert waits[0] <= 0.02


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"{}",
        b'["shell", "id"]',
        b'["sockets", 2, 1]',
        b'["sockets", "2", 1, 8]',
        b'["proc", "../../etc/passwd"]',
        b'["open", 2, "tcp", 80, "nowhere", null, false, true]',
        b'["open", 2, "sctp", 80, null, null, false, true]',
        pickle.dumps(["diagnostics"]),
    ],
)
def test_request_that_is_none(message: bytes) -> None:
    """The daemon may be in somebody's power, too."""
    with pytest.raises(ValueError, match=r"\w"):
        agent_module.unpack(message)


@pytest.mark.parametrize(
    "values", [{}, {"address": IPv4Address("127.0.0.53")}, {"address": IPv6Address("fe80::1"), "interface": "eth0"}]
)
def test_request_for_a_port_is_what_was_sent(values: dict[str, Any]) -> None:
    for protocol in Protocol:
        for opener in Opener.all_of(PortForward(protocol, 80, 90, 80, **values), freebind=True, on_loopback=True):
            found = agent_module.unpack(agent_module.pack(Open(opener, 85)))
            assert isinstance(found, Open)
            assert found.port == 85
            for name in set(Opener.__slots__) - {"forward"}:
                assert getattr(found.opener, name) == getattr(opener, name), name
            assert (found.opener.forward.address, found.opener.forward.interface) == (
                opener.forward.address,
                opener.forward.interface,
            )


class StandIn:
    """In the agent's place: somebody who got hold of its end of the connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, self.connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = processes.fork(lambda: signal.pause() or 0)
        monkeypatch.setattr(agent_module, "start", lambda _birth: (process, ours))

    def says(self, message: bytes, *opened: int) -> None:
        """With descriptors, which are its own no more."""
        socket.send_fds(self.connection, [message], opened)
        for descriptor in opened:
            os.close(descriptor)


def null() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def fifo() -> int:
    """Whoever reads it waits."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def socket_of(family: int, kind: int, protocol: int = 0) -> int:
    return socket.socket(family, kind, protocol).detach()


GOOD = Report(bytes(6)).packed()
CODE = pickle.dumps(os.getcwd)
NONSENSE = [b"?", CODE, b"\x02" + bytes(4), b"\x00" + b"\xff" * 4, GOOD.ljust(MOST_BYTES + 1)]


@pytest.mark.parametrize(
    "message", [*NONSENSE, GOOD, Report(bytes(5)).packed(), Report(reason="No\x1b[2J!\n").packed(), b""]
)
@pytest.mark.parametrize("open_one", [null, fifo, lambda: socket_of(socket.AF_INET, socket.SOCK_STREAM)])
def test_tap_that_is_none(message: bytes, open_one: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left():
        other = StandIn(monkeypatch)
        other.says(message, open_one(), open_one())
        other.connection.close()
        if not message:
            monkeypatch.setattr(processes, "status_of", lambda process: processes.end(process) or 1)
        with pytest.raises(StartupError) as raised:
            Inside(Birth(Namespaces(0, None), "tap7", None, None))
        assert str(raised.value).isprintable()


ANSWERS: list[Callable[[], tuple[bytes, list[int]]]] = [
    *(lambda message=message: (message, [null()]) for message in (*NONSENSE, b"")),
    lambda: (Report().packed(), []),
    lambda: (Report(error=errno.EMFILE).packed(), []),
    lambda: (Report(reason="?").packed(), [null(), fifo()]),
    *(
        lambda open_one=open_one: (Report().packed(), [open_one() for _ in range(LARGEST_BATCH)])
        for open_one in (
            null,
            fifo,
            lambda: os.open("/proc/self/net/tcp", os.O_RDONLY),
            lambda: os.memfd_create("net"),
            lambda: socket_of(socket.AF_UNIX, socket.SOCK_STREAM),
            lambda: socket_of(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
            lambda: socket_of(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE),
        )
    ),
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    "call",
    [
        lambda side: side.socket(socket.AF_INET, socket.SOCK_STREAM),
        lambda side: side.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        lambda side: side.open(Opener.all_of(forward(80), freebind=False)[0], 80),
        lambda side: side.diagnostics(),
        lambda side: side.proc_net("tcp"),
    ],
)
def test_answer_that_is_not_what_was_asked_for(
    answer: Callable[[], tuple[bytes, list[int]]], call: Callable[[Inside], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but an OSError comes of it; nothing of it is kept or executed."""
    with nothing_left():
        other = StandIn(monkeypatch)
        monkeypatch.setattr(inside_module, "is_tap", lambda _descriptor: True)
        other.says(GOOD, null())
        side = Inside(Birth(Namespaces(0, None), "tap7", None, None))
        before = descriptors()
        message, opened = answer()
        other.says(message, *opened)
        with pytest.raises(OSError, match=r"^\["):
            call(side)
        assert descriptors() <= before
        side.close()
        other.connection.close()
        os.close(side.tap_fd)


def test_sockets_of_a_stand_in_that_would_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that listens at another port, or not at all, pass for what was asked for."""
    with nothing_left():
        other = StandIn(monkeypatch)
        monkeypatch.setattr(inside_module, "is_tap", lambda _descriptor: True)
        other.says(GOOD, null())
        side = Inside(Birth(Namespaces(0, None), "tap7", None, None))
        assert not os.get_blocking(side.tap_fd)
        other.says(Report().packed(), socket_of(socket.AF_INET, socket.SOCK_STREAM))
        with side.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            assert not os.get_blocking(sock.fileno())
        opener = Opener.all_of(forward(80), freebind=False)[0]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            other.says(Report().packed(), os.dup(listener.fileno()))
            with pytest.raises(OSError, match="Protocol error"):
                side.open(opener, 80)
            port = listener.getsockname()[1]
            other.says(Report().packed(), os.dup(listener.fileno()))
            side.open(opener, port).close()
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            other.says(Report().packed(), os.dup(bound.fileno()))
            with pytest.raises(OSError, match="Protocol error"):
                side.open(opener, bound.getsockname()[1])
        side.close()
        other.connection.close()
        os.close(side.tap_fd)


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
    fourth = sorted(set(range(100)) - open_at_rest(pid).keys())[3]
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
    *standard, connection = sorted(open_at_rest(pid).values())
    assert standard == ["/dev/null"] * 3
    assert connection.startswith("socket:")


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
