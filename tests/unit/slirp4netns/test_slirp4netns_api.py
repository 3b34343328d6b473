"""Requests and replies, to the byte, and clients of all kinds at a real UNIX socket in a directory of the test's."""

import errno
import json
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.slirp4netns.api import CLIENT_S, CLIENTS, HostForwards, parse, serve
from trio_passt.slirp4netns.api_socket import ApiSocket

GUEST = IPv4Address("10.0.2.100")
ANY = IPv4Address("0.0.0.0")


class FakePorts:
    """Ports that can all be had, but those that are taken."""

    def __init__(self) -> None:
        self.forwards: list[PortForward] = []
        self.taken = {
            22: "port 22 of TCP can't be bound: Address already in use",
            23: OSError(24, "Too many open files"),
        }

    def add(self, forward: PortForward, *, holder_within_s: float) -> None:
        assert 0 < holder_within_s < 1
        reason = self.taken.get(forward.first)
        if isinstance(reason, OSError):
            raise reason
        if reason is not None:
            raise StartupError(reason)
        self.forwards.append(forward)

    def remove(self, forward: PortForward) -> bool:
        self.forwards.remove(forward)
        return True


@pytest.fixture
def ports() -> FakePorts:
    return FakePorts()


@pytest.fixture
def forwards(ports: FakePorts) -> HostForwards:
    return HostForwards(ports, GUEST)


def add(**arguments: object) -> bytes:
    return json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode()


def remove(**arguments: object) -> bytes:
    return json.dumps({"execute": "remove_hostfwd", "arguments": arguments}).encode()


LIST = b'{"execute": "list_hostfwd"}'


def error(text: str) -> bytes:
    return b'{"error":{"desc":"bad request: %s"}}' % text.encode()


# -- what is asked and answered ---------------------------------------------------------------------------------------


def test_the_manuals_example(forwards: HostForwards, ports: FakePorts) -> None:
    """slirp4netns(1), "API SOCKET"; the first number is 1."""
    request = (
        b'{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,'
        b' "guest_addr": "10.0.2.100", "guest_port": 80}}'
    )
    assert forwards.reply(request) == b'{"return":{"id":1}}'
    assert ports.forwards == [PortForward(Protocol.TCP, 8080, 8080, 80, ANY)]
    entries = (
        b'[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}]'
    )
    assert forwards.reply(LIST) == b'{"entries":%s,"return":{"entries":%s}}' % (entries, entries)
    assert forwards.reply(b'{"execute": "remove_hostfwd", "arguments": {"id": 1}}') == b'{"return":{}}'
    assert ports.forwards == []
    assert forwards.reply(LIST) == b'{"entries":[],"return":{"entries":[]}}'


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ({}, "0.0.0.0"),
        ({"host_addr": "127.0.0.1"}, "127.0.0.1"),
        ({"host_addr": ""}, "0.0.0.0"),
        ({"host_addr": None}, "0.0.0.0"),
        ({"host_addr": 5}, "0.0.0.0"),
        ({"guest_addr": "10.0.2.100"}, "0.0.0.0"),
        ({"guest_addr": "0.0.0.0"}, "0.0.0.0"),
        ({"guest_addr": ""}, "0.0.0.0"),
        ({"extra": 1, "host_addr": "192.0.2.7"}, "192.0.2.7"),
    ],
)
def test_defaults(forwards: HostForwards, ports: FakePorts, arguments: dict[str, object], address: str) -> None:
    assert forwards.reply(add(proto="udp", host_port=53, guest_port=5353, **arguments)) == b'{"return":{"id":1}}'
    assert ports.forwards == [PortForward(Protocol.UDP, 53, 53, 5353, IPv4Address(address))]


def test_numbers_are_not_used_again(forwards: HostForwards) -> None:
    for number in (1, 2, 3):
        assert (
            forwards.reply(add(proto="tcp", host_port=80 + number, guest_port=80)) == b'{"return":{"id":%d}}' % number
        )
    assert forwards.reply(remove(id=3)) == b'{"return":{}}'
    assert forwards.reply(remove(id=3.0)) == error("remove_hostfwd: bad arguments.id")
    assert forwards.reply(remove(id=2.0)) == b'{"return":{}}'
    assert forwards.reply(add(proto="tcp", host_port=90, guest_port=80)) == b'{"return":{"id":4}}'
    assert [entry["id"] for entry in json.loads(forwards.reply(LIST))["entries"]] == [1, 4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"proto": None}, "bad arguments.proto"),
        ({"proto": 5}, "bad arguments.proto"),
        ({"proto": ["tcp"]}, "bad arguments.proto"),
        ({"proto": "TCP"}, "bad arguments.proto"),
        ({"proto": "tcp6"}, "bad arguments.proto"),
        ({"proto": "sctp"}, "bad arguments.proto"),
        ({"host_addr": "bogus"}, "bad arguments.host_addr"),
        ({"host_addr": "::1"}, "bad arguments.host_addr"),
        ({"host_addr": "127.0.0.1 "}, "bad arguments.host_addr"),
        ({"host_port": None}, "bad arguments.host_port"),
        ({"host_port": 0}, "bad arguments.host_port"),
        ({"host_port": -1}, "bad arguments.host_port"),
        ({"host_port": 65536}, "bad arguments.host_port"),
        ({"host_port": "80"}, "bad arguments.host_port"),
        ({"host_port": 80.5}, "bad arguments.host_port"),
        ({"host_port": 1e400}, "bad arguments.host_port"),
        ({"host_port": float("nan")}, "bad arguments.host_port"),
        ({"host_port": True}, "bad arguments.host_port"),
        ({"guest_addr": "bogus"}, "bad arguments.guest_addr"),
        ({"guest_addr": "10.0.2.55"}, "bad arguments.guest_addr: ports are forwarded to 10.0.2.100 only"),
        ({"guest_port": None}, "bad arguments.guest_port"),
        ({"guest_port": 65536}, "bad arguments.guest_port"),
        ({"host_port": 22}, "port 22 of TCP can't be bound: Address already in use"),
        ({"host_port": 23}, "[Errno 24] Too many open files"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    forwards: HostForwards, ports: FakePorts, change: dict[str, object], reason: str
) -> None:
    arguments = {"proto": "tcp", "host_port": 8080, "guest_port": 80} | change
    assert forwards.reply(add(**arguments)) == error(f"add_hostfwd: {reason}")
    assert ports.forwards == []
    assert json.loads(forwards.reply(LIST))["entries"] == []


@pytest.mark.parametrize(
    ("other", "is_refused"),
    [
        ({"host_addr": "127.0.0.1"}, True),
        ({"host_addr": "0.0.0.0"}, True),
        ({}, True),
        ({"guest_port": 81}, True),
        ({"proto": "udp"}, False),
        ({"host_port": 8081}, False),
    ],
)
def test_a_port_is_forwarded_once(forwards: HostForwards, other: dict[str, object], is_refused: bool) -> None:
    """Also where the kernel would let it be bound twice."""
    forwards.reply(add(proto="tcp", host_port=8080, guest_port=80))
    reply = forwards.reply(add(**{"proto": "tcp", "host_port": 8080, "guest_port": 80, **other}))
    assert (b": it is forwarded already (id 1)" in reply) is is_refused


def test_a_port_at_two_addresses_is_two(forwards: HostForwards) -> None:
    for address in ("127.0.0.1", "127.0.0.2"):
        assert b"return" in forwards.reply(add(proto="tcp", host_addr=address, host_port=8080, guest_port=80))


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b'{"execute": "bogus"}', error("unknown execute")),
        (b'{"execute": 5}', error("no execute found")),
        (b'{"foo": 5}', error("no execute found")),
        (b"{}", error("no execute found")),
        (b"[]", error("json_object() failed")),
        (b"5", error("json_object() failed")),
        (b'"x"', error("json_object() failed")),
        (b"", error("cannot parse JSON")),
        (b"\0", error("cannot parse JSON")),
        (b"garbage", error("cannot parse JSON")),
        (b"\xff\xfe", error("cannot parse JSON")),
        (b'{"execute": "list_hostfwd"', error("cannot parse JSON")),
        (b'{"execute": "list_hostfwd", "execute": "bogus"}', error("cannot parse JSON")),
        (b"[" * 4095, error("cannot parse JSON")),
        (b'{"a":' * 800, error("cannot parse JSON")),
        (LIST.ljust(4096), error("too large message")),
        (b'{"execute": "add_hostfwd"}', error("add_hostfwd: bad arguments.proto")),
        (b'{"execute": "add_hostfwd", "arguments": []}', error("add_hostfwd: bad arguments.proto")),
        (b'{"execute": "add_hostfwd", "arguments": 5}', error("add_hostfwd: bad arguments.proto")),
        (b'{"execute": "remove_hostfwd"}', error("remove_hostfwd: bad arguments.id")),
        (remove(id=99), error("remove_hostfwd: bad arguments.id")),
        (remove(id="1"), error("remove_hostfwd: bad arguments.id")),
        (remove(id=None), error("remove_hostfwd: bad arguments.id")),
        (remove(id=True), error("remove_hostfwd: bad arguments.id")),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_requests(forwards: HostForwards, request_: bytes, reply: bytes) -> None:
    assert forwards.reply(request_) == reply


@pytest.mark.parametrize(
    "request_",
    [
        LIST.ljust(4095),
        b"  \n" + LIST + b"\n",
        LIST + b" trailing",
        LIST * 2,
        LIST + b"\0garbage",
        b'{"execute": "list_hostfwd", "arguments": {"a": 1}}',
        b'{"more": [1, {"b": null}], "execute": "list_hostfwd"}',
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_does_not_matter(forwards: HostForwards, request_: bytes) -> None:
    assert forwards.reply(request_) == b'{"entries":[],"return":{"entries":[]}}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        key: st.sampled_from(["tcp", "udp", "10.0.2.100", "127.0.0.1", 80, 22, 23, 1]) | JSON
        for key in ("proto", "host_addr", "host_port", "guest_addr", "guest_port", "id")
    },
)
REQUESTS = st.fixed_dictionaries(
    {"execute": st.sampled_from(["add_hostfwd", "list_hostfwd", "remove_hostfwd"]) | JSON},
    optional={"arguments": ARGUMENTS | JSON},
).map(lambda value: json.dumps(value).encode())


@given(st.lists(REQUESTS | JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), max_size=8))
def test_anything_has_a_reply_and_what_is_listed_is_forwarded(requests: list[bytes]) -> None:
    ports = FakePorts()
    forwards = HostForwards(ports, GUEST)
    for request in requests:
        reply = json.loads(forwards.reply(request))
        assert "error" in reply or "return" in reply
        entries = json.loads(forwards.reply(LIST))["entries"]
        listed = [(entry["proto"], entry["host_addr"], entry["host_port"], entry["guest_port"]) for entry in entries]
        assert listed == [(f.protocol.value, str(f.address), f.first, f.target) for f in ports.forwards]


@given(st.binary(max_size=60))
def test_parse_takes_anything(data: bytes) -> None:
    parse(data)


# -- at the socket ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(path: Path, ports: FakePorts) -> AsyncIterator[Path]:
    """The API at a socket."""
    api_socket = ApiSocket(path)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, HostForwards(ports, GUEST), api_socket.socket)
            yield path
            nursery.cancel_scope.cancel()
    finally:
        api_socket.close()


async def asked(path: Path, *pieces: bytes, shuts_down: bool = True) -> bytes:
    """What a client gets that sends these, one after the other."""
    async with await trio.open_unix_socket(str(path)) as client:
        for piece in pieces:
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        if shuts_down:
            await client.send_eof()
        reply = b""
        async for data in client:
            reply += data
        return reply


NOTHING = b'{"entries":[],"return":{"entries":[]}}'


async def test_one_request_and_one_reply(tmp_path: Path, ports: FakePorts) -> None:
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, LIST) == NOTHING
        assert await asked(path, add(proto="tcp", host_port=80, guest_port=80)) == b'{"return":{"id":1}}'
        assert await asked(path, remove(id=1)) == b'{"return":{}}'
        assert ports.forwards == []


async def test_a_request_may_come_in_pieces(tmp_path: Path, ports: FakePorts) -> None:
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, *(LIST[index : index + 1] for index in range(len(LIST)))) == NOTHING


async def test_who_does_not_shut_down_is_answered_too(tmp_path: Path, ports: FakePorts) -> None:
    """As by slirp4netns, whatever its manual says."""
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, LIST[:7], LIST[7:], shuts_down=False) == NOTHING


async def test_what_is_no_request_is_answered_at_its_end(tmp_path: Path, ports: FakePorts) -> None:
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, b"garbage") == error("cannot parse JSON")
        assert await asked(path) == error("cannot parse JSON")


@pytest.mark.parametrize("size", [4096, 100_000, 2_000_000])
async def test_too_much_is_answered_and_not_kept(tmp_path: Path, ports: FakePorts, size: int) -> None:
    """All of it is taken, for else the sender would have an error in place of the reply."""
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, b"[" * size) == error("too large message")


async def test_silent_clients_do_not_keep_others_waiting(
    tmp_path: Path, ports: FakePorts, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path / "api", ports) as path:
        silent = [await trio.open_unix_socket(str(path)) for _ in range(5)]
        start = trio.current_time()
        assert await asked(path, LIST) == NOTHING
        assert trio.current_time() == start
        for client in silent:
            assert await client.receive_some() == b""
        assert trio.current_time() == start + CLIENT_S
        for client in silent:
            await client.aclose()


async def test_many_clients_make_way(tmp_path: Path, ports: FakePorts) -> None:
    """The one that has been there for longest has to go."""
    async with served(tmp_path / "api", ports) as path:
        silent = []
        for _ in range(CLIENTS + 3):
            silent.append(await trio.open_unix_socket(str(path)))
            await trio.testing.wait_all_tasks_blocked()
        assert [await client.receive_some() for client in silent[:3]] == [b"", b"", b""]
        assert await asked(path, LIST) == NOTHING
        await silent[-1].send_all(LIST)
        assert await silent[-1].receive_some() == NOTHING
        for client in silent:
            await client.aclose()


async def test_many_clients_at_once(tmp_path: Path, ports: FakePorts) -> None:
    replies: set[bytes] = set()

    async def ask(port: int) -> None:
        replies.add(await asked(path, add(proto="udp", host_port=port, guest_port=port)))

    async with served(tmp_path / "api", ports) as path:
        async with trio.open_nursery() as nursery:
            for port in range(1000, 1050):
                nursery.start_soon(ask, port)
        assert replies == {b'{"return":{"id":%d}}' % number for number in range(1, 51)}
        assert {forward.first for forward in ports.forwards} == set(range(1000, 1050))


async def test_a_client_that_hangs_up(tmp_path: Path, ports: FakePorts) -> None:
    async with served(tmp_path / "api", ports) as path:
        for piece in (b"", LIST[:5], LIST):
            client = await trio.open_unix_socket(str(path))
            if piece:
                await client.send_all(piece)
            await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await asked(path, LIST) == NOTHING


async def test_a_bug_is_one_clients_problem(
    tmp_path: Path, ports: FakePorts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def add_(forward: PortForward, *, holder_within_s: float) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(ports, "add", add_)
    async with served(tmp_path / "api", ports) as path:
        assert await asked(path, add(proto="tcp", host_port=80, guest_port=80)) == b""
        assert await asked(path, LIST) == NOTHING
    assert "internal error at the API socket; please report this" in caplog.messages


async def test_out_of_descriptors_a_client_waits(
    tmp_path: Path, ports: FakePorts, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "api", ports) as path:
        client = trio.socket.socket(socket.AF_UNIX)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        next_one = os.dup(0)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, limits[1]))
        try:
            await client.connect(str(path))
            await client.send(LIST)
            await trio.testing.wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        with trio.fail_after(30):
            assert await client.recv(100) == NOTHING
        client.close()
        assert caplog.messages == ["can't accept a client at the API socket: Too many open files"]


async def test_descriptors_of_clients_are_given_back(tmp_path: Path, ports: FakePorts) -> None:
    async with served(tmp_path / "api", ports) as path:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await asked(path, LIST)
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) == before


# -- the socket's file ------------------------------------------------------------------------------------------------


def test_the_file_is_its_owners_and_goes_with_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "api"
    api_socket = ApiSocket(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_inheritable(api_socket.socket.fileno())
    api_socket.close()
    assert not path.exists()
    assert api_socket.socket.fileno() == -1


@pytest.mark.parametrize("lives", [False, True])
def test_a_socket_that_is_there_is_replaced(tmp_path: Path, lives: bool) -> None:
    path = tmp_path / "api"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        if not lives:
            other.close()
        api_socket = ApiSocket(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            api_socket.socket.accept()[0].close()
        api_socket.close()


def test_the_file_of_who_came_after_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api"
    first, second = ApiSocket(path), ApiSocket(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "reason"), [("file", "there is a file that is no socket"), ("no/where", "No such file or directory")]
)
def test_where_it_can_not_be(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartupError) as caught:
        ApiSocket(tmp_path / name)
    assert str(caught.value) == f"can't listen at the API socket '{tmp_path / name}': {reason}"
    assert (tmp_path / "file").read_text() == "mine"
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_file_is_left_where_nobody_can_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _backlog: int) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(StartupError, match="No buffer space available"):
        ApiSocket(tmp_path / "api")
    assert not (tmp_path / "api").exists()
