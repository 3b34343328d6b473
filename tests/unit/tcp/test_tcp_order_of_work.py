"""What somebody waits for is done before what nobody waits for."""

import socket

import pytest
from harness.stage import Family, Stage

from trio_passt.host import sockets
from trio_passt.wire.tcp import ACK, FIN, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_new_connection_goes_before_what_else_a_batch_brought(guest: Stage, family: Family) -> None:
    old, host = await guest.connected(family)
    new = guest.tcp(family, guest.host_serves(family).port)
    guest.sends_segments(family, [old.segment(FIN | ACK), new.segment(SYN, mss=1460, scale=7)])
    first, second = (await guest.expects_segment()).segment, (await guest.expects_segment()).segment
    assert (first.flags, first.destination_port) == (SYN | ACK, new.guest_port)
    assert (second.flags, second.destination_port) == (ACK, old.guest_port)
    await host.receives_end()


@pytest.mark.parametrize("is_near", [True, False])
async def test_guest_does_not_wait_while_the_socket_is_prepared(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch, is_near: bool
) -> None:
    """It has its answer; unless the host's peer has not answered: that is a time to do it."""
    prepare = sockets.prepare_tcp
    answers = []

    def look(sock: socket.socket) -> None:
        answers.append(guest.look(lambda _seen: True))
        prepare(sock)

    monkeypatch.setattr(sockets, "prepare_tcp", look)
    if not is_near:
        monkeypatch.setattr(sockets, "is_connected", lambda _sock, _peer: False)
    tcp = guest.tcp(family, guest.host_serves(family).port)
    tcp.sends(SYN, mss=1460, scale=7)
    await guest.settles()
    assert [answer is not None for answer in answers] == [is_near]
