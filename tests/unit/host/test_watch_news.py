"""What the kernel says of its network, and which of that is news: messages made by hand, and arbitrary bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netlink_messages import (
    DELADDR,
    DELLINK,
    DELNEXTHOP,
    DELROUTE,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    REPLACE,
    RUNNING,
    UP,
    address,
    attribute,
    link,
    message,
    nexthop,
    route,
)

from trio_passt.host import watch
from trio_passt.host.watch import News

SIX = "2001:db8::2/64"

HEARD = {
    "interface": link(),
    "IPv4 address": address(),
    "IPv6 address": address(text=SIX),
    "IPv4 default route": route(),
    "IPv6 default route": route(gateway="fe80::1"),
    "next hop": nexthop(),
}


def news(*before: bytes) -> News:
    """That knows of these messages."""
    heard = News()
    for data in before:
        heard.take(data)
    return heard


@pytest.mark.parametrize("what", HEARD)
def test_what_was_not_said_before_is_news_once(what: str) -> None:
    heard = News()
    assert heard.take(HEARD[what])
    assert not heard.take(HEARD[what])
    assert not heard.take(HEARD[what] * 2)


@pytest.mark.parametrize(
    ("before", "refreshed"),
    [
        (address(text=SIX, lifetimes_s=(100, 200)), address(text=SIX, lifetimes_s=(99, 199))),
        (address(lifetimes_s=(100, 200)), address(lifetimes_s=(50, 60))),
        (route(gateway="fe80::1", expires_s=1800), route(gateway="fe80::1", expires_s=1790)),
        (route(expires_s=1800, flags=REPLACE), route(expires_s=1790, flags=REPLACE)),
        (link(flags=UP), link(flags=UP | RUNNING)),
        (link(), link(others=attribute(11, b"signal strength"))),
    ],
    ids=["IPv6 address", "IPv4 address", "IPv6 route", "replaced by itself", "carrier", "wireless"],
)
def test_refreshed_is_not_news(before: bytes, refreshed: bytes) -> None:
    """Router advertisements come every few seconds; what is not told the guest is of no interest."""
    assert before != refreshed
    assert not news(before).take(refreshed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (link(flags=UP), link(flags=0)),
        (link(flags=0), link(flags=UP)),
        (link(name="eth0"), link(name="lan0")),
        (link(index=2), link(index=3)),
        (link(), link(DELLINK)),
        (link(DELLINK), link()),
        (address(), address(DELADDR)),
        (address(DELADDR), address()),
        (address(), address(text="192.0.2.3/24")),
        (address(), address(text="192.0.2.2/25")),
        (address(), address(index=3)),
        (address(text=SIX, flags=0x40), address(text=SIX, flags=0)),  # no longer tentative
        (address(text=SIX, flags=0), address(text=SIX, flags=0x20)),  # deprecated
        (address(text=SIX, flags=0), address(text=SIX, flags=0x100)),  # one that the header has no room for
        (route(), route(DELROUTE)),
        (route(DELROUTE), route()),
        (route(), route(gateway="192.0.2.7")),
        (route(), route(metric=600)),
        (route(gateway="fe80::1"), route(gateway="fe80::7")),
        (route(), route(gateway="fe80::1")),
        (nexthop(), nexthop(DELNEXTHOP)),
        (nexthop(), nexthop(gateway="192.0.2.7")),
        (nexthop(), nexthop(number=8)),
    ],
)
def test_changed_is_news(before: bytes, after: bytes) -> None:
    assert news(before).take(after)


@pytest.mark.parametrize(
    "irrelevant",
    [
        route(to_bits=24),
        route(gateway="fe80::1", to_bits=64),
        route(DELROUTE, to_bits=24),
        message(28, bytes(12)),  # a neighbour
        message(2, bytes(20)),  # an error
        message(3, b""),  # the end of several
        b"",
    ],
    ids=["IPv4 route", "IPv6 route", "route gone", "neighbour", "error", "end", "nothing"],
)
def test_what_does_not_concern_us(irrelevant: bytes) -> None:
    assert not News().take(irrelevant)


def test_all_of_several_messages_are_remembered() -> None:
    heard = News()
    assert heard.take(link() + address())
    assert not heard.take(link())
    assert not heard.take(address())
    assert heard.take(link() + address() + route())
    assert heard.take(address(DELADDR) + link())


@pytest.mark.parametrize(
    "going",
    [link(flags=0), link(DELLINK), address(DELADDR), nexthop(DELNEXTHOP)],
    ids=["down", "gone", "address", "next hop"],
)
def test_same_route_after_its_interface_or_address_was_gone(going: bytes) -> None:
    """The kernel takes IPv4 routes away with them, and does not say so."""
    heard = news(link(), address(), nexthop(), route())
    assert heard.take(going)
    assert heard.take(route())


def test_route_that_replaces_the_one_that_had_replaced_it() -> None:
    """The kernel tells of the new one only."""
    heard = news(route(gateway="192.0.2.1"))
    assert heard.take(route(gateway="192.0.2.7", flags=REPLACE))
    assert heard.take(route(gateway="192.0.2.1", flags=REPLACE))


@pytest.mark.parametrize(
    "other",
    [route(metric=600), route(table=77), route(gateway="fe80::1")],
    ids=["metric", "table", "family"],
)
def test_route_elsewhere_is_not_replaced(other: bytes) -> None:
    """Two routers, each of which is refreshed, are no news, however often."""
    heard = news(other)
    assert heard.take(route(flags=REPLACE))
    assert not heard.take(other)
    assert not heard.take(route(flags=REPLACE))


def test_two_routers_with_the_same_metric() -> None:
    heard = news(route(gateway="fe80::1", expires_s=9), route(gateway="fe80::2", expires_s=9))
    assert not heard.take(route(gateway="fe80::1", expires_s=8))
    assert not heard.take(route(gateway="fe80::2", expires_s=8))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MOST_REMEMBERED", 3)
    heard = news(*(link(index=index) for index in range(1, 4)))
    assert not heard.take(link(index=1))
    assert heard.take(link(index=4))  # one too many: all is forgotten
    assert heard.take(link(index=1))
    assert not heard.take(link(index=4))


@pytest.mark.parametrize("what", HEARD)
def test_truncated_messages_are_no_error_and_no_news(what: str) -> None:
    for length in range(len(HEARD[what].rstrip(b"\0"))):
        assert not News().take(HEARD[what][:length]), length


@pytest.mark.parametrize("length", [0, 4, 15, 17, 10_000, 2**32 - 1])
def test_length_that_cannot_be(length: int) -> None:
    broken = struct.pack("=I", length) + link()[4:16]
    heard = News()
    assert not heard.take(broken + link())
    assert heard.take(link() + broken)


def test_messages_before_a_broken_one_count() -> None:
    heard = News()
    assert heard.take(link() + route()[:20])
    assert heard.take(route())


@pytest.mark.parametrize("kind", [NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE])
def test_body_that_is_too_short(kind: int) -> None:
    assert not News().take(message(kind, bytes(7)))


@pytest.mark.parametrize("length", [0, 3, 9, 60_000])
def test_attribute_whose_length_cannot_be(length: int) -> None:
    """What is before it counts."""
    head = struct.pack("=BxHiII", 0, 1, 2, UP, 0)
    broken = struct.pack("=HH", length, 3) + b"eth0"
    one, other = (message(NEWLINK, head + attribute(3, name) + broken) for name in (b"one\0", b"other\0"))
    assert news(one).take(other)
    assert not news(one).take(message(NEWLINK, head + attribute(3, b"one\0")))


@given(st.binary())
def test_arbitrary_bytes(data: bytes) -> None:
    heard = News()
    heard.take(data)
    assert not heard.take(data)


@given(st.lists(st.sampled_from([*HEARD.values(), link(flags=0), address(DELADDR), route(DELROUTE)])), st.data())
def test_damaged_messages(messages: list[bytes], data: st.DataObject) -> None:
    """Whatever came before, what is said is either news or known, and known when it is said again."""
    joined = bytearray(b"".join(messages))
    for place in data.draw(st.lists(st.integers(0, max(0, len(joined) - 1)), max_size=3)) if joined else ():
        joined[place] ^= data.draw(st.integers(1, 255))
    heard = News()
    heard.take(bytes(joined))
    for one in (link(index=77), address(text="203.0.113.77/24", index=77)):
        assert heard.take(one)
        assert not heard.take(one)


@given(st.lists(st.binary(max_size=40)), st.integers(0, 60), st.integers(0, 0xFFFF))
def test_arbitrary_bodies(bodies: list[bytes], kind: int, flags: int) -> None:
    News().take(b"".join(message(kind, body, flags) for body in bodies))
