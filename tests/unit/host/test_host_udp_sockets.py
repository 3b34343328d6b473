"""Sockets of UDP flows: connected, and with a port of the flow's choice where that is free."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from harness.ports import free_udp_port
from harness.stage import V4, V6, Family

from trio_passt.host import error_queue, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.udp import source_ports
from trio_passt.udp.source_ports import SourcePorts

HOP_LIMIT = {V4: (socket.IPPROTO_IP, socket.IP_TTL), V6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
IS_QUEUED = {V4: (socket.IPPROTO_IP, error_queue.IP_RECVERR), V6: (socket.IPPROTO_IPV6, error_queue.IPV6_RECVERR)}


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def server(opened: ExitStack, family: Family) -> socket.socket:
    sock = opened.enter_context(socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    sock.bind((family.local, 0))
    return sock


def endpoint(sock: socket.socket) -> Endpoint:
    return Endpoint.of(sock.getsockname())


def open_udp(
    opened: ExitStack, peer: socket.socket, port: int = 0, *sharing: socket.socket
) -> tuple[socket.socket, bool]:
    sock, has_port = sockets.open_udp(endpoint(peer), port, sharing)
    return opened.enter_context(sock), has_port


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def free_port(family: Family) -> int:
    return free_udp_port(family.socket_family, family.local)


def test_connected_and_ready_for_errors(opened: ExitStack, family: Family) -> None:
    peer = server(opened, family)
    sock, has_port = open_udp(opened, peer)
    assert not has_port
    assert sock.getpeername() == peer.getsockname()
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert sock.getsockopt(*IS_QUEUED[family]) == 1


def test_port_that_is_free_is_taken(opened: ExitStack, family: Family) -> None:
    peer, port = server(opened, family), free_port(family)
    sock, has_port = open_udp(opened, peer, port)
    assert has_port
    assert port_of(sock) == port


def test_port_of_somebody_else_is_not(opened: ExitStack, family: Family) -> None:
    """Nor is he asked, though he would share it with anybody."""
    peer, other = server(opened, family), server(opened, family)
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        sock, has_port = open_udp(opened, peer, port_of(other))
        assert not has_port
        assert port_of(sock) not in (0, port_of(other))


def test_port_of_one_family_is_free_in_the_other(opened: ExitStack) -> None:
    port = free_port(V6)
    for family in (V6, V4):
        sock, has_port = open_udp(opened, server(opened, family), port)
        assert (port_of(sock), has_port) == (port, True)


def test_port_without_permission(opened: ExitStack, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below net.ipv4.ip_unprivileged_port_start."""

    def denied(_sock: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    peer = server(opened, family)
    monkeypatch.setattr(socket.socket, "bind", denied)
    sock, has_port = open_udp(opened, peer, 123)
    assert not has_port
    assert port_of(sock) != 123


def test_port_is_shared_by_those_that_agree(opened: ExitStack, family: Family) -> None:
    """Each hears of its own peer only."""
    peers = [server(opened, family) for _ in range(4)]
    port = free_port(family)
    first, _ = open_udp(opened, peers[0], port)
    socks = [first, *(open_udp(opened, peer, port, first)[0] for peer in peers[1:])]
    assert {port_of(sock) for sock in socks} == {port}
    for number, sock in enumerate(socks):
        sock.send(b"question %d" % number)
    for number, peer in enumerate(peers):
        payload, name = peer.recvfrom(100)
        assert (payload, name[1]) == (b"question %d" % number, port)
        peer.sendto(b"answer %d" % number, name)
    for number, sock in enumerate(socks):
        assert sock.recv(100) == b"answer %d" % number
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_strangers_between_bind_and_connect_are_not_heard(
    opened: ExitStack, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, stranger, port = (server(opened, family), server(opened, family), free_port(family))
    connect = socket.socket.connect

    def late(sock: socket.socket, address: object) -> None:
        for payload in (b"forged", b"", bytes(2000)):
            stranger.sendto(payload, (family.local, port))
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", late)
    sock, has_port = open_udp(opened, peer, port)
    assert has_port
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    peer.sendto(b"genuine", (family.local, port))
    assert sock.recv(100) == b"genuine"


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EADDRNOTAVAIL])
def test_nothing_is_left_of_one_that_cannot_be_connected(
    opened: ExitStack, family: Family, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unreachable(_sock: socket.socket, _address: object) -> None:
        raise OSError(number, os.strerror(number))

    peer, port = server(opened, family), free_port(family)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", unreachable)
        with pytest.raises(OSError, match=os.strerror(number)):
            open_udp(opened, peer, port)
    assert os.listdir("/proc/self/fd") == before
    assert open_udp(opened, peer, port)[1], "the port is free again"


@pytest.mark.parametrize("hop_limit", [1, 5, 64, 255])
def test_hop_limit(opened: ExitStack, family: Family, hop_limit: int) -> None:
    sock, _ = open_udp(opened, server(opened, family))
    sockets.set_hop_limit(sock, hop_limit)
    assert sock.getsockopt(*HOP_LIMIT[family]) == hop_limit


def test_overflow_of_the_receive_buffer_is_counted(opened: ExitStack, family: Family) -> None:
    peer = server(opened, family)
    sock, _ = open_udp(opened, peer)
    peer.connect(sock.getsockname())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    assert sockets.overflowed_datagrams(sock) == 0
    for _ in range(100):
        peer.send(bytes(500))
    received = 0
    while True:
        try:
            sock.recv(1000)
        except BlockingIOError:
            break
        received += 1
    assert 0 < received < 100
    assert sockets.overflowed_datagrams(sock) == 100 - received
    sock.close()
    assert sockets.overflowed_datagrams(sock) == 0, "who can't tell says none"


class TestSourcePorts:
    """Which sockets of one guest share a port."""

    @pytest.fixture
    def ports(self, opened: ExitStack) -> SourcePorts:
        return SourcePorts()

    def test_all_remotes_of_one_port_see_the_same(self, opened: ExitStack, family: Family, ports: SourcePorts) -> None:
        port = free_port(family)
        for _ in range(5):
            sock = opened.enter_context(ports.open(port, endpoint(server(opened, family))))
            assert port_of(sock) == port

    def test_second_socket_to_one_remote_has_another(
        self, opened: ExitStack, family: Family, ports: SourcePorts
    ) -> None:
        """The kernel could not tell whose the replies are: the guest has two addresses, or has changed its own."""
        port, peer = free_port(family), server(opened, family)
        first, second = (opened.enter_context(ports.open(port, endpoint(peer))) for _ in range(2))
        assert port_of(first) == port
        assert port_of(second) != port
        for sock, reply in ((first, b"one"), (second, b"two")):
            peer.sendto(reply, sock.getsockname())
            assert sock.recv(100) == reply

    def test_port_is_free_when_the_last_one_is_closed(
        self, opened: ExitStack, family: Family, ports: SourcePorts
    ) -> None:
        port = free_port(family)
        peers = [server(opened, family) for _ in range(3)]
        socks = [ports.open(port, endpoint(peer)) for peer in peers]
        for sock, peer in zip(socks, peers, strict=True):
            ports.close(sock, port, endpoint(peer))
            assert sock.fileno() == -1
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as other:
            other.bind((family.local, port))
            taken = ports.open(port, endpoint(peers[0]))
            assert port_of(taken) != port
            ports.close(taken, port, endpoint(peers[0]))
        again = opened.enter_context(ports.open(port, endpoint(peers[0])))
        assert port_of(again) == port

    def test_first_one_may_go_before_the_others_come(
        self, opened: ExitStack, family: Family, ports: SourcePorts
    ) -> None:
        port = free_port(family)
        peers = [server(opened, family) for _ in range(4)]
        socks = [ports.open(port, endpoint(peer)) for peer in peers[:2]]
        ports.close(socks[0], port, endpoint(peers[0]))
        socks = [socks[1], *(ports.open(port, endpoint(peer)) for peer in peers[2:])]
        for sock in socks:
            opened.enter_context(sock)
            assert port_of(sock) == port

    def test_socket_without_the_port_is_not_asked_to_share_it(
        self, opened: ExitStack, family: Family, ports: SourcePorts
    ) -> None:
        other = server(opened, family)
        for _ in range(3):
            peer = endpoint(server(opened, family))
            sock = ports.open(port_of(other), peer)
            assert port_of(sock) != port_of(other)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
            ports.close(sock, port_of(other), peer)

    def test_no_more_than_so_many_share_one(
        self, opened: ExitStack, family: Family, ports: SourcePorts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source_ports, "SHARED_BY_MOST", 3)
        port = free_port(family)
        seen = [
            port_of(opened.enter_context(ports.open(port, endpoint(server(opened, family))))) == port for _ in range(5)
        ]
        assert seen == [True] * 3 + [False] * 2

    def test_closing_the_second_one_to_a_remote_leaves_the_first_its_port(
        self, opened: ExitStack, family: Family, ports: SourcePorts
    ) -> None:
        port, peer = free_port(family), server(opened, family)
        first, second = (ports.open(port, endpoint(peer)) for _ in range(2))
        ports.close(second, port, endpoint(peer))
        third = opened.enter_context(ports.open(port, endpoint(server(opened, family))))
        assert port_of(first) == port_of(third) == port
        ports.close(first, port, endpoint(peer))

    def test_error_is_the_kernels(self, family: Family, ports: SourcePorts, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(*_arguments: object) -> tuple[socket.socket, bool]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(sockets, "open_udp", exhausted)
        with pytest.raises(OSError, match="Too many open files"):
            ports.open(5000, Endpoint(ip_address(family.local).packed, 9))
