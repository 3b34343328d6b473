"""DHCP for IPv4 (RFC 2131, options RFC 2132), and BOOTP (RFC 951), whose message it is.

A message here has each option once: options that were split (RFC 3396) or overflowed into the `file` and
`sname` fields (option 52, RFC 2131 section 4.1) come joined out of `parse`, and `emit` splits them and lets
them overflow as the message's size demands.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from ipaddress import IPv4Address

from attrs import frozen

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

SERVER_PORT = 67
CLIENT_PORT = 68
HARDWARE_ETHERNET = 1
FIXED_BYTES = 236
MAGIC_COOKIE = bytes((99, 130, 83, 99))
MIN_MESSAGE_BYTES = 300
"""Shortest message that every relay and client takes (RFC 1542 section 2.1)."""
MAX_MESSAGE_BYTES = 65507
MAX_FILE_BYTES, MAX_SNAME_BYTES = 127, 63
"""What the `file` and `sname` fields hold, less the zero at their end (RFC 2131 section 2), or the END of options."""

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_BROADCAST_FLAG = 0x8000
_OPTIONS_START = FIXED_BYTES + len(MAGIC_COOKIE)
EMPTY_MESSAGE_BYTES = _OPTIONS_START + 1
"""Of a message whose options are none: the END option is there in any case."""
_OVERLOAD_BYTES = 3
_FILE, _SNAME = 1, 2
"""Bits of option 52 (RFC 2132 section 9.3): the fields that hold options."""


class DhcpOperation(IntEnum):
    """The `op` field."""

    REQUEST = 1
    REPLY = 2


class DhcpMessageType(IntEnum):
    """Values of option 53 (RFC 2132 section 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class DhcpOption(IntEnum):
    """Option codes (RFC 2132; others as noted)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DOMAIN_NAME_SERVER = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    INTERFACE_MTU = 26
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_IDENTIFIER = 54
    PARAMETER_REQUEST_LIST = 55
    MESSAGE = 56
    MAX_MESSAGE_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    VENDOR_CLASS = 60
    CLIENT_IDENTIFIER = 61
    SERVER_NAME = 66
    BOOT_FILE = 67
    RAPID_COMMIT = 80  # RFC 4039
    CLIENT_FQDN = 81  # RFC 4702
    CLIENT_MACHINE = 97  # RFC 4578
    DOMAIN_SEARCH = 119  # RFC 3397
    CLASSLESS_ROUTES = 121  # RFC 3442
    MICROSOFT_ROUTES = 249  # the same, from before the RFC; MS-DHCPE section 2.2.8
    END = 255


_UNSPECIFIED = IPv4Address(0)


@frozen
class DhcpMessage:
    """A message.  The addresses bear the RFC's names: client's, "your", next server's, gateway's (a relay).

    `options` are (code, value) pairs in the order of the wire, each code once, without 0, 52 and 255.
    `server_name` and `boot_file` are without their zero padding, and empty where the fields hold options.
    """

    operation: int
    transaction_id: int
    client_mac: bytes
    options: tuple[tuple[int, bytes], ...] = ()
    broadcast: bool = False
    ciaddr: IPv4Address = _UNSPECIFIED
    yiaddr: IPv4Address = _UNSPECIFIED
    siaddr: IPv4Address = _UNSPECIFIED
    giaddr: IPv4Address = _UNSPECIFIED
    server_name: bytes = b""
    boot_file: bytes = b""
    hardware_type: int = HARDWARE_ETHERNET
    hops: int = 0
    elapsed_s: int = 0

    def option(self, code: int) -> bytes | None:
        """The value of option `code`, or None."""
        return next((value for present, value in self.options if present == code), None)


def parse(payload: Buffer) -> DhcpMessage:
    """The message in a UDP payload.  Without the magic cookie (plain BOOTP) it has no options.

    Malformed: shorter than 236 bytes, a hardware address longer than 16, an option that runs over the end of
    its field, an overload option that is not 1, 2 or 3.
    """
    data = bytes(payload)
    if len(data) < FIXED_BYTES:
        raise MalformedPacket(f"DHCP message of {len(data)} bytes")
    operation, hardware_type, mac_bytes, hops, xid, secs, flags, *rest = _FIXED.unpack_from(data)
    ciaddr, yiaddr, siaddr, giaddr, hardware_address, sname, file = rest
    if mac_bytes > len(hardware_address):
        raise MalformedPacket(f"DHCP hardware address of {mac_bytes} bytes")
    options: dict[int, bytearray] = {}
    if data[FIXED_BYTES:_OPTIONS_START] == MAGIC_COOKIE:
        _parse_options(data[_OPTIONS_START:], options)
        sname, file = _parse_overload(sname, file, options)
    return DhcpMessage(
        operation,
        xid,
        hardware_address[:mac_bytes],
        tuple((code, bytes(value)) for code, value in options.items()),
        bool(flags & _BROADCAST_FLAG),
        IPv4Address(ciaddr),
        IPv4Address(yiaddr),
        IPv4Address(siaddr),
        IPv4Address(giaddr),
        sname.partition(b"\0")[0],
        file.partition(b"\0")[0],
        hardware_type,
        hops,
        secs,
    )


def _parse_overload(sname: bytes, file: bytes, options: dict[int, bytearray]) -> tuple[bytes, bytes]:
    """Take the options out of the fields that option 52 names; what remains of `sname` and `file`."""
    if DhcpOption.OVERLOAD not in options:
        return sname, file
    overload = bytes(options.pop(DhcpOption.OVERLOAD))
    if overload not in (b"\x01", b"\x02", b"\x03"):
        raise MalformedPacket(f"DHCP option overload {overload.hex()}")
    if overload[0] & 1:  # file before sname: RFC 3396 section 5
        _parse_options(file, options)
        file = b""
    if overload[0] & 2:
        _parse_options(sname, options)
        sname = b""
    options.pop(DhcpOption.OVERLOAD, None)  # one inside an overloaded field means nothing
    return sname, file


def _parse_options(field: bytes, options: dict[int, bytearray]) -> None:
    offset = 0
    while offset < len(field):
        code = field[offset]
        offset += 1
        if code == DhcpOption.END:
            return
        if code == DhcpOption.PAD:
            continue
        if offset >= len(field) or offset + 1 + field[offset] > len(field):
            raise MalformedPacket(f"DHCP option {code} runs over the end")
        end = offset + 1 + field[offset]
        options.setdefault(code, bytearray()).extend(field[offset + 1 : end])
        offset = end


def emit(
    message: DhcpMessage,
    limit_bytes: int = MAX_MESSAGE_BYTES,
    *,
    may_overload: bool = True,
    dearest: Sequence[int] = (),
) -> bytes:
    """The message, at least 300 bytes and at most `limit_bytes`, which must be 300 or more.

    Options that do not fit go, in their order, into the `file` and `sname` fields, if need be also into one that
    has a name: that goes as option 67 or 66 then (RFC 2132 sections 9.4, 9.5).  What still has no room is left
    out, always whole: of the codes in `dearest` the last first, and before any of these the last of the others.
    """
    layout = _layout(message, limit_bytes - EMPTY_MESSAGE_BYTES, may_overload, dearest)
    fixed = _FIXED.pack(
        message.operation,
        message.hardware_type,
        len(message.client_mac),
        message.hops,
        message.transaction_id,
        message.elapsed_s,
        _BROADCAST_FLAG if message.broadcast else 0,
        message.ciaddr.packed,
        message.yiaddr.packed,
        message.siaddr.packed,
        message.giaddr.packed,
        message.client_mac,
        layout.sname,
        layout.file,
    )
    return (fixed + MAGIC_COOKIE + layout.options + bytes((DhcpOption.END,))).ljust(MIN_MESSAGE_BYTES, b"\0")


@frozen
class _Layout:
    """What is where in a message; and how many options are nowhere: of the dearest, and in all."""

    options: bytes
    file: bytes
    sname: bytes
    left_out: tuple[int, int]


def _layout(message: DhcpMessage, room_bytes: int, may_overload: bool, dearest: Sequence[int]) -> _Layout:
    """With no more fields overloaded than it takes; if all do not suffice, the one that leaves out least."""
    free = (0 if message.boot_file else _FILE) | (0 if message.server_name else _SNAME)
    layouts = []
    for fields in (0, free, _FILE | _SNAME) if may_overload else (0,):
        layout = _overloaded(message, room_bytes, fields, dearest)
        if layout.left_out == (0, 0):
            return layout
        layouts.append(layout)
    return min(layouts, key=lambda layout: layout.left_out)


def _overloaded(message: DhcpMessage, room_bytes: int, fields: int, dearest: Sequence[int]) -> _Layout:
    """The layout in which `fields`, as bits of option 52, have room for options."""
    options = dict(message.options)
    file, sname = message.boot_file, message.server_name
    rooms = [room_bytes - _OVERLOAD_BYTES if fields else room_bytes, 0, 0]
    if fields & _FILE:
        rooms[1] = MAX_FILE_BYTES
        if file:
            options.setdefault(DhcpOption.BOOT_FILE, file)
            file, dearest = b"", (*dearest, DhcpOption.BOOT_FILE)
    if fields & _SNAME:
        rooms[2] = MAX_SNAME_BYTES
        if sname:
            options.setdefault(DhcpOption.SERVER_NAME, sname)
            sname, dearest = b"", (*dearest, DhcpOption.SERVER_NAME)
    (main, file_options, sname_options), left_out = _fit(options, rooms, dearest)
    if overload := (_FILE if file_options else 0) | (_SNAME if sname_options else 0):
        main += bytes((DhcpOption.OVERLOAD, 1, overload))
    return _Layout(
        main,
        file + file_options + _end(file_options),
        sname + sname_options + _end(sname_options),
        (len(left_out.intersection(dearest)), len(left_out)),
    )


def _fit(options: dict[int, bytes], rooms: Sequence[int], dearest: Sequence[int]) -> tuple[list[bytes], set[int]]:
    """As many of the options as there is room for, the dearest first, and the codes of the others."""
    placed = _place(options.items(), rooms)
    if placed is not None:
        return placed, set()
    kept: set[int] = set()
    fields = [b""] * len(rooms)
    for code in sorted(options, key=lambda code: dearest.index(code) if code in dearest else len(dearest)):
        placed = _place([option for option in options.items() if option[0] in kept or option[0] == code], rooms)
        if placed is not None:
            kept.add(code)
            fields = placed
    return fields, options.keys() - kept


def _place(options: Collection[tuple[int, bytes]], rooms: Sequence[int]) -> list[bytes] | None:
    """Each option whole in the first field that has room for it, or None if one has no room anywhere."""
    fields = [b"" for _ in rooms]
    for code, value in options:
        encoded = _emit_option(code, value)
        fitting = (index for index, room in enumerate(rooms) if len(fields[index]) + len(encoded) <= room)
        index = next(fitting, None)
        if index is None:
            return None
        fields[index] += encoded
    return fields


def encoded_bytes(options: Mapping[int, bytes]) -> int:
    """How much room the options take, if they stand in one field."""
    return sum(len(_emit_option(code, value)) for code, value in options.items())


def _emit_option(code: int, value: bytes) -> bytes:
    """The option, in parts of 255 bytes if it is longer (RFC 3396)."""
    parts = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(part))) + part for part in parts)


def _end(options: bytes) -> bytes:
    return bytes((DhcpOption.END,)) if options else b""
