"""What the daemon sent, as scapy sees it: an oracle that shares no code with the daemon.

Every frame is checked as a whole: addresses of the Ethernet header, lengths, and all checksums.
"""

from attrs import field, frozen
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from trio_passt.link.memory import SentFrame
from trio_passt.wire.frames import Offload, Segmentation
from trio_passt.wire.tcp import TcpOptions, TcpSegment

conf.ipv6_enabled = True

TCP_FLAGS_OF_INTEREST = 0x3F

ICMP_ERRORS = frozenset({3, 11, 12})
ICMPV6_ERRORS = frozenset({1, 2, 3, 4})


@frozen
class Addressed:
    """The addresses, as text, and what was sent between them."""

    source: str
    destination: str


@frozen
class SeenTcp(Addressed):
    """A TCP segment; `flags`, options and payload as in `TcpSegment`.  `sack`: left and right edges, in pairs."""

    segment: TcpSegment
    sack: tuple[int, ...] = ()


@frozen
class SeenUdp(Addressed):
    """A UDP datagram."""

    source_port: int
    destination_port: int
    payload: bytes


@frozen
class SeenOther(Addressed):
    """Anything else that is in an IP packet, as scapy has it."""

    packet: Packet = field(repr=False)


@frozen
class SeenError(SeenOther):
    """An ICMP or ICMPv6 error; `info` is the word after the checksum, `quoted` the packet that it is about."""

    type: int
    code: int
    info: int
    quoted: bytes = field(repr=False)


@frozen
class SeenFragment(Addressed):
    """A fragment: its IP packet, as scapy has it, its place in the whole, and its part of that, in bytes."""

    packet: Packet = field(repr=False)
    number: int
    offset: int
    is_last: bool
    part: bytes = field(repr=False)


@frozen
class SeenFrame:
    """A frame that has no IP packet in it: ARP."""

    packet: Packet


Seen = SeenTcp | SeenUdp | SeenOther | SeenFragment | SeenFrame


def see(frame: bytes, guest_mac: str, host_mac: str = "9a:55:9a:55:9a:55") -> Seen:
    """Check the frame, and say what is in it."""
    ethernet = Ether(frame)
    assert ethernet.src == host_mac
    is_group = int(ethernet.dst[:2], 16) & 1
    assert is_group or ethernet.dst == guest_mac, f"frame to {ethernet.dst}"
    if IP not in ethernet and IPv6 not in ethernet:
        return SeenFrame(ethernet)
    ip = ethernet[IP] if IP in ethernet else ethernet[IPv6]
    if (fragment := _fragment(ip)) is not None:
        return fragment
    if (error := _error(ip)) is not None:
        return error
    _check_sums(ethernet, frame)
    if TCP in ip:
        return SeenTcp(ip.src, ip.dst, _segment(ip[TCP]), dict(ip[TCP].options).get("SAck", ()))
    if UDP in ip and ICMP not in ip:
        return SeenUdp(ip.src, ip.dst, ip[UDP].sport, ip[UDP].dport, bytes(ip[UDP].payload))
    return SeenOther(ip.src, ip.dst, ip)


def whole(fragments: list[SeenFragment], guest_mac: str, host_mac: str = "9a:55:9a:55:9a:55") -> Seen:
    """What is in a packet that came in these fragments, one after the other."""
    first = fragments[0].packet
    payload = b""
    for fragment in fragments:
        assert (fragment.source, fragment.destination, fragment.number) == (first.src, first.dst, fragments[0].number)
        assert fragment.offset == len(payload)
        assert fragment.is_last == (fragment is fragments[-1])
        payload += fragment.part
    packet: Packet = (
        IP(src=first.src, dst=first.dst, id=first.id, ttl=first.ttl, proto=first.proto)
        if IP in first
        else IPv6(src=first.src, dst=first.dst, hlim=first.hlim, nh=first[IPv6ExtHdrFragment].nh)
    )
    return see(bytes(Ether(src=host_mac, dst=guest_mac) / packet / Raw(payload)), guest_mac, host_mac)


def complete(sent: SentFrame) -> list[bytes]:
    """The frames that a link makes of one with work left to it: checksums filled in, segments cut, by scapy."""
    if sent.offload is None:
        return [sent.data]
    frame = Ether(sent.data)
    ip = frame[IP] if IP in frame else frame[IPv6]
    _check_pseudo_header_sum(ip, sent.offload)
    payload = bytes(ip[TCP].payload)
    step = sent.offload.segment_bytes or max(len(payload), 1)
    frames = []
    for at in range(0, max(len(payload), 1), step):
        piece = payload[at : at + step]
        segment = frame.copy()
        layer = segment[TCP]
        layer.remove_payload()
        layer.seq = (ip[TCP].seq + at) % 2**32
        if at + step < len(payload):
            layer.flags = str(layer.flags).replace("P", "").replace("F", "")
        del layer.chksum
        if IP in segment:
            del segment[IP].chksum
            del segment[IP].len
        else:
            del segment[IPv6].plen
        frames.append(bytes(segment / Raw(piece) if piece else segment))
    return frames


def _fragment(ip: Packet) -> SeenFragment | None:
    """A part of a packet; what is not the last one has a multiple of eight bytes."""
    data = bytes(ip)
    if IP in ip:
        if not (ip.flags.MF or ip.frag):
            return None
        assert checksum(data[:20]) == 0
        assert (ip.ihl, ip.len) == (5, len(data))
        found = SeenFragment(ip.src, ip.dst, ip, ip.id, ip.frag * 8, not ip.flags.MF, data[20:])
    elif ip.nh == 44:
        assert ip.plen == len(data) - 40
        header = ip[IPv6ExtHdrFragment]
        found = SeenFragment(ip.src, ip.dst, ip, header.id, header.offset * 8, not header.m, data[48:])
    else:
        return None
    assert found.part
    assert found.is_last or len(found.part) % 8 == 0
    return found


def _error(ip: Packet) -> SeenError | None:
    """An error quotes as much of a packet as it has room for, so scapy can't put its checksums right again."""
    data = bytes(ip)
    message = data[20:] if IP in ip else data[40:]
    if IP in ip:
        if ip.proto != 1 or message[0] not in ICMP_ERRORS:
            return None
        assert (checksum(data[:20]), checksum(message), ip.len) == (0, 0, len(data))
    else:
        if ip.nh != 58 or message[0] not in ICMPV6_ERRORS:
            return None
        assert in6_chksum(58, ip, message) == 0
        assert ip.plen == len(message)
    assert len(data) <= (576 if IP in ip else 1280), "RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)"
    info = int.from_bytes(message[4:8], "big")
    return SeenError(ip.src, ip.dst, ip, message[0], message[1], info, message[8:])


def _check_pseudo_header_sum(ip: Packet, offload: Offload) -> None:
    """What is in the checksum's field is the sum of the pseudo-header, and the offsets point to where they have to."""
    ip_bytes = 20 if IP in ip else 40
    tcp_bytes = len(ip[TCP])
    addresses = bytes(ip)[12:20] if IP in ip else bytes(ip)[8:40]
    pseudo = addresses + (6).to_bytes(2, "big") + tcp_bytes.to_bytes(4, "big")
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    assert ip[TCP].chksum % 65535 == total % 65535
    assert (offload.checksum_start, offload.checksum_offset) == (14 + ip_bytes, 16)
    assert offload.header_bytes == 14 + ip_bytes + ip[TCP].dataofs * 4
    if offload.segment_bytes:
        assert offload.segmentation is (Segmentation.TCPV4 if IP in ip else Segmentation.TCPV6)
        assert len(ip[TCP].payload) > offload.segment_bytes
    else:
        assert offload.segmentation is Segmentation.NONE


def _check_sums(packet: Packet, frame: bytes) -> None:
    again = packet.copy()
    for layer in (IP, TCP, UDP, ICMP):
        if layer in again:
            del again[layer].chksum
            if layer is IP:
                del again[layer].len
    if IPv6 in again:
        del again[IPv6].plen
        if "cksum" in again[IPv6].payload.fields:
            del again[IPv6].payload.cksum
    assert bytes(again) == frame, f"lengths or checksums: {packet!r}"


def _segment(tcp: Packet) -> TcpSegment:
    options = dict(tcp.options)
    return TcpSegment(
        tcp.sport,
        tcp.dport,
        tcp.seq,
        tcp.ack,
        int(tcp.flags) & TCP_FLAGS_OF_INTEREST,
        tcp.window,
        bytes(tcp.payload),
        TcpOptions(options.get("MSS"), options.get("WScale"), "SAckOK" in options),
    )
