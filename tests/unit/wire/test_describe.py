"""Frames in words, made by scapy; and one line of printable text whatever the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from codec_checks import moderately
from hypothesis import given
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DHCP6_Advertise,
    DHCP6_RelayForward,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptRapidCommit,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
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
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from trio_passt.wire import dhcpv6
from trio_passt.wire.describe import MOST_CHARACTERS, describe
from trio_passt.wire.dhcpv6 import Dhcpv6Message, Dhcpv6OptionCode, IdentityAssociation

MAC = "52:54:00:12:34:56"
MACS = f"{MAC} > 9a:55:9a:55:9a:55"
ETHERNET = Ether(src=MAC, dst="9a:55:9a:55:9a:55")
V4 = ETHERNET / IP(src="192.0.2.10", dst="198.51.100.1")
V6 = ETHERNET / IPv6(src="2001:db8::10", dst="2001:db8::1")
LINK_LOCAL = ETHERNET / IPv6(src="fe80::10", dst="ff02::1", hlim=255)
BACK = IP(src="198.51.100.1", dst="192.0.2.10")
SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 9), ("EOL", None)]
NA_FLAGS = {"R": 1, "S": 1, "O": 1}


def arp(**fields: Any) -> Any:
    return ETHERNET / ARP(hwsrc=MAC, psrc="192.0.2.10", pdst="192.0.2.1", **fields)


def bootp(*options: Any, **fields: Any) -> Any:
    udp = ETHERNET / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    message = udp / BOOTP(chaddr=bytes.fromhex("525400123456"), xid=0x1234, **fields)
    return message / DHCP(options=[*options, "end"]) if options else message


def dhcp6(message: Any) -> Any:
    return ETHERNET / IPv6(src="fe80::10", dst="ff02::1:2") / UDP(sport=546, dport=547) / message


DESCRIBED = [
    (arp(), "ARP request: who has 192.0.2.1, asks 192.0.2.10 (52:54:00:12:34:56)"),
    (ETHERNET / ARP(hwsrc=MAC, psrc="0.0.0.0", pdst="192.0.2.1"), f"ARP probe: who has 192.0.2.1, asks {MAC}"),
    (arp(op=2), f"ARP reply: 192.0.2.10 is at {MAC}"),
    (arp(op=9), f"ARP operation 9 from 192.0.2.10 ({MAC})"),
    (arp(hwtype=6), "malformed: ARP for hardware, protocol and their lengths"),
    (
        V4 / TCP(sport=40000, dport=80, flags="S", seq=1, window=64240, options=SYN_OPTIONS),
        "IPv4 192.0.2.10:40000 > 198.51.100.1:80 ttl=64 TCP SYN seq=1 win=64240 len=0 mss=1460 sackOK ts=7/0 wscale=9",
    ),
    (
        V6 / TCP(sport=40000, dport=80, flags="PA", seq=5, ack=9, window=10) / b"hello",
        "IPv6 [2001:db8::10]:40000 > [2001:db8::1]:80 hlim=64 TCP PSH|ACK seq=5 ack=9 win=10 len=5",
    ),
    (
        V4 / TCP(sport=1, dport=2, flags="AE", ack=9, window=0, options=[("SAck", (10, 20, 30, 40)), (253, b"\1\2")]),
        "TCP ACK|ECE seq=0 ack=9 win=0 len=0 sack=10-20,30-40 option253=0102",
    ),
    (V4 / TCP(flags="", window=0), "TCP none seq=0 win=0 len=0"),
    (V4 / TCP(flags="R", chksum=1), "len=0 (wrong checksum)"),
    (
        V4 / TCP(dataofs=15),
        "192.0.2.10:20 > 198.51.100.1:80 ttl=64 TCP malformed: TCP data offset of 60 bytes in a segm",
    ),
    (V4 / TCP(raw(TCP(dataofs=6)) + b"\x02\x09\0\0"), "len=0 (option 2 of length 9, 4 bytes left)"),
    (
        ETHERNET / IP(raw(IP(src="192.0.2.10", dst="198.51.100.1", proto=6, len=23)) + b"abc"),
        "TCP malformed: TCP segment",
    ),
    (V4 / UDP(sport=5, dport=6) / b"abc", "IPv4 192.0.2.10:5 > 198.51.100.1:6 ttl=64 UDP len=3"),
    (V4 / UDP(sport=5, dport=6, chksum=0) / b"abc", "UDP len=3"),
    (V6 / UDP(sport=5, dport=6, chksum=0) / b"abc", "UDP len=3 (wrong checksum)"),
    (V4 / UDP(sport=5, dport=6, len=99) / b"abc", "UDP malformed: UDP length 99, there are 11"),
    (
        V4 / ICMP(type=8, id=7, seq=2) / b"abc",
        "IPv4 192.0.2.10 > 198.51.100.1 ttl=64 ICMP echo request id=7 seq=2 len=3",
    ),
    (V4 / ICMP(type=8, chksum=1), "ICMP echo request id=0 seq=0 len=0 (wrong checksum)"),
    (V4 / ICMP(type=0, id=7), "ICMP echo reply id=7 seq=0 len=0"),
    (
        V4 / ICMP(type=3, code=3) / BACK / UDP(sport=5, dport=6),
        "ICMP destination unreachable (port) about UDP 198.51.100.1:5 > 192.0.2.10:6",
    ),
    (
        V4 / ICMP(type=3, code=4, nexthopmtu=1400) / BACK / ICMP(),
        "ICMP destination unreachable (fragmentation needed) mtu=1400 about ICMP 198.51.100.1 > 192.0.2.10",
    ),
    (V4 / ICMP(type=11) / b"abc", "ICMP time exceeded (in transit) about a packet of which 3 bytes are quoted"),
    (V4 / ICMP(type=12, code=7) / BACK, "ICMP parameter problem (code 7) about protocol 0 198.51.100.1 > 192.0.2.10"),
    (V4 / ICMP(type=42), "ICMP type 42 len=4"),
    (V6 / ICMPv6EchoRequest(id=7, seq=2), "ICMPv6 echo request id=7 seq=2 len=0"),
    (
        V6 / ICMPv6PacketTooBig(mtu=1280) / IPv6(src="2001:db8::1", dst="2001:db8::10") / TCP(sport=5, dport=6),
        "ICMPv6 packet too big mtu=1280 about TCP [2001:db8::1]:5 > [2001:db8::10]:6",
    ),
    (V6 / ICMPv6DestUnreach(code=4) / b"", "ICMPv6 destination unreachable (port) about a packet of which 0 bytes"),
    (V6 / ICMPv6MLReport2(), "ICMPv6 MLDv2 report len=4"),
    (V4, "IPv4 192.0.2.10 > 198.51.100.1 ttl=64 protocol 0 len=0"),
    (ETHERNET / IP(src="192.0.2.10", dst="224.0.0.1", proto=2, ttl=1) / b"12345678", "ttl=1 IGMP len=8"),
    (ETHERNET / IP(src="192.0.2.10", dst="192.0.2.1", proto=58) / b"12345678", "ICMPv6 len=8 (wrong checksum)"),
    (
        ETHERNET / IP(src="192.0.2.10", dst="192.0.2.1", proto=17, flags="MF", id=9) / bytes(1480),
        "IPv4 192.0.2.10 > 192.0.2.1 ttl=64 fragment id=9 bytes 0-1479 of UDP",
    ),
    (
        V6 / IPv6ExtHdrFragment(offset=185, m=0, id=9, nh=17) / bytes(8),
        "IPv6 2001:db8::10 > 2001:db8::1 hlim=64 fragment id=9 bytes 1480-1487, the last one, of UDP",
    ),
    (ETHERNET / IP(chksum=1), "malformed: IPv4 header checksum"),
    (ETHERNET / IPv6(plen=9), "malformed: IPv6 payload length 9, there are 0"),
    (ETHERNET / Dot1Q(vlan=5) / IP(), "VLAN 5, EtherType 0x0800"),
    (Ether(src=MAC, dst="9a:55:9a:55:9a:55", type=0x88CC) / b"abc", "17 bytes: EtherType 0x88cc"),
    (Ether(src=MAC, dst="9a:55:9a:55:9a:55", type=3) / b"abc", "IEEE 802.3, length 3"),
    (LINK_LOCAL / ICMPv6ND_RS(), "IPv6 fe80::10 > ff02::1 hlim=255 ICMPv6 router solicitation"),
    (LINK_LOCAL / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC), f"ICMPv6 router solicitation, asks {MAC}"),
    (LINK_LOCAL / ICMPv6ND_NS(tgt="fe80::1"), "ICMPv6 neighbor solicitation: who has fe80::1"),
    (
        LINK_LOCAL / ICMPv6ND_NA(tgt="fe80::1", **NA_FLAGS) / ICMPv6NDOptDstLLAddr(lladdr=MAC),
        f"ICMPv6 neighbor advertisement: fe80::1 is at {MAC} router|solicited|override",
    ),
    (LINK_LOCAL / ICMPv6ND_NA(tgt="fe80::1", R=0, S=0, O=0), "neighbor advertisement: fe80::1"),
    (
        LINK_LOCAL
        / ICMPv6ND_RA(routerlifetime=1800, M=1, O=1)
        / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
        / ICMPv6NDOptMTU(mtu=65520)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8::", prefixlen=64, validlifetime=9, L=1, A=0)
        / ICMPv6NDOptRDNSS(dns=["2001:db8::53", "2001:db8::54"], lifetime=5)
        / ICMPv6NDOptDNSSL(searchlist=["example.org"], lifetime=6),
        f"router advertisement: lifetime=1800s managed|other mac={MAC} mtu=65520 prefix=2001:db8::/64 (9s on-link)"
        " dns=2001:db8::53,2001:db8::54 (5s) search=example.org (6s)",
    ),
    (LINK_LOCAL / ICMPv6ND_NS(tgt="ff02::1"), "ICMPv6 malformed: neighbour discovery for ff02::1"),
    (
        bootp(("message-type", "discover"), ("requested_addr", "192.0.2.5"), ("hostname", b"a\nb\xe9")),
        "IPv4 0.0.0.0:68 > 255.255.255.255:67 ttl=64 UDP len=256 DHCP DISCOVER xid=0x00001234"
        f" client={MAC} requested=192.0.2.5 name=a\\nb\\xe9",
    ),
    (
        bootp(
            ("message-type", "ack"),
            ("server_id", "192.0.2.1"),
            ("subnet_mask", "255.255.255.0"),
            ("router", "192.0.2.1"),
            ("name_server", *(f"192.0.2.{number}" for number in range(50, 56))),
            ("lease_time", 86400),
            ("interface-mtu", 65520),
            op=2,
            yiaddr="192.0.2.10",
        ),
        f"DHCP ACK xid=0x00001234 client={MAC} yiaddr=192.0.2.10 server=192.0.2.1 mask=255.255.255.0 router=192.0.2.1"
        " dns=192.0.2.50,192.0.2.51,192.0.2.52,192.0.2.53,... (6) lease=86400 mtu=65520",
    ),
    (bootp(("message-type", 77)), "DHCP type 77 xid"),
    (bootp(op=1), "DHCP BOOTP request xid"),
    (bootp(op=2), "DHCP BOOTP reply xid"),
    (bootp(hlen=77), "DHCP malformed: DHCP hardware address of 77 bytes"),
    (
        dhcp6(
            DHCP6_Solicit(trid=5)
            / DHCP6OptIA_NA(iaid=7, ianaopts=[DHCP6OptIAAddress(addr="2001:db8::7", validlft=60)])
            / DHCP6OptRapidCommit()
            / DHCP6OptClientFQDN(fqdn="a.example.org", flags=1)
        ),
        "DHCPv6 SOLICIT xid=0x000005 IA-NA=0x7(address=2001:db8::7 (60s)) rapid fqdn=a.example.org",
    ),
    (
        dhcp6(
            DHCP6_Advertise(trid=5)
            / DHCP6OptDNSServers(dnsservers=["2001:db8::53"])
            / DHCP6OptStatusCode(statuscode=2, statusmsg="none\tleft")
        ),
        "DHCPv6 ADVERTISE xid=0x000005 dns=2001:db8::53 status=2 (none\\tleft)",
    ),
    (dhcp6(DHCP6_RelayForward()), "DHCPv6 RELAY-FORWARD"),
    (dhcp6(b"\x63abc"), "DHCPv6 type 99 xid=0x616263"),
    (dhcp6(b"\x01abc\0\x01"), "DHCPv6 malformed: DHCPv6 option cut short"),
]


@pytest.mark.parametrize(("packet", "expected"), DESCRIBED, ids=range(len(DESCRIBED)))
def test_description(packet: Any, expected: str) -> None:
    frame = raw(packet)
    text = describe(frame)
    assert text.startswith(f"{MACS} {len(frame)} bytes: ")
    assert expected in text
    if not expected.endswith(")"):
        assert "wrong checksum" not in text


def test_frame_without_header() -> None:
    assert describe(b"abc") == "malformed: Ethernet frame of 3 bytes"


def test_checksum_that_is_to_be_filled_in() -> None:
    assert "wrong" not in describe(raw(V4 / TCP(flags="R", chksum=1)), has_checksum=False)


def test_a_line_has_an_end() -> None:
    """Thousands of options, and associations in each other, of a guest that wants to see what becomes of it."""
    option = dhcpv6.emit_association(Dhcpv6OptionCode.IA_NA, IdentityAssociation(1))
    for _ in range(3000):
        option = dhcpv6.emit_association(Dhcpv6OptionCode.IA_NA, IdentityAssociation(1, options=(option,)))
    text = describe(raw(dhcp6(dhcpv6.emit(Dhcpv6Message(1, 5, (option, *[option.__class__(77, b"")] * 2000))))))
    assert "IA-NA=0x1(option3) option77 option77" in text
    assert (len(text), text[-3:]) == (MOST_CHARACTERS, "...")


def is_one_printable_line(frame: bytes) -> None:
    text = describe(frame)
    assert text.isprintable(), repr(text)
    assert text.isascii(), repr(text)
    assert 0 < len(text) <= MOST_CHARACTERS


@pytest.mark.parametrize("packet", [packet for packet, _ in DESCRIBED], ids=range(len(DESCRIBED)))
def test_cut_or_damaged_anywhere_it_is_one_line(packet: Any) -> None:
    frame = raw(packet)
    for position in range(min(len(frame), 400)):
        is_one_printable_line(frame[:position])
        for value in (0, 0xFF):
            is_one_printable_line(frame[:position] + bytes((value,)) + frame[position + 1 :])


@given(st.binary(max_size=300))
@moderately
def test_any_bytes_are_one_line(data: bytes) -> None:
    is_one_printable_line(data)
    for ethertype in (0x0800, 0x0806, 0x86DD, 0x8100):
        is_one_printable_line(bytes(12) + ethertype.to_bytes(2, "big") + data)


@given(st.sampled_from([1, 2, 6, 17, 58]), st.sampled_from([67, 68, 546, 547, 9]), st.binary(max_size=400))
@moderately
def test_any_payload_is_one_line(protocol: int, port: int, data: bytes) -> None:
    """Behind an IP header that is right, and for UDP one of its own."""
    if protocol == 17:
        data = port.to_bytes(2, "big") * 2 + (8 + len(data)).to_bytes(2, "big") + bytes(2) + data
    is_one_printable_line(raw(ETHERNET / IP(src="192.0.2.10", dst="192.0.2.1", proto=protocol) / data))
    is_one_printable_line(raw(ETHERNET / IPv6(src="2001:db8::10", dst="2001:db8::1", nh=protocol) / data))


@given(st.integers(133, 136), st.binary(max_size=100), st.sampled_from([b"", bytes(4), bytes(20), bytes(12)]))
@moderately
def test_any_neighbour_discovery_is_one_line(kind: int, options: bytes, head: bytes) -> None:
    is_one_printable_line(raw(LINK_LOCAL / (bytes((kind, 0, 0, 0)) + head + options)))
