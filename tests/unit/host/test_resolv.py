"""resolv.conf as it is found in the wild, and what a guest is told of it."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.config import DnsForward, GuestIPv4, GuestIPv6, Resolvers
from trio_passt.host.resolv import (
    GuestResolvers,
    Nameserver,
    ResolvConf,
    parse_resolv_conf,
    resolvers_for_guest,
)

GUEST_4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
GUEST_6 = GuestIPv6(IPv6Address("2001:db8::2"), 64, IPv6Address("fe80::1"), "eth0")


@pytest.mark.parametrize(
    ("text", "nameservers"),
    [
        ("", []),
        ("nameserver 192.0.2.53\n", ["192.0.2.53"]),
        ("nameserver 192.0.2.53", ["192.0.2.53"]),
        ("nameserver\t192.0.2.53\t\r\n", ["192.0.2.53"]),
        ("nameserver 192.0.2.53 # the router\n", ["192.0.2.53"]),
        ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", ["192.0.2.53", "2001:db8::53"]),
        ("nameserver 192.0.2.53\nnameserver 192.0.2.53\n", ["192.0.2.53"]),
        ("nameserver ::ffff:192.0.2.53\n", ["192.0.2.53"]),
        ("nameserver fe80::53%eth0\n", ["fe80::53%eth0"]),
        ("#nameserver 192.0.2.53\n; nameserver 192.0.2.54\n", []),
        (" nameserver 192.0.2.53\n", []),
        ("nameserver\n", []),
        ("nameserver #192.0.2.53\n", []),
        ("nameserver resolver.example\n", []),
        ("nameserver 192.0.2\n", []),
        ("nameservers 192.0.2.53\nNAMESERVER 192.0.2.54\n", []),
        ("options edns0 trust-ad\nsortlist 192.0.2.0/24\n\nnameserver 192.0.2.53\n", ["192.0.2.53"]),
    ],
)
def test_nameservers(text: str, nameservers: list[str]) -> None:
    expected = []
    for written in nameservers:
        host, _, zone = written.partition("%")
        expected.append(Nameserver(ip_address(host), zone or None))
    assert parse_resolv_conf(text).nameservers == tuple(expected)


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("search example.org example.net\n", ("example.org", "example.net")),
        ("search\texample.org\t example.net.\n", ("example.org", "example.net")),
        ("domain example.org\n", ("example.org",)),
        ("domain example.org example.net\n", ("example.org",)),
        ("domain example.org\nsearch example.net\n", ("example.net",)),
        ("search example.net\ndomain example.org\n", ("example.org",)),
        ("search a.example\nsearch b.example\n", ("b.example",)),
        ("search a.example a.example.\n", ("a.example",)),
        ("search example.org # example.net\n", ("example.org",)),
        ("search .\n", ()),
        ("search\n", ()),
        ("domain\n", ()),
        (
            "search _tcp.example x--y.example -bad.example bad-.example b..ad bäd.example\n",
            ("_tcp.example", "x--y.example"),
        ),
        ("search " + "a" * 64 + ".example " + "a" * 63 + ".example\n", ("a" * 63 + ".example",)),
        ("search " + "a." * 126 + "a " + "a." * 126 + "aa\n", ("a." * 126 + "a",)),
    ],
)
def test_search(text: str, search: tuple[str, ...]) -> None:
    assert parse_resolv_conf(text).search == search


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    parse_resolv_conf(text)
    parse_resolv_conf(f"nameserver {text}\nsearch {text}")


def told(*nameservers: str, ipv4: GuestIPv4 | None = GUEST_4, ipv6: GuestIPv6 | None = GUEST_6) -> GuestResolvers:
    text = "".join(f"nameserver {nameserver}\n" for nameserver in nameservers)
    return resolvers_for_guest(parse_resolv_conf(text), ipv4, ipv6)


def forward(seen_by_guest: str, on_host: str) -> DnsForward:
    return DnsForward(ip_address(seen_by_guest), ip_address(on_host))


def test_nameservers_elsewhere_are_told_as_they_are() -> None:
    assert told("192.0.2.53", "2001:db8::53", "198.51.100.53") == GuestResolvers(
        Resolvers((IPv4Address("192.0.2.53"), IPv4Address("198.51.100.53")), (IPv6Address("2001:db8::53"),)),
        nameservers=(IPv4Address("192.0.2.53"), IPv6Address("2001:db8::53")),
    )


@pytest.mark.parametrize(
    ("nameserver", "on_host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.53", "127.0.0.53"),
        ("0.0.0.0", "127.0.0.1"),
        ("192.0.2.2", "192.0.2.2"),  # the host's own address is the guest's own
        ("192.0.2.1", "192.0.2.1"),  # what goes to the gateway would end at the host's loopback
    ],
)
def test_ipv4_nameserver_behind_the_gateways_address(nameserver: str, on_host: str) -> None:
    assert told(nameserver) == GuestResolvers(
        Resolvers((IPv4Address("192.0.2.1"),)), (forward("192.0.2.1", on_host),), (ip_address(on_host),)
    )


@pytest.mark.parametrize(
    ("nameserver", "on_host"),
    [
        ("::1", "::1"),
        ("::", "::1"),
        ("2001:db8::2", "2001:db8::2"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_ipv6_nameserver_behind_the_gateways_address(nameserver: str, on_host: str) -> None:
    assert told(nameserver) == GuestResolvers(
        Resolvers((), (IPv6Address("fe80::1"),)), (forward("fe80::1", on_host),), (ip_address(on_host),)
    )


def test_only_the_first_can_be_behind_the_gateways_address() -> None:
    assert told("127.0.0.53", "192.0.2.1", "127.0.0.1", "192.0.2.53") == GuestResolvers(
        Resolvers((IPv4Address("192.0.2.1"), IPv4Address("192.0.2.53"))),
        (forward("192.0.2.1", "127.0.0.53"),),
        (IPv4Address("127.0.0.53"),),
    )


def test_a_family_that_is_off_is_told_none() -> None:
    assert told("127.0.0.53", "2001:db8::53", ipv4=None).resolvers == Resolvers((), (IPv6Address("2001:db8::53"),))
    assert told("192.0.2.53", "::1", ipv6=None).resolvers == Resolvers((IPv4Address("192.0.2.53"),))
    assert told("127.0.0.53", ipv4=None).forwards == ()


@pytest.mark.parametrize(
    ("nameserver", "expected"),
    [("fe80::53%eth0", (IPv6Address("fe80::53"),)), ("fe80::53%wlan0", ()), ("fe80::53", ())],
)
def test_link_local_nameservers_are_told_on_their_link(nameserver: str, expected: tuple[IPv6Address, ...]) -> None:
    assert told(nameserver).resolvers.ipv6 == expected


def test_the_search_list_is_passed_on() -> None:
    conf = ResolvConf(search=("example.org",))
    assert resolvers_for_guest(conf, GUEST_4, None).resolvers.search == ("example.org",)
