"""What an echo flow says of itself."""

import pytest
from echo_script import reply, request
from fake_ping import FakeHost, kernels_reply, no_permission
from harness.stage import V4, Family, Stage

from trio_passt.flow.status import FlowStatus
from trio_passt.icmp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")


def status(guest: Stage) -> FlowStatus:
    """That of the newest flow."""
    return guest.dispatcher.echo.newest(1)[0].status()


async def test_a_ping(guest: Stage, host: FakeHost, family: Family) -> None:
    guest.sends_packets(request(family, 9, 7))
    await guest.settles()
    host.far.send(kernels_reply(family, 9, 7))
    assert await reply(guest, family) == (9, 7, b"")
    await guest.passes(3)
    told = status(guest)
    assert told.key == (family.guest_packed, 9, family.gateway_packed, 0)
    assert told.on_host is not None
    assert told.on_host.sockaddr()[:2] == (family.local, 0)
    assert (told.state, told.is_opened_by_guest, told.idle_s) == ("open", True, 3.0)
    assert (told.from_guest, told.to_guest) == (None, None), "nobody counts"
    flow = guest.dispatcher.echo.newest(1)[0]
    await guest.passes(IDLE_S)
    assert flow.status().state == "ended"


async def test_without_permission(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    no_permission(monkeypatch)
    guest.sends_packets(request(V4, 9, 7))
    await reply(guest, V4)
    assert status(guest).state == "no socket"
