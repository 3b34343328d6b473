"""The dump of default routes: what the kernel answers, and a router with many other routes."""

import errno
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest
from harness.own_namespace import own_namespace
from netlink_messages import message, route

from trio_passt.host.netlink import read_host_network
from trio_passt.host.rtnetlink import dump_default_routes, messages

DONE, ERROR = 3, 2
INTERRUPTED = 0x10


class PlayedKernel:
    """A netlink socket's other end: each request is answered by the next of the given dumps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *dumps: list[bytes]) -> None:
        self._dumps = list(dumps)
        self._answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.closed = False
        monkeypatch.setattr(socket, "socket", lambda *_arguments: self)

    def __enter__(self) -> "PlayedKernel":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def send(self, request: bytes) -> None:
        self.requests.append(request)
        assert not self._answers, "asked again before the answer was read"
        self._answers = self._dumps.pop(0)

    def recv(self, _size: int) -> bytes:
        return self._answers.pop(0)


def test_only_default_routes_and_the_whole_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    default, other, second = route(), route(to_bits=24), route(gateway="192.0.2.9")
    kernel = PlayedKernel(monkeypatch, [default + other, other + second, message(DONE, bytes(4))])
    routes = dump_default_routes(socket.AF_INET)
    assert [next(messages(data))[2] for data in routes] == [next(messages(data))[2] for data in (default, second)]
    assert kernel.closed
    (request,) = kernel.requests
    assert struct.unpack_from("=IHH", request) == (28, 26, 0x301)
    assert request[16] == socket.AF_INET


def test_routes_that_changed_meanwhile_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [message(DONE, bytes(4), flags=INTERRUPTED)]
    kernel = PlayedKernel(monkeypatch, list(broken), [route(), message(DONE, bytes(4))])
    assert len(dump_default_routes(socket.AF_INET)) == 1
    assert len(kernel.requests) == 2


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    PlayedKernel(monkeypatch, *([message(DONE, bytes(4), flags=INTERRUPTED)] for _ in range(5)))
    with pytest.raises(InterruptedError, match="too quickly"):
        dump_default_routes(socket.AF_INET)


def test_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    PlayedKernel(monkeypatch, [message(ERROR, struct.pack("=i", -errno.EPERM))])
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)) as raised:
        dump_default_routes(socket.AF_INET)
    assert raised.value.errno == errno.EPERM


def test_messages_that_are_not_whole() -> None:
    whole = route()
    for length in range(len(whole)):
        assert list(messages(whole[:length])) == []
    for lie in (0, 15, len(whole) + 1, 0xFFFFFFFF):
        assert list(messages(struct.pack("=I", lie) + whole[4:])) == []


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.mark.usefixtures("namespace")
def test_router_with_many_routes() -> None:
    """The time is that of the kernel's dump; pyroute2 alone takes some 0.1 ms for each."""
    many = "".join(f"route add 10.{number >> 8}.{number & 255}.0/24 dev lo\n" for number in range(20_000))
    subprocess.run(["ip", "-batch", "-"], input=f"route add default dev lo metric 7\n{many}", text=True, check=True)
    began = time.process_time()
    _, _, routes = read_host_network()
    assert time.process_time() - began < 1.5
    assert [(route.version, route.metric) for route in routes] == [(4, 7)]


@pytest.mark.usefixtures("namespace")
def test_route_by_a_nexthop_object() -> None:
    commands = "link set lo up\nnexthop add id 7 dev lo\nroute add default nhid 7\n"
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
    _, _, (route_found,) = read_host_network()
    assert [hop.link_index for hop in route_found.next_hops] == [1]
