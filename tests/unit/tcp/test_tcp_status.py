"""What a connection says of itself, from the first SYN on."""

from ipaddress import ip_address

import pytest
from harness.stage import V4, Family, Stage

from trio_passt.config import Protocol
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.wire.tcp import ACK, FIN, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


def status(guest: Stage) -> FlowStatus:
    """That of the newest flow."""
    return guest.dispatcher.tcp.newest(1)[0].status()


async def test_a_connection_of_the_guest_from_beginning_to_end(guest: Stage, family: Family) -> None:
    tcp, host = await guest.connected(family)
    told = status(guest)
    assert told.key == (family.guest_packed, tcp.guest_port, ip_address(tcp.remote).packed, tcp.port)
    assert told.on_host is not None
    assert (told.on_host.address, told.on_host.port) == (ip_address(family.local).packed, tcp.port)
    assert (told.state, told.is_opened_by_guest) == ("ESTABLISHED", True)
    assert (told.from_guest, told.to_guest, told.unit) == (0, 0, Unit.BYTES)
    tcp.sends(ACK, b"question")
    await tcp.expects(ACK)
    await host.receives(b"question")
    host.sends(b"a longer answer")
    await tcp.expects(ACK, b"a longer answer")
    tcp.sends(ACK)
    await guest.settles()
    told = status(guest)
    assert (told.state, told.from_guest, told.to_guest) == ("ESTABLISHED", 8, 15)
    assert told.idle_s is not None
    assert 0 <= told.idle_s < 5
    tcp.sends(FIN | ACK)
    await tcp.expects(ACK)
    assert status(guest).state == "FIN-WAIT-2"
    host.half_closes()
    await tcp.expects(FIN | ACK)
    told = status(guest)
    assert (told.state, told.from_guest, told.to_guest) == ("FIN-WAIT-2", 8, 15), "a FIN is no data"
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_a_connection_of_the_host_that_the_guest_does_not_answer(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    guest.host_connects(family, port)
    await guest.settles()
    told = status(guest)
    assert (told.state, told.is_opened_by_guest, told.key.guest_port) == ("SYN-RECEIVED", False, 80)
    assert (told.on_host, told.idle_s, told.from_guest, told.to_guest) == (None, None, None, None)


async def test_a_connection_from_the_host(guest: Stage, family: Family) -> None:
    """All of host's own have one address for the guest; who it is, is told."""
    tcp, client = await guest.connected_from_host(family)
    client.sends(b"GET /")
    await tcp.expects(ACK, b"GET /")
    tcp.sends(RST, seq=tcp.next)
    told = status(guest)
    assert (told.state, told.is_opened_by_guest, told.from_guest, told.to_guest) == ("ESTABLISHED", False, 0, 5)
    assert told.on_host is not None
    assert told.on_host.sockaddr()[:2] == client.socket.getsockname()[:2]
    assert told.key.remote == family.gateway_packed
    flow = guest.dispatcher.tcp.newest(1)[0]
    await guest.settles()
    assert flow.status().state == "CLOSED"


async def test_a_connection_that_the_guest_does_not_complete(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp = guest.tcp(V4, server.port)
    tcp.sends(SYN)
    await tcp.expects(SYN | ACK)
    told = status(guest)
    assert (told.state, told.is_opened_by_guest, told.from_guest) == ("SYN-SENT", True, None)
    assert told.on_host is not None
    assert told.on_host.port == server.port


async def test_a_connection_that_the_host_does_not_answer(guest: Stage) -> None:
    guest.tcp(V4, guest.host_is_silent(V4)).sends(SYN)
    await guest.settles()
    assert status(guest).state == "SYN-SENT"


async def test_a_peer_that_has_gone_has_no_name(guest: Stage) -> None:
    """Its reset is known to the kernel, and not to the flow yet."""
    tcp, client = await guest.connected_from_host(V4)
    flow = guest.dispatcher.tcp.newest(1)[0]
    client.resets()
    told = flow.status()
    assert (told.state, told.on_host) == ("ESTABLISHED", None)
    await tcp.expects_reset()
