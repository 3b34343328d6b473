"""A guest's datagrams go out, and the replies come back."""

import errno
import logging
import os
import socket
from collections.abc import Callable

import pytest
from harness.stage import V4, V6, Family, Stage, network, on_stage
from udp_script import datagram, exchange, free_port, hears, is_asked, port_of, receives

from trio_passt.host import sockets
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")

Opener = Callable[..., tuple[socket.socket, bool]]


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
    flow = await receives(host, payload)
    host.sendto(payload, flow)
    await hears(guest, family, payload, (port_of(host), 5000))


async def test_datagrams_without_content_both_ways(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    guest.sends_packets(*(datagram(family, 5000, port_of(host), payload) for payload in (b"", b"", b"x", b"", b"")))
    flow = await receives(host, b"", b"", b"x", b"", b"")
    for payload in (b"", b"", b"x", b"", b""):
        host.sendto(payload, flow)
    for payload in (b"", b"", b"x", b"", b""):
        await hears(guest, family, payload, (port_of(host), 5000))
    await guest.expects_nothing()


async def test_many_at_once_in_order(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    wanted = [b"%d" % number for number in range(200)]
    guest.sends_packets(*(datagram(family, 5000, port_of(host), payload) for payload in wanted))
    flow = await receives(host, *wanted)
    for payload in wanted:
        host.sendto(payload, flow)
    for payload in wanted:
        assert (await guest.expects_datagram()).payload == payload
    assert not guest.session.drops


async def test_each_pair_of_ports_is_a_flow_of_its_own(guest: Stage, family: Family) -> None:
    one, two = guest.host_udp(family), guest.host_udp(family)
    for host, guest_port in ((one, 5000), (one, 5001), (two, 5000)):
        await exchange(guest, host, family, guest_port)
    assert len(guest.dispatcher.udp) == 3


async def test_several_flows_in_one_batch(guest: Stage, family: Family) -> None:
    hosts = [guest.host_udp(family) for _ in range(3)]
    guest.sends_packets(
        *(datagram(family, 5000, port_of(host), b"%d" % number) for number in range(20) for host in hosts)
    )
    for host in hosts:
        await receives(host, *(b"%d" % number for number in range(20)))


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


async def test_guest_that_has_another_address_now(guest: Stage, family: Family) -> None:
    """Its new flow is another one, and the old one's replies still go to the old address."""
    host = guest.host_udp(family)
    former = await exchange(guest, host, family)
    moved = "198.51.100.77" if family is V4 else "2001:db8:1:2::77"
    guest.sends_packets(datagram(family, 5000, port_of(host), b"moved", source=moved))
    latter = await receives(host, b"moved")
    assert latter != former
    for flow, destination in ((latter, moved), (former, family.guest)):
        host.sendto(b"reply", flow)
        seen = await guest.expects_datagram()
        assert (seen.source, seen.destination) == (family.gateway, destination)


async def test_guest_that_has_another_mac_address_now(guest: Stage, family: Family) -> None:
    """Replies go there, of a flow that had another one."""
    host = guest.host_udp(family)
    flow = await exchange(guest, host, family)
    other = bytes.fromhex("525400999999")
    ethertype = b"\x08\x00" if family is V4 else b"\x86\xdd"
    guest.sends_frames(bytes(6) + other + ethertype + datagram(family, 5000, port_of(host), b"request"))
    assert await receives(host, b"request") == flow
    host.sendto(b"reply", flow)
    await guest.settles()
    (sent,) = guest.link.take_sent()
    assert sent[:6] == other


async def test_guest_that_goes_takes_its_sockets_along(guest: Stage) -> None:
    host = guest.host_udp(V4)
    _, port = await exchange(guest, host, V4, free_port(V4))
    guest.link.disconnect()
    await guest.settles()
    assert guest.ended is not None
    assert len(guest.dispatcher.udp) == 0
    guest.host_udp(V4, (V4.local, port))  # the port is free again


# -- what the host does not take ---------------------------------------------------------------------------------------


def opener(near: socket.socket) -> Opener:
    def open_udp(*_arguments: object) -> tuple[socket.socket, bool]:
        return near, False

    return open_udp


def failing(number: int) -> Opener:
    def open_udp(*_arguments: object) -> tuple[socket.socket, bool]:
        raise OSError(number, os.strerror(number))

    return open_udp


async def test_full_send_buffer_of_the_host_is_counted(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    guest.opened.callback(far.close)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    monkeypatch.setattr(sockets, "open_udp", opener(near))
    sizes = [1 + number % 2 for number in range(200)]  # no train is longer than two
    guest.sends_packets(*(datagram(V4, 5000, 9000, bytes(size)) for size in sizes))
    await guest.settles()
    there = 0
    while True:
        try:
            there += len(far.recv(10))
        except BlockingIOError:
            break
    assert 0 < there < sum(sizes)
    assert set(guest.session.drops) == {"udp: send buffer of the host full"}
    assert len(guest.dispatcher.udp) == 1


async def test_full_send_buffer_costs_what_it_does_not_hold(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A train that is not taken is as many datagrams."""
    host = guest.host_udp(family)
    await exchange(guest, host, family)

    def full(*_arguments: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "sendmsg", full)
        guest.sends_packets(*(datagram(family, 5000, port_of(host), bytes(100)) for _ in range(20)))
        await guest.expects_drop("udp: send buffer of the host full", 20)
    await exchange(guest, host, family)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EMFILE, errno.EACCES])
async def test_host_that_has_no_way_there_is_counted(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each datagram once."""
    monkeypatch.setattr(sockets, "open_udp", failing(number))
    for count in (1, 4):
        guest.sends_packets(*(datagram(V4, 5000, 9000, b"request") for _ in range(count)))
        await guest.settles()
        assert len(guest.dispatcher.udp) == 0
    assert guest.session.drops == {f"udp: {os.strerror(number)}": 5}


async def test_host_without_descriptors_is_warned_of_now_and_then(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "open_udp", failing(errno.EMFILE))
    for port in range(5000, 5010):
        guest.sends_datagram(V4, port, 9000, b"request")
    await guest.settles()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "can't open a UDP socket for the guest: Too many open files"
    await guest.expects_nothing()


async def test_host_that_refuses_to_send_is_counted(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a datagram, although each is tried twice: the first error might have been an earlier one's."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    monkeypatch.setattr(sockets, "open_udp", opener(near))
    near.shutdown(socket.SHUT_WR)
    guest.opened.callback(far.close)
    for count in (1, 2):
        guest.sends_datagram(V4, 5000, 9000, b"request")
        await guest.expects_drop("udp: Broken pipe", count)
    assert len(guest.dispatcher.udp) == 1
    await guest.passes(IDLE_S + 1)
    assert near.fileno() == -1


# -- what is nobody's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", ["127.0.0.1", "0.0.0.0", "240.0.0.1", "127.255.0.1", "0.1.2.3"])
async def test_address_that_is_no_ones_ipv4(guest: Stage, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "open_udp", None)
    guest.sends_datagram(V4, 5000, 5353, b"x", remote)
    await guest.expects_drop("addresses of no flow")
    assert len(guest.dispatcher.udp) == 0


@pytest.mark.parametrize(
    ("family", "remote"),
    [
        (V4, "224.0.0.251"),
        (V4, "239.255.255.250"),
        (V4, "255.255.255.255"),
        (V4, "198.51.100.255"),
        (V6, "ff02::fb"),
        (V6, "ff05::1:3"),
    ],
)
async def test_neighbours_are_not_there(
    guest: Stage, family: Family, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to a group, to everybody, or to everybody of the guest's network (RFC 919)."""
    monkeypatch.setattr(sockets, "open_udp", None)
    guest.sends_packets(*(datagram(family, 5000, 5353, b"%d" % number, remote=remote) for number in range(3)))
    await guest.expects_drop("multicast or broadcast", 3)
    assert len(guest.dispatcher.udp) == 0
    await guest.expects_nothing()


@pytest.mark.parametrize("remote", ["198.51.100.254", "198.51.101.255", "203.0.113.255"])
async def test_no_broadcast_address_of_the_guests_network(
    guest: Stage, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "open_udp", failing(errno.ECONNABORTED))
    guest.sends_datagram(V4, 5000, 5353, b"x", remote)
    await guest.settles()
    assert guest.session.drops["multicast or broadcast"] == 0
    assert guest.session.drops[f"udp: {os.strerror(errno.ECONNABORTED)}"] > 0


async def test_port_zero_is_no_ones(guest: Stage, family: Family) -> None:
    guest.sends_datagram(family, 5000, 0, b"x")
    await guest.expects_drop("addresses of no flow")
    assert len(guest.dispatcher.udp) == 0


async def test_family_that_is_off(family: Family) -> None:
    async with on_stage(network(ipv4=family.version != 4, ipv6=family.version != 6)) as guest:
        host = guest.host_udp(family)
        guest.sends_packets(*(datagram(family, 5000, port_of(host), b"x") for _ in range(3)))
        await guest.expects_drop("address family is off", 3)
        assert len(guest.dispatcher.udp) == 0


async def test_source_port_zero_may_be_spoken_from(guest: Stage, family: Family) -> None:
    """RFC 768: it is optional.  The host's kernel chooses one."""
    host = guest.host_udp(family)
    flow = await is_asked(guest, host, family, guest_port=0)
    assert flow[1] != 0
    host.sendto(b"reply", flow)
    await hears(guest, family, b"reply", (port_of(host), 0))
