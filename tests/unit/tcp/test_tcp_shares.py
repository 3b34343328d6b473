"""What one flow sends in a turn: the more others wait for the link, the less; and all get about the same."""

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage, network, on_stage
from harness.tcp import GuestTcp, HostSocket
from trio.testing import wait_all_tasks_blocked

from trio_passt.flow.key import FlowKey
from trio_passt.tcp.output import LEAST_SHARE_BYTES, ROUND_BYTES, TURN_BYTES, Output
from trio_passt.wire.frames import single
from trio_passt.wire.tcp import ACK, RST

pytestmark = pytest.mark.usefixtures("standing_clock")

MSS = 1448


def output_of(guest: Stage, rung: list[str] | None = None, name: str = "") -> Output:
    """What a flow writes to, of a connection that nobody knows."""
    key = FlowKey(V4.guest_packed, 40_000, V4.gateway_packed, 80)
    return Output(guest.session, key, lambda: (rung if rung is not None else []).append(name))


async def test_share_is_a_turn_divided_by_those_who_wait(guest: Stage) -> None:
    output = output_of(guest)
    assert output.share_bytes(MSS) == TURN_BYTES
    guest.link.set_capacity(frames=0)
    shares = []
    for number in range(30):
        guest.link.when_ready(lambda: None)
        assert guest.link.waiting == number + 1
        shares.append(output.share_bytes(MSS))
    assert shares[:7] == [TURN_BYTES] * 7
    assert shares[9] == ROUND_BYTES // 11
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == ROUND_BYTES // 31 > LEAST_SHARE_BYTES
    for _ in range(100):
        guest.link.when_ready(lambda: None)
    assert output.share_bytes(MSS) == LEAST_SHARE_BYTES


async def test_share_is_no_more_than_the_link_has_room_for(guest: Stage) -> None:
    output = output_of(guest)
    guest.link.set_capacity(size=100_000)
    assert output.share_bytes(MSS) == 100_000
    assert guest.link.send([single(bytes(90_000))]) == 1
    assert output.share_bytes(MSS) == 10_000
    guest.link.set_capacity(size=90_500)
    assert output.share_bytes(MSS) == MSS, "but a segment, or it would wait for ever"


async def test_link_that_is_full_is_waited_for_before_data_is_prepared(guest: Stage) -> None:
    rung: list[str] = []
    output = output_of(guest, rung, "room")
    assert output.has_room()
    assert guest.link.waiting == 0
    guest.link.set_capacity(frames=0)
    for _ in range(3):
        assert not output.has_room()
        assert guest.link.waiting == 1, "waits once"
    assert output.waits_for_link
    assert not output.segment(1, 2, ACK, 500)
    assert output.data(1, 2, ACK, 500, memoryview(bytes(3000)), 1000) == 0
    assert guest.link.waiting == 1
    guest.link.set_capacity()
    await wait_all_tasks_blocked()
    assert rung == ["room"]
    assert output.has_room()
    assert output.segment(1, 2, ACK, 500)


async def test_link_that_takes_a_part(guest: Stage) -> None:
    rung: list[str] = []
    output = output_of(guest, rung, "room")
    guest.link.set_capacity(frames=3)
    data = noise(5500)
    assert output.data(1, 2, ACK, 500, memoryview(data), 1000) == 3000
    assert not output.has_room()
    guest.link.set_capacity()
    guest.forgets()
    await wait_all_tasks_blocked()
    assert rung == ["room"]
    assert output.data(3001, 2, ACK, 500, memoryview(data)[3000:], 1000) == 2500


class Download:
    """One of many, whose guest takes and acknowledges what comes."""

    def __init__(self, tcp: GuestTcp, host: HostSocket) -> None:
        self.tcp, self.host = tcp, host
        self.received = bytearray()

    def take(self) -> None:
        """All that came, with one acknowledgement for it."""
        count = 0
        while True:
            seen = self.tcp._stage.look(self.tcp._is_mine)
            if seen is None:
                break
            segment = seen.segment  # type: ignore[union-attr]
            assert not segment.flags & RST
            assert segment.seq == self.tcp.expected or not segment.payload
            self.received += segment.payload
            self.tcp._take(segment)
            count += 1
        if count:
            self.tcp.sends(ACK)


@pytest.mark.parametrize("flows", [2, 8, 30])
async def test_flows_that_wait_for_a_narrow_link_get_similar_shares(family: Family, flows: int) -> None:
    async with on_stage(network(mtu_bytes=9000)) as guest:
        server = guest.host_serves(family)
        data = noise(800_000)
        downloads = [
            Download(*await guest.connected(family, mss=8940, window=4_000_000, server=server)) for _ in range(flows)
        ]
        guest.link.set_capacity(frames=8)
        async with trio.open_nursery() as nursery:
            for download in downloads:
                nursery.start_soon(download.host.sends_all, data)
            await wait_all_tasks_blocked(0.001)
            while min(len(download.received) for download in downloads) < 200_000:
                for download in downloads:
                    download.take()
                await wait_all_tasks_blocked()
            sizes = [len(download.received) for download in downloads]
            assert all(data.startswith(download.received) for download in downloads)
            nursery.cancel_scope.cancel()
    assert max(sizes) <= 2 * min(sizes) + 10 * 9000, sizes


async def test_a_flow_alone_has_the_link_to_itself(guest: Stage) -> None:
    tcp, host = await guest.connected(scale=7, window=4_000_000)
    data = noise(2_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.sends_all, data)
        nursery.start_soon(tcp.expects_data, data)
