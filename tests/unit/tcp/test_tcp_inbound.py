"""A forwarded port: somebody on the host's side connects, and the guest is asked."""

import errno
import os
import socket
from ipaddress import ip_address

import pytest
from harness.oracle import SeenFrame, SeenOther
from harness.stage import GUEST_MAC, V4, V6, Family, Stage, network, on_stage
from harness.waiting import eventually

from trio_passt.config import Protocol
from trio_passt.host.endpoint import Endpoint
from trio_passt.wire.tcp import ACK, FIN, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_life_of_a_connection(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    client = guest.host_connects(family, port)
    tcp = await guest.asked_to_connect(family)
    tcp.sends(SYN | ACK, mss=1460, scale=7)
    await tcp.expects(ACK)
    client.sends(b"GET /")
    await tcp.expects(ACK, b"GET /")
    tcp.sends(FIN | ACK, b"200 OK")
    await tcp.expects(ACK)
    await client.receives(b"200 OK")
    await client.receives_end()
    client.half_closes()
    await tcp.expects(FIN | ACK)
    tcp.sends(ACK)
    await guest.settles()
    assert len(guest.dispatcher.tcp) == 0


async def test_offer_to_the_guest(guest: Stage, family: Family) -> None:
    guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
    syn = (await guest.expects_segment()).segment
    assert syn.options.mss == 65520 - (40 if family.version == 4 else 60)
    assert syn.options.window_scale == 7


async def test_guest_that_refuses_resets_the_client(guest: Stage, family: Family) -> None:
    client = guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(family)
    tcp.sends(RST | ACK, seq=0, ack=tcp.expected + 1)
    await client.receives_nothing()
    tcp.sends(RST, seq=0)
    await client.receives_nothing()
    tcp.sends(RST | ACK, seq=0)
    await client.is_reset()
    await tcp.expects_nothing()


async def test_silent_guest_is_asked_again_and_the_client_reset_after_ten_seconds(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    for wait_s in (1, 2, 4):
        await guest.passes(wait_s)
        assert (await tcp.arrives()).flags == SYN
    await guest.passes(2.9)
    await client.receives_nothing()
    await guest.passes(0.2)
    await client.is_reset()
    assert len(guest.dispatcher.tcp) == 0


async def test_client_that_speaks_before_the_guest_has_answered(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    client.sends(b"eager")
    await tcp.expects_nothing()
    tcp.sends(SYN | ACK)
    await tcp.expects(ACK, b"eager")


async def test_syn_without_acknowledgement_and_wrong_ones_do_not_open(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    tcp.sends(SYN, seq=77)
    tcp.sends(ACK, seq=77)
    await tcp.expects_nothing()
    tcp.sends(SYN | ACK, seq=77, ack=tcp.expected + 9)
    await tcp.expects(RST, seq=tcp.expected + 9)
    tcp.sends(SYN | ACK)
    await tcp.expects(ACK)
    client.sends(b"x")
    await tcp.expects(ACK, b"x")


async def test_repeated_syn_ack_is_acknowledged_again(guest: Stage) -> None:
    await_client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    answer = tcp.segment(SYN | ACK)
    tcp.sends_batch(answer)
    await tcp.expects(ACK)
    tcp.sends_batch(answer)
    await tcp.expects(ACK)
    await await_client.receives_nothing()


async def test_client_keeps_its_address_and_port(guest: Stage) -> None:
    ours, theirs = socket.socketpair()
    guest.opened.callback(theirs.close)
    listener = socket.create_server(("127.0.0.1", 0))
    guest.opened.callback(listener.close)
    client = socket.create_connection(listener.getsockname())
    guest.opened.callback(client.close)
    accepted, _ = listener.accept()
    ours.close()
    accepted.setblocking(False)
    guest.dispatcher.on_connection(accepted, Endpoint(ip_address("203.0.113.9").packed, 50_000), 80)
    tcp = await guest.asked_to_connect(V4, remote="203.0.113.9")
    assert (tcp.remote, tcp.port) == ("203.0.113.9", 50_000)


async def test_two_host_local_clients_with_the_same_port(guest: Stage) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    first = guest.host_connects(V4, port, source=("127.0.0.1", 0))
    one = await guest.asked_to_connect(V4)
    second = guest.host_connects(V4, port, source=("127.0.0.2", first.socket.getsockname()[1]))
    other = await guest.asked_to_connect(V4)
    assert one.port == first.socket.getsockname()[1]
    assert other.port != one.port
    for tcp, client, data in ((one, first, b"first"), (other, second, b"second")):
        tcp.sends(SYN | ACK)
        await tcp.expects(ACK)
        client.sends(data)
        await tcp.expects(ACK, data)


async def test_family_that_is_off_is_a_reset() -> None:
    for only, off in ((V4, V6), (V6, V4)):
        async with on_stage(network(ipv4=only is V4, ipv6=only is V6)) as guest:
            port = guest.forwards(Protocol.TCP, 80)
            await guest.host_connects(off, port).is_reset()
            guest.host_connects(only, port)
            await guest.asked_to_connect(only)


async def test_flow_limit_is_a_reset() -> None:
    async with on_stage(flow_limit=1) as guest:
        port = guest.forwards(Protocol.TCP, 80)
        guest.host_connects(V4, port)
        await guest.asked_to_connect(V4)
        await guest.host_connects(V4, port).is_reset()


async def test_goes_to_the_address_that_the_guest_uses(guest: Stage) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    elsewhere = Family(4, "198.51.100.77", V4.gateway, V4.local)
    guest.sends_datagram(elsewhere, 5000, 9, b"here I am")
    await guest.settles()
    guest.host_connects(V4, port)
    await guest.asked_to_connect(elsewhere)


async def test_guest_that_has_not_spoken_is_looked_for(family: Family) -> None:
    async with on_stage(network(ipv4=family is V4, ipv6=family is V6)) as guest:
        guest.session.guest.mac = b"\xff" * 6
        guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
        asked = await eventually(
            lambda: guest.look(lambda seen: isinstance(seen, SeenFrame | SeenOther)), "a search for the guest"
        )
        assert isinstance(asked, SeenFrame | SeenOther)
        assert asked.packet.haslayer("ARP" if family is V4 else "ICMPv6ND_NS")
        tcp = await guest.asked_to_connect(family)
        tcp.sends(SYN | ACK)
        await tcp.expects(ACK)
        assert guest.session.guest.mac == GUEST_MAC


async def test_client_that_is_gone_before_the_guest_answers(guest: Stage) -> None:
    client = guest.host_connects(V4, guest.forwards(Protocol.TCP, 80))
    tcp = await guest.asked_to_connect(V4)
    client.resets()
    tcp.sends(SYN | ACK)
    await tcp.expects_reset()
    assert len(guest.dispatcher.tcp) == 0


async def test_no_descriptor_is_left(guest: Stage) -> None:
    port = guest.forwards(Protocol.TCP, 80)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        client = guest.host_connects(V4, port)
        tcp = await guest.asked_to_connect(V4)
        tcp.sends(RST | ACK, seq=0)
        await client.is_reset()
        client.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        client.socket.recv(1)
