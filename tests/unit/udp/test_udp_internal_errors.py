"""A bug costs the one flow that it is in: whoever it was that woke the flow goes on, and so do all others."""

import logging
import socket
from collections.abc import Callable

import pytest
from harness.stage import V4, Stage
from udp_script import Name, arrived, exchange, is_asked, port_of

from trio_passt.config import Protocol
from trio_passt.wire.datagrams import UdpHeaders

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353


class NobodyExpectsThisError(Exception):
    """Nobody expects it."""


def raises(*_arguments: object) -> None:
    raise NobodyExpectsThisError


@pytest.fixture
def sound(guest: Stage) -> socket.socket:
    """A remote that has nothing to do with it."""
    return guest.host_udp(V4)


Breaks = Callable[[], None]


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    """Have each datagram to the guest raise."""

    def patch() -> None:
        monkeypatch.setattr(UdpHeaders, "frames", raises)
        monkeypatch.setattr(UdpHeaders, "single", raises)

    return patch


async def ends_with_one_line(
    guest: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sound: socket.socket,
    flow: Name,
    *,
    left: int = 1,
) -> None:
    """That flow has ended, its socket is closed, there is one line in the log, and the others work."""
    await guest.settles()
    monkeypatch.undo()
    assert len(guest.dispatcher.udp) == left
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "ended by an internal error; please report this" in record.getMessage()
    assert "NobodyExpectsThisError" in caplog.text
    assert await exchange(guest, sound, V4) == flow


async def test_while_the_guest_speaks(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sound: socket.socket
) -> None:
    flow = await exchange(guest, sound, V4)
    host = guest.host_udp(V4)
    await is_asked(guest, host, V4, 5001)
    monkeypatch.setattr(socket.socket, "send", raises)
    guest.sends_datagram(V4, 5001, port_of(host), b"x")
    await ends_with_one_line(guest, monkeypatch, caplog, sound, flow)
    assert arrived(host) is None
    await exchange(guest, host, V4, 5001)


async def test_at_the_first_datagram(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sound: socket.socket
) -> None:
    flow = await exchange(guest, sound, V4)
    monkeypatch.setattr(socket.socket, "send", raises)
    guest.sends_datagram(V4, 5001, port_of(sound), b"x")
    await ends_with_one_line(guest, monkeypatch, caplog, sound, flow)


@pytest.mark.interpreted
async def test_while_the_remote_speaks(
    guest: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sound: socket.socket,
    breaks: Breaks,
) -> None:
    flow = await exchange(guest, sound, V4)
    host = guest.host_udp(V4)
    sick = await is_asked(guest, host, V4, 5001)
    breaks()
    host.sendto(b"x", sick)
    await ends_with_one_line(guest, monkeypatch, caplog, sound, flow)


@pytest.mark.interpreted
async def test_while_a_client_speaks(
    guest: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sound: socket.socket,
    breaks: Breaks,
) -> None:
    """The forwarded port goes on."""
    port, client = guest.forwards(Protocol.UDP, TARGET), guest.host_udp(V4)
    flow = await exchange(guest, sound, V4)
    breaks()
    client.sendto(b"x", (V4.local, port))
    await ends_with_one_line(guest, monkeypatch, caplog, sound, flow)
    client.sendto(b"again", (V4.local, port))
    assert (await guest.expects_datagram()).payload == b"again"


async def test_when_the_link_has_room_again(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sound: socket.socket
) -> None:
    """What it had kept is given back."""
    budget = guest.session.datagrams.left_bytes
    flow = await exchange(guest, sound, V4)
    host = guest.host_udp(V4)
    sick = await is_asked(guest, host, V4, 5001)
    for capacity in (None, 1):  # at first one by one, then many at a time
        guest.link.set_capacity(frames=capacity)
        for number in range(20):
            host.sendto(b"%d" % number, sick)
        await guest.settles()
        guest.forgets()
    await guest.settles()
    assert guest.session.datagrams.left_bytes < budget
    monkeypatch.setattr(guest.link, "send", raises)
    guest.forgets()  # so there is room
    await guest.settles()
    monkeypatch.undo()
    guest.link.set_capacity(frames=None)
    await ends_with_one_line(guest, monkeypatch, caplog, sound, flow)
    assert guest.session.datagrams.left_bytes == budget
