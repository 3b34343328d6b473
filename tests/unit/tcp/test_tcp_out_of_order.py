"""What does not come in order: nothing of it is delivered twice or early, and the guest is told at once.

A guest resends what is missing after three duplicate acknowledgements (RFC 5681 section 3.2), so they are counted.
"""

import pytest
from harness.noise import noise
from harness.stage import Family, Stage
from harness.tcp import GuestTcp

from trio_passt.wire.tcp import ACK, FIN, PSH, TcpSegment

pytestmark = pytest.mark.usefixtures("standing_clock")


async def duplicates(tcp: GuestTcp, ack: int) -> int:
    """How many acknowledgements of the same came; there must be nothing else."""
    count = 0
    while (got := await tcp.arrives_or_none()) is not None:
        assert (got.flags, got.ack, got.payload) == (ACK, ack, b"")
        count += 1
    return count


def cut(tcp: GuestTcp, data: bytes, size: int, flags: int = ACK) -> list[TcpSegment]:
    return [tcp.segment(flags, data[at : at + size]) for at in range(0, len(data), size)]


async def test_each_segment_behind_a_gap_is_answered(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    start, data = tcp.next, noise(6000)
    first, *others = cut(tcp, data, 1000)
    for segment in others:
        tcp.sends_batch(segment)
        assert await duplicates(tcp, start) == 1
    await host.receives_nothing()
    tcp.sends_batch(first)
    await tcp.expects(ACK, ack=start + 1000)
    tcp.sends_batch(*others)
    await tcp.expects(ACK)
    await host.receives(data)
    await host.receives_nothing()


async def test_gap_within_a_batch(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start, data = tcp.next, noise(30_000)
    segments = cut(tcp, data, 1000)
    tcp.sends_batch(*segments[:12], *segments[13:])
    got = await tcp.arrives()
    assert got.ack == (start + 12_000) % 2**32
    await duplicates(tcp, start + 12_000)
    await host.receives(data[:12_000])
    tcp.sends_batch(*segments[12:])
    await tcp.expects(ACK)
    await host.receives(data[12_000:])
    await host.receives_nothing()


async def test_fin_behind_a_gap_is_answered_and_has_to_come_again(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start = tcp.next
    lost, last = tcp.segment(ACK, b"lost"), tcp.segment(FIN | ACK, b"last")
    tcp.sends_batch(last)
    assert await duplicates(tcp, start) == 1
    await host.receives_nothing()
    tcp.sends_batch(lost)
    await tcp.expects(ACK, ack=start + 4)
    await host.receives(b"lost")
    await host.receives_nothing()
    tcp.sends_batch(last)
    await tcp.expects(ACK)
    await host.receives(b"last")
    await host.receives_end()


async def test_empty_segment_behind_a_gap_is_not_answered(guest: Stage) -> None:
    """It asks for nothing: two ends that answer each other's empty segments would never stop."""
    tcp, _host = await guest.connected()
    tcp.sends(ACK, seq=tcp.next + 1000)
    await tcp.expects_nothing()


async def test_retransmission_with_other_bounds(guest: Stage, family: Family) -> None:
    """A guest may cut anew what it sends again, and join it with what is new (RFC 9293 section 3.10.7.4)."""
    tcp, host = await guest.connected(family)
    start, data = tcp.next, noise(3000)
    tcp.sends(ACK, data[:1000])
    await tcp.expects(ACK)
    for seq, end, acknowledged in ((0, 500, 1000), (0, 1500, 1500), (1400, 1500, 1500), (700, 3000, 3000)):
        tcp.sends(ACK | PSH, data[seq:end], seq=start + seq)
        await tcp.expects(ACK, ack=start + acknowledged)
    await host.receives(data)
    await host.receives_nothing()


async def test_duplicates_in_a_run_of_new_segments(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    data = noise(40_000)
    segments = cut(tcp, data, 1000)
    tcp.sends_batch(*segments[:20], *segments[5:25], *segments[20:], *segments[:3])
    await tcp.expects(ACK)
    await host.receives(data)
    await host.receives_nothing()
