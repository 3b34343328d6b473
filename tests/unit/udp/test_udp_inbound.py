"""Datagrams to a forwarded port go to the guest, and its replies to whoever sent them."""

import errno
import os
import socket
from collections.abc import Sequence

import pytest
from harness.own_namespace import has_address
from harness.stage import V4, V6, Family, Stage, network, on_stage
from udp_script import datagram, is_asked, port_of, received, receives

from trio_passt import dispatch
from trio_passt.config import Protocol
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import UdpPort
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353

ELSEWHERE = {V4: ("192.0.2.1", "203.0.113.7"), V6: ("2001:db8:9::1", "2001:db8:8::7")}
"""Two addresses of the host that are not loopback's."""


async def arrives(guest: Stage, family: Family, payload: bytes) -> int:
    """The datagram comes from the gateway to the guest's port; returns the port it comes from."""
    seen = await guest.expects_datagram()
    assert (seen.source, seen.destination, seen.destination_port) == (family.gateway, family.guest, TARGET)
    assert seen.payload == payload
    return seen.source_port


async def test_request_and_reply(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    for request, reply in ((b"request", b"reply"), (b"", b""), (b"again", os.urandom(60_000))):
        client.sendto(request, (family.local, port))
        assert await arrives(guest, family, request) == port_of(client)
        guest.sends_datagram(family, TARGET, port_of(client), reply)
        assert await received(client) == (reply, (family.local, port))
    assert len(guest.dispatcher.udp) == 1
    await guest.expects_nothing()


async def test_many_at_once_in_order(guest: Stage, family: Family) -> None:
    """Of several clients, of all sizes."""
    port = guest.forwards(Protocol.UDP, TARGET)
    clients = [guest.host_udp(family) for _ in range(3)]
    for number in range(200):
        clients[number % 5 % 3].sendto(b"%d" % number + bytes(number % 7), (family.local, port))
    for number in range(200):
        source_port = await arrives(guest, family, b"%d" % number + bytes(number % 7))
        assert source_port == port_of(clients[number % 5 % 3])
    assert not guest.session.drops


async def test_replies_in_one_batch_go_out_in_order(guest: Stage, family: Family) -> None:
    """As one where they are of one size, and each from the address that was asked."""
    port = guest.forwards(Protocol.UDP, TARGET)
    clients = [guest.host_udp(family) for _ in range(2)]
    for client in clients:
        client.sendto(b"hello", (family.local, port))
        await arrives(guest, family, b"hello")
    sizes = [100] * 20 + [7] + [100, 99, 100] + [0] + [1400] * 50
    payloads = [b"%d," % number + bytes(size) if size else b"" for number, size in enumerate(sizes)]
    guest.sends_packets(
        *(datagram(family, TARGET, port_of(client), payload) for payload in payloads for client in clients)
    )
    for client in clients:
        assert await receives(client, *payloads) == (family.local, port)
    assert not guest.session.drops


async def test_clients_are_kept_apart(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    clients = [guest.host_udp(family) for _ in range(3)]
    for client in clients:
        client.sendto(b"hello", (family.local, port))
        assert await arrives(guest, family, b"hello") == port_of(client)
    for client in reversed(clients):
        guest.sends_datagram(family, TARGET, port_of(client), b"to %d" % port_of(client))
    for client in clients:
        assert (await received(client))[0] == b"to %d" % port_of(client)
    assert len(guest.dispatcher.udp) == 3


async def test_reply_leaves_from_the_address_that_was_asked(guest: Stage) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(V4, ("127.0.0.1", 0))
    for asked in ("127.0.0.2", "127.0.0.1", "127.1.2.3"):
        client.sendto(b"hello", (asked, port))
        assert await arrives(guest, V4, b"hello") == port_of(client)
        guest.sends_datagram(V4, TARGET, port_of(client), b"reply")
        assert await received(client) == (b"reply", (asked, port))


async def test_clients_of_two_addresses_with_one_port_are_kept_apart(guest: Stage) -> None:
    """Both appear as the gateway, so one of them gets another port; and keeps it."""
    port = guest.forwards(Protocol.UDP, TARGET)
    one = guest.host_udp(V4, ("127.0.0.1", 0))
    two = guest.host_udp(V4, ("127.0.0.2", port_of(one)))
    seen_as: dict[socket.socket, set[int]] = {one: set(), two: set()}
    for _ in range(3):
        for client in (one, two):
            client.sendto(b"hello", ("127.0.0.1", port))
            remote_port = await arrives(guest, V4, b"hello")
            seen_as[client].add(remote_port)
            guest.sends_datagram(V4, TARGET, remote_port, b"reply to %d" % remote_port)
            assert await received(client) == (b"reply to %d" % remote_port, ("127.0.0.1", port))
    assert seen_as[one] == {port_of(one)}
    assert len(seen_as[two]) == 1
    assert seen_as[one] != seen_as[two]
    assert len(guest.dispatcher.udp) == 2


async def test_client_keeps_its_name_when_the_other_has_gone(guest: Stage) -> None:
    """As long as its flow lives: to the guest, another port would be somebody else."""
    port = guest.forwards(Protocol.UDP, TARGET)
    one = guest.host_udp(V4, ("127.0.0.1", 0))
    two = guest.host_udp(V4, ("127.0.0.2", port_of(one)))
    for client in (one, two):
        client.sendto(b"hello", ("127.0.0.1", port))
        name = await arrives(guest, V4, b"hello")
    await guest.passes(IDLE_S - 1)
    two.sendto(b"still here", ("127.0.0.1", port))
    assert await arrives(guest, V4, b"still here") == name
    await guest.passes(2)
    assert len(guest.dispatcher.udp) == 1
    two.sendto(b"and now", ("127.0.0.1", port))
    assert await arrives(guest, V4, b"and now") == name
    two.close()
    guest.sends_datagram(V4, TARGET, name, b"reply")
    error = await guest.expects_error()
    assert (error.type, error.code) == (3, 3)


async def test_client_whose_port_is_a_server_of_the_guests(guest: Stage) -> None:
    """The guest asked a server on the host, from another port; that one's socket then asks by a forwarded port."""
    port = guest.forwards(Protocol.UDP, TARGET)
    host = guest.host_udp(V4)
    flow = await is_asked(guest, host, V4, 5000)
    host.sendto(b"hello", ("127.0.0.1", port))
    assert await arrives(guest, V4, b"hello") == port_of(host)
    guest.sends_datagram(V4, TARGET, port_of(host), b"reply")
    assert await received(host) == (b"reply", ("127.0.0.1", port))
    assert await is_asked(guest, host, V4, 5000) == flow
    assert len(guest.dispatcher.udp) == 2


async def test_client_that_the_guest_spoke_to_from_the_same_port_before_it_was_forwarded(guest: Stage) -> None:
    """It has a flow of its own socket already: as a client it appears at another port."""
    host = guest.host_udp(V4)
    flow = await is_asked(guest, host, V4, TARGET)
    port = guest.forwards(Protocol.UDP, TARGET)
    host.sendto(b"hello", ("127.0.0.1", port))
    remote_port = await arrives(guest, V4, b"hello")
    assert remote_port != port_of(host)
    guest.sends_datagram(V4, TARGET, remote_port, b"reply")
    assert await received(host) == (b"reply", ("127.0.0.1", port))
    assert await is_asked(guest, host, V4, TARGET) == flow


async def test_reply_leaves_from_the_address_asked_also_after_the_guest_spoke_first(guest: Stage) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    host = guest.host_udp(V4)
    await is_asked(guest, host, V4, TARGET)
    host.sendto(b"hello", ("127.0.0.7", port))
    assert await arrives(guest, V4, b"hello") == port_of(host)
    guest.sends_datagram(V4, TARGET, port_of(host), b"reply")
    assert await received(host) == (b"reply", ("127.0.0.7", port))
    assert len(guest.dispatcher.udp) == 1


async def test_two_forwarded_ports_to_different_targets(guest: Stage) -> None:
    ports = [guest.forwards(Protocol.UDP, target) for target in (TARGET, TARGET + 1)]
    client = guest.host_udp(V4)
    for port in ports:
        client.sendto(b"hello", (V4.local, port))
    seen = sorted([await guest.expects_datagram() for _ in ports], key=lambda datagram: datagram.destination_port)
    assert [datagram.destination_port for datagram in seen] == [TARGET, TARGET + 1]
    for one, port in zip(seen, ports, strict=True):
        guest.sends_datagram(V4, one.destination_port, one.source_port, b"reply")
        assert await received(client) == (b"reply", (V4.local, port))


async def test_silence_ends_a_flow(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    client.sendto(b"hello", (family.local, port))
    await arrives(guest, family, b"hello")
    await guest.passes(IDLE_S - 1)
    guest.sends_datagram(family, TARGET, port_of(client), b"still here")
    assert (await received(client))[0] == b"still here"
    await guest.passes(IDLE_S - 1)
    client.sendto(b"me too", (family.local, port))
    await arrives(guest, family, b"me too")
    await guest.passes(IDLE_S - 1)
    assert len(guest.dispatcher.udp) == 1
    await guest.passes(2)
    assert len(guest.dispatcher.udp) == 0
    client.sendto(b"hello again", (family.local, port))
    await arrives(guest, family, b"hello again")


@pytest.mark.parametrize("off", [V4, V6], ids=str)
async def test_family_that_is_off(off: Family) -> None:
    async with on_stage(network(ipv4=off.version != 4, ipv6=off.version != 6)) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        guest.host_udp(off).sendto(b"hello", (off.local, port))
        await guest.expects_drop("udp: forwarded, but its family is off")
        on = V6 if off == V4 else V4
        guest.host_udp(on).sendto(b"hello", (on.local, port))
        await arrives(guest, on, b"hello")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EAGAIN, "udp: send buffer of the host full"), (errno.EHOSTUNREACH, "udp: No route to host")],
)
async def test_reply_that_the_host_does_not_take_is_counted(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def fail(
        _port: UdpPort, _payloads: Sequence[memoryview], _ancillary: object, _peer: Endpoint, _source: bytes
    ) -> None:
        raise OSError(number, os.strerror(number))

    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(V4)
    client.sendto(b"hello", (V4.local, port))
    await arrives(guest, V4, b"hello")
    with monkeypatch.context() as patched:
        patched.setattr(UdpPort, "send", fail)
        guest.sends_datagram(V4, TARGET, port_of(client), b"reply")
        await guest.expects_drop(reason)
    client.sendto(b"hello", (V4.local, port))
    await arrives(guest, V4, b"hello")
    guest.sends_datagram(V4, TARGET, port_of(client), b"reply")
    assert await received(client) == (b"reply", (V4.local, port))


async def test_guest_that_is_not_known_yet_is_asked_for() -> None:
    async with on_stage() as guest:
        guest.session.guest.mac = b"\xff" * 6
        port = guest.forwards(Protocol.UDP, TARGET)
        guest.host_udp(V4).sendto(b"hello", (V4.local, port))
        await guest.settles()
        frames = guest.link.take_sent()
        assert {frame[12:14] for frame in frames[:2]} == {b"\x08\x06", b"\x86\xdd"}


async def test_client_for_which_no_name_is_left(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ports that it could have at the gateway's address are others' already."""
    monkeypatch.setattr(dispatch, "OTHER_PORTS", 0)
    host = guest.host_udp(V4)
    await is_asked(guest, host, V4, TARGET)
    port = guest.forwards(Protocol.UDP, TARGET)
    for _ in range(2):
        host.sendto(b"hello", (V4.local, port))
    await guest.expects_drop("udp: forwarded, but no flow for it", 2)
    await guest.expects_nothing()


async def test_remote_that_answers_to_the_forwarded_port(namespace: None, guest: Stage, family: Family) -> None:
    """Elsewhere it has but one name: what it sends belongs to the flow that the guest has with it already."""
    elsewhere, _ = ELSEWHERE[family]
    has_address(elsewhere)
    host = guest.host_udp(family, (elsewhere, 0))
    guest.sends_packets(datagram(family, TARGET, port_of(host), b"request", remote=elsewhere))
    flow = await receives(host, b"request")
    port = guest.forwards(Protocol.UDP, TARGET)
    for destination in (flow, (elsewhere, port)):
        host.sendto(b"reply", destination)
        seen = await guest.expects_datagram()
        assert (seen.source, seen.source_port, seen.destination_port) == (elsewhere, port_of(host), TARGET)
    guest.sends_packets(datagram(family, TARGET, port_of(host), b"again", remote=elsewhere))
    assert await receives(host, b"again") == flow
    assert len(guest.dispatcher.udp) == 1


async def test_client_from_elsewhere_keeps_its_address(namespace: None, guest: Stage, family: Family) -> None:
    elsewhere, asked = ELSEWHERE[family]
    for address in (elsewhere, asked):
        has_address(address)
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family, (elsewhere, 0))
    client.sendto(b"hello", (asked, port))
    seen = await guest.expects_datagram()
    assert (seen.source, seen.source_port) == (elsewhere, port_of(client))
    guest.sends_packets(datagram(family, TARGET, port_of(client), b"reply", remote=elsewhere))
    assert await received(client) == (b"reply", (asked, port))
