"""One packet → IP fragments, for a guest whose MTU it exceeds (RFC 791 section 3.2, RFC 8200 section 4.5).

Nothing is copied: a fragment is its header and a view of its part of the packet.
"""

import itertools
import struct
from collections.abc import Iterator

from trio_passt.wire import checksum, ipv4, ipv6
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.ipv6 import IPv6Header

MAX_LENGTH = 0xFFFF
"""What the length fields hold, in bytes: that of IPv4 counts the header, that of IPv6 does not."""

Fragment = tuple[bytes, memoryview]
"""The headers of an IP packet, and its payload."""

_IPV4 = struct.Struct("!HHHHHH8s")
_IPV6 = struct.Struct("!IHBB32sBxHI")
_VERSION_IHL_TOS = 0x4500
_VERSION_CLASS_LABEL = 6 << 28
_IPV4_MORE_FRAGMENTS = 0x2000
_IPV6_MORE_FRAGMENTS = 1


def identifications(seed: int) -> Iterator[int]:
    """Numbers for `fragments`, without end: a 32-bit counter from `seed` on, of which IPv4 takes the lower half.

    To be seeded at random.  RFC 7739 asks for numbers that nobody off the path can guess, lest he put fragments of his
    own in between; there is no off the path on the link to the guest, so its plainest algorithm will do (a counter for
    each destination, section 5.1), which uses no number again as long as possible.
    """
    return (number & 0xFFFFFFFF for number in itertools.count(seed))


def fragments(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: Buffer,
    mtu_bytes: int,
    identification: int,
    hop_limit: int = ipv6.DEFAULT_HOP_LIMIT,
) -> list[Fragment]:
    """An upper-layer packet as IP packets of at most `mtu_bytes` each, in order.

    `source` and `destination` are packed addresses, whose length says which version (4 or 16 bytes); `identification`
    is reduced to the 16 or 32 bits of its field.  "Don't fragment" is clear.  A packet that needs no cutting comes as a
    single one, over IPv6 without a fragment header (RFC 8021: "atomic" fragments are not to be made).

    `ValueError`: a payload that no IP packet holds (65515 bytes for IPv4, 65535 for IPv6), or an MTU that has no
    room for 8 bytes of it.
    """
    view = memoryview(payload)
    ends = source + destination
    if len(source) == 4:
        return _ipv4_fragments(ends, protocol, view, mtu_bytes, identification & 0xFFFF, hop_limit)
    if len(view) <= min(mtu_bytes - ipv6.HEADER_BYTES, MAX_LENGTH):
        return [(ipv6.emit(IPv6Header(source, destination, protocol, hop_limit), len(view)), view)]
    return _ipv6_fragments(ends, protocol, view, mtu_bytes, identification & 0xFFFFFFFF, hop_limit)


def _ipv4_fragments(
    ends: bytes, protocol: int, view: memoryview, mtu_bytes: int, identification: int, hop_limit: int
) -> list[Fragment]:
    ttl_and_protocol = hop_limit << 8 | protocol
    # Headers differ in length and flags only: the rest is summed once.
    common_sum = checksum.sum_of(ends) + _VERSION_IHL_TOS + identification + ttl_and_protocol
    result = []
    for start, stop in _cuts(len(view), mtu_bytes - ipv4.HEADER_BYTES, MAX_LENGTH - ipv4.HEADER_BYTES):
        total = ipv4.HEADER_BYTES + stop - start
        flags = start >> 3 | (_IPV4_MORE_FRAGMENTS if stop < len(view) else 0)
        field = checksum.finish(common_sum + total + flags)
        header = _IPV4.pack(_VERSION_IHL_TOS, total, identification, flags, ttl_and_protocol, field, ends)
        result.append((header, view[start:stop]))
    return result


def _ipv6_fragments(
    ends: bytes, protocol: int, view: memoryview, mtu_bytes: int, identification: int, hop_limit: int
) -> list[Fragment]:
    result = []
    room = mtu_bytes - ipv6.HEADER_BYTES - ipv6.FRAGMENT_HEADER_BYTES
    for start, stop in _cuts(len(view), room, MAX_LENGTH):
        length = ipv6.FRAGMENT_HEADER_BYTES + stop - start
        offset_and_flag = start | (_IPV6_MORE_FRAGMENTS if stop < len(view) else 0)
        header = _IPV6.pack(
            *(_VERSION_CLASS_LABEL, length, ipv6.FRAGMENT, hop_limit, ends),
            *(protocol, offset_and_flag, identification),
        )
        result.append((header, view[start:stop]))
    return result


def _cuts(size: int, room: int, most: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of `size` bytes: at most `room` each, all but the last a multiple of 8."""
    if size > most:
        raise ValueError(f"a payload of {size} bytes, an IP packet holds {most}")
    if size <= room:
        return [(0, size)]
    step = room & ~7
    if step <= 0:
        raise ValueError(f"an MTU that leaves {room} bytes for the parts of a packet")
    bounds = [*range(0, size - room, step)]
    bounds.append(len(bounds) * step)
    return [*itertools.pairwise(bounds), (bounds[-1], size)]
