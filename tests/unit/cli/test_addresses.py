"""Address rules, as tables: what each option takes, each refusal, and which of them contradict each other."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli import addresses
from trio_passt.cli.options import Options, parse_options
from trio_passt.cli.values import UsageError
from trio_passt.config import (
    HOST_MAC,
    IPAddress,
    Outbound,
    Services,
    Transports,
    WishedAddress,
    Wishes,
)


def parsed(*words: str) -> Options:
    options = parse_options(words, Path("/"))
    assert isinstance(options, Options)
    return options


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_options(words, Path("/"))
    return str(caught.value)


def wished(text: str, prefix_length: int | None = None) -> WishedAddress:
    return WishedAddress(ip_address(text), prefix_length)


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(map(ip_address, texts))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Wishes()),
        (("-a", "192.0.2.7"), Wishes(addresses=(wished("192.0.2.7"),))),
        (("--address=192.0.2.7/24",), Wishes(addresses=(wished("192.0.2.7", 24),))),
        (("-a", "192.0.2.0/31"), Wishes(addresses=(wished("192.0.2.0", 31),))),
        (("-a", "192.0.2.255/32"), Wishes(addresses=(wished("192.0.2.255", 32),))),
        (("-a", "2001:db8::7"), Wishes(addresses=(wished("2001:db8::7"),))),
        (("-a", "[2001:db8::7]/48"), Wishes(addresses=(wished("2001:db8::7", 48),))),
        (("-a", "2001:db8::/64"), Wishes(addresses=(wished("2001:db8::", 64),))),
        (
            ("-a", "192.0.2.7", "-a", "2001:db8::7/64", "-a", "192.0.2.8/24"),
            Wishes(addresses=(wished("192.0.2.7"), wished("2001:db8::7", 64), wished("192.0.2.8", 24))),
        ),
        (("-a", "192.0.2.7", "-a", "192.0.2.7/25"), Wishes(addresses=(wished("192.0.2.7", 25),))),
        (("-a", "169.254.2.7"), Wishes(addresses=(wished("169.254.2.7"),))),
        (("-n", "24"), Wishes(netmask_bits=24)),
        (("-n255.255.255.0",), Wishes(netmask_bits=24)),
        (("--netmask", "255.255.255.255"), Wishes(netmask_bits=32)),
        (("-n", "128.0.0.0"), Wishes(netmask_bits=1)),
        (("-n", "8", "-n", "16"), Wishes(netmask_bits=16)),
        (("-a", "192.0.2.7/24", "-n", "24"), Wishes(addresses=(wished("192.0.2.7", 24),), netmask_bits=24)),
        (("-a", "2001:db8::7/64", "-n", "24"), Wishes(addresses=(wished("2001:db8::7", 64),), netmask_bits=24)),
        (("-g", "192.0.2.1"), Wishes(gateways=ips("192.0.2.1"))),
        (("-g", "2001:db8::1", "-g", "192.0.2.1"), Wishes(gateways=ips("192.0.2.1", "2001:db8::1"))),
        (("-g", "192.0.2.1", "-g", "192.0.2.2"), Wishes(gateways=ips("192.0.2.2"))),
        (("-g", "fe80::1"), Wishes(gateways=ips("fe80::1"))),
        (("-M", "02:00:5e:00:53:01"), Wishes(host_mac=bytes.fromhex("02005e005301"))),
        (("--mac-addr", "9A:55:9a:55:9a:55"), Wishes(host_mac=HOST_MAC)),
        (("-i", "eth0"), Wishes(interface_ipv4="eth0", interface_ipv6="eth0")),
        (("--outbound-if4", "eth1"), Wishes(interface_ipv4="eth1")),
        (("--outbound-if6", "eth2"), Wishes(interface_ipv6="eth2")),
        (
            ("--outbound-if4", "eth1", "--outbound-if6", "eth2", "-i", "eth0"),
            Wishes(interface_ipv4="eth0", interface_ipv6="eth0"),
        ),
        (("-i", "veth-15-letters"), Wishes(interface_ipv4="veth-15-letters", interface_ipv6="veth-15-letters")),
        (("-i", "ünfzehn"), Wishes(interface_ipv4="ünfzehn", interface_ipv6="ünfzehn")),
        (("-D", "192.0.2.53"), Wishes(dns_servers=ips("192.0.2.53"))),
        (("-D", "2001:db8::53", "-D", "127.0.0.53"), Wishes(dns_servers=ips("2001:db8::53", "127.0.0.53"))),
        (("-D", "192.0.2.53", "-D", "192.0.2.53"), Wishes(dns_servers=ips("192.0.2.53"))),
        (("--dns", "none"), Wishes(dns_servers=())),
        (("-D", "none", "-D", "none"), Wishes(dns_servers=())),
        (("-S", "example.org example.net"), Wishes(search=("example.org", "example.net"))),
        (("-S", "example.org", "--search", "example.net."), Wishes(search=("example.org", "example.net"))),
        (("--search=none",), Wishes(search=())),
        (("--search=none.",), Wishes(search=("none",))),
        (("-S", "_tcp.example.org"), Wishes(search=("_tcp.example.org",))),
        (("--no-dhcp-dns",), Wishes(tells_dns=False)),
        (("--no-dhcp-dns", "--dhcp-dns"), Wishes()),
        (("--dhcp-dns", "--no-dhcp-dns"), Wishes(tells_dns=False)),
        (("--no-dhcp-search",), Wishes(tells_search=False)),
        (("--no-dhcp-search", "--dhcp-search"), Wishes()),
        (("--no-map-gw",), Wishes(maps_gateway=False)),
        (("--map-host-loopback", "none"), Wishes(maps_gateway=False)),
        (("--map-host-loopback", "192.0.2.9"), Wishes(loopback_addresses=ips("192.0.2.9"))),
        (
            ("--map-host-loopback", "2001:db8::9", "--map-host-loopback", "192.0.2.9", "--no-map-gw"),
            Wishes(loopback_addresses=ips("192.0.2.9", "2001:db8::9"), maps_gateway=False),
        ),
        (
            ("--map-host-loopback", "192.0.2.9", "--map-host-loopback", "none"),
            Wishes(maps_gateway=False),
        ),
        (("--map-guest-addr", "169.254.1.2"), Wishes(own_addresses=ips("169.254.1.2"))),
        (("--map-guest-addr", "169.254.1.2", "--map-guest-addr", "none"), Wishes()),
        (("--map-guest-addr", "none", "--map-guest-addr", "2001:db8::2"), Wishes(own_addresses=ips("2001:db8::2"))),
        (("--no-tcp",), Wishes(transports=Transports(tcp=False))),
        (("--no-udp", "--no-icmp"), Wishes(transports=Transports(udp=False, icmp=False))),
        (("--no-dhcp", "--no-dhcpv6"), Wishes(services=Services(dhcp=False, dhcpv6=False))),
        (("--no-ra",), Wishes(services=Services(router_advertisements=False))),
        (("--no-ndp",), Wishes(services=Services(ndp=False, router_advertisements=False))),
        (
            ("-D", "192.0.2.53", "--dns-forward", "169.254.1.1", "--dns-host", "192.0.2.54"),
            Wishes(dns_servers=ips("192.0.2.53"), dns_forwards=ips("169.254.1.1"), dns_hosts=ips("192.0.2.54")),
        ),
        # what Podman says to passt's sibling, as far as it is about addresses
        (
            ("--dns-forward", "169.254.1.1", "--no-map-gw", "--map-guest-addr", "169.254.1.2"),
            Wishes(dns_forwards=ips("169.254.1.1"), maps_gateway=False, own_addresses=ips("169.254.1.2")),
        ),
    ],
)
def test_understood(words: tuple[str, ...], expected: Wishes) -> None:
    assert parsed(*words).wishes == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Outbound()),
        (("-o", "192.0.2.2"), Outbound(ipv4_address=IPv4Address("192.0.2.2"))),
        (
            ("-o", "2001:db8::2", "--outbound=192.0.2.3", "-o192.0.2.2"),
            Outbound(IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2")),
        ),
        (("--outbound-if4", "eth1", "-i", "eth0"), Outbound(ipv4_interface="eth1")),
        (("--outbound-if6", "eth1"), Outbound(ipv6_interface="eth1")),
        (("-i", "eth0"), Outbound()),
    ],
)
def test_where_connections_leave(words: tuple[str, ...], expected: Outbound) -> None:
    assert parsed(*words).outbound == expected


ADDRESS = "an IPv4 or IPv6 address is expected"
NOBODYS = "no interface can have this address"
MASK = "a mask as in 255.255.255.0, or its number of bits, is expected"
BITS = "a mask has 1 to 32 bits"
MAC = "a MAC address as in 02:00:00:00:00:01 is expected"
NAME = "an interface's name has 1 to 15 bytes, without '/', ':' or blanks"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--address", "", ADDRESS),
        ("--address", "guest", ADDRESS),
        ("--address", "192.0.2", ADDRESS),
        ("--address", "192.0.2.256", ADDRESS),
        ("--address", "192.0.2.07", ADDRESS),
        ("--address", "192.0.2.7:80", ADDRESS),
        ("--address", "2001:db8::7%eth0", ADDRESS),
        ("--address", "[192.0.2.7]", ADDRESS),
        ("--address", "/24", ADDRESS),
        ("--address", "192.0.2.7/", "a prefix length from 1 to 32 is expected after '/'"),
        ("--address", "192.0.2.7/0", "a prefix length from 1 to 32 is expected after '/'"),
        ("--address", "192.0.2.7/33", "a prefix length from 1 to 32 is expected after '/'"),
        ("--address", "192.0.2.7/255.255.255.0", "a prefix length from 1 to 32 is expected after '/'"),
        ("--address", "192.0.2.7/24/24", "a prefix length from 1 to 32 is expected after '/'"),
        ("--address", "2001:db8::7/129", "a prefix length from 1 to 128 is expected after '/'"),
        ("--address", "2001:db8::7/-1", "a prefix length from 1 to 128 is expected after '/'"),
        ("--address", "192.0.2.0/24", "this is the network address of 192.0.2.0/24"),
        ("--address", "192.0.2.255/24", "this is the broadcast address of 192.0.2.0/24"),
        ("--address", "192.0.2.4/30", "this is the network address of 192.0.2.4/30"),
        ("--address", "0.0.0.0", NOBODYS),
        ("--address", "0.1.2.3", NOBODYS),
        ("--address", "::", NOBODYS),
        ("--address", "127.0.0.1", NOBODYS),
        ("--address", "::1", NOBODYS),
        ("--address", "224.0.0.1", NOBODYS),
        ("--address", "255.255.255.255", NOBODYS),
        ("--address", "240.0.0.1", NOBODYS),
        ("--address", "ff02::1", NOBODYS),
        ("--address", "::ffff:192.0.2.7", NOBODYS),
        ("--address", "fe80::7", "a guest makes its link-local address by itself"),
        ("--netmask", "", MASK),
        ("--netmask", "x", MASK),
        ("--netmask", "255.255.255", MASK),
        ("--netmask", "-24", MASK),
        ("--netmask", "ffffff00", MASK),
        ("--netmask", "0", BITS),
        ("--netmask", "33", BITS),
        ("--netmask", "0.0.0.0", BITS),
        ("--netmask", "255.0.255.0", "the ones of a mask are all at its left"),
        ("--netmask", "0.0.0.255", "the ones of a mask are all at its left"),
        ("--gateway", "router", ADDRESS),
        ("--gateway", "192.0.2.1/24", ADDRESS),
        ("--gateway", "127.0.0.1", NOBODYS),
        ("--gateway", "0.0.0.0", NOBODYS),
        ("--gateway", "none", ADDRESS),
        ("--outbound", "eth0", ADDRESS),
        ("--outbound", "0.0.0.0", NOBODYS),
        ("--outbound", "::1", NOBODYS),
        ("--map-host-loopback", "127.0.0.1", NOBODYS),
        ("--map-host-loopback", "None", ADDRESS),
        ("--map-guest-addr", "", ADDRESS),
        ("--map-guest-addr", "224.0.0.1", NOBODYS),
        ("--mac-addr", "", MAC),
        ("--mac-addr", "02:00:00:00:00", MAC),
        ("--mac-addr", "02-00-00-00-00-01", MAC),
        ("--mac-addr", "02:00:00:00:00:0g", MAC),
        ("--mac-addr", "02:00:00:00:00:01:02", MAC),
        ("--mac-addr", "2:0:0:0:0:1", MAC),
        ("--mac-addr", "00:00:00:00:00:00", "no interface can have this MAC address"),
        ("--mac-addr", "01:00:5e:00:00:01", "no interface can have this MAC address"),
        ("--mac-addr", "ff:ff:ff:ff:ff:ff", "no interface can have this MAC address"),
        ("--interface", "", NAME),
        ("--interface", "sixteen-letters-", NAME),
        ("--interface", "a/b", NAME),
        ("--interface", "eth0:1", NAME),
        ("--interface", "eth 0", NAME),
        ("--interface", "..", NAME),
        ("--outbound-if4", "", NAME),
        ("--outbound-if6", "x" * 16, NAME),
        ("--dns", "", ADDRESS),
        ("--dns", "0.0.0.0", "no nameserver can have this address"),
        ("--dns", "192.0.2.53,192.0.2.54", ADDRESS),
        ("--search", "", "a list of domains is expected, or 'none'"),
        ("--search", "example.org -x", "'-x' is not a domain name"),
        ("--search", "a..b", "'a..b' is not a domain name"),
        ("--search", ".", "'' is not a domain name"),
    ],
)
def test_refused(option: str, value: str, reason: str) -> None:
    assert refusal(option, value) == f"invalid value '{value}' for option '{option}': {reason}"
    assert refusal("-f", f"{option}={value}") == f"invalid value '{value}' for option '{option}': {reason}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("-a", "192.0.2.7/24", "-n", "25"),
            "options '--address 192.0.2.7/24' and '--netmask' (/25) contradict each other",
        ),
        (
            ("-n", "255.255.255.0", "-a", "192.0.2.0"),
            "invalid value '192.0.2.0/24' for option '--address': this is the network address of 192.0.2.0/24",
        ),
        (
            ("-4", "-a", "2001:db8::7"),
            "options '--address 2001:db8::7' and '--ipv4-only' contradict each other",
        ),
        (("-6", "-a", "192.0.2.7"), "options '--address 192.0.2.7' and '--ipv6-only' contradict each other"),
        (("-g", "fe80::1", "-4"), "options '--gateway fe80::1' and '--ipv4-only' contradict each other"),
        (("-n", "24", "-6"), "options '--netmask' and '--ipv6-only' contradict each other: a mask is IPv4's"),
        (("-a", "192.0.2.7", "-g", "192.0.2.7"), "options '--address' and '--gateway' can't both be 192.0.2.7"),
        (
            ("-a", "192.0.2.6", "-a", "192.0.2.7", "--map-guest-addr", "192.0.2.7"),
            "options '--address' and '--map-guest-addr' can't both be 192.0.2.7",
        ),
        (
            ("-a", "2001:db8::7", "--map-host-loopback", "2001:db8:0::7"),
            "options '--address' and '--map-host-loopback' can't both be 2001:db8::7",
        ),
        (
            ("-a", "192.0.2.7", "--dns-forward", "192.0.2.7"),
            "options '--address' and '--dns-forward' can't both be 192.0.2.7",
        ),
        (
            ("--map-guest-addr", "192.0.2.9", "--map-host-loopback", "192.0.2.9"),
            "options '--map-host-loopback' and '--map-guest-addr' can't both be 192.0.2.9",
        ),
        (("-D", "192.0.2.53", "-D", "none"), "options '--dns none' and '--dns 192.0.2.53' contradict each other"),
        (
            ("-S", "none", "-S", "a.example b.example"),
            "options '--search none' and '--search a.example b.example' contradict each other",
        ),
    ],
)
def test_contradictions(words: tuple[str, ...], message: str) -> None:
    assert refusal(*words) == message


def test_what_only_another_family_could_use_is_no_contradiction() -> None:
    """A wrapper may say both; one family then has no use for it."""
    words = ("-6", "--dns-forward", "169.254.1.1", "--map-guest-addr", "169.254.1.2", "-D", "192.0.2.53")
    assert parsed(*words).wishes.own_addresses == ips("169.254.1.2")


def test_gateway_may_be_what_is_mapped_and_the_nameserver() -> None:
    words = ("-g", "192.0.2.1", "--map-host-loopback", "192.0.2.1", "--dns-forward", "192.0.2.1")
    assert parsed(*words).wishes.loopback_addresses == ips("192.0.2.1")


@pytest.mark.parametrize(
    "rule",
    [
        addresses.wished_address,
        addresses.netmask_bits,
        addresses.unicast_address,
        addresses.unicast_or_none,
        addresses.mac_address,
        addresses.interface_name,
    ],
)
@given(
    text=st.one_of(
        st.text(),
        st.ip_addresses().map(str),
        st.tuples(st.ip_addresses(), st.integers(-1, 130)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
        st.binary(max_size=7).map(lambda data: data.hex(":")),
    )
)
def test_any_text_is_a_value_or_refused(rule: Callable[[str, str], object], text: str) -> None:
    try:
        value = rule("--option", text)
    except UsageError:
        return
    match value:
        case WishedAddress(address=address) | (IPv4Address() | IPv6Address() as address):
            assert not any((address.is_loopback, address.is_multicast, address.is_unspecified))
        case int():
            assert 1 <= value <= 32
        case bytes():
            assert len(value) == 6
            assert value[0] % 2 == 0
        case str():
            assert value == text
        case None:
            assert text == "none"
        case _:
            raise AssertionError(value)
