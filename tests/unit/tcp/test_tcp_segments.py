"""Segments that are not simply the next one (RFC 9293 section 3.10.7.4, RFC 5961)."""

import pytest
from harness.noise import noise
from harness.stage import V4, Family, Stage

from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_duplicate_is_acknowledged_and_not_delivered_twice(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    segment = tcp.segment(ACK, b"once")
    tcp.sends_batch(segment)
    await tcp.expects(ACK)
    tcp.sends_batch(segment)
    await tcp.expects(ACK)
    await host.receives(b"once")
    await host.receives_nothing()


async def test_overlap_gives_its_new_part(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    start = tcp.next
    tcp.sends(ACK, b"abcdef")
    await tcp.expects(ACK)
    tcp.sends(ACK, b"defghi", seq=start + 3)
    await tcp.expects(ACK, ack=start + 9)
    tcp.sends(FIN | ACK, b"fghijk", seq=start + 5)
    await tcp.expects(ACK, ack=start + 12)
    await host.receives(b"abcdefghijk")
    await host.receives_end()


async def test_gap_is_reported_and_what_lies_behind_it_is_kept(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start = tcp.next
    first, second, third = (tcp.segment(ACK, data) for data in (b"one", b"two", b"three"))
    tcp.sends_batch(second)
    await tcp.expects(ACK, ack=start)
    tcp.sends_batch(third)
    await tcp.expects(ACK, ack=start)
    tcp.sends_batch(first)
    await tcp.expects(ACK)
    await host.receives(b"onetwothree")


async def test_segment_before_the_window_is_answered(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(ACK, b"old", seq=tcp.next - 100_000)
    await tcp.expects(ACK)
    await host.receives_nothing()


async def test_reset_out_of_the_window_is_ignored(guest: Stage) -> None:
    tcp, host = await guest.connected()
    for distance in (-1, -100_000, tcp.room, 2**31):
        tcp.sends(RST, seq=tcp.next + distance)
    await tcp.expects_nothing()
    await host.receives_nothing()


async def test_reset_in_the_window_but_not_exact_is_challenged(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(RST, seq=tcp.next + 1)
    await tcp.expects(ACK)
    await host.receives_nothing()
    tcp.sends(RST)
    await host.is_reset()


async def test_syn_is_challenged(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    for distance in (0, 1, -5, 2**31):
        tcp.sends(SYN, seq=tcp.next + distance)
        await tcp.expects(ACK)
        tcp.sends(SYN | ACK, seq=tcp.next + distance)
        await tcp.expects(ACK)
    await host.receives_nothing()


async def test_guest_that_has_forgotten_the_connection_opens_a_new_one(guest: Stage) -> None:
    """RFC 9293 section 3.5.1, figure 9: the challenge makes the guest reset the half-open connection."""
    server = guest.host_serves(V4)
    tcp, host = await guest.connected(server=server)
    again = guest.tcp(V4, server.port, guest_port=tcp.guest_port)
    again.next = 5
    again.sends(SYN, mss=1460)
    challenge = await again.arrives()
    assert (challenge.flags, challenge.ack) == (ACK, tcp.next)
    again.sends(RST, seq=challenge.ack)
    await host.is_reset()
    again.sends(SYN, mss=1460, seq=5)
    await again.expects(SYN | ACK)
    again.sends(ACK, b"hello")
    await again.expects(ACK)


async def test_acknowledgement_of_what_was_never_sent_is_answered_and_dropped(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(ACK, b"not taken", seq=tcp.next, ack=tcp.expected + 1)
    await tcp.expects(ACK)
    await host.receives_nothing()


async def test_old_acknowledgement_changes_nothing(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start = tcp.expected
    host.sends(b"data")
    await tcp.expects(ACK, b"data")
    tcp.sends(ACK)
    tcp.sends(ACK, ack=start)
    tcp.sends(ACK, ack=start - 1)
    await tcp.expects_nothing()
    tcp.sends(ACK, b"more", ack=start)
    await tcp.expects(ACK)
    await host.receives(b"more")


async def test_segment_without_ack_is_dropped(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(PSH, b"no ack", seq=tcp.next)
    tcp.sends(FIN, seq=tcp.next)
    await tcp.expects_nothing()
    await host.receives_nothing()


async def test_unknown_segment_is_reset(guest: Stage, family: Family) -> None:
    tcp = guest.tcp(family, 80)
    tcp.sends(ACK, b"hello?", ack=4711)
    await tcp.expects(RST, seq=4711)
    tcp.sends(SYN | ACK, ack=4712)
    await tcp.expects(RST, seq=4712)
    tcp.sends(FIN, b"abc")
    await tcp.expects(RST | ACK, seq=0)
    tcp.sends(0, b"abc")
    await tcp.expects(RST | ACK, seq=0)


async def test_unknown_reset_is_not_answered(guest: Stage) -> None:
    tcp = guest.tcp(V4, 80)
    tcp.sends(RST)
    tcp.sends(RST | ACK, ack=1)
    tcp.sends(SYN | RST)
    await guest.expects_nothing()


async def test_segments_of_a_connection_that_is_over_are_reset(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(RST)
    await host.is_reset()
    tcp.sends(ACK, b"late", seq=tcp.next)
    await tcp.expects(RST)


async def test_out_of_order_and_duplicate_in_one_batch_with_the_right_one(guest: Stage) -> None:
    tcp, host = await guest.connected()
    data = noise(3000)
    parts = [tcp.segment(ACK, data[at : at + 1000]) for at in (0, 1000, 2000)]
    tcp.sends_batch(parts[1], parts[0], parts[0], parts[1], parts[2])
    await tcp.expects(ACK)
    await host.receives(data)
    await host.receives_nothing()
