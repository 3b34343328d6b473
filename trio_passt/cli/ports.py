"""Port specifications (`-t`, `-u`): text → forwarded ports.

    SPECIFICATION = none | [ADDRESS/] CHUNK [,CHUNK]...
    CHUNK         = PORT[-PORT][:TARGET[-TARGET]]  |  ~PORT[-PORT]

`~` takes ports out of the same specification's chunks.  `all`, `auto`, `%INTERFACE` and exclusions alone are
part of passt(1)'s grammar, and refused as not supported yet.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from trio_passt.cli.values import address, invalid, number
from trio_passt.config import PortForward, Protocol


@frozen
class Range:
    """Ports `first` to `last`, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse_ports(option: str, protocol: Protocol, specifications: Sequence[str]) -> tuple[PortForward, ...]:
    """All ports that the repeated option names, in order.

    Raises `UsageError` naming the specification: what can't be understood, and what overlaps.
    """
    for text in specifications:
        if text == "none" and len(set(specifications)) > 1:
            other = next(given for given in specifications if given != "none")
            raise invalid(option, text, f"contradicts '{other}'")
    taken: dict[int, list[PortForward]] = {}
    forwards: list[PortForward] = []
    for text in specifications:
        for forward in _parse_one(option, protocol, text):
            for other_forward in taken.setdefault(forward.port, []):
                if _overlap(forward.address, other_forward.address):
                    raise invalid(option, text, f"port {forward.port} is given more than once")
            taken[forward.port].append(forward)
            forwards.append(forward)
    return tuple(forwards)


def follow(forwards: Iterable[PortForward]) -> tuple[PortForward, ...]:
    """The UDP ports that accompany TCP ports when no `-u` is given: same numbers and addresses, not
    translated.

    Nobody asked for them by name, so one that can't be bound is no error.
    """
    return tuple(
        PortForward(Protocol.UDP, forward.port, forward.port, forward.address, must_bind=False) for forward in forwards
    )


def _parse_one(option: str, protocol: Protocol, text: str) -> list[PortForward]:
    if text == "none":
        return []
    if text in ("all", "auto"):
        raise invalid(option, text, f"'{text}' is not supported yet")
    prefix, slash, chunks = text.rpartition("/")
    bind = _bind_address(option, text, prefix) if slash else None
    ranges: list[tuple[Range, Range]] = []
    excluded: set[int] = set()
    for chunk in chunks.split(","):
        if chunk.startswith("~"):
            out = _range(option, text, chunk[1:])
            excluded.update(range(out.first, out.last + 1))
        else:
            ranges.append(_mapping(option, text, chunk))
    if not ranges:
        raise invalid(option, text, "exclusions alone are not supported yet")
    forwards = [
        PortForward(protocol, port, target, bind)
        for source, targets in ranges
        for port, target in zip(
            range(source.first, source.last + 1), range(targets.first, targets.last + 1), strict=True
        )
        if port not in excluded
    ]
    if not forwards:
        raise invalid(option, text, "the exclusions leave no port")
    return forwards


def _bind_address(option: str, text: str, prefix: str) -> IPv4Address | IPv6Address:
    if "%" in prefix:
        raise invalid(option, text, "binding to an interface ('%') is not supported yet")
    bind = address(prefix)
    if bind is None:
        raise invalid(option, text, f"'{prefix}' is not an IPv4 or IPv6 address")
    if bind.is_multicast:
        raise invalid(option, text, f"'{prefix}' is a multicast address")
    return bind


def _mapping(option: str, text: str, chunk: str) -> tuple[Range, Range]:
    source_text, colon, target_text = chunk.partition(":")
    source = _range(option, text, source_text)
    target = _range(option, text, target_text) if colon else source
    if len(source) != len(target):
        reason = f"'{source_text}' and '{target_text}' are not equally long"
        raise invalid(option, text, reason)
    return source, target


def _range(option: str, text: str, chunk: str) -> Range:
    first_text, dash, last_text = chunk.partition("-")
    first = _port(option, text, first_text)
    last = _port(option, text, last_text) if dash else first
    if first > last:
        raise invalid(option, text, f"the range '{chunk}' ends before it starts")
    return Range(first, last)


def _port(option: str, text: str, word: str) -> int:
    port = number(word)
    if port is None:
        raise invalid(option, text, f"'{word}' is not a port number" if word else "a port number is missing")
    if not 1 <= port <= 65535:
        raise invalid(option, text, f"port {word} is not between 1 and 65535")
    return port


def _overlap(one: IPv4Address | IPv6Address | None, other: IPv4Address | IPv6Address | None) -> bool:
    """Whether the kernel would refuse to bind one port to both: equal, or one of them covers the other."""
    if one is None or other is None or one == other:
        return True
    return one.version == other.version and (one.is_unspecified or other.is_unspecified)
