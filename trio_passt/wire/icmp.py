"""ICMP (RFC 792) and ICMPv6 (RFC 4443): messages, and echo in particular.

The two differ in type numbers and in the pseudo-header that ICMPv6's checksum covers; echo is the same in
both: identifier, sequence number, data.
"""

import errno
import struct
from enum import IntEnum

from attrs import frozen

from trio_passt.wire import checksum
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.ip import IPProtocol

HEADER_BYTES = 4
ECHO_HEADER_BYTES = 8
_ECHO = struct.Struct("!BBHHH")


class IcmpType(IntEnum):
    """RFC 792."""

    ECHO_REPLY = 0
    DESTINATION_UNREACHABLE = 3
    ECHO = 8
    TIME_EXCEEDED = 11
    PARAMETER_PROBLEM = 12


class Icmpv6Type(IntEnum):
    """RFC 4443, RFC 4861, RFC 2710, RFC 9777."""

    DESTINATION_UNREACHABLE = 1
    PACKET_TOO_BIG = 2
    TIME_EXCEEDED = 3
    PARAMETER_PROBLEM = 4
    ECHO_REQUEST = 128
    ECHO_REPLY = 129
    MLD_QUERY = 130
    MLD_REPORT = 131
    MLD_DONE = 132
    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOR_SOLICITATION = 135
    NEIGHBOR_ADVERTISEMENT = 136
    MLDV2_REPORT = 143


_UNREACHABLE_CODES = {
    errno.ENETUNREACH: (0, 0),
    errno.EHOSTUNREACH: (1, 3),
    errno.EHOSTDOWN: (1, 3),
    errno.EACCES: (13, 1),
    errno.EPERM: (13, 1),
}
"""Codes of "destination unreachable" in ICMP (RFC 792, RFC 1812 section 5.2.7.1) and ICMPv6 (RFC 4443 section 3.1), by
the error that icmp(7) and ip(7) have for them: net, host, communication administratively prohibited."""

FRAGMENTATION_NEEDED = 4
"""The code of "destination unreachable" for it in ICMP (RFC 792, RFC 1191); ICMPv6 has a type of its own."""

REASSEMBLY_TIME_EXCEEDED = 1
"""The code of "time exceeded" in both versions."""

_ERRORS = frozenset({IcmpType.DESTINATION_UNREACHABLE, IcmpType.TIME_EXCEEDED, IcmpType.PARAMETER_PROBLEM})
_V6_ERRORS = frozenset(
    {Icmpv6Type.DESTINATION_UNREACHABLE, Icmpv6Type.PACKET_TOO_BIG, Icmpv6Type.TIME_EXCEEDED}
    | {Icmpv6Type.PARAMETER_PROBLEM}
)

QUOTED_BYTES = {4: 576 - 20 - 8, 16: 1280 - 40 - 8}
"""So much of a packet is quoted that the error's packet is no larger than every link carries (RFC 1812 4.3.2.3)."""


@frozen
class IcmpMessage:
    """Type, code, and everything after the checksum."""

    type: int
    code: int
    body: memoryview


@frozen
class Echo:
    """An echo request or reply: what both versions of ICMP have in common."""

    identifier: int
    sequence: int
    data: bytes


def _pseudo_sum(source: bytes, destination: bytes, length: int) -> int:
    if len(source) == 4:
        return 0  # ICMP has no pseudo-header
    return checksum.pseudo_header_sum(source, destination, IPProtocol.ICMPV6, length)


def parse(source: bytes, destination: bytes, packet: Buffer) -> IcmpMessage:
    """A message between two packed addresses, whose length tells ICMP from ICMPv6.

    Malformed: shorter than 4 bytes, or a wrong checksum.
    """
    view = memoryview(packet)
    if len(view) < HEADER_BYTES:
        raise MalformedPacket(f"ICMP message of {len(view)} bytes")
    if not checksum.is_valid(view, _pseudo_sum(source, destination, len(view))):
        raise MalformedPacket("ICMP checksum")
    return IcmpMessage(view[0], view[1], view[HEADER_BYTES:])


def emit(source: bytes, destination: bytes, message: IcmpMessage) -> bytes:
    """The message with its checksum."""
    blank = bytes([message.type, message.code, 0, 0]) + message.body
    field = checksum.finish(_pseudo_sum(source, destination, len(blank)) + checksum.sum_of(blank))
    return blank[:2] + field.to_bytes(2, "big") + blank[4:]


def parse_echo(message: IcmpMessage) -> Echo:
    """The echo in a message of type echo request or reply.  Malformed: no identifier and sequence number."""
    if len(message.body) < 4:
        raise MalformedPacket(f"ICMP echo with {len(message.body)} bytes after its checksum")
    identifier = int.from_bytes(message.body[:2], "big")
    sequence = int.from_bytes(message.body[2:4], "big")
    return Echo(identifier, sequence, bytes(message.body[4:]))


def echo_request(family_bytes: int, echo: Echo) -> IcmpMessage:
    """An echo request for IPv4 (`family_bytes` 4) or IPv6 (16)."""
    return _echo_message(IcmpType.ECHO if family_bytes == 4 else Icmpv6Type.ECHO_REQUEST, echo)


def echo_reply(family_bytes: int, echo: Echo) -> IcmpMessage:
    """An echo reply for IPv4 (`family_bytes` 4) or IPv6 (16)."""
    return _echo_message(IcmpType.ECHO_REPLY if family_bytes == 4 else Icmpv6Type.ECHO_REPLY, echo)


def _echo_message(type_: int, echo: Echo) -> IcmpMessage:
    packed = _ECHO.pack(type_, 0, 0, echo.identifier, echo.sequence)
    return IcmpMessage(type_, 0, memoryview(packed[HEADER_BYTES:] + echo.data))


def is_error(address_bytes: int, type_: int) -> bool:
    """Whether messages of this type tell of an error; `address_bytes` 4 means ICMP, 16 ICMPv6."""
    return type_ in (_ERRORS if address_bytes == 4 else _V6_ERRORS)


def quote(packet: Buffer) -> bytes:
    """What an error quotes of an IP packet: its beginning, as much as every link carries."""
    return bytes(packet[: QUOTED_BYTES[4 if packet[0] >> 4 == 4 else 16]])


def error(type_: int, code: int, info: int, packet: Buffer) -> IcmpMessage:
    """An error about the IP `packet`, of which as much is quoted as every link carries.

    `info` is what the type has besides: the MTU for "fragmentation needed" and "packet too big", a pointer (for ICMP in
    the highest byte of the 32 bits) for "parameter problem", else 0.
    """
    return IcmpMessage(type_, code, memoryview(info.to_bytes(4, "big") + quote(packet)))


def too_big(mtu_bytes: int, packet: Buffer) -> IcmpMessage:
    """What a router says of the IP `packet` that the next link, of this MTU, does not carry (RFC 1191, RFC 4443)."""
    if packet[0] >> 4 == 4:
        return error(IcmpType.DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, mtu_bytes & 0xFFFF, packet)
    return error(Icmpv6Type.PACKET_TOO_BIG, 0, mtu_bytes, packet)


def unreachable(number: int, packet: Buffer) -> IcmpMessage | None:
    """What a router would say to the sender of the IP `packet`, where a socket got the error `number` (errno).

    `None` for an error that is not about reachability.
    """
    codes = _UNREACHABLE_CODES.get(number)
    if codes is None:
        return None
    if packet[0] >> 4 == 4:
        return error(IcmpType.DESTINATION_UNREACHABLE, codes[0], 0, packet)
    return error(Icmpv6Type.DESTINATION_UNREACHABLE, codes[1], 0, packet)
