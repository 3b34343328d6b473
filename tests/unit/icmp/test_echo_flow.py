"""Echo flows where the kernel is not the point: no permission, full inboxes and links, errors of the host's socket."""

import errno
import logging
import os
import socket
from ipaddress import ip_address

import pytest
from attrs import evolve
from echo_script import reply, request
from fake_ping import ELSEWHERE, FakeHost, error, kernels_reply, no_permission, raiser
from harness.stage import V4, V6, Family, Stage, network, on_stage

from trio_passt.config import HostAddress
from trio_passt.host import sockets
from trio_passt.icmp.flow import INBOX_REQUESTS, REPLIES_PER_TURN, check_permission, warn_no_permission

pytestmark = pytest.mark.usefixtures("standing_clock")


async def test_request_is_what_a_ping_socket_wants(guest: Stage, host: FakeHost, family: Family) -> None:
    """Type, code, a checksum that the kernel fills in, identifier (filled in too), sequence number, data."""
    guest.sends_packets(request(family, 9, 7, b"data"))
    await guest.settles()
    kind = 8 if family.version == 4 else 128
    assert host.far.recv(100) == bytes((kind, 0, 0, 0, 0, 9, 0, 7)) + b"data"
    assert host.requests == [(len(family.guest_packed), 9)]


async def test_guest_gets_its_own_identifier_back(guest: Stage, host: FakeHost, family: Family) -> None:
    guest.sends_packets(request(family, 9, 7, b"data"))
    await guest.settles()
    host.far.send(kernels_reply(family, 54321, 7, b"data"))
    assert await reply(guest, family) == (9, 7, b"data")


async def test_other_messages_are_no_replies(guest: Stage, host: FakeHost, family: Family) -> None:
    guest.sends_packets(request(family, 9, 7))
    await guest.settles()
    good = kernels_reply(family, 9, 7)
    for packet in (b"", good[:7], b"\x03" + good[1:], b"\x08" + good[1:], b"\x80" + good[1:]):
        host.far.send(packet)
    await guest.expects_nothing()
    host.far.send(good)
    assert await reply(guest, family) == (9, 7, b"")


async def test_reply_of_somebody_else_is_none(guest: Stage, host: FakeHost, family: Family) -> None:
    guest.sends_packets(request(family, 9, 7))
    await guest.settles()
    asked, host.ping.peer = host.ping.peer, (ELSEWHERE[family], 0)
    host.far.send(kernels_reply(family, 9, 7))
    await guest.expects_nothing()
    host.ping.peer = asked
    host.far.send(kernels_reply(family, 9, 7))
    assert await reply(guest, family) == (9, 7, b"")


async def test_more_replies_than_one_turns(guest: Stage, host: FakeHost) -> None:
    guest.sends_packets(request(V4, 9, 0))
    await guest.settles()
    host.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sent = 0
    try:
        for sequence in range(2 * REPLIES_PER_TURN + 1):
            host.far.send(kernels_reply(V4, 9, sequence))
            sent += 1
    except BlockingIOError:
        pass  # net.unix.max_dgram_qlen
    for sequence in range(sent):
        assert await reply(guest, V4) == (9, sequence, b"")


async def test_reply_that_comes_after_errors(guest: Stage, host: FakeHost) -> None:
    guest.sends_packets(request(V4, 9, 0))
    await guest.settles()
    host.ping.fails_to_receive = [error(errno.EHOSTUNREACH) for _ in range(REPLIES_PER_TURN)]
    host.far.send(kernels_reply(V4, 9, 1))
    assert await reply(guest, V4) == (9, 1, b"")


async def test_error_of_an_earlier_request_does_not_cost_the_next(guest: Stage, host: FakeHost, family: Family) -> None:
    """The kernel raises it in the place of sending: it is tried again."""
    host.ping.fails_to_send = [error(errno.EHOSTUNREACH)]
    guest.sends_packets(request(family, 9, 1))
    await guest.settles()
    assert host.far.recv(100)[6:8] == b"\0\1"
    assert not guest.session.drops


async def test_request_that_is_not_taken_is_counted_and_the_flow_lives(
    guest: Stage, host: FakeHost, family: Family
) -> None:
    host.ping.fails_to_send = [error(errno.EMSGSIZE), error(errno.EMSGSIZE)]
    guest.sends_packets(request(family, 9, 1), request(family, 9, 2), request(family, 9, 3))
    await guest.settles()
    assert [host.far.recv(100)[6:8] for _ in range(2)] == [b"\0\2", b"\0\3"]
    host.ping.fails_to_receive = [error(errno.EHOSTUNREACH)]
    host.far.send(kernels_reply(family, 9, 3))
    assert await reply(guest, family) == (9, 3, b"")
    assert guest.session.drops == {"echo: Message too long": 1}


async def test_inbox_is_bounded(guest: Stage, host: FakeHost, family: Family) -> None:
    guest.sends_packets(*(request(family, 9, sequence) for sequence in range(INBOX_REQUESTS + 5)))
    await guest.expects_drop("echo: too many requests at once", 5)


async def test_full_link_is_counted(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    async with on_stage(capacity_frames=1) as guest:
        no_permission(monkeypatch)
        guest.sends_packets(request(family, 9, 1), request(family, 9, 2))
        await guest.expects_drop("echo: link to the guest full")
        assert await reply(guest, family) == (9, 1, b"")


async def test_host_that_can_open_no_socket_is_counted(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    monkeypatch.setattr(sockets, "open_ping", raiser(error(errno.EMFILE)))
    guest.sends_packets(request(family, 9, 1))
    await guest.expects_drop("echo: Too many open files")
    await guest.settles()
    assert len(guest.dispatcher.echo) == 0


async def test_without_permission_the_host_is_answered_for_by_us(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    no_permission(monkeypatch)
    for sequence in (1, 2):
        guest.sends_packets(request(family, 9, sequence, b"data"))
        assert await reply(guest, family) == (9, sequence, b"data")
    guest.sends_packets(request(family, 9, 3, b"data", ELSEWHERE[family]))
    await guest.expects_drop("echo: no permission for ping sockets")
    await guest.expects_nothing()
    assert sum(guest.session.drops.values()) == 1


async def test_without_permission_whatever_stands_for_the_host_is_answered_for(
    monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    """And the gateway is not, if it is itself."""
    no_permission(monkeypatch)
    mapped = {V4: ("192.0.2.77", "192.0.2.78"), V6: ("2001:db8::77", "2001:db8::78")}[family]
    on_host = (ip_address(family.local), ip_address(family.guest))
    host_addresses = tuple(HostAddress(ip_address(seen), host) for seen, host in zip(mapped, on_host, strict=True))
    async with on_stage(evolve(network(), host_addresses=host_addresses)) as guest:
        for remote in mapped:
            guest.sends_packets(request(family, 9, 1, b"data", remote))
            assert await reply(guest, family, remote) == (9, 1, b"data")
        guest.sends_packets(request(family, 9, 2, b"data"))
        await guest.expects_drop("echo: no permission for ping sockets")
        await guest.expects_nothing()


async def test_without_permission_there_is_one_warning(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_permission(monkeypatch)
    with caplog.at_level(logging.WARNING, "trio_passt"):
        for family in (V4, V6):
            for identifier in (1, 2):
                guest.sends_packets(request(family, identifier, 1))
                assert await reply(guest, family) == (identifier, 1, b"")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "net.ipv4.ping_group_range" in record.getMessage()


@pytest.mark.parametrize(
    ("family", "remote"),
    [(V4, "224.0.0.1"), (V4, "255.255.255.255"), (V4, "198.51.100.255"), (V6, "ff02::1")],
)
async def test_neighbours_are_not_there(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family, remote: str
) -> None:
    no_permission(monkeypatch)
    guest.sends_packets(request(family, 9, 1, b"", remote))
    await guest.expects_drop("multicast or broadcast")
    await guest.expects_nothing()


@pytest.mark.parametrize("remote", ["127.0.0.1", "127.0.0.53", "0.0.0.0"])
async def test_address_that_is_no_ones(guest: Stage, monkeypatch: pytest.MonkeyPatch, remote: str) -> None:
    no_permission(monkeypatch)
    guest.sends_packets(request(V4, 9, 1, b"", remote))
    await guest.expects_drop("addresses of no flow")
    await guest.expects_nothing()


async def test_family_that_is_off(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    async with on_stage(network(ipv4=family.version != 4, ipv6=family.version != 6)) as guest:
        no_permission(monkeypatch)
        guest.sends_packets(request(family, 9, 1))
        await guest.expects_drop("address family is off")
        await guest.expects_nothing()


async def test_limit_of_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has been idle for longest makes way, and comes back by its next request."""
    async with on_stage(flow_limit=2) as guest:
        no_permission(monkeypatch)
        for identifier in (1, 2, 1, 3, 1):
            guest.sends_packets(request(V4, identifier, 1))
            assert await reply(guest, V4) == (identifier, 1, b"")
            await guest.passes(1)
        keys = {flow.key.guest_port for flow in guest.dispatcher.echo}
        assert keys == {1, 3}
        for identifier in (2, 3, 1):
            guest.sends_packets(request(V4, identifier, 2))
            assert await reply(guest, V4) == (identifier, 2, b"")
        assert not guest.session.drops


async def test_more_new_flows_in_one_batch_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped is counted, and later ones are served."""
    async with on_stage(flow_limit=2) as guest:
        no_permission(monkeypatch)
        guest.sends_packets(*(request(V4, identifier, 1) for identifier in range(20)))
        await guest.settles()
        there = len(guest.link.take_sent())
        assert there >= 2
        assert there + guest.session.drops["echo: limit of flows"] == 20
        guest.sends_packets(request(V4, 99, 1))
        assert await reply(guest, V4) == (99, 1, b"")


async def test_socket_of_one_that_made_way_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_stage(flow_limit=1) as guest:
        hosts = [FakeHost(), FakeHost()]
        for fake in hosts:
            guest.opened.callback(fake.close)
        left = iter(hosts)
        monkeypatch.setattr(sockets, "open_ping", lambda *arguments: next(left).open(*arguments))
        guest.sends_packets(request(V4, 1, 1))
        await guest.settles()
        guest.sends_packets(request(V4, 2, 1))
        await guest.settles()
        assert [fake.ping.fileno() >= 0 for fake in hosts] == [False, True]


@pytest.mark.parametrize(("error", "lines"), [(errno.EACCES, 1), (errno.EMFILE, 0), (None, 0)])
async def test_permission_is_checked_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int | None, lines: int
) -> None:
    near, far = socket.socketpair()
    far.close()

    def open_ping(*_arguments: object) -> socket.socket:
        if error is not None:
            raise OSError(error, os.strerror(error))
        return near

    monkeypatch.setattr(sockets, "open_ping", open_ping)
    warn_no_permission.cache_clear()
    check_permission()
    near.close()
    assert len([record for record in caplog.records if "net.ipv4.ping_group_range" in record.message]) == lines
