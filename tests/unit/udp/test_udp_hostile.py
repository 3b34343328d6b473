"""What a hostile reader found: guests, local users, neighbours and hosts that do what nobody expects."""

import errno
import os
import socket
import subprocess
from ipaddress import IPv4Address, ip_address

import pytest
from harness.oracle import SeenError
from harness.own_namespace import answer_for, has_a_way_again, has_address, has_no_way_to, wait_until_it_works
from harness.stage import V4, V6, Family, Stage, network, on_stage
from udp_script import arrived, datagram, exchange, hears, is_asked, port_of, received, receives

from trio_passt.config import DnsForward, Protocol
from trio_passt.host.readiness import Readiness
from trio_passt.udp.flow import IDLE_S
from trio_passt.wire import ipv6
from trio_passt.wire.ip import IPProtocol

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353

ELSEWHERE = {V4: ("192.0.2.1", "192.0.2.2", "203.0.113.7"), V6: ("2001:db8:9::1", "2001:db8:9::2", "2001:db8:8::7")}
"""Two addresses of the host, and one of somebody else, which are not loopback's."""

PREFIX_LENGTH = {V4: 32, V6: 128}

SUBNET = {V4: "203.0.113.0/24", V6: "2001:db8:8::/64"}
"""That of the last one."""

OTHER_ADDRESS = {V4: "198.51.100.77", V6: "2001:db8:1:2::77"}
"""Of the guest."""

Interface = int


def flows(guest: Stage) -> int:
    return len(guest.dispatcher.udp)


async def is_heard(guest: Stage, payload: bytes) -> tuple[str, int]:
    """The guest gets this datagram at the forwarded port's target; from whom, as it sees it."""
    seen = await guest.expects_datagram()
    assert (seen.payload, seen.destination_port) == (payload, TARGET)
    return seen.source, seen.source_port


def answers(guest: Stage, family: Family, client: tuple[str, int], payload: bytes) -> None:
    """The guest sends from the forwarded port's target to whom it has heard."""
    guest.sends_packets(datagram(family, TARGET, client[1], payload, remote=client[0]))


# -- fragments that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 101, 1183, 1185, 1301, 65001])
@pytest.mark.parametrize("offset", [0, 0xFFF8])
async def test_fragment_that_cannot_be_right_is_told_however_long_it_is(guest: Stage, size: int, offset: int) -> None:
    """Longer than what an error can quote of it, too; the session goes on."""
    ends = (V6.guest_packed, V6.gateway_packed)
    header = ipv6.IPv6Header(*ends, IPProtocol.UDP, more_fragments=True, fragment_offset=offset, identification=7)
    sent = ipv6.emit(header, size) + bytes(size)
    guest.sends_packets(sent, datagram(V6, 5000, 9, b"the next one of this batch"))
    told = [await guest.expects_error() for _ in range(2)]
    problem = told[0]
    assert (problem.source, problem.destination) == (V6.gateway, V6.guest)
    assert (problem.type, problem.code) == (4, 0)
    assert problem.quoted == sent[:1232]
    assert told[1].quoted.endswith(b"the next one of this batch")
    assert guest.ended is None


# -- flows that are over -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_read", [True, False], ids=["kept", "parked"])
async def test_flows_that_are_over_leave_no_callback_in_the_link(family: Family, *, is_read: bool) -> None:
    """A guest that does not read its link opens flow after flow to somebody who answers."""
    async with on_stage(flow_limit=10) as guest:
        host = guest.host_udp(family)
        guest.link.set_capacity(frames=0)
        for port in range(5000, 5200):
            guest.sends_datagram(family, port, port_of(host), b"request")
            _, flow = await received(host)
            if is_read:  # the link is found to be full only when the answer is there
                guest.link.set_capacity(frames=1)
                host.sendto(b"taken", flow)
                await guest.settles()
            host.sendto(b"answer", flow)
            await guest.settles()
            if is_read:
                guest.forgets()
                guest.link.set_capacity(frames=0)
        assert flows(guest) <= 10
        assert guest.link.waiting <= 10
        await guest.passes(IDLE_S + 1)
        assert flows(guest) == 0
        assert guest.link.waiting == 0


async def test_room_comes_when_the_flow_is_over(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    flow = await is_asked(guest, host, family)
    guest.link.set_capacity(frames=0)
    host.sendto(b"answer", flow)
    await guest.settles()
    assert guest.link.waiting == 1
    await guest.passes(IDLE_S + 1)
    assert guest.link.waiting == 0
    guest.link.set_capacity()
    await guest.expects_nothing()
    await exchange(guest, host, family)


# -- clients and their names -------------------------------------------------------------------------------------------


async def test_gateway_and_local_user_with_one_port(namespace: None, guest: Stage) -> None:
    """The guest sees both at the gateway's address; what it says to one is not for the other."""
    has_address(f"{V4.gateway}/32")
    port = guest.forwards(Protocol.UDP, TARGET)
    local, gateway = guest.host_udp(V4, ("127.0.0.1", 40000)), guest.host_udp(V4, (V4.gateway, 40000))
    for _ in range(2):
        local.sendto(b"from the user", ("127.0.0.1", port))
        user = await is_heard(guest, b"from the user")
        gateway.sendto(b"from the gateway", (V4.gateway, port))
        other = await is_heard(guest, b"from the gateway")
        assert user == (V4.gateway, 40000)
        assert other[0] == V4.gateway
        assert other[1] != 40000
        answers(guest, V4, other, b"a secret")
        assert await receives(gateway, b"a secret") == (V4.gateway, port)
        assert arrived(local) is None
        answers(guest, V4, user, b"another one")
        assert await receives(local, b"another one") == ("127.0.0.1", port)
        assert arrived(gateway) is None
    assert flows(guest) == 2


@pytest.fixture
def links(namespace: None) -> list[Interface]:
    """Two interfaces of the host, each with fe80::1 and fe80::99."""
    found = []
    for name in ("one", "two"):
        for command in (
            f"link add {name} type veth peer name {name}-end",
            f"link set {name}-end up addrgenmode none",
            f"link set {name} up addrgenmode none",
            f"address add fe80::1/64 dev {name} nodad",
            f"address add fe80::99/64 dev {name} nodad",
        ):
            if subprocess.run(["ip", *command.split()], check=False).returncode:
                pytest.skip("no virtual interfaces here")
        for address in ("fe80::1", "fe80::99"):
            wait_until_it_works(address, name)
        found.append(socket.if_nametoindex(name))
    return found


def neighbour(guest: Stage, interface: Interface, port: int) -> socket.socket:
    """A client of the address fe80::99 on this interface."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    guest.opened.callback(sock.close)
    sock.bind(("fe80::99", port, 0, interface))
    return sock


async def test_neighbours_of_one_address_on_two_links(guest: Stage, links: list[Interface]) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    clients = [neighbour(guest, interface, 4000) for interface in links]
    for _ in range(2):
        seen = []
        for interface, client in zip(links, clients, strict=True):
            client.sendto(b"from %d" % interface, ("fe80::1", port, 0, interface))
            seen.append(await is_heard(guest, b"from %d" % interface))
        assert seen[0] != seen[1]
        for interface, client, name in zip(links, clients, seen, strict=True):
            answers(guest, V6, name, b"to %d" % interface)
            payload, source = await received(client)
            assert (payload, source[1]) == (b"to %d" % interface, port)
        assert [arrived(client) for client in clients] == [None, None]
    assert flows(guest) == 2


SEEN, REAL = "203.0.113.53", "127.0.0.53"


async def test_answer_to_a_forwarded_port_comes_from_the_resolver_that_was_asked(namespace: None) -> None:
    """By the name that the guest has for it, not by what loopback is called otherwise."""
    forward = DnsForward(IPv4Address(SEEN), IPv4Address(REAL))
    async with on_stage(network(dns_forwards=(forward,))) as guest:
        port = guest.forwards(Protocol.UDP, TARGET)
        resolver = guest.host_udp(V4, (REAL, 53))
        for _ in range(2):
            answers(guest, V4, (SEEN, 53), b"question")
            question, asker = await received(resolver)
            assert (question, asker[1]) == (b"question", port)
            resolver.sendto(b"answer", asker)
            assert await is_heard(guest, b"answer") == (SEEN, 53)
        assert flows(guest) == 0


async def test_error_of_a_resolver_that_was_asked_from_a_forwarded_port(namespace: None) -> None:
    forward = DnsForward(IPv4Address(SEEN), IPv4Address(REAL))
    async with on_stage(network(dns_forwards=(forward,))) as guest:
        guest.forwards(Protocol.UDP, TARGET)
        sent = datagram(V4, TARGET, 53, b"question", remote=SEEN)
        guest.sends_packets(sent)
        told = await guest.expects_error()
        assert (told.type, told.code, told.quoted) == (3, 3, sent)


async def test_namesake_of_a_resolver_does_not_answer_in_its_name(namespace: None) -> None:
    """Whoever has the address on the host's network that stands for the resolver in the guest's."""
    forward = DnsForward(IPv4Address(SEEN), IPv4Address(REAL))
    async with on_stage(network(dns_forwards=(forward,))) as guest:
        has_address(f"{SEEN}/32")
        port = guest.forwards(Protocol.UDP, TARGET)
        resolver, namesake = guest.host_udp(V4, (REAL, 53)), guest.host_udp(V4, (SEEN, 53))
        answers(guest, V4, (SEEN, 53), b"question")
        _, asker = await received(resolver)
        namesake.sendto(b"injected", (SEEN, port))
        source, source_port = await is_heard(guest, b"injected")
        assert (source, source_port) != (SEEN, 53)
        resolver.sendto(b"answer", asker)
        assert await is_heard(guest, b"answer") == (SEEN, 53)


async def test_namesake_of_a_remote_does_not_answer_by_a_flow_of_the_guests_own(namespace: None) -> None:
    """As before, where the guest asks from a port that is forwarded to it only later."""
    forward = DnsForward(IPv4Address(SEEN), IPv4Address(REAL))
    async with on_stage(network(dns_forwards=(forward,))) as guest:
        has_address(f"{SEEN}/32")
        resolver, namesake = guest.host_udp(V4, (REAL, 53)), guest.host_udp(V4, (SEEN, 53))
        answers(guest, V4, (SEEN, 53), b"question")
        await received(resolver)
        port = guest.forwards(Protocol.UDP, TARGET)
        namesake.sendto(b"injected", (SEEN, port))
        assert await is_heard(guest, b"injected") != (SEEN, 53)


async def test_client_from_a_resolvers_port_may_ask_several_things_at_once(
    namespace: None, guest: Stage, family: Family
) -> None:
    """An old server asks from port 53: the guest's replies are no questions, and all leave from where it was asked."""
    first, asked, elsewhere = ELSEWHERE[family]
    for address in (first, asked, elsewhere):
        has_address(f"{address}/{PREFIX_LENGTH[family]}")
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family, (elsewhere, 53))
    for number in range(3):
        client.sendto(b"query %d" % number, (asked, port))
        assert await is_heard(guest, b"query %d" % number) == (elsewhere, 53)
    for number in range(3):
        answers(guest, family, (elsewhere, 53), b"reply %d" % number)
        assert await receives(client, b"reply %d" % number) == (asked, port)
        assert flows(guest) == 1


async def test_guest_that_changes_its_address_is_reached_by_clients_that_never_rest(
    guest: Stage, family: Family
) -> None:
    """From DHCP's to a static one, say: the client's flow had been begun with the former."""
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    client.sendto(b"hello", (family.local, port))
    assert (await guest.expects_datagram()).destination == family.guest
    now = OTHER_ADDRESS[family]
    guest.sends_packets(datagram(family, 1, port_of(client), b"here I am", source=now))
    await received(client)
    for _ in range(3):
        client.sendto(b"still there?", (family.local, port))
        seen = await guest.expects_datagram()
        assert (seen.destination, seen.payload) == (now, b"still there?")
        guest.sends_packets(datagram(family, TARGET, seen.source_port, b"yes", source=now, remote=seen.source))
        assert await received(client) == (b"yes", (family.local, port))
        await guest.passes(IDLE_S - 1)


async def test_guest_with_two_addresses_is_answered_where_it_has_asked(guest: Stage, family: Family) -> None:
    """IPv6 gives it several; by the other one some program of the guest's speaks meanwhile."""
    port = guest.forwards(Protocol.UDP, TARGET)
    host = guest.host_udp(family)
    answers(guest, family, (family.gateway, port_of(host)), b"request")
    assert await receives(host, b"request") == (family.local, port)
    guest.sends_packets(datagram(family, 1, port_of(host), b"another program", source=OTHER_ADDRESS[family]))
    await received(host)
    host.sendto(b"reply", (family.local, port))
    await hears(guest, family, b"reply", (port_of(host), TARGET))


async def test_guest_with_two_addresses_is_asked_where_it_answers(guest: Stage, family: Family) -> None:
    """A client goes on talking to the server that it has found, not to whoever spoke last."""
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    for number in range(3):
        client.sendto(b"request %d" % number, (family.local, port))
        await hears(guest, family, b"request %d" % number, (port_of(client), TARGET))
        answers(guest, family, (family.gateway, port_of(client)), b"reply")
        assert await receives(client, b"reply") == (family.local, port)
        guest.sends_packets(datagram(family, 1, port_of(client), b"another program", source=OTHER_ADDRESS[family]))
        await received(client)


@pytest.mark.interpreted
async def test_flow_that_could_not_be_started_has_no_client(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its datagrams would go to what no one runs, and nobody ends."""
    port = guest.forwards(Protocol.UDP, TARGET)
    client = guest.host_udp(family)
    with monkeypatch.context() as patched:
        patched.setattr(guest.dispatcher.udp, "start", lambda _flow: False)
        client.sendto(b"lost", (family.local, port))
        await guest.expects_drop("udp: limit of flows")
    client.sendto(b"hello", (family.local, port))
    assert await is_heard(guest, b"hello") == (family.gateway, port_of(client))
    assert flows(guest) == 1


@pytest.mark.interpreted
async def test_guests_own_flow_that_could_not_be_started_has_no_remote(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    host = guest.host_udp(family)
    with monkeypatch.context() as patched:
        patched.setattr(guest.dispatcher.udp, "start", lambda _flow: False)
        answers(guest, family, (family.gateway, port_of(host)), b"lost")
        await guest.expects_drop("udp: limit of flows")
    host.sendto(b"hello", (family.local, port))
    assert await is_heard(guest, b"hello") == (family.gateway, port_of(host))
    assert flows(guest) == 1


# -- hosts that have no way, or no room --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "remote"])
async def test_host_without_room_to_watch_one_more_socket(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch, *, is_client: bool
) -> None:
    """`max_user_watches` is of the user, not the process: whoever waited for the link is looked at all the same."""

    def no_room(_readiness: Readiness, *_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host = guest.host_udp(family)
    to: tuple[str, int]
    if is_client:
        to = (family.local, guest.forwards(Protocol.UDP, TARGET))
        ports = (port_of(host), TARGET)
    else:
        to = await is_asked(guest, host, family)
        ports = (port_of(host), 5000)
    host.sendto(b"before", to)
    await hears(guest, family, b"before", ports)
    guest.link.set_capacity(frames=0)
    for number in range(3):
        host.sendto(b"%d" % number, to)
    await guest.settles()
    monkeypatch.setattr(Readiness, "watch", no_room)
    guest.link.set_capacity()
    for number in range(3):
        await hears(guest, family, b"%d" % number, ports)
    host.sendto(b"after", to)
    await hears(guest, family, b"after", ports)
    assert guest.ended is None
    assert flows(guest) == 1


async def test_datagram_to_a_group_is_answered_from_an_address_of_the_hosts(
    guest: Stage, links: list[Interface]
) -> None:
    """The group's is none to send from.  All nodes' is one that nobody needs to join."""
    port = guest.forwards(Protocol.UDP, TARGET)
    interface = links[1]
    client = neighbour(guest, interface, 4000)
    client.sendto(b"to all nodes", ("ff02::1", port, 0, interface))
    source = await is_heard(guest, b"to all nodes")
    assert source == ("fe80::99", 4000)
    for payloads in ([b"reply"], [b"some", b"more", b"end"]):
        guest.sends_packets(*(datagram(V6, TARGET, 4000, payload, remote="fe80::99") for payload in payloads))
        for payload in payloads:
            got, name = await received(client)
            assert (got, name[1]) == (payload, port)
            assert ip_address(name[0].partition("%")[0]).is_link_local
    assert not guest.session.drops


def answers_no_more_for(subnet: str, *, source: str) -> None:
    """Take back what `answer_for` has done: the host has gone elsewhere."""
    for gone in (["route", "delete", "local", subnet], ["address", "delete", source]):
        subprocess.run(["ip", *gone, "dev", "lo"], check=True)


async def test_guest_finds_another_way_when_the_host_has_another_address(namespace: None, guest: Stage) -> None:
    """It goes on sending, so silence never ends the flow, whose socket is still where the host was."""
    (_, _, remote), subnet = ELSEWHERE[V4], SUBNET[V4]
    answer_for(subnet, source="192.0.2.1/32")
    host = guest.host_udp(V4, (remote, 9000))
    guest.sends_packets(datagram(V4, 5000, 9000, b"before", remote=remote))
    assert await receives(host, b"before") == ("192.0.2.1", 5000)
    answers_no_more_for(subnet, source="192.0.2.1/32")
    answer_for(subnet, source="192.0.2.2/32")
    lost = datagram(V4, 5000, 9000, b"lost", remote=remote)
    guest.sends_packets(lost)
    assert (await guest.expects_error()).quoted == lost
    guest.sends_packets(datagram(V4, 5000, 9000, b"after", remote=remote))
    assert await receives(host, b"after") == ("192.0.2.2", 5000)
    host.sendto(b"reply", ("192.0.2.2", 5000))
    assert (await guest.expects_datagram()).payload == b"reply"
    assert sum(guest.session.drops.values()) == 1


async def test_flow_without_a_way_ends_and_is_opened_anew(namespace: None, guest: Stage, family: Family) -> None:
    near, _, remote = ELSEWHERE[family]
    length, subnet = PREFIX_LENGTH[family], SUBNET[family]
    answer_for(subnet, source=f"{near}/{length}")
    host = guest.host_udp(family, ("", 9000))
    guest.sends_packets(datagram(family, 5000, 9000, b"before", remote=remote))
    await receives(host, b"before")
    has_no_way_to("unreachable", f"{remote}/{length}")
    for number in range(2):
        lost = datagram(family, 5000, 9000, b"lost %d" % number, remote=remote)
        guest.sends_packets(lost)
        told = await guest.expects_error()
        assert isinstance(told, SeenError)
        assert told.quoted == lost
        await guest.settles()
        assert flows(guest) == 0
    has_a_way_again("unreachable", f"{remote}/{length}")
    guest.sends_packets(datagram(family, 5000, 9000, b"after", remote=remote))
    assert (await receives(host, b"after"))[1] == 5000


async def test_refusal_ends_no_flow(guest: Stage, family: Family) -> None:
    """The way is there, only nobody at its end for the moment: the socket stays, and with it the port that it has."""
    host = guest.host_udp(family)
    name = (family.local, port_of(host))
    flow = await is_asked(guest, host, family)
    host.close()
    guest.sends_datagram(family, 5000, name[1], b"is refused")
    await guest.expects_error()
    await guest.settles()
    assert flows(guest) == 1
    assert await is_asked(guest, guest.host_udp(family, name), family) == flow
