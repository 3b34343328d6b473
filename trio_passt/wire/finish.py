"""What a network card would do: fill in a checksum, cut a frame into segments or datagrams (see `Offload`).

The plain case needs none of it: its checksum is not looked at, and what is not cut need not be joined (`plain`,
`bulk`).  This is for all the rest: a SYN with its options, a frame whose header the link's kernel does not like.

Theory of operation
-------------------
The field to fill in holds the pseudo-header's sum, so nothing has to be known of addresses, options or extension
headers: what the transport header is preceded by is copied, but for lengths, and IPv4's identification and checksum.
Of a segment's pseudo-header only the length is another one.
"""

import struct
from collections.abc import Iterator, Sequence

from trio_passt.wire import checksum, ethernet, ipv4, ipv6, tcp, udp
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ethernet import EtherType
from trio_passt.wire.frames import MOST_DATAGRAMS, Offload, Segmentation
from trio_passt.wire.ip import IPProtocol

_IP_AT = ethernet.HEADER_BYTES
_PROTOCOLS = {
    Segmentation.TCPV4: (EtherType.IPV4, IPProtocol.TCP),
    Segmentation.TCPV6: (EtherType.IPV6, IPProtocol.TCP),
}


def finish(frame: memoryview, offload: Offload) -> list[memoryview]:
    """The frames that go over the wire, one or several, in order; read-only, copies unless there was nothing to do.

    Malformed: places that are not in the frame; segments of something else than what is in it.  A checksum that was
    wrong stays wrong.
    """
    if offload.is_verified:
        return [frame]
    start, place = offload.checksum_start, offload.checksum_start + offload.checksum_offset
    if start < _IP_AT or place + 2 > len(frame):
        raise MalformedPacket(f"checksum at byte {place} from byte {start}, in a frame of {len(frame)}")
    if offload.segment_bytes:
        return [memoryview(bytes(piece)) for piece in _cut(frame, offload)]
    whole = bytearray(frame)
    _put(whole, place, _field(checksum.sum_of(frame[start:])))
    return [memoryview(bytes(whole))]


def as_items(frame: memoryview, offload: Offload) -> Sequence[memoryview | MalformedPacket]:
    """The same; what is wrong is returned."""
    try:
        return finish(frame, offload)
    except MalformedPacket as problem:
        return [problem]


def cut_payload(payload: memoryview, size: int) -> list[memoryview]:
    """The payloads, views, of the datagrams of `size` that one stands for; 0: it is one."""
    if not 0 < size < len(payload):
        return [payload]
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def first_of(packet: memoryview, payload: memoryview, size: int) -> memoryview:
    """The first of the IP packets that a plain one, UDP in datagrams of `size`, is cut into.

    It is for being quoted, so its UDP checksum is left as it is.
    """
    return _packet_of_one(packet, payload, size, 0)


def last_of(packet: memoryview, payload: memoryview, size: int) -> memoryview:
    """The last of them."""
    return _packet_of_one(packet, payload, size, max(0, len(payload) - 1) // size)


def _packet_of_one(packet: memoryview, payload: memoryview, size: int, index: int) -> memoryview:
    header_bytes = len(packet) - len(payload)
    whole = bytearray(packet[:header_bytes]) + payload[index * size :][:size]
    udp_at = header_bytes - udp.HEADER_BYTES
    _put(whole, udp_at + 4, len(whole) - udp_at)
    _set_ip_length(whole, 0, udp_at, index)
    return memoryview(bytes(whole))


def _cut(frame: memoryview, offload: Offload) -> Iterator[bytearray]:
    """All segments, each a frame of its own (RFC 9293; a datagram of the same payload, for UDP)."""
    start, size, is_tcp = offload.checksum_start, offload.segment_bytes, offload.segmentation is not Segmentation.UDP
    _check_ip(frame, offload)
    header_bytes = start + ((frame[start + 12] >> 4) * 4 if is_tcp else udp.HEADER_BYTES)
    payload = frame[header_bytes:]
    count = max(1, -(-len(payload) // size))
    if offload.checksum_offset != (tcp.CHECKSUM_AT if is_tcp else udp.CHECKSUM_AT) or count > MOST_DATAGRAMS:
        raise MalformedPacket(f"{count} segments of {size} bytes, with checksums at {offload.checksum_offset}")
    pseudo_sum = int.from_bytes(frame[start + offload.checksum_offset :][:2], "big") + 0xFFFF - (len(frame) - start)
    for index in range(count):
        piece = bytearray(frame[:header_bytes]) + payload[index * size : (index + 1) * size]
        _set_ip_length(piece, _IP_AT, start, index)
        if is_tcp:
            _set_segment(piece, start, index * size, is_first=index == 0, is_last=index == count - 1)
        else:
            _put(piece, start + 4, len(piece) - start)
        _put(piece, start + offload.checksum_offset, checksum.fold(pseudo_sum + len(piece) - start))
        _put(piece, start + offload.checksum_offset, _field(checksum.sum_of(memoryview(piece)[start:])))
        yield piece


def _check_ip(frame: memoryview, offload: Offload) -> None:
    """What is to be cut is what the offload says, whole, and ends where the frame does."""
    start, ethertype = offload.checksum_start, int.from_bytes(frame[12:14], "big")
    wanted, protocol = _PROTOCOLS.get(offload.segmentation, (ethertype, IPProtocol.UDP))
    is_right = False
    if ethertype == wanted == EtherType.IPV4 and start >= _IP_AT + ipv4.HEADER_BYTES:
        header, _ = ipv4.parse(frame[_IP_AT:])
        header_bytes = (frame[_IP_AT] & 0x0F) * 4
        is_right = header.protocol == protocol and not header.is_fragment and start == _IP_AT + header_bytes
        is_right &= int.from_bytes(frame[_IP_AT + 2 :][:2], "big") == len(frame) - _IP_AT
    elif ethertype == wanted == EtherType.IPV6 and start >= _IP_AT + ipv6.HEADER_BYTES:
        header6, rest = ipv6.parse(frame[_IP_AT:])
        is_right = header6.protocol == protocol and not header6.is_fragment and len(rest) == len(frame) - start
    least = tcp.HEADER_BYTES if protocol == IPProtocol.TCP else udp.HEADER_BYTES
    is_right = is_right and start + least <= len(frame)
    if is_right and protocol == IPProtocol.TCP:
        header_bytes = (frame[start + 12] >> 4) * 4
        is_right = tcp.HEADER_BYTES <= header_bytes <= len(frame) - start
    if not is_right:
        raise MalformedPacket(f"no {offload.segmentation.name} to cut into segments")


def _set_ip_length(packet: bytearray, ip_at: int, transport_at: int, index: int) -> None:
    """The lengths that follow from how long it is now; over IPv4 also the identification of number `index`."""
    if packet[ip_at] >> 4 == 6:
        _put(packet, ip_at + 4, len(packet) - ip_at - ipv6.HEADER_BYTES)
        return
    identification = int.from_bytes(packet[ip_at + 4 : ip_at + 6], "big")
    _put(packet, ip_at + 2, len(packet) - ip_at)
    _put(packet, ip_at + 4, identification + index & 0xFFFF)
    _put(packet, ip_at + 10, 0)
    _put(packet, ip_at + 10, checksum.checksum(memoryview(packet)[ip_at:transport_at]))


def _set_segment(frame: bytearray, tcp_at: int, offset: int, *, is_first: bool, is_last: bool) -> None:
    """The sequence number, and the flags: what ends the data is said in the last one, CWR in the first (RFC 3168)."""
    (seq,) = struct.unpack_from("!I", frame, tcp_at + 4)
    struct.pack_into("!I", frame, tcp_at + 4, seq + offset & 0xFFFFFFFF)
    if not is_last:
        frame[tcp_at + 13] &= ~(tcp.FIN | tcp.PSH) & 0xFF
    if not is_first:
        frame[tcp_at + 13] &= ~_CWR & 0xFF


_CWR = 0x80


def _field(total: int) -> int:
    """The checksum for a sum; never 0, which in UDP means that there is none, and in TCP is the same as 0xFFFF."""
    return checksum.finish(total) or 0xFFFF


def _put(buffer: bytearray, place: int, number: int) -> None:
    """16 bits in the order of the wire."""
    buffer[place : place + 2] = number.to_bytes(2, "big")
