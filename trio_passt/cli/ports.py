"""Port specifications (`-t`, `-u`, `-T`, `-U`): text → forwarded ports, and back.

    SPECIFICATION = none | [WHERE/] all | [WHERE/] CHUNK [,CHUNK]...
    WHERE         = ADDRESS | %INTERFACE | ADDRESS%INTERFACE
    CHUNK         = PORT[-PORT][:TARGET[-TARGET]]  |  ~PORT[-PORT]  |  auto

Theory of operation.  Chunks name ports, each of which must be bound.  `~` takes ports out of the same specification's
chunks; exclusions alone mean all other ports, and `all` means all ports without exclusion.  Both leave out the
kernel's ephemeral ports, which belong to whoever asks for any port, and both are best effort (`Binding.SPARE`).  They
may have an address or an interface like others (`192.0.2.1/~22`, `%eth0/all`).

`auto`, which is for namespaces, makes candidates of the ports: one is forwarded while something listens at its target
(`8000-8010,auto`).  By itself it means all ports, also the ephemeral ones: what listens there was meant to.

A repeated option adds up, with three rules.  No port may be named twice where the kernel would refuse to bind the
second one.  A port that is named comes before one that is only meant by "all": with `-t all -t 192.0.2.1/2222:22`,
port 2222 is bound to 192.0.2.1 and nowhere else.  And there is one "all" for one place, automatic or not: `-t ~22 -t
~80` would not exclude anything.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from itertools import groupby

from attrs import evolve, field, frozen

from trio_passt.cli.addresses import interface_name
from trio_passt.cli.values import UsageError, address, invalid, number
from trio_passt.config import LOOPBACK, Binding, IPAddress, PortForward, Protocol
from trio_passt.host import port_ranges
from trio_passt.host.port_ranges import ALL_PORTS, others, runs


@frozen
class Where:
    """What is bound of the host; `None`: all addresses of both families, all interfaces."""

    address: IPAddress | None = None
    interface: str | None = None

    def overlaps(self, other: "Where") -> bool:
        """Whether the kernel would refuse to bind one port in both: they are the same, or one covers the other."""
        if self.interface != other.interface and self.interface is not None and other.interface is not None:
            return False
        one, another = self.address, other.address
        if one is None or another is None or one == another:
            return True
        return one.version == another.version and (one.is_unspecified or another.is_unspecified)

    def __str__(self) -> str:
        name = str(self.address) if self.address is not None else ""
        return name + (f"%{self.interface}" if self.interface is not None else "")


@frozen
class Specification:
    """One specification as it was written; without `chunks`, all ports but those `excluded` are meant."""

    text: str
    where: Where = field(factory=Where)
    chunks: tuple[tuple[range, range], ...] = ()
    excluded: tuple[range, ...] = ()
    is_empty: bool = False
    is_automatic: bool = False

    @property
    def is_spare(self) -> bool:
        """Whether it means all ports, more or less."""
        return not (self.chunks or self.is_empty)


@frozen
class Ports:
    """What an option's specifications mean: ports that are forwarded, and candidates for it (`auto`)."""

    forwards: tuple[PortForward, ...] = ()
    automatic: tuple[PortForward, ...] = ()


def parse_ports(
    option: str, protocol: Protocol, specifications: Sequence[str], *, ephemeral: range
) -> tuple[PortForward, ...]:
    """All ports that the repeated option means: those that are named, in order, and then those of "all".

    Raises `UsageError` naming the specification: what can't be understood, and what contradicts another.
    """
    for text in specifications:
        if "auto" in text.rpartition("/")[2].split(","):
            reason = "'auto' is for namespaces: a virtual machine does not tell which ports are open"
            raise invalid(option, text, reason)
    return parse_automatic_ports(option, protocol, specifications, ephemeral=ephemeral).forwards


def parse_automatic_ports(
    option: str, protocol: Protocol, specifications: Sequence[str], *, ephemeral: range, only_loopback: bool = False
) -> Ports:
    """The same, where "auto" may be among them.  With `only_loopback` no other address can be given."""
    parsed = [_parse_one(option, text) for text in specifications]
    if only_loopback:
        parsed = [evolve(specification, where=_of_loopback(option, specification)) for specification in parsed]
    _refuse_contradictions(option, parsed)
    taken: dict[int, list[Where]] = {}
    forwards: dict[bool, list[PortForward]] = {False: [], True: []}
    for specification in parsed:
        forwards[specification.is_automatic] += _named(option, protocol, specification, taken)
    for specification in parsed:
        if specification.is_spare:
            forwards[specification.is_automatic] += _spare(option, protocol, specification, taken, ephemeral)
    return Ports(tuple(forwards[False]), tuple(forwards[True]))


def follow(forwards: Iterable[PortForward]) -> tuple[PortForward, ...]:
    """The UDP ports that accompany TCP ports when no `-u` is given: the same numbers and places, not translated.

    Nobody asked for them by name, so one that can't be bound is no error.
    """
    return tuple(
        PortForward(
            Protocol.UDP,
            forward.first,
            forward.last,
            forward.first,
            forward.address,
            forward.interface,
            Binding.SPARE if forward.binding is Binding.SPARE else Binding.WANTED,
        )
        for forward in forwards
    )


def specifications(forwards: Iterable[PortForward], *, ephemeral: range) -> list[str]:
    """What `parse_ports` makes these forwards of; nothing for none."""

    def place(forward: PortForward) -> tuple[Where, bool]:
        return Where(forward.address, forward.interface), forward.binding is Binding.SPARE

    texts = []
    for (where, is_spare), group in groupby(forwards, place):
        members = list(group)
        chunks = _all_but(members, ephemeral) if is_spare else ",".join(map(_chunk, members))
        texts.append(chunks if where == Where() else f"{where}/{chunks}")
    return texts


def _parse_one(option: str, text: str) -> Specification:
    if text == "none":
        return Specification(text, is_empty=True)
    prefix, slash, chunks = text.rpartition("/")
    where = _where(option, text, prefix) if slash else Where()
    if chunks == "all":
        return Specification(text, where)
    mappings: list[tuple[range, range]] = []
    excluded: list[range] = []
    is_automatic = False
    for chunk in chunks.split(","):
        if chunk == "all":
            raise invalid(option, text, "'all' stands alone: exclusions alone mean all others, ports are named apart")
        if chunk == "auto":
            is_automatic = True
        elif chunk.startswith("~"):
            excluded.append(_range(option, text, chunk[1:]))
        else:
            mappings.append(_mapping(option, text, chunk))
    return Specification(text, where, tuple(mappings), tuple(excluded), is_automatic=is_automatic)


def _of_loopback(option: str, specification: Specification) -> Where:
    """The loopback address that is meant; "any" of a family is its loopback one, and `lo` is where it is anyway."""
    where = specification.where
    if where.interface not in (None, "lo"):
        reason = f"'{where.interface}' is not the loopback interface, whose ports these are"
        raise invalid(option, specification.text, reason)
    if where.address is None:
        return Where()
    if where.address.is_unspecified:
        return Where(LOOPBACK[where.address.version])
    if not where.address.is_loopback:
        reason = f"'{where.address}' is not a loopback address, whose ports these are"
        raise invalid(option, specification.text, reason)
    return Where(where.address)


def _where(option: str, text: str, prefix: str) -> Where:
    address_text, percent, interface = prefix.partition("%")
    if percent:
        try:
            interface_name(option, interface)
        except UsageError:
            raise invalid(option, text, f"'{interface}' is not an interface's name") from None
    if percent and not address_text:
        return Where(None, interface)
    bind = address(address_text)
    if bind is None:
        hint = " (one is for the whole list: repeat the option for another)" if "/" in address_text else ""
        raise invalid(option, text, f"'{address_text}' is not an IPv4 or IPv6 address{hint}")
    if bind.is_multicast:
        raise invalid(option, text, f"'{address_text}' is a multicast address")
    if isinstance(bind, IPv6Address):
        if bind.ipv4_mapped is not None:
            raise invalid(option, text, f"'{address_text}' is the IPv4 address {bind.ipv4_mapped}")
        if bind.is_link_local and not percent:
            hint = f"{address_text}%INTERFACE/..."
            raise invalid(option, text, f"a link-local address is one of a certain interface ('{hint}')")
    return Where(bind, interface if percent else None)


def _mapping(option: str, text: str, chunk: str) -> tuple[range, range]:
    source_text, colon, target_text = chunk.partition(":")
    source = _range(option, text, source_text)
    target = _range(option, text, target_text) if colon else source
    if len(source) != len(target):
        raise invalid(option, text, f"'{source_text}' and '{target_text}' are not equally long")
    return source, target


def _range(option: str, text: str, chunk: str) -> range:
    first_text, dash, last_text = chunk.partition("-")
    first = _port(option, text, first_text)
    last = _port(option, text, last_text) if dash else first
    if first > last:
        raise invalid(option, text, f"the range '{chunk}' ends before it starts")
    return range(first, last + 1)


def _port(option: str, text: str, word: str) -> int:
    port = number(word)
    if port is None:
        raise invalid(option, text, f"'{word}' is not a port number" if word else "a port number is missing")
    if port not in ALL_PORTS:
        raise invalid(option, text, f"port {word} is not between 1 and 65535")
    return port


def _refuse_contradictions(option: str, parsed: Sequence[Specification]) -> None:
    """Of `none` with something else, and of two that mean all ports of one place."""
    texts = [specification.text for specification in parsed]
    if "none" in texts and (others := [text for text in texts if text != "none"]):
        raise invalid(option, "none", f"contradicts '{others[0]}'")
    spare = [specification for specification in parsed if specification.is_spare]
    for index, specification in enumerate(spare):
        for other in spare[:index]:
            if specification.where.overlaps(other.where):
                reason = f"'{other.text}' means all other ports already; exclusions belong into one list"
                raise invalid(option, specification.text, reason)


def _named(
    option: str, protocol: Protocol, specification: Specification, taken: dict[int, list[Where]]
) -> list[PortForward]:
    """The forwards of what is named, each chunk in as many pieces as the exclusions cut it into."""
    where, excluded = specification.where, _numbers(specification.excluded)
    forwards, twice = [], set()
    for source, target in specification.chunks:
        for run in runs(port for port in source if port not in excluded):
            for port in run:
                places = taken.setdefault(port, [])
                if any(where.overlaps(place) for place in places):
                    twice.add(port)
                places.append(where)
            first_target = target.start + run.start - source.start
            binding = Binding.SPARE if specification.is_automatic else Binding.REQUIRED
            forwards.append(
                PortForward(protocol, run.start, run.stop - 1, first_target, where.address, where.interface, binding)
            )
    if twice:
        plural, verb = ("s", "are") if len(twice) > 1 else ("", "is")
        raise invalid(option, specification.text, f"port{plural} {_listed(twice)} {verb} given more than once")
    if specification.chunks and not forwards:
        raise invalid(option, specification.text, "the exclusions leave no port")
    return forwards


def _spare(
    option: str, protocol: Protocol, specification: Specification, taken: dict[int, list[Where]], ephemeral: range
) -> list[PortForward]:
    """The forwards of all ports that nobody has named, but those excluded, and the ephemeral ones if not automatic."""
    where = specification.where
    left_out = [*specification.excluded, *([] if specification.is_automatic else [ephemeral])]
    if not others(left_out):
        raise invalid(option, specification.text, "the exclusions leave no port")
    named = (port for port, places in taken.items() if any(where.overlaps(place) for place in places))
    left = others([*left_out, *(range(port, port + 1) for port in named)])
    return [
        PortForward(protocol, run.start, run.stop - 1, run.start, where.address, where.interface, Binding.SPARE)
        for run in left
    ]


def _numbers(ranges: Iterable[range]) -> set[int]:
    return {port for run in ranges for port in run}


def _listed(ports: Iterable[int]) -> str:
    return ", ".join(map(port_ranges.text, runs(sorted(ports))))


def _all_but(forwards: Iterable[PortForward], ephemeral: range) -> str:
    excluded = others([ephemeral, *(forward.ports for forward in forwards)])
    return ",".join(f"~{port_ranges.text(run)}" for run in excluded) or "all"


def _chunk(forward: PortForward) -> str:
    source = port_ranges.text(forward.ports)
    return source if forward.targets == forward.ports else f"{source}:{port_ranges.text(forward.targets)}"
