"""A link that is full takes nothing, and nothing is lost."""

import pytest
import trio
from harness.noise import noise
from harness.stage import Family, Stage, network, on_stage

from trio_passt.tcp.bridge import Bridge
from trio_passt.wire.tcp import ACK, FIN, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock", "peek_offset")


@pytest.mark.parametrize("capacity", [1, 2, 7])
async def test_data_goes_on_when_there_is_room(family: Family, capacity: int) -> None:
    async with on_stage(network(mtu_bytes=1500), capacity_frames=capacity) as guest:
        tcp, host = await guest.connected(family, mss=1440)
        data = noise(100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.sends_all, data)
            nursery.start_soon(tcp.expects_data, data)


async def test_several_connections_share_a_narrow_link(family: Family) -> None:
    async with on_stage(network(mtu_bytes=1500), capacity_frames=2) as guest:
        ends = [await guest.connected(family, mss=1440) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for seed, (tcp, host) in enumerate(ends):
                nursery.start_soon(host.sends_all, noise(20_000, seed))
                nursery.start_soon(tcp.expects_data, noise(20_000, seed))


async def test_acknowledgement_waits_for_room(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    tcp.sends(ACK, b"data")
    await host.receives(b"data")
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await tcp.expects(ACK)


async def test_fin_waits_for_room(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.half_closes()
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await tcp.expects(FIN | ACK)


async def test_acknowledgement_of_the_guests_fin_waits_for_room(guest: Stage) -> None:
    tcp, host = await guest.connected()
    host.half_closes()
    await tcp.expects(FIN | ACK)
    guest.link.set_capacity(frames=0)
    tcp.sends(FIN | ACK)
    await host.receives_end()
    assert len(guest.dispatcher.tcp) == 1
    guest.link.set_capacity()
    await tcp.expects(ACK)
    assert len(guest.dispatcher.tcp) == 0


async def test_reset_waits_for_room(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.resets()
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await tcp.expects_reset()


async def test_reset_does_not_wait_for_long(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.resets()
    await guest.settles()
    tcp.sends(ACK, b"not for anybody now")
    await guest.passes(1.1)
    assert len(guest.dispatcher.tcp) == 0
    guest.link.set_capacity()
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await tcp.expects(RST)


async def test_syn_ack_is_tried_again(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    guest.link.set_capacity(frames=0)
    tcp.sends(SYN, mss=1460)
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await guest.passes(1)
    await tcp.expects(SYN | ACK)


async def test_resets_of_no_connection_are_dropped(guest: Stage) -> None:
    guest.link.set_capacity(frames=0)
    tcp = guest.tcp(Family(4, "198.51.100.5", "198.51.100.1", ""), 80)
    tcp.sends(ACK)
    await guest.expects_drop("link to the guest full")


async def test_missing_segment_is_sent_when_there_is_room(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    data = noise(3000)
    start = tcp.expected
    host.sends(data)
    for at in (0, 1000, 2000):
        await tcp.expects(ACK, data[at : at + 1000])
    guest.link.set_capacity(frames=0)
    for _ in range(4):
        tcp.sends(ACK, ack=start)
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await tcp.expects(ACK, data[:1000], seq=start)


async def test_data_that_comes_while_the_link_is_full_takes_no_turn(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow is called when there is room, and takes then what has come."""
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.sends(b"first ")
    await guest.settles()
    turns = 0
    send = Bridge.send

    def counted(bridge: Bridge, now: float) -> None:
        nonlocal turns
        turns += 1
        send(bridge, now)

    monkeypatch.setattr(Bridge, "send", counted)
    for word in (b"second ", b"third"):
        host.sends(word)
        await guest.settles()
    assert turns == 0
    guest.link.set_capacity()
    await tcp.expects_data(b"first second third")


async def test_end_that_comes_while_the_link_is_full_is_passed_on(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.sends(b"first ")
    await guest.settles()
    host.sends(b"last")
    host.half_closes()
    await guest.settles()
    guest.link.set_capacity()
    await tcp.expects_data(b"first last")
    await tcp.expects(FIN | ACK)
