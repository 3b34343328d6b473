"""What the guest does not acknowledge is sent again (RFC 6298, RFC 5681), peeked from the host's queue once more."""

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.config import Protocol
from trio_passt.wire.tcp import ACK, FIN, SYN

pytestmark = pytest.mark.usefixtures("standing_clock", "peek_offset")


async def expects_segments(tcp: GuestTcp, data: bytes, size: int, *, at: int) -> None:
    """`data` from sequence number `at` on, in segments of `size` bytes."""
    for start in range(0, len(data), size):
        await tcp.expects(ACK, data[start : start + size], seq=at + start)


async def test_lost_data_is_sent_again_after_a_timeout(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1000)
    data = noise(5000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    await guest.passes(0.19)
    await tcp.expects_nothing()
    await guest.passes(0.02)
    await expects_segments(tcp, data, 1000, at=start)
    tcp.sends(ACK)
    host.sends(b"more")
    await tcp.expects(ACK, b"more")


async def test_after_a_timeout_only_what_is_unacknowledged_is_sent_again(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    data = noise(5000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    tcp.sends(ACK, ack=start + 2000)
    await tcp.expects_nothing()
    await guest.passes(1)
    await expects_segments(tcp, data[2000:], 1000, at=start + 2000)


async def test_timeout_backs_off_and_gives_up(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    start = tcp.expected
    host.sends(b"data")
    await tcp.expects(ACK, b"data")
    due, timeout_s = trio.current_time(), 0.2
    for _ in range(8):
        due += timeout_s
        await guest.passes(due - trio.current_time() - 0.01)
        await tcp.expects_nothing()
        await guest.passes(0.011)
        await tcp.expects(ACK, b"data", seq=start)
        due, timeout_s = trio.current_time(), timeout_s * 2
    await guest.passes(timeout_s - 1)
    await tcp.expects_nothing()
    await guest.passes(2)
    await tcp.expects_reset()
    await host.is_reset()
    assert len(guest.dispatcher.tcp) == 0


async def is_sent_again_after(timeout_s: float, guest: Stage, tcp: GuestTcp, host: HostSocket) -> None:
    """Data that the guest does not acknowledge: then, and not before."""
    host.sends(b"lost")
    await tcp.expects(ACK, b"lost")
    await guest.passes(timeout_s - 0.01)
    await tcp.expects_nothing()
    await guest.passes(0.02)
    await tcp.expects(ACK, b"lost", seq=tcp.expected - 4)


@pytest.mark.parametrize(("handshake_s", "timeout_s"), [(0.1, 0.3), (0.01, 0.2)])
async def test_handshake_is_the_first_measurement(guest: Stage, handshake_s: float, timeout_s: float) -> None:
    """RFC 6298 section 2.2: the smoothed round trip, and four times half of it."""
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN)
    await tcp.expects(SYN | ACK)
    await guest.passes(handshake_s)
    tcp.sends(ACK)
    host = await server.accepts()
    await is_sent_again_after(timeout_s, guest, tcp, host)


async def test_handshake_that_took_two_attempts_measures_nothing(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN)
    syn = await tcp.expects(SYN | ACK)
    await guest.passes(1.01)
    await tcp.expects(SYN | ACK)
    tcp.expected = syn.seq + 1
    tcp.sends(ACK)
    host = await server.accepts()
    await is_sent_again_after(1, guest, tcp, host)


async def test_handshake_of_a_guest_that_was_asked_is_measured(guest: Stage) -> None:
    host = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    await guest.passes(0.1)
    tcp.sends(SYN | ACK)
    await tcp.expects(ACK)
    await is_sent_again_after(0.3, guest, tcp, host)


async def test_what_is_lost_again_is_sent_again_after_two_round_trips_and_then_after_a_timeout(guest: Stage) -> None:
    """Once after each progress, while everything is being sent once more (RFC 8985 section 7.2)."""
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1000, scale=7)
    await tcp.expects(SYN | ACK)
    await guest.passes(0.05)
    tcp.sends(ACK)
    host = await server.accepts()
    data, start = noise(4000), tcp.expected
    host.sends(data)
    await tcp.expects_data(data, acknowledge=False)
    await guest.passes(0.21)
    await expects_segments(tcp, data, 1000, at=start)
    for at in (1000, 2000):
        tcp.sends(ACK, ack=start + at)
        await guest.passes(0.09)
        await tcp.expects_nothing()
        await guest.passes(0.02)
        await expects_segments(tcp, data[at:], 1000, at=start + at)
    await guest.passes(0.37)
    await tcp.expects_nothing()
    await guest.passes(0.04)
    await expects_segments(tcp, data[2000:], 1000, at=start + 2000)


async def test_back_off_ends_when_its_time_has_passed_without_another_one(guest: Stage) -> None:
    """RFC 8961 section 4, requirement 3, case b: what is sent once more, and lost again, measures nothing."""
    tcp, host = await guest.connected(mss=1000)
    data, start = noise(4000), tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    await guest.passes(0.201)
    await expects_segments(tcp, data, 1000, at=start)  # the next timeout is 0.4 s
    tcp.sends(ACK, ack=start + 1000)
    await guest.passes(0.03)
    await expects_segments(tcp, data[1000:], 1000, at=start + 1000)
    await guest.passes(0.38)
    tcp.sends(ACK, ack=start + 2000)  # 0.41 s after the first one
    await guest.passes(0.03)
    await expects_segments(tcp, data[2000:], 1000, at=start + 2000)
    await guest.passes(0.18)
    await tcp.expects_nothing()
    await guest.passes(0.03)
    await expects_segments(tcp, data[2000:], 1000, at=start + 2000)


async def test_measured_round_trip_makes_the_timeout_short(guest: Stage) -> None:
    tcp, host = await guest.connected()
    host.sends(b"measured")
    await tcp.expects(ACK, b"measured")
    await guest.passes(0.010)
    tcp.sends(ACK)
    host.sends(b"lost")
    await tcp.expects(ACK, b"lost")
    await guest.passes(0.19)
    await tcp.expects_nothing()
    await guest.passes(0.02)
    await tcp.expects(ACK, b"lost", seq=tcp.expected - 4)


async def test_what_was_sent_twice_is_not_measured_and_the_timeout_stays_long(guest: Stage) -> None:
    """Karn's algorithm, RFC 6298 sections 3 and 5.7."""
    tcp, host = await guest.connected()
    host.sends(b"lost")
    await tcp.expects(ACK, b"lost")
    await guest.passes(0.2)
    await tcp.expects(ACK, b"lost", seq=tcp.expected - 4)
    tcp.sends(ACK)
    host.sends(b"next")
    await tcp.expects(ACK, b"next")
    await guest.passes(0.39)
    await tcp.expects_nothing()
    await guest.passes(0.02)
    await tcp.expects(ACK, b"next", seq=tcp.expected - 4)


async def test_three_duplicate_acknowledgements_bring_the_missing_segment_at_once(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1000)
    data = noise(6000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    tcp.sends(ACK, ack=start + 1000)
    for _ in range(2):
        tcp.sends(ACK, ack=start + 1000)
    await tcp.expects_nothing()
    tcp.sends(ACK, ack=start + 1000)
    await tcp.expects(ACK, data[1000:2000], seq=start + 1000)
    for _ in range(5):
        tcp.sends(ACK, ack=start + 1000)
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await guest.passes(5)
    await tcp.expects_nothing()


async def test_partial_acknowledgement_brings_everything_from_the_next_hole_on(guest: Stage) -> None:
    """Where RFC 6582 section 3.2, step 3, has one segment a round trip."""
    tcp, host = await guest.connected(mss=1000)
    data = noise(6000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    for _ in range(4):
        tcp.sends(ACK, ack=start + 1000)
    await tcp.expects(ACK, data[1000:2000], seq=start + 1000)
    tcp.sends(ACK, ack=start + 3000)
    await expects_segments(tcp, data[3000:], 1000, at=start + 3000)
    tcp.sends(ACK)
    await tcp.expects_nothing()


async def test_acknowledgements_with_data_or_another_window_are_no_duplicates(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    host.sends(bytes(3000))
    start = tcp.expected
    await expects_segments(tcp, bytes(3000), 1000, at=start)
    for _ in range(4):
        tcp.sends(ACK, b"x", ack=start)
        await tcp.expects(ACK)
    for window in (70_000, 80_000, 90_000, 100_000):
        tcp.sends(ACK, ack=start, window=window)
    await tcp.expects_nothing()


async def test_lost_fin_is_resent_by_duplicate_acknowledgements(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    host.half_closes()
    fin = await tcp.expects(FIN | ACK)
    for _ in range(4):
        tcp.sends(ACK, ack=fin.seq)
    await tcp.expects(FIN | ACK, seq=fin.seq)


async def test_late_acknowledgement_after_a_timeout_is_of_use(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    data = noise(3000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data, 1000, at=start)
    guest.link.set_capacity(frames=0)
    await guest.passes(1.01)
    tcp.sends(ACK, ack=start + 3000)
    await guest.settles()
    guest.link.set_capacity()
    host.sends(b"next")
    await tcp.expects(ACK, b"next")


async def test_acknowledgement_restarts_the_timer(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    start = tcp.expected
    host.sends(bytes(2000))
    await expects_segments(tcp, bytes(2000), 1000, at=start)
    await guest.passes(0.15)
    tcp.sends(ACK, ack=start + 1000)
    await guest.passes(0.15)
    await tcp.expects_nothing()
    await guest.passes(0.5)
    await tcp.expects(ACK, bytes(1000), seq=start + 1000)


async def test_acknowledgement_after_duplicates_in_one_batch_makes_resending_needless(guest: Stage) -> None:
    """Nothing but what is in flight is sent again, least of all beyond the guest's window."""
    tcp, host = await guest.connected(mss=1000, scale=0, window=3000)
    data = noise(6000)
    start = tcp.expected
    host.sends(data)
    await expects_segments(tcp, data[:3000], 1000, at=start)
    duplicates = [tcp.segment(ACK, ack=start) for _ in range(3)]
    tcp.sends_batch(*duplicates, tcp.segment(ACK, window=0))
    await tcp.expects_nothing()
    tcp.sends(ACK, window=3000)
    await expects_segments(tcp, data[3000:], 1000, at=start + 3000)
