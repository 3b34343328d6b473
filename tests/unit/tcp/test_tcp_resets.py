"""A reset in every state of both half tables, from either side; and data for a guest whose process died."""

import itertools

import pytest
from harness.noise import noise
from harness.stage import V4, Family, Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.host import sockets
from trio_passt.tcp import timeouts
from trio_passt.tcp.closing import FromGuestState, ToGuestState
from trio_passt.wire.tcp import ACK, FIN, RST

pytestmark = pytest.mark.usefixtures("standing_clock")

STATES = [
    (from_guest, to_guest)
    for from_guest, to_guest in itertools.product(FromGuestState, ToGuestState)
    if (from_guest, to_guest) != (FromGuestState.ACKNOWLEDGED, ToGuestState.ACKNOWLEDGED)
]
HOST_HAS_THE_FIN = (FromGuestState.DELIVERED, FromGuestState.ACKNOWLEDGED)

MOST_BYTES = 4_000_000


async def reach(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, from_guest: FromGuestState, to_guest: ToGuestState
) -> tuple[GuestTcp, HostSocket]:
    """A connection in this pair of states."""
    server = guest.host_serves(V4)
    server.receive_buffer(4096)
    tcp, host = await guest.connected(server=server)
    match from_guest:
        case FromGuestState.RECEIVED:  # the host reads nothing, so the FIN waits behind data
            await tcp.fills_window(noise(MOST_BYTES), but=1)
            tcp.sends(FIN | ACK)
            while (told := await tcp.arrives_or_none()) is not None:
                assert told.ack != tcp.next
        case FromGuestState.DELIVERED:  # the host's peer has not acknowledged it
            monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
            monkeypatch.setattr(sockets, "unacknowledged", lambda _sock: 1)
            tcp.sends(FIN | ACK)
            await host.receives_end()
            await tcp.expects_nothing()
        case FromGuestState.ACKNOWLEDGED:
            tcp.sends(FIN | ACK)
            await tcp.expects(ACK)
            await host.receives_end()
    match to_guest:
        case ToGuestState.DUE:  # the link has no room for it
            guest.link.set_capacity(frames=0)
            host.half_closes()
            await tcp.expects_nothing()
        case ToGuestState.SENT | ToGuestState.ACKNOWLEDGED:
            host.half_closes()
            while not (got := await tcp.arrives()).flags & FIN:
                pass
            tcp.expected = (got.seq + 1) % 2**32
            if to_guest is ToGuestState.ACKNOWLEDGED:
                tcp.sends(ACK)
            await guest.settles()
    assert len(guest.dispatcher.tcp) == 1
    return tcp, host


@pytest.mark.usefixtures("fixed_send_buffer", "peek_offset")
@pytest.mark.parametrize(("from_guest", "to_guest"), STATES, ids=lambda state: state.name)
async def test_reset_from_the_guest_resets_the_host(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, from_guest: FromGuestState, to_guest: ToGuestState
) -> None:
    tcp, host = await reach(guest, monkeypatch, from_guest, to_guest)
    tcp.sends(RST)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    guest.link.set_capacity()
    await tcp.expects_nothing()
    if from_guest not in HOST_HAS_THE_FIN:
        await host.is_reset()
    elif to_guest is ToGuestState.OPEN:
        with pytest.raises(BrokenPipeError):  # at once: after an orderly end, the first write still succeeds
            host.socket.send(b"x")
    # else it has both FINs, and is done with the connection


@pytest.mark.usefixtures("fixed_send_buffer", "peek_offset")
@pytest.mark.parametrize(
    ("from_guest", "to_guest"),
    [
        pytest.param(from_guest, to_guest, id=f"{from_guest.name}-{to_guest.name}")
        for from_guest, to_guest in STATES
        if from_guest not in HOST_HAS_THE_FIN or to_guest is ToGuestState.OPEN  # else the host has nothing to reset
    ],
)
async def test_reset_from_the_host_resets_the_guest(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, from_guest: FromGuestState, to_guest: ToGuestState
) -> None:
    tcp, host = await reach(guest, monkeypatch, from_guest, to_guest)
    host.resets()
    await guest.settles()
    guest.link.set_capacity()
    while not (got := await tcp.arrives()).flags & RST:
        assert got.flags == ACK
        assert not got.payload
    assert got.seq == tcp.expected
    await tcp.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


async def test_data_for_a_guest_whose_process_died_resets_the_host(guest: Stage, family: Family) -> None:
    """The guest's kernel has forgotten the connection, and answers with the number it was told (RFC 9293 3.5.2)."""
    tcp, host = await guest.connected(family)
    tcp.sends(ACK, b"last words")
    await tcp.expects(ACK)
    await host.receives(b"last words")
    host.sends(b"anybody there?")
    got = await tcp.expects(ACK, b"anybody there?")
    tcp.sends(RST, seq=got.ack)
    await host.is_reset()
    await tcp.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


async def test_data_for_a_guest_whose_process_closed_and_died_resets_the_host(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    host.sends(b"anybody there?")
    got = await tcp.expects(ACK, b"anybody there?")
    tcp.sends(RST, seq=got.ack)
    await guest.settles()
    with pytest.raises(BrokenPipeError):
        host.socket.send(b"x")
    assert len(guest.dispatcher.tcp) == 0


async def test_process_that_died_with_data_that_the_host_has_not_confirmed(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guest was told last is then behind what it sent, and its reset too."""
    monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
    monkeypatch.setattr(sockets, "unacknowledged", lambda _sock: 10)
    tcp, host = await guest.connected()
    tcp.sends(ACK, b"last words")
    await host.receives(b"last words")
    await tcp.expects_nothing()
    host.sends(b"anybody there?")
    got = await tcp.expects(ACK, b"anybody there?", ack=tcp.next - 10)
    tcp.sends(RST, seq=got.ack)
    await host.is_reset()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.usefixtures("peek_offset")
async def test_what_the_host_sent_before_its_reset_reaches_the_guest_first(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=1000, scale=0, window=2000)
    data = noise(5000)
    host.sends(data)
    await tcp.expects_data(data[:2000], acknowledge=False)
    host.resets()
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await tcp.expects_data(data[2000:4000], acknowledge=False)
    tcp.sends(ACK)
    await tcp.expects_data(data[4000:], acknowledge=False)
    await tcp.expects_reset()
    assert len(guest.dispatcher.tcp) == 0


async def test_what_the_host_sent_before_its_reset_is_sent_again_if_it_is_lost(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000, scale=0, window=2000)
    data = noise(3000)
    host.sends(data)
    start = tcp.expected
    await tcp.expects_data(data[:2000], acknowledge=False)
    host.resets()
    await guest.passes(0.2)
    for at in (0, 1000):
        await tcp.expects(ACK, data[at : at + 1000], seq=start + at)
    tcp.sends(ACK)
    await tcp.expects_data(data[2000:], acknowledge=False)
    await tcp.expects_reset()


async def test_guest_that_does_not_take_what_came_before_a_reset_is_not_waited_for(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000, scale=0, window=2000)
    host.sends(bytes(3000))
    await tcp.expects_data(bytes(2000), acknowledge=False)
    tcp.sends(ACK, window=0)
    host.resets()
    for _ in range(12):  # its window stays closed, and it says so
        await guest.passes(timeouts.AFTER_HOST_RESET_S / 12 - 0.1)
        tcp.sends(ACK, window=0)
        await guest.settles()
        assert len(guest.dispatcher.tcp) == 1
        guest.forgets()
    await guest.passes(2)
    await tcp.expects_reset()
    assert len(guest.dispatcher.tcp) == 0


async def test_data_for_a_host_that_has_reset_is_not_acknowledged(guest: Stage) -> None:
    """It arrived nowhere."""
    tcp, host = await guest.connected(mss=1000, scale=0, window=1000)
    host.sends(bytes(2000))
    await tcp.expects_data(bytes(1000), acknowledge=False)
    host.resets()
    await guest.settles()
    start = tcp.next
    tcp.sends(ACK, b"too late", ack=tcp.expected - 1000)
    await guest.settles()
    while (got := await tcp.arrives_or_none()) is not None:
        assert got.ack == start
    tcp.sends(ACK)
    await tcp.expects_data(bytes(1000), acknowledge=False)
    await tcp.expects_reset()
