"""Where there are more flows than there may be: all that is new is sent, and the idlest, however new, have made way."""

import pytest
import trio
from harness.stage import V4, Family, Stage, on_stage
from udp_script import datagram, exchange, port_of, received, receives

from trio_passt.config import Protocol
from trio_passt.host import sockets

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353
MOST = 4
NEW = range(5000, 5040)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def ports_of_flows(guest: Stage) -> list[int]:
    return [flow.key.guest_port for flow in guest.dispatcher.udp]


@pytest.mark.parametrize(("descriptors", "most"), [(16, 8), (41, 20)])
@pytest.mark.interpreted
async def test_half_of_the_descriptors_is_for_udp(monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int) -> None:
    """However many flows there may be: the others need some, too."""
    monkeypatch.setattr(sockets, "descriptor_limit", lambda: descriptors)
    async with on_stage() as guest:
        host = guest.host_udp(V4)
        for count in range(most + 5):
            await exchange(guest, host, V4, 5000 + count)
            assert len(guest.dispatcher.udp) == min(count + 1, most)
        assert not guest.session.drops


@pytest.mark.interpreted
async def test_forwarded_ports_have_theirs_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "descriptor_limit", lambda: 42)
    monkeypatch.setattr(Stage, "descriptors", 30)
    async with on_stage() as guest:
        host = guest.host_udp(V4)
        for count in range(10):
            await exchange(guest, host, V4, 5000 + count)
        assert ports_of_flows(guest) == list(range(5004, 5010))


async def test_flow_limit_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "descriptor_limit", lambda: 1_000_000)
    async with on_stage(flow_limit=3) as guest:
        host = guest.host_udp(V4)
        for count in range(6):
            await exchange(guest, host, V4, 5000 + count)
        assert ports_of_flows(guest) == [5003, 5004, 5005]


async def test_all_of_a_batch_are_sent_and_the_last_ones_stay(family: Family) -> None:
    """The first ones make way before their tasks have begun; none of these is left over."""
    async with on_stage(flow_limit=MOST) as guest:
        host = guest.host_udp(family)
        await guest.settles()
        before = tasks()
        payloads = [b"%d" % port for port in NEW]
        sent = [datagram(family, port, port_of(host), b"%d" % port) for port in NEW]
        guest.sends_packets(*sent)
        for payload in payloads:
            assert (await received(host))[0] == payload
        await guest.settles()
        assert ports_of_flows(guest) == list(NEW)[-MOST:]
        assert tasks() == before + MOST
        assert not guest.session.drops
        await exchange(guest, host, family, 6000)


async def test_idlest_are_those_that_were_there_before(family: Family) -> None:
    """And of these the one that has just spoken stays for longest."""
    async with on_stage(flow_limit=MOST) as guest:
        host = guest.host_udp(family)
        for port in range(4000, 4000 + MOST):
            await exchange(guest, host, family, port)
            await guest.passes(1)
        await exchange(guest, host, family, 4000)
        await guest.passes(1)
        guest.sends_packets(*(datagram(family, port, port_of(host), b"new") for port in NEW[: MOST - 1]))
        await guest.settles()
        assert sorted(ports_of_flows(guest)) == [4000, *NEW[: MOST - 1]]


async def test_all_from_a_forwarded_port_are_sent(family: Family) -> None:
    """To as many remotes, by flows without a socket of their own."""
    async with on_stage(flow_limit=MOST) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        hosts = [guest.host_udp(family) for _ in range(20)]
        await guest.settles()
        before = tasks()
        guest.sends_packets(*(datagram(family, TARGET, port_of(host), b"request") for host in hosts))
        for host in hosts:
            assert await receives(host, b"request") == (family.local, port)
        await guest.settles()
        assert [flow.key.remote_port for flow in guest.dispatcher.udp] == [port_of(host) for host in hosts[-MOST:]]
        assert tasks() == before + MOST
        assert not guest.session.drops


async def test_all_new_clients_of_a_forwarded_port_are_heard(family: Family) -> None:
    async with on_stage(flow_limit=MOST) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        clients = [guest.host_udp(family) for _ in range(40)]
        await guest.settles()
        before = tasks()
        for client in clients:
            client.sendto(b"%d" % port_of(client), (family.local, port))
        for client in clients:
            assert (await guest.expects_datagram()).payload == b"%d" % port_of(client)
        await guest.settles()
        assert len(guest.dispatcher.udp) == MOST
        assert tasks() == before + MOST
        assert not guest.session.drops
