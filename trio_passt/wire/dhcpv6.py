"""DHCPv6 (RFC 8415): messages between clients and servers, and the options that nest inside them.

Relayed messages have another header (RFC 8415 section 9) and are not parsed here.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from ipaddress import IPv6Address

from attrs import frozen

from trio_passt.wire import domain
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

SERVER_PORT = 547
CLIENT_PORT = 546
MAX_DUID_BYTES = 130
"""A type code of 2 bytes and at most 128 more (RFC 8415 section 11.1)."""

_OPTION = struct.Struct("!HH")
_TIMES = struct.Struct("!III")
_ADDRESS = struct.Struct("!16sII")
_SERVER_UPDATES, _OVERRIDDEN, _NO_UPDATES = 1, 2, 4


class Dhcpv6Type(IntEnum):
    """Message types (RFC 8415 section 7.3)."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    RECONFIGURE = 10
    INFORMATION_REQUEST = 11
    RELAY_FORWARD = 12
    RELAY_REPLY = 13


class Dhcpv6OptionCode(IntEnum):
    """Option codes (RFC 8415 section 21; others as noted)."""

    CLIENT_IDENTIFIER = 1
    SERVER_IDENTIFIER = 2
    IA_NA = 3
    IA_TA = 4
    IA_ADDRESS = 5
    OPTION_REQUEST = 6
    PREFERENCE = 7
    ELAPSED_TIME = 8
    STATUS_CODE = 13
    RAPID_COMMIT = 14
    DNS_SERVERS = 23  # RFC 3646
    DOMAIN_LIST = 24  # RFC 3646
    IA_PD = 25
    INFORMATION_REFRESH_TIME = 32
    CLIENT_FQDN = 39  # RFC 4704


class Dhcpv6Status(IntEnum):
    """Status codes (RFC 8415 section 21.13)."""

    SUCCESS = 0
    UNSPECIFIED_FAILURE = 1
    NO_ADDRESSES_AVAILABLE = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    USE_MULTICAST = 5
    NO_PREFIX_AVAILABLE = 6


@frozen
class Dhcpv6Option:
    """One option, its value not looked into."""

    code: int
    value: bytes


@frozen
class Dhcpv6Message:
    """A message; `transaction_id` has 24 bits; `options` in the order of the wire."""

    type: int
    transaction_id: int
    options: tuple[Dhcpv6Option, ...] = ()

    def option(self, code: int) -> bytes | None:
        """The value of the first option `code`, or None."""
        return next((option.value for option in self.options if option.code == code), None)

    def all(self, *codes: int) -> list[Dhcpv6Option]:
        """The options that have one of `codes`, in order."""
        return [option for option in self.options if option.code in codes]


@frozen
class IdentityAssociation:
    """The value of an IA_NA or IA_PD option (RFC 8415 sections 21.4, 21.21); of an IA_TA, without the times
    (21.5).

    T1 and T2 are the seconds after which the client renews and rebinds.
    """

    identifier: int
    t1_s: int = 0
    t2_s: int = 0
    options: tuple[Dhcpv6Option, ...] = ()


@frozen
class IaAddress:
    """The value of an IA Address option (RFC 8415 section 21.6)."""

    address: IPv6Address
    preferred_s: int = 0
    valid_s: int = 0
    options: tuple[Dhcpv6Option, ...] = ()


@frozen
class ClientFqdn:
    """The value of a client FQDN option (RFC 4704 section 4), with its flags S, O and N.

    `server_updates`: the server is to keep the name's AAAA records; `overridden`: the client wanted it otherwise;
    `no_updates`: the server keeps no records at all.  `name` may be empty; not `qualified`: it may lack its end.
    """

    name: str
    server_updates: bool = False
    overridden: bool = False
    no_updates: bool = False
    qualified: bool = True


def parse(payload: Buffer) -> Dhcpv6Message:
    """The message in a UDP payload.

    Malformed: a relayed message, shorter than its 4 bytes of header, an option that runs over the end.
    """
    if len(payload) < 4:
        raise MalformedPacket(f"DHCPv6 message of {len(payload)} bytes")
    data = bytes(payload)
    if is_relayed(data):
        raise MalformedPacket(f"DHCPv6 message of type {data[0]}, between relays and servers")
    return Dhcpv6Message(data[0], int.from_bytes(data[1:4], "big"), parse_options(data[4:]))


def emit(message: Dhcpv6Message) -> bytes:
    """The message as a UDP payload."""
    return bytes((message.type,)) + message.transaction_id.to_bytes(3, "big") + emit_options(message.options)


def is_relayed(payload: Buffer) -> bool:
    """Whether the message is one between a relay and a server, which is neither parsed nor answered here."""
    return len(payload) > 0 and payload[0] in (Dhcpv6Type.RELAY_FORWARD, Dhcpv6Type.RELAY_REPLY)


def parse_options(data: bytes) -> tuple[Dhcpv6Option, ...]:
    """The options that fill `data`.  Malformed: one runs over the end."""
    options = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < _OPTION.size:
            raise MalformedPacket("DHCPv6 option cut short")
        code, length = _OPTION.unpack_from(data, offset)
        offset += _OPTION.size
        if offset + length > len(data):
            raise MalformedPacket(f"DHCPv6 option {code} of {length} bytes, {len(data) - offset} left")
        options.append(Dhcpv6Option(code, data[offset : offset + length]))
        offset += length
    return tuple(options)


def emit_options(options: Iterable[Dhcpv6Option]) -> bytes:
    """The options one after another."""
    return b"".join(_OPTION.pack(option.code, len(option.value)) + option.value for option in options)


def parse_association(option: Dhcpv6Option) -> IdentityAssociation:
    """The value of an IA_NA, IA_TA or IA_PD.  Malformed: too short, or its options run over its end."""
    if option.code == Dhcpv6OptionCode.IA_TA:
        if len(option.value) < 4:
            raise MalformedPacket(f"DHCPv6 IA_TA of {len(option.value)} bytes")
        identifier = int.from_bytes(option.value[:4], "big")
        return IdentityAssociation(identifier, options=parse_options(option.value[4:]))
    if len(option.value) < _TIMES.size:
        raise MalformedPacket(f"DHCPv6 identity association of {len(option.value)} bytes")
    identifier, t1_s, t2_s = _TIMES.unpack_from(option.value)
    return IdentityAssociation(identifier, t1_s, t2_s, parse_options(option.value[_TIMES.size :]))


def emit_association(code: int, association: IdentityAssociation) -> Dhcpv6Option:
    """An IA_NA, IA_TA or IA_PD option, as `code` says."""
    if code == Dhcpv6OptionCode.IA_TA:
        head = association.identifier.to_bytes(4, "big")
    else:
        head = _TIMES.pack(association.identifier, association.t1_s, association.t2_s)
    return Dhcpv6Option(code, head + emit_options(association.options))


def parse_address(value: bytes) -> IaAddress:
    """The value of an IA Address option.  Malformed: too short, or its options run over its end."""
    if len(value) < _ADDRESS.size:
        raise MalformedPacket(f"DHCPv6 IA address of {len(value)} bytes")
    packed, preferred_s, valid_s = _ADDRESS.unpack_from(value)
    return IaAddress(IPv6Address(packed), preferred_s, valid_s, parse_options(value[_ADDRESS.size :]))


def emit_address(address: IaAddress) -> Dhcpv6Option:
    """An IA Address option."""
    head = _ADDRESS.pack(address.address.packed, address.preferred_s, address.valid_s)
    return Dhcpv6Option(Dhcpv6OptionCode.IA_ADDRESS, head + emit_options(address.options))


def status_option(status: Dhcpv6Status, text: str) -> Dhcpv6Option:
    """A status code option with a text for people (RFC 8415 section 21.13)."""
    return Dhcpv6Option(Dhcpv6OptionCode.STATUS_CODE, status.to_bytes(2, "big") + text.encode())


def parse_fqdn(value: bytes) -> ClientFqdn:
    """The value of a client FQDN option.  Malformed: no flags, or a name that is none."""
    if not value:
        raise MalformedPacket("DHCPv6 client FQDN of 0 bytes")
    name, qualified = domain.parse_alone(value[1:])
    server_updates, overridden, no_updates = (
        bool(value[0] & flag) for flag in (_SERVER_UPDATES, _OVERRIDDEN, _NO_UPDATES)
    )
    return ClientFqdn(name, server_updates, overridden, no_updates, qualified)


def emit_fqdn(fqdn: ClientFqdn) -> Dhcpv6Option:
    """A client FQDN option.  ValueError: the name is not encodable."""
    flags = fqdn.server_updates * _SERVER_UPDATES | fqdn.overridden * _OVERRIDDEN | fqdn.no_updates * _NO_UPDATES
    name = domain.emit(fqdn.name) if fqdn.qualified else domain.emit_partial(fqdn.name)
    return Dhcpv6Option(Dhcpv6OptionCode.CLIENT_FQDN, bytes((flags,)) + name)
