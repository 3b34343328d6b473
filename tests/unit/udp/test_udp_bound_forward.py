"""Ports that are forwarded at one address of the host only (`-u ADDRESS/PORT`); and what a port's buffer has lost."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest
import trio
from harness.own_namespace import answer_for, has_address
from harness.ports import PORTS
from harness.stage import V4, V6, Family, Stage, on_stage
from udp_script import Name, datagram, exchange, is_asked, port_of, received, receives

from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.listeners import PortListeners

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353

HOST = {V4: ("192.0.2.1", "192.0.2.2"), V6: ("2001:db8:9::1", "2001:db8:9::2")}
"""Addresses of the host that are not loopback's; it speaks from the second one if nobody says otherwise."""
SUBNET = {V4: "203.0.113.0/24", V6: "2001:db8:8::/64"}
REMOTE = {V4: "203.0.113.7", V6: "2001:db8:8::7"}
PREFIX_LENGTH = {V4: 32, V6: 128}


@contextmanager
def forwarded(*addresses: str | None) -> Iterator[tuple[PortListeners, int]]:
    """One port of these addresses of the host (`None`: of all) is forwarded to the guest's; its number."""
    for number in itertools.islice(PORTS, 100):
        forwards = [
            PortForward(Protocol.UDP, number + index, number + index, TARGET, ip_address(address) if address else None)
            for index, address in enumerate(addresses)
        ]
        try:
            listeners = PortListeners.bind(forwards)
        except StartupError:  # in use
            continue
        with ExitStack() as opened:
            opened.callback(listeners.close)
            yield listeners, number
        return
    pytest.fail("no free port")


async def serve(guest: Stage, listeners: PortListeners, nursery: trio.Nursery, patch: pytest.MonkeyPatch) -> None:
    """They are the guest's."""
    listeners.receiver = guest.dispatcher
    patch.setattr(guest, "udp_port", listeners.udp_port)
    nursery.start_soon(listeners.run)


@pytest.fixture
def elsewhere(namespace: None, family: Family) -> str:
    """A remote that is not on loopback, though it is this host."""
    first, second = HOST[family]
    has_address(f"{first}/{PREFIX_LENGTH[family]}")
    answer_for(SUBNET[family], source=f"{second}/{PREFIX_LENGTH[family]}")
    return REMOTE[family]


async def asks(guest: Stage, family: Family, remote: str) -> tuple[Name, socket.socket]:
    """The guest, from the forwarded port's target, asks a remote that is not on loopback; who asked, for the remote."""
    host = guest.host_udp(family, ("", 0))
    guest.sends_packets(datagram(family, TARGET, port_of(host), b"request", remote=remote))
    return await receives(host, b"request"), host


async def test_loopbacks_port_is_spoken_from_to_loopback(
    guest: Stage, family: Family, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the guest that speaks first; and the answer comes back to its port."""
    with forwarded(family.local) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        assert await exchange(guest, guest.host_udp(family), family, TARGET) == (family.local, number)
        nursery.cancel_scope.cancel()


async def test_loopbacks_port_is_not_spoken_from_to_elsewhere(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does not let it out there: the flow has a socket of its own, from the host's address."""
    with forwarded(family.local) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        (address, port), _ = await asks(guest, family, elsewhere)
        assert address == HOST[family][1]
        assert port != number
        assert not guest.session.drops
        nursery.cancel_scope.cancel()


async def test_port_of_the_hosts_address_is_spoken_from_to_elsewhere(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the address that it is bound to, whatever the kernel would choose."""
    with forwarded(HOST[family][0]) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        asker, host = await asks(guest, family, elsewhere)
        assert asker == (HOST[family][0], number)
        assert len(guest.dispatcher.udp) == 1
        if family is V4:  # whose wildcard socket answers as the one that was asked
            host.sendto(b"reply", asker)
            assert (await guest.expects_datagram()).payload == b"reply"
        nursery.cancel_scope.cancel()


async def test_port_of_the_hosts_address_is_not_spoken_from_to_loopback(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarded(HOST[family][0]) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        address, port = await exchange(guest, guest.host_udp(family), family, TARGET)
        assert address == family.local
        assert port != number
        nursery.cancel_scope.cancel()


async def test_each_remote_is_spoken_to_from_the_port_that_reaches_it(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that are bound to one address each, and forwarded to one port of the guest's."""
    with forwarded(family.local, HOST[family][0]) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        assert await is_asked(guest, guest.host_udp(family), family, TARGET) == (family.local, number)
        assert (await asks(guest, family, elsewhere))[0] == (HOST[family][0], number + 1)
        nursery.cancel_scope.cancel()


async def test_port_of_all_addresses_comes_first(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stands on the command line."""
    with forwarded(HOST[family][0], None) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        assert await is_asked(guest, guest.host_udp(family), family, TARGET) == (family.local, number + 1)
        assert (await asks(guest, family, elsewhere))[0] == (HOST[family][1], number + 1)
        nursery.cancel_scope.cancel()


async def test_client_of_a_port_of_one_address_is_answered_from_there(
    guest: Stage, family: Family, elsewhere: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarded(HOST[family][0]) as (listeners, number):
        await serve(guest, listeners, nursery, monkeypatch)
        client = guest.host_udp(family, (HOST[family][1], 0))
        client.sendto(b"hello", (HOST[family][0], number))
        seen = await guest.expects_datagram()
        assert (seen.source, seen.destination_port) == (HOST[family][1], TARGET)
        guest.sends_packets(datagram(family, TARGET, seen.source_port, b"reply", remote=seen.source))
        assert await received(client) == (b"reply", (HOST[family][0], number))
        nursery.cancel_scope.cancel()


FLOOD = 3000


def floods(client: socket.socket, number: int, family: Family) -> None:
    """More than the port's receive buffer holds."""
    for _ in range(FLOOD):
        client.sendto(bytes(1000), (family.local, number))


async def hears_flood(guest: Stage, client: socket.socket, number: int, family: Family) -> int:
    """The flood comes while the link is full; how many of it the guest gets when there is room."""
    guest.link.set_capacity(frames=0)
    floods(client, number, family)
    await guest.settles()
    guest.link.set_capacity()
    await guest.settles()
    there = len(guest.link.take_sent())
    assert 0 < there < FLOOD
    return there


async def test_what_a_ports_buffer_has_lost_is_counted_when_the_guest_goes(
    family: Family, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each guest by itself, and not what came while there was none."""
    with forwarded(None) as (listeners, number), socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
        nursery.start_soon(listeners.run)
        for _ in range(2):
            floods(client, number, family)
            await trio.testing.wait_all_tasks_blocked(0.001)
            async with on_stage() as guest:
                listeners.receiver = guest.dispatcher
                monkeypatch.setattr(guest, "udp_port", listeners.udp_port)
                client.sendto(b"hello", (family.local, number))
                assert (await guest.expects_datagram()).payload == b"hello"
                there = sum([await hears_flood(guest, client, number, family) for _ in range(2)])
                assert not guest.session.drops
                listeners.receiver = None
                assert guest.session.drops == {"udp: receive buffer of the host full": 2 * FLOOD - there}
        nursery.cancel_scope.cancel()


async def test_what_was_lost_before_the_guest_took_the_first_one_is_counted_too(
    family: Family, nursery: trio.Nursery
) -> None:
    """Its link was full already when it came."""
    with forwarded(None) as (listeners, number), socket.socket(family.socket_family, socket.SOCK_DGRAM) as client:
        nursery.start_soon(listeners.run)
        async with on_stage() as guest:
            listeners.receiver = guest.dispatcher
            there = await hears_flood(guest, client, number, family)
            listeners.receiver = None
            assert guest.session.drops == {"udp: receive buffer of the host full": FLOOD - there}
        nursery.cancel_scope.cancel()


async def test_guest_that_had_none_has_lost_none(nursery: trio.Nursery) -> None:
    with forwarded(None) as (listeners, _):
        nursery.start_soon(listeners.run)
        async with on_stage() as guest:
            listeners.receiver = guest.dispatcher
            await guest.settles()
            listeners.receiver = None
            assert not guest.session.drops
        nursery.cancel_scope.cancel()


async def test_port_whose_interface_is_another_by_now(
    guest: Stage, family: Family, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket has been closed: the flow ends with the datagram that finds out, and the next one begins anew."""
    number = next(PORTS)
    listeners = PortListeners.bind([PortForward(Protocol.UDP, number, number, TARGET, interface="lo")])
    with ExitStack() as opened:
        opened.callback(listeners.close)
        await serve(guest, listeners, nursery, monkeypatch)
        host = guest.host_udp(family)
        assert await is_asked(guest, host, family, TARGET) == (family.local, number)
        listeners._binder._interfaces["lo"] = 9999
        assert listeners.follow_interfaces()
        guest.sends_packets(datagram(family, TARGET, port_of(host), b"lost"))
        await guest.settles()
        assert guest.session.drops["udp: Bad file descriptor"] == 1
        assert not guest.dispatcher.udp
        guest.link.take_sent()
        assert await is_asked(guest, host, family, TARGET) == (family.local, number)
        nursery.cancel_scope.cancel()
