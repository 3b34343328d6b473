"""Datagrams to a forwarded port go to the guest, and its replies to whoever sent them."""

import errno
import os
import socket

import pytest
from harness.stage import V4, V6, Family, Stage, network, on_stage
from harness.waiting import eventually

from trio_passt.config import Protocol
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.listeners import UdpPort
from trio_passt.udp.flow import IDLE_S, TO_GUEST_DATAGRAMS

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def reply_to(client: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """The next datagram that comes back, and from where."""

    def look() -> tuple[bytes, tuple[str, int]] | None:
        try:
            payload, name = client.recvfrom(65535)
        except BlockingIOError:
            return None
        return payload, name[:2]

    return await eventually(look, "a datagram at the client")


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
        assert await reply_to(client) == (reply, (family.local, port))
    assert len(guest.dispatcher.udp) == 1
    await guest.expects_nothing()


async def test_many_at_once_in_order(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    for number in range(200):
        client.sendto(b"%d" % number, (family.local, port))
    for number in range(200):
        await arrives(guest, family, b"%d" % number)
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
        assert (await reply_to(client))[0] == b"to %d" % port_of(client)
    assert len(guest.dispatcher.udp) == 3


async def test_reply_leaves_from_the_address_that_was_asked(guest: Stage) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(V4, ("127.0.0.1", 0))
    for asked in ("127.0.0.2", "127.0.0.1", "127.1.2.3"):
        client.sendto(b"hello", (asked, port))
        assert await arrives(guest, V4, b"hello") == port_of(client)
        guest.sends_datagram(V4, TARGET, port_of(client), b"reply")
        assert await reply_to(client) == (b"reply", (asked, port))


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
            assert await reply_to(client) == (b"reply to %d" % remote_port, ("127.0.0.1", port))
    assert seen_as[one] == {port_of(one)}
    assert len(seen_as[two]) == 1
    assert seen_as[one] != seen_as[two]
    assert len(guest.dispatcher.udp) == 2


async def test_client_whose_port_is_a_server_of_the_guests(guest: Stage) -> None:
    """The guest asked a server on the host; that one's socket then asks the guest, by a forwarded port."""
    port = guest.forwards(Protocol.UDP, TARGET)
    host = guest.host_udp(V4)
    guest.sends_datagram(V4, TARGET, port_of(host), b"request")
    _, flow = await reply_to(host)
    host.sendto(b"hello", ("127.0.0.1", port))
    remote_port = await arrives(guest, V4, b"hello")
    assert remote_port != port_of(host)
    guest.sends_datagram(V4, TARGET, remote_port, b"reply")
    assert await reply_to(host) == (b"reply", ("127.0.0.1", port))
    guest.sends_datagram(V4, TARGET, port_of(host), b"request")
    assert await reply_to(host) == (b"request", flow)


async def test_two_forwarded_ports_to_different_targets(guest: Stage) -> None:
    ports = [guest.forwards(Protocol.UDP, target) for target in (TARGET, TARGET + 1)]
    client = guest.host_udp(V4)
    for port in ports:
        client.sendto(b"hello", (V4.local, port))
    seen = sorted([await guest.expects_datagram() for _ in ports], key=lambda datagram: datagram.destination_port)
    assert [datagram.destination_port for datagram in seen] == [TARGET, TARGET + 1]
    for datagram, port in zip(seen, ports, strict=True):
        guest.sends_datagram(V4, datagram.destination_port, datagram.source_port, b"reply")
        assert await reply_to(client) == (b"reply", (V4.local, port))


async def test_silence_ends_a_flow(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    client.sendto(b"hello", (family.local, port))
    await arrives(guest, family, b"hello")
    await guest.passes(IDLE_S - 1)
    guest.sends_datagram(family, TARGET, port_of(client), b"still here")
    assert (await reply_to(client))[0] == b"still here"
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


async def test_datagram_beyond_the_guests_mtu_is_dropped(family: Family) -> None:
    async with on_stage(network(mtu_bytes=1500)) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        client = guest.host_udp(family)
        largest = 1500 - (28 if family.version == 4 else 48)
        client.sendto(bytes(largest + 1), (family.local, port))
        client.sendto(bytes(largest), (family.local, port))
        await arrives(guest, family, bytes(largest))
        assert guest.session.drops == {"udp: larger than the guest's MTU": 1}


async def test_full_link_holds_a_bounded_number() -> None:
    async with on_stage(capacity_frames=1) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        client = guest.host_udp(V4)
        for start in (0, 100, 200):
            for number in range(start, start + 100):
                client.sendto(b"%d" % number, (V4.local, port))
            await guest.settles()
        await guest.expects_drop("udp: link to the guest full", 300 - TO_GUEST_DATAGRAMS - 1)
        for number in range(TO_GUEST_DATAGRAMS + 1):
            await arrives(guest, V4, b"%d" % number)
        await guest.expects_nothing()
        client.sendto(b"hello", (V4.local, port))
        await arrives(guest, V4, b"hello")


async def test_limit_of_flows() -> None:
    async with on_stage(flow_limit=1) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        one, two = guest.host_udp(V4), guest.host_udp(V4)
        one.sendto(b"hello", (V4.local, port))
        await arrives(guest, V4, b"hello")
        two.sendto(b"hello", (V4.local, port))
        await guest.expects_drop("udp: limit of flows")
        one.sendto(b"hello", (V4.local, port))
        await arrives(guest, V4, b"hello")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EAGAIN, "udp: send buffer of the host full"), (errno.EHOSTUNREACH, "udp: No route to host")],
)
async def test_reply_that_the_host_does_not_take_is_counted(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def fail(_port: UdpPort, _payload: bytes, _peer: Endpoint, _source: bytes) -> None:
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
    assert await reply_to(client) == (b"reply", (V4.local, port))


async def test_client_that_is_gone_is_no_harm(guest: Stage, family: Family) -> None:
    """An ICMP error for a reply is nobody's in particular, since the port's socket is everybody's."""
    port = guest.forwards(Protocol.UDP, TARGET)
    gone, there = guest.host_udp(family), guest.host_udp(family)
    gone_port = port_of(gone)
    gone.sendto(b"hello", (family.local, port))
    await arrives(guest, family, b"hello")
    gone.close()
    guest.sends_datagram(family, TARGET, gone_port, b"reply")
    await guest.settles()
    there.sendto(b"hello", (family.local, port))
    await arrives(guest, family, b"hello")
    guest.sends_datagram(family, TARGET, port_of(there), b"reply")
    assert (await reply_to(there))[0] == b"reply"


async def test_guest_that_is_not_known_yet_is_asked_for() -> None:
    async with on_stage() as guest:
        guest.session.guest.mac = b"\xff" * 6
        port = guest.forwards(Protocol.UDP, TARGET)
        guest.host_udp(V4).sendto(b"hello", (V4.local, port))
        await guest.settles()
        frames = guest.link.take_sent()
        assert {frame[12:14] for frame in frames[:2]} == {b"\x08\x06", b"\x86\xdd"}


async def test_clients_of_a_guest_that_does_not_read_share_one_budget() -> None:
    async with on_stage(capacity_frames=0) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        budget = guest.session.datagrams
        budget.left_bytes = 10_000
        for _ in range(8):
            guest.host_udp(V4).sendto(bytes(2000), (V4.local, port))
        await guest.expects_drop("udp: link to the guest full", 3)
        assert budget.left_bytes == 0
        guest.link.set_capacity(frames=None)
        for _ in range(5):
            await arrives(guest, V4, bytes(2000))
        assert budget.left_bytes == 10_000
