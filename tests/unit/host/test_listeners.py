"""Forwarded ports: binding, and who gets what arrives."""

import errno
import logging
import os
import socket
import subprocess
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from forwarded_ports import BOTH, OURSELVES, Recorder, client, free_port, listening
from harness.stage import V4, V6, Family
from harness.waiting import eventually
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host import listeners as module
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import PortListeners
from trio_passt.host.opener import Opener


async def test_connection_goes_to_the_receiver(family: Family) -> None:
    receiver, port = Recorder(), free_port()
    async with listening(PortForward(Protocol.TCP, port, port, 80), receiver=receiver):
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
    forwards = [PortForward(protocol, port, port, 1) for protocol in BOTH]
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
    async with listening(PortForward(Protocol.TCP, port, port, 80), PortForward(Protocol.UDP, port, port, 80)):
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
    async with listening(PortForward(Protocol.TCP, port, port, 80), receiver=receiver):
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
        PortForward(Protocol.TCP, port, port, 1, IPv4Address("127.0.0.2")),
        PortForward(Protocol.TCP, port, port, 2, IPv6Address("::1")),
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

        async with listening(PortForward(Protocol.TCP, port, port, 80), receiver=receiver):
            monkeypatch.setattr(socket.socket, "accept", fail)
            with client(V4, socket.SOCK_STREAM, port):
                await eventually(lambda: attempts or None, "an attempt")
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

    async with listening(PortForward(Protocol.TCP, port, port, 80), receiver=receiver):
        monkeypatch.setattr(socket.socket, "accept", sometimes)
        with client(V4, socket.SOCK_STREAM, port):
            await eventually(lambda: receiver.connections or None, "a connection")
            assert len(receiver.connections) == 1


@pytest.mark.parametrize("protocol", BOTH)
def test_port_that_is_taken(family: Family, protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    port, free = free_port(), free_port()
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(family.socket_family, kind) as other:
        if family is V6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("", port))
        if protocol is Protocol.TCP:
            other.listen()
        with pytest.raises(StartupError) as caught:
            PortListeners.bind([PortForward(protocol, free, free, 1), PortForward(protocol, port, port, 80)])
    address = "0.0.0.0" if family is V4 else "::"
    text = f"can't forward {protocol.name} port {port} of {address}: Address already in use by {OURSELVES}"
    assert str(caught.value) == text
    assert len(os.listdir("/proc/self/fd")) == before


def test_port_that_is_taken_and_need_not_be_bound(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        forward = PortForward(Protocol.TCP, port, port, 80, IPv4Address("127.0.0.1"), binding=Binding.WANTED)
        listeners = PortListeners.bind([forward])
        assert listeners.bound == []
        listeners.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    refusal = f"can't forward TCP port {port} of 127.0.0.1: Address already in use by {OURSELVES}"
    assert f"{refusal}, going on without it" in caplog.text


def test_address_that_is_not_ours() -> None:
    with pytest.raises(StartupError, match=r"Cannot assign requested address: this host does not have it .*--freebind"):
        PortListeners.bind([PortForward(Protocol.TCP, 8022, 8022, 80, IPv4Address("203.0.113.77"))])


@pytest.mark.parametrize(("port", "hint"), [(22, True), (8022, False)])
def test_port_without_permission(monkeypatch: pytest.MonkeyPatch, port: int, hint: bool) -> None:
    def denied(_sock: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(StartupError) as caught:
        PortListeners.bind([PortForward(Protocol.TCP, port, port, 22)])
    assert str(caught.value).startswith(f"can't forward TCP port {port} of 0.0.0.0 and ::: Permission denied")
    assert ("ports below 1024 need CAP_NET_BIND_SERVICE" in str(caught.value)) is hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacking", [(V4,), (V6,), (V4, V6)])
def test_host_that_lacks_a_family(monkeypatch: pytest.MonkeyPatch, lacking: tuple[Family, ...]) -> None:
    bind = socket.socket.bind

    def bind_if_there(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family in {family.socket_family for family in lacking}:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        bind(sock, address)

    port = free_port() if len(lacking) < 2 else 30_000
    monkeypatch.setattr(socket.socket, "bind", bind_if_there)
    forwards = [PortForward(Protocol.TCP, port, port, 80)]
    if len(lacking) == 2:
        with pytest.raises(StartupError, match="Cannot assign"):
            PortListeners.bind(forwards)
    else:
        PortListeners.bind(forwards).close()


def test_family_that_the_guest_lacks_is_not_bound(family: Family) -> None:
    """Who connects there would be accepted, reset, and never try the other family (`localhost`)."""
    port = free_port()
    other = V6 if family is V4 else V4
    listeners = PortListeners.bind([PortForward(Protocol.TCP, port, port, 80)], [family.socket_family])
    try:
        socket.create_connection((family.local, port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other.local, port))
    finally:
        listeners.close()


def test_address_of_a_family_that_the_guest_lacks() -> None:
    with pytest.raises(StartupError, match=r"TCP port 8022 of ::1: IPv6 is off, by an option or because"):
        PortListeners.bind([PortForward(Protocol.TCP, 8022, 8022, 80, IPv6Address("::1"))], [V4.socket_family])


class TestManyThatAreRefused:
    """Each is said, in as few lines as that takes."""

    def refused(self, *forwards: PortForward) -> list[str]:
        with pytest.raises((StartupError, ExceptionGroup)) as caught:
            PortListeners.bind(forwards)
        errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
        assert {type(error) for error in errors} == {StartupError}
        return [str(error) for error in errors]

    def test_neighbours_are_one_line(self, namespace: None) -> None:
        with ExitStack() as opened:
            for port in (2001, 2002, 2004):
                opened.enter_context(socket.create_server(("", port)))
                opened.enter_context(socket.create_server(("::", port), family=socket.AF_INET6))
            sock = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 2004))
            assert self.refused(
                PortForward(Protocol.TCP, 2000, 2009, 80), PortForward(Protocol.UDP, 2000, 2009, 80)
            ) == [
                f"can't forward TCP ports 2001-2002 of 0.0.0.0 and ::: Address already in use by {OURSELVES}",
                f"can't forward TCP port 2004 of 0.0.0.0 and ::: Address already in use by {OURSELVES}",
                f"can't forward UDP port 2004 of 0.0.0.0: Address already in use by {OURSELVES}",
            ]

    def test_lines_that_are_too_many_are_counted(self, namespace: None) -> None:
        with ExitStack() as opened:
            for port in range(2000, 2060, 2):
                opened.enter_context(socket.create_server(("", port)))
            lines = self.refused(PortForward(Protocol.TCP, 2000, 2060, 80))
        assert len(lines) == 21
        assert lines[-1] == "can't forward others for such reasons, which would be 10 lines"

    def test_addresses_are_told_apart(self, namespace: None) -> None:
        lines = self.refused(
            PortForward(Protocol.TCP, 2000, 2000, 80, IPv4Address("192.0.2.1")),
            PortForward(Protocol.TCP, 2000, 2000, 80, IPv6Address("2001:db8::1")),
        )
        where = " and ".join(["192.0.2.1", "2001:db8::1"])
        hint = "this host does not have it (with --freebind it may come later)"
        assert lines == [f"can't forward TCP port 2000 of {where}: Cannot assign requested address: {hint}"]


class TestInterface:
    @pytest.mark.parametrize("protocol", BOTH)
    def test_that_is_not_there(self, protocol: Protocol) -> None:
        with pytest.raises(StartupError) as caught:
            PortListeners.bind([PortForward(protocol, 2000, 2000, 80, interface="nosuch0")])
        hint = "No such device: this host has no interface 'nosuch0'"
        assert str(caught.value) == (
            f"can't forward {protocol.name} port 2000 of 0.0.0.0%nosuch0 and ::%nosuch0: {hint}"
        )

    def test_that_takes_a_privilege_on_old_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_opener: Opener, _port: int) -> socket.socket:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(Opener, "open", refuse)
        with pytest.raises(StartupError, match=r"Operation not permitted: .* CAP_NET_RAW before Linux 5\.7"):
            PortListeners.bind([PortForward(Protocol.TCP, 2000, 2000, 80, interface="lo")])

    def test_one_port_of_several(self, namespace: None) -> None:
        """The kernel takes them for different ones."""
        subprocess.run(["ip", "link", "add", "test0", "type", "veth", "peer", "test1"], check=True)
        forwards = [PortForward(Protocol.TCP, 2000, 2000, 80, interface=name) for name in ("lo", "test0", "test1")]
        listeners = PortListeners.bind(forwards)
        assert listeners.descriptors == 6
        listeners.close()

    def test_link_local_address_is_one_of_an_interface(self, namespace: None) -> None:
        subprocess.run(["ip", "link", "add", "test0", "type", "veth", "peer", "test1"], check=True)
        for command in ("address add fe80::7 dev test0 nodad", "link set test0 up", "link set test1 up"):
            subprocess.run(["ip", *command.split()], check=True)
        address = IPv6Address("fe80::7")
        listeners = PortListeners.bind([PortForward(protocol, 2000, 2000, 80, address, "test0") for protocol in BOTH])
        assert listeners.descriptors == 2
        assert listeners.udp_port(80, IPv6Address("2001:db8::1").packed) is None
        assert listeners.udp_port(80, IPv6Address("fe80::8").packed) is None  # on which side of the host would it be?
        listeners.close()
        with pytest.raises(StartupError, match=r"of fe80::7%test1: Cannot assign"):
            PortListeners.bind([PortForward(Protocol.TCP, 2000, 2000, 80, address, "test1")])


@pytest.mark.parametrize("protocol", BOTH)
@pytest.mark.parametrize("address", [IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9")])
def test_address_that_may_come_later(address: IPv4Address | IPv6Address, protocol: Protocol) -> None:
    forward = PortForward(protocol, 2000, 2000, 80, address)
    with pytest.raises(StartupError):
        PortListeners.bind([forward])
    listeners = PortListeners.bind([forward], freebind=True)
    assert listeners.bound == [forward]
    listeners.close()


def test_range_goes_to_its_targets(namespace: None) -> None:
    forward = PortForward(Protocol.UDP, 2000, 2009, 3000)
    listeners = PortListeners.bind([forward])
    for target in (2999, 3010):
        assert listeners.udp_port(target, bytes(4)) is None
    for target in range(3000, 3010):
        port = listeners.udp_port(target, bytes(4))
        assert port is not None
        assert port.socket.getsockname()[1] == target - 1000
    assert listeners.bound == [forward]
    assert listeners.descriptors == 20
    listeners.close()
