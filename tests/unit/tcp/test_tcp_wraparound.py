"""Everything that compares sequence numbers, where they wrap in the middle: both sides' numbers are 32 bits."""

import itertools

import pytest
import trio
from harness.noise import noise
from harness.stage import Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.tcp import handshake
from trio_passt.wire.tcp import ACK, FIN, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock", "peek_offset")

BEFORE_WRAP = 2500
"""Both sides' first data byte lies so far before number 0."""


@pytest.fixture(autouse=True)
def numbers_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's numbers wrap soon."""
    monkeypatch.setattr(handshake, "initial_sequence", lambda *_: 2**32 - BEFORE_WRAP - 1)


async def connected(guest: Stage, *, window: int = 65535, scale: int | None = 7) -> tuple[GuestTcp, HostSocket]:
    tcp, host = await guest.connected(mss=1000, window=window, scale=scale, initial_seq=2**32 - BEFORE_WRAP - 1)
    assert tcp.next == tcp.expected == 2**32 - BEFORE_WRAP
    return tcp, host


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_both_directions_at_once(guest: Stage) -> None:
    tcp, host = await connected(guest)
    upload, download = noise(6000, 1), noise(6000, 2)
    for up, down in zip(cut(upload, 1000), cut(download, 1000), strict=True):
        host.sends(down)
        await tcp.expects(ACK, down)
        tcp.sends(ACK, up)
        await tcp.expects(ACK)
    await host.receives(upload)
    assert tcp.next == tcp.expected == 6000 - BEFORE_WRAP


async def test_bulk_both_ways_at_once(guest: Stage) -> None:
    """Numbers wrap within one batch from the guest, and within one piece that is cut for it."""
    tcp, host = await connected(guest)
    upload, download = noise(100_000, 1), noise(100_000, 2)
    await host.sends_all(download)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receives, upload)
        await tcp.expects_data(download)
        await tcp.uploads(upload, 1000)


async def test_retransmission_from_before_to_behind(guest: Stage) -> None:
    tcp, host = await connected(guest)
    data, start = noise(5000), tcp.expected
    host.sends(data)
    await tcp.expects_data(data, acknowledge=False)
    await guest.passes(0.21)
    for number, piece in enumerate(cut(data, 1000)):
        await tcp.expects(ACK, piece, seq=start + 1000 * number)
    tcp.sends(ACK, ack=start + 4000)  # behind it
    await tcp.expects_nothing()
    await guest.passes(0.5)
    await tcp.expects(ACK, data[4000:], seq=start + 4000)


async def test_fast_retransmission_and_next_hole(guest: Stage) -> None:
    tcp, host = await connected(guest)
    data, start = noise(6000), tcp.expected
    host.sends(data)
    await tcp.expects_data(data, acknowledge=False)
    for _ in range(4):
        tcp.sends(ACK, ack=start + 2000)
    await tcp.expects(ACK, data[2000:3000], seq=start + 2000)  # the segment in which the number wraps
    tcp.sends(ACK, ack=start + 4000)
    await tcp.expects(ACK, data[4000:5000], seq=start + 4000)
    await tcp.expects(ACK, data[5000:], seq=start + 5000)
    tcp.sends(ACK)
    await tcp.expects_nothing()


async def test_old_and_impossible_acknowledgements(guest: Stage) -> None:
    tcp, host = await connected(guest)
    data, start = noise(4000), tcp.expected
    host.sends(data)
    await tcp.expects_data(data)
    tcp.sends(ACK, ack=start + 1000)  # from before the wrap
    await tcp.expects_nothing()
    tcp.sends(ACK, b"not taken", seq=tcp.next, ack=tcp.expected + 1)
    await tcp.expects(ACK)
    await host.receives_nothing()


async def test_window_of_the_guest_reaches_beyond(guest: Stage) -> None:
    tcp, host = await connected(guest, window=4000, scale=0)
    data = noise(8000)
    host.sends(data)
    await tcp.expects_data(data[:4000], acknowledge=False)
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await tcp.expects_data(data[4000:])


async def test_closed_window_right_behind_is_probed_from_before(guest: Stage) -> None:
    tcp, host = await connected(guest, window=BEFORE_WRAP, scale=0)
    host.sends(noise(5000))
    await tcp.expects_data(noise(5000)[:BEFORE_WRAP], acknowledge=False)
    tcp.sends(ACK, window=0)
    assert tcp.expected == 0
    await guest.passes(1.01)
    await tcp.expects(ACK, seq=2**32 - 1)
    tcp.sends(ACK, window=2500)
    await tcp.expects_data(noise(5000)[BEFORE_WRAP:])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_any_order_of_segments_from_the_guest(guest: Stage, order: tuple[int, ...]) -> None:
    """Gap, duplicate and overlap, each across the wrap."""
    tcp, host = await connected(guest)
    start, data = tcp.next, noise(5000)
    segments = [tcp.segment(ACK, data[at : at + 2000], seq=start + at) for at in (0, 1500, 3000)]
    for _ in range(3):
        for index in order:
            tcp.sends_batch(segments[index])
            await guest.settles()
    tcp.next = (start + 5000) % 2**32
    while (got := await tcp.arrives_or_none()) is not None:
        last = got
    assert last.ack == tcp.next
    await host.receives(data)
    await host.receives_nothing()


@pytest.mark.parametrize("before", [BEFORE_WRAP, BEFORE_WRAP - 1, BEFORE_WRAP + 1])
async def test_fin_at_the_wrap(guest: Stage, before: int) -> None:
    tcp, host = await connected(guest)
    data = noise(before)
    host.sends(data)
    host.half_closes()
    await tcp.expects_data(data)
    fin = await tcp.expects(FIN | ACK)
    assert fin.seq == (before - BEFORE_WRAP) % 2**32
    tcp.sends(FIN | ACK, data)
    await tcp.expects(ACK)
    await host.receives(data)
    await host.receives_end()
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_acceptability_at_the_wrap(guest: Stage) -> None:
    tcp, host = await connected(guest)
    for payload in cut(bytes(BEFORE_WRAP - 10), 1000):
        tcp.sends(ACK, payload)
        await tcp.expects(ACK)
    await host.receives(bytes(BEFORE_WRAP - 10))
    assert tcp.next == 2**32 - 10
    for seq in (tcp.next - 20, tcp.next + tcp.room + 128, tcp.next + 2**31):
        tcp.sends(RST, seq=seq)  # out of the window
    await tcp.expects_nothing()
    for seq in (5, tcp.next + 1):
        tcp.sends(RST, seq=seq)  # in it
        await tcp.expects(ACK)
    tcp.sends(SYN, seq=5)
    await tcp.expects(ACK)
    tcp.sends(ACK, b"beyond", seq=tcp.next + tcp.room + 128)
    await tcp.expects(ACK)
    await host.receives_nothing()
    tcp.sends(ACK, bytes(20))
    await tcp.expects(ACK)
    assert tcp.next == 10
    tcp.sends(RST, seq=2**32 - 1)  # was in the window
    await tcp.expects_nothing()
    tcp.sends(RST)
    await host.is_reset()


async def test_reset_number_behind_the_wrap(guest: Stage) -> None:
    tcp, host = await connected(guest)
    host.sends(noise(4000))
    await tcp.expects_data(noise(4000))
    assert tcp.expected < 4000
    tcp.sends(ACK, b"x")
    await tcp.expects(ACK)
    host.resets()
    await tcp.expects_reset()


async def test_handshake_whose_numbers_are_the_last_ones(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SYN has number 2**32 - 1, so the first byte has 0: in both directions, and for both sides as opener."""
    monkeypatch.setattr(handshake, "initial_sequence", lambda *_: 2**32 - 1)
    tcp, host = await guest.connected(initial_seq=2**32 - 1)
    assert (tcp.next, tcp.expected) == (0, 0)
    tcp.sends(ACK, b"up")
    await tcp.expects(ACK)
    host.sends(b"down")
    await tcp.expects(ACK, b"down")
    await host.receives(b"up")
    inbound, client = await guest.connected_from_host()
    assert inbound.expected == 0
    client.sends(b"hello")
    await inbound.expects(ACK, b"hello")
