"""Sockets that leave the host where the operator says: by an interface, from an address."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from harness.own_namespace import answer_for, has_address
from harness.stage import V4, V6, Family

from trio_passt.config import Outbound
from trio_passt.errors import StartupError
from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import NoWayOutError, Way, check_outbound, way

pytestmark = pytest.mark.usefixtures("namespace")

FIRST = {V4: "192.0.2.2", V6: "2001:db8:1::2"}
SECOND = {V4: "203.0.113.2", V6: "2001:db8:3::2"}
PEERS = {V4: ("198.51.100.0/24", "198.51.100.9"), V6: ("2001:db8:2::/64", "2001:db8:2::9")}
"""The host's own, that are asked from its first address unless something else is said."""

GONE = "gone0"


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.fixture
def opened(namespace: None) -> Iterator[ExitStack]:
    """What a test opens is closed; the host has two addresses of each family."""
    for family, bits in ((V4, 32), (V6, 128)):  # loopback would have all of an IPv4 network
        answer_for(PEERS[family][0], source=f"{FIRST[family]}/{bits}")
        has_address(f"{SECOND[family]}/{bits}")
    with ExitStack() as opened:
        yield opened


def server(opened: ExitStack, family: Family, kind: socket.SocketKind) -> socket.socket:
    """At all addresses, to be asked at that of the family's peer (`endpoint`)."""
    sock = opened.enter_context(socket.socket(family.socket_family, kind))
    sock.bind(("", 0))
    sock.settimeout(30)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def endpoint(sock: socket.socket) -> Endpoint:
    version = V4 if sock.family == socket.AF_INET else V6
    return Endpoint(packed(PEERS[version][1]), sock.getsockname()[1])


@pytest.mark.parametrize(
    ("outbound", "ipv4", "ipv6"),
    [
        (Outbound(), None, None),
        (Outbound(ipv4_interface="eth0"), Way("eth0"), None),
        (Outbound(ipv6_address=IPv6Address("2001:db8::1")), None, Way(None, packed("2001:db8::1"))),
        (
            Outbound(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), "eth0", "eth1"),
            Way("eth0", packed("192.0.2.1")),
            Way("eth1", packed("2001:db8::1")),
        ),
    ],
)
def test_each_family_has_its_own_way(outbound: Outbound, ipv4: Way | None, ipv6: Way | None) -> None:
    assert (way(outbound, 4), way(outbound, 16)) == (ipv4, ipv6)


def test_tcp_connection_comes_from_the_address(opened: ExitStack, family: Family) -> None:
    listener = server(opened, family, socket.SOCK_STREAM)
    for found, seen in ((None, FIRST), (Way(None, packed(SECOND[family])), SECOND)):
        sock = opened.enter_context(sockets.start_tcp_connection(endpoint(listener), found))
        accepted, peer = listener.accept()
        opened.enter_context(accepted)
        assert peer[:2] == (seen[family], sock.getsockname()[1])


def test_connections_from_one_address_may_share_a_port(opened: ExitStack, family: Family) -> None:
    """The port is chosen when the peer is known (ip(7), IP_BIND_ADDRESS_NO_PORT)."""
    listeners = [server(opened, family, socket.SOCK_STREAM) for _ in range(2)]
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w", encoding="ascii") as limits:
        limits.write("40000 40001")
    found = Way(None, packed(SECOND[family]))
    ports = [
        opened.enter_context(sockets.start_tcp_connection(endpoint(listener), found)).getsockname()[1]
        for listener in listeners
        for _ in range(2)
    ]
    assert sorted(ports) == [40000, 40000, 40001, 40001]


@pytest.mark.parametrize("port", [0, 5353])
def test_datagrams_come_from_the_address_and_the_port(opened: ExitStack, family: Family, port: int) -> None:
    peer = server(opened, family, socket.SOCK_DGRAM)
    sock, has_port = sockets.open_udp(endpoint(peer), port, (), Way(None, packed(SECOND[family])))
    opened.enter_context(sock)
    sock.send(b"data")
    _, (address, seen_port, *_) = peer.recvfrom(10)
    assert (address, has_port) == (SECOND[family], port != 0)
    assert seen_port == port or port == 0


def test_port_that_is_not_free_is_another_from_the_same_address(opened: ExitStack, family: Family) -> None:
    peer = server(opened, family, socket.SOCK_DGRAM)
    other = opened.enter_context(socket.socket(family.socket_family, socket.SOCK_DGRAM))
    other.bind((SECOND[family], 0))
    found = Way("lo", packed(SECOND[family]))
    sock, has_port = sockets.open_udp(endpoint(peer), other.getsockname()[1], (), found)
    opened.enter_context(sock)
    sock.send(b"data")
    _, (address, seen_port, *_) = peer.recvfrom(10)
    assert (address, has_port) == (SECOND[family], False)
    assert seen_port != other.getsockname()[1]


def test_several_sockets_share_the_port(opened: ExitStack, family: Family) -> None:
    found = Way("lo", packed(SECOND[family]))
    peers = [server(opened, family, socket.SOCK_DGRAM) for _ in range(2)]
    first, _ = sockets.open_udp(endpoint(peers[0]), 5353, (), found)
    second, has_port = sockets.open_udp(endpoint(peers[1]), 5353, (opened.enter_context(first),), found)
    opened.enter_context(second)
    assert has_port
    for sock, peer in zip((first, second), peers, strict=True):
        sock.send(b"question")
        _, name = peer.recvfrom(10)
        assert name[:2] == (SECOND[family], 5353)
    assert first.getpeername() != second.getpeername()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_interface(opened: ExitStack, family: Family, kind: socket.SocketKind) -> None:
    peer = endpoint(server(opened, family, kind))
    is_tcp = kind == socket.SOCK_STREAM
    sock = sockets.start_tcp_connection(peer, Way("lo")) if is_tcp else sockets.open_udp(peer, 5353, (), Way("lo"))[0]
    opened.enter_context(sock)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
    assert sock.getsockname()[0] == FIRST[family]


def test_echo_requests(opened: ExitStack, family: Family) -> None:
    found = Way("lo", packed(SECOND[family]))
    sock = opened.enter_context(sockets.open_ping(len(family.guest_packed), 0x1234, found))
    again = opened.enter_context(sockets.open_ping(len(family.guest_packed), 0x1234, found))
    assert sock.getsockname()[:2] == (SECOND[family], 0x1234)
    assert again.getsockname()[0] == SECOND[family]
    assert again.getsockname()[1] not in (0, 0x1234)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


OPENERS = {
    "TCP": sockets.start_tcp_connection,
    "UDP": lambda peer, found: sockets.open_udp(peer, 5353, (), found)[0],
    "UDP from any port": lambda peer, found: sockets.open_udp(peer, 0, (), found)[0],
    "echo": lambda peer, found: sockets.open_ping(len(peer.address), 9, found),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_what_is_not_there_is_no_way_out(opened: ExitStack, family: Family, opener: Any) -> None:
    peer = Endpoint(packed(PEERS[family][1]), 9)
    absent = {V4: "192.0.2.99", V6: "2001:db8:1::99"}[family]
    for found, text in (
        (Way(GONE), "interface gone0: no such interface"),
        (Way(None, packed(absent)), f"source address {absent}: not an address of this host"),
        (Way("lo", packed(absent)), f"source address {absent}: not an address of this host"),
    ):
        with pytest.raises(NoWayOutError, match=text) as raised:
            opener(peer, found)
        assert raised.value.errno == errno.ENETUNREACH
        assert sockets.lacks_means(raised.value)


def test_one_datagram_of_a_socket_that_all_share(opened: ExitStack, family: Family) -> None:
    peer = server(opened, family, socket.SOCK_DGRAM)
    sock = opened.enter_context(socket.socket(family.socket_family, socket.SOCK_DGRAM))
    sock.bind(("", 5353))
    for found, seen in ((Way("lo", packed(SECOND[family])), SECOND), (Way(None, packed(SECOND[family])), SECOND)):
        sock.sendmsg([b"data"], [found.of_one_datagram(len(family.guest_packed))], 0, endpoint(peer).sockaddr())
        _, name = peer.recvfrom(10)
        assert name[:2] == (seen[family], 5353)
    with pytest.raises(NoWayOutError, match="no such interface"):
        Way(GONE).of_one_datagram(len(family.guest_packed))


def test_link_local_address_has_its_interface(opened: ExitStack) -> None:
    has_address("fe80::5/64")
    sock = opened.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    Way("lo", packed("fe80::5")).bind(sock)
    assert sock.getsockname()[3] == socket.if_nametoindex("lo")
    check_outbound(Outbound(ipv6_address=IPv6Address("fe80::5"), ipv6_interface="lo"))
    with pytest.raises(StartupError, match=r"--outbound fe80::5: .*needs an interface"):
        check_outbound(Outbound(ipv6_address=IPv6Address("fe80::5")))


def test_what_is_there_can_be_used(opened: ExitStack) -> None:
    addresses = (IPv4Address(SECOND[V4]), IPv6Address(SECOND[V6]))
    for outbound in (Outbound(), Outbound(*addresses), Outbound(None, None, "lo", "lo"), Outbound(*addresses, "lo")):
        check_outbound(outbound)


@pytest.mark.parametrize(
    ("outbound", "text"),
    [
        (Outbound(ipv4_interface=GONE), "--outbound-if4 gone0: no such interface"),
        (Outbound(ipv6_interface=GONE), "--outbound-if6 gone0: no such interface"),
        (Outbound(IPv4Address("192.0.2.99")), "--outbound 192.0.2.99: not an address of this host"),
        (
            Outbound(None, IPv6Address("2001:db8:1::99"), "lo", "lo"),
            "--outbound 2001:db8:1::99: not an address of this host",
        ),
    ],
)
def test_start_says_what_is_not_there(opened: ExitStack, outbound: Outbound, text: str) -> None:
    with pytest.raises(StartupError) as raised:
        check_outbound(outbound)
    assert str(raised.value) == text


def test_start_without_a_family(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_arguments: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", unsupported)
    with pytest.raises(StartupError, match="--outbound 2001:db8:3::2: Address family not supported"):
        check_outbound(Outbound(ipv6_address=IPv6Address(SECOND[V6])))
    with pytest.raises(StartupError, match="--outbound-if4 lo: Address family not supported"):
        check_outbound(Outbound(ipv4_interface="lo"))
