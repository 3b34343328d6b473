"""The guest's pings through the kernel's ping sockets, in a namespace that allows them."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from echo_script import reply, reply_in_fragments, request
from harness.own_namespace import answer_for, has_a_way_again, has_no_way_to, loopback_carries, own_namespace
from harness.parts import fragments
from harness.stage import Family, Stage, network, on_stage

from trio_passt.host import sockets
from trio_passt.host.outbound import Way
from trio_passt.icmp.flow import IDLE_S

IN_NAMESPACE = "TRIO_PASST_TEST_IN_NAMESPACE"
may_not = os.geteuid() != 0

in_namespace = pytest.mark.usefixtures("namespace", "standing_clock")


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test's sockets are in a namespace of its own."""
    if may_not:
        pytest.skip("in a user namespace, by test_the_same_without_root")
    with own_namespace():
        yield


@pytest.mark.skipif(not may_not or IN_NAMESPACE in os.environ, reason="is root already")
def test_the_same_without_root() -> None:
    unshare = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, or user namespaces")
    result = subprocess.run(
        [*unshare, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {IN_NAMESPACE: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@in_namespace
async def test_identifier_sequence_number_and_data_come_back(guest: Stage, family: Family) -> None:
    for sequence in (1, 2, 3, 65535, 0):
        guest.sends_packets(request(family, 0x1234, sequence, b"ping %d" % sequence))
        assert await reply(guest, family) == (0x1234, sequence, b"ping %d" % sequence)
    assert len(guest.dispatcher.echo) == 1
    await guest.expects_nothing()
    assert not guest.session.drops


@in_namespace
async def test_hosts_socket_has_the_guests_identifier(guest: Stage, family: Family) -> None:
    guest.sends_packets(request(family, 4711, 1))
    assert await reply(guest, family) == (4711, 1, b"")
    with sockets.open_ping(len(family.guest_packed), 4711) as other:
        assert other.getsockname()[1] != 4711


@in_namespace
async def test_identifier_that_is_in_use_on_the_host(guest: Stage, family: Family) -> None:
    with sockets.open_ping(len(family.guest_packed), 4711) as other:
        assert other.getsockname()[1] == 4711
        for sequence in (1, 2):
            guest.sends_packets(request(family, 4711, sequence, b"mine"))
            assert await reply(guest, family) == (4711, sequence, b"mine")
        with pytest.raises(BlockingIOError):
            other.recv(100)


@in_namespace
@pytest.mark.parametrize("identifier", [0, 1, 65535])
async def test_any_identifier_will_do(guest: Stage, family: Family, identifier: int) -> None:
    guest.sends_packets(request(family, identifier, 1, b"x"))
    assert await reply(guest, family) == (identifier, 1, b"x")


@in_namespace
async def test_several_pings_at_once(guest: Stage, family: Family) -> None:
    wanted = {(identifier, sequence, b"%d" % identifier) for identifier in (1, 2, 3) for sequence in range(20)}
    guest.sends_packets(*(request(family, *echo) for echo in sorted(wanted, key=lambda echo: echo[1])))
    got = [await reply(guest, family) for _ in wanted]
    assert set(got) == wanted
    for identifier in (1, 2, 3):
        assert [echo[1] for echo in got if echo[0] == identifier] == list(range(20))
    assert len(guest.dispatcher.echo) == 3
    await guest.expects_nothing()


@in_namespace
async def test_one_identifier_and_several_remotes(guest: Stage, family: Family) -> None:
    """As fping and mtr do it.  All see one address of the host's, so the identifier alone tells their replies apart."""
    host, subnet = ("192.0.2.1/32", "203.0.113.0/24") if family.version == 4 else ("2001:db8::1/128", "2001:db8:9::/64")
    answer_for(subnet, source=host)
    base = "203.0.113." if family.version == 4 else "2001:db8:9::"
    remotes = [f"{base}{last}" for last in (1, 2, 3)]
    for sequence in (1, 2):
        for remote in remotes:
            guest.sends_packets(request(family, 9, sequence, remote.encode(), remote))
        for remote in remotes:
            assert await reply(guest, family, remote) == (9, sequence, remote.encode())
    assert len(guest.dispatcher.echo) == 3


@in_namespace
@pytest.mark.parametrize("size", [0, 1, 56, 1473, 9000, 65472])
async def test_sizes(guest: Stage, family: Family, size: int) -> None:
    data = os.urandom(size)
    guest.sends_packets(request(family, 9, 1, data))
    assert await reply(guest, family) == (9, 1, data)


@in_namespace
@pytest.mark.parametrize("mtu_bytes", [1280, 1500])
async def test_reply_beyond_the_guests_mtu_comes_in_fragments(family: Family, mtu_bytes: int) -> None:
    """As the request has come; the host's own MTU is another matter."""
    async with on_stage(network(mtu_bytes=mtu_bytes)) as guest:
        largest = mtu_bytes - (28 if family.version == 4 else 48)
        for sequence, size in enumerate((largest + 1, 4000, 60_000)):
            data = os.urandom(size)
            guest.sends_packets(*fragments(request(family, 9, sequence, data), mtu_bytes, sequence))
            assert await reply_in_fragments(guest, family) == (9, sequence, data)
        guest.sends_packets(request(family, 9, 77, bytes(largest)))
        assert await reply(guest, family) == (9, 77, bytes(largest))
        await guest.expects_nothing()
        assert not guest.session.drops


@in_namespace
async def test_request_that_is_larger_than_the_hosts_mtu(guest: Stage, family: Family) -> None:
    loopback_carries(1500)
    data = os.urandom(9000)
    guest.sends_packets(request(family, 9, 1, data))
    assert await reply(guest, family) == (9, 1, data)


@in_namespace
async def test_hop_limit_is_the_guests(guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """So `traceroute -I` shows the real path."""
    opened: list[socket.socket] = []
    open_ping = sockets.open_ping

    def watched(address_bytes: int, identifier: int, way: Way | None = None) -> socket.socket:
        opened.append(open_ping(address_bytes, identifier, way))
        return opened[-1]

    monkeypatch.setattr(sockets, "open_ping", watched)
    option = (socket.IPPROTO_IP, socket.IP_TTL)
    if family.version == 6:
        option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    for sequence, hop_limit in enumerate((64, 1, 2, 255, 64)):
        guest.sends_packets(request(family, 9, sequence, hop_limit=hop_limit))
        assert await reply(guest, family) == (9, sequence, b"")
        (sock,) = opened
        assert sock.getsockopt(*option) == hop_limit


@in_namespace
async def test_silence_ends_a_flow(guest: Stage, family: Family) -> None:
    guest.sends_packets(request(family, 9, 1))
    await reply(guest, family)
    await guest.passes(IDLE_S - 1)
    guest.sends_packets(request(family, 9, 2))
    await reply(guest, family)
    await guest.passes(IDLE_S - 1)
    assert len(guest.dispatcher.echo) == 1
    await guest.passes(2)
    assert len(guest.dispatcher.echo) == 0
    with sockets.open_ping(len(family.guest_packed), 9) as other:
        assert other.getsockname()[1] == 9
    guest.sends_packets(request(family, 9, 3))
    assert await reply(guest, family) == (9, 3, b"")


NO_WAY = {
    # the route; the error; ICMP's type and code; ICMPv6's (RFC 1812 section 5.2.7.1; RFC 4443 section 3.1)
    None: (errno.ENETUNREACH, (3, 0), (1, 0)),
    "unreachable": (errno.EHOSTUNREACH, (3, 1), (1, 3)),
    "prohibit": (errno.EACCES, (3, 13), (1, 1)),
}


@in_namespace
@pytest.mark.parametrize("route", NO_WAY)
async def test_destination_without_a_way_there(guest: Stage, family: Family, route: str | None) -> None:
    """The guest hears what the host's kernel says, from its gateway, about each request."""
    remote, subnet = ("203.0.113.77", "203.0.113.0/24") if family.version == 4 else ("2001:db8:9::9", "2001:db8:9::/64")
    if route is not None:
        has_no_way_to(route, subnet)
    number, *kinds = NO_WAY[route]
    for sequence in (1, 2):
        sent = request(family, 9, sequence, b"data", remote)
        guest.sends_packets(sent)
        told = await guest.expects_error()
        assert (told.source, told.destination) == (family.gateway, family.guest)
        assert (told.type, told.code) == kinds[family.version == 6]
        assert (told.info, told.quoted) == (0, sent)
        await guest.settles()
        assert len(guest.dispatcher.echo) == 0
    assert guest.session.drops == {f"echo: {os.strerror(number)}": 2}


@in_namespace
async def test_way_there_that_is_gone_since(guest: Stage, family: Family) -> None:
    """The kernel says so when the next request is sent; the flow ends, since another socket may have a way again."""
    host, subnet = ("192.0.2.1/32", "203.0.113.0/24") if family.version == 4 else ("2001:db8::1/128", "2001:db8:9::/64")
    remote = "203.0.113.7" if family.version == 4 else "2001:db8:9::7"
    answer_for(subnet, source=host)
    guest.sends_packets(request(family, 9, 1, b"", remote))
    assert await reply(guest, family, remote) == (9, 1, b"")
    has_no_way_to("unreachable", f"{remote}/{32 if family.version == 4 else 128}")
    sent = request(family, 9, 2, b"data", remote)
    guest.sends_packets(sent)
    told = await guest.expects_error()
    assert (told.source, told.type, told.code) == (family.gateway, *((3, 1) if family.version == 4 else (1, 3)))
    assert told.quoted == sent
    await guest.expects_nothing()
    assert len(guest.dispatcher.echo) == 0
    assert guest.session.drops == {"echo: No route to host": 1}
    has_a_way_again("unreachable", f"{remote}/{32 if family.version == 4 else 128}")
    guest.sends_packets(request(family, 9, 3, b"again", remote))
    assert await reply(guest, family, remote) == (9, 3, b"again")


@in_namespace
async def test_guest_that_goes_takes_its_sockets_along(guest: Stage, family: Family) -> None:
    guest.sends_packets(request(family, 9, 1))
    await reply(guest, family)
    guest.link.disconnect()
    await guest.settles()
    with sockets.open_ping(len(family.guest_packed), 9) as other:
        assert other.getsockname()[1] == 9


@in_namespace
async def test_ping_sockets_are_given_back_when_no_identifier_is_left(
    monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    class NoIdentifiers(socket.socket):
        def bind(self, _address: object) -> None:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket, "socket", NoIdentifiers)
    with pytest.raises(OSError, match="already in use"):
        sockets.open_ping(len(family.guest_packed), 9)
