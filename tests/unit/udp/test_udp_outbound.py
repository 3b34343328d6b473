"""A guest's datagrams go out, and the replies come back."""

import errno
import os
import socket

import pytest
from harness.stage import V4, Family, Stage, network, on_stage
from harness.waiting import eventually

from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.udp import flow as udp_flow
from trio_passt.udp.flow import IDLE_S
from trio_passt.wire import ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

pytestmark = pytest.mark.usefixtures("standing_clock")


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def received(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """The next datagram of a host socket, and who sent it: address and port."""

    def look() -> tuple[bytes, tuple[str, int]] | None:
        try:
            payload, name = sock.recvfrom(65535)
        except BlockingIOError:
            return None
        return payload, name[:2]

    return await eventually(look, "a datagram at the host")


async def exchange(guest: Stage, host: socket.socket, family: Family, guest_port: int = 5000) -> tuple[str, int]:
    """A request and its reply; returns the host's view of the guest: the flow's socket."""
    guest.sends_datagram(family, guest_port, port_of(host), b"request")
    payload, flow = await received(host)
    assert payload == b"request"
    host.sendto(b"reply", flow)
    seen = await guest.expects_datagram()
    assert (seen.source, seen.source_port) == (family.gateway, port_of(host))
    assert (seen.destination, seen.destination_port) == (family.guest, guest_port)
    assert seen.payload == b"reply"
    return flow


async def test_request_and_reply(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    flow = await exchange(guest, host, family)
    assert flow[0] == family.local
    assert await exchange(guest, host, family) == flow
    assert len(guest.dispatcher.udp) == 1
    await guest.expects_nothing()


@pytest.mark.parametrize("size", [0, 1, 1473, 65472])
async def test_sizes(guest: Stage, family: Family, size: int) -> None:
    host = guest.host_udp(family)
    payload = os.urandom(size)
    guest.sends_datagram(family, 5000, port_of(host), payload)
    got, flow = await received(host)
    assert got == payload
    host.sendto(payload, flow)
    assert (await guest.expects_datagram()).payload == payload


async def test_many_at_once_in_order(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    wanted = [b"%d" % number for number in range(200)]
    guest.sends_packets(*(datagram(family, 5000, port_of(host), payload) for payload in wanted))
    for payload in wanted:
        got, flow = await received(host)
        assert got == payload
    for payload in wanted:
        host.sendto(payload, flow)
    for payload in wanted:
        assert (await guest.expects_datagram()).payload == payload
    assert not guest.session.drops


def datagram(family: Family, source_port: int, destination_port: int, payload: bytes) -> bytes:
    source, destination = family.guest_packed, family.gateway_packed
    packet = udp.emit(source, destination, UdpHeader(source_port, destination_port), payload)
    return ip.emit_packet(source, destination, IPProtocol.UDP, packet)


async def test_each_pair_of_ports_is_a_flow_of_its_own(guest: Stage, family: Family) -> None:
    one, two = guest.host_udp(family), guest.host_udp(family)
    flows = {
        await exchange(guest, one, family, 5000),
        await exchange(guest, one, family, 5001),
        await exchange(guest, two, family, 5000),
    }
    assert len(flows) == len(guest.dispatcher.udp) == 3


async def test_others_cannot_answer(guest: Stage, family: Family) -> None:
    host, other = guest.host_udp(family), guest.host_udp(family)
    flow = await exchange(guest, host, family)
    other.sendto(b"forged", flow)
    await guest.expects_nothing()


async def test_silence_ends_a_flow(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    flow = await exchange(guest, host, family)
    await guest.passes(IDLE_S - 1)
    assert await exchange(guest, host, family) == flow
    await guest.passes(IDLE_S - 1)
    host.sendto(b"late", flow)
    assert (await guest.expects_datagram()).payload == b"late"
    await guest.passes(IDLE_S - 1)
    assert len(guest.dispatcher.udp) == 1
    await guest.passes(2)
    assert len(guest.dispatcher.udp) == 0
    host.sendto(b"too late", flow)
    await guest.expects_nothing()
    await exchange(guest, host, family)


async def test_refused_datagram_is_counted_and_the_flow_lives(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    port = port_of(host)
    flow = await exchange(guest, host, family)
    host.close()
    guest.sends_datagram(family, 5000, port, b"to nobody")
    await guest.expects_drop("udp: Connection refused")
    assert len(guest.dispatcher.udp) == 1
    again = guest.host_udp(family, (family.local, port))
    assert await exchange(guest, again, family) == flow
    assert sum(guest.session.drops.values()) == 1


async def test_refusals_among_a_batch_do_not_end_the_flow(guest: Stage) -> None:
    host = guest.host_udp(V4)
    port = port_of(host)
    host.close()
    guest.sends_packets(*(datagram(V4, 5000, port, b"to nobody") for _ in range(20)))
    await guest.settles()
    assert len(guest.dispatcher.udp) == 1
    assert set(guest.session.drops) <= {"udp: Connection refused", "udp: refused by the remote"}


async def test_full_link_leaves_datagrams_in_the_socket() -> None:
    """None is lost as long as the socket's buffer holds them, however slowly the guest takes them."""
    async with on_stage(capacity_frames=1) as guest:
        host = guest.host_udp(V4)
        guest.sends_datagram(V4, 5000, port_of(host), b"request")
        _, flow = await received(host)
        sent = received_count = 0
        for send, take in ((200, 20), (110, 110), (100, 280)):
            for number in range(sent, sent + send):
                host.sendto(b"%d" % number, flow)
            sent += send
            for number in range(received_count, received_count + take):
                assert (await guest.expects_datagram()).payload == b"%d" % number
            received_count += take
        assert received_count == sent
        await guest.expects_nothing()
        assert not guest.session.drops


async def test_full_link_that_stays_full_costs_nothing() -> None:
    async with on_stage(capacity_frames=1) as guest:
        host = guest.host_udp(V4)
        guest.sends_datagram(V4, 5000, port_of(host), b"request")
        _, flow = await received(host)
        for number in range(100):
            host.sendto(b"%d" % number, flow)
        await guest.settles()  # which it would not if somebody was turning in circles
        assert len(guest.link.take_sent()) == 1


@pytest.mark.parametrize("mtu_bytes", [1280, 1500])
async def test_datagram_beyond_the_guests_mtu_is_dropped(family: Family, mtu_bytes: int) -> None:
    async with on_stage(network(mtu_bytes=mtu_bytes)) as guest:
        host = guest.host_udp(family)
        flow = await exchange(guest, host, family)
        largest = mtu_bytes - (28 if family.version == 4 else 48)
        host.sendto(bytes(largest + 1), flow)
        host.sendto(bytes(largest), flow)
        assert (await guest.expects_datagram()).payload == bytes(largest)
        assert guest.session.drops == {"udp: larger than the guest's MTU": 1}


async def test_inbox_is_bounded(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_flow, "FROM_GUEST_DATAGRAMS", 100)
    host = guest.host_udp(family)
    guest.sends_packets(*(datagram(family, 5000, port_of(host), b"%d" % number) for number in range(144)))
    await guest.expects_drop("udp: too many datagrams at once from the guest", 44)
    for number in range(100):
        assert (await received(host))[0] == b"%d" % number
    await exchange(guest, host, family)


async def test_full_send_buffer_of_the_host_is_counted(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    guest.opened.callback(far.close)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    monkeypatch.setattr(sockets, "open_udp", lambda _peer: near)
    guest.sends_packets(*(datagram(V4, 5000, 53, b"x") for _ in range(200)))
    await guest.settles()
    arrived = 0
    while True:
        try:
            far.recv(10)
        except BlockingIOError:
            break
        arrived += 1
    assert 0 < arrived < 200
    assert guest.session.drops == {"udp: send buffer of the host full": 200 - arrived}
    assert len(guest.dispatcher.udp) == 1


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EMFILE, errno.EACCES])
async def test_host_that_has_no_way_there_is_counted(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_peer: Endpoint) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets, "open_udp", fail)
    for count in (1, 2):
        guest.sends_datagram(V4, 5000, 53, b"request")
        await guest.expects_drop(f"udp: {os.strerror(number)}", count)
        await guest.settles()
        assert len(guest.dispatcher.udp) == 0


async def test_host_that_refuses_to_send_is_counted(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a datagram, although each is tried twice: the first error might have been an earlier one's."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    monkeypatch.setattr(sockets, "open_udp", lambda _peer: near)
    near.shutdown(socket.SHUT_WR)
    guest.opened.callback(far.close)
    for count in (1, 2):
        guest.sends_datagram(V4, 5000, 53, b"request")
        await guest.expects_drop("udp: Broken pipe", count)
    assert len(guest.dispatcher.udp) == 1
    await guest.passes(IDLE_S + 1)
    assert near.fileno() == -1


@pytest.mark.parametrize(
    "remote", ["127.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "240.0.0.1", "127.255.0.1", "0.1.2.3"]
)
async def test_address_that_is_no_ones_ipv4(guest: Stage, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "open_udp", None)
    guest.sends_datagram(V4, 5000, 5353, b"x", remote)
    await guest.expects_drop("addresses of no flow")
    assert len(guest.dispatcher.udp) == 0


async def test_port_zero_is_no_ones(guest: Stage, family: Family) -> None:
    guest.sends_datagram(family, 5000, 0, b"x")
    await guest.expects_drop("addresses of no flow")
    assert len(guest.dispatcher.udp) == 0


async def test_family_that_is_off(family: Family) -> None:
    async with on_stage(network(ipv4=family.version != 4, ipv6=family.version != 6)) as guest:
        host = guest.host_udp(family)
        guest.sends_datagram(family, 5000, port_of(host), b"x")
        await guest.expects_drop("address family is off")
        assert len(guest.dispatcher.udp) == 0


async def test_limit_of_flows() -> None:
    async with on_stage(flow_limit=2) as guest:
        host = guest.host_udp(V4)
        await exchange(guest, host, V4, 5000)
        await exchange(guest, host, V4, 5001)
        guest.sends_datagram(V4, 5002, port_of(host), b"x")
        await guest.expects_drop("udp: limit of flows")
        await exchange(guest, host, V4, 5001)
        await guest.passes(IDLE_S + 1)
        await exchange(guest, host, V4, 5002)


async def test_guest_that_goes_takes_its_sockets_along(guest: Stage) -> None:
    host = guest.host_udp(V4)
    _, port = await exchange(guest, host, V4)
    guest.link.disconnect()
    await guest.settles()
    assert guest.ended is not None
    assert len(guest.dispatcher.udp) == 0
    guest.host_udp(V4, (V4.local, port))  # the port is free again
