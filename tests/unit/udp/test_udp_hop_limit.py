"""The host's datagrams have the hop limit of the guest's: so `traceroute` shows the real path."""

import socket

import pytest
from harness.stage import V4, V6, Family, Stage
from harness.waiting import eventually
from udp_script import datagram, exchange, hears, is_asked, port_of, receives

from trio_passt.config import Protocol

pytestmark = pytest.mark.usefixtures("standing_clock")

TARGET = 5353
IP_RECVTTL = 12  # linux/in.h; not in Python 3.11's socket module
DEFAULT = 64


def watching(guest: Stage, family: Family) -> socket.socket:
    """A host socket that is told of hop limits."""
    sock = guest.host_udp(family)
    if family is V4:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    return sock


async def hop_limits(sock: socket.socket, payloads: list[bytes]) -> list[int]:
    """Those with which these datagrams arrive, in this order."""

    def look() -> tuple[bytes, int] | None:
        try:
            payload, ((_, kind, value),), _, _ = sock.recvmsg(65535, 100)
        except BlockingIOError:
            return None
        assert kind in (socket.IP_TTL, socket.IPV6_HOPLIMIT)
        return payload, int.from_bytes(value[:4], "little")

    seen = [await eventually(look, "a datagram at the host") for _ in payloads]
    assert [payload for payload, _ in seen] == payloads
    return [hop_limit for _, hop_limit in seen]


@pytest.fixture(params=[False, True], ids=["own socket", "forwarded port"])
def guest_port(request: pytest.FixtureRequest, guest: Stage) -> int:
    """A port of the guest's, that is forwarded or not."""
    if request.param:
        guest.forwards(Protocol.UDP, TARGET)
        return TARGET
    return 5000


@pytest.mark.parametrize("hop_limit", [1, 2, 63, 64, 65, 255])
async def test_is_the_guests(guest: Stage, family: Family, guest_port: int, hop_limit: int) -> None:
    host = watching(guest, family)
    for _ in range(2):
        guest.sends_packets(datagram(family, guest_port, port_of(host), b"x", hop_limit=hop_limit))
        assert await hop_limits(host, [b"x"]) == [hop_limit]


async def test_changes_within_one_batch(guest: Stage, family: Family, guest_port: int) -> None:
    """As `traceroute` sends them, several for each hop; and back to what it was."""
    host = watching(guest, family)
    wanted = [*(hop for hop in range(1, 11) for _ in range(3)), *([DEFAULT] * 3), *([200] * 20)]
    payloads = [b"probe %04d" % number for number in range(len(wanted))]
    guest.sends_packets(
        *(
            datagram(family, guest_port, port_of(host), payload, hop_limit=hop_limit)
            for payload, hop_limit in zip(payloads, wanted, strict=True)
        )
    )
    assert await hop_limits(host, payloads) == wanted


async def test_of_one_flow_is_not_anothers(guest: Stage, family: Family, guest_port: int) -> None:
    hosts = [watching(guest, family) for _ in range(2)]
    for _ in range(2):
        for host, hop_limit in zip(hosts, (5, DEFAULT), strict=True):
            guest.sends_packets(datagram(family, guest_port, port_of(host), b"x", hop_limit=hop_limit))
            assert await hop_limits(host, [b"x"]) == [hop_limit]


async def test_of_a_reply_to_a_client(guest: Stage, family: Family) -> None:
    port, client = guest.forwards(Protocol.UDP, TARGET), watching(guest, family)
    client.sendto(b"hello", (family.local, port))
    await hears(guest, family, b"hello", (port_of(client), TARGET))
    for hop_limit in (DEFAULT, 3, 255, DEFAULT):
        guest.sends_packets(datagram(family, TARGET, port_of(client), b"x", hop_limit=hop_limit))
        assert await hop_limits(client, [b"x"]) == [hop_limit]


class TestOfZero:
    """Such a packet should not have left the guest, and goes no further (RFC 1812 section 5.3.1)."""

    async def test_first_of_a_flow(
        self, guest: Stage, family: Family, guest_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = watching(guest, family)
        guest.sends_packets(datagram(family, guest_port, port_of(host), b"x", hop_limit=0))
        await guest.expects_drop("hop limit 0")
        await guest.settles()
        assert await exchange(guest, host, family, guest_port)
        assert not caplog.records

    async def test_among_others(
        self, guest: Stage, family: Family, guest_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They are none the worse for it."""
        host = guest.host_udp(family)
        flow = await is_asked(guest, host, family, guest_port)
        guest.sends_packets(
            *(
                datagram(family, guest_port, port_of(host), b"%d" % hop_limit, hop_limit=hop_limit)
                for hop_limit in (64, 0, 63, 0, 0, 1)
            )
        )
        assert await receives(host, b"64", b"63", b"1") == flow
        await guest.expects_drop("hop limit 0", 3)
        assert len(guest.dispatcher.udp) == 1
        assert not caplog.records


async def test_of_the_other_family_is_another_option(guest: Stage) -> None:
    hosts = {family: watching(guest, family) for family in (V4, V6)}
    for family, hop_limit in ((V4, 7), (V6, 9)):
        guest.sends_packets(datagram(family, 5000, port_of(hosts[family]), b"x", hop_limit=hop_limit))
    for family, hop_limit in ((V4, 7), (V6, 9)):
        assert await hop_limits(hosts[family], [b"x"]) == [hop_limit]
