"""The error queue of datagram sockets: what the kernel's loopback says of what nobody takes."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address

import pytest
from harness.own_namespace import loopback_carries
from harness.stage import V4, V6, Family

from trio_passt.host import error_queue
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import (
    IP_RECVERR,
    ORIGIN_ICMP,
    ORIGIN_ICMPV6,
    ORIGIN_LOCAL,
    TOLD_AT_A_TIME,
    DatagramError,
)

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23  # linux/in.h, linux/in6.h
PMTUDISC_DO = 2

PORT_UNREACHABLE = {V4: (ORIGIN_ICMP, 3, 3), V6: (ORIGIN_ICMPV6, 1, 4)}
QUOTED_BYTES = {V4: 576 - 20 - 8 - 20 - 8, V6: 1280 - 40 - 8 - 40 - 8}
"""What an ICMP error has room for (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4), without the headers."""


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(opened: ExitStack, family: Family) -> socket.socket:
    sock = opened.enter_context(socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    sock.bind((family.local, 0))
    return sock


def nobody(opened: ExitStack, family: Family) -> tuple[str, int]:
    """An address where nobody is."""
    sock = bound(opened, family)
    name: tuple[str, int] = sock.getsockname()[:2]
    sock.close()
    return name


def with_queue(opened: ExitStack, family: Family) -> socket.socket:
    sock = bound(opened, family)
    error_queue.enable(sock)
    return sock


def send_to(sock: socket.socket, payload: bytes, name: tuple[str, int]) -> None:
    """Whatever is pending: an earlier datagram's error is raised by the next call, which does nothing else then."""
    with suppress(ConnectionRefusedError):
        sock.sendto(payload, name)
        return
    sock.sendto(payload, name)


def refusal(family: Family, name: tuple[str, int], quoted: bytes) -> DatagramError:
    reporter = ip_address(family.local).packed
    origin, type_, code = PORT_UNREACHABLE[family]
    destination = Endpoint(reporter, name[1])
    return DatagramError(errno.ECONNREFUSED, origin, type_, code, 0, reporter, destination, quoted)


def test_connected_socket_is_told_of_a_refusal(opened: ExitStack, family: Family) -> None:
    sock, name = with_queue(opened, family), nobody(opened, family)
    sock.connect(name)
    sock.send(b"anybody?")
    assert error_queue.read(sock) == refusal(family, name, b"anybody?")
    assert error_queue.read(sock) is None


def test_socket_of_everybody_is_told_whose_it_is(opened: ExitStack, family: Family) -> None:
    sock = with_queue(opened, family)
    names = [nobody(opened, family) for _ in range(3)]
    for number, name in enumerate(names):
        send_to(sock, b"%d" % number, name)
    wanted = [refusal(family, name, b"%d" % number) for number, name in enumerate(names)]
    assert error_queue.read_all(sock) == wanted


def test_pending_error_is_gone_with_the_last_one(opened: ExitStack, family: Family) -> None:
    sock = with_queue(opened, family)
    names = [nobody(opened, family) for _ in range(3)]
    for name in names:
        send_to(sock, b"anybody?", name)
    assert len(error_queue.read_all(sock)) == 3
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    sock.sendto(b"goes out at once", sock.getsockname())
    assert sock.recv(100) == b"goes out at once"


def test_datagrams_are_not_errors(opened: ExitStack, family: Family) -> None:
    sock, peer = with_queue(opened, family), bound(opened, family)
    assert error_queue.read_all(sock) == []
    peer.sendto(b"hello", sock.getsockname())
    assert error_queue.read(sock) is None
    assert error_queue.read_all(sock) == []
    assert sock.recv(100) == b"hello"


@pytest.mark.parametrize("size", [0, 1, 500, 2000, 9000])
def test_as_much_is_quoted_as_an_error_carries(opened: ExitStack, family: Family, size: int) -> None:
    sock, name = with_queue(opened, family), nobody(opened, family)
    payload = os.urandom(size)
    sock.sendto(payload, name)
    (error,) = error_queue.read_all(sock)
    assert error.quoted == payload[: QUOTED_BYTES[family]]


def test_without_it_nothing_is_kept(opened: ExitStack, family: Family) -> None:
    sock, name = bound(opened, family), nobody(opened, family)
    sock.connect(name)
    sock.send(b"anybody?")
    assert error_queue.read(sock) is None


def test_only_the_first_ones_are_told_of_many(opened: ExitStack, family: Family) -> None:
    """And the others are not left for the next time."""
    sock, name = with_queue(opened, family), nobody(opened, family)
    for number in range(3 * TOLD_AT_A_TIME):
        send_to(sock, b"%d" % number, name)
    told = error_queue.read_all(sock)
    assert [error.quoted for error in told] == [b"%d" % number for number in range(TOLD_AT_A_TIME)]
    assert error_queue.read_all(sock) == []


def test_only_so_many_are_read_at_a_time(opened: ExitStack, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may always be more: others have their turn."""
    monkeypatch.setattr(error_queue, "READ_AT_A_TIME", 5)
    sock, name = with_queue(opened, family), nobody(opened, family)
    for number in range(12):
        send_to(sock, b"%d" % number, name)
    told = [[error.quoted for error in error_queue.read_all(sock)] for _ in range(4)]
    assert told == [[b"%d" % number for number in some] for some in (range(5), range(5, 10), range(10, 12), ())]


def test_socket_that_is_closed(opened: ExitStack, family: Family) -> None:
    sock = with_queue(opened, family)
    sock.close()
    assert error_queue.read_all(sock) == []


def test_kernels_own_error_has_the_mtu(namespace: None, opened: ExitStack, family: Family) -> None:
    loopback_carries(1500)
    sock, peer = with_queue(opened, family), bound(opened, family)
    if family is V4:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    sock.connect(peer.getsockname())
    with pytest.raises(OSError, match="too long"):
        sock.send(bytes(3000))
    (error,) = error_queue.read_all(sock)
    assert (error.number, error.origin, error.info) == (errno.EMSGSIZE, ORIGIN_LOCAL, 1500)
    assert error.reporter is None
    assert error.destination == Endpoint.of(peer.getsockname())


# -- what this kernel does not say -------------------------------------------------------------------------------------


class FakeSocket(socket.socket):
    """Its error queue has what the test puts there: quoted payload, control message, name."""

    entry: tuple[bytes, list[tuple[int, int, bytes]], int, object]

    def recvmsg(self, *_sizes: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        return self.entry


def entry_of(opened: ExitStack, control: bytes, name: object, kind: int = IP_RECVERR) -> DatagramError | None:
    sock = opened.enter_context(FakeSocket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.entry = (b"quoted", [(socket.IPPROTO_IP, kind, control)], 0, name)
    return error_queue.read(sock)


FROM_A_ROUTER = struct.pack("=IBBBxII", errno.EHOSTUNREACH, ORIGIN_ICMP, 11, 0, 7, 0)
ROUTER4 = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes((192, 0, 2, 1)))
ROUTER6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, bytes(15) + b"\x07", 0)


@pytest.mark.parametrize(
    ("sockaddr", "reporter"),
    [
        (ROUTER4, bytes((192, 0, 2, 1))),
        (ROUTER6, bytes(15) + b"\x07"),
        (ROUTER4[:7], None),
        (ROUTER6[:20], None),
        (struct.pack("=H14x", socket.AF_UNSPEC), None),
        (b"", None),
    ],
)
def test_whoever_reports(opened: ExitStack, sockaddr: bytes, reporter: bytes | None) -> None:
    error = entry_of(opened, FROM_A_ROUTER + sockaddr, ("203.0.113.5", 9))
    destination = Endpoint(bytes((203, 0, 113, 5)), 9)
    assert error == DatagramError(errno.EHOSTUNREACH, ORIGIN_ICMP, 11, 0, 7, reporter, destination, b"quoted")
    assert not error.is_immediate


def test_kernel_itself_is_no_reporter(opened: ExitStack) -> None:
    """Whatever it has left where the address would be."""
    error = entry_of(opened, struct.pack("=IBBBxII", errno.EMSGSIZE, ORIGIN_LOCAL, 0, 0, 1500, 0) + ROUTER4, None)
    assert error is not None
    assert (error.reporter, error.info) == (None, 1500)
    assert error.is_immediate


@pytest.mark.parametrize("name", [None, ""])
def test_destination_that_is_not_told(opened: ExitStack, name: object) -> None:
    error = entry_of(opened, FROM_A_ROUTER + ROUTER4, name)
    assert error is not None
    assert error.destination is None


def test_destination_of_an_echo_has_no_port(opened: ExitStack) -> None:
    error = entry_of(opened, FROM_A_ROUTER + ROUTER4, ("203.0.113.5", 0))
    assert error is not None
    assert error.destination == Endpoint(bytes((203, 0, 113, 5)), 0)


def test_entry_that_is_no_error(opened: ExitStack) -> None:
    """Time stamps come by the same queue."""
    error = entry_of(opened, bytes(16), ("203.0.113.5", 9), kind=1)
    assert error is not None
    assert (error.number, error.origin, error.quoted) == (0, 0, b"quoted")
