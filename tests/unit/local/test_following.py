"""Ports that come and go with who listens, by real sockets at both sides, on a clock of the test's own."""

import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest
import trio
from joined import Elsewhere, elsewhere, jump, packed
from trio.testing import wait_all_tasks_blocked

from trio_passt.config import AutomaticPorts, Binding, PortForward, Protocol
from trio_passt.host import listening, sockets
from trio_passt.host.listeners import PortListeners
from trio_passt.host.listening import BoundSocket, Listing
from trio_passt.host.side import Here
from trio_passt.local import following
from trio_passt.local.following import AutomaticForwards

TCP, UDP = Protocol.TCP, Protocol.UDP
ALL = tuple(PortForward(protocol, 1, 65535, 1, binding=Binding.SPARE) for protocol in Protocol)
GUEST = "192.0.2.2"


class Followed:
    """Both sides: this thread's namespace is the host's, and another one the guest's."""

    def __init__(self, inside: Elsewhere, to_guest: PortListeners, to_host: PortListeners) -> None:
        self.inside = inside
        self.to_guest = to_guest
        self.to_host = to_host
        self.listings = Listing(inside), Listing(Here())

    @contextmanager
    def listening(self, address: str, port: int, kind: int = socket.SOCK_STREAM, *, inside: bool) -> Iterator[None]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (self.inside if inside else Here()).socket(family, kind) as sock:
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen()
            yield

    async def passes(self, seconds: float = following.EVERY_S) -> None:
        await wait_all_tasks_blocked()
        jump(seconds)
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()

    def open(self) -> tuple[list[str], list[str]]:
        return tuple([_text(forward) for forward in ports.bound] for ports in (self.to_guest, self.to_host))  # type: ignore[return-value]


def _text(forward: PortForward) -> str:
    return f"{forward.protocol.value} {forward.address}/{forward.first}"


@asynccontextmanager
async def followed(
    ports: AutomaticPorts = AutomaticPorts(ALL, ALL),  # noqa: B008 - frozen
    *,
    to_loopback: bool = False,
) -> AsyncIterator[Followed]:
    with ExitStack() as opened:
        inside = opened.enter_context(elsewhere())
        to_guest = PortListeners.bind([])
        opened.callback(to_guest.close)
        to_host = PortListeners.bind([], side=inside, on_loopback=True)
        opened.callback(to_host.close)
        both = Followed(inside, to_guest, to_host)
        for listing in both.listings:
            opened.callback(listing.close)
        forwards = AutomaticForwards(
            ports,
            *both.listings,
            to_guest,
            to_host,
            lambda: [packed(GUEST)],
            to_loopback=to_loopback,
        )
        async with trio.open_nursery() as nursery:
            await forwards.look()
            nursery.start_soon(forwards.run)
            yield both
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def separate(namespace: None, standing_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In namespaces of their own, where nobody else listens; and to look takes no time, however busy the machine is."""
    monkeypatch.setattr(listening, "time", SimpleNamespace(thread_time=trio.current_time))


async def test_ports_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with followed() as both:
        assert both.open() == ([], [])
        with (
            both.listening("0.0.0.0", 8000, inside=True),
            both.listening("::1", 9000, inside=False),
            both.listening("127.0.0.1", 8001, inside=True),
        ):
            await both.passes()
            assert both.open() == (["tcp 0.0.0.0/8000"], ["tcp ::1/9000"])
            opened = both.to_guest.inodes | both.to_host.inodes
            assert len(opened) == 2
            await both.passes()
            assert both.open() == (["tcp 0.0.0.0/8000"], ["tcp ::1/9000"])
            assert both.to_guest.inodes | both.to_host.inodes == opened, "its own sockets are no reason for anything"
        await both.passes()
        assert both.open() == ([], [])
    assert [record.getMessage() for record in caplog.records] == [
        "forwarding TCP ports to the namespace: 8000",
        "forwarding TCP ports to the host: 9000",
        "TCP ports are not forwarded to the namespace any more, nobody listens there: 8000",
        "TCP ports are not forwarded to the host any more, nobody listens there: 9000",
    ]


async def test_udp_client_is_no_server() -> None:
    """Not at its first look; one that stays may be one."""
    async with followed() as both:
        with (
            both.listening("0.0.0.0", 40000, socket.SOCK_DGRAM, inside=True),
            both.listening("0.0.0.0", 53, socket.SOCK_DGRAM, inside=True),
        ):
            await both.passes()
            assert both.open() == (["udp 0.0.0.0/53"], [])
            await both.passes()
            assert both.open()[0] == ["udp 0.0.0.0/53", "udp 0.0.0.0/40000"]


async def test_port_of_the_other_side_is_taken_when_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with followed(AutomaticPorts(to_guest=ALL)) as both:
        with both.listening("0.0.0.0", 8000, inside=True):
            with both.listening("127.0.0.1", 8000, inside=False):
                for _ in range(5):
                    await both.passes()
                assert both.open() == ([], [])
            await both.passes()
            assert both.open() == (["tcp 0.0.0.0/8000"], [])
    reasons = [text for text in caplog.messages if "a program of that side has it" in text]
    assert reasons == ["TCP port 8000 at 0.0.0.0: a program of that side has it"]


async def test_refusal_that_cannot_be_seen_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a port that takes a privilege."""
    tried: list[float] = []

    def refuse(_self: object, _opener: object, _port: int) -> socket.socket:
        tried.append(trio.current_time())
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with followed() as both:
        monkeypatch.setattr(Here, "open", refuse)
        with both.listening("0.0.0.0", 80, inside=True):
            for _ in range(40):
                await both.passes()
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses == [1, 2, 4, 8, 16]


async def test_loopback_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "held_from_here", lambda _inodes, **_: set())  # a server is a process in there
    async with followed(to_loopback=True) as both:
        with both.listening("127.0.0.1", 8000, inside=True):
            await both.passes()
            assert both.open() == (["tcp 127.0.0.1/8000"], [])
        await both.passes()
        assert both.open() == ([], [])


async def test_what_a_process_out_here_has_in_the_namespace_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another program's like this one, and would be kept by ours as ours by it."""
    async with followed(to_loopback=True) as both:
        asked: list[set[int]] = []

        def held(inodes: set[int], **_: object) -> set[int]:
            asked.append(inodes)
            return inodes

        monkeypatch.setattr(following, "held_from_here", held)
        with both.listening("127.0.0.1", 8000, inside=True):
            for _ in range(3):
                await both.passes()
            assert both.open() == ([], [])
        assert [len(inodes) for inodes in asked] == [1], "it is found out once"


async def test_what_another_one_like_this_has_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mark says so, where nobody may see whose it is."""
    monkeypatch.setattr(following, "held_from_here", lambda _inodes, **_: set())
    async with followed(to_loopback=True) as both:
        forwards = [PortForward(protocol, 8000, 8000, 8000) for protocol in Protocol]
        other = PortListeners.bind(forwards, side=both.inside, on_loopback=True)
        try:
            for _ in range(3):
                await both.passes()
            assert both.open() == ([], [])
        finally:
            other.close()


async def test_looks_that_take_long_are_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    read = Listing.read

    async def slow(self: Listing, protocol: Protocol) -> list[BoundSocket]:
        looks.append(trio.current_time())
        found = await read(self, protocol)
        self.spent_s = 0.25
        return found

    monkeypatch.setattr(Listing, "read", slow)
    async with followed(AutomaticPorts(to_host=ALL[:1])) as both:
        for _ in range(20):
            await both.passes()
    assert looks == [0, 5, 10, 15, 20]


async def test_side_that_can_not_be_asked_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed() as both:
        with both.listening("0.0.0.0", 8000, inside=True):
            await both.passes()

            async def fail(self: Listing, protocol: Protocol) -> list[BoundSocket]:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

            with monkeypatch.context() as patched:
                patched.setattr(Listing, "read", fail)
                for _ in range(3):
                    await both.passes()
            assert both.open()[0] == ["tcp 0.0.0.0/8000"], "what is open stays"
        await both.passes()
        assert both.open()[0] == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["can't find out what listens, and so which ports to forward: No buffer space available"]


async def test_share_of_the_descriptors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The rest is for connections; who ends makes room."""
    monkeypatch.setattr(following, "ONE_IN", sockets.descriptor_limit() // 2)
    async with followed() as both:
        with both.listening("0.0.0.0", 8003, inside=True), both.listening("0.0.0.0", 8002, inside=True):
            with both.listening("0.0.0.0", 8001, inside=True), both.listening("127.0.0.1", 9000, inside=False):
                for _ in range(3):
                    await both.passes()
                assert both.open() == (["tcp 0.0.0.0/8001", "tcp 0.0.0.0/8002"], ["tcp 127.0.0.1/9000"])
            await both.passes()
            assert both.open() == (["tcp 0.0.0.0/8002", "tcp 0.0.0.0/8003"], [])
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith("forwarding only 2 of 3 ports to the namespace, the rest of the descriptors is for")


async def test_nothing_automatic_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Listing, protocol: Protocol) -> list[BoundSocket]:
        pytest.fail("was asked")

    monkeypatch.setattr(Listing, "read", fail)
    async with followed(AutomaticPorts()) as both:
        await both.passes(10)
