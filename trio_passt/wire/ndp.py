"""Neighbour discovery (RFC 4861), with the DNS options of router advertisements (RFC 8106).

These are the bodies of ICMPv6 messages: `parse` takes what `icmp.parse` gave, `emit` makes what `icmp.emit`
takes. What concerns the packet around them (hop limit 255, source and destination) is not seen here.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv6Address
from typing import assert_never

from attrs import frozen

from trio_passt.wire import domain
from trio_passt.wire.errors import MalformedPacket
from trio_passt.wire.icmp import IcmpMessage, Icmpv6Type

HOP_LIMIT = 255
"""Sent and demanded: a packet that has it was not forwarded by a router (RFC 4861 section 3.1)."""

_UNIT_BYTES = 8
_PREFIX = struct.Struct("!BBIII16s")
_ADVERTISEMENT = struct.Struct("!BBHII")
_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20
_MANAGED, _OTHER = 0x80, 0x40
_ON_LINK, _AUTONOMOUS = 0x80, 0x40


class NdpOption(IntEnum):
    """Option types (RFC 4861 section 4.6; RFC 8106 section 5)."""

    SOURCE_LINK_LAYER = 1
    TARGET_LINK_LAYER = 2
    PREFIX_INFORMATION = 3
    MTU = 5
    RECURSIVE_DNS = 25
    DNS_SEARCH = 31


@frozen
class RouterSolicitation:
    """RFC 4861 section 4.1."""

    source_mac: bytes | None = None


@frozen
class NeighborSolicitation:
    """RFC 4861 section 4.3."""

    target: IPv6Address
    source_mac: bytes | None = None


@frozen
class NeighborAdvertisement:
    """RFC 4861 section 4.4."""

    target: IPv6Address
    target_mac: bytes | None = None
    router: bool = False
    solicited: bool = False
    override: bool = False


@frozen
class Prefix:
    """A prefix information option (RFC 4861 section 4.6.2): `address` is the prefix, its other bits zero."""

    address: IPv6Address
    length: int
    valid_s: int
    preferred_s: int
    on_link: bool = True
    autonomous: bool = True


@frozen
class DnsServers:
    """An RDNSS option (RFC 8106 section 5.1): 1 to 127 servers; a lifetime of 0 takes them back."""

    lifetime_s: int
    addresses: tuple[IPv6Address, ...]


@frozen
class DnsSearch:
    """A DNSSL option (RFC 8106 section 5.2): at least one search domain; a lifetime of 0 takes them back."""

    lifetime_s: int
    names: tuple[str, ...]


@frozen
class RouterAdvertisement:
    """RFC 4861 section 4.2.  0 for `router_lifetime_s` means: not a default router; for the others: not told."""

    router_lifetime_s: int
    hop_limit: int = 0
    managed: bool = False
    other: bool = False
    reachable_ms: int = 0
    retransmit_ms: int = 0
    source_mac: bytes | None = None
    mtu_bytes: int | None = None
    prefixes: tuple[Prefix, ...] = ()
    dns_servers: tuple[DnsServers, ...] = ()
    dns_search: tuple[DnsSearch, ...] = ()


NdpMessage = RouterSolicitation | RouterAdvertisement | NeighborSolicitation | NeighborAdvertisement


def parse(message: IcmpMessage) -> NdpMessage:
    """The meaning of a neighbour discovery message; options that are not known are skipped.

    Malformed (RFC 4861 sections 6.1, 7.1): another ICMPv6 type, a code other than 0, too short, an option of
    length 0 or that runs over the end, a neighbour message about a multicast address.
    """
    if message.code != 0:
        raise MalformedPacket(f"neighbour discovery message with code {message.code}")
    body = bytes(message.body)
    match message.type:
        case Icmpv6Type.ROUTER_SOLICITATION:
            return RouterSolicitation(_link_layer(NdpOption.SOURCE_LINK_LAYER, _options(body, 4)))
        case Icmpv6Type.ROUTER_ADVERTISEMENT:
            return _parse_router_advertisement(body)
        case Icmpv6Type.NEIGHBOR_SOLICITATION:
            options = _options(body, 20)
            return NeighborSolicitation(_target(body), _link_layer(NdpOption.SOURCE_LINK_LAYER, options))
        case Icmpv6Type.NEIGHBOR_ADVERTISEMENT:
            options = _options(body, 20)
            mac = _link_layer(NdpOption.TARGET_LINK_LAYER, options)
            flags = (bool(body[0] & flag) for flag in (_ROUTER, _SOLICITED, _OVERRIDE))
            return NeighborAdvertisement(_target(body), mac, *flags)
    raise MalformedPacket(f"ICMPv6 type {message.type} is not neighbour discovery")


def emit(value: NdpMessage) -> IcmpMessage:
    """The ICMPv6 message that says `value`.

    ValueError: a search domain that is not encodable, an option of more than 2040 bytes.
    """
    match value:
        case RouterSolicitation(source_mac):
            kind = Icmpv6Type.ROUTER_SOLICITATION
            body = bytes(4) + _emit_link_layer(NdpOption.SOURCE_LINK_LAYER, source_mac)
        case RouterAdvertisement():
            kind = Icmpv6Type.ROUTER_ADVERTISEMENT
            body = _emit_router_advertisement(value)
        case NeighborSolicitation(target, source_mac):
            kind = Icmpv6Type.NEIGHBOR_SOLICITATION
            body = bytes(4) + target.packed + _emit_link_layer(NdpOption.SOURCE_LINK_LAYER, source_mac)
        case NeighborAdvertisement(target, target_mac):
            kind = Icmpv6Type.NEIGHBOR_ADVERTISEMENT
            flags = value.router * _ROUTER | value.solicited * _SOLICITED | value.override * _OVERRIDE
            head = bytes((flags, 0, 0, 0)) + target.packed
            body = head + _emit_link_layer(NdpOption.TARGET_LINK_LAYER, target_mac)
        case _:
            assert_never(value)
    return IcmpMessage(kind, 0, memoryview(body))


def _options(body: bytes, start: int) -> list[tuple[int, bytes]]:
    """(type, value) of the options from `start` on; the whole list is checked (RFC 4861 section 4.6)."""
    if len(body) < start:
        raise MalformedPacket(f"neighbour discovery message with {len(body)} bytes after its checksum")
    return list(_each_option(body, start))


def _each_option(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset < len(body):
        length = body[offset + 1] * _UNIT_BYTES if offset + 1 < len(body) else 0
        if length == 0 or offset + length > len(body):
            raise MalformedPacket(f"neighbour discovery option of {length} bytes, {len(body) - offset} left")
        yield body[offset], body[offset + 2 : offset + length]
        offset += length


def _target(body: bytes) -> IPv6Address:
    target = IPv6Address(body[4:20])
    if target.is_multicast:
        raise MalformedPacket(f"neighbour discovery for {target}")
    return target


def _link_layer(kind: int, options: list[tuple[int, bytes]]) -> bytes | None:
    return next((value for code, value in options if code == kind and len(value) == 6), None)


def _emit_link_layer(kind: int, mac: bytes | None) -> bytes:
    return b"" if mac is None else _emit_option(kind, mac)


def _emit_option(kind: int, value: bytes) -> bytes:
    units = -(-(2 + len(value)) // _UNIT_BYTES)
    return bytes((kind, units)) + value.ljust(units * _UNIT_BYTES - 2, b"\0")


def _parse_router_advertisement(body: bytes) -> RouterAdvertisement:
    options = _options(body, _ADVERTISEMENT.size)
    hop_limit, flags, lifetime_s, reachable_ms, retransmit_ms = _ADVERTISEMENT.unpack_from(body)
    mtu_bytes = None
    prefixes: list[Prefix] = []
    servers: list[DnsServers] = []
    search: list[DnsSearch] = []
    for kind, value in options:
        match kind:
            case NdpOption.MTU if len(value) == 6:
                mtu_bytes = int.from_bytes(value[2:], "big")
            case NdpOption.PREFIX_INFORMATION if len(value) == _PREFIX.size:
                prefixes.append(_parse_prefix(value))
            case NdpOption.RECURSIVE_DNS if len(value) % 16 == 6 and len(value) > 6:
                addresses = tuple(IPv6Address(value[at : at + 16]) for at in range(6, len(value), 16))
                servers.append(DnsServers(int.from_bytes(value[2:6], "big"), addresses))
            case NdpOption.DNS_SEARCH if any(value[6:]):
                names = domain.parse_list(value[6:], padded=True)
                search.append(DnsSearch(int.from_bytes(value[2:6], "big"), names))
    return RouterAdvertisement(
        lifetime_s,
        hop_limit,
        bool(flags & _MANAGED),
        bool(flags & _OTHER),
        reachable_ms,
        retransmit_ms,
        _link_layer(NdpOption.SOURCE_LINK_LAYER, options),
        mtu_bytes,
        tuple(prefixes),
        tuple(servers),
        tuple(search),
    )


def _parse_prefix(value: bytes) -> Prefix:
    length, flags, valid_s, preferred_s, _reserved, address = _PREFIX.unpack(value)
    return Prefix(IPv6Address(address), length, valid_s, preferred_s, bool(flags & _ON_LINK), bool(flags & _AUTONOMOUS))


def _emit_router_advertisement(value: RouterAdvertisement) -> bytes:
    body = _ADVERTISEMENT.pack(
        value.hop_limit,
        value.managed * _MANAGED | value.other * _OTHER,
        value.router_lifetime_s,
        value.reachable_ms,
        value.retransmit_ms,
    )
    body += _emit_link_layer(NdpOption.SOURCE_LINK_LAYER, value.source_mac)
    if value.mtu_bytes is not None:
        body += _emit_option(NdpOption.MTU, bytes(2) + value.mtu_bytes.to_bytes(4, "big"))
    for prefix in value.prefixes:
        body += _emit_option(NdpOption.PREFIX_INFORMATION, _emit_prefix(prefix))
    for servers in value.dns_servers:
        packed = b"".join(address.packed for address in servers.addresses)
        body += _emit_option(NdpOption.RECURSIVE_DNS, _emit_lifetime(servers.lifetime_s) + packed)
    for search in value.dns_search:
        body += _emit_option(NdpOption.DNS_SEARCH, _emit_lifetime(search.lifetime_s) + domain.emit_list(search.names))
    return body


def _emit_lifetime(lifetime_s: int) -> bytes:
    return bytes(2) + lifetime_s.to_bytes(4, "big")


def _emit_prefix(prefix: Prefix) -> bytes:
    flags = prefix.on_link * _ON_LINK | prefix.autonomous * _AUTONOMOUS
    times = (prefix.valid_s, prefix.preferred_s)
    return _PREFIX.pack(prefix.length, flags, *times, 0, prefix.address.packed)
