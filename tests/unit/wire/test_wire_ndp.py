from ipaddress import IPv6Address

import pytest
from codec_checks import (
    domain_names,
    ipv6s,
    macs,
    moderately,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u8,
    u16,
    u32,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.packet import Packet

from trio_passt.wire import icmp, ndp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import IcmpMessage, Icmpv6Type
from trio_passt.wire.ndp import (
    DnsSearch,
    DnsServers,
    NdpMessage,
    NeighborAdvertisement,
    NeighborSolicitation,
    Prefix,
    RouterAdvertisement,
    RouterSolicitation,
)

ROUTER, ALL_NODES = "fe80::1", "ff02::1"
MAC, MAC_TEXT = bytes.fromhex("9a559a559a55"), "9a:55:9a:55:9a:55"
TARGET = IPv6Address("2001:db8::5")

optional_macs = st.none() | macs
prefixes = st.builds(
    Prefix,
    address=ipv6s,
    length=st.integers(0, 128),
    valid_s=u32,
    preferred_s=u32,
    on_link=st.booleans(),
    autonomous=st.booleans(),
)
servers = st.builds(DnsServers, lifetime_s=u32, addresses=st.lists(ipv6s, min_size=1, max_size=4).map(tuple))
search = st.builds(DnsSearch, lifetime_s=u32, names=st.lists(domain_names, min_size=1, max_size=3).map(tuple))
advertisements = st.builds(
    RouterAdvertisement,
    router_lifetime_s=u16,
    hop_limit=u8,
    managed=st.booleans(),
    other=st.booleans(),
    reachable_ms=u32,
    retransmit_ms=u32,
    source_mac=optional_macs,
    mtu_bytes=st.none() | u32,
    prefixes=st.lists(prefixes, max_size=2).map(tuple),
    dns_servers=st.lists(servers, max_size=3).map(tuple),
    dns_search=st.lists(search, max_size=3).map(tuple),
)
unicast = ipv6s.filter(lambda address: not address.is_multicast)
values = st.one_of(
    st.builds(RouterSolicitation, source_mac=optional_macs),
    st.builds(NeighborSolicitation, target=unicast, source_mac=optional_macs),
    st.builds(
        NeighborAdvertisement,
        target=unicast,
        target_mac=optional_macs,
        router=st.booleans(),
        solicited=st.booleans(),
        override=st.booleans(),
    ),
    advertisements,
)

FULL = RouterAdvertisement(
    1800,
    64,
    managed=True,
    other=True,
    reachable_ms=1000,
    retransmit_ms=2000,
    source_mac=MAC,
    mtu_bytes=65520,
    prefixes=(
        Prefix(IPv6Address("2001:db8::"), 64, 86400, 14400),
        Prefix(IPv6Address("2001:db8:1::"), 64, 0, 0, on_link=False),
    ),
    dns_servers=(
        DnsServers(1800, (IPv6Address("2001:db8::53"), IPv6Address("fe80::53"))),
        DnsServers(0, (IPv6Address("2001:db8::54"),)),
    ),
    dns_search=(DnsSearch(600, ("lab.example.com", "example.org")), DnsSearch(0, ("old.example",))),
)
SCAPY_FULL = (
    ICMPv6ND_RA(chlim=64, M=1, O=1, prf=0, routerlifetime=1800, reachabletime=1000, retranstimer=2000)
    / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT)
    / ICMPv6NDOptMTU(mtu=65520)
    / ICMPv6NDOptPrefixInfo(prefix="2001:db8::", prefixlen=64, L=1, A=1, validlifetime=86400, preferredlifetime=14400)
    / ICMPv6NDOptPrefixInfo(prefix="2001:db8:1::", prefixlen=64, L=0, A=1, validlifetime=0, preferredlifetime=0)
    / ICMPv6NDOptRDNSS(dns=["2001:db8::53", "fe80::53"], lifetime=1800)
    / ICMPv6NDOptRDNSS(dns=["2001:db8::54"], lifetime=0)
    / ICMPv6NDOptDNSSL(searchlist=["lab.example.com", "example.org"], lifetime=600)
    / ICMPv6NDOptDNSSL(searchlist=["old.example"], lifetime=0)
)

PAIRS = [
    (RouterSolicitation(), ICMPv6ND_RS()),
    (RouterSolicitation(MAC), ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT)),
    (NeighborSolicitation(TARGET), ICMPv6ND_NS(tgt="2001:db8::5")),
    (
        NeighborSolicitation(TARGET, MAC),
        ICMPv6ND_NS(tgt="2001:db8::5") / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT),
    ),
    (
        NeighborAdvertisement(TARGET, MAC, router=True, solicited=False, override=True),
        ICMPv6ND_NA(tgt="2001:db8::5", R=1, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_TEXT),
    ),
    (
        NeighborAdvertisement(TARGET, solicited=True),
        ICMPv6ND_NA(tgt="2001:db8::5", R=0, S=1, O=0),
    ),
    (RouterAdvertisement(0), ICMPv6ND_RA(chlim=0, prf=0, routerlifetime=0)),
    (FULL, SCAPY_FULL),
]


def body_of(packet: Packet) -> IcmpMessage:
    packed = IPv6Address(ROUTER).packed, IPv6Address(ALL_NODES).packed
    return icmp.parse(*packed, bytes(IPv6(src=ROUTER, dst=ALL_NODES) / packet)[40:])


@pytest.mark.parametrize(("value", "packet"), PAIRS)
def test_byte_for_byte_what_scapy_emits(value: NdpMessage, packet: Packet) -> None:
    assert ndp.emit(value) == body_of(packet)
    assert ndp.parse(body_of(packet)) == value


def test_unknown_options_are_skipped() -> None:
    packet = ICMPv6ND_RS() / ICMPv6NDOptUnknown(type=200, data=bytes(6))
    packet = packet / ICMPv6NDOptSrcLLAddr(lladdr=MAC_TEXT)
    assert ndp.parse(body_of(packet)) == RouterSolicitation(MAC)


def test_options_of_an_unknown_shape_are_skipped() -> None:
    odd = [(5, 2), (3, 1), (25, 1), (25, 2), (31, 1), (31, 2), (1, 2)]
    body = bytes(12) + b"".join(bytes((kind, units)) + bytes(units * 8 - 2) for kind, units in odd)
    message = IcmpMessage(Icmpv6Type.ROUTER_ADVERTISEMENT, 0, memoryview(body))
    assert ndp.parse(message) == RouterAdvertisement(0)


@pytest.mark.parametrize(
    ("kind", "code", "body"),
    [
        (Icmpv6Type.ECHO_REQUEST, 0, bytes(4)),
        (Icmpv6Type.ROUTER_SOLICITATION, 1, bytes(4)),
        (Icmpv6Type.ROUTER_SOLICITATION, 0, bytes(3)),
        (Icmpv6Type.ROUTER_SOLICITATION, 0, bytes(4) + b"\1"),
        (Icmpv6Type.ROUTER_SOLICITATION, 0, bytes(4) + b"\1\0" + bytes(6)),
        (Icmpv6Type.ROUTER_SOLICITATION, 0, bytes(4) + b"\1\2" + bytes(6)),
        (Icmpv6Type.ROUTER_ADVERTISEMENT, 0, bytes(11)),
        (Icmpv6Type.NEIGHBOR_SOLICITATION, 0, bytes(19)),
        (Icmpv6Type.NEIGHBOR_SOLICITATION, 0, bytes(4) + b"\xff\x02" + bytes(14)),
        (Icmpv6Type.NEIGHBOR_ADVERTISEMENT, 0, bytes(19)),
        (Icmpv6Type.NEIGHBOR_ADVERTISEMENT, 0, bytes(4) + b"\xff\x02" + bytes(14)),
    ],
)
def test_malformed_messages(kind: int, code: int, body: bytes) -> None:
    with pytest.raises(MalformedPacket):
        ndp.parse(IcmpMessage(kind, code, memoryview(body)))


@pytest.mark.parametrize(
    "options",
    [
        b"\x1f\2" + bytes(6) + b"\3lab\4exa",
        b"\x1f\2" + bytes(6) + b"\xc0\0" + bytes(6),
        b"\x1f\2" + bytes(6) + b"\0" + b"\1a" + bytes(5),
    ],
)
def test_malformed_search_lists(options: bytes) -> None:
    with pytest.raises(MalformedPacket):
        ndp.parse(IcmpMessage(Icmpv6Type.ROUTER_ADVERTISEMENT, 0, memoryview(bytes(12) + options)))


def test_what_no_option_has_room_for() -> None:
    many = DnsServers(0, (TARGET,) * 128)
    with pytest.raises(ValueError, match="range"):
        ndp.emit(RouterAdvertisement(0, dns_servers=(many,)))
    with pytest.raises(ValueError, match="not a domain name"):
        ndp.emit(RouterAdvertisement(0, dns_search=(DnsSearch(0, ("a..b",)),)))


@moderately
@given(values)
def test_round_trip(value: NdpMessage) -> None:
    assert ndp.parse(ndp.emit(value)) == value


@moderately
@given(st.integers(133, 136), st.binary(max_size=120))
def test_arbitrary_bytes(kind: int, body: bytes) -> None:
    parses_or_is_malformed(lambda data: ndp.parse(IcmpMessage(kind, 0, memoryview(data))), body)


@pytest.mark.parametrize(("value", "packet"), PAIRS)
def test_truncation_and_corruption(value: NdpMessage, packet: Packet) -> None:
    message = body_of(packet)
    required_bytes = {133: 4, 134: 12, 135: 20, 136: 20}[message.type]

    def parse(data: bytes) -> NdpMessage:
        return ndp.parse(IcmpMessage(message.type, 0, memoryview(data)))

    survives_truncation(parse, bytes(message.body), required_bytes=required_bytes)
    survives_corruption(parse, bytes(message.body))
