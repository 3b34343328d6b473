"""TCP past the tap: what each end sees is what it would see of the other."""

import errno
import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest
import trio
from attrs import define, field
from harness.stage import V4, Family
from harness.waiting import eventually
from joined import Joined, free_port, joined, jump, leads_to, server_at
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import Protocol
from trio_passt.host import side as side_module
from trio_passt.host.endpoint import Endpoint
from trio_passt.local import connection as module
from trio_passt.local import pipes, stream


@define
class Connected:
    """A client and the server that it has reached."""

    joined: Joined
    client: socket.socket
    server: socket.socket
    opened: ExitStack = field(factory=ExitStack)

    async def arrives(self, sock: socket.socket, data: bytes) -> None:
        """All of it, and nothing else yet."""
        got = bytearray()

        def look() -> bool | None:
            try:
                got.extend(sock.recv(1 << 20))
            except BlockingIOError:
                return None
            return True if len(got) >= len(data) else None

        await eventually(look, "data")
        assert bytes(got) == data

    async def ends(self, sock: socket.socket) -> None:
        await eventually(lambda: _end(sock), "the end of the stream")

    async def is_reset(self, sock: socket.socket) -> None:
        def look() -> bool | None:
            try:
                assert sock.recv(1) != b"", "an orderly end"
            except ConnectionResetError:
                return True
            except BlockingIOError:
                pass
            return None

        await eventually(look, "a reset")


def _end(sock: socket.socket) -> bool | None:
    try:
        assert sock.recv(1) == b"", "data"
    except BlockingIOError:
        return None
    return True


@asynccontextmanager
async def connected(family: Family = V4, *, server_socket: socket.socket | None = None) -> AsyncIterator[Connected]:
    with ExitStack() as opened:
        listener = opened.enter_context(server_at(family)) if server_socket is None else server_socket
        port = free_port()
        async with joined(leads_to(Protocol.TCP, port, listener.getsockname()[1])) as flows:
            client = opened.enter_context(socket.socket(family.socket_family))
            client.connect((family.local, port))
            client.setblocking(False)
            server, _ = await eventually(lambda: _accept(listener), "the connection")
            server.setblocking(False)
            opened.enter_context(server)
            yield Connected(flows, client, server)


def _accept(listener: socket.socket) -> tuple[socket.socket, object] | None:
    try:
        return listener.accept()
    except BlockingIOError:
        return None


@pytest.fixture(autouse=True)
def still(standing_clock: None) -> None:
    """Nothing here waits for a time."""


async def test_question_and_answer_and_both_ends(family: Family) -> None:
    async with connected(family) as pair:
        pair.client.send(b"question")
        await pair.arrives(pair.server, b"question")
        pair.server.send(b"answer")
        await pair.arrives(pair.client, b"answer")
        pair.client.close()
        await pair.ends(pair.server)
        pair.server.close()
        await pair.joined.is_idle()


async def test_server_may_answer_after_the_end_of_the_question(family: Family) -> None:
    async with connected(family) as pair:
        pair.client.send(b"question")
        pair.client.shutdown(socket.SHUT_WR)
        await pair.arrives(pair.server, b"question")
        await pair.ends(pair.server)
        pair.server.send(b"answer")
        await pair.arrives(pair.client, b"answer")
        (flow,) = pair.joined.receiver.flows.tcp
        assert flow.status().state == "FIN-WAIT-2"
        pair.server.close()
        await pair.ends(pair.client)
        await pair.joined.is_idle()


async def test_server_that_ends_first() -> None:
    async with connected() as pair:
        pair.server.send(b"greeting")
        pair.server.shutdown(socket.SHUT_WR)
        await pair.arrives(pair.client, b"greeting")
        await pair.ends(pair.client)
        pair.client.send(b"late")
        await pair.arrives(pair.server, b"late")
        pair.client.close()
        await pair.ends(pair.server)
        await pair.joined.is_idle()


@pytest.fixture(params=["splice", "no pipes"])
def splices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """By splice(2), counted; or without a pipe to be had, which costs a copy and nothing else."""
    counts: list[int] = []
    splice = os.splice

    def counting(*arguments: object) -> int:
        count = splice(*arguments)  # type: ignore[arg-type]
        counts.append(count)
        return count

    if request.param == "splice":
        monkeypatch.setattr(os, "splice", counting)
    else:
        monkeypatch.setattr(pipes, "MOST", 0)
    yield counts
    assert bool(counts) is (request.param == "splice")


async def test_bulk_both_ways_at_once_with_slow_readers(splices: list[int]) -> None:
    """What arrives is what was sent, whole, though neither end reads before the buffers are full."""
    data = {name: random.Random(name).randbytes(12_000_000) for name in ("up", "down")}
    async with connected() as pair:
        left = {pair.client: memoryview(data["up"]), pair.server: memoryview(data["down"])}
        got: dict[socket.socket, bytearray] = {pair.client: bytearray(), pair.server: bytearray()}

        def push() -> None:
            for sock, view in left.items():
                try:
                    while len(view):
                        view = view[sock.send(view[:100_000]) :]
                except BlockingIOError:
                    pass
                left[sock] = view

        push()
        await wait_all_tasks_blocked(0.01)
        push()
        await wait_all_tasks_blocked(0.01)  # all is full now
        while any(len(received) < 12_000_000 for received in got.values()):
            for sock, received in got.items():
                try:
                    received += sock.recv(300_000)
                except BlockingIOError:
                    continue
            push()
            await wait_all_tasks_blocked()
        assert (bytes(got[pair.server]), bytes(got[pair.client])) == (data["up"], data["down"])
        pair.client.close()
        pair.server.close()
        await pair.joined.is_idle()
        assert sum(splices) in (0, *range(2 * 23_000_000, 2 * 24_000_001)), "bulk goes through pipes, in and out"
        assert pair.joined.pool._count <= pipes.KEPT


async def test_reader_that_does_not_read_costs_nothing() -> None:
    async with connected() as pair:
        for _ in range(3):
            try:
                while True:
                    pair.client.send(bytes(1 << 20))
            except BlockingIOError:
                await wait_all_tasks_blocked(0.01)
        before = time.thread_time()
        turns: list[int] = []
        (flow,) = pair.joined.receiver.flows.tcp
        since = time.monotonic()
        while time.monotonic() < since + 0.2:
            await wait_all_tasks_blocked(0.02)
            turns.append(1)
        assert time.thread_time() - before < 0.1
        assert flow.status().state == "ESTABLISHED"


async def test_refused_connection_is_reset(family: Family) -> None:
    with server_at(family) as listener:
        target = listener.getsockname()[1]
    port = free_port()
    async with joined(leads_to(Protocol.TCP, port, target)) as flows:
        with socket.socket(family.socket_family) as client:
            client.connect((family.local, port))
            client.setblocking(False)
            await Connected(flows, client, client).is_reset(client)
        await flows.is_idle()


async def test_reset_of_the_client_is_one_for_the_server() -> None:
    async with connected() as pair:
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, module.sockets._LINGER_ZERO)
        pair.client.close()
        await pair.is_reset(pair.server)
        await pair.joined.is_idle()


async def test_reset_comes_after_what_was_sent_before_it() -> None:
    """A kernel's program could read that, too; however long it takes, up to a limit."""
    async with connected() as pair:
        sent = 0
        try:
            while True:
                sent += pair.server.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        await wait_all_tasks_blocked(0.01)
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, module.sockets._LINGER_ZERO)
        pair.server.close()
        await wait_all_tasks_blocked(0.01)
        got = 0
        for _ in range(10_000):
            try:
                data = pair.client.recv(1 << 20)
                assert data, "an orderly end"
                got += len(data)
            except BlockingIOError:
                jump(module.LOOK_AFTER_RESET_S)
                await wait_all_tasks_blocked(0.001)
            except ConnectionResetError:
                break
        else:
            pytest.fail("no reset")
        assert 0 < got <= sent
        await pair.joined.is_idle()


async def test_who_never_reads_is_reset_in_the_end() -> None:
    async with connected() as pair:
        for _ in range(3):
            try:
                while True:
                    pair.server.send(bytes(1 << 20))
            except BlockingIOError:
                await wait_all_tasks_blocked(0.01)
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, module.sockets._LINGER_ZERO)
        pair.server.close()
        await wait_all_tasks_blocked(0.01)
        assert len(pair.joined.receiver.flows.tcp) == 1
        jump(module.AFTER_RESET_S)
        await pair.joined.is_idle()


class Turns(trio.abc.Instrument):
    """Counts those of connections."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "_supervise" in task.name


async def test_who_never_reads_is_looked_at_less_and_less_often() -> None:
    async with connected() as pair:
        for _ in range(10):  # more than is received, less than is sent and waits for that
            assert pair.server.send(bytes(20_000)) == 20_000
            await wait_all_tasks_blocked(0.01)
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, module.sockets._LINGER_ZERO)
        pair.server.close()
        await wait_all_tasks_blocked(0.01)
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        for _ in range(500):
            jump(module.LOOK_AFTER_RESET_S)
            await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(turns)
        assert len(pair.joined.receiver.flows.tcp) == 1
        assert 5 < turns.count < 30
        jump(module.AFTER_RESET_S)
        await pair.joined.is_idle()


async def test_server_that_is_gone_is_a_reset_for_whoever_writes_on() -> None:
    """Its end was an orderly one; that nobody reads any more comes back when something is sent."""
    async with connected() as pair:
        pair.server.close()
        await pair.ends(pair.client)
        pair.client.send(b"anybody there?")
        await pair.joined.is_idle()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            pair.client.send(b"anybody?")


class TestUrgent:
    async def test_it_is_urgent_at_the_other_end_too(self) -> None:
        async with connected() as pair:
            pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)
            pair.client.send(b"abc")
            await pair.arrives(pair.server, b"abc")
            pair.client.send(b"de!", socket.MSG_OOB)
            pair.client.send(b"fg")
            await eventually(lambda: _urgent(pair.server), "the urgent byte")
            await pair.arrives(pair.server, b"de")
            await pair.arrives(pair.server, b"fg")
            pair.client.close()
            await pair.ends(pair.server)

    async def test_bulk_goes_on_behind_it(self) -> None:
        data = random.Random(1).randbytes(3_000_000)
        async with connected() as pair:
            pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            got = bytearray()
            left = memoryview(data)
            is_urgent = True
            while len(got) < len(data):
                try:
                    if len(left) < 2_000_000 and is_urgent:
                        left = left[pair.client.send(left[:1], socket.MSG_OOB) :]
                        is_urgent = False
                    left = left[pair.client.send(left[:200_000]) :]
                except BlockingIOError:
                    pass
                await wait_all_tasks_blocked()
                try:
                    got += pair.server.recv(1 << 20)
                except BlockingIOError:
                    continue
            assert bytes(got) == data


def _urgent(sock: socket.socket) -> bool | None:
    with suppress(OSError):  # EINVAL: there is none yet
        return sock.recv(1, socket.MSG_OOB) == b"!" or None
    return None


class TestEndOfTheSession:
    async def test_open_connections_are_reset(self) -> None:
        with server_at(V4) as listener, socket.socket() as client:
            port = free_port()
            async with joined(leads_to(Protocol.TCP, port, listener.getsockname()[1])):
                client.connect((V4.local, port))
                server, _ = await eventually(lambda: _accept(listener), "the connection")
            with server:
                for sock in (client, server):
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)

    async def test_who_was_told_the_end_keeps_that(self) -> None:
        with server_at(V4) as listener, socket.socket() as client:
            port = free_port()
            async with joined(leads_to(Protocol.TCP, port, listener.getsockname()[1])):
                client.connect((V4.local, port))
                server, _ = await eventually(lambda: _accept(listener), "the connection")
                client.send(b"all of it")
                client.shutdown(socket.SHUT_WR)
                server.setblocking(False)
                assert await eventually(lambda: _received(server), "data") == b"all of it"
                await eventually(lambda: _end(server), "the end of the stream")
            with server, pytest.raises(ConnectionResetError):
                client.recv(1)
            assert server.fileno() < 0


def _received(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(100)
    except BlockingIOError:
        return None


class TestLimits:
    async def test_connections_beyond_the_limit_are_reset(self) -> None:
        with server_at(V4) as listener, ExitStack() as opened:
            port = free_port()
            async with joined(leads_to(Protocol.TCP, port, listener.getsockname()[1]), limit=2) as flows:
                clients = [opened.enter_context(socket.create_connection((V4.local, port))) for _ in range(3)]
                await eventually(lambda: True if flows.limit.count == 2 else None, "two connections")
                clients[2].setblocking(False)
                await Connected(flows, clients[2], clients[2]).is_reset(clients[2])
                clients[0].close()
                for _ in range(3):
                    server, _ = await eventually(lambda: _accept(listener), "a connection")
                    server.close()
                clients[1].close()
                await flows.is_idle()

    async def test_others_of_the_guest_count_too(self) -> None:
        with server_at(V4) as listener:
            port = free_port()
            async with joined(leads_to(Protocol.TCP, port, listener.getsockname()[1]), limit=1) as flows:
                flows.limit.count = 1
                with socket.create_connection((V4.local, port)) as client:
                    client.setblocking(False)
                    await Connected(flows, client, client).is_reset(client)
                flows.limit.count = 0

    async def test_no_descriptors_is_a_reset_and_a_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_self: object, _family: int, _kind: int) -> socket.socket:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        port = free_port()
        async with joined(leads_to(Protocol.TCP, port, 9)) as flows:
            monkeypatch.setattr(side_module.Here, "socket", fail)
            for _ in range(2):
                with socket.create_connection((V4.local, port)) as client:
                    client.setblocking(False)
                    await Connected(flows, client, client).is_reset(client)
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.getMessage() for record in lines] == ["can't open a local connection: Too many open files"]

    async def test_descriptors_are_all_given_back(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with connected() as pair:
            for sock in (pair.client, pair.server):
                sock.send(bytes(1_000_000))
            await wait_all_tasks_blocked(0.01)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_client_that_comes_again_from_its_port_ends_the_former() -> None:
    """Its former connection is gone without trace, for its kernel has let it have the port again."""
    with server_at(V4) as listener, ExitStack() as opened:
        async with joined() as flows:
            ends = [opened.enter_context(_pair(opened)) for _ in range(2)]
            peer, dialled = Endpoint(bytes((127, 0, 0, 1)), 5000), Endpoint(bytes((127, 0, 0, 1)), 80)
            target = Endpoint(bytes((127, 0, 0, 1)), listener.getsockname()[1])
            servers = []
            for end in ends:
                assert flows.receiver.flows.connect(end, peer, dialled, target)
                server, _ = await eventually(lambda: _accept(listener), "a connection")
                servers.append(opened.enter_context(server))
            with pytest.raises(ConnectionResetError):
                servers[0].recv(1)
            assert len(flows.receiver.flows.tcp) == flows.limit.count == 1


def _pair(opened: ExitStack) -> socket.socket:
    """One end of a TCP connection; the other one stays open."""
    with socket.create_server((V4.local, 0)) as listener:
        opened.enter_context(socket.create_connection(listener.getsockname()))
        sock, _ = listener.accept()
    sock.setblocking(False)
    return sock


async def test_end_is_not_passed_on_before_there_is_a_connection() -> None:
    """shutdown(2) of a socket that is still connecting gives up the connection."""
    with ExitStack() as opened:
        source, sink = stream.End(_pair(opened), is_connected=True), stream.End(_pair(opened), is_connected=False)
        opened.callback(source.sock.close)
        opened.callback(sink.sock.close)
        way = stream.Stream(source, sink, pipes.PipePool(), memoryview(bytearray(1 << 16)))
        source.sock.shutdown(socket.SHUT_RD)  # reads as the end
        way.is_readable = True
        assert way.move() == (0, False)
        assert not way.is_through
        sink.is_connected = True
        assert way.can_move()
        assert way.move() == (0, False)
        assert way.is_passed_on


async def test_status_says_who_is_joined_to_whom(family: Family) -> None:
    async with connected(family) as pair:
        pair.client.send(b"12345")
        await pair.arrives(pair.server, b"12345")
        pair.server.send(b"123")
        await pair.arrives(pair.client, b"123")
        (flow,) = pair.joined.receiver.flows.tcp
        status = flow.status()
        guest, remote = Endpoint.of(pair.client.getsockname()), Endpoint.of(pair.client.getpeername())
        assert status.key == (guest.address, guest.port, remote.address, remote.port)
        assert (status.state, status.is_opened_by_guest) == ("ESTABLISHED", True)
        assert status.on_host == Endpoint.of(pair.server.getsockname())
        assert (status.from_guest, status.to_guest) == (5, 3)


@pytest.mark.interpreted
async def test_bug_in_one_connection_resets_it_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as pair:

        def fail(_self: object) -> tuple[int, bool]:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(stream.Stream, "move", fail)
            pair.client.send(b"x")
            await pair.is_reset(pair.client)
        assert "ended by an internal error" in caplog.text
        caplog.clear()
        with socket.create_connection(("127.0.0.1", _port(pair))) as again:
            again.send(b"y")
        await pair.joined.is_idle()


def _port(pair: Connected) -> int:
    (forward,) = pair.joined.listeners.bound
    return forward.first


def test_pipes_are_few_and_given_back() -> None:
    pool = pipes.PipePool()
    taken = [pool.take() for _ in range(pipes.KEPT + 2)]
    for pipe in taken:
        assert pipe is not None
        pool.give_back(pipe)
    assert (len(pool._empty), pool._count) == (pipes.KEPT, pipes.KEPT)
    last = pool.take()
    pool.close()
    assert last is not None
    pool.give_back(last)
    assert (len(pool._empty), pool._count) == (0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(last.read_fd)


def test_pipe_with_something_left_is_not_used_again() -> None:
    with ExitStack() as opened:
        pool = pipes.PipePool()
        pipe = pool.take()
        assert pipe is not None
        near = _pair(opened)
        opened.callback(near.close)
        os.write(pipe.write_fd, b"left")
        pipe.held_bytes = 4
        pool.give_back(pipe)
        assert (len(pool._empty), pool._count) == (0, 0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pipe.read_fd)


def test_no_descriptors_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", fail)
    assert pipes.PipePool().take() is None
