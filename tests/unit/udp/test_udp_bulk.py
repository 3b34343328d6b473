"""Datagrams of one batch go out together where they are of one size, and arrive as they were sent."""

import errno
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
from attrs import frozen
from harness.own_namespace import loopback_carries
from harness.stage import Family, Stage
from udp_script import datagram, exchange, hears, is_asked, port_of, received, receives

from trio_passt.config import Protocol
from trio_passt.host import datagrams
from trio_passt.host.datagrams import BULK_IN_A_ROW, SEGMENTS_MOST, UDP_SEGMENT

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353
NOISE = random.Random(2).randbytes(80_000)

SIZES = {
    "one size": [1400] * 40,
    "a shorter last one": [1400] * 10 + [300],
    "two": [100, 100],
    "growing": list(range(20, 60)),
    "shrinking": list(range(60, 20, -1)),
    "more than may be one": [100] * (2 * SEGMENTS_MOST + 3),
    "larger than may be one together": [9000] * 20,
    "none of them empty but some": [50, 50, 0, 0, 50, 50, 0],
    "the largest": [65472, 65472],
}


@frozen
class Sent:
    """One `sendmsg`."""

    sizes: list[int]
    segment_bytes: int | None


@pytest.fixture
def sendmsgs(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Every one from now on, which the kernel gets nonetheless."""
    seen: list[Sent] = []
    sendmsg = socket.socket.sendmsg

    def record(
        sock: socket.socket,
        payloads: Sequence[memoryview],
        ancillary: Sequence[tuple[int, int, bytes]] = (),
        *rest: object,
    ) -> int:
        sizes = [
            int.from_bytes(data[:2], "little")
            for level, kind, data in ancillary
            if (level, kind) == (socket.IPPROTO_UDP, UDP_SEGMENT)
        ]
        seen.append(Sent(list(map(len, payloads)), sizes[0] if sizes else None))
        return sendmsg(sock, payloads, ancillary, *rest)

    monkeypatch.setattr(socket.socket, "sendmsg", record)
    return seen


def payloads_of(sizes: list[int]) -> list[bytes]:
    """No two are alike."""
    return [NOISE[number * 13 :][:size] for number, size in enumerate(sizes)]


def sends(guest: Stage, family: Family, guest_port: int, host: socket.socket, payloads: list[bytes]) -> None:
    """One batch of the guest's."""
    guest.sends_packets(*(datagram(family, guest_port, port_of(host), payload) for payload in payloads))


def with_room(sock: socket.socket) -> socket.socket:
    """A receive buffer for all that a test sends."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return sock


@pytest.mark.parametrize("kind", SIZES)
async def test_all_arrive_in_order_and_of_the_right_size(guest: Stage, family: Family, kind: str) -> None:
    host = with_room(guest.host_udp(family))
    payloads = payloads_of(SIZES[kind])
    sends(guest, family, 5000, host, payloads)
    await receives(host, *payloads)
    assert not guest.session.drops


@pytest.mark.parametrize("kind", SIZES)
async def test_all_replies_of_a_forwarded_port_arrive(guest: Stage, family: Family, kind: str) -> None:
    port = guest.forwards(Protocol.UDP, TARGET)
    client = with_room(guest.host_udp(family))
    client.sendto(b"hello", (family.local, port))
    await hears(guest, family, b"hello", (port_of(client), TARGET))
    payloads = payloads_of(SIZES[kind])
    sends(guest, family, TARGET, client, payloads)
    assert await receives(client, *payloads) == (family.local, port)
    assert not guest.session.drops


async def test_those_of_one_size_are_one_call(guest: Stage, family: Family, sendmsgs: list[Sent]) -> None:
    host = guest.host_udp(family)
    await is_asked(guest, host, family)
    sends(guest, family, 5000, host, payloads_of([100] * 5 + [30] + [200] * 3))
    for size in [100] * 5 + [30] + [200] * 3:
        assert len((await received(host))[0]) == size
    assert sendmsgs == [Sent([100] * 5 + [30], 100), Sent([200] * 3, 200)]


async def test_several_flows_in_turns_are_one_call_each(guest: Stage, family: Family, sendmsgs: list[Sent]) -> None:
    host = guest.host_udp(family)
    payloads = payloads_of([100] * 10)
    guest.sends_packets(
        *(datagram(family, port, port_of(host), payload) for payload in payloads for port in (5000, 5001))
    )
    for _ in range(20):
        await received(host)
    assert sendmsgs == [Sent([100] * 10, 100)] * 2


@pytest.mark.interpreted
async def test_replies_are_read_in_bulk_only_when_there_is_bulk(
    guest: Stage, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger receive buffer, and joined datagrams, are not for those who ask one question after the other."""
    expected: list[socket.socket] = []
    expect_bulk = datagrams.expect_bulk
    monkeypatch.setattr(datagrams, "expect_bulk", lambda sock: (expected.append(sock), expect_bulk(sock)))
    host = guest.host_udp(family)
    for _ in range(3 * BULK_IN_A_ROW):
        flow = await exchange(guest, host, family)
    assert expected == []
    for _ in range(3 * BULK_IN_A_ROW):
        host.sendto(b"more", flow)
        await hears(guest, family, b"more", (port_of(host), 5000))
    assert len(expected) == 1


# -- a path that refuses -----------------------------------------------------------------------------------------------

Refuse = Callable[[int], None]


@pytest.fixture
def refuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refuse]:
    """Have the kernel refuse segments with an errno."""
    sendmsg = socket.socket.sendmsg

    def refuse(number: int) -> None:
        def fail(
            sock: socket.socket,
            payloads: Sequence[memoryview],
            ancillary: Sequence[tuple[int, int, bytes]] = (),
            *rest: object,
        ) -> int:
            if any(kind == UDP_SEGMENT for _, kind, _ in ancillary):
                raise OSError(number, os.strerror(number))
            return sendmsg(sock, payloads, ancillary, *rest)

        monkeypatch.setattr(socket.socket, "sendmsg", fail)

    yield refuse
    monkeypatch.undo()


@pytest.mark.parametrize("is_forwarded", [False, True], ids=["own socket", "forwarded port"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT])
async def test_one_by_one_where_segments_are_refused(
    guest: Stage, family: Family, refuses: Refuse, number: int, is_forwarded: bool
) -> None:
    """All arrive nonetheless, each once, and nobody hears of it."""
    host = guest.host_udp(family)
    if is_forwarded:
        guest.forwards(Protocol.UDP, TARGET)
    guest_port = TARGET if is_forwarded else 5000
    flow = await exchange(guest, host, family, guest_port)
    refuses(number)
    for sizes in ([1400] * 10, [1400] * 3 + [7], [300] * 5):
        payloads = payloads_of(sizes)
        sends(guest, family, guest_port, host, payloads)
        assert await receives(host, *payloads) == flow
    await guest.expects_nothing()
    assert not guest.session.drops


async def test_smaller_ones_may_still_go_together(
    guest: Stage, family: Family, sendmsgs: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is as large as what was refused is not tried again."""
    host = guest.host_udp(family)
    await is_asked(guest, host, family)
    recorded = socket.socket.sendmsg

    def refuse_large_ones(
        sock: socket.socket, payloads: Sequence[memoryview], ancillary: Sequence[tuple[int, int, bytes]] = ()
    ) -> int:
        if ancillary and len(payloads[0]) > 1000:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return recorded(sock, payloads, ancillary)

    monkeypatch.setattr(socket.socket, "sendmsg", refuse_large_ones)
    for sizes in ([1400] * 3, [1000] * 3, [1400] * 3):
        payloads = payloads_of(sizes)
        sends(guest, family, 5000, host, payloads)
        await receives(host, *payloads)
    assert sendmsgs == [Sent([1000] * 3, 1000)]


async def test_path_with_a_small_mtu(namespace: None, guest: Stage, family: Family) -> None:
    """The kernel refuses segments that it would have to cut again; one by one, it makes fragments of them."""
    loopback_carries(1500)
    host = with_room(guest.host_udp(family))
    for sizes in ([3000] * 5, [1000] * 5, [9000] * 3):
        payloads = payloads_of(sizes)
        sends(guest, family, 5000, host, payloads)
        await receives(host, *payloads)
    assert not guest.session.drops
