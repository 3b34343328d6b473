"""What does not come in order: nothing of it is delivered twice or early, and the guest is told at once.

A guest resends what is missing after three duplicate acknowledgements (RFC 5681 section 3.2), so they are counted.
"""

import pytest
from harness.noise import noise
from harness.stage import Family, Stage, on_stage
from harness.tcp import GuestTcp

from trio_passt.flow.session import OUT_OF_ORDER_BYTES
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, TcpSegment

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
    tcp.sends_batch(segments[12])
    await tcp.expects(ACK)
    await host.receives(data[12_000:])
    await host.receives_nothing()


async def test_guest_is_told_what_came_behind_gaps(guest: Stage, family: Family) -> None:
    """RFC 2018 sections 3 and 4: the latest block first, and in every acknowledgement as long as there is a gap."""
    tcp, host = await guest.connected(family, takes_sack=True)
    start, data = tcp.next, noise(10_000)
    segments = cut(tcp, data, 1000)

    def blocks(*numbers: int) -> tuple[int, ...]:
        return tuple((start + 1000 * number) % 2**32 for number in numbers)

    tcp.sends_batch(segments[3])
    await tcp.expects(ACK, ack=start)
    assert tcp.told == blocks(3, 4)
    tcp.sends_batch(segments[7], segments[4])
    for _ in range(2):
        await tcp.expects(ACK, ack=start)
        assert tcp.told == blocks(3, 5, 7, 8)
    tcp.sends_batch(segments[0])
    await tcp.expects(ACK, ack=start + 1000)
    assert tcp.told == blocks(3, 5, 7, 8)
    tcp.sends_batch(segments[0])
    await tcp.expects(ACK, ack=start + 1000)
    assert tcp.told == blocks(3, 5, 7, 8)
    tcp.sends_batch(*segments[1:3])
    await tcp.expects(ACK, ack=start + 5000)
    assert tcp.told == blocks(7, 8)
    tcp.sends_batch(*segments[5:])
    await tcp.expects(ACK)
    assert tcp.told == ()
    await host.receives(data)


async def test_guest_that_does_not_take_selective_acknowledgements_gets_none(guest: Stage) -> None:
    tcp, _host = await guest.connected()
    tcp.sends(ACK, b"behind", seq=tcp.next + 1)
    await tcp.expects(ACK)
    assert tcp.told == ()


async def test_filled_gap_is_told_at_once_where_answers_are_quick(guest: Stage) -> None:
    """RFC 5681 section 4.2; it does not wait for an answer to ride on."""
    tcp, host = await guest.connected()
    for _ in range(20):
        tcp.sends(ACK, b"question")
        await host.receives(b"question")
        host.sends(b"answer")
        while not (await tcp.arrives()).payload:
            pass
        tcp.expected += 6
        tcp.sends(ACK)
        await guest.settles()
    first, second = cut(tcp, b"ab", 1)
    tcp.sends_batch(second)
    await tcp.expects(ACK, ack=first.seq)
    tcp.sends_batch(first)
    await tcp.expects(ACK)


async def test_fin_behind_a_gap_is_answered_and_kept(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start = tcp.next
    lost, last = tcp.segment(ACK, b"lost"), tcp.segment(FIN | ACK, b"last")
    tcp.sends_batch(last)
    assert await duplicates(tcp, start) == 1
    await host.receives_nothing()
    tcp.sends_batch(lost)
    await tcp.expects(ACK)
    await host.receives(b"lostlast")
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


@pytest.mark.parametrize("ends", ["reset by the guest", "reset by the host", "the guest leaves"])
async def test_memory_for_gaps_is_given_back(family: Family, ends: str) -> None:
    async with on_stage() as guest:
        tcp, host = await guest.connected(family)
        memory = guest.session.out_of_order
        tcp.sends(ACK, b"later", seq=tcp.next + 5)
        await tcp.expects(ACK)
        assert memory.left_bytes < OUT_OF_ORDER_BYTES
        if ends == "reset by the guest":
            tcp.sends(RST)
            await guest.settles()
        elif ends == "reset by the host":
            host.resets()
            await tcp.expects(RST | ACK)
            await guest.settles()
    assert memory.left_bytes == OUT_OF_ORDER_BYTES
