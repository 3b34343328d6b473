"""The guest's pings through the kernel's ping sockets, in a namespace that allows them."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from echo_script import reply, request
from harness.own_namespace import answer_for, own_namespace
from harness.stage import Family, Stage, network, on_stage

from trio_passt.host import sockets
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
async def test_reply_beyond_the_guests_mtu_is_dropped(family: Family) -> None:
    async with on_stage(network(mtu_bytes=1500)) as guest:
        largest = 1500 - (28 if family.version == 4 else 48)
        guest.sends_packets(request(family, 9, 1, bytes(largest + 1)), request(family, 9, 2, bytes(largest)))
        assert await reply(guest, family) == (9, 2, bytes(largest))
        assert guest.session.drops == {"echo: larger than the guest's MTU": 1}


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


@in_namespace
async def test_destination_without_a_route_is_counted(guest: Stage, family: Family) -> None:
    remote = "203.0.113.77" if family.version == 4 else "2001:db8:9::9"
    guest.sends_packets(request(family, 9, 1, b"", remote))
    await guest.expects_drop("echo: Network is unreachable")
    await guest.settles()
    assert len(guest.dispatcher.echo) == 0


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
