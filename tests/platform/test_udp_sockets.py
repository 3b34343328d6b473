"""What UDP flows take for granted about the kernel's sockets: segments, shared ports, the error queue, hop limits."""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
IP_RECVTTL = 12
SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8  # linux/sock_diag.h

ADDRESS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR), socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}
HOP_LIMIT = {
    # set for one datagram; told of one
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL, IP_RECVTTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, socket.IPV6_RECVHOPLIMIT),
}

families = pytest.mark.parametrize("family", ADDRESS, ids=["IPv4", "IPv6"])


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(opened: ExitStack, family: socket.AddressFamily, *, address: str | None = None) -> socket.socket:
    sock = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    sock.bind((ADDRESS[family] if address is None else address, 0))
    return sock


def connected(opened: ExitStack, family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    one, other = bound(opened, family), bound(opened, family)
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


def nobody(opened: ExitStack, family: socket.AddressFamily) -> tuple[str, int]:
    sock = bound(opened, family)
    name: tuple[str, int] = sock.getsockname()[:2]
    sock.close()
    return name


def all_of(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(65536))
        except BlockingIOError:
            return found


def send_segments(sock: socket.socket, data: bytes, size: int) -> None:
    sock.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))])


class TestSegments:
    @families
    def test_are_cut_by_the_kernel(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        one, other = connected(opened, family)
        send_segments(one, b"aaabbbcc", 3)
        assert all_of(other) == [b"aaa", b"bbb", b"cc"]

    @families
    def test_are_not_joined_for_a_socket_that_does_not_ask_for_it(
        self, opened: ExitStack, family: socket.AddressFamily
    ) -> None:
        one, other = connected(opened, family)
        send_segments(one, b"aaabbb", 3)
        other.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        assert all_of(other) == [b"aaa", b"bbb"], "what came before stays as it is"

    @families
    def test_come_joined_with_their_size(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        one, other = connected(opened, family)
        other.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        one.send(b"single")
        send_segments(one, b"aaabbbcc", 3)
        assert other.recvmsg(100, 100)[:2] == (b"single", [])
        data, ((level, kind, value),), _, _ = other.recvmsg(100, 100)
        assert data == b"aaabbbcc"
        assert (level, kind) == (socket.IPPROTO_UDP, UDP_GRO)
        assert int.from_bytes(value, "little") == 3

    @families
    def test_that_are_too_many_are_refused(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        """UDP_MAX_SEGMENTS: 64, or 128 of newer kernels."""
        one, other = connected(opened, family)
        send_segments(one, bytes(64), 1)
        assert len(all_of(other)) == 64
        with pytest.raises(OSError, match=r"Invalid argument|Message too long"):
            send_segments(one, bytes(1000), 1)


class TestSharedPort:
    @families
    def test_is_shared_by_those_that_agree_also_after_the_bind(
        self, opened: ExitStack, family: socket.AddressFamily
    ) -> None:
        peers = [bound(opened, family) for _ in range(3)]
        first = bound(opened, family, address="")
        port = first.getsockname()[1]
        first.connect(peers[0].getsockname())
        socks = [first]
        for peer in peers[1:]:
            sock = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            for one in (first, sock):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("", port))
            sock.connect(peer.getsockname())
            socks.append(sock)
        for number, peer in enumerate(peers):
            for _ in range(20):
                peer.sendto(b"%d" % number, (ADDRESS[family], port))
        assert [all_of(sock) for sock in socks] == [[b"%d" % number] * 20 for number in range(3)]

    @families
    def test_stays_its_owners_otherwise(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        port = bound(opened, family, address="").getsockname()[1]
        other = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="already in use"):
            other.bind(("", port))

    def test_is_both_families_unless_ipv6_is_told_otherwise(self, opened: ExitStack) -> None:
        port = bound(opened, socket.AF_INET, address="").getsockname()[1]
        six = opened.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        with pytest.raises(OSError, match="already in use"):
            six.bind(("", port))
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("", port))


class TestErrors:
    @families
    def test_is_raised_once_instead_of_sending_and_is_in_the_queue(
        self, opened: ExitStack, family: socket.AddressFamily
    ) -> None:
        """So what was to be sent has to be sent again."""
        sock, there = bound(opened, family), bound(opened, family)
        sock.setsockopt(*RECVERR[family], 1)
        sock.sendto(b"to nobody", nobody(opened, family))
        with pytest.raises(ConnectionRefusedError):
            sock.sendto(b"lost", there.getsockname())
        sock.sendto(b"again", there.getsockname())
        assert all_of(there) == [b"again"]
        quoted, _, _, _ = sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        assert quoted == b"to nobody"

    @families
    def test_is_not_raised_any_more_when_the_queue_was_read(
        self, opened: ExitStack, family: socket.AddressFamily
    ) -> None:
        sock, there = bound(opened, family), bound(opened, family)
        sock.setsockopt(*RECVERR[family], 1)
        sock.sendto(b"to nobody", nobody(opened, family))
        sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        sock.sendto(b"sent", there.getsockname())
        assert all_of(there) == [b"sent"]

    @families
    def test_is_an_event_as_long_as_it_is_in_the_queue(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        """Level-triggered, and whether asked for or not."""
        sock = bound(opened, family)
        sock.setsockopt(*RECVERR[family], 1)
        epoll = opened.enter_context(select.epoll())
        epoll.register(sock, 0)
        assert epoll.poll(0) == []
        sock.sendto(b"to nobody", nobody(opened, family))
        for _ in range(2):
            ((_, mask),) = epoll.poll(1)
            assert mask & select.EPOLLERR
        sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        assert epoll.poll(0) == []

    @families
    def test_about_segments_is_one_on_loopback(self, opened: ExitStack, family: socket.AddressFamily) -> None:
        """They are not cut there, if nobody takes them, and quoted as one."""
        sock = bound(opened, family)
        sock.setsockopt(*RECVERR[family], 1)
        sock.connect(nobody(opened, family))
        send_segments(sock, b"aaabbbcc", 3)
        assert sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)[0] == b"aaabbbcc"
        with pytest.raises(BlockingIOError):
            sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)


@families
def test_overflow_of_the_receive_buffer_is_counted(opened: ExitStack, family: socket.AddressFamily) -> None:
    one, other = connected(opened, family)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    for _ in range(100):
        one.send(bytes(500))
    info = struct.unpack("=9I", other.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    assert info[SK_MEMINFO_DROPS] == 100 - len(all_of(other)) > 0


@families
@pytest.mark.parametrize("hop_limit", [1, 64, 255])
def test_hop_limit_of_one_datagram(opened: ExitStack, family: socket.AddressFamily, hop_limit: int) -> None:
    """Also of segments; the socket's own stays as it was."""
    one, other = connected(opened, family)
    level, kind, told = HOP_LIMIT[family]
    other.setsockopt(level, told, 1)
    ancillary = [(level, kind, struct.pack("=i", hop_limit))]
    one.sendmsg([b"x"], ancillary)
    one.sendmsg([b"xx"], [*ancillary, (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1))])
    one.send(b"x")
    seen = []
    for _ in range(4):
        _, ((_, _, value),), _, _ = other.recvmsg(100, 100)
        seen.append(int.from_bytes(value[:4], "little"))
    assert seen == [hop_limit] * 3 + [64]


@pytest.mark.parametrize("value", [0, 256, -2])
def test_hop_limit_that_ipv4_has_not(opened: ExitStack, value: int) -> None:
    one, _ = connected(opened, socket.AF_INET)
    with pytest.raises(OSError, match="Invalid argument"):
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, value)
    with pytest.raises(OSError, match="Invalid argument"):
        one.sendmsg([b"x"], [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", value))])
