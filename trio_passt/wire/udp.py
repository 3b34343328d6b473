"""UDP (RFC 768; over IPv6 RFC 8200 section 8.1)."""

import struct
from typing import Final

from attrs import frozen

from trio_passt.wire import checksum
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ip import IPProtocol

HEADER_BYTES: Final = 8
CHECKSUM_AT: Final = 6
_HEADER = struct.Struct("!HHHH")


@frozen
class UdpHeader:
    """The two ports; length and checksum are the codec's business."""

    source_port: int
    destination_port: int


def parse(source: bytes, destination: bytes, datagram: Buffer) -> tuple[UdpHeader, memoryview]:
    """Header and payload (a view) of a datagram between the packed addresses `source` and `destination`.

    Malformed: a length that the bytes do not have, a wrong checksum, no checksum over IPv6.  Bytes after the
    length are padding.
    """
    view = memoryview(datagram)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"UDP datagram of {len(view)} bytes")
    source_port, destination_port, length, field = _HEADER.unpack_from(view)
    if not HEADER_BYTES <= length <= len(view):
        raise MalformedPacket(f"UDP length {length}, there are {len(view)}")
    view = view[:length]
    if field == 0:
        if len(source) == 16:
            raise MalformedPacket("UDP over IPv6 without checksum")
    elif not checksum.is_valid(view, checksum.pseudo_header_sum(source, destination, IPProtocol.UDP, length)):
        raise MalformedPacket("UDP checksum")
    return UdpHeader(source_port, destination_port), view[HEADER_BYTES:]


def emit(source: bytes, destination: bytes, header: UdpHeader, payload: Buffer) -> bytes:
    """A datagram with its checksum; a sum of zero is sent as 0xFFFF (RFC 768), since zero means "none"."""
    length = HEADER_BYTES + len(payload)
    total = checksum.pseudo_header_sum(source, destination, IPProtocol.UDP, length)
    total += header.source_port + header.destination_port + length + checksum.sum_of(payload)
    field = checksum.finish(total) or 0xFFFF
    return _HEADER.pack(header.source_port, header.destination_port, length, field) + payload


def emit_beginning(source: bytes, destination: bytes, header: UdpHeader, known: Buffer, size: int) -> bytes:
    """The beginning of a datagram with a payload of `size` bytes, of which those in `known` are known, at most.

    Without all of it there is no saying what its checksum was: 0.
    """
    if len(known) >= size:
        return emit(source, destination, header, bytes(known[:size]))
    return _HEADER.pack(header.source_port, header.destination_port, HEADER_BYTES + size, 0) + known
