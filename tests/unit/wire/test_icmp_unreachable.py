"""ICMP "destination unreachable", as scapy reads it."""

import errno
from ipaddress import ip_address

import pytest
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6
from scapy.packet import Packet

from trio_passt.wire import icmp, ip, tcp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import SYN, TcpOptions, TcpSegment

conf.ipv6_enabled = True

GUEST = {4: "198.51.100.5", 6: "2001:db8::5"}
REMOTE = {4: "203.0.113.80", 6: "2001:db8:80::80"}
ROUTER = {4: "198.51.100.1", 6: "fe80::1"}
CODES = {
    errno.ENETUNREACH: (0, 0),
    errno.EHOSTUNREACH: (1, 3),
    errno.EHOSTDOWN: (1, 3),
    errno.EACCES: (13, 1),
    errno.EPERM: (13, 1),
}
MOST_BYTES = {4: 576, 6: 1280}  # RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def syn_packet(version: int, payload: bytes = b"") -> bytes:
    source, destination = ip_address(GUEST[version]).packed, ip_address(REMOTE[version]).packed
    syn = TcpSegment(40_000, 443, 123_456_789, 0, SYN, 65535, payload, TcpOptions(1460, 7))
    return ip.emit_packet(source, destination, IPProtocol.TCP, tcp.emit(source, destination, syn))


def reported(version: int, number: int, packet: bytes) -> bytes:
    """The IP packet with the error."""
    router, guest = ip_address(ROUTER[version]).packed, ip_address(GUEST[version]).packed
    message = icmp.unreachable(number, packet)
    assert message is not None
    protocol = IPProtocol.ICMP if version == 4 else IPProtocol.ICMPV6
    return ip.emit_packet(router, guest, protocol, icmp.emit(router, guest, message))


def without_sums(version: int, data: bytes) -> Packet:
    seen = IP(data) if version == 4 else IPv6(data)
    if version == 4:
        del seen[IP].chksum, seen[ICMP].chksum
    else:
        del seen[ICMPv6DestUnreach].cksum
    return seen


@versions
@pytest.mark.parametrize("number", CODES, ids=errno.errorcode.get)
def test_scapy_reads_type_code_and_quoted_packet(version: int, number: int) -> None:
    packet = syn_packet(version)
    data = reported(version, number, packet)
    assert bytes(without_sums(version, data)) == data, "checksums"
    if version == 4:
        seen = IP(data)
        assert (seen[ICMP].type, seen[ICMP].code) == (3, CODES[number][0])
        assert (seen[ICMP].unused, seen[ICMP].nexthopmtu) in ((0, 0), (b"", 0), (None, 0))
        quoted, ports = seen[IPerror], seen[TCPerror]
    else:
        seen = IPv6(data)
        message = seen[ICMPv6DestUnreach]
        assert (message.type, message.code) == (1, CODES[number][1])
        quoted = seen[IPerror6]
        ports = seen[TCPerror] if TCPerror in seen else seen[TCP]
    assert (seen.src, seen.dst) == (ROUTER[version], GUEST[version])
    assert (quoted.src, quoted.dst) == (GUEST[version], REMOTE[version])
    assert (ports.sport, ports.dport, ports.seq) == (40_000, 443, 123_456_789)
    assert data.endswith(packet), "all of it is quoted"


@versions
@pytest.mark.parametrize("number", [0, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ECONNRESET, errno.EMFILE, -1, 99999])
def test_errors_that_are_not_about_reachability(version: int, number: int) -> None:
    assert icmp.unreachable(number, syn_packet(version)) is None


@versions
@pytest.mark.parametrize("more", [-1, 0, 1, 500])
def test_no_larger_than_every_link_carries(version: int, more: int) -> None:
    headers = 20 + 8 if version == 4 else 40 + 8
    room = MOST_BYTES[version] - headers - len(syn_packet(version))
    packet = syn_packet(version, bytes(range(256)) * 8)[: room + more + len(syn_packet(version))]
    data = reported(version, errno.EHOSTUNREACH, packet)
    assert len(data) == min(headers + len(packet), MOST_BYTES[version])
    assert data[headers:] == packet[: MOST_BYTES[version] - headers]
    message = icmp.parse(ip_address(ROUTER[version]).packed, ip_address(GUEST[version]).packed, data[headers - 8 :])
    assert bytes(message.body[:4]) == bytes(4), "the field that is not used"
