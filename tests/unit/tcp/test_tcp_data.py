"""Data of all sizes, both ways."""

import socket

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage, frame_of, network, on_stage, segment_packet

from trio_passt.host import sockets
from trio_passt.tcp import handshake, timeouts
from trio_passt.tcp.riding import QUICK_ANSWERS
from trio_passt.wire.frames import Capabilities
from trio_passt.wire.tcp import ACK, FIN, PSH, URG

pytestmark = pytest.mark.usefixtures("standing_clock")

SIZES = [1, 1459, 1460, 1461, 100_000]


@pytest.mark.parametrize("size", SIZES)
async def test_from_guest(guest: Stage, family: Family, size: int) -> None:
    tcp, host = await guest.connected(family, mss=1460)
    data = noise(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receives, data)
        nursery.start_soon(tcp.uploads, data, 1460)
    await tcp.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize("mss", [1460, 65460])
@pytest.mark.parametrize("size", SIZES)
async def test_to_guest(guest: Stage, family: Family, size: int, mss: int) -> None:
    tcp, host = await guest.connected(family, mss=mss, window=1_000_000)
    data = noise(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.sends_all, data)
        nursery.start_soon(tcp.expects_data, data)
    await guest.settles()
    await tcp.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
async def test_megabytes_both_ways_at_once(guest: Stage, family: Family) -> None:
    up, host_up = await guest.connected(family)
    down, host_down = await guest.connected(family, window=1_000_000)
    upload, download = noise(5_000_000, 1), noise(5_000_000, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host_up.receives, upload)
        nursery.start_soon(up.uploads, upload)
        nursery.start_soon(host_down.sends_all, download)
        nursery.start_soon(down.expects_data, download)


@pytest.mark.usefixtures("peek_offset")
async def test_several_connections_at_once(guest: Stage, family: Family) -> None:
    ends = [await guest.connected(family) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for seed, (tcp, host) in enumerate(ends):
            nursery.start_soon(host.sends_all, noise(200_000, seed))
            nursery.start_soon(tcp.expects_data, noise(200_000, seed))


async def test_question_and_answer(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    for number in range(20):
        question, answer = noise(100, number), noise(200, number)
        tcp.sends(ACK | PSH, question)
        if number < QUICK_ANSWERS:
            await tcp.expects(ACK)
        await host.receives(question)
        host.sends(answer)
        await tcp.expects(ACK, answer)
        tcp.sends(ACK)


async def test_answer_carries_the_acknowledgement(guest: Stage) -> None:
    tcp, host = await guest.connected()
    guest.link.set_capacity(frames=0)
    host.sends(b"one")
    tcp.sends(ACK | PSH, b"two")
    await host.receives(b"two")
    guest.link.set_capacity()
    await tcp.expects(ACK, b"one")
    await tcp.expects_nothing()


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize("before_wrap", [0, 1, 1460, 100_000])
async def test_sequence_numbers_wrap(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch, before_wrap: int
) -> None:
    monkeypatch.setattr(handshake, "initial_sequence", lambda *_: 2**32 - 1 - before_wrap)
    tcp, host = await guest.connected(family, mss=1460, initial_seq=2**32 - 1 - before_wrap)
    data = noise(300_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.sends_all, data)
        nursery.start_soon(tcp.expects_data, data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receives, data)
        nursery.start_soon(tcp.uploads, data, 1460)


@pytest.mark.parametrize(
    "capabilities", [Capabilities(checksum=True), Capabilities(checksum=True, tso4=True, tso6=True)]
)
async def test_link_with_offloads(family: Family, capabilities: Capabilities) -> None:
    async with on_stage(network(mtu_bytes=1500), capabilities=capabilities) as guest:
        tcp, host = await guest.connected(family, mss=1440, window=500_000)
        data = noise(100_001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.sends_all, data)
            nursery.start_soon(tcp.expects_data, data)


async def test_only_the_last_segment_of_a_piece_pushes(guest: Stage) -> None:
    tcp, host = await guest.connected(mss=1000)
    host.sends(bytes(3500))
    flags = [(await tcp.arrives()).flags for _ in range(4)]
    assert flags == [ACK, ACK, ACK, ACK | PSH]


async def test_urgent_data_is_ordinary_data(guest: Stage) -> None:
    tcp, host = await guest.connected()
    tcp.sends(ACK | URG, b"urgent")
    await tcp.expects(ACK)
    await host.receives(b"urgent")


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize("before", [0, 1, 3000])
async def test_urgent_data_of_the_host_is_ordinary_data(guest: Stage, family: Family, before: int) -> None:
    """It is the last byte of one send, and more comes behind it."""
    tcp, host = await guest.connected(family, mss=1000)
    data = noise(before + 1 + 5000)
    host.sends(data[:before])
    assert host.socket.send(data[before : before + 1], socket.MSG_OOB) == 1
    host.sends(data[before + 1 :])
    host.half_closes()
    await tcp.expects_data(data)
    await tcp.expects(FIN | ACK)


async def test_odd_segment_sizes_of_the_guest(guest: Stage) -> None:
    tcp, host = await guest.connected()
    data = noise(5000)
    sizes = [1, 7, 536, 1, 999, 1460, 3, 1993]
    segments, at = [], 0
    for size in sizes:
        segments.append(tcp.segment(ACK, data[at : at + size]))
        at += size
    tcp.sends_batch(*segments)
    await tcp.expects(ACK)
    await host.receives(data)


async def test_distant_peer_has_to_confirm_before_the_guest_gets_its_acknowledgement(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfirmed = 0
    monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
    monkeypatch.setattr(sockets, "unacknowledged", lambda _sock: unconfirmed)
    tcp, host = await guest.connected()
    unconfirmed = 1000
    tcp.sends(ACK | PSH, bytes(1000))
    await host.receives(bytes(1000))
    await tcp.expects_nothing()
    await guest.passes(1)
    await tcp.expects_nothing()
    unconfirmed = 400
    await guest.passes(0.2)
    await tcp.expects(ACK, ack=tcp.next - 400)
    unconfirmed = 0
    await guest.passes(0.011)
    await tcp.expects(ACK)


async def test_acknowledgement_is_no_more_than_ten_milliseconds_late(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unconfirmed = 0
    monkeypatch.setattr(timeouts, "NEAR_PEER_RTT_S", 0.0)
    monkeypatch.setattr(sockets, "unacknowledged", lambda _sock: unconfirmed)
    tcp, _host = await guest.connected()
    unconfirmed = 10
    tcp.sends(ACK | PSH, bytes(10))
    await tcp.expects_nothing()
    unconfirmed = 0
    await guest.passes(0.0101)
    await tcp.expects(ACK)


async def test_round_trip_of_the_host_is_the_kernels(guest: Stage, family: Family) -> None:
    _, host = await guest.connected(family)
    assert 0 < sockets.round_trip_s(host.socket) < 1


async def test_wrong_checksum_is_counted_and_costs_nobody_else(guest: Stage) -> None:
    tcp, host = await guest.connected()
    other, other_host = await guest.connected()
    broken = bytearray(segment_packet(V4, tcp.segment(ACK, b"broken", seq=tcp.next)))
    broken[-1] ^= 1
    guest.sends_frames(frame_of(bytes(broken)), frame_of(segment_packet(V4, other.segment(ACK, b"whole"))))
    await other.expects(ACK)
    await other_host.receives(b"whole")
    await tcp.expects_nothing()
    await guest.expects_drop("malformed")
    await host.receives_nothing()
