"""What a guest hears when its connection can't be made: a reset, and before it the ICMP error that the host got."""

import errno
import os
import socket

import pytest
from harness.oracle import SeenOther, SeenTcp
from harness.stage import Family, Stage
from harness.waiting import eventually
from scapy.layers.inet import ICMP, TCP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6

from trio_passt.host import sockets
from trio_passt.wire.tcp import ACK, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")

UNREACHABLE = {
    # the host's error: the code in ICMP, and in ICMPv6 (RFC 792, RFC 1812 section 5.2.7.1; RFC 4443 section 3.1)
    errno.ENETUNREACH: (0, 0),
    errno.EHOSTUNREACH: (1, 3),
    errno.EACCES: (13, 1),
}
ELSEWHERE = {4: "203.0.113.80", 6: "2001:db8:80::80"}


def fail_at_once(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The kernel knows when it is asked to connect: it has no route, or a firewall's rule."""

    def fail(*_arguments: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets, "start_tcp_connection", fail)


def fail_later(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An ICMP error comes while the kernel tries."""
    monkeypatch.setattr(sockets, "is_connected", lambda _sock, _peer: False)
    monkeypatch.setattr(sockets, "pending_error", lambda _sock: OSError(number, os.strerror(number)))


async def next_of_either_kind(guest: Stage) -> SeenOther | SeenTcp:
    """The next packet, of whatever protocol."""
    seen = await eventually(lambda: guest.look(lambda _seen: True), "a packet")
    assert isinstance(seen, SeenOther | SeenTcp)
    return seen


@pytest.mark.parametrize("number", UNREACHABLE, ids=os.strerror)
async def test_icmp_error_comes_before_the_reset(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family, number: int
) -> None:
    fail_at_once(monkeypatch, number)
    remote = ELSEWHERE[family.version]
    tcp = guest.tcp(family, 80, remote=remote)
    tcp.sends(SYN, mss=1460)
    told = await next_of_either_kind(guest)
    assert isinstance(told, SeenOther)
    assert (told.source, told.destination) == (family.gateway, family.guest)
    if family.version == 4:
        message, quoted = told.packet[ICMP], told.packet[IPerror]
        assert (message.type, message.code) == (3, UNREACHABLE[number][0])
        ports = told.packet[TCPerror]
    else:
        message, quoted = told.packet[ICMPv6DestUnreach], told.packet[IPerror6]
        assert message.code == UNREACHABLE[number][1]
        ports = told.packet[TCPerror] if TCPerror in told.packet else told.packet[TCP]
    assert (quoted.src, quoted.dst) == (family.guest, remote)
    assert (ports.sport, ports.dport, ports.seq) == (tcp.guest_port, 80, (tcp.next - 1) % 2**32)
    await tcp.expects(RST | ACK, seq=0)
    await guest.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_other_errors_are_a_reset_alone(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family, number: int
) -> None:
    fail_at_once(monkeypatch, number)
    tcp = guest.tcp(family, 80)
    tcp.sends(SYN, mss=1460)
    assert isinstance(await next_of_either_kind(guest), SeenTcp)
    await guest.expects_nothing()


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED], ids=os.strerror)
async def test_error_that_comes_while_the_host_connects(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family, number: int
) -> None:
    server = guest.host_serves(family)
    fail_later(monkeypatch, number)
    tcp = guest.tcp(family, server.port)
    tcp.sends(SYN, mss=1460)
    if number in UNREACHABLE:
        assert isinstance(await next_of_either_kind(guest), SeenOther)
    await tcp.expects(RST | ACK, seq=0)
    await guest.expects_nothing()
    assert len(guest.dispatcher.tcp) == 0


async def test_full_link_drops_the_icmp_error_but_not_the_reset(
    guest: Stage, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    fail_at_once(monkeypatch, errno.EHOSTUNREACH)
    tcp = guest.tcp(family, 80)
    guest.link.set_capacity(frames=0)
    tcp.sends(SYN, mss=1460)
    await tcp.expects_nothing()
    guest.link.set_capacity()
    await tcp.expects(RST | ACK, seq=0)
    await guest.expects_nothing()
