"""What a UDP flow says of itself."""

import pytest
from harness.stage import V4, Family, Stage
from udp_script import GUEST_PORT, exchange, free_port, is_asked, port_of, received

from trio_passt.config import Protocol
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")


def status(guest: Stage) -> FlowStatus:
    """That of the newest flow."""
    return guest.dispatcher.udp.newest(1)[0].status()


async def test_a_flow_of_the_guest(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    await is_asked(guest, host, family)
    told = status(guest)
    assert told.key == (family.guest_packed, GUEST_PORT, family.gateway_packed, port_of(host))
    assert told.on_host is not None
    assert told.on_host.sockaddr()[:2] == host.getsockname()[:2]
    assert (told.state, told.is_opened_by_guest, told.idle_s) == ("unanswered", True, 0.0)
    assert (told.from_guest, told.to_guest, told.unit) == (1, 0, Unit.DATAGRAMS)
    await exchange(guest, host, family)
    await guest.passes(5)
    told = status(guest)
    assert (told.state, told.idle_s, told.from_guest, told.to_guest) == ("answered", 5.0, 2, 1)


async def test_an_error_is_no_answer(guest: Stage, family: Family) -> None:
    guest.sends_datagram(family, GUEST_PORT, free_port(family), b"anybody there?")
    await guest.expects_error()
    told = status(guest)
    assert (told.state, told.from_guest, told.to_guest) == ("unanswered", 1, 0)


async def test_a_flow_through_a_forwarded_port(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, 5353)
    client = guest.host_udp(family)
    client.sendto(b"request", (family.local, port))
    await guest.expects_datagram()
    told = status(guest)
    assert (told.state, told.is_opened_by_guest, told.from_guest, told.to_guest) == ("unanswered", False, 0, 1)
    assert told.on_host is not None
    assert told.on_host.sockaddr()[:2] == client.getsockname()[:2]
    guest.sends_datagram(family, 5353, port_of(client), b"reply")
    await received(client)
    told = status(guest)
    assert (told.state, told.from_guest, told.to_guest) == ("answered", 1, 1)


async def test_a_flow_of_the_guest_through_a_forwarded_port(guest: Stage) -> None:
    guest.forwards(Protocol.UDP, GUEST_PORT)
    await is_asked(guest, guest.host_udp(V4), V4)
    told = status(guest)
    assert (told.state, told.is_opened_by_guest, told.from_guest) == ("unanswered", True, 1)


async def test_a_flow_that_has_ended(guest: Stage) -> None:
    await is_asked(guest, guest.host_udp(V4), V4)
    flow = guest.dispatcher.udp.newest(1)[0]
    await guest.passes(IDLE_S)
    assert flow.status().state == "ended"
