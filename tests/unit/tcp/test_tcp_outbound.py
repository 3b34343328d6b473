"""A guest opens a connection: from its SYN to an established connection, or to a reset."""

import errno
import os
import socket
import weakref

import pytest
from harness.stage import V4, Family, Stage, network, on_stage
from harness.waiting import eventually

from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import Way
from trio_passt.tcp.opening import Opening, Verdict
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpSegment

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_life_of_a_connection(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460, scale=7)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK)
    host = await server.accepts()
    tcp.sends(ACK | PSH, b"hello")
    await tcp.expects(ACK)
    await host.receives(b"hello")
    host.sends(b"hello yourself")
    await tcp.expects(ACK, b"hello yourself")
    tcp.sends(ACK)
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    await host.receives_end()
    host.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await guest.expects_nothing()


async def test_guest_is_answered_only_when_the_host_is_connected(guest: Stage, family: Family) -> None:
    port = guest.host_is_silent(family)
    tcp = guest.tcp(family, port)
    tcp.sends(SYN, mss=1460, scale=7)
    await tcp.expects_nothing()
    await guest.passes(60)
    await tcp.expects_nothing()


async def test_refused_connection_is_reset(guest: Stage, family: Family) -> None:
    tcp = guest.tcp(family, guest.host_refuses(family))
    tcp.sends(SYN, mss=1460)
    await tcp.expects(RST | ACK, seq=0)
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_connection_that_the_host_cannot_even_try_is_reset(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets, "start_tcp_connection", fail)
    tcp = guest.tcp(V4, 80)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(RST | ACK, seq=0)


async def test_host_that_does_not_answer_is_given_up(guest: Stage) -> None:
    tcp = guest.tcp(V4, guest.host_is_silent(V4))
    tcp.sends(SYN, mss=1460)
    await guest.passes(129)
    await tcp.expects_nothing()
    await guest.passes(2)
    await tcp.expects(RST | ACK, seq=0)
    assert len(guest.dispatcher.tcp) == 0


async def test_repeated_syn_while_the_host_connects_is_the_same_connection(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Endpoint] = []
    start = sockets.start_tcp_connection

    def count(peer: Endpoint, way: Way | None) -> socket.socket:
        calls.append(peer)
        return start(peer, way)

    monkeypatch.setattr(sockets, "start_tcp_connection", count)
    tcp = guest.tcp(V4, guest.host_is_silent(V4))
    syn = tcp.segment(SYN, mss=1460)
    for _ in range(3):
        tcp.sends_batch(syn, syn)
        await guest.settles()
    assert len(calls) == 1
    await tcp.expects_nothing()


async def test_other_syn_while_the_host_connects_takes_the_place_of_the_first(guest: Stage) -> None:
    tcp = guest.tcp(V4, guest.host_is_silent(V4))
    tcp.sends(SYN, mss=1460)
    await guest.settles()
    tcp.sends(SYN, seq=5000)
    await guest.settles()
    tcp.sends(RST)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 1
    tcp.sends(RST, seq=5001)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await tcp.expects_nothing()


async def test_reset_while_the_host_connects_ends_it(guest: Stage) -> None:
    tcp = guest.tcp(V4, guest.host_is_silent(V4))
    tcp.sends(SYN, mss=1460)
    await guest.settles()
    tcp.sends(RST, seq=tcp.next + 1)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 1
    tcp.sends(RST)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    await tcp.expects_nothing()


async def test_repeated_syn_is_answered_again_and_makes_no_second_connection(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    syn = tcp.segment(SYN, mss=1460, scale=7)
    tcp.sends_batch(syn)
    first = await tcp.expects(SYN | ACK)
    tcp.sends_batch(syn)
    second = await tcp.expects(SYN | ACK)
    assert second == first
    tcp.sends(ACK)
    await server.accepts()
    await guest.settles()
    server.accepts_none()
    await tcp.expects_nothing()


async def test_syn_ack_is_repeated_and_given_up_after_ten_seconds(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460, scale=7)
    first = await tcp.expects(SYN | ACK)
    host = await server.accepts()
    for wait_s in (1, 2, 4):
        await guest.passes(wait_s - 0.01)
        await tcp.expects_nothing()
        await guest.passes(0.01)
        assert await tcp.arrives() == first
    await guest.passes(2.9)
    await tcp.expects_nothing()
    await host.receives_nothing()
    await guest.passes(0.2)
    await tcp.expects_reset()
    await host.is_reset()
    assert len(guest.dispatcher.tcp) == 0


async def test_reset_in_the_handshake_resets_the_host(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    host = await server.accepts()
    tcp.sends(RST, seq=tcp.next + 1)
    await host.receives_nothing()
    tcp.sends(RST)
    await host.is_reset()
    await tcp.expects_nothing()


async def test_wrong_acknowledgement_in_the_handshake_is_reset_and_the_right_one_still_counts(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK, ack=tcp.expected + 1)
    await tcp.expects(RST, seq=tcp.expected + 1)
    tcp.sends(ACK, b"data")
    await tcp.expects(ACK)
    host = await server.accepts()
    await host.receives(b"data")


async def test_last_segment_of_the_handshake_may_carry_data(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK | PSH, b"at once")
    await tcp.expects(ACK)
    await (await server.accepts()).receives(b"at once")


async def test_handshake_data_and_end_in_one_batch(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends_batch(tcp.segment(ACK), tcp.segment(ACK | PSH, b"all "), tcp.segment(FIN | ACK, b"at once"))
    await tcp.expects(ACK)
    host = await server.accepts()
    await host.receives(b"all at once")
    await host.receives_end()


async def test_host_that_speaks_first(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    (await server.accepts()).sends(b"220 ready")
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await tcp.expects(ACK, b"220 ready")


async def test_host_that_resets_in_the_handshake(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    (await server.accepts()).resets()
    tcp.sends(ACK)
    await tcp.expects_reset()


@pytest.mark.parametrize(
    ("mtu_bytes", "mss_v4", "mss_v6"), [(1500, 1460, 1440), (65520, 65480, 65460), (0, 65480, 65460)]
)
async def test_mss_offered_is_what_the_link_takes(family: Family, mtu_bytes: int, mss_v4: int, mss_v6: int) -> None:
    async with on_stage(network(mtu_bytes=mtu_bytes)) as guest:
        server = guest.host_serves(family)
        tcp = guest.tcp(family, server.port)
        tcp.sends(SYN, mss=65495, scale=7)
        answer = await tcp.expects(SYN | ACK)
        assert answer.options.mss == (mss_v4 if family.version == 4 else mss_v6)


async def test_guest_without_options_gets_no_window_scale_and_small_segments(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family, mss=None, scale=None)
    assert (tcp.scale, tcp.host_scale) == (0, 0)
    host.sends(bytes(3000))
    size = 536 if family.version == 4 else 1220
    await tcp.expects(ACK, bytes(size))
    await tcp.expects(ACK, bytes(size))


async def test_scaled_windows_both_ways(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460, scale=3)
    answer = await tcp.expects(SYN | ACK)
    assert answer.options.window_scale == 7
    tcp.sends(ACK, window=10_000 * 8)
    host = await server.accepts()
    data = os.urandom(100_000)
    host.sends(data)
    received = b""
    while len(received) < 80_000:
        received += (await tcp.arrives()).payload
    await tcp.expects_nothing()
    assert received == data[:80_000]


async def test_another_syn_is_challenged_and_the_connection_goes_on(guest: Stage) -> None:
    """RFC 5961 section 4: a guest that has started anew would reset what it no longer knows."""
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends(SYN, seq=tcp.next + 5000)
    await tcp.expects(ACK, ack=tcp.next)
    tcp.sends(ACK)
    await server.accepts()


async def test_initial_sequence_numbers_differ_between_connections(guest: Stage) -> None:
    server = guest.host_serves(V4)
    numbers = set()
    for _ in range(5):
        tcp = guest.tcp(V4, server.port)
        tcp.sends(SYN)
        numbers.add((await tcp.expects(SYN | ACK)).seq)
    assert len(numbers) == 5


async def test_flow_limit_is_a_refusal() -> None:
    async with on_stage(flow_limit=2) as guest:
        server = guest.host_serves(V4)
        for _ in range(2):
            await guest.connected(server=server)
        for _ in range(3):
            tcp = guest.tcp(V4, server.port)
            tcp.sends(SYN)
            await tcp.expects(RST | ACK, seq=0)


async def test_room_under_the_flow_limit_comes_back() -> None:
    async with on_stage(flow_limit=1) as guest:
        server = guest.host_serves(V4)
        for _ in range(3):
            tcp, host = await guest.connected(server=server)
            tcp.sends(RST)
            await host.is_reset()


async def test_same_ports_again_after_a_reset(guest: Stage) -> None:
    server = guest.host_serves(V4)
    for start in (5, 2**31, 2**32 - 1):
        tcp = guest.tcp(V4, server.port, guest_port=7777)
        tcp.next = start
        tcp.sends(SYN, mss=1460)
        await tcp.expects(SYN | ACK)
        tcp.sends(ACK, b"x")
        await tcp.expects(ACK)
        host = await server.accepts()
        await host.receives(b"x")
        tcp.sends(RST)
        await host.is_reset()


async def test_session_end_resets_the_host(family: Family) -> None:
    async with on_stage() as guest:
        _, established = await guest.connected(family)
        server = guest.host_serves(family)
        tcp = guest.tcp(family, server.port)
        tcp.sends(SYN)
        await tcp.expects(SYN | ACK)
        opening = await server.accepts()
        guest.link.disconnect("gone")
        assert await eventually(lambda: guest.ended, "the end of the session") == "gone"
        await established.is_reset()
        await opening.is_reset()


async def test_segments_that_mean_nothing_in_the_handshake_hold_no_memory(
    guest: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow rests until its next retry: what it has looked at is gone by then, or each would hold a batch."""
    looked_at: list[weakref.ref[memoryview]] = []
    judge = Opening.judge

    def noting(opening: Opening, segment: TcpSegment) -> Verdict:
        assert isinstance(segment.payload, memoryview)
        looked_at.append(weakref.ref(segment.payload))
        return judge(opening, segment)

    monkeypatch.setattr(Opening, "judge", noting)
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK, b"data", seq=tcp.next, ack=tcp.expected + 1000)
    await tcp.expects(RST, seq=tcp.expected + 1000)
    tcp.sends(PSH, b"data", seq=tcp.next)
    await guest.settles()
    assert len(looked_at) == 2
    assert [view() for view in looked_at] == [None, None]


async def test_connection_that_is_reset_and_opened_again_at_once(guest: Stage, family: Family) -> None:
    """The old one has ended, though its task has not run yet."""
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK)
    old = await server.accepts()
    again = guest.tcp(family, server.port, guest_port=tcp.guest_port)
    again.next += 100_000
    for end, flags in ((tcp, RST | ACK), (again, SYN)):
        end.sends(flags, mss=1460 if flags == SYN else None)
        batch = guest.link.receive_now()
        assert batch is not None
        guest.dispatcher.dispatch(batch)
    assert len(guest.dispatcher.tcp) == 1
    await again.expects(SYN | ACK)
    again.sends(ACK, b"new")
    new = await server.accepts()
    await new.receives(b"new")
    await old.is_reset()
    assert len(guest.dispatcher.tcp) == 1
