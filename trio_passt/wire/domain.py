"""Domain names as DNS writes them (RFC 1035 section 3.1), alone and in lists.

Search lists travel in three options: DHCP's 119 with compression (RFC 3397), DHCPv6's 24 (RFC 8415 section
10) and the DNSSL option of router advertisements (RFC 8106 section 5.2) without; a client's name alone, and maybe
without its end, in the client FQDN options (RFC 4702, RFC 4704).  A name here is a `str` of
labels joined by dots, without the root's dot at the end: `lab.example.com`.
"""

from collections.abc import Iterable

from trio_passt.wire.checksum import Buffer
from trio_passt.wire.errors import MalformedPacket

MAX_LABEL_BYTES = 63
MAX_NAME_BYTES = 255
"""Of an encoded name, length bytes and the root's zero included (RFC 1035 section 2.3.4)."""

_POINTER = 0xC0
_POINTER_REACH = 0x4000


def is_encodable(name: str) -> bool:
    """Whether `name` can be written: 1 to 63 printable ASCII characters a label, 255 bytes in all, not the
    root.
    """
    labels = _labels(name)
    short_enough = len(".".join(labels)) + 2 <= MAX_NAME_BYTES
    return short_enough and all(1 <= len(label) <= MAX_LABEL_BYTES and _is_text(label) for label in labels)


def emit(name: str) -> bytes:
    """`name`, without compression.  ValueError: `name` is not encodable."""
    return b"".join(_emit_label(label) for label in _labels(_checked(name))) + b"\0"


def emit_partial(name: str) -> bytes:
    """`name` without the root's zero at its end, which says that more may follow; no bytes for an empty one.

    So the client FQDN options have it (RFC 4702 section 3.3, RFC 4704 section 4.2).  ValueError: not encodable.
    """
    return emit(name)[:-1] if name else b""


def emit_list(names: Iterable[str]) -> bytes:
    """The names one after another, without compression.  ValueError: one of them is not encodable."""
    return b"".join(map(emit, names))


def emit_compressed(names: Iterable[str]) -> bytes:
    """The names one after another, common endings written once (RFC 1035 section 4.1.4).

    Pointers count from the start of what is returned, as RFC 3397 section 2 wants it of option 119.
    ValueError: a name is not encodable.
    """
    written = bytearray()
    offsets: dict[tuple[str, ...], int] = {}
    for name in names:
        labels = _labels(_checked(name))
        for index, label in enumerate(labels):
            ending = tuple(labels[index:])
            if ending in offsets:
                written += (_POINTER << 8 | offsets[ending]).to_bytes(2, "big")
                break
            if len(written) < _POINTER_REACH:
                offsets[ending] = len(written)
            written += _emit_label(label)
        else:
            written += b"\0"
    return bytes(written)


def parse_list(data: Buffer, *, padded: bool = False) -> tuple[str, ...]:
    """The names in `data`, which are compressed or not; `padded`: zero bytes may follow the last (RFC 8106).

    Malformed: a name that runs over the end, has more than 255 bytes, a label that is not printable ASCII or
    contains a dot, or a pointer that does not point to before the name it stands in (so there are no loops);
    the root.
    """
    data = bytes(data)
    names = []
    offset = 0
    while offset < len(data):
        if padded and not any(data[offset:]):
            break
        labels, offset = _parse_name(data, offset)
        if not labels:
            raise MalformedPacket("the root in a list of domain names")
        names.append(".".join(labels))
    return tuple(names)


def parse_alone(data: Buffer) -> tuple[str, bool]:
    """The one name that fills `data`, and whether it is fully qualified: whether the root's zero ends it.

    That of no labels is empty and not qualified, with or without the zero.
    Malformed: as in a list; a pointer; a name that bytes follow.
    """
    data = bytes(data)
    labels, end = _parse_name(data + b"\0", 0)
    if end < len(data):
        raise MalformedPacket(f"domain name of {end} bytes and {len(data) - end} after it")
    return ".".join(labels), bool(labels) and end == len(data)


def _parse_name(data: bytes, start: int) -> tuple[list[str], int]:
    """Labels of the name at `start`, and the offset after it."""
    labels: list[str] = []
    name_bytes = 1
    offset, pointers_before = start, start
    after_name: int | None = None
    while True:
        if offset >= len(data):
            raise MalformedPacket("domain name runs over the end")
        length = data[offset]
        if length == 0:
            return labels, offset + 1 if after_name is None else after_name
        if length >= _POINTER:
            target = int.from_bytes(data[offset : offset + 2], "big") - (_POINTER << 8)
            if offset + 1 >= len(data) or target >= pointers_before:
                raise MalformedPacket("domain name with a pointer that does not lead back")
            if after_name is None:
                after_name = offset + 2
            offset = pointers_before = target
            continue
        name_bytes += 1 + length
        if length > MAX_LABEL_BYTES or name_bytes > MAX_NAME_BYTES:
            raise MalformedPacket(f"domain name with a label of {length} bytes, {name_bytes} in all")
        labels.append(_parse_label(data[offset + 1 : offset + 1 + length], length))
        offset += 1 + length


def _parse_label(octets: bytes, length: int) -> str:
    label = octets.decode("latin-1")
    if len(label) < length:
        raise MalformedPacket("domain name runs over the end")
    if not _is_text(label) or "." in label:
        raise MalformedPacket(f"domain name with label {octets!r}")
    return label


def _checked(name: str) -> str:
    if not is_encodable(name):
        raise ValueError(f"not a domain name: {name!r}")
    return name


def _labels(name: str) -> list[str]:
    return name.removesuffix(".").split(".")


def _emit_label(label: str) -> bytes:
    return bytes([len(label)]) + label.encode("ascii")


def _is_text(label: str) -> bool:
    return label.isascii() and label.isprintable() and " " not in label
