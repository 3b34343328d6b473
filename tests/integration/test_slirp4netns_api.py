"""Who calls slirp4netns calls ours in the same way: the command line, and then the API socket, beside Debian's.

Each has a namespace of its own, both an ordinary user's. They take turns, since they forward the same ports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.guest import tun
from tests.guest.machine import DIE_WITH_PARENT
from tests.guest.unprivileged import Unprivileged
from tests.integration import servers
from tests.integration.changing_host import wait_for
from tests.integration.daemon import STOP_TIMEOUT_S, daemon_directory, slirp4netns_program
from tests.integration.topology import HOST4, REMOTE4, RESOLVER4, RESOLVER6, Namespace, Topology, run

GUEST4, GATEWAY4, DNS4 = "10.0.2.100", "10.0.2.2", "10.0.2.3"
GATEWAY6, DNS6 = "fd00::2", "fd00::3"
TIMEOUT_S = 60.0
SILENCE_S = 0.5
NOBODY = 65534
NET_BIND_SERVICE = 1 << 10
DEBIANS = ["slirp4netns"]


class Inside(Namespace):
    """Sockets in a network namespace that is there, by the file that stands for it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """The namespace itself is somebody else's."""
        os.close(self._descriptor)


class Helper:
    """One such program, called as Podman does: it says that it is ready, and ends when somebody else does.

    A context manager that ends it.
    """

    def __init__(self, enter: Sequence[str], program: Sequence[str], directory: Path, *arguments: str) -> None:
        """`enter` is a prefix to be who starts it, where."""
        self.api = directory / "api"
        self.log = directory / "log"
        ready, self._ready_end = os.pipe()
        exits, self._exit_end = os.pipe()
        with self.log.open("wb") as log, os.fdopen(ready, "rb") as told:
            self.process = subprocess.Popen(
                [*enter, *program, "-r", str(self._ready_end), "-e", str(exits), "-a", str(self.api), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._ready_end, exits],
                cwd=directory,
            )
            os.close(self._ready_end)
            os.close(exits)
            self.said = b""
            while select.select([told], [], [], TIMEOUT_S)[0] and (data := os.read(told.fileno(), 16)):
                self.said += data
        if self.said != b"1":
            self._end()
            raise AssertionError(f"{program[-1]}: {self.said!r}, status {self.process.poll()}\n{self.log.read_text()}")

    def ask(self, request: object, *, shuts_down: bool = True) -> bytes:
        """A request, as JSON or as it is; the reply."""
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(str(self.api))
            client.sendall(data)
            if shuts_down:
                client.shutdown(socket.SHUT_WR)
            return servers.receive_all(client)

    def add(self, **arguments: Any) -> dict[str, Any]:
        """Forward a port."""
        reply: dict[str, Any] = json.loads(self.ask({"execute": "add_hostfwd", "arguments": arguments}))
        return reply

    def remove(self, number: int) -> bytes:
        """Forward it no more."""
        return self.ask({"execute": "remove_hostfwd", "arguments": {"id": number}})

    def close_exit_fd(self) -> int:
        """What it exits by; its exit status."""
        os.close(self._exit_end)
        self._exit_end = -1
        return self.process.wait(STOP_TIMEOUT_S)

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._exit_end >= 0:
            os.close(self._exit_end)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="module")
def user(topology: Topology) -> Iterator[list[str]]:
    """A prefix to be an ordinary user of the host, who may open tap devices."""
    with tun.open_to_everybody():
        yield topology.host.enter_unprivileged()


@pytest.fixture
def place(directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of this user's."""
    return daemon_directory(directory, f"slirp{abs(hash(request.node.name)) % 10**8}")


@contextlib.contextmanager
def guest(user: Sequence[str]) -> Iterator[tuple[Unprivileged, Inside]]:
    """A namespace of this user's, and sockets in it."""
    with Unprivileged(user) as namespace, contextlib.closing(Inside(namespace.path)) as inside:
        yield namespace, inside


def settings(namespace: Unprivileged) -> dict[str, Any]:
    """What a guest finds that was configured."""
    found: dict[str, Any] = {}
    for link in json.loads(run(*namespace.enter(), "ip", "-json", "address", "show")):
        addresses = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["family"] == "inet"]
        found[link["ifname"]] = (link["mtu"], "UP" in link["flags"], addresses)
    routes = json.loads(run(*namespace.enter(), "ip", "-json", "route", "show"))
    found["routes"] = {(route["dst"], route.get("gateway"), route["dev"]) for route in routes}
    return found


def wanted(**change: Any) -> dict[str, Any]:
    """A request for a port, with something changed."""
    return {"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 18080, "guest_port": 80} | change}


REQUESTS: list[object] = [
    {"execute": "list_hostfwd"},
    wanted(host_addr="0.0.0.0", guest_addr=GUEST4),
    wanted(proto="udp", host_addr="127.0.0.1", host_port=18081, guest_port=81),
    wanted(host_port=18082),
    {"execute": "list_hostfwd"},
    wanted(host_port=18082, guest_port=83),
    wanted(host_addr="127.0.0.1", host_port=18082),
    wanted(host_addr="192.0.2.77", host_port=18083),
    *(wanted(proto=proto) for proto in ("tcp6", "sctp", "TCP")),
    *(wanted(host_addr=address) for address in ("::1", "bogus")),
    *(wanted(host_port=port) for port in (0, "18085", None)),
    wanted(host_port=18086, guest_port=0),
    wanted(host_port=18087, guest_addr="bogus"),
    wanted(host_port=18088, host_addr="", extra=1),
    wanted(host_port=18089, host_addr=None),
    *({"execute": "remove_hostfwd", "arguments": {"id": number}} for number in (99, 2, 2, "1", 3.0, -1, None)),
    {"execute": "remove_hostfwd", "arguments": {}},
    {"execute": "remove_hostfwd"},
    wanted(host_port=18090),
    {"execute": "list_hostfwd", "arguments": {"a": 1}},
    {"execute": "bogus"},
    {"execute": 5},
    {"foo": 5},
    *(b"[]", b"5", b"garbage", b"", b"{}", b"\xff\xfe", b'{"execute": "list_hostfwd"'),
    b'{"execute": "list_hostfwd"} trailing',
    b'  {"execute": "list_hostfwd"}\n',
    b'{"execute": "list_hostfwd", "execute": "bogus"}',
    b'{"execute": "list_hostfwd"}'.ljust(4095),
    b'{"execute": "list_hostfwd"}'.ljust(4096),
]


def test_replies_are_those_of_slirp4netns(topology: Topology, user: list[str], place: Path) -> None:
    """Started in the same way, ready in the same way, ended in the same way, with the same to say."""
    found = []
    for program in (DEBIANS, slirp4netns_program()):
        with guest(user) as (namespace, _):
            arguments = ["--mtu=9000", "--cidr=10.0.2.0/24", str(namespace.process_id), "tap0", "-c"]
            with Helper(user, program, place, *arguments) as helper:
                replies = [helper.ask(request) for request in REQUESTS]
                replies.append(helper.ask(b'{"execute": "list_hostfwd"}', shuts_down=False))
                found.append((settings(namespace), replies, helper.close_exit_fd()))
    (their_settings, theirs, their_status), (our_settings, ours, our_status) = found
    assert our_settings == their_settings
    assert our_settings["tap0"] == (9000, True, [f"{GUEST4}/24"])
    assert (our_status, their_status) == (0, 0)
    assert not (place / "api").exists()
    for request, their_reply, our_reply in zip([*REQUESTS, "the last"], theirs, ours, strict=True):
        if b"entries" in their_reply:  # its manual has them in "return", which it does not do
            entries = json.loads(their_reply)["entries"]
            assert json.loads(our_reply) == {"entries": entries, "return": {"entries": entries}}, request
        elif b"slirp_add_hostfwd failed" in their_reply:  # we say why
            assert our_reply.startswith(b'{"error":{"desc":"bad request: add_hostfwd: can\'t forward '), request
        else:
            assert our_reply == their_reply, request


def test_forwarded_ports(topology: Topology, user: list[str], place: Path) -> None:
    """From elsewhere and from the host itself, with the source addresses that slirp4netns' guests see."""
    with guest(user) as (namespace, inside):
        arguments = ["-c", "--mtu=65520", str(namespace.process_id), "tap0"]
        with (
            Helper(user, slirp4netns_program(), place, *arguments) as helper,
            servers.tcp_server(inside, GUEST4, servers.echo_after_end, 8000) as web,
            servers.udp_server(inside, GUEST4, lambda data: data[::-1]) as reverse,
        ):
            assert helper.add(proto="tcp", host_port=18080, guest_port=web.port) == {"return": {"id": 1}}
            assert helper.add(proto="udp", host_port=18080, guest_port=reverse.port) == {"return": {"id": 2}}
            data = servers.payload(1 << 20)
            for client, address in ((topology.remote, HOST4), (topology.host, "127.0.0.1"), (topology.host, HOST4)):
                with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
                    connection.settimeout(TIMEOUT_S)
                    connection.connect((address, 18080))
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    assert servers.receive_all(connection) == data
                with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
                    endpoint.settimeout(TIMEOUT_S)
                    endpoint.connect((address, 18080))
                    endpoint.send(b"abc")
                    assert endpoint.recv(100) == b"cba"
            assert [web.peers[0], web.peers[1], reverse.peers[1]] == ["192.0.2.1", GATEWAY4, GATEWAY4]

            with topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect((HOST4, 18080))
                connection.sendall(b"abc")
                assert helper.remove(1) == b'{"return":{}}'
                with (
                    topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as other,
                    pytest.raises(ConnectionRefusedError),
                ):
                    other.connect((HOST4, 18080))
                connection.shutdown(socket.SHUT_WR)
                assert servers.receive_all(connection) == b"abc", "a connection outlives its port"
            with topology.host.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a former connection is in TIME-WAIT
                taken.bind(("0.0.0.0", 18080))
                taken.listen()
                reply = helper.add(proto="tcp", host_port=18080, guest_port=web.port)
                assert reply["error"]["desc"].startswith("bad request: add_hostfwd: can't forward TCP port 18080")
            assert helper.add(proto="tcp", host_port=18080, guest_port=web.port) == {"return": {"id": 3}}
            reply = helper.add(proto="tcp", host_port=80, guest_port=web.port)
            assert "Permission denied" in reply["error"]["desc"]
            assert helper.process.poll() is None


def test_what_the_guest_reaches(topology: Topology, user: list[str], place: Path) -> None:
    """The host's loopback and its nameserver by addresses of the guest's network, and the world; or not."""

    def answers(inside: Namespace, address: str, port: int) -> bool:
        with inside.socket(servers.family(address), socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.connect((address, port))
            except OSError:
                return False
            connection.shutdown(socket.SHUT_WR)
            return servers.receive_all(connection) == b""

    def resolves(inside: Namespace, address: str) -> bool:
        with inside.socket(servers.family(address), socket.SOCK_DGRAM) as endpoint:
            endpoint.settimeout(TIMEOUT_S)
            endpoint.connect((address, 53))
            endpoint.send(b"question")
            try:
                return endpoint.recv(100) == b"answer"
            except ConnectionRefusedError:
                return False

    with contextlib.ExitStack() as opened:
        for address in ("127.0.0.1", "::1"):
            opened.enter_context(servers.tcp_server(topology.host, address, servers.echo_after_end, 9000))
        for address in (RESOLVER4, RESOLVER6):
            opened.enter_context(servers.udp_server(topology.remote, address, lambda _: b"answer", port=53))
        opened.enter_context(servers.tcp_server(topology.remote, REMOTE4, servers.echo_after_end, 9001))
        for arguments, reaches, has_dns in (
            (["-6"], True, True),
            (["-6", "--disable-host-loopback"], False, True),
            (["-6", "--disable-host-loopback", "--disable-dns"], False, False),
        ):
            with guest(user) as (namespace, inside):
                words = [*arguments, "--enable-sandbox", "--enable-seccomp", "--netns-type=path", "-c"]
                words += [f"--userns-path=/proc/{namespace.process_id}/ns/user", str(namespace.path), "tap0"]
                with Helper(user, slirp4netns_program(), place, *words):
                    for address in (GATEWAY4, GATEWAY6):
                        assert answers(inside, address, 9000) is reaches, (arguments, address)
                    assert answers(inside, REMOTE4, 9001)
                    if has_dns:
                        assert resolves(inside, DNS4)
                        assert resolves(inside, DNS6)


def test_root_goes_on_as_nobody_that_may_bind_low_ports(topology: Topology, user: list[str], place: Path) -> None:
    """With a namespace of ip-netns(8), a tap of its own name and address, and without -c: that is the guest's to do."""
    root = [*DIE_WITH_PARENT, *topology.host.enter()]
    name = f"{topology.host.name}-slirp"
    inside = Namespace(name, "")
    try:
        with Helper(root, slirp4netns_program(), place, "--netns-type=path", f"/run/netns/{name}", "tap7") as helper:
            status = Path(f"/proc/{helper.process.pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            assert f"CapPrm:\t{NET_BIND_SERVICE:016x}\nCapEff:\t{NET_BIND_SERVICE:016x}\n" in status
            (tap,) = json.loads(run(*inside.enter(), "ip", "-json", "address", "show", "tap7"))
            assert "UP" not in tap["flags"]
            assert tap["addr_info"] == []
            inside.ip("address", "add", f"{GUEST4}/24", "dev", "tap7")
            inside.ip("link", "set", "tap7", "up")
            inside.ip("route", "add", "default", "via", GATEWAY4)
            assert helper.add(proto="tcp", host_addr=HOST4, host_port=80, guest_port=8000) == {"return": {"id": 1}}
            with (
                servers.tcp_server(inside, GUEST4, servers.echo_after_end, 8000),
                topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as connection,
            ):
                connection.settimeout(TIMEOUT_S)
                connection.connect((HOST4, 80))
                connection.sendall(b"abc")
                connection.shutdown(socket.SHUT_WR)
                assert servers.receive_all(connection) == b"abc"
            assert helper.close_exit_fd() == 0
    finally:
        inside.remove()


def test_it_stays_until_it_is_told(topology: Topology, user: list[str], place: Path) -> None:
    """The process whose namespace it joined may end; somebody else may have the namespace."""
    with guest(user) as (namespace, _):
        words = ["-c", str(namespace.process_id), "tap0"]
        with Helper(user, slirp4netns_program(), place, *words) as helper:
            assert stat.S_IMODE(helper.api.stat().st_mode) == 0o600
            os.kill(namespace.process_id, signal.SIGKILL)
            time.sleep(SILENCE_S)
            assert helper.ask({"execute": "list_hostfwd"}) == b'{"entries":[],"return":{"entries":[]}}'
            helper.process.terminate()
            assert helper.process.wait(STOP_TIMEOUT_S) == 0
            assert not helper.api.exists()
            wait_for(lambda: not _left_of(helper), "the end of all its processes")


def _left_of(helper: Helper) -> list[str]:
    """Processes that hold the helper's log open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if link.readlink() == helper.log:
                found.append(str(link))
    return found
