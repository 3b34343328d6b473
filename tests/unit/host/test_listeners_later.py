"""Forwards that are added and taken away while the daemon runs; and ports of another side."""

import gc
import os
import socket
import time
from ipaddress import IPv4Address, IPv6Address

import pytest
from attrs import evolve
from forwarded_ports import BOTH, OURSELVES, Recorder, client, free_port, listening
from harness.stage import V4, V6, Family
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.listeners import PortListeners
from trio_passt.host.opener import Opener
from trio_passt.host.side import Here

TCP, UDP = Protocol.TCP, Protocol.UDP


async def test_added_one_is_served_and_one_taken_away_is_refused(family: Family) -> None:
    receiver, port = Recorder(), free_port()
    async with listening(receiver=receiver) as listeners:
        forwards = [PortForward(protocol, port, port, 80) for protocol in BOTH]
        for forward in forwards:
            listeners.add(forward)
        assert listeners.bound == forwards
        assert listeners.descriptors == 4
        with client(family, socket.SOCK_STREAM, port), client(family, socket.SOCK_DGRAM, port) as datagrams:
            datagrams.send(b"x")
            await receiver.receives(b"x")
            await eventually(lambda: receiver.connections or None, "a connection")
            for forward in forwards:
                assert listeners.remove(forward)
                assert not listeners.remove(forward)
            assert listeners.bound == []
            assert listeners.descriptors == 0
            host, _, _ = receiver.connections[0]
            assert host.fileno() >= 0, "what was accepted goes on"
            with socket.socket(family.socket_family) as late, pytest.raises(ConnectionRefusedError):
                late.connect((family.local, port))
        assert listeners.udp_port(80, family.gateway_packed) is None


def test_range_is_had_whole_or_not_at_all() -> None:
    port = free_port()
    listeners = PortListeners.bind([])
    with socket.create_server(("127.0.0.1", port)):
        before = len(os.listdir("/proc/self/fd"))
        forward = PortForward(TCP, port, port + 2, 80, IPv4Address("127.0.0.1"))
        with pytest.raises(StartupError) as caught:
            listeners.add(forward, holder_within_s=30)
        assert str(caught.value) == (
            f"can't forward TCP port {port} of 127.0.0.1: Address already in use by {OURSELVES}"
        )
        assert len(os.listdir("/proc/self/fd")) == before
        listeners.add(evolve(forward, binding=Binding.WANTED))
        assert [run.ports for run in listeners.bound] == [range(port + 1, port + 3)]
    listeners.add(forward_again := evolve(forward, last=port))
    assert listeners.remove(forward_again)
    listeners.close()


def test_reasons_are_one_line() -> None:
    port = free_port()
    listeners = PortListeners.bind([])
    forward = PortForward(TCP, port, port + 4, 80, IPv4Address("127.0.0.1"))
    with (
        socket.create_server(("127.0.0.1", port)),
        socket.create_server(("127.0.0.1", port + 2)),
        pytest.raises(StartupError) as caught,
    ):
        listeners.add(forward, holder_within_s=0.0)
    assert str(caught.value) == "; ".join(
        f"can't forward TCP port {number} of 127.0.0.1: Address already in use" for number in (port, port + 2)
    )
    listeners.add(forward)
    with pytest.raises(StartupError, match="it is forwarded already"):
        listeners.add(forward)
    assert len(listeners.bound) == 1
    listeners.close()


def test_family_that_the_guest_lacks() -> None:
    listeners = PortListeners.bind([], [V4.socket_family])
    with pytest.raises(StartupError, match="IPv6 is off"):
        listeners.add(PortForward(TCP, 8022, 8022, 80, IPv6Address("::1")))
    assert listeners.bound == []
    forward = PortForward(TCP, port := free_port(), port, 80)
    listeners.add(forward)
    assert listeners.descriptors == 1
    listeners.add_families([V4.socket_family, V6.socket_family])
    assert listeners.descriptors == 2
    assert listeners.remove(forward)
    assert listeners.descriptors == 0
    listeners.add_families([V4.socket_family, V6.socket_family])
    assert listeners.descriptors == 0
    listeners.close()


def test_descriptors_that_are_given_back_are_to_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections' share stays theirs, however often ports come and go."""
    listeners = PortListeners.bind([])
    listeners._binder._left = 5
    wanted = PortForward(TCP, port := free_port(), port, 80, IPv4Address("127.0.0.1"), binding=Binding.WANTED)
    for _ in range(12):
        listeners.add(wanted)
        assert listeners.descriptors == 1
        assert listeners.remove(wanted)
    assert listeners._binder._left == 5
    listeners.close()


def test_wildcard_address_reaches_all() -> None:
    """`0.0.0.0` is as good as no address, for what the guest sends from there."""
    port = free_port()
    listeners = PortListeners.bind([PortForward(UDP, port, port, 80, IPv4Address("0.0.0.0"))])
    for destination in ("127.0.0.1", "192.0.2.1"):
        assert listeners.udp_port(80, IPv4Address(destination).packed) is not None
    listeners.close()


def test_own_inodes_are_known() -> None:
    listeners = PortListeners.bind([PortForward(TCP, port := free_port(), port, 80)])
    assert len(listeners.inodes) == 2
    forward = PortForward(UDP, port, port, 80)
    listeners.add(forward)
    sockets = [port.socket for port in listeners.named]
    assert listeners.inodes == {os.fstat(sock.fileno()).st_ino for sock in sockets}
    listeners.remove(forward)
    assert len(listeners.inodes) == 2
    listeners.close()


@pytest.mark.parametrize("protocol", BOTH)
def test_cost_does_not_grow_with_all_ports(namespace: None, protocol: Protocol) -> None:
    """One port among very many comes and goes, and what is bound is told, in no time."""
    listeners = PortListeners.bind([PortForward(TCP, 1, 8000, 1, binding=Binding.SPARE)])
    many = listeners.descriptors
    assert many > 10_000
    assert len(listeners.bound) == 1
    forward = PortForward(protocol, 9000, 9000, 80)
    gc.disable()
    since = time.thread_time()
    for _ in range(100):
        listeners.add(forward)
        assert len(listeners.bound) == 2
        listeners.remove(forward)
    spent = time.thread_time() - since
    gc.enable()
    assert listeners.descriptors == many
    assert spent < 0.2, "2 ms each; to look at 16,000 ports would take as long"
    listeners.close()


class _Recording(Here):
    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []

    def open(self, opener: Opener, port: int) -> socket.socket:
        self.opened.append((opener.where, port))
        return super().open(opener, port)


async def test_other_side_makes_the_sockets_on_its_loopback() -> None:
    port, side = free_port(), _Recording()
    forwards = [PortForward(TCP, port, port, 80), PortForward(UDP, port, port, 80, IPv4Address("127.0.0.53"))]
    listeners = PortListeners.bind(forwards, side=side, on_loopback=True)
    assert side.opened == [
        ("127.0.0.1 in the namespace", port),
        ("::1 in the namespace", port),
        ("127.0.0.53 in the namespace", port),
    ]
    assert [each.socket.getsockname()[0] for each in listeners.named] == ["127.0.0.1", "::1", "127.0.0.53"]
    listeners.close()


def test_loopback_that_is_not_up_yet() -> None:
    """A namespace's is down at first; its ports are bound all the same."""
    from harness.own_namespace import _check, _libc

    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(0x40000000))
        listeners = PortListeners.bind([PortForward(TCP, 53, 53, 53)], side=Here(), on_loopback=True)
        assert listeners.descriptors == 2
        listeners.close()
    finally:
        _check(_libc.setns(here, 0x40000000))
        os.close(here)


def test_refusal_at_the_other_side_says_so() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StartupError) as caught:
        PortListeners.bind([PortForward(TCP, port, port, 80)], side=Here(), on_loopback=True)
    assert str(caught.value) == f"can't forward TCP port {port} of 127.0.0.1 in the namespace: Address already in use"


async def test_options_of_a_connection_are_set_once_and_inherited() -> None:
    receiver, port = Recorder(), free_port()
    async with listening(PortForward(TCP, port, port, 80), receiver=receiver):
        for count in (1, 2):
            with client(V4, socket.SOCK_STREAM, port):
                await eventually(lambda count=count: len(receiver.connections) == count or None, "a connection")
        await wait_all_tasks_blocked()
        for host, _, _ in receiver.connections:
            assert host.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            assert host.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert host.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
