"""Windows: the guest's bounds what it is sent, and the guest's bound is what the host can take."""

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage

from trio_passt.tcp import bridge, timeouts
from trio_passt.wire.tcp import ACK, FIN

pytestmark = pytest.mark.usefixtures("standing_clock")


@pytest.mark.usefixtures("peek_offset")
async def test_window_of_the_guest_is_filled_and_never_overrun(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1460, scale=0, window=5000)
    data = noise(20_000)
    host.sends(data)
    received = b""
    for _ in range(4):
        batch = b""
        while len(batch) < 5000:
            got = await tcp.expects(ACK, data[len(received + batch) :][: min(1460, 5000 - len(batch))])
            batch += got.payload
        await tcp.expects_nothing()
        received += batch
        tcp.sends(ACK)
    assert received == data


@pytest.mark.usefixtures("peek_offset")
async def test_small_window_waits_for_a_full_segment_while_something_is_in_flight(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460, scale=0, window=8000)
    host.sends(bytes(20_000))
    for size in (1460, 1460, 1460, 1460, 1460, 700):
        await tcp.expects(ACK, bytes(size))
    first = tcp.expected - 8000
    tcp.sends(ACK, ack=first + 1000, window=8000)
    await tcp.expects_nothing()
    tcp.sends(ACK, ack=first + 2920, window=8000)
    await tcp.expects(ACK, bytes(1460))


@pytest.mark.usefixtures("peek_offset")
async def test_closed_window_is_probed_until_it_opens(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1460, scale=0, window=1000)
    data = noise(3000)
    host.sends(data)
    await tcp.expects(ACK, data[:1000])
    tcp.window = 0
    tcp.sends(ACK)
    await tcp.expects_nothing()
    due, wait_s = trio.current_time(), 0.2
    for _ in range(20):
        due += wait_s
        await guest.passes(due - trio.current_time() - 0.01)
        await tcp.expects_nothing()
        await guest.passes(0.011)
        await tcp.expects(ACK, seq=tcp.expected - 1)
        tcp.sends(ACK)
        wait_s = min(wait_s * 2, 60)
    tcp.window = 5000
    tcp.sends(ACK)
    await tcp.expects(ACK, data[1000:2460])
    await tcp.expects(ACK, data[2460:])
    tcp.sends(ACK)
    await guest.passes(300)
    await tcp.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
async def test_probes_that_are_not_answered_are_given_up(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1460, scale=0, window=1000)
    host.sends(bytes(3000))
    await tcp.expects(ACK, bytes(1000))
    tcp.sends(ACK, window=0)
    await tcp.expects_nothing()
    await guest.passes(600)
    for _ in range(8):
        await tcp.expects(ACK, seq=tcp.expected - 1)
    await tcp.expects_reset()
    await host.is_reset()


@pytest.mark.usefixtures("peek_offset")
async def test_window_that_closes_over_data_in_flight(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000, scale=0, window=4000)
    data = noise(8000)
    host.sends(data)
    for at in range(0, 4000, 1000):
        await tcp.expects(ACK, data[at : at + 1000])
    start = tcp.expected - 4000
    tcp.sends(ACK, ack=start + 2000, window=0)
    await guest.passes(5)
    probe = await tcp.arrives()
    assert (probe.seq, probe.payload) == (start + 1999, b"")
    guest.forgets()
    tcp.expected = start + 2000
    tcp.sends(ACK, window=10_000)
    for at in range(2000, 8000, 1000):
        await tcp.expects(ACK, data[at : at + 1000])


@pytest.mark.usefixtures("peek_offset")
async def test_window_update_alone_lets_data_go_on(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000, scale=0, window=1000)
    host.sends(bytes(5000))
    await tcp.expects(ACK, bytes(1000))
    tcp.sends(ACK, ack=tcp.expected - 1000, window=3000)
    await tcp.expects(ACK, bytes(1000))
    await tcp.expects(ACK, bytes(1000))
    await tcp.expects_nothing()


@pytest.mark.usefixtures("fixed_send_buffer")
@pytest.mark.parametrize("scale", [7, None])
async def test_host_that_does_not_read_closes_the_window_and_nothing_is_lost(
    guest: Stage, family: Family, scale: int | None
) -> None:
    server = guest.host_serves(family)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(family, scale=scale, server=server)
    data = noise(4_000_000)
    sent = await tcp.fills_window(data)
    assert tcp.room == 0
    assert sent < len(data)
    await tcp.expects_nothing()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receives, data[:sent])
    await guest.settles()
    reopened = None
    while (got := await tcp.arrives_or_none()) is not None:
        reopened = got
    assert reopened is not None, "no window update"
    assert reopened.flags == ACK
    assert reopened.ack == tcp.next
    assert reopened.window << tcp.host_scale >= min(65535, bridge.WINDOW_BEYOND_BYTES // 2)


@pytest.mark.usefixtures("fixed_send_buffer")
async def test_probe_of_a_closed_window_is_answered_and_its_byte_not_taken(guest: Stage) -> None:
    server = guest.host_serves(V4)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(server=server)
    data = noise(4_000_000)
    sent = await tcp.fills_window(data)
    tcp.sends(ACK, data[sent : sent + 1], seq=tcp.next)
    got = await tcp.arrives()
    assert tcp.room == 0
    tcp.sends(ACK, seq=tcp.next - 1)
    assert (await tcp.arrives()).ack == got.ack
    await host.receives(data[:sent])
    await host.receives_nothing()


@pytest.mark.usefixtures("fixed_send_buffer")
async def test_end_waits_behind_data_that_the_host_has_no_room_for(guest: Stage) -> None:
    server = guest.host_serves(V4)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(server=server)
    data = noise(4_000_000)
    sent = await tcp.fills_window(data, but=1)
    tcp.sends(FIN | ACK)
    while (got := await tcp.arrives_or_none()) is not None:
        assert got.ack != tcp.next
    await host.receives(data[:sent])
    await host.receives_end()
    acknowledged = 0
    while (got := await tcp.arrives_or_none()) is not None:
        acknowledged = got.ack
    assert acknowledged == tcp.next


async def test_data_beyond_the_window_is_not_taken(guest: Stage) -> None:
    tcp, host = await guest.connected(scale=None)
    assert tcp.host_window == 65535
    tcp.sends(ACK, b"beyond", seq=tcp.next + 65535)
    await tcp.expects(ACK)
    tcp.sends(ACK, b"within")
    await tcp.expects(ACK)
    await host.receives(b"within")
    await host.receives_nothing()


async def test_part_of_a_segment_that_lies_in_the_window_is_taken(guest: Stage) -> None:
    tcp, host = await guest.connected(scale=None)
    start = tcp.next
    tcp.sends_batch(tcp.segment(ACK, bytes(40_000)), tcp.segment(ACK, noise(30_000)))
    await tcp.expects(ACK, ack=start + 65535)
    await host.receives(bytes(40_000) + noise(30_000)[:25_535])
    await host.receives_nothing()


@pytest.mark.usefixtures("fixed_send_buffer")
@pytest.mark.parametrize("near", [True, False])
async def test_host_that_stopped_reading_is_acknowledged_for_and_probed_as_long_as_it_takes(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    """A guest gives up a connection that does not acknowledge, but not one whose window is closed."""
    if not near:
        monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
    server = guest.host_serves(V4)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(server=server)
    data = noise(4_000_000)
    sent = await tcp.fills_window(data)
    patience_s = timeouts.STALLED_NEAR_S if near else timeouts.STALLED_S
    for _ in range(3):  # the kernel acknowledges some of it when it likes, and then patience begins anew
        await guest.passes(patience_s + 0.1)
    acknowledged = 0
    while (got := await tcp.arrives_or_none()) is not None:
        acknowledged = got.ack
    assert (acknowledged, tcp.host_window, tcp.room) == (tcp.next, 0, 0)
    for _ in range(20):
        await guest.passes(60)
        tcp.sends(ACK, data[sent : sent + 1], seq=tcp.next)
        probed = await tcp.expects(ACK)
        assert (probed.window, tcp.room) == (0, 0)
    await host.receives(data[:sent])
    opened = None
    while (got := await tcp.arrives_or_none()) is not None:
        opened = got
    assert opened is not None
    assert tcp.room > 0
    await host.receives_nothing()
