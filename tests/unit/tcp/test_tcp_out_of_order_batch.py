"""Segments behind a gap: an acknowledgement for each of them, also when they come in one batch, or joined."""

import pytest
from harness.noise import noise
from harness.stage import Family, Stage
from harness.tcp import GuestTcp

from trio_passt.wire.tcp import ACK, TcpSegment

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


@pytest.mark.parametrize("count", [3, 7, 40])
async def test_segments_behind_a_gap_that_come_together_make_the_guest_resend(
    guest: Stage, family: Family, count: int
) -> None:
    """A batch is an accident of timing: also when runs of it are joined, the guest gets its three duplicates."""
    tcp, host = await guest.connected(family)
    start = tcp.next
    lost, *others = cut(tcp, noise(1000 * (count + 1)), 1000)
    tcp.sends_batch(*others)
    assert await duplicates(tcp, start) >= 3
    tcp.sends_batch(lost, *others)
    await tcp.expects(ACK)
    await host.receives(noise(1000 * (count + 1)))
