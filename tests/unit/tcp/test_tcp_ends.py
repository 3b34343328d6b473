"""The ends of a connection: each half by itself, resets, silence."""

import logging

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage

from trio_passt.tcp.bridge import Bridge
from trio_passt.wire.tcp import ACK, FIN, RST

pytestmark = pytest.mark.usefixtures("standing_clock")


@pytest.mark.usefixtures("peek_offset")
async def test_guest_closes_its_half_and_still_receives(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    data = noise(200_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.sends_all, data)
        nursery.start_soon(tcp.expects_data, data)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_host_closes_its_half_and_still_receives(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    data = noise(200_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receives, data)
        nursery.start_soon(tcp.uploads, data)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_host_sends_and_closes_at_once(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1460)
    host.sends(noise(3000))
    host.half_closes()
    await tcp.expects_data(noise(3000))
    await tcp.expects(FIN | ACK)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize("mss", [1460, 32000])
async def test_end_rides_on_the_last_data(guest: Stage, family: Family, mss: int) -> None:
    """It has come with them, or the host is known to have closed by the time that they are sent."""
    tcp, host = await guest.connected(family, mss=mss)
    guest.link.set_capacity(frames=0)
    host.sends(noise(100_000)[:65000])
    host.half_closes()
    await guest.settles()
    guest.link.set_capacity()
    seen = [await guest.expects_segment() for _ in range(-(-65000 // mss))]
    assert [bool(one.segment.flags & FIN) for one in seen] == [False] * (len(seen) - 1) + [True]
    assert b"".join(one.segment.payload for one in seen) == noise(100_000)[:65000]
    tcp.expected += 65001
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_both_close_at_once(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    guest.link.set_capacity(frames=0)
    host.half_closes()
    tcp.sends(FIN | ACK)
    await host.receives_end()
    guest.link.set_capacity()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await guest.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
async def test_fins_that_cross(guest: Stage) -> None:
    tcp, host = await guest.connected()
    host.half_closes()
    fin = await tcp.expects(FIN | ACK)
    tcp.sends(FIN | ACK, ack=fin.seq)
    await tcp.expects(ACK)
    await host.receives_end()
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_fin_with_data(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(FIN | ACK, b"last words")
    await tcp.expects(ACK)
    await host.receives(b"last words")
    await host.receives_end()


async def test_repeated_fin_is_acknowledged_again(guest: Stage) -> None:
    tcp, host = await guest.connected()
    fin = tcp.segment(FIN | ACK, b"last words")
    tcp.sends_batch(fin)
    await tcp.expects(ACK)
    for _ in range(3):
        tcp.sends_batch(fin)
        await tcp.expects(ACK)
    await host.receives(b"last words")
    await host.receives_end()


async def test_fin_before_the_data_that_it_follows_is_kept(guest: Stage) -> None:
    tcp, host = await guest.connected()
    start = tcp.next
    data = tcp.segment(ACK, b"data")
    fin = tcp.segment(FIN | ACK)
    tcp.sends_batch(fin)
    await tcp.expects(ACK, ack=start)
    await host.receives_nothing()
    tcp.sends_batch(data)
    await tcp.expects(ACK)
    await host.receives(b"data")
    await host.receives_end()


async def test_data_after_fin_is_not_taken(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    tcp.sends(ACK, b"afterthought", seq=tcp.next)
    await tcp.expects(ACK)
    await host.receives_end()


@pytest.mark.usefixtures("peek_offset")
async def test_fin_of_the_host_is_repeated_until_acknowledged(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    host.half_closes()
    fin = await tcp.expects(FIN | ACK)
    for wait_s in (0.2, 0.4, 0.8):
        await guest.passes(wait_s)
        await tcp.expects(FIN | ACK, seq=fin.seq)
    tcp.sends(ACK)
    await guest.passes(30)
    await tcp.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
async def test_data_and_fin_are_repeated_together(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460)
    host.sends(noise(2000))
    host.half_closes()
    first = [await tcp.arrives() for _ in range(3)]
    assert [segment.flags & FIN for segment in first] == [0, 0, FIN]
    await guest.passes(0.2)
    again = [await tcp.arrives() for _ in range(3)]
    assert [(s.seq, s.payload, s.flags & FIN) for s in again] == [(s.seq, s.payload, s.flags & FIN) for s in first]
    tcp.sends(ACK, ack=first[0].seq + 2000)
    await tcp.expects_nothing()
    await guest.passes(0.5)
    late = await tcp.arrives()
    assert (late.seq, late.flags) == (first[2].seq, FIN | ACK)
    guest.forgets()
    tcp.sends(ACK, ack=first[0].seq + 2001)
    tcp.expected = first[0].seq + 2001
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)


@pytest.mark.usefixtures("peek_offset")
async def test_late_acknowledgement_of_data_and_fin_after_a_timeout(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460)
    host.sends(noise(2000))
    host.half_closes()
    first = [await tcp.arrives() for _ in range(3)]
    guest.link.set_capacity(frames=0)
    await guest.passes(1)
    tcp.expected = first[0].seq + 2001
    tcp.sends(ACK)
    tcp.sends(FIN | ACK)
    await guest.settles()
    guest.link.set_capacity()
    await tcp.expects(ACK)
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_host_that_resets_resets_the_guest(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(ACK, b"x")
    await tcp.expects(ACK)
    host.resets()
    await tcp.expects_reset()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_host_that_resets_with_data_in_flight(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460)
    host.sends(noise(2000))
    await tcp.expects(ACK, noise(2000)[:1460])
    await tcp.expects(ACK, noise(2000)[1460:])
    host.resets()
    await tcp.expects_reset()


async def test_reset_after_a_timeout_has_the_number_that_the_guest_expects(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460)
    host.sends(b"data")
    await tcp.expects(ACK, b"data")
    guest.link.set_capacity(frames=0)
    await guest.passes(1)  # the timeout takes SND.NXT back
    host.resets()
    await guest.settles()
    guest.link.set_capacity()
    got = await tcp.arrives()
    assert got.payload == b"data"
    await tcp.expects_reset()


async def test_data_for_a_host_that_is_gone_is_answered_with_a_reset(guest: Stage) -> None:
    tcp, host = await guest.connected()
    host.close()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    tcp.sends(ACK, b"anybody there?")
    while (got := await tcp.arrives()).flags & RST == 0:
        pass
    assert got.seq == tcp.expected


async def test_guest_that_resets_resets_the_host(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(RST)
    await host.is_reset()
    await tcp.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


async def test_reset_ends_half_closed_connections_too(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    tcp.sends(RST)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    with pytest.raises(BrokenPipeError):
        host.socket.send(b"x")


async def test_reset_in_the_batch_of_the_last_data(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends_batch(tcp.segment(ACK, b"x"), tcp.segment(RST))
    await host.is_reset()


async def test_silent_half_closed_connection_is_probed_and_lasts_if_the_guest_knows_it(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    for _ in range(5):
        await guest.passes(59.9)
        await tcp.expects_nothing()
        await guest.passes(0.2)
        await tcp.expects(ACK, seq=tcp.expected - 1)
        tcp.sends(ACK)
    host.sends(b"still here")
    await tcp.expects(ACK, b"still here")


async def test_half_closed_connection_that_the_guest_has_forgotten_is_reset(guest: Stage) -> None:
    tcp, host = await guest.connected()
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.passes(60.1)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    tcp.sends(RST)
    await host.is_reset()


@pytest.mark.parametrize(("half_closed", "silence_s"), [(True, 60), (False, 7200)])
async def test_probes_without_an_answer_reset_both_sides(guest: Stage, half_closed: bool, silence_s: int) -> None:
    tcp, host = await guest.connected()
    if half_closed:
        host.half_closes()
        await tcp.expects(FIN | ACK)
        tcp.sends(ACK)
    await guest.passes(silence_s - 1)
    await tcp.expects_nothing()
    await guest.passes(2)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    for _ in range(2):
        await guest.passes(10)
        await tcp.expects(ACK, seq=tcp.expected - 1)
    await guest.passes(10)
    await tcp.expects_reset()
    await host.is_reset()


async def test_keepalive_of_the_guest_is_answered(guest: Stage) -> None:
    tcp, _ = await guest.connected()
    tcp.sends(ACK, seq=tcp.next - 1)
    await tcp.expects(ACK)
    tcp.sends(ACK, b"\0", seq=tcp.next - 1)
    await tcp.expects(ACK)


async def test_internal_error_ends_one_flow_and_leaves_the_others_alone(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sick, sick_host = await guest.connected()
    sound, sound_host = await guest.connected()
    write = Bridge.write_to_host

    def fail(bridge: Bridge, now: float) -> None:
        if bridge.from_guest.pending_bytes == 13:
            raise ZeroDivisionError
        write(bridge, now)

    monkeypatch.setattr(Bridge, "write_to_host", fail)
    sick.sends(ACK, bytes(13))
    await sick.expects_reset()
    await sick_host.is_reset()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "please report" in caplog.text
    sound.sends(ACK, b"fine")
    await sound.expects(ACK)
    await sound_host.receives(b"fine")
    assert len(guest.dispatcher.tcp) == 1
    assert V4.guest in caplog.text
