"""What the host learns of a datagram that did not arrive is told the guest: ICMP, quoting what it had sent."""

import errno
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import pytest
from attrs import evolve
from harness.oracle import SeenError
from harness.own_namespace import has_no_way_to, loopback_carries
from harness.stage import V4, V6, Family, Stage, on_stage
from udp_script import GUEST_PORT, datagram, exchange, free_port, hears, port_of, receives

from trio_passt.config import Protocol
from trio_passt.host import error_queue, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import ORIGIN_ICMP, ORIGIN_ICMPV6, DatagramError
from trio_passt.host.outbound import Way
from trio_passt.udp.flow import IDLE_S

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353
REFUSED = "udp: Connection refused"

PORT_UNREACHABLE = {V4: (3, 3), V6: (1, 4)}
NET_UNREACHABLE = {V4: (3, 0), V6: (1, 0)}
HOST_UNREACHABLE = {V4: (3, 1), V6: (1, 3)}
PROHIBITED = {V4: (3, 13), V6: (1, 1)}
TOO_BIG = {V4: (3, 4), V6: (2, 0)}

QUOTED_BYTES = {V4: 576 - 28, V6: 1280 - 48}
ELSEWHERE = {V4: "203.0.113.9", V6: "2001:db8:9::9"}
ELSEWHERE_SUBNET = {V4: "203.0.113.0/24", V6: "2001:db8:9::/64"}


async def is_told(
    guest: Stage, family: Family, kind: dict[Family, tuple[int, int]], about: bytes, *, info: int = 0
) -> SeenError:
    """The gateway says so of this packet of the guest's, as much of which is quoted as there is room for."""
    error = await guest.expects_error()
    assert (error.type, error.code, error.info) == (*kind[family], info)
    assert (error.source, error.destination) == (family.gateway, family.guest)
    assert error.quoted == about[: QUOTED_BYTES[family]]
    return error


# -- nobody at the port ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, 500, 1400, 65000])
async def test_port_that_is_nobodys(guest: Stage, family: Family, size: int) -> None:
    """What is quoted begins as what the guest has sent, whatever the kernel quotes to us."""
    sent = datagram(family, GUEST_PORT, free_port(family), os.urandom(size))
    guest.sends_packets(sent)
    await is_told(guest, family, PORT_UNREACHABLE, sent)
    await guest.expects_nothing()
    assert guest.session.drops == {REFUSED: 1}


async def test_flow_lives_on(guest: Stage, family: Family) -> None:
    host = guest.host_udp(family)
    port, flow = port_of(host), await exchange(guest, host, family)
    host.close()
    sent = datagram(family, GUEST_PORT, port, b"to nobody")
    for _ in range(3):
        guest.sends_packets(sent)
        await is_told(guest, family, PORT_UNREACHABLE, sent)
    assert len(guest.dispatcher.udp) == 1
    again = guest.host_udp(family, (family.local, port))
    assert await exchange(guest, again, family) == flow
    assert guest.session.drops == {REFUSED: 3}


async def test_different_ones_of_one_batch_are_quoted_each(guest: Stage, family: Family) -> None:
    """Though the error of one comes when the next is sent."""
    port = free_port(family)
    sent = [datagram(family, GUEST_PORT, port, os.urandom(20 + 7 * number)) for number in range(10)]
    guest.sends_packets(*sent)
    for packet in sent:
        await is_told(guest, family, PORT_UNREACHABLE, packet)
    await guest.expects_nothing()
    assert guest.session.drops == {REFUSED: 10}


def all_told(guest: Stage) -> list[bytes]:
    """What the errors that are there quote."""
    told = []
    while (seen := guest.look(lambda seen: isinstance(seen, SeenError))) is not None:
        assert isinstance(seen, SeenError)
        told.append(seen.quoted)
    return told


@pytest.mark.parametrize("sizes", [[100] * 15, [100] * 3 + [7], [2] * 60, [1400] * 10])
async def test_quote_of_some_that_went_out_together_is_one_of_them(
    guest: Stage, family: Family, sizes: list[int]
) -> None:
    """On its own loopback the kernel does not cut them, and answers all of them at once."""
    port = free_port(family)
    sent = [datagram(family, GUEST_PORT, port, os.urandom(size)) for size in sizes]
    guest.sends_packets(*sent)
    await guest.settles()
    told = all_told(guest)
    assert told
    assert set(told) <= {packet[: QUOTED_BYTES[family]] for packet in sent}
    assert len(guest.dispatcher.udp) == 1


async def test_quote_of_some_in_the_middle_of_a_batch(guest: Stage, family: Family) -> None:
    """Three trains: of the middle one, headers and the beginning are right; the checksum is not known."""
    port = free_port(family)
    sent = [datagram(family, GUEST_PORT, port, os.urandom(size)) for size in [1400] * 3 + [100] * 4 + [900] * 3]
    guest.sends_packets(*sent)
    await guest.settles()
    told = all_told(guest)
    assert len(told) == 3
    sum_at = (26, 28) if family is V4 else (46, 48)
    for quoted in told:
        assert any(
            packet.startswith(quoted[: sum_at[0]]) and packet[sum_at[1] :].startswith(quoted[sum_at[1] :])
            for packet in sent
        )


async def test_hundreds_at_once_are_not_told_each(guest: Stage, family: Family) -> None:
    """RFC 1812 section 4.3.2.8: errors are limited in number."""
    port = free_port(family)
    sizes = [50 + 2 * (number % 2) for number in range(300)]  # no train is longer than two
    guest.sends_packets(*(datagram(family, GUEST_PORT, port, bytes(size)) for size in sizes))
    await guest.settles()
    assert 0 < len(all_told(guest)) <= 300
    assert len(guest.dispatcher.udp) == 1


async def test_errors_and_replies_mixed(guest: Stage, family: Family) -> None:
    """Of two flows from one port of the guest's, each hears of its own."""
    host, nobody = guest.host_udp(family), free_port(family)
    wrong, right = (datagram(family, GUEST_PORT, port, b"request") for port in (nobody, port_of(host)))
    for _ in range(2):
        guest.sends_packets(wrong, right)
        flow = await receives(host, b"request")
        await is_told(guest, family, PORT_UNREACHABLE, wrong)
        host.sendto(b"reply", flow)
        await hears(guest, family, b"reply", (port_of(host), GUEST_PORT))
    await guest.expects_nothing()


async def test_full_link_does_not_get_it(family: Family) -> None:
    """The next one brings another."""
    async with on_stage(capacity_frames=0) as guest:
        sent = datagram(family, GUEST_PORT, free_port(family), b"to nobody")
        guest.sends_packets(sent)
        await guest.expects_drop("link to the guest full")
        guest.link.set_capacity(frames=None)
        guest.sends_packets(sent)
        await is_told(guest, family, PORT_UNREACHABLE, sent)


async def test_error_is_heard_while_the_socket_is_not_read() -> None:
    """At the latest when the link has room again."""
    async with on_stage() as guest:
        host = guest.host_udp(V4)
        port, flow = port_of(host), await exchange(guest, host, V4)
        guest.link.set_capacity(frames=0)
        host.sendto(b"waits", flow)
        await guest.settles()
        host.close()
        sent = datagram(V4, GUEST_PORT, port, b"to nobody")
        guest.sends_packets(sent)
        await guest.settles()
        guest.link.set_capacity(frames=None)
        await is_told(guest, V4, PORT_UNREACHABLE, sent)
        await hears(guest, V4, b"waits", (port, GUEST_PORT))


# -- forwarded ports ---------------------------------------------------------------------------------------------------


async def test_client_that_is_gone(guest: Stage, family: Family) -> None:
    """The port's socket is everybody's, but its errors are not."""
    port = guest.forwards(Protocol.UDP, TARGET)
    gone, there = guest.host_udp(family), guest.host_udp(family)
    for client in (gone, there):
        client.sendto(b"hello", (family.local, port))
        await hears(guest, family, b"hello", (port_of(client), TARGET))
    replies = [datagram(family, TARGET, port_of(client), b"reply to %d" % port_of(client)) for client in (gone, there)]
    gone.close()
    for _ in range(2):
        guest.sends_packets(*replies)
        await receives(there, b"reply to %d" % port_of(there))
        await is_told(guest, family, PORT_UNREACHABLE, replies[0])
        await guest.expects_nothing()
    assert guest.session.drops == {REFUSED: 2}
    there.sendto(b"hello", (family.local, port))
    await hears(guest, family, b"hello", (port_of(there), TARGET))


async def test_several_clients_that_are_gone_each_of_its_own(guest: Stage, family: Family) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    replies = []
    for number in range(5):
        client = guest.host_udp(family)
        client.sendto(b"hello", (family.local, port))
        await hears(guest, family, b"hello", (port_of(client), TARGET))
        replies.append(datagram(family, TARGET, port_of(client), b"reply %d" % number))
        client.close()
    guest.sends_packets(*replies)
    for reply in replies:
        await is_told(guest, family, PORT_UNREACHABLE, reply)
    await guest.expects_nothing()


async def test_remote_that_the_guest_spoke_to_first(guest: Stage, family: Family) -> None:
    guest.forwards(Protocol.UDP, TARGET)
    sent = datagram(family, TARGET, free_port(family), b"anybody?")
    for _ in range(2):
        guest.sends_packets(sent)
        await is_told(guest, family, PORT_UNREACHABLE, sent)
    await guest.expects_nothing()


async def test_errors_that_are_nobodys(guest: Stage, family: Family) -> None:
    """About a client's flow that is over, about a stranger, and about nobody knows whom."""
    port = guest.forwards(Protocol.UDP, TARGET)
    client, stranger = guest.host_udp(family), guest.host_udp(family)
    client.sendto(b"hello", (family.local, port))
    await hears(guest, family, b"hello", (port_of(client), TARGET))
    forwarded = guest.udp_port(TARGET, ip_address(family.local).packed)
    assert forwarded is not None
    origin, local = ORIGIN_ICMP if family is V4 else ORIGIN_ICMPV6, ip_address(family.local).packed
    error = DatagramError(errno.ECONNREFUSED, origin, *PORT_UNREACHABLE[family], 0, local, None, b"reply")
    about_client, about_stranger = (
        evolve(error, destination=Endpoint.of(sock.getsockname())) for sock in (client, stranger)
    )
    guest.dispatcher.on_datagram_error(forwarded, about_client)
    assert await guest.expects_error(), "as long as its flow lives"
    await guest.passes(IDLE_S + 1)
    for nobodys in (about_client, about_stranger, error):
        guest.dispatcher.on_datagram_error(forwarded, nobodys)
        await guest.expects_nothing()


async def test_error_about_a_socket_of_the_flows_own_is_not_the_forwarded_ports(guest: Stage) -> None:
    """Two names for one host: the flow that has the first one is not the one that has the error."""
    host = guest.host_udp(V4)
    await exchange(guest, host, V4, TARGET)
    port = guest.forwards(Protocol.UDP, TARGET)
    host.sendto(b"hello", ("127.0.0.1", port))
    seen = await guest.expects_datagram()
    assert seen.source_port != port_of(host)
    host.close()
    reply = datagram(V4, TARGET, seen.source_port, b"reply")
    guest.sends_packets(reply)
    await is_told(guest, V4, PORT_UNREACHABLE, reply)
    await guest.expects_nothing()


# -- no way there ------------------------------------------------------------------------------------------------------


async def test_no_route(namespace: None, guest: Stage, family: Family) -> None:
    """The namespace has but loopback."""
    for number in range(2):
        sent = datagram(family, GUEST_PORT, 9, b"%d" % number, remote=ELSEWHERE[family])
        guest.sends_packets(sent)
        await is_told(guest, family, NET_UNREACHABLE, sent)
    await guest.settles()
    assert guest.session.drops == {"udp: Network is unreachable": 2}
    assert len(guest.dispatcher.udp) == 0


@pytest.mark.parametrize(("route", "kind"), [("unreachable", HOST_UNREACHABLE), ("prohibit", PROHIBITED)])
async def test_route_that_says_no(
    namespace: None, guest: Stage, family: Family, route: str, kind: dict[Family, tuple[int, int]]
) -> None:
    has_no_way_to(route, ELSEWHERE_SUBNET[family])
    sent = datagram(family, GUEST_PORT, 9, b"anybody?", remote=ELSEWHERE[family])
    guest.sends_packets(sent)
    await is_told(guest, family, kind, sent)
    await guest.expects_nothing()


@pytest.mark.parametrize(("route", "kind"), [("unreachable", HOST_UNREACHABLE), ("prohibit", PROHIBITED)])
async def test_no_route_from_a_forwarded_port(
    namespace: None, guest: Stage, family: Family, route: str, kind: dict[Family, tuple[int, int]]
) -> None:
    """Here it is the kernel's answer to `sendmsg`; the flow goes on."""
    has_no_way_to(route, ELSEWHERE_SUBNET[family])
    guest.forwards(Protocol.UDP, TARGET)
    for number in range(2):
        sent = datagram(family, TARGET, 9, b"%d" % number, remote=ELSEWHERE[family])
        guest.sends_packets(sent)
        await is_told(guest, family, kind, sent)
    await guest.expects_nothing()
    assert len(guest.dispatcher.udp) == 1
    assert sum(guest.session.drops.values()) == 2


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENETUNREACH, NET_UNREACHABLE),
        (errno.EHOSTUNREACH, HOST_UNREACHABLE),
        (errno.EPERM, PROHIBITED),
    ],
)
async def test_kernel_that_refuses_to_send(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch, number: int, kind: dict[Family, tuple[int, int]]
) -> None:
    """A firewall's rule, or a route that has gone since.  Told once, though it is tried twice."""
    host = guest.host_udp(family)
    await exchange(guest, host, family)

    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    sent = datagram(family, GUEST_PORT, port_of(host), b"goes nowhere")
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "send", refuse)
        guest.sends_packets(sent)
        await is_told(guest, family, kind, sent)
        await guest.expects_nothing()
    assert guest.session.drops == {f"udp: {os.strerror(number)}": 1}
    await exchange(guest, host, family)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_want_of_the_hosts_is_not_told(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object) -> tuple[socket.socket, bool]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets, "open_udp", fail)
    guest.sends_datagram(family, GUEST_PORT, 9, b"request")
    await guest.expects_drop(f"udp: {os.strerror(number)}")
    await guest.expects_nothing()


# -- too large for the path --------------------------------------------------------------------------------------------


@pytest.fixture
def unfragmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that would rather fail than make fragments, as where a system is set so (ip(7), ip_no_pmtu_disc)."""
    open_udp = sockets.open_udp

    def open_so(
        peer: Endpoint, port: int = 0, sharing: Sequence[socket.socket] = (), way: Way | None = None
    ) -> tuple[socket.socket, bool]:
        sock, has_port = open_udp(peer, port, sharing, way)
        if peer.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: linux/in.h
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER
        return sock, has_port

    monkeypatch.setattr(sockets, "open_udp", open_so)


async def test_mtu_of_the_path_is_told(namespace: None, unfragmented: None, guest: Stage, family: Family) -> None:
    loopback_carries(1500)
    host = guest.host_udp(family)
    sent = datagram(family, GUEST_PORT, port_of(host), bytes(3000))
    guest.sends_packets(sent)
    await is_told(guest, family, TOO_BIG, sent, info=1500)
    await guest.expects_nothing()
    assert guest.session.drops == {"udp: Message too long": 1}
    await exchange(guest, host, family)


async def test_mtu_is_told_of_one_among_others(
    namespace: None, unfragmented: None, guest: Stage, family: Family
) -> None:
    """The kernel does not say which one it was."""
    loopback_carries(1500)
    host = guest.host_udp(family)
    sent = [datagram(family, GUEST_PORT, port_of(host), bytes(size)) for size in (100, 3000, 200)]
    guest.sends_packets(*sent)
    await receives(host, bytes(100), bytes(200))
    error = await guest.expects_error()
    assert (error.type, error.code, error.info) == (*TOO_BIG[family], 1500)
    assert error.quoted in {packet[: QUOTED_BYTES[family]] for packet in sent}


# -- what loopback does not say ----------------------------------------------------------------------------------------

Says = Callable[[DatagramError], None]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Have the kernel say something else, once, of what is refused."""
    read = error_queue.read

    def instead(said: DatagramError) -> None:
        waiting = [said]

        def read_instead(sock: socket.socket) -> DatagramError | None:
            error = read(sock)
            return waiting.pop() if error is not None and waiting else error

        monkeypatch.setattr(error_queue, "read", read_instead)

    return instead


ROUTER = {V4: "203.0.113.1", V6: "2001:db8:9::1"}


def from_a_router(family: Family, type_: int, code: int, info: int = 0, quoted: bytes = b"") -> DatagramError:
    origin = ORIGIN_ICMP if family is V4 else ORIGIN_ICMPV6
    return DatagramError(errno.EHOSTUNREACH, origin, type_, code, info, ip_address(ROUTER[family]).packed, None, quoted)


@pytest.mark.parametrize(
    ("family", "type_", "code", "info"),
    [
        (V4, 11, 0, 0),  # time exceeded in transit
        (V4, 3, 1, 0),  # host unreachable
        (V4, 3, 4, 1400),  # fragmentation needed
        (V4, 3, 13, 0),  # administratively prohibited
        (V6, 3, 0, 0),  # hop limit exceeded
        (V6, 1, 3, 0),  # address unreachable
        (V6, 2, 0, 1400),  # packet too big
        (V6, 4, 1, 40),  # parameter problem
    ],
)
@pytest.mark.parametrize("quoted", [0, 8, 1000])
async def test_router_on_the_path_is_the_one_that_says_it(
    guest: Stage, family: Family, says: Says, type_: int, code: int, info: int, quoted: int
) -> None:
    """However little of the datagram it has quoted."""
    payload = os.urandom(700)
    says(from_a_router(family, type_, code, info, payload[:quoted]))
    sent = datagram(family, GUEST_PORT, free_port(family), payload, hop_limit=3)
    guest.sends_packets(sent)
    error = await guest.expects_error()
    assert (error.source, error.destination) == (ROUTER[family], family.guest)
    assert (error.type, error.code, error.info) == (type_, code, info)
    assert error.quoted == sent[: QUOTED_BYTES[family]]
    await guest.expects_nothing()


@pytest.mark.parametrize(("family", "type_"), [(V4, 4), (V4, 5), (V4, 8), (V6, 128), (V6, 137)])
async def test_what_is_no_error_is_not_passed_on(guest: Stage, family: Family, says: Says, type_: int) -> None:
    """Source quench (RFC 6633), redirects."""
    says(from_a_router(family, type_, 0))
    guest.sends_datagram(family, GUEST_PORT, free_port(family), b"x")
    await guest.expects_nothing()


async def test_error_about_a_datagram_before_the_last(guest: Stage, family: Family, says: Says) -> None:
    """What is quoted of it is not the last one's beginning: so it is made from the quote."""
    host = guest.host_udp(family)
    port = port_of(host)
    await exchange(guest, host, family)
    says(from_a_router(family, *((11, 0) if family is V4 else (3, 0)), quoted=b"request"))
    host.close()
    guest.sends_datagram(family, GUEST_PORT, port, b"another one")
    error = await guest.expects_error()
    assert error.quoted == datagram(family, GUEST_PORT, port, b"request")
