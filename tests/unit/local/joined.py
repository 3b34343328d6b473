"""Local flows in the test's own process: clients and servers at loopback, and a session between them."""

import fcntl
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import pytest
import trio
from attrs import frozen
from harness.own_namespace import _check, _libc
from harness.ports import PORTS
from harness.stage import Family, on_stage
from harness.waiting import eventually
from trio.testing import MockClock

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.flow.session import Session
from trio_passt.flow.table import FlowLimit
from trio_passt.host.listeners import PortListeners
from trio_passt.host.opener import Opener
from trio_passt.host.side import Here, Socket
from trio_passt.local.flows import Means
from trio_passt.local.pipes import PipePool
from trio_passt.local.receiver import ToHost

CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1  # netdevice(7)


class Elsewhere:
    """Another network namespace, with loopback up: a `Side`, by a thread that goes there and comes back."""

    def __init__(self) -> None:
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            self._there = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
        finally:
            _check(_libc.setns(self._here, CLONE_NEWNET))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is opened meanwhile is there."""
        _check(_libc.setns(self._there, CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(self._here, CLONE_NEWNET))

    def socket(self, family: int, kind: int) -> Socket:
        with self.entered():
            return Here().socket(family, kind)

    def open(self, opener: Opener, port: int) -> Socket:
        with self.entered():
            return opener.open(port)

    def diagnostics(self) -> Socket:
        with self.entered():
            return Here().diagnostics()

    def proc_net(self, name: str) -> bytes:
        with self.entered(), open(f"/proc/thread-self/net/{name}", "rb") as file:
            return file.read()

    def close(self) -> None:
        os.close(self._here)
        os.close(self._there)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    side = Elsewhere()
    try:
        yield side
    finally:
        side.close()


@frozen
class Joined:
    """Ports that lead to servers at this host's loopback."""

    session: Session
    receiver: ToHost
    listeners: PortListeners
    pool: PipePool
    limit: FlowLimit
    nursery: trio.Nursery

    async def is_idle(self) -> None:
        """All flows have ended."""
        flows = self.receiver.flows
        await eventually(lambda: True if not len(flows.tcp) and not len(flows.udp) else None, "the end of all flows")
        assert self.limit.count == 0
        assert not any(pipe.held_bytes for pipe in self.pool._empty)


@asynccontextmanager
async def joined(*forwards: PortForward, limit: int = 1000, most_udp: int = 100) -> AsyncIterator[Joined]:
    """A guest session that passes on what comes to these ports, all of them of this host's loopback."""
    async with on_stage() as stage:
        listeners = PortListeners.bind(forwards, on_loopback=True)
        pool, tcp_limit = PipePool(), FlowLimit(limit, "TCP")
        try:
            async with trio.open_nursery() as nursery:
                receiver = ToHost(Means(stage.session, nursery, tcp_limit, most_udp, pool), Here())
                listeners.receiver = receiver
                stage.session.readiness.include(listeners.readiness)
                nursery.start_soon(listeners.run)
                yield Joined(stage.session, receiver, listeners, pool, tcp_limit, nursery)
                nursery.cancel_scope.cancel()
        finally:
            listeners.receiver = None
            stage.session.readiness.exclude(listeners.readiness)
            listeners.close()
            pool.close()


def free_port() -> int:
    """A port that nobody has at loopback, in any family and protocol; outside of what the kernel gives to others."""
    for port in itertools.islice(PORTS, 100):
        forwards = [PortForward(protocol, port, port, 1) for protocol in Protocol]
        try:
            PortListeners.bind(forwards, on_loopback=True).close()
        except (StartupError, ExceptionGroup):
            continue
        return port
    pytest.fail("no free port")


def jump(seconds: float) -> None:
    """The clock that stands still moves on."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    clock.jump(seconds)


def leads_to(protocol: Protocol, port: int, target: int) -> PortForward:
    return PortForward(protocol, port, port, target)


def server_at(family: Family, kind: socket.SocketKind = socket.SOCK_STREAM) -> Socket:
    """Listening, or bound, at a port of the kernel's choice."""
    sock = socket.socket(family.socket_family, kind)
    sock.bind((family.local, 0))
    if kind is socket.SOCK_STREAM:
        sock.listen()
    sock.setblocking(False)
    return sock


def packed(text: str) -> bytes:
    return ip_address(text).packed
