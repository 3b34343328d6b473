"""When the guest gets its acknowledgement: after the host's peer has it, promptly if that is near, never late."""

import pytest
import trio
from harness.noise import noise
from harness.stage import Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.host import sockets
from trio_passt.tcp import riding, timeouts
from trio_passt.wire.tcp import ACK, FIN, PSH

pytestmark = pytest.mark.usefixtures("standing_clock")

NEAR_S = timeouts.NEAR_PEER_RTT_S
LATE_S = 0.010
"""Not later than this, says the design."""


class Peer:
    """What the kernel is said to know of the host's peer."""

    def __init__(self) -> None:
        self.unacknowledged = 0
        self.round_trip_s = 0.05


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    """A peer that is 50 ms away."""
    peer = Peer()
    monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", NEAR_S)
    monkeypatch.setattr(sockets, "is_connected", lambda _sock, _peer: False)
    monkeypatch.setattr(sockets, "unacknowledged", lambda _sock: peer.unacknowledged)
    monkeypatch.setattr(sockets, "round_trip_s", lambda _sock: peer.round_trip_s)
    return peer


@pytest.mark.parametrize("share", [0.0, 0.99])
async def test_near_peer_has_it_when_the_kernel_has(guest: Stage, peer: Peer, share: float) -> None:
    peer.round_trip_s = share * NEAR_S
    peer.unacknowledged = 1000
    tcp, _host = await guest.connected()
    tcp.sends(ACK, bytes(1000))
    await tcp.expects(ACK)


async def test_other_peer_has_it_when_it_says_so(guest: Stage, peer: Peer) -> None:
    peer.round_trip_s = 1.01 * NEAR_S
    tcp, _host = await guest.connected()
    peer.unacknowledged = 1000
    tcp.sends(ACK, bytes(1000))
    await guest.passes(1.0)
    await tcp.expects_nothing()
    peer.unacknowledged = 0
    await guest.passes(LATE_S)
    await tcp.expects(ACK)


async def test_every_step_of_the_peer_is_passed_on_in_time(guest: Stage, peer: Peer) -> None:
    tcp, _host = await guest.connected()
    peer.unacknowledged = 10_000
    tcp.sends(ACK, bytes(10_000))
    await tcp.expects_nothing()
    for waiting in (9000, 8999, 4000, 1, 0):
        await guest.passes(0.033)
        peer.unacknowledged = waiting
        await guest.passes(LATE_S)
        await tcp.expects(ACK, ack=tcp.next - waiting)
    await tcp.expects_nothing()


async def test_progress_is_not_asked_for_when_nothing_is_outstanding(guest: Stage, peer: Peer) -> None:
    tcp, _host = await guest.connected()
    tcp.sends(ACK, bytes(10))
    await tcp.expects(ACK)
    await guest.passes(2)  # the handshake's last deadline, which is found to be none any more
    begun = trio.current_time()
    await guest.settles()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline > 60
    assert trio.current_time() == begun


async def test_fin_is_acknowledged_when_the_peer_has_it(guest: Stage, peer: Peer) -> None:
    tcp, host = await guest.connected()
    peer.unacknowledged = 6
    tcp.sends(FIN | ACK, b"words")
    await host.receives(b"words")
    await host.receives_end()
    await tcp.expects_nothing()
    peer.unacknowledged = 1
    await guest.passes(LATE_S)
    await tcp.expects(ACK, ack=tcp.next - 1)
    peer.unacknowledged = 0
    await guest.passes(LATE_S)
    await tcp.expects(ACK)


async def test_data_to_the_guest_carries_what_the_peer_has_and_no_more(guest: Stage, peer: Peer) -> None:
    tcp, host = await guest.connected()
    peer.unacknowledged = 40
    tcp.sends(ACK, bytes(100))
    await tcp.expects(ACK, ack=tcp.next - 40)
    host.sends(b"answer")
    await tcp.expects(ACK, b"answer", ack=tcp.next - 40)
    peer.unacknowledged = 0
    await guest.passes(LATE_S)
    await tcp.expects(ACK)


@pytest.mark.parametrize(("round_trip_s", "patience_s"), [(0.0, 0.1), (0.3, 2.0), (0.5, 2.0), (1.0, 4.0)])
async def test_peer_that_takes_nothing_is_acknowledged_for_after_a_while(
    guest: Stage, peer: Peer, monkeypatch: pytest.MonkeyPatch, round_trip_s: float, patience_s: float
) -> None:
    """0.1 s if it is near, else 2 s and four round trips: what the kernel does not take, is `pending`."""
    peer.round_trip_s = round_trip_s
    tcp, _host = await guest.connected()
    peer.unacknowledged = 500
    tcp.sends(ACK, bytes(1000))
    if round_trip_s < NEAR_S:
        await tcp.expects(ACK)  # all of it was taken
        return
    await tcp.expects(ACK, ack=tcp.next - 500)
    await guest.passes(patience_s - 0.05)
    await tcp.expects_nothing()
    await guest.passes(0.1)
    await tcp.expects(ACK)


async def test_peer_that_takes_a_little_now_and_then_is_waited_for(guest: Stage, peer: Peer) -> None:
    tcp, _host = await guest.connected()
    peer.unacknowledged = 1000
    tcp.sends(ACK, bytes(1000))
    for waiting in (900, 800, 700):
        await guest.passes(1.9)
        peer.unacknowledged = waiting
        await guest.passes(LATE_S)
        await tcp.expects(ACK, ack=tcp.next - waiting)
    await guest.passes(1.9)
    await tcp.expects_nothing()


async def exchanges(tcp: GuestTcp, host: HostSocket) -> None:
    """As many requests, answered at once, as it takes to expect the next answer at once."""
    for number in range(riding.QUICK_ANSWERS):
        tcp.sends(ACK | PSH, b"request")
        await tcp.expects(ACK)
        await host.receives(b"request")
        host.sends(noise(10, number))
        await tcp.expects(ACK, noise(10, number))
        tcp.sends(ACK)


class TestRiding:
    """An acknowledgement waits for an answer only where answers have been quick, and never for long."""

    async def test_acknowledgement_rides_on_the_answer(self, guest: Stage) -> None:
        tcp, host = await guest.connected()
        await exchanges(tcp, host)
        for number in range(20):
            tcp.sends(ACK | PSH, b"request")
            await host.receives(b"request")
            host.sends(noise(10, number))
            await tcp.expects(ACK, noise(10, number))
            tcp.sends(ACK)
            await tcp.expects_nothing()

    async def test_answer_that_does_not_come_is_not_waited_for_long_nor_again(self, guest: Stage) -> None:
        tcp, host = await guest.connected()
        await exchanges(tcp, host)
        tcp.sends(ACK | PSH, b"request")
        await tcp.expects_nothing()
        await guest.passes(LATE_S)
        await tcp.expects(ACK)
        for _ in range(3):
            tcp.sends(ACK | PSH, b"request")
            await tcp.expects(ACK)

    async def test_more_than_a_segment_does_not_wait(self, guest: Stage) -> None:
        tcp, host = await guest.connected(mss=1000)
        await exchanges(tcp, host)
        tcp.sends(ACK | PSH, bytes(1000))
        await tcp.expects(ACK)

    async def test_second_part_of_a_request_does_not_wait(self, guest: Stage) -> None:
        """A guest with Nagle's algorithm waits for the acknowledgement before it sends the rest."""
        tcp, host = await guest.connected(mss=1000)
        await exchanges(tcp, host)
        tcp.sends(ACK | PSH, b"head")
        tcp.sends(ACK | PSH, b"body")
        await tcp.expects(ACK)

    async def test_fin_and_duplicates_do_not_wait(self, guest: Stage) -> None:
        tcp, host = await guest.connected()
        await exchanges(tcp, host)
        tcp.sends(ACK, b"old", seq=tcp.next - 3)
        await tcp.expects(ACK)
        tcp.sends(FIN | ACK, b"bye")
        await tcp.expects(ACK)
