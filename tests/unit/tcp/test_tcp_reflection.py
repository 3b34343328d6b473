"""Windows of one side are the other side's: who does not read is not sent to, and who reads again is told promptly.

Silly windows (RFC 9293 section 3.8.6.2) are avoided both ways: a reader of single bytes makes no small segments.
"""

import itertools

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage
from harness.tcp import HostSocket
from harness.waiting import eventually

from trio_passt.tcp import seq
from trio_passt.wire.tcp import ACK, FIN, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")

MSS = 1000


def sends_what_fits(host: HostSocket, data: bytes) -> int:
    """The host sends until its socket takes no more; how much that was."""
    sent = 0
    while sent < len(data):
        try:
            sent += host.socket.send(data[sent : sent + 65536])
        except BlockingIOError:
            break
    return sent


@pytest.mark.usefixtures("peek_offset")
async def test_guest_that_does_not_read_stops_the_hosts_peer(guest: Stage, family: Family) -> None:
    """Nothing is queued but by the kernel: what the guest has no room for stays with the host, and fills it."""
    server = guest.host_serves(family)
    server.receive_buffer(65536)
    tcp, host = await guest.connected(family, mss=MSS, scale=0, window=4 * MSS, server=server)
    data = noise(30_000_000)
    sent = sends_what_fits(host, data)
    await tcp.expects_data(data[: 4 * MSS], acknowledge=False)
    tcp.sends(ACK, window=0)
    await guest.settles()
    rounds_without_room = 0
    for _ in range(100):  # the kernel's buffers may have some more room, a little later
        more = sends_what_fits(host, data[sent:])
        sent += more
        rounds_without_room = 0 if more else rounds_without_room + 1
        if rounds_without_room > 5:
            break
        await guest.passes(60)
        tcp.sends(ACK, window=0)
    assert rounds_without_room > 5
    assert sent < len(data)
    guest.forgets()
    tcp.window = 65535
    tcp.sends(ACK)
    await tcp.expects_data(data[4 * MSS : sent])
    await eventually(lambda: sends_what_fits(host, data[sent:]) or None, "room for the host again")


@pytest.mark.usefixtures("peek_offset")
async def test_guest_that_reads_single_bytes_is_sent_full_segments(guest: Stage, family: Family) -> None:
    """Its window opens by a little each time: the data waits for a segment's worth of room."""
    tcp, host = await guest.connected(family, mss=MSS, scale=0, window=4 * MSS)
    data = noise(20 * MSS)
    host.sends(data)
    await tcp.expects_data(data[: 4 * MSS], acknowledge=False)
    tcp.sends(ACK, ack=tcp.expected - MSS, window=MSS)  # nothing is read yet: the right edge stays
    read, received = 0, 4 * MSS
    sizes = []
    while read < 6 * MSS:
        read += 100
        edge = 4 * MSS + read
        acknowledged = received - MSS
        tcp.sends(ACK, ack=tcp.expected - MSS, window=edge - acknowledged)
        while (got := await tcp.arrives_or_none()) is not None:
            if got.payload:
                sizes.append(len(got.payload))
                received += len(got.payload)
    assert len(sizes) >= 5
    assert set(sizes) == {MSS}


@pytest.mark.usefixtures("fixed_send_buffer")
@pytest.mark.parametrize("step", [1, 700])
async def test_host_that_reads_little_by_little_opens_no_silly_window(guest: Stage, family: Family, step: int) -> None:
    """The right edge of the guest's window moves by segments, or by much, however small the host's reads are."""
    server = guest.host_serves(family)
    server.receive_buffer(65536)
    tcp, host = await guest.connected(family, mss=MSS, server=server)
    data = noise(4_000_000)
    sent = await tcp.fills_window(data, segment_bytes=MSS)
    start = tcp.next
    edges = [0]
    left = 600 if step == 1 else 300_000
    for at in range(0, left, step):
        await host.receives(data[at : at + step])
        if step == 1 and at % 50:
            continue
        while (got := await tcp.arrives_or_none()) is not None:
            edges.append(seq.distance(start, seq.add(got.ack, got.window << tcp.host_scale)))
    moves = [after - before for before, after in itertools.pairwise(edges) if after > before]
    assert all(move >= MSS - (1 << tcp.host_scale) for move in moves), moves
    if step > 1:
        assert moves
    assert sent < len(data)


@pytest.mark.usefixtures("fixed_send_buffer")
async def test_window_update_needs_no_time(guest: Stage, family: Family) -> None:
    """Many times closed and opened again, while the clock stands still."""
    server = guest.host_serves(family)
    server.receive_buffer(65536)
    tcp, host = await guest.connected(family, server=server)
    begun, sent, data = trio.current_time(), 0, noise(1_500_000)
    received = 0
    while sent < len(data):
        sent += await tcp.fills_window(data[sent:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.receives, data[received:sent])
        received = sent
        await guest.settles()
        while await tcp.arrives_or_none() is not None:
            pass
        assert tcp.room > 0
    assert trio.current_time() == begun


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize("where", ["SYN", "ACK"])
async def test_window_that_is_closed_from_the_start(guest: Stage, family: Family, where: str) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=MSS, scale=3, window=0 if where == "SYN" else 5000)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK, window=0)
    host = await server.accepts()
    host.sends(b"hello")
    await tcp.expects_nothing()
    await guest.passes(0.21)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    tcp.sends(ACK, window=5000)
    await tcp.expects(ACK, b"hello")


async def test_end_of_the_host_waits_for_the_window_as_its_data_does(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=MSS, scale=0, window=MSS)
    host.sends(noise(1500))
    host.half_closes()
    await tcp.expects(ACK, noise(1500)[:MSS])
    tcp.sends(ACK, window=0)
    await guest.passes(0.5)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    tcp.sends(ACK, window=499)
    await tcp.expects(ACK, noise(1500)[MSS:1499])
    tcp.sends(ACK, window=0)
    await tcp.expects_nothing()
    tcp.sends(ACK, window=MSS)
    await tcp.expects(ACK, noise(1500)[1499:])
    await tcp.expects(FIN | ACK)


async def test_acknowledgement_counts_while_the_hosts_window_is_closed(guest: Stage, fixed_send_buffer: None) -> None:
    """RFC 9293 section 3.10.7.4: with a closed window, valid acknowledgements and resets are still taken."""
    server = guest.host_serves(V4)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(server=server, mss=MSS)
    await tcp.fills_window(noise(4_000_000))
    assert tcp.room == 0
    host.sends(noise(3000))
    await tcp.expects_data(noise(3000))
    await guest.passes(30)
    while (got := await tcp.arrives_or_none()) is not None:
        assert not got.payload, "sent again, though it was acknowledged"
