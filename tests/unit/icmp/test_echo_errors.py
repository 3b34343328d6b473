"""What routers say of an echo request is told the guest as said of its own: so `traceroute -I` shows the real path."""

import errno
import os
import socket

import pytest
from echo_script import reply, request
from fake_ping import ELSEWHERE, ROUTER, FakeHost, kernels_reply, kernels_request, no_permission
from harness.oracle import SeenError
from harness.stage import V4, V6, Family, Stage

from trio_passt.host import sockets
from trio_passt.icmp.flow import REMEMBERED_REQUESTS

pytestmark = pytest.mark.usefixtures("standing_clock")

TIME_EXCEEDED = {V4: (11, 0), V6: (3, 0)}
QUOTED_BYTES = {V4: 576 - 28, V6: 1280 - 48}
"""What an ICMP error has room for (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4)."""


async def is_told(guest: Stage, family: Family, about: bytes, kind: tuple[int, int], info: int = 0) -> SeenError:
    """A router says so of this packet of the guest's."""
    error = await guest.expects_error()
    assert (error.source, error.destination) == (ROUTER[family], family.guest)
    assert (error.type, error.code, error.info) == (*kind, info)
    assert error.quoted == about[: QUOTED_BYTES[family]]
    return error


@pytest.fixture
def hop_limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that the host's socket is told to use."""
    seen: list[int] = []
    monkeypatch.setattr(sockets, "set_hop_limit", lambda _sock, hop_limit: seen.append(hop_limit))
    return seen


@pytest.mark.parametrize("quoted", [8, 9, 60, 1000])
@pytest.mark.parametrize("size", [0, 56, 900, 4000])
async def test_quote_is_what_the_guest_has_sent(
    guest: Stage, host: FakeHost, family: Family, size: int, quoted: int, hop_limits: list[int]
) -> None:
    """However little the router has quoted, and by whatever identifier the host's request went."""
    data = os.urandom(size)
    sent = request(family, 9, 7, data, ELSEWHERE[family], hop_limit=1)
    host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 54321, 7, data)[:quoted])
    guest.sends_packets(sent)
    await is_told(guest, family, sent, TIME_EXCEEDED[family])
    await guest.expects_nothing()
    assert guest.session.drops == {"echo: No route to host": 1}
    assert hop_limits == [1]


@pytest.mark.parametrize(
    ("family", "type_", "code", "info"),
    [
        (V4, 3, 0, 0),
        (V4, 3, 1, 0),
        (V4, 3, 4, 1400),
        (V4, 3, 13, 0),
        (V4, 11, 1, 0),
        (V6, 1, 0, 0),
        (V6, 1, 3, 0),
        (V6, 2, 0, 1400),
        (V6, 3, 1, 0),
        (V6, 4, 1, 40),
    ],
)
async def test_every_kind_of_error(
    guest: Stage, host: FakeHost, family: Family, type_: int, code: int, info: int
) -> None:
    sent = request(family, 9, 7, b"data", ELSEWHERE[family])
    host.hears_of(family, type_, code, kernels_request(family, 9, 7), info=info)
    guest.sends_packets(sent)
    await is_told(guest, family, sent, (type_, code), info)


async def test_each_error_quotes_its_own_request(
    guest: Stage, host: FakeHost, family: Family, hop_limits: list[int]
) -> None:
    """`traceroute` has many under way; their answers come in any order."""
    sent = {
        number: request(family, 9, number, b"%d" % number, ELSEWHERE[family], hop_limit=1 + number // 3)
        for number in range(16)
    }
    guest.sends_packets(*sent.values())
    await guest.settles()
    for number in (5, 0, 15, 14, 5):
        host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 9, number))
        guest.sends_packets(request(family, 9, 99, b"", ELSEWHERE[family], hop_limit=6))
        await is_told(guest, family, sent[number], TIME_EXCEEDED[family])
    assert hop_limits == [1, 2, 3, 4, 5, 6]


def hop_limit_of(family: Family, packet: bytes) -> int:
    return packet[8 if family is V4 else 7]


async def quotes_of(guest: Stage, host: FakeHost, family: Family, *numbers: int) -> list[bytes]:
    """What the guest hears of requests with these numbers, of which 8 bytes are quoted, and the daemon's identifier."""
    for number in numbers:
        host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 54321, number))
    host.ping.fails_to_send.clear()
    host.ping.fails_to_receive = [OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))]
    host.far.send(b"")  # so that the socket is looked at
    return [(await guest.expects_error()).quoted for _ in numbers]


async def test_request_that_is_forgotten_is_made_from_the_quote(
    guest: Stage, host: FakeHost, family: Family, hop_limits: list[int]
) -> None:
    """As far as that tells: not its hop limit."""
    sent = [
        request(family, 9, number, b"", ELSEWHERE[family], hop_limit=5) for number in range(REMEMBERED_REQUESTS + 1)
    ]
    for packet in sent:
        guest.sends_packets(packet)
        await guest.settles()
    assert hop_limits == [5]
    forgotten, remembered = await quotes_of(guest, host, family, 0, 1)
    assert remembered == sent[1]
    assert hop_limit_of(family, forgotten) == 64
    header_bytes, ends = (20, slice(12, 20)) if family is V4 else (40, slice(8, 40))
    assert forgotten[header_bytes:] == sent[0][header_bytes:]
    assert forgotten[ends] == sent[0][ends]


async def test_number_that_is_used_again_is_remembered_for_longer(
    guest: Stage, host: FakeHost, family: Family, hop_limits: list[int]
) -> None:
    """`ping` counts beyond 65535."""
    for number in (*range(REMEMBERED_REQUESTS), 0, REMEMBERED_REQUESTS):
        guest.sends_packets(request(family, 9, number, b"", ELSEWHERE[family], hop_limit=5))
        await guest.settles()
    assert hop_limits == [5]
    quotes = await quotes_of(guest, host, family, 0, 1, 2)
    assert [hop_limit_of(family, quoted) for quoted in quotes] == [5, 64, 5]


async def test_number_that_is_used_again_is_the_latest_request(guest: Stage, host: FakeHost, family: Family) -> None:
    for data in (b"first", b"second"):
        guest.sends_packets(request(family, 9, 7, data, ELSEWHERE[family]))
        await guest.settles()
    host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 9, 7))
    guest.sends_packets(request(family, 9, 8, b"", ELSEWHERE[family]))
    await is_told(guest, family, request(family, 9, 7, b"second", ELSEWHERE[family]), TIME_EXCEEDED[family])


@pytest.mark.parametrize("quoted", [0, 7])
async def test_error_that_does_not_say_which_request_it_was(
    guest: Stage, host: FakeHost, family: Family, quoted: int
) -> None:
    host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 9, 7)[:quoted])
    guest.sends_packets(request(family, 9, 7, b"", ELSEWHERE[family]))
    await guest.expects_nothing()
    assert guest.session.drops == {"echo: No route to host": 1}


@pytest.mark.parametrize(("family", "type_"), [(V4, 4), (V4, 5), (V6, 137)])
async def test_what_is_no_error_is_not_passed_on(guest: Stage, host: FakeHost, family: Family, type_: int) -> None:
    host.hears_of(family, type_, 0, kernels_request(family, 9, 7))
    guest.sends_packets(request(family, 9, 7, b"", ELSEWHERE[family]))
    await guest.expects_nothing()


async def test_replies_go_on(guest: Stage, host: FakeHost, family: Family) -> None:
    host.hears_of(family, *TIME_EXCEEDED[family], kernels_request(family, 9, 7))
    sent = request(family, 9, 7, b"", ELSEWHERE[family])
    guest.sends_packets(sent)
    await is_told(guest, family, sent, TIME_EXCEEDED[family])
    assert host.far.recv(100)[6:8] == b"\0\7", "the error was an earlier one's"
    host.far.send(kernels_reply(family, 9, 7, b"data"))
    assert await reply(guest, family, ELSEWHERE[family]) == (9, 7, b"data")
    assert len(guest.dispatcher.echo) == 1


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM])
async def test_kernel_that_refuses_to_send(guest: Stage, host: FakeHost, family: Family, number: int) -> None:
    """Told once, though it is tried twice."""
    kinds = {errno.ENETUNREACH: (0, 0), errno.EHOSTUNREACH: (1, 3), errno.EPERM: (13, 1)}
    host.ping.fails_to_send = [OSError(number, os.strerror(number)) for _ in range(2)]
    sent = request(family, 9, 7, b"data", ELSEWHERE[family])
    guest.sends_packets(sent)
    error = await guest.expects_error()
    assert error.source == family.gateway
    assert (error.type, error.code) == ((3, kinds[number][0]) if family is V4 else (1, kinds[number][1]))
    assert error.quoted == sent
    await guest.expects_nothing()
    assert guest.session.drops == {f"echo: {os.strerror(number)}": 1}


async def test_request_that_the_kernel_itself_refuses_is_not_tried_again(
    guest: Stage, host: FakeHost, family: Family
) -> None:
    """Its error is about that very request, and told once."""
    sent = [request(family, 9, number, b"data", ELSEWHERE[family]) for number in (7, 8)]
    quoted = kernels_request(family, 9, 7, b"data")
    host.hears_of(family, 0, 0, quoted, number=errno.EMSGSIZE, info=1400, is_local=True)
    guest.sends_packets(*sent)
    error = await guest.expects_error()
    assert error.source == family.gateway
    assert (error.type, error.code, error.info) == ((3, 4, 1400) if family is V4 else (2, 0, 1400))
    assert error.quoted == sent[0]
    await guest.expects_nothing()
    assert guest.session.drops == {"echo: Message too long": 1}
    assert host.far.recv(100)[7] == 8
    with pytest.raises(BlockingIOError):
        host.far.recv(100)


class TestHopLimit:
    async def test_is_set_only_when_it_changes(
        self, guest: Stage, host: FakeHost, family: Family, hop_limits: list[int]
    ) -> None:
        for sequence, hop_limit in enumerate((64, 64, 1, 1, 64, 255, 255)):
            guest.sends_packets(request(family, 9, sequence, hop_limit=hop_limit))
        await guest.settles()
        assert hop_limits == [1, 64, 255]

    async def test_of_zero_goes_no_further(
        self, guest: Stage, host: FakeHost, family: Family, hop_limits: list[int]
    ) -> None:
        guest.sends_packets(request(family, 9, 1, hop_limit=0))
        await guest.expects_drop("hop limit 0")
        assert len(guest.dispatcher.echo) == 0
        guest.sends_packets(request(family, 9, 2), request(family, 9, 3, hop_limit=0), request(family, 9, 4))
        await guest.expects_drop("hop limit 0", 2)
        assert [host.far.recv(100)[7] for _ in range(2)] == [2, 4]
        assert hop_limits == []


async def test_kernel_that_does_not_take_the_hop_limit(
    guest: Stage, host: FakeHost, monkeypatch: pytest.MonkeyPatch, family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends this flow, which the next request opens again."""

    def refuse(_sock: socket.socket, _hop_limit: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(sockets, "set_hop_limit", refuse)
    guest.sends_packets(request(family, 9, 1, hop_limit=5))
    await guest.expects_drop("echo: Operation not permitted")
    await guest.settles()
    assert host.ping.fileno() == -1
    assert len(guest.dispatcher.echo) == 0
    assert not caplog.records


async def test_host_is_answered_for_whatever_the_hop_limit(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    """Without permission for ping sockets: it is one hop away."""
    no_permission(monkeypatch)
    guest.sends_packets(request(family, 9, 1, b"data", hop_limit=1))
    assert await reply(guest, family) == (9, 1, b"data")


async def test_socket_that_cannot_be_connected_is_closed(
    guest: Stage, host: FakeHost, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    def refuse(_sock: socket.socket, _address: object) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(type(host.ping), "connect", refuse)
    guest.sends_packets(request(family, 9, 1, b"data", ELSEWHERE[family]))
    error = await guest.expects_error()
    assert error.quoted == request(family, 9, 1, b"data", ELSEWHERE[family])
    await guest.settles()
    assert host.ping.fileno() == -1
    assert len(guest.dispatcher.echo) == 0
