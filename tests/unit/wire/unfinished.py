"""Frames as a kernel gives them to a network card that has offloads: with work left to do."""

from trio_passt.wire import checksum
from trio_passt.wire.frames import Offload, Segmentation
from trio_passt.wire.ip import IPProtocol

CHECKSUM_AT = {IPProtocol.TCP: 16, IPProtocol.UDP: 6}
KINDS = {
    (4, IPProtocol.TCP): Segmentation.TCPV4,
    (6, IPProtocol.TCP): Segmentation.TCPV6,
    (4, IPProtocol.UDP): Segmentation.UDP,
    (6, IPProtocol.UDP): Segmentation.UDP,
}

Left = tuple[bytes, Offload]


def unfinished(frame: bytes, segment_bytes: int = 0, *, transport_at: int = 0) -> Left:
    """The frame with the pseudo-header's sum where its checksum was; to be cut if a size is given.

    `transport_at` is needed where IP has options or extension headers.
    """
    version = frame[14] >> 4
    protocol = IPProtocol.TCP if IPProtocol.TCP in (frame[23] if version == 4 else frame[20],) else IPProtocol.UDP
    addresses = frame[26:34] if version == 4 else frame[22:54]
    middle = len(addresses) // 2
    at = transport_at or (34 if version == 4 else 54)
    size = len(frame) - at
    total = checksum.pseudo_header_sum(addresses[:middle], addresses[middle:], protocol, size)
    place = at + CHECKSUM_AT[protocol]
    header_bytes = at + ((frame[at + 12] >> 4) * 4 if protocol == IPProtocol.TCP else 8)
    kind = KINDS[version, protocol] if segment_bytes else Segmentation.NONE
    offload = Offload(at, CHECKSUM_AT[protocol], header_bytes, segment_bytes, kind)
    return frame[:place] + total.to_bytes(2, "big") + frame[place + 2 :], offload


def without_identification(frame: memoryview) -> bytes:
    """Who cuts a datagram numbers the pieces."""
    if frame[12:14] != b"\x08\x00":
        return bytes(frame)
    header = bytes(frame[14:18]) + bytes(2) + bytes(frame[20:24]) + bytes(2) + bytes(frame[26:34])
    field = checksum.checksum(header).to_bytes(2, "big")
    return bytes(frame[:14]) + header[:10] + field + header[12:] + bytes(frame[34:])
