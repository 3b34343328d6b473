"""What is agreed upon in the handshake, when the guest is asked to connect; and SYNs with more than a SYN."""

import pytest
from harness.noise import noise
from harness.stage import V4, Family, Stage, network, on_stage

from trio_passt.config import Protocol
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


@pytest.mark.usefixtures("peek_offset")
@pytest.mark.parametrize(("mss", "size"), [(1000, 1000), (1001, 1000), (65535, 1440), (None, None)])
async def test_segments_to_the_guest_are_as_large_as_it_and_the_link_take(
    family: Family, mss: int | None, size: int | None
) -> None:
    async with on_stage(network(mtu_bytes=1500)) as guest:
        tcp, client = await guest.connected_from_host(family, mss=mss)
        client.sends(noise(10_000))
        if size is None:
            size = 536 if family.version == 4 else 1220
        elif mss == 65535 and family.version == 4:
            size += 20
        for at in range(0, 10_000 - size, size):
            await tcp.expects(ACK, noise(10_000)[at : at + size])


@pytest.mark.parametrize("inbound", [True, False], ids=["inbound", "outbound"])
async def test_guest_without_window_scale_is_told_unscaled_windows_and_tells_them(
    guest: Stage, family: Family, inbound: bool
) -> None:
    if inbound:
        tcp, host = await guest.connected_from_host(family, scale=None)
    else:
        tcp, host = await guest.connected(family, scale=None)
    assert (tcp.scale, tcp.host_scale) == (0, 0)
    data = noise(300_000)
    await host.sends_all(data)
    tcp.window = 3000
    tcp.sends(ACK, window=3000)
    received = b""
    while (got := await tcp.arrives_or_none()) is not None:
        received += got.payload
    assert len(received) == 65535  # of the SYN's window, which a later one does not take back
    tcp.sends(ACK)
    await tcp.expects(ACK, data[65535 : 65535 + 3000])
    await tcp.expects_nothing()
    tcp.sends(ACK)
    await tcp.uploads(data, 1460)
    assert tcp.host_window <= 65535


@pytest.mark.parametrize("scale", [0, 1, 7, 14, 200])
async def test_scaled_windows_of_a_guest_that_was_asked(guest: Stage, family: Family, scale: int) -> None:
    """A scale beyond 14 is taken as 14 (RFC 7323 section 2.3); the SYN's own window is never scaled."""
    port = guest.forwards(Protocol.TCP, 80)
    client = guest.host_connects(family, port)
    tcp = await guest.asked_to_connect(family)
    tcp.sends(SYN | ACK, mss=1000, scale=scale, window=2000)
    await tcp.expects(ACK)
    client.sends(noise(60_000))
    await tcp.expects_data(noise(60_000)[:2000], acknowledge=False)
    await tcp.expects_nothing()
    window = 1 << tcp.scale + 2
    tcp.sends(ACK, window=window)
    await tcp.expects_data(noise(60_000)[2000 : 2000 + min(window, 58_000)], acknowledge=False)
    await tcp.expects_nothing()


async def test_data_on_a_syn_has_to_come_again(guest: Stage, family: Family) -> None:
    """It is acknowledged when it was taken, and a SYN-ACK takes the SYN only (RFC 9293 section 3.10.7.2)."""
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, b"eager", mss=1460)
    tcp.next -= 5
    await tcp.expects(SYN | ACK)
    tcp.sends(ACK | PSH, b"eager")
    await tcp.expects(ACK)
    host = await server.accepts()
    await host.receives(b"eager")
    await host.receives_nothing()


async def test_data_on_a_refused_syn_is_reset_with_it(guest: Stage, family: Family) -> None:
    tcp = guest.tcp(family, guest.host_refuses(family))
    tcp.sends(SYN, b"eager", mss=1460)
    await tcp.expects(RST | ACK, seq=0)


async def test_data_on_the_answer_of_the_guest(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    tcp.sends(SYN | ACK, b"220 ready")
    got = await tcp.arrives()
    if got.ack == (tcp.next - 9) % 2**32:  # taken later, or at once: both are right
        tcp.sends(ACK, b"220 ready", seq=tcp.next - 9)
        await tcp.expects(ACK)
    await client.receives(b"220 ready")
    await client.receives_nothing()


async def test_guest_that_answers_and_closes_at_once(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    tcp.sends_batch(tcp.segment(SYN | ACK), tcp.segment(FIN | ACK, b"bye"))
    await tcp.expects(ACK)
    await client.receives(b"bye")
    await client.receives_end()


@pytest.mark.usefixtures("peek_offset")
async def test_client_that_sends_and_closes_before_the_guest_has_answered(guest: Stage, family: Family) -> None:
    client = guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(family)
    client.sends(b"GET /")
    client.half_closes()
    await tcp.expects_nothing()
    tcp.sends(SYN | ACK)
    await tcp.expects(ACK, b"GET /")
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK, b"200 OK")
    await tcp.expects(ACK)
    await client.receives(b"200 OK")
