"""Forwarded ports of a test's own, and a receiver that keeps what arrives at them."""

import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from attrs import frozen
from harness.ports import PORTS
from harness.stage import Family
from harness.waiting import eventually
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import PortListeners, UdpPort
from trio_passt.wire.datagrams import Train

BOTH = [Protocol.TCP, Protocol.UDP]

OURSELVES = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
"""This process as the holder of a port."""


def free_port() -> int:
    """A port that nobody has, in any family and protocol; outside of what the kernel gives to others."""
    for port in itertools.islice(PORTS, 100):
        forwards = [PortForward(protocol, port, port, 1) for protocol in BOTH]
        try:
            PortListeners.bind(forwards).close()
        except (StartupError, ExceptionGroup):
            continue
        return port
    pytest.fail("no free port")


@frozen
class Datagram:
    """One that arrived."""

    port: UdpPort
    peer: Endpoint
    local: str
    payload: bytes


class Recorder:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.connections: list[tuple[socket.socket, Endpoint, int]] = []
        self.datagrams: list[Datagram] = []
        self.datagram_errors: list[tuple[UdpPort, DatagramError]] = []
        self.overflows: list[int] = []
        self.error: Exception | None = None
        self.is_full = False
        self.callbacks: list[Callable[[], None]] = []

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        if self.error:
            raise self.error
        self.connections.append((host, peer, target))

    def on_datagrams(
        self, port: UdpPort, peer: Endpoint, local: bytes, buffer: memoryview, trains: list[Train]
    ) -> None:
        if self.error:
            raise self.error
        self.datagrams += [
            Datagram(port, peer, str(ip_address(local)), bytes(payload))
            for train in trains
            for payload in train.payloads(buffer)
        ]

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> None:
        self.datagram_errors.append((port, error))

    def on_overflow(self, datagrams: int) -> None:
        self.overflows.append(datagrams)

    def when_ready(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def is_ready(self) -> None:
        """There is room again."""
        self.is_full = False
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    async def receives(self, *payloads: bytes) -> list[Datagram]:
        """These datagrams arrive, no others, in this order; they are taken."""
        await eventually(lambda: True if len(self.datagrams) >= len(payloads) else None, "datagrams")
        await wait_all_tasks_blocked(0.001)
        datagrams, self.datagrams = self.datagrams, []
        assert [datagram.payload for datagram in datagrams] == list(payloads)
        return datagrams

    def close(self) -> None:
        for host, _, _ in self.connections:
            host.close()


@asynccontextmanager
async def listening(*forwards: PortForward, receiver: Recorder | None = None) -> AsyncIterator[PortListeners]:
    listeners = PortListeners.bind(forwards)
    listeners.receiver = receiver
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listeners.run)
        try:
            yield listeners
        finally:
            nursery.cancel_scope.cancel()
    listeners.close()
    if receiver:
        receiver.close()


def client(family: Family, kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(family.socket_family, kind)
    sock.connect((family.local, port))
    sock.setblocking(False)
    return sock
