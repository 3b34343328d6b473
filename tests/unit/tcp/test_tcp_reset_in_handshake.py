"""The host's peer resets the connection while the guest has not answered yet: it ends at once, from either side."""

import pytest
from harness.stage import Family, Stage
from harness.waiting import eventually

from trio_passt.config import Protocol
from trio_passt.wire.tcp import ACK, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


async def no_flow_is_left(guest: Stage) -> None:
    await eventually(lambda: len(guest.dispatcher.tcp) == 0 or None, "the flow's end")


async def test_host_that_resets_before_the_guest_has_completed_the_handshake(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(SYN | ACK)
    (await server.accepts()).resets()
    got = await tcp.arrives()
    assert got.flags == RST | ACK
    assert (got.seq, got.ack) == (tcp.expected, tcp.next)
    await no_flow_is_left(guest)
    await guest.expects_nothing()


async def test_client_that_resets_before_the_guest_has_answered(guest: Stage, family: Family) -> None:
    client = guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(family)
    client.resets()
    got = await tcp.arrives()
    assert got.flags & RST
    assert got.seq == tcp.expected
    await no_flow_is_left(guest)
    await guest.expects_nothing()


async def test_client_that_only_closes_is_waited_for(guest: Stage, family: Family) -> None:
    """What it sent before is for the guest."""
    client = guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(family)
    client.sends(b"last words")
    client.close()
    await tcp.expects_nothing()
    assert len(guest.dispatcher.tcp) == 1
    tcp.sends(SYN | ACK)
    received = b""
    while len(received) < len(b"last words"):
        got = await tcp.arrives()
        received += got.payload
    assert received == b"last words"
