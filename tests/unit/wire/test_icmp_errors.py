"""ICMP errors of any kind, as scapy reads them: type, code, what comes with them, and what they quote."""

from ipaddress import ip_address

import pytest
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, IPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
)
from scapy.packet import Packet

from trio_passt.wire import icmp, ip, udp
from trio_passt.wire.icmp import IcmpMessage, IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.udp import UdpHeader

conf.ipv6_enabled = True

GUEST = {4: "198.51.100.5", 6: "2001:db8::5"}
REMOTE = {4: "203.0.113.80", 6: "2001:db8:80::80"}
ROUTER = {4: "198.51.100.1", 6: "fe80::1"}
MOST_BYTES = {4: 576, 6: 1280}  # RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)
ADDRESS_BYTES = {4: 4, 6: 16}

versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def packet(version: int, size: int = 20) -> bytes:
    ends = ip_address(GUEST[version]).packed, ip_address(REMOTE[version]).packed
    datagram = udp.emit(*ends, UdpHeader(5000, 9), (bytes(range(256)) * 200)[:size])
    return ip.emit_packet(*ends, IPProtocol.UDP, datagram)


def by_scapy(version: int, message: IcmpMessage) -> Packet:
    """The IP packet with the error, whose checksum is right."""
    ends = ip_address(ROUTER[version]).packed, ip_address(GUEST[version]).packed
    protocol = IPProtocol.ICMP if version == 4 else IPProtocol.ICMPV6
    data = ip.emit_packet(*ends, protocol, icmp.emit(*ends, message))
    assert icmp.parse(*ends, data[20 if version == 4 else 40 :]) == message
    return IP(data) if version == 4 else IPv6(data)


KINDS = [
    (4, IcmpType.DESTINATION_UNREACHABLE, 3, ICMP, ""),
    (4, IcmpType.TIME_EXCEEDED, 0, ICMP, ""),
    (4, IcmpType.PARAMETER_PROBLEM, 0, ICMP, "ptr"),
    (6, Icmpv6Type.DESTINATION_UNREACHABLE, 4, ICMPv6DestUnreach, ""),
    (6, Icmpv6Type.PACKET_TOO_BIG, 0, ICMPv6PacketTooBig, "mtu"),
    (6, Icmpv6Type.TIME_EXCEEDED, 1, ICMPv6TimeExceeded, ""),
    (6, Icmpv6Type.PARAMETER_PROBLEM, 1, ICMPv6ParamProblem, "ptr"),
]


@pytest.mark.parametrize(("version", "type_", "code", "layer", "field"), KINDS)
def test_scapy_reads_what_was_said(version: int, type_: int, code: int, layer: type[Packet], field: str) -> None:
    value = 20 if field else 0
    info = value << 24 if (version, field) == (4, "ptr") else value
    seen = by_scapy(version, icmp.error(type_, code, info, packet(version)))[layer]
    assert (seen.type, seen.code) == (type_, code)
    assert not field or getattr(seen, field) == value
    quoted = seen[IPerror if version == 4 else IPerror6]
    assert (quoted.src, quoted.dst) == (GUEST[version], REMOTE[version])
    assert (quoted[UDPerror].sport, quoted[UDPerror].dport) == (5000, 9)


@versions
@pytest.mark.parametrize("mtu_bytes", [68, 1280, 1500, 65535])
def test_too_big_tells_the_mtu(version: int, mtu_bytes: int) -> None:
    """RFC 1191 section 4, RFC 4443 section 3.2."""
    seen = by_scapy(version, icmp.too_big(mtu_bytes, packet(version)))
    if version == 4:
        assert (seen[ICMP].type, seen[ICMP].code, seen[ICMP].nexthopmtu) == (3, 4, mtu_bytes)
    else:
        assert seen[ICMPv6PacketTooBig].mtu == mtu_bytes
    assert bytes(seen).endswith(packet(version))


def test_mtu_that_icmp_has_no_room_for() -> None:
    """Loopback's is 65536: the lower 16 bits of it are no lie to anybody who takes zero for "unknown" (RFC 1191)."""
    assert bytes(icmp.too_big(65536, packet(4)).body[:4]) == bytes(4)
    assert bytes(icmp.too_big(65536, packet(6)).body[:4]) == b"\0\1\0\0"


@versions
@pytest.mark.parametrize("beyond", [-1, 0, 1, 40_000])
def test_quote_is_as_much_as_every_link_carries(version: int, beyond: int) -> None:
    header_bytes = 20 if version == 4 else 40
    quoted_bytes = MOST_BYTES[version] - header_bytes - 8
    sent = packet(version, quoted_bytes - header_bytes - 8 + beyond)
    seen = bytes(by_scapy(version, icmp.error(3, 0, 0, sent)))
    assert len(seen) == min(MOST_BYTES[version], header_bytes + 8 + len(sent))
    assert seen[header_bytes + 8 :] == sent[:quoted_bytes]


@versions
def test_quote_may_be_of_any_buffer_and_is_a_copy(version: int) -> None:
    sent = packet(version)
    buffer = bytearray(sent)
    message = icmp.error(3, 0, 0, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert bytes(message.body[4:]) == sent


@pytest.mark.parametrize(("version", "types"), [(4, {3, 11, 12}), (6, {1, 2, 3, 4})])
def test_types_that_are_errors(version: int, types: set[int]) -> None:
    """Not source quench (RFC 6633), and not redirects, which are not about a packet that was lost."""
    assert {type_ for type_ in range(256) if icmp.is_error(ADDRESS_BYTES[version], type_)} == types
