"""The host's network changes under a guest: flows go on as they are, and new ones are as they are told."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import evolve
from harness.mapped import gateways_mapped
from harness.noise import noise
from harness.oracle import SeenUdp
from harness.stage import GUEST_MAC, V4, V6, Family, Stage, network, on_stage
from harness.waiting import eventually

from trio_passt.config import DnsForward, Former, GuestIPv4, GuestIPv6, GuestNetwork, Protocol
from trio_passt.wire.tcp import ACK, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")

NEW_V4 = Family(4, "203.0.113.7", "203.0.113.1", "127.0.0.1")
NEW_V6 = Family(6, "2001:db8:7::7", "fe80::7", "::1")


def changed(*, on_host: bool = False) -> GuestNetwork:
    """The network after `network()`."""
    before = network()
    assert before.ipv4 is not None
    assert before.ipv6 is not None
    now = GuestNetwork(
        GuestIPv4(IPv4Address(NEW_V4.guest), 24, IPv4Address(NEW_V4.gateway)),
        GuestIPv6(IPv6Address(NEW_V6.guest), 64, IPv6Address(NEW_V6.gateway)),
        former=(Former(before.ipv4, on_host), Former(before.ipv6, on_host)),
    )
    return gateways_mapped(now)


@pytest.fixture
def new(family: Family) -> Family:
    """What `family` is after the change."""
    return NEW_V4 if family is V4 else NEW_V6


async def test_what_a_session_has(guest: Stage) -> None:
    session, now = guest.session, changed()
    before = session.addresses
    session.change(now)
    assert session.network is now
    assert session.addresses is not before
    assert session.guest.mac == GUEST_MAC


async def test_connection_that_is_open_goes_on_both_ways(guest: Stage, family: Family) -> None:
    """From and to the addresses that it has always had, whatever the host's are."""
    tcp, host = await guest.connected(family)
    guest.session.change(changed())
    data = noise(100_000)
    await tcp.uploads(data[:50_000])
    await host.receives(data[:50_000])
    host.sends(data[50_000:])
    await tcp.expects_data(data[50_000:])
    assert tcp.remote == family.gateway


async def test_connection_that_is_being_opened_goes_on(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    host = guest.host_connects(family, port)
    tcp = await guest.asked_to_connect(family)
    guest.session.change(changed())
    tcp.sends(SYN | ACK, mss=1460, scale=7)
    await tcp.expects(ACK)
    tcp.sends(ACK, b"hello")
    await host.receives(b"hello")


@pytest.mark.parametrize("to_former", [True, False], ids=["former gateway", "gateway"])
async def test_new_connection_of_a_guest_with_its_former_address(
    guest: Stage, family: Family, new: Family, to_former: bool
) -> None:
    """It has not asked for another yet; both gateways are the host."""
    guest.session.change(changed())
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port, remote=(family if to_former else new).gateway)
    tcp.sends(SYN)
    host = await server.accepts()
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK, b"hello")
    await host.receives(b"hello")


async def test_new_connection_of_a_guest_with_its_new_address(guest: Stage, family: Family, new: Family) -> None:
    guest.session.change(changed())
    server = guest.host_serves(family)
    tcp = guest.tcp(new, server.port)
    tcp.sends(SYN)
    host = await server.accepts()
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK, b"hello")
    await host.receives(b"hello")


async def test_connection_from_the_host_goes_to_where_the_guest_is(guest: Stage, family: Family, new: Family) -> None:
    """And comes from the gateway of now, which a guest with another address reaches by its default route."""
    port = guest.forwards(Protocol.TCP, 80)
    guest.session.change(changed())
    guest.host_connects(family, port)
    await guest.asked_to_connect(family, remote=new.gateway)
    guest.session.guest.learn_address(new.guest_packed)
    guest.host_connects(family, port)
    await guest.asked_to_connect(new)


async def test_datagrams_of_a_flow_that_is_open_go_on_both_ways(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    port = host.getsockname()[1]
    guest.sends_datagram(family, 4000, port, b"before")
    await guest.settles()
    data, peer = host.recvfrom(100)
    assert data == b"before"
    guest.session.change(changed())
    guest.sends_datagram(family, 4000, port, b"after")
    await guest.settles()
    assert host.recvfrom(100) == (b"after", peer)  # the same socket on the host
    host.sendto(b"reply", peer)
    seen = await guest.expects_datagram()
    assert (seen.source, seen.destination, seen.payload) == (family.gateway, str(ip_address(family.guest)), b"reply")


async def test_datagrams_of_a_forwarded_port_go_on_both_ways(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, 53)
    client = guest.host_udp(family)
    client.sendto(b"question", (family.local, port))
    seen = await guest.expects_datagram()
    guest.sends_datagram(family, 53, seen.source_port, b"answer", remote=seen.source)
    await guest.settles()
    assert client.recv(100) == b"answer"
    guest.session.change(changed())
    client.sendto(b"another", (family.local, port))
    again = await guest.expects_datagram()
    assert (again.source, again.source_port, again.destination) == (seen.source, seen.source_port, seen.destination)
    guest.sends_datagram(family, 53, again.source_port, b"answer to it", remote=again.source)
    await guest.settles()
    assert client.recv(100) == b"answer to it"


async def test_new_datagrams_of_a_guest_with_its_new_address(guest: Stage, family: Family, new: Family) -> None:
    guest.session.change(changed())
    host = guest.host_udp(family)
    guest.sends_datagram(new, 4000, host.getsockname()[1], b"hello")
    await guest.settles()
    data, peer = host.recvfrom(100)
    host.sendto(b"hello yourself", peer)
    seen = await guest.expects_datagram()
    assert isinstance(seen, SeenUdp)
    assert (data, seen.source, seen.destination) == (b"hello", new.gateway, new.guest)


async def test_questions_go_to_the_nameserver_of_now(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the address that was told before the change, and at the one that is told now."""
    asked: list[str] = []
    connect, connect_tcp = socket.socket.connect, socket.socket.connect_ex

    def record(sock: socket.socket, address: tuple[str, int]) -> None:
        asked.append(address[0])
        connect(sock, address)

    def record_tcp(sock: socket.socket, address: tuple[str, int]) -> int:
        asked.append(address[0])
        return connect_tcp(sock, address)

    monkeypatch.setattr(socket.socket, "connect", record)
    monkeypatch.setattr(socket.socket, "connect_ex", record_tcp)
    first, second = IPv4Address("127.0.0.101"), IPv4Address("127.0.0.102")
    guest.session.change(evolve(network(), dns_forwards=(DnsForward(IPv4Address(V4.gateway), first),)))
    guest.sends_datagram(V4, 4001, 53, b"before")
    await eventually(lambda: asked or None, "a question")
    guest.session.change(
        evolve(
            changed(),
            dns_forwards=(DnsForward(IPv4Address(NEW_V4.gateway), second),),
            former_dns_forwards=(DnsForward(IPv4Address(V4.gateway), second),),
        )
    )
    guest.sends_datagram(V4, 4002, 53, b"after")
    guest.tcp(NEW_V4, 853).sends(SYN)
    await eventually(lambda: True if len(asked) >= 3 else None, "three questions")
    assert [asked[0], *set(asked[1:])] == [str(first), str(second)]


@pytest.mark.parametrize("new_family", [V4, V6], ids=str)
async def test_family_that_is_new(new_family: Family) -> None:
    """Its packets were nobody's before."""
    other = V6 if new_family is V4 else V4
    async with on_stage(network(ipv4=other is V4, ipv6=other is V6)) as guest:
        port = guest.forwards(Protocol.TCP, 80)
        tcp, host = await guest.connected(other)
        guest.sends_datagram(new_family, 4000, 9, b"x")
        await guest.expects_drop("address family is off")
        guest.session.change(network())
        guest.host_connects(new_family, port)
        await guest.asked_to_connect(new_family)
        await guest.connected(new_family)
        tcp.sends(ACK, b"still here")
        await host.receives(b"still here")
