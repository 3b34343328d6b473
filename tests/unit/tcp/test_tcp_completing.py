"""The segment that completes a handshake is like any other after that, whatever it carries and wherever it lies."""

import errno
import os
import socket

import pytest
from harness.noise import noise
from harness.stage import V4, Family, Stage
from harness.tcp import GuestTcp, HostServer, HostSocket

from trio_passt.host import sockets
from trio_passt.wire.tcp import ACK, FIN, PSH, RST, SYN, URG

pytestmark = pytest.mark.usefixtures("standing_clock")


async def answered(guest: Stage, family: Family, **options: int) -> tuple[GuestTcp, HostServer, HostSocket]:
    """The guest has the SYN-ACK, and has not answered it yet."""
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1000, scale=7, takes_sack=True, **options)
    await tcp.expects(SYN | ACK)
    return tcp, server, await server.accepts()


async def drained(tcp: GuestTcp) -> None:
    """What comes without time does not matter."""
    while await tcp.arrives_or_none() is not None:
        pass


@pytest.mark.parametrize("ends", [False, True])
async def test_it_may_lie_behind_a_gap(guest: Stage, family: Family, ends: bool) -> None:
    tcp, _server, host = await answered(guest, family)
    start = tcp.next
    tcp.sends(ACK | FIN if ends else ACK, b"later", seq=start + 5)
    await tcp.expects(ACK, ack=start)
    assert tcp.told == (start + 5, start + 10 + ends)
    await drained(tcp)
    await host.receives_nothing()
    tcp.sends(ACK)
    await tcp.expects_nothing()
    tcp.sends(ACK, b"first")
    await tcp.expects(ACK, ack=start + 10 + ends)
    await host.receives(b"firstlater")
    if ends:
        await host.receives_end()
    else:
        await host.receives_nothing()


async def test_window_of_an_older_one_that_comes_later_does_not_count(guest: Stage, family: Family) -> None:
    tcp, _server, host = await answered(guest, family, window=500)
    newer = tcp.segment(ACK, b"later", seq=tcp.next + 5, window=2048)
    tcp.sends_batch(newer, tcp.segment(ACK, window=128), tcp.segment(ACK, b"first", window=128))
    await drained(tcp)
    await host.receives(b"firstlater")
    host.sends(noise(5000))
    await tcp.expects_data(noise(5000)[:2048], acknowledge=False)
    await tcp.expects_nothing()


async def test_it_may_close_the_window(guest: Stage, family: Family) -> None:
    tcp, _server, host = await answered(guest, family)
    tcp.sends(ACK, b"data", window=0)
    await drained(tcp)
    host.sends(b"answer")
    await tcp.expects_nothing()
    await guest.passes(0.25)
    await tcp.expects(ACK, seq=tcp.expected - 1)
    tcp.sends(ACK)
    await tcp.expects(ACK, b"answer")
    await host.receives(b"data")


async def test_what_lies_beyond_the_window_is_answered_and_not_taken(guest: Stage, family: Family) -> None:
    tcp, _server, host = await answered(guest, family)
    tcp.sends(ACK, b"beyond", seq=tcp.next + 65535)
    await tcp.expects(ACK)
    assert tcp.told == ()
    tcp.sends(ACK | PSH | URG, b"data")
    await tcp.expects(ACK)
    await host.receives(b"data")


async def test_syn_that_comes_once_more_behind_it_changes_nothing(guest: Stage, family: Family) -> None:
    server = guest.host_serves(family)
    tcp = guest.tcp(family, server.port)
    syn = tcp.segment(SYN, mss=1000, scale=7)
    tcp.sends_batch(syn)
    await tcp.expects(SYN | ACK)
    tcp.sends_batch(tcp.segment(ACK, b"one "), syn, tcp.segment(ACK, b"two"))
    await tcp.expects(ACK)
    await drained(tcp)
    await (await server.accepts()).receives(b"one two")


async def test_reset_right_behind_it(guest: Stage, family: Family) -> None:
    tcp, _server, host = await answered(guest, family)
    tcp.sends_batch(tcp.segment(ACK), tcp.segment(RST))
    await host.is_reset()
    await tcp.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


async def test_host_that_resets_before_it_is_looked_after(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    server = guest.host_serves(V4)
    tcp, prepare = guest.tcp(V4, server.port), sockets.prepare_tcp
    accepted: list[HostSocket] = []

    def reset_and_prepare(sock: socket.socket) -> None:
        connection = server._accept()
        assert connection is not None
        connection.resets()
        accepted.append(connection)
        prepare(sock)

    monkeypatch.setattr(sockets, "prepare_tcp", reset_and_prepare)
    tcp.sends(SYN, mss=1000)
    await tcp.expects(SYN | ACK)
    await tcp.expects_reset()
    assert len(accepted) == 1
    assert len(guest.dispatcher.tcp) == 0


async def test_host_that_cannot_be_looked_after_is_given_up(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC: epoll's `max_user_watches`.  The guest has its SYN-ACK by then, and gets a reset that it believes."""
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(guest.readiness, "watch", fail)
    tcp.sends(SYN, mss=1000)
    await tcp.expects(SYN | ACK)
    await tcp.expects_reset()
    await (await server.accepts()).is_reset()
    assert len(guest.dispatcher.tcp) == 0
