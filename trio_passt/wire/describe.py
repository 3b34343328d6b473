"""Any frame in one line of text, for `--trace`: what tcpdump(8) shows with -n and -e, more or less.

    52:54:00:12:34:56 > 9a:55:9a:55:9a:55 58 bytes: IPv4 192.0.2.10:40000 > 198.51.100.1:80 TCP SYN seq=1 win=65535 ...

What a parser of this package refuses is described as far as it goes, with the parser's words for what is wrong.  So a
frame that is dropped shows here why.
"""

import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from trio_passt.wire import arp, checksum, describe_services, dhcp, dhcpv6, ethernet, icmp, ipv4, ipv6, tcp, udp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType, format_mac
from trio_passt.wire.icmp import IcmpMessage, IcmpType, Icmpv6Type
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.ipv4 import IPv4Header
from trio_passt.wire.ipv6 import IPv6Header

_VLAN_TAGS = frozenset({0x8100, 0x88A8})
_LEAST_ETHERTYPE = 0x0600
"""Below it, the field is a length (IEEE 802.3 clause 3.2.6)."""

_FLAGS = (
    (tcp.SYN, "SYN"),
    (tcp.FIN, "FIN"),
    (tcp.RST, "RST"),
    (tcp.PSH, "PSH"),
    (tcp.ACK, "ACK"),
    (tcp.URG, "URG"),
    (0x40, "ECE"),
    (0x80, "CWR"),
)

MOST_CHARACTERS = 1000
"""Of a line: a guest could ask for 60 KB of it."""

_PROTOCOLS: dict[int, str] = {
    IPProtocol.ICMP: "ICMP",
    IPProtocol.IGMP: "IGMP",
    IPProtocol.TCP: "TCP",
    IPProtocol.UDP: "UDP",
    IPProtocol.ICMPV6: "ICMPv6",
}

_ICMP_TYPES: dict[int, str] = {
    IcmpType.ECHO_REPLY: "echo reply",
    IcmpType.DESTINATION_UNREACHABLE: "destination unreachable",
    5: "redirect",
    IcmpType.ECHO: "echo request",
    IcmpType.TIME_EXCEEDED: "time exceeded",
    IcmpType.PARAMETER_PROBLEM: "parameter problem",
}
_ICMPV6_TYPES: dict[int, str] = {
    Icmpv6Type.DESTINATION_UNREACHABLE: "destination unreachable",
    Icmpv6Type.PACKET_TOO_BIG: "packet too big",
    Icmpv6Type.TIME_EXCEEDED: "time exceeded",
    Icmpv6Type.PARAMETER_PROBLEM: "parameter problem",
    Icmpv6Type.ECHO_REQUEST: "echo request",
    Icmpv6Type.ECHO_REPLY: "echo reply",
    Icmpv6Type.MLD_QUERY: "MLD query",
    Icmpv6Type.MLD_REPORT: "MLD report",
    Icmpv6Type.MLD_DONE: "MLD done",
    Icmpv6Type.MLDV2_REPORT: "MLDv2 report",
}
_CODES = {
    (4, 3): {0: "net", 1: "host", 2: "protocol", 3: "port", 4: "fragmentation needed", 13: "prohibited"},
    (4, 11): {0: "in transit", 1: "reassembly"},
    (16, 1): {0: "no route", 1: "prohibited", 2: "beyond scope", 3: "address", 4: "port"},
    (16, 3): {0: "in transit", 1: "reassembly"},
}
"""Codes (RFC 792, RFC 1812 section 5.2.7.1; RFC 4443) by the packed address's length and the type."""


def describe(frame: Buffer, *, has_checksum: bool = True) -> str:
    """`frame` in one line of printable ASCII, whatever its bytes.

    Without `has_checksum` that of the transport layer is not looked at: the link is yet to fill it in.
    """
    view = memoryview(frame)
    try:
        header, payload = ethernet.parse(view)
    except MalformedPacket as error:
        return f"malformed: {error}"
    macs = f"{format_mac(header.source)} > {format_mac(header.destination)}"
    content = _or_what_is_wrong(lambda: _content(header.ethertype, payload, has_checksum))
    return _cut(f"{macs} {len(view)} bytes: {_printable(content)}")


def _printable(text: str) -> str:
    """Names come from the guest, and from resolv.conf."""
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _or_what_is_wrong(description: Callable[[], str]) -> str:
    try:
        return description()
    except MalformedPacket as error:
        return f"malformed: {error}"


def _content(ethertype: int, payload: memoryview, has_checksum: bool) -> str:
    match ethertype:
        case EtherType.ARP:
            return f"ARP {_arp(payload)}"
        case EtherType.IPV4:
            return f"IPv4 {_ipv4(payload, has_checksum)}"
        case EtherType.IPV6:
            return f"IPv6 {_ipv6(payload, has_checksum)}"
    if ethertype in _VLAN_TAGS and len(payload) >= 4:
        tag, inner = struct.unpack_from("!HH", payload)
        return f"VLAN {tag & 0xFFF}, EtherType {inner:#06x}"
    return f"IEEE 802.3, length {ethertype}" if ethertype < _LEAST_ETHERTYPE else f"EtherType {ethertype:#06x}"


def _arp(payload: memoryview) -> str:
    packet = arp.parse(payload)
    sender = f"{packet.sender_address} ({format_mac(packet.sender_mac)})"
    match packet.operation:
        case arp.ArpOperation.REQUEST if packet.is_probe:
            return f"probe: who has {packet.target_address}, asks {format_mac(packet.sender_mac)}"
        case arp.ArpOperation.REQUEST:
            return f"request: who has {packet.target_address}, asks {sender}"
        case arp.ArpOperation.REPLY:
            return f"reply: {packet.sender_address} is at {format_mac(packet.sender_mac)}"
    return f"operation {packet.operation} from {sender}"


# -- IP ---------------------------------------------------------------------------------------------------------------


def _ipv4(packet: memoryview, has_checksum: bool) -> str:
    header, payload = ipv4.parse(packet)
    return _ip(header, f"ttl={header.ttl}", payload, has_checksum)


def _ipv6(packet: memoryview, has_checksum: bool) -> str:
    header, payload = ipv6.parse(packet)
    return _ip(header, f"hlim={header.hop_limit}", payload, has_checksum)


def _ip(header: IPv4Header | IPv6Header, hop_limit: str, payload: memoryview, has_checksum: bool) -> str:
    """What comes after the header, be it a fragment or whole."""
    ends = (header.source, header.destination)
    if not header.is_fragment:
        return _packet(ends, hop_limit, header.protocol, payload, has_checksum)
    offset = header.fragment_offset
    fragment = f"fragment id={header.identification} bytes {offset}-{offset + len(payload) - 1}"
    last = "" if header.more_fragments else ", the last one,"
    return f"{_hosts(ends)} {hop_limit} {fragment}{last} of {_protocol(header.protocol)}"


def _packet(ends: tuple[bytes, bytes], hop_limit: str, protocol: int, payload: memoryview, has_checksum: bool) -> str:
    """`a:p > b:q ttl=64 TCP ...`."""
    has_ports = protocol in (IPProtocol.TCP, IPProtocol.UDP) and len(payload) >= 4
    where = _endpoints(ends, payload) if has_ports else _hosts(ends)
    beginning = f"{where} {hop_limit} {_protocol(protocol)}"
    try:
        what = _payload(ends, protocol, payload)
    except MalformedPacket as error:
        return f"{beginning} malformed: {error}"
    is_right = not has_checksum or _is_sum_right(ends, protocol, payload)
    return f"{beginning} {what}{'' if is_right else ' (wrong checksum)'}"


def _payload(ends: tuple[bytes, bytes], protocol: int, payload: memoryview) -> str:
    match protocol:
        case IPProtocol.TCP:
            return _tcp(payload)
        case IPProtocol.UDP:
            return _udp(payload)
        case IPProtocol.ICMP if len(ends[0]) == 4:
            return _icmp(4, payload)
        case IPProtocol.ICMPV6 if len(ends[0]) == 16:
            return _icmp(16, payload)
    return f"len={len(payload)}"


def _is_sum_right(ends: tuple[bytes, bytes], protocol: int, payload: memoryview) -> bool:
    """Whether the checksum of a transport header that is whole is right; nothing is wrong with what has none."""
    match protocol:
        case IPProtocol.TCP | IPProtocol.ICMPV6:
            pass
        case IPProtocol.UDP:
            length, field = struct.unpack_from("!HH", payload, 4)
            if field == 0:
                return len(ends[0]) == 4
            payload = payload[:length]
        case IPProtocol.ICMP:
            return checksum.is_valid(payload)
        case _:
            return True
    return checksum.is_valid(payload, checksum.pseudo_header_sum(*ends, protocol, len(payload)))


def _hosts(ends: tuple[bytes, bytes]) -> str:
    return f"{ip_address(ends[0])} > {ip_address(ends[1])}"


def _endpoints(ends: tuple[bytes, bytes], payload: memoryview) -> str:
    """With the two ports that both TCP and UDP begin with."""
    hosts = [f"[{ip_address(end)}]" if len(end) == 16 else str(ip_address(end)) for end in ends]
    source, destination = struct.unpack_from("!HH", payload)
    return f"{hosts[0]}:{source} > {hosts[1]}:{destination}"


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, f"protocol {number}")


# -- TCP and UDP ------------------------------------------------------------------------------------------------------


def _tcp(segment: memoryview) -> str:
    if len(segment) < tcp.HEADER_BYTES:
        raise MalformedPacket(f"TCP segment of {len(segment)} bytes")
    seq, ack, offset, bits, window = struct.unpack_from("!IIBBH", segment, 4)
    header_bytes = (offset >> 4) * 4
    if not tcp.HEADER_BYTES <= header_bytes <= len(segment):
        raise MalformedPacket(f"TCP data offset of {header_bytes} bytes in a segment of {len(segment)}")
    flags = "|".join(name for bit, name in _FLAGS if bits & bit) or "none"
    numbers = f"seq={seq}" + (f" ack={ack}" if bits & tcp.ACK else "") + f" win={window}"
    options = "".join(f" {option}" for option in _tcp_options(bytes(segment[tcp.HEADER_BYTES : header_bytes])))
    return f"{flags} {numbers} len={len(segment) - header_bytes}{options}"


def _tcp_options(data: bytes) -> Iterator[str]:
    """RFC 9293 section 3.2, RFC 7323, RFC 2018; padding is left out."""
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        length = data[1] if len(data) > 1 else 0
        if length < 2 or length > len(data):
            yield f"(option {data[0]} of length {length}, {len(data)} bytes left)"
            return
        yield _tcp_option(data[0], data[2:length])
        data = data[length:]


def _tcp_option(kind: int, value: bytes) -> str:
    match kind, len(value):
        case 2, 2:
            return f"mss={int.from_bytes(value, 'big')}"
        case 3, 1:
            return f"wscale={value[0]}"
        case 4, 0:
            return "sackOK"
        case 5, size if size and size % 8 == 0:
            edges = struct.unpack(f"!{size // 4}I", value)
            return "sack=" + ",".join(f"{edges[at]}-{edges[at + 1]}" for at in range(0, len(edges), 2))
        case 8, 8:
            return "ts={}/{}".format(*struct.unpack("!II", value))
    return f"option{kind}={value.hex()}"


def _udp(datagram: memoryview) -> str:
    if len(datagram) < udp.HEADER_BYTES:
        raise MalformedPacket(f"UDP datagram of {len(datagram)} bytes")
    source, destination, length = struct.unpack_from("!HHH", datagram)
    if not udp.HEADER_BYTES <= length <= len(datagram):
        raise MalformedPacket(f"UDP length {length}, there are {len(datagram)}")
    payload = datagram[udp.HEADER_BYTES : length]
    text = f"len={len(payload)}"
    ports = {source, destination}
    if ports & {dhcp.SERVER_PORT, dhcp.CLIENT_PORT}:
        return f"{text} DHCP " + _or_what_is_wrong(lambda: describe_services.dhcp_message(payload))
    if ports & {dhcpv6.SERVER_PORT, dhcpv6.CLIENT_PORT}:
        return f"{text} DHCPv6 " + _or_what_is_wrong(lambda: describe_services.dhcpv6_message(payload))
    return text


# -- ICMP -------------------------------------------------------------------------------------------------------------


def _icmp(address_bytes: int, packet: memoryview) -> str:
    if len(packet) < icmp.HEADER_BYTES:
        raise MalformedPacket(f"ICMP message of {len(packet)} bytes")
    type_, code, body = packet[0], packet[1], packet[icmp.HEADER_BYTES :]
    if address_bytes == 16 and type_ in describe_services.NDP_TYPES:
        return describe_services.ndp_message(IcmpMessage(type_, code, body))
    name = (_ICMP_TYPES if address_bytes == 4 else _ICMPV6_TYPES).get(type_, f"type {type_}")
    if name.startswith("echo"):
        echo = icmp.parse_echo(IcmpMessage(type_, code, body))
        return f"{name} id={echo.identifier} seq={echo.sequence} len={len(echo.data)}"
    if icmp.is_error(address_bytes, type_):
        return f"{name}{_code(address_bytes, type_, code)}{_error(address_bytes, type_, code, body)}"
    return f"{name} len={len(body)}"


def _code(address_bytes: int, type_: int, code: int) -> str:
    text = _CODES.get((address_bytes, type_), {}).get(code)
    return f" ({text or f'code {code}'})" if text or code else ""


def _error(address_bytes: int, type_: int, code: int, body: memoryview) -> str:
    """The MTU that is told, if one is, and what packet this is about."""
    if len(body) < 4:
        raise MalformedPacket(f"ICMP error with {len(body)} bytes after its checksum")
    mtu = ""
    if (address_bytes, type_) == (16, Icmpv6Type.PACKET_TOO_BIG):
        mtu = f" mtu={int.from_bytes(body[:4], 'big')}"
    elif (address_bytes, type_, code) == (4, IcmpType.DESTINATION_UNREACHABLE, icmp.FRAGMENTATION_NEEDED):
        mtu = f" mtu={int.from_bytes(body[2:4], 'big')}"
    return f"{mtu} about {_quoted(address_bytes, body[4:])}"


def _quoted(address_bytes: int, packet: memoryview) -> str:
    """The beginning of a packet, which is cut: who to whom, of what protocol."""
    header_bytes = ipv4.HEADER_BYTES if address_bytes == 4 else ipv6.HEADER_BYTES
    if len(packet) < header_bytes:
        return f"a packet of which {len(packet)} bytes are quoted"
    if address_bytes == 4:
        header_bytes = (packet[0] & 0x0F) * 4
        protocol, ends = packet[9], (bytes(packet[12:16]), bytes(packet[16:20]))
    else:
        protocol, ends = packet[6], (bytes(packet[8:24]), bytes(packet[24:40]))
    payload = packet[header_bytes:]
    has_ports = protocol in (IPProtocol.TCP, IPProtocol.UDP) and len(payload) >= 4
    return f"{_protocol(protocol)} {_endpoints(ends, payload) if has_ports else _hosts(ends)}"
