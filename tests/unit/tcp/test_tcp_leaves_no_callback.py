"""A connection that is over leaves nobody in the link's queue, which a guest that does not read never empties."""

import pytest
from harness.noise import noise
from harness.stage import Family, Stage
from harness.tcp import GuestTcp, HostSocket

from trio_passt.tcp import timeouts
from trio_passt.tcp.bridge import Bridge
from trio_passt.wire.tcp import ACK, RST

pytestmark = pytest.mark.usefixtures("standing_clock")


async def waits_for_room(guest: Stage, *ends: tuple[GuestTcp, HostSocket]) -> None:
    """The link is full, and on each of these connections there is data for the guest."""
    guest.link.set_capacity(frames=0)
    for _, host in ends:
        host.sends(noise(1000))
        await guest.settles()
    assert guest.link.waiting == len(ends)


async def test_guest_resets(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    await waits_for_room(guest, (tcp, host))
    tcp.sends(RST)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    assert guest.link.waiting == 0
    guest.link.set_capacity()
    await tcp.expects_nothing()


async def test_host_resets_and_the_guest_cannot_be_told(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    await waits_for_room(guest, (tcp, host))
    host.resets()
    await guest.passes(timeouts.AFTER_HOST_RESET_S + timeouts.RESET_PATIENCE_S + 1)
    assert len(guest.dispatcher.tcp) == 0
    assert guest.link.waiting == 0


async def test_one_after_the_other(guest: Stage, family: Family) -> None:
    """Each is reset by a guest that does not read; the memory that they took would be the daemon's loss."""
    for _ in range(20):
        guest.link.set_capacity()
        tcp, host = await guest.connected(family)
        await waits_for_room(guest, (tcp, host))
        tcp.sends(RST)
        await guest.settles()
        assert guest.link.waiting == 0


async def test_others_are_served_when_there_is_room(guest: Stage, family: Family) -> None:
    goes, stays = await guest.connected(family), await guest.connected(family)
    await waits_for_room(guest, goes, stays)
    goes[0].sends(RST)
    await guest.settles()
    assert guest.link.waiting == 1
    guest.link.set_capacity()
    await stays[0].expects_data(noise(1000))
    await goes[0].expects_nothing()
    assert guest.link.waiting == 0


async def test_internal_error(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_bridge: Bridge, _now: float) -> None:
        raise ValueError("a bug")

    tcp, host = await guest.connected(family)
    await waits_for_room(guest, (tcp, host))
    monkeypatch.setattr(Bridge, "send", fail)
    tcp.sends(ACK, b"data")
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0
    assert guest.link.waiting == 0
