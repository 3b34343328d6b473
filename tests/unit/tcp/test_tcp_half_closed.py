"""One way is closed, and the other goes on for as long as it lasts; and the ways in which both close at once."""

import pytest
import trio
from harness.noise import noise
from harness.stage import Family, Stage
from harness.tcp import GuestTcp

from trio_passt.wire.tcp import ACK, FIN

pytestmark = pytest.mark.usefixtures("standing_clock", "peek_offset")

HOURS = 2.5
PROBED_AFTER_S = 60.1
PAUSE_S = 100.0


async def answers_probe(guest: Stage, tcp: GuestTcp) -> None:
    """A pause, in which the guest is asked once whether it still knows the connection."""
    await guest.passes(PROBED_AFTER_S)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    tcp.sends(ACK)
    await guest.passes(PAUSE_S - PROBED_AFTER_S)
    await tcp.expects_nothing()


async def test_host_sends_for_hours_after_the_guest_has_closed(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    begun = trio.current_time()
    number = 0
    while trio.current_time() - begun < HOURS * 3600:
        number += 1
        data = noise(100, number)
        host.sends(data)
        await tcp.expects(ACK, data)
        tcp.sends(ACK)
        await answers_probe(guest, tcp)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_guest_sends_for_hours_after_the_host_has_closed(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    begun = trio.current_time()
    number = 0
    while trio.current_time() - begun < HOURS * 3600:
        number += 1
        data = noise(100, number)
        tcp.sends(ACK, data)
        await tcp.expects(ACK)
        await host.receives(data)
        await answers_probe(guest, tcp)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_guest_that_is_heard_of_is_not_probed(guest: Stage) -> None:
    """Data keeps a half-closed connection alive by itself."""
    tcp, host = await guest.connected()
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    for _ in range(10):
        await guest.passes(59)
        await tcp.expects_nothing()
        host.sends(b"x")
        await tcp.expects(ACK, b"x")
        tcp.sends(ACK)
    await guest.passes(59)
    await tcp.expects_nothing()


async def test_silence_before_the_first_fin_counts_too(guest: Stage) -> None:
    """It is since the guest was last heard that it may have forgotten the connection."""
    tcp, host = await guest.connected()
    await guest.passes(45)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.passes(59)
    await tcp.expects_nothing()
    await guest.passes(2)
    await tcp.expects(ACK, seq=tcp.expected - 1)


async def test_open_connection_is_not_probed_for_two_hours(guest: Stage) -> None:
    tcp, host = await guest.connected()
    await guest.passes(7199)
    await tcp.expects_nothing()
    host.sends(b"still here")
    await tcp.expects(ACK, b"still here")
    tcp.sends(ACK)
    await guest.passes(7199)
    await tcp.expects_nothing()
    await guest.passes(2)
    await tcp.expects(ACK, seq=tcp.expected - 1)


async def test_bulk_after_the_guest_has_closed_its_half_in_the_middle(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1460)
    data = noise(300_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.sends_all, data)
        await tcp.expects_data(data[:2920], acknowledge=False)
        tcp.sends(FIN | ACK, b"enough?")
        await tcp.expects_data(data[2920:])
    await host.receives(b"enough?")
    await host.receives_end()
    host.half_closes()
    await tcp.expects(FIN | ACK)


async def test_data_and_end_from_both_sides_cross(guest: Stage, family: Family) -> None:
    """Simultaneous close (RFC 9293 section 3.6, figure 13), each FIN behind data."""
    tcp, host = await guest.connected(family, mss=1000)
    start = tcp.expected
    host.sends(noise(1500, 1))
    host.half_closes()
    flags = [(await tcp.arrives()).flags & FIN for _ in range(3)]
    assert flags == [0, 0, FIN]
    tcp.sends(FIN | ACK, noise(700, 2), ack=start)
    tcp.expected = start + 1501
    await tcp.expects(ACK)
    await host.receives(noise(700, 2))
    await host.receives_end()
    assert len(guest.dispatcher.tcp) == 1
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await tcp.expects_nothing()


async def test_fin_and_all_acknowledgements_in_one_segment(guest: Stage) -> None:
    """CLOSE-WAIT to LAST-ACK at once: the guest's FIN acknowledges the host's."""
    tcp, host = await guest.connected()
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(FIN | ACK, b"bye")
    await tcp.expects(ACK)
    await host.receives(b"bye")
    await host.receives_end()
    assert len(guest.dispatcher.tcp) == 0


async def test_host_socket_is_closed_in_order_when_both_ways_are(guest: Stage) -> None:
    """No reset: the host's peer may still be reading."""
    tcp, host = await guest.connected()
    tcp.sends(FIN | ACK, noise(50_000))
    await tcp.expects(ACK)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await host.receives(noise(50_000))
    await host.receives_end()
