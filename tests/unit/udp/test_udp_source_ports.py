"""Which port of the host a guest's endpoint speaks from: its own, where that can be had."""

import errno
import os
import socket

import pytest
from harness.own_namespace import has_address
from harness.stage import V4, V6, Family, Stage
from udp_script import Name, datagram, exchange, free_port, hears, is_asked, port_of, receives

from trio_passt.config import Protocol
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_guests_port_is_kept(guest: Stage, family: Family) -> None:
    host, port = guest.host_udp(family), free_port(family)
    assert await exchange(guest, host, family, port) == (family.local, port)
    await guest.passes(IDLE_S + 1)
    assert await exchange(guest, host, family, port) == (family.local, port)


async def test_port_that_is_taken_on_the_host(guest: Stage, family: Family) -> None:
    host, other = guest.host_udp(family), guest.host_udp(family)
    _, port = await exchange(guest, host, family, port_of(other))
    assert port != port_of(other)
    await guest.expects_nothing()


async def test_port_that_is_taken_in_the_other_family(guest: Stage) -> None:
    port = free_port(V6)
    for family in (V6, V4):
        assert await exchange(guest, guest.host_udp(family), family, port) == (family.local, port)


async def test_all_remotes_see_one_port_and_each_gets_its_own_replies(guest: Stage, family: Family) -> None:
    hosts, port = [guest.host_udp(family) for _ in range(5)], free_port(family)
    for host in hosts:
        assert await is_asked(guest, host, family, port) == (family.local, port)
    for host in reversed(hosts):
        host.sendto(b"of %d" % port_of(host), (family.local, port))
        await hears(guest, family, b"of %d" % port_of(host), (port_of(host), port))
    assert len(guest.dispatcher.udp) == 5
    await guest.expects_nothing()


async def test_remote_that_comes_when_another_has_gone(guest: Stage, family: Family) -> None:
    hosts, port = [guest.host_udp(family) for _ in range(3)], free_port(family)
    await exchange(guest, hosts[0], family, port)
    await guest.passes(IDLE_S - 1)
    await exchange(guest, hosts[1], family, port)
    await guest.passes(2)
    assert len(guest.dispatcher.udp) == 1
    for host in (hosts[2], hosts[1], hosts[0]):
        assert await exchange(guest, host, family, port) == (family.local, port)


async def test_privileged_port(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which this process may not have: NTP's symmetric mode goes by another one then."""
    host = guest.host_udp(family)
    bind = socket.socket.bind

    def refuse_low_ones(sock: socket.socket, address: Name) -> None:
        if 0 < address[1] < 1024:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", refuse_low_ones)
    _, port = await exchange(guest, host, family, 123)
    assert port >= 1024


async def test_strangers_are_not_heard_before_the_socket_is_connected(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, stranger, port = (guest.host_udp(family), guest.host_udp(family), free_port(family))
    connect = socket.socket.connect

    def late(sock: socket.socket, address: Name) -> None:
        stranger.sendto(b"forged", (family.local, port))
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", late)
    assert await is_asked(guest, host, family, port) == (family.local, port)
    stranger.sendto(b"forged", (family.local, port))
    await guest.expects_nothing()
    host.sendto(b"genuine", (family.local, port))
    await hears(guest, family, b"genuine", (port_of(host), port))


async def test_two_addresses_of_the_guest_with_one_port(guest: Stage, family: Family) -> None:
    """To one remote they have to look different."""
    host, port = guest.host_udp(family), free_port(family)
    other = "198.51.100.6" if family is V4 else "2001:db8:1:2::6"
    first = await is_asked(guest, host, family, port)
    guest.sends_packets(datagram(family, port, port_of(host), b"request", source=other))
    second = await receives(host, b"request")
    assert first[1] == port
    assert second[1] != port
    for flow, destination in ((second, other), (first, family.guest)):
        host.sendto(b"reply", flow)
        seen = await guest.expects_datagram()
        assert (seen.destination, seen.destination_port) == (destination, port)


class TestForwardedPort:
    """What is forwarded to the guest's port is the guest's port towards all the world."""

    TARGET = 5353

    async def test_is_spoken_from(self, guest: Stage, family: Family) -> None:
        port = guest.forwards(Protocol.UDP, self.TARGET)
        for host in [guest.host_udp(family) for _ in range(3)]:
            assert await exchange(guest, host, family, self.TARGET) == (family.local, port)
        assert len(guest.dispatcher.udp) == 3
        await guest.expects_nothing()
        assert not guest.session.drops

    async def test_is_not_that_of_other_ports(self, guest: Stage, family: Family) -> None:
        port, own = guest.forwards(Protocol.UDP, self.TARGET), free_port(family)
        assert await exchange(guest, guest.host_udp(family), family, own) == (family.local, own)
        assert await exchange(guest, guest.host_udp(family), family, self.TARGET) == (family.local, port)

    async def test_on_the_host_is_taken_for_all_others(self, guest: Stage, family: Family) -> None:
        """The guest's own port of the same number is not the forwarded one."""
        port = guest.forwards(Protocol.UDP, self.TARGET)
        flow = await exchange(guest, guest.host_udp(family), family, port)
        assert flow[1] != port

    async def test_replies_come_to_the_flow_that_asked(self, guest: Stage, family: Family) -> None:
        """And whoever was not asked opens a flow of his own."""
        port = guest.forwards(Protocol.UDP, self.TARGET)
        asked, stranger = guest.host_udp(family), guest.host_udp(family)
        await is_asked(guest, asked, family, self.TARGET)
        for host in (stranger, asked):
            host.sendto(b"hello", (family.local, port))
            await hears(guest, family, b"hello", (port_of(host), self.TARGET))
        assert len(guest.dispatcher.udp) == 2

    async def test_silence_ends_it_and_the_port_stays(self, guest: Stage, family: Family) -> None:
        port, host = guest.forwards(Protocol.UDP, self.TARGET), guest.host_udp(family)
        await exchange(guest, host, family, self.TARGET)
        await guest.passes(IDLE_S + 1)
        assert len(guest.dispatcher.udp) == 0
        host.sendto(b"hello", (family.local, port))
        await hears(guest, family, b"hello", (port_of(host), self.TARGET))
        assert await exchange(guest, host, family, self.TARGET) == (family.local, port)

    async def test_of_one_address_is_spoken_from_where_it_can_reach(
        self, namespace: None, guest: Stage, family: Family
    ) -> None:
        """That of loopback reaches the host, and nobody else: to others the guest speaks from its own port."""
        elsewhere = "203.0.113.9" if family is V4 else "2001:db8:9::9"
        has_address(elsewhere)
        port = guest.forwards(Protocol.UDP, self.TARGET, family.local)
        assert await exchange(guest, guest.host_udp(family), family, self.TARGET) == (family.local, port)
        host = guest.host_udp(family, (elsewhere, 0))
        guest.sends_packets(datagram(family, self.TARGET, port_of(host), b"request", remote=elsewhere))
        assert (await receives(host, b"request"))[1] == self.TARGET
