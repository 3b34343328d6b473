"""Forwarded ports while the guest gets another address family: the host has it now."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
from forwarded_ports import BOTH, OURSELVES, Recorder, client, free_port
from harness.stage import V4, V6, Family
from harness.waiting import eventually

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.host import binder
from trio_passt.host.listeners import PortListeners

KIND = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders of ports are found however busy the machine is."""
    monkeypatch.setattr(binder, "FIND_HOLDERS_WITHIN_S", 30)


@contextmanager
def bound(*forwards: PortForward, families: tuple[Family, ...]) -> Iterator[PortListeners]:
    listeners = PortListeners.bind(forwards, [family.socket_family for family in families])
    try:
        yield listeners
    finally:
        listeners.close()


def is_bound(family: Family, protocol: Protocol, port: int) -> bool:
    """Whether nobody else can have this port there."""
    with socket.socket(family.socket_family, KIND[protocol]) as sock:
        if family is V6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((family.local, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
        return False


@pytest.mark.parametrize("protocol", BOTH)
def test_bound_in_the_new_family(family: Family, protocol: Protocol) -> None:
    port, other = free_port(), V6 if family is V4 else V4
    with bound(PortForward(protocol, port, port, 80), families=(other,)) as listeners:
        assert not is_bound(family, protocol, port)
        listeners.add_families([V4.socket_family, V6.socket_family])
        assert is_bound(family, protocol, port)
        assert is_bound(other, protocol, port)
        assert listeners.bound == [PortForward(protocol, port, port, 80)]
    assert not is_bound(family, protocol, port)  # closed with all others


def test_what_it_has_already_is_left_alone() -> None:
    port = free_port()
    with bound(PortForward(Protocol.TCP, port, port, 80), families=(V4, V6)) as listeners:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            listeners.add_families([V4.socket_family, V6.socket_family])
            listeners.add_families([V4.socket_family])
        assert len(os.listdir("/proc/self/fd")) == before


def test_family_that_the_guest_lost_for_a_while_is_not_new(caplog: pytest.LogCaptureFixture) -> None:
    """Ports stay bound, and so does the knowledge of it."""
    port = free_port()
    with bound(PortForward(Protocol.TCP, port, port, 80), families=(V4, V6)) as listeners:
        before = len(os.listdir("/proc/self/fd"))
        listeners.add_families([])
        listeners.add_families([V6.socket_family])
        assert is_bound(V4, Protocol.TCP, port)
        assert len(os.listdir("/proc/self/fd")) == before
    assert not caplog.records


def test_forward_of_one_address_is_of_its_family_only(caplog: pytest.LogCaptureFixture) -> None:
    ports = free_port(), free_port()
    forwards = [
        PortForward(Protocol.TCP, ports[0], ports[0], 80, IPv4Address("127.0.0.1")),
        PortForward(Protocol.TCP, ports[1], ports[1], 80),
    ]
    with bound(*forwards, families=(V4,)) as listeners:
        listeners.add_families([V4.socket_family, V6.socket_family])
        assert is_bound(V4, Protocol.TCP, ports[0])
        assert not is_bound(V6, Protocol.TCP, ports[0])
        assert is_bound(V6, Protocol.TCP, ports[1])
    assert not caplog.records


async def test_connections_and_datagrams_by_the_new_family_arrive() -> None:
    receiver, port = Recorder(), free_port()
    with bound(*(PortForward(protocol, port, port, 80) for protocol in BOTH), families=(V4,)) as listeners:
        listeners.receiver = receiver
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listeners.run)
            listeners.add_families([V4.socket_family, V6.socket_family])
            with client(V6, socket.SOCK_STREAM, port), client(V6, socket.SOCK_DGRAM, port) as datagrams:
                datagrams.send(b"hello")
                await eventually(lambda: receiver.connections or None, "a connection")
                (datagram,) = await receiver.receives(b"hello")
                assert datagram.local == "::1"
            assert listeners.udp_port(80, IPv6Address("::1").packed) is datagram.port
            nursery.cancel_scope.cancel()
        receiver.close()


@pytest.mark.parametrize("binding", [Binding.REQUIRED, Binding.WANTED])
def test_port_that_is_taken_there_is_said_and_the_others_are_bound(
    binding: Binding, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason to end a daemon that runs."""
    taken, free = free_port(), free_port()
    forwards = [PortForward(Protocol.TCP, port, port, 80, binding=binding) for port in (taken, free)]
    with bound(*forwards, families=(V4,)) as listeners, socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", taken))
        other.listen()
        listeners.add_families([V6.socket_family])
        assert is_bound(V6, Protocol.TCP, free)
        assert listeners.bound == forwards
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"can't forward TCP port {taken} of ::: Address already in use by {OURSELVES}, going on without it",
        )
    ]


def test_forward_that_could_not_be_bound_before_is_one_that_is_now(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    forward = PortForward(Protocol.TCP, port, port, 80, binding=Binding.WANTED)
    with socket.create_server(("0.0.0.0", port)), bound(forward, families=(V4,)) as listeners:
        assert listeners.bound == []
        listeners.add_families([V6.socket_family])
        assert listeners.bound == [forward]
    assert len(caplog.records) == 1  # of the time before


class TestPortThatWasRefused:
    """By name: it is tried again with each change of the guest's network."""

    @pytest.mark.parametrize("binding", [Binding.REQUIRED, Binding.WANTED])
    def test_in_a_family_that_came_later(self, binding: Binding, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        port = free_port()
        with bound(PortForward(Protocol.TCP, port, port, 80, binding=binding), families=(V4,)) as listeners:
            with socket.create_server(("::1", port), family=socket.AF_INET6):
                listeners.add_families([V4.socket_family, V6.socket_family])
                caplog.clear()
                listeners.add_families([V4.socket_family, V6.socket_family])
                assert not caplog.records  # nothing new is to be said
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                listeners.add_families([V4.socket_family, V6.socket_family])
            assert len(os.listdir("/proc/self/fd")) == before + 1
            assert is_bound(V6, Protocol.TCP, port)
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.INFO, f"TCP port {port} of :: is forwarded now")
        ]

    def test_at_start(self, caplog: pytest.LogCaptureFixture) -> None:
        port = free_port()
        forward = PortForward(Protocol.UDP, port, port, 80, binding=Binding.WANTED)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", port))
            listeners = PortListeners.bind([forward])
        try:
            assert listeners.udp_port(80, IPv4Address("127.0.0.1").packed) is None
            listeners.add_families([])
            assert listeners.udp_port(80, IPv4Address("127.0.0.1").packed) is not None
            assert listeners.descriptors == 2
        finally:
            listeners.close()
        assert len(caplog.records) == 1


@pytest.mark.parametrize("protocol", BOTH)
def test_nothing_is_left_open_of_what_could_not_be_bound(protocol: Protocol) -> None:
    port = free_port()
    with bound(PortForward(protocol, port, port, 80), families=(V4,)) as listeners:
        with socket.socket(socket.AF_INET6, KIND[protocol]) as other:
            other.bind(("::1", port))
            before = len(os.listdir("/proc/self/fd"))
            listeners.add_families([V6.socket_family])
            assert len(os.listdir("/proc/self/fd")) == before
        assert listeners.udp_port(80, IPv6Address("::1").packed) is None
