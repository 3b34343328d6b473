"""Errors about the guest's packets, as it hears them: which are passed on, from whom, and what they say."""

import errno
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from harness.oracle import SeenError, see
from harness.stage import GUEST_MAC, V4, V6, Family, network

from trio_passt.flow.guest import Guest
from trio_passt.flow.reports import report, report_error, report_failure
from trio_passt.flow.session import Session
from trio_passt.flow.translate import AddressMap
from trio_passt.host.error_queue import ORIGIN_ICMP, ORIGIN_ICMPV6, ORIGIN_LOCAL, DatagramError
from trio_passt.host.readiness import Readiness
from trio_passt.link.memory import MemoryLink
from trio_passt.wire import icmp, ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

REMOTE = {V4: "203.0.113.9", V6: "2001:db8:9::9"}
ROUTER = {V4: "203.0.113.1", V6: "2001:db8:9::1"}
ORIGIN = {V4: ORIGIN_ICMP, V6: ORIGIN_ICMPV6}
QUOTED_BYTES = {V4: 576 - 28, V6: 1280 - 48}


class Heard:
    """A session whose guest only hears."""

    def __init__(self, family: Family, link: MemoryLink) -> None:
        self.family = family
        self.link = link
        self.session = Session(
            link=link,
            network=network(),
            guest=Guest(network()),
            addresses=AddressMap(network()),
            readiness=Readiness(),
            drops=Counter(),
            scratch=memoryview(b""),
            secret=b"",
        )
        self.session.guest.learn_mac(GUEST_MAC)
        self.remote = ip_address(REMOTE[family]).packed
        self.guest = family.guest_packed
        datagram = udp.emit(self.guest, self.remote, UdpHeader(5000, 9), bytes(range(256)) * 8)
        self.packet = ip.emit_packet(self.guest, self.remote, IPProtocol.UDP, datagram)

    def tells(self, error: DatagramError) -> None:
        report_error(self.session, self.remote, self.guest, error, self.packet)

    def fails(self, number: int) -> None:
        report_failure(self.session, self.remote, self.guest, number, self.packet)

    def hears(self) -> SeenError | None:
        """The error that it has heard, which is about its packet; `None` if there is none."""
        frames = self.link.take_sent()
        if not frames:
            return None
        (frame,) = frames
        seen = see(frame, GUEST_MAC.hex(":"))
        assert isinstance(seen, SeenError)
        assert seen.destination == self.family.guest
        assert seen.quoted == self.packet[: QUOTED_BYTES[self.family]]
        return seen


@pytest.fixture
def link() -> MemoryLink:
    return MemoryLink()


@pytest.fixture
def heard(family: Family, link: MemoryLink) -> Iterator[Heard]:
    made = Heard(family, link)
    yield made
    made.session.readiness.close()


def error(
    heard: Heard, type_: int, code: int, *, info: int = 0, number: int = errno.EHOSTUNREACH, reporter: str | None = None
) -> DatagramError:
    """One that came as ICMP, from a router unless it says otherwise."""
    family = heard.family
    packed = ip_address(reporter or ROUTER[family]).packed
    return DatagramError(number, ORIGIN[family], type_, code, info, packed, None, b"")


ERRORS = {
    V4: [*((3, code) for code in range(16)), (11, 0), (11, 1), (12, 0), (12, 1), (12, 2)],
    V6: [*((1, code) for code in range(8)), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)],
}


def test_errors_of_routers_keep_type_and_code_and_sender(heard: Heard) -> None:
    for type_, code in ERRORS[heard.family]:
        heard.tells(error(heard, type_, code))
        seen = heard.hears()
        assert seen is not None
        assert (seen.type, seen.code, seen.info) == (type_, code, 0)
        assert seen.source == ROUTER[heard.family]


def test_other_messages_are_not_passed_on(heard: Heard) -> None:
    """Echo replies, redirects, source quench (RFC 6633); and nothing of the other version's numbers."""
    types = {type_ for type_, _ in ERRORS[heard.family]}
    for type_ in set(range(256)) - types:
        heard.tells(error(heard, type_, 0))
        assert heard.hears() is None, type_


def test_mtu_of_a_path_is_passed_on(heard: Heard) -> None:
    kind = (3, 4) if heard.family is V4 else (2, 0)
    heard.tells(error(heard, *kind, info=1400, number=errno.EMSGSIZE))
    seen = heard.hears()
    assert seen is not None
    assert (seen.type, seen.code, seen.info) == (*kind, 1400)


@pytest.mark.parametrize("pointer", [0, 9, 20, 255])
def test_pointer_is_passed_on(heard: Heard, pointer: int) -> None:
    """In ICMP it is one byte at the beginning of the word (RFC 792), in ICMPv6 all of it (RFC 4443 section 3.4)."""
    heard.tells(error(heard, 12 if heard.family is V4 else 4, 0, info=pointer, number=errno.EPROTO))
    seen = heard.hears()
    assert seen is not None
    assert seen.info == (pointer << 24 if heard.family is V4 else pointer)


def test_host_itself_is_the_gateway(heard: Heard) -> None:
    """What comes from loopback, or from the address that the guest believes to be its own."""
    for reporter in (heard.family.local, heard.family.guest):
        heard.tells(error(heard, *ERRORS[heard.family][1], reporter=reporter))
        seen = heard.hears()
        assert seen is not None
        assert seen.source == heard.family.gateway


def test_reporter_without_an_address_for_the_guest(heard: Heard) -> None:
    """None at all, or one of the other version (RFC 6145: translators are such)."""
    other = V6 if heard.family is V4 else V4
    kind = ERRORS[heard.family][1]
    for reporter in (None, ip_address(ROUTER[other]).packed):
        heard.tells(DatagramError(errno.EHOSTUNREACH, ORIGIN[heard.family], *kind, 0, reporter, None, b""))
        seen = heard.hears()
        assert seen is not None
        assert seen.source == heard.family.gateway


def test_kernels_own_mtu_is_too_big(heard: Heard) -> None:
    heard.tells(DatagramError(errno.EMSGSIZE, ORIGIN_LOCAL, 0, 0, 1500, None, None, b""))
    seen = heard.hears()
    assert seen is not None
    assert (seen.type, seen.code, seen.info) == ((3, 4, 1500) if heard.family is V4 else (2, 0, 1500))
    assert seen.source == heard.family.gateway


UNREACHABLE = {
    # the host's error: the code in ICMP, and in ICMPv6 (RFC 792, RFC 1812 section 5.2.7.1; RFC 4443 section 3.1)
    errno.ENETUNREACH: (0, 0),
    errno.EHOSTUNREACH: (1, 3),
    errno.EHOSTDOWN: (1, 3),
    errno.EACCES: (13, 1),
    errno.EPERM: (13, 1),
}


@pytest.mark.parametrize("number", UNREACHABLE)
def test_kernels_own_errors_are_unreachable(heard: Heard, number: int) -> None:
    """Whether it finds out at once, or later (no answer to ARP)."""
    for _ in range(2):
        heard.fails(number)
        at_once = heard.hears()
        heard.tells(DatagramError(number, ORIGIN_LOCAL, 0, 0, 0, None, None, b""))
        later = heard.hears()
        for seen in (at_once, later):
            assert seen is not None
            assert seen.source == heard.family.gateway
            v4_code, v6_code = UNREACHABLE[number]
            assert (seen.type, seen.code) == ((3, v4_code) if heard.family is V4 else (1, v6_code))
            assert seen.info == 0


@pytest.mark.parametrize("number", [0, errno.ECONNREFUSED, errno.EMFILE, errno.EINVAL, errno.ENOBUFS])
def test_what_is_not_about_reachability_is_not_told(heard: Heard, number: int) -> None:
    heard.fails(number)
    assert heard.hears() is None
    heard.tells(DatagramError(number, ORIGIN_LOCAL, 0, 0, 0, None, None, b""))
    assert heard.hears() is None


@pytest.mark.parametrize("origin", [0, 4, 5])
def test_origin_that_is_unknown(heard: Heard, origin: int) -> None:
    """Time stamps, zero-copy notifications: linux/errqueue.h."""
    heard.tells(DatagramError(errno.EHOSTUNREACH, origin, 3, 1, 0, None, None, b""))
    assert heard.hears() is None


def test_full_link_does_not_get_it(heard: Heard) -> None:
    heard.link.set_capacity(frames=0)
    heard.fails(errno.ENETUNREACH)
    assert heard.session.drops == {"link to the guest full": 1}


def test_any_message_by_its_reporter(heard: Heard) -> None:
    """What the daemon itself has to say comes from the gateway."""
    message = icmp.error(11 if heard.family is V4 else 3, 1, 0, heard.packet)
    report(heard.session, heard.remote, heard.guest, message)
    seen = heard.hears()
    assert seen is not None
    assert (seen.source, seen.code) == (heard.family.gateway, 1)
    report(heard.session, heard.remote, heard.guest, message, ip_address(ROUTER[heard.family]).packed)
    seen = heard.hears()
    assert seen is not None
    assert seen.source == ROUTER[heard.family]
