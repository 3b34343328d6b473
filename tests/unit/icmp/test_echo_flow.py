"""Echo flows where the kernel is not the point: no permission, full inboxes and links, errors of the host's socket."""

import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from echo_script import reply, request
from harness.stage import V4, V6, Family, Stage, network, on_stage

from trio_passt.host import sockets
from trio_passt.icmp.flow import INBOX_REQUESTS, REPLIES_PER_TURN, check_permission, warn_no_permission

pytestmark = pytest.mark.usefixtures("standing_clock")

ELSEWHERE = {V4: "203.0.113.9", V6: "2001:db8:9::9"}


class FakePing(socket.socket):
    """One end of a pair of datagram sockets that passes for a ping socket; errors may be put into its way."""

    fails_to_send: list[OSError]
    fails_to_receive: list[OSError]
    peer: Any

    def connect(self, address: Any) -> None:
        """There is nothing to connect to, but for the address that replies come from."""
        self.peer = address

    def send(self, data: Any, flags: int = 0) -> int:
        if self.fails_to_send:
            raise self.fails_to_send.pop()
        return super().send(data, flags)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        if self.fails_to_receive:
            raise self.fails_to_receive.pop()
        return self.recv(size, flags), self.peer


class FakeHost:
    """What the flow's ping socket talks to."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.ping = FakePing(fileno=near.detach())
        self.ping.fails_to_send, self.ping.fails_to_receive = [], []
        self.requests: list[tuple[int, int]] = []

    def open(self, address_bytes: int, identifier: int) -> socket.socket:
        self.requests.append((address_bytes, identifier))
        return self.ping

    def close(self) -> None:
        self.ping.close()
        self.far.close()


@pytest.fixture
def host(guest: Stage, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The host's side of the one echo flow of a test."""
    fake = FakeHost()
    guest.opened.callback(fake.close)
    monkeypatch.setattr(sockets, "open_ping", fake.open)
    return fake


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def kernels_reply(family: Family, identifier: int, sequence: int, data: bytes = b"") -> bytes:
    """As a ping socket gives it; the checksum has been looked at already."""
    kind = 0 if family.version == 4 else 129
    return bytes((kind, 0, 0, 0)) + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + data


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


async def test_more_replies_than_one_turns_because_of_errors(guest: Stage, host: FakeHost) -> None:
    guest.sends_packets(request(V4, 9, 0))
    await guest.settles()
    host.ping.fails_to_receive = [error(errno.EHOSTUNREACH) for _ in range(REPLIES_PER_TURN)]
    host.far.send(kernels_reply(V4, 9, 1))
    assert await reply(guest, V4) == (9, 1, b"")
    assert guest.session.drops == {"echo: No route to host": REPLIES_PER_TURN}


async def test_errors_are_counted_and_the_flow_lives(guest: Stage, host: FakeHost, family: Family) -> None:
    host.ping.fails_to_send = [error(errno.EMSGSIZE), error(errno.EAGAIN)]
    guest.sends_packets(request(family, 9, 1), request(family, 9, 2), request(family, 9, 3))
    await guest.settles()
    assert host.far.recv(100)[6:8] == b"\0\3"
    host.ping.fails_to_receive = [error(errno.EHOSTUNREACH)]
    host.far.send(kernels_reply(family, 9, 3))
    assert await reply(guest, family) == (9, 3, b"")
    assert guest.session.drops == {f"echo: {os.strerror(number)}": 1 for number in (90, 11, 113)}


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


def raiser(failure: OSError) -> Callable[[int, int], socket.socket]:
    def fail(_address_bytes: int, _identifier: int) -> socket.socket:
        raise failure

    return fail


def no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "open_ping", raiser(PermissionError(errno.EACCES, "Permission denied")))
    warn_no_permission.cache_clear()


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


@pytest.mark.parametrize("remote", ["127.0.0.1", "127.0.0.53", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
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
    async with on_stage(flow_limit=1) as guest:
        no_permission(monkeypatch)
        guest.sends_packets(request(V4, 1, 1), request(V4, 2, 1))
        assert await reply(guest, V4) == (1, 1, b"")
        await guest.expects_drop("echo: limit of flows")


@pytest.mark.parametrize(("error", "lines"), [(errno.EACCES, 1), (errno.EMFILE, 0), (None, 0)])
async def test_permission_is_checked_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int | None, lines: int
) -> None:
    near, far = socket.socketpair()
    far.close()

    def open_ping(_address_bytes: int, _identifier: int) -> socket.socket:
        if error is not None:
            raise OSError(error, os.strerror(error))
        return near

    monkeypatch.setattr(sockets, "open_ping", open_ping)
    warn_no_permission.cache_clear()
    check_permission()
    near.close()
    assert len([record for record in caplog.records if "net.ipv4.ping_group_range" in record.message]) == lines
