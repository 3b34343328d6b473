"""Forwarded ports: binding, and who gets what arrives."""

import errno
import logging
import os
import socket
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from forwarded_ports import BOTH, Recorder, client, free_port, listening
from harness.stage import V4, V6, Family
from harness.waiting import eventually
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host import listeners as module
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import PortListeners


async def test_connection_goes_to_the_receiver(family: Family) -> None:
    receiver, port = Recorder(), free_port()
    async with listening(PortForward(Protocol.TCP, port, 80), receiver=receiver):
        with client(family, socket.SOCK_STREAM, port) as sock:
            host, peer, target = await eventually(
                lambda: receiver.connections[0] if receiver.connections else None, "a connection"
            )
            assert target == 80
            assert peer == Endpoint.of(sock.getsockname())
            assert not host.getblocking()
            assert host.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.send(b"x")
            assert host.recv(1) == b"x"


async def test_many_at_once_all_arrive() -> None:
    receiver, port = Recorder(), free_port()
    forwards = [PortForward(protocol, port, 1) for protocol in BOTH]
    with ExitStack() as opened:
        async with listening(*forwards, receiver=receiver):
            for _ in range(2 * module.ACCEPTS_PER_TURN + 3):
                opened.enter_context(client(V4, socket.SOCK_STREAM, port))
                opened.enter_context(client(V4, socket.SOCK_DGRAM, port)).send(b"x")
            count = 2 * module.ACCEPTS_PER_TURN + 3
            await eventually(lambda: True if len(receiver.connections) == count else None, "all connections")
            await eventually(lambda: True if len(receiver.datagrams) == count else None, "all datagrams")


async def test_without_a_guest_connections_are_reset_and_datagrams_dropped(family: Family) -> None:
    port = free_port()
    async with listening(PortForward(Protocol.TCP, port, 80), PortForward(Protocol.UDP, port, 80)):
        with client(family, socket.SOCK_STREAM, port) as stream, client(family, socket.SOCK_DGRAM, port) as datagrams:
            datagrams.send(b"x")
            await wait_all_tasks_blocked(0.001)
            with pytest.raises(ConnectionResetError):
                stream.recv(1)
            with pytest.raises(BlockingIOError):
                datagrams.recv(1)


async def test_receiver_that_fails_costs_its_connection_only(family: Family) -> None:
    receiver, port = Recorder(), free_port()
    receiver.error = OSError(errno.ENOSPC, "no watches left")
    async with listening(PortForward(Protocol.TCP, port, 80), receiver=receiver):
        with client(family, socket.SOCK_STREAM, port) as sock:
            await wait_all_tasks_blocked(0.001)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        receiver.error = None
        with client(family, socket.SOCK_STREAM, port):
            await eventually(lambda: True if receiver.connections else None, "a connection")


async def test_bound_to_one_address_only() -> None:
    receiver, port = Recorder(), free_port()
    forwards = (
        PortForward(Protocol.TCP, port, 1, IPv4Address("127.0.0.2")),
        PortForward(Protocol.TCP, port, 2, IPv6Address("::1")),
    )
    async with listening(*forwards, receiver=receiver):
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(("127.0.0.1", port))
        with client(V6, socket.SOCK_STREAM, port), socket.create_connection(("127.0.0.2", port)):
            await eventually(lambda: True if len(receiver.connections) == 2 else None, "two connections")
        assert sorted(target for _, _, target in receiver.connections) == [1, 2]


class TestOutOfDescriptors:
    async def test_pause_and_go_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
    ) -> None:
        receiver, port = Recorder(), free_port()
        accept, attempts = socket.socket.accept, []

        def fail(sock: socket.socket) -> tuple[socket.socket, object]:
            attempts.append(sock)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        async with listening(PortForward(Protocol.TCP, port, 80), receiver=receiver):
            monkeypatch.setattr(socket.socket, "accept", fail)
            with client(V4, socket.SOCK_STREAM, port):
                await wait_all_tasks_blocked(0.001)
                assert len(attempts) == 1
                assert "can't accept" in caplog.text
                mock_clock.jump(module.NO_DESCRIPTORS_PAUSE_S)
                await wait_all_tasks_blocked(0.001)
                assert len(attempts) == 2
                monkeypatch.setattr(socket.socket, "accept", accept)
                mock_clock.jump(module.NO_DESCRIPTORS_PAUSE_S)
                await wait_all_tasks_blocked(0.001)
                assert len(receiver.connections) == 1


async def test_connection_that_is_gone_before_it_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """accept(2): errors of the connection are reported by the listening socket, and concern nobody else."""
    receiver, port = Recorder(), free_port()
    accept, errors = socket.socket.accept, [errno.ECONNABORTED, errno.ENETDOWN]

    def sometimes(sock: socket.socket) -> tuple[socket.socket, object]:
        if errors:
            raise OSError(errors.pop(), "gone")
        return accept(sock)

    async with listening(PortForward(Protocol.TCP, port, 80), receiver=receiver):
        monkeypatch.setattr(socket.socket, "accept", sometimes)
        with client(V4, socket.SOCK_STREAM, port):
            await wait_all_tasks_blocked(0.001)
            assert len(receiver.connections) == 1


@pytest.mark.parametrize("protocol", BOTH)
def test_port_that_is_taken(family: Family, protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    port = free_port()
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(family.socket_family, kind) as other:
        if family is V6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("", port))
        if protocol is Protocol.TCP:
            other.listen()
        with pytest.raises(
            StartupError, match=rf"can't forward {protocol.name} port {port} of [0.:]+: Address already in use"
        ):
            PortListeners.bind([PortForward(protocol, free_port(), 1), PortForward(protocol, port, 80)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_port_that_is_taken_and_need_not_be_bound(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        forward = PortForward(Protocol.TCP, port, 80, IPv4Address("127.0.0.1"), must_bind=False)
        listeners = PortListeners.bind([forward])
        assert listeners.bound == []
        listeners.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"can't forward TCP port {port} of 127.0.0.1: Address already in use, going on without it" in caplog.text


def test_address_that_is_not_ours() -> None:
    with pytest.raises(StartupError, match="Cannot assign requested address"):
        PortListeners.bind([PortForward(Protocol.TCP, free_port(), 80, IPv4Address("203.0.113.77"))])


@pytest.mark.parametrize(("port", "hint"), [(22, True), (8022, False)])
def test_port_without_permission(monkeypatch: pytest.MonkeyPatch, port: int, hint: bool) -> None:
    def denied(_sock: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(StartupError) as caught:
        PortListeners.bind([PortForward(Protocol.TCP, port, 22)])
    assert str(caught.value).startswith(f"can't forward TCP port {port} of 0.0.0.0: Permission denied")
    assert ("ip_unprivileged_port_start" in str(caught.value)) is hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacking", [(V4,), (V6,), (V4, V6)])
def test_host_that_lacks_a_family(monkeypatch: pytest.MonkeyPatch, lacking: tuple[Family, ...]) -> None:
    bind = socket.socket.bind

    def bind_if_there(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family in {family.socket_family for family in lacking}:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", bind_if_there)
    forwards = [PortForward(Protocol.TCP, free_port() if len(lacking) < 2 else 30_000, 80)]
    if len(lacking) == 2:
        with pytest.raises(StartupError, match="Cannot assign"):
            PortListeners.bind(forwards)
    else:
        PortListeners.bind(forwards).close()


def test_family_that_the_guest_lacks_is_not_bound(family: Family) -> None:
    """Who connects there would be accepted, reset, and never try the other family (`localhost`)."""
    port = free_port()
    other = V6 if family is V4 else V4
    listeners = PortListeners.bind([PortForward(Protocol.TCP, port, 80)], [family.socket_family])
    try:
        socket.create_connection((family.local, port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other.local, port))
    finally:
        listeners.close()


def test_address_of_a_family_that_the_guest_lacks() -> None:
    with pytest.raises(StartupError, match=r"port \d+ of ::1: that address family is off"):
        PortListeners.bind([PortForward(Protocol.TCP, free_port(), 80, IPv6Address("::1"))], [V4.socket_family])
