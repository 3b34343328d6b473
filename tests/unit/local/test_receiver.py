"""Which connections go past the tap, and where they go."""

import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
from harness.own_namespace import has_address
from harness.stage import V4, V6, Family, on_stage
from harness.waiting import eventually
from joined import Elsewhere, elsewhere, packed

from trio_passt.config import PortForward, Protocol
from trio_passt.flow.session import Session
from trio_passt.flow.table import FlowLimit
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import PortListeners, UdpPort
from trio_passt.host.side import Here
from trio_passt.local.flows import Means
from trio_passt.local.pipes import PipePool
from trio_passt.local.receiver import ToGuest
from trio_passt.wire.datagrams import Train

TCP, UDP = Protocol.TCP, Protocol.UDP


class Others:
    """Who takes what is not local."""

    is_full = False

    def __init__(self) -> None:
        self.connections: list[tuple[Endpoint, int]] = []
        self.datagrams: list[Endpoint] = []
        self.errors = self.overflowed = 0

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        host.close()
        self.connections.append((peer, target))

    def on_datagrams(self, _port: UdpPort, peer: Endpoint, _local: bytes, _buffer: memoryview, _: list[Train]) -> None:
        self.datagrams.append(peer)

    def on_datagram_error(self, _port: UdpPort, _error: DatagramError) -> None:
        self.errors += 1

    def on_overflow(self, datagrams: int) -> None:
        self.overflowed += datagrams

    def when_ready(self, callback: Callable[[], None]) -> None:
        callback()


class Forwarding:
    def __init__(
        self, session: Session, inside: Elsewhere, others: Others, receiver: ToGuest, listeners: PortListeners
    ) -> None:
        self.listeners = listeners
        self.session = session
        self.inside = inside
        self.others = others
        self.receiver = receiver

    def server(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = self.inside.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        sock.bind((address, 80))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


@asynccontextmanager
async def forwarding(*, to_loopback: bool = False, has_addresses: bool = True) -> AsyncIterator[Forwarding]:
    """Ports 8080 of this side lead to ports 80 of the guest's namespace."""
    with ExitStack() as opened:
        inside = opened.enter_context(elsewhere())
        with inside.entered():
            for family in (V4, V6) if has_addresses else ():
                has_address(f"{family.guest}/128" if family is V6 else f"{family.guest}/32")
        listeners = PortListeners.bind([PortForward(protocol, 8080, 8080, 80) for protocol in Protocol])
        opened.callback(listeners.close)
        async with on_stage() as stage, trio.open_nursery() as nursery:
            others = Others()
            means = Means(stage.session, nursery, FlowLimit(100, "TCP"), 100, PipePool())
            receiver = ToGuest(means, inside, others, to_loopback=to_loopback)
            listeners.receiver = receiver
            nursery.start_soon(listeners.run)
            yield Forwarding(stage.session, inside, others, receiver, listeners)
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def apart(namespace: None, standing_clock: None) -> None:
    """In a namespace of its own."""


async def accepted(listener: socket.socket) -> tuple[socket.socket, str]:
    def look() -> tuple[socket.socket, str] | None:
        try:
            sock, name = listener.accept()
        except BlockingIOError:
            return None
        return sock, name[0]

    return await eventually(look, "a connection")


async def test_loopback_goes_to_the_guests_own_address(family: Family) -> None:
    async with forwarding() as both:
        with (
            both.server("0.0.0.0" if family is V4 else "::") as listener,
            socket.create_connection((family.local, 8080)),
        ):
            server, peer = await accepted(listener)
            with server:
                assert peer == server.getsockname()[0] == family.guest
        assert both.others.connections == []


async def test_or_to_its_loopback(family: Family) -> None:
    async with forwarding(to_loopback=True, has_addresses=False) as both:
        with both.server(family.local) as listener, socket.create_connection((family.local, 8080)):
            server, peer = await accepted(listener)
            server.close()
            assert peer == family.local


async def test_or_to_the_very_loopback_address() -> None:
    async with forwarding(to_loopback=True) as both:
        with both.server("127.0.0.53") as listener, socket.create_connection(("127.0.0.53", 8080)):
            server, _ = await accepted(listener)
            server.close()


async def test_others_go_by_the_tap(family: Family) -> None:
    """Here: the host's own clients that do not use loopback."""
    own = "192.0.2.2" if family is V4 else "2001:db8::2"
    has_address(f"{own}/{32 if family is V4 else 128}")
    async with forwarding() as both:
        with socket.create_connection((own, 8080)):
            await eventually(lambda: both.others.connections or None, "the connection")
        ((peer, target),) = both.others.connections
        assert (peer.address, target) == (packed(own), 80)
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
            client.connect((own, 8080))
            client.send(b"x")
            await eventually(lambda: both.others.datagrams or None, "the datagram")


async def test_namespace_without_address_is_asked_by_the_tap(family: Family) -> None:
    """It may get one while the tap's flow asks again and again."""
    async with forwarding(has_addresses=False) as both:
        with socket.create_connection((family.local, 8080)):
            await eventually(lambda: both.others.connections or None, "the connection")
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
            client.connect((family.local, 8080))
            client.send(b"x")
            await eventually(lambda: both.others.datagrams or None, "the datagram")
        assert len(both.receiver.flows.tcp) == len(both.receiver.flows.udp) == 0


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ETIMEDOUT, errno.EMFILE, errno.EPROTO])
async def test_side_that_gives_no_socket_is_asked_by_the_tap(
    family: Family, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent is gone, or silent."""

    def refuse(_self: Elsewhere, _family: int, _kind: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    async with forwarding() as both:
        monkeypatch.setattr(Elsewhere, "socket", refuse)
        with socket.create_connection((family.local, 8080)):
            await eventually(lambda: both.others.connections or None, "the connection")
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
            client.connect((family.local, 8080))
            client.send(b"x")
            await eventually(lambda: both.others.datagrams or None, "the datagram")
        assert len(both.receiver.flows.tcp) == len(both.receiver.flows.udp) == 0


def has_a_tap(side: Elsewhere, family: Family) -> None:
    """Its address is on that, and loopback is down."""
    address = f"{family.guest}/{24 if family is V4 else 64}"
    with side.entered():
        for command in (
            "link set lo down",
            "tuntap add tap0 mode tap",
            f"address add {address} dev tap0 {'nodad' if family is V6 else ''}",
            "link set tap0 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)


async def test_namespace_whose_loopback_is_down_is_asked_by_the_tap(family: Family) -> None:
    """Its kernel would drop what is for itself, and the client would wait for two minutes."""
    async with forwarding(has_addresses=False) as both:
        has_a_tap(both.inside, family)
        with socket.create_connection((family.local, 8080)):
            await eventually(lambda: both.others.connections or None, "the connection")


async def test_guest_with_another_address_is_asked_there() -> None:
    async with forwarding() as both:
        with both.inside.entered():
            has_address("198.51.100.77/32")
        both.session.guest.learn_address(packed("198.51.100.77"))
        with both.server("0.0.0.0") as listener, socket.create_connection((V4.local, 8080)):
            server, _ = await accepted(listener)
            with server:
                assert server.getsockname()[0] == "198.51.100.77"


async def test_datagrams_of_loopback(family: Family) -> None:
    async with forwarding() as both:
        with (
            both.server("0.0.0.0" if family is V4 else "::", socket.SOCK_DGRAM) as server,
            socket.socket(family.socket_family, socket.SOCK_DGRAM) as client,
        ):
            client.connect((family.local, 8080))
            client.setblocking(False)
            client.send(b"question")

            def look(sock: socket.socket) -> tuple[bytes, tuple[str, int]] | None:
                try:
                    return sock.recvfrom(100)
                except BlockingIOError:
                    return None

            question, peer = await eventually(lambda: look(server), "the question")
            assert (question, peer[0]) == (b"question", family.guest)
            server.sendto(b"answer", peer)
            answer, _ = await eventually(lambda: look(client), "the answer")
            assert answer == b"answer"
            (flow,) = both.receiver.flows.udp
            status = flow.status()
            assert (status.key.guest, status.key.guest_port) == (family.guest_packed, 80)
            assert (status.from_guest, status.to_guest, status.is_opened_by_guest) == (1, 1, False)
            assert status.on_host == Endpoint.of(client.getsockname())


async def test_what_concerns_others_is_theirs() -> None:
    async with forwarding() as both:
        error = DatagramError(111, 2, 3, 3, 0, None, Endpoint(packed("192.0.2.7"), 9), b"")
        port = next(port for port in both.listeners.named if isinstance(port, UdpPort))
        both.receiver.on_datagram_error(port, error)
        both.receiver.on_overflow(3)
        assert (both.others.errors, both.others.overflowed) == (1, 3)
        both.others.is_full = True
        assert both.receiver.is_full


def test_here_is_a_side() -> None:
    with Here().socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert not sock.getblocking()
    assert b"local_address" in Here().proc_net("tcp")
