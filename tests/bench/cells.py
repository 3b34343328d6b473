"""What is measured: cells of the table, each with a name, a unit, and the conditions it is measured under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

OURS = "trio-passt"
PASST = "passt"
SLIRP = "slirp4netns"
FLOOR = "floor"
OURS_PASTA = "trio-pasta"
PASTA = "pasta"
PROGRAMS = (OURS, PASST, SLIRP, FLOOR, OURS_PASTA, PASTA)
"""The floor is a namespace that speaks to the remote one over the veth, with nothing between."""

MTUS = (65520, 9000, 1500)
FLOWS = (1, 8)
PAYLOADS = (1400, 9000)
PACED_MEGABITS_PER_S = {1400: 300, 9000: 500}
"""By payload: what every program should carry. At 1000, passt and slirp4netns already lose some on two CPUs."""

WHOLE = ("1/s", "lost")
"""Units of what is counted."""

CPU_OF_EACH = "CPU µs"
"""Unit of what an exchange costs."""

LOSSES = ("% lost", "lost")
"""Units of what should be nothing: no program's is a multiple of another's."""


class Attachment(StrEnum):
    """How the guest is attached: a machine by QEMU's socket, a namespace by a tap that the program makes itself."""

    MACHINE = "machine"
    NAMESPACE = "namespace"

    @property
    def prefix(self) -> str:
        """Of its cells' names."""
        return "" if self is Attachment.MACHINE else "ns-"

    @property
    def has_cpu_of_each(self) -> bool:
        """Whether the CPU time of exchanges is looked at. With the relay, much of it is polling."""
        return self is Attachment.NAMESPACE

    @property
    def ours(self) -> str:
        """Our program for it."""
        return OURS if self is Attachment.MACHINE else OURS_PASTA

    @property
    def compared(self) -> tuple[str, ...]:
        """The programs that ours is compared with."""
        return (PASST, SLIRP) if self is Attachment.MACHINE else (PASTA, SLIRP, FLOOR)

    @property
    def programs(self) -> tuple[str, ...]:
        """Those that are measured with it."""
        return (OURS, PASST, SLIRP, FLOOR) if self is Attachment.MACHINE else (OURS_PASTA, PASTA, SLIRP, FLOOR)


class Direction(StrEnum):
    """Of the bytes of a bulk transfer; the guest opens the connection either way."""

    UP = "up"
    DOWN = "down"

    @property
    def described(self) -> str:
        """For people."""
        return "guest → host" if self is Direction.UP else "host → guest"


@dataclass(frozen=True)
class Bulk:
    """Throughput through some flows at a time, and the CPU time that the program takes for it."""

    direction: Direction
    mtu_bytes: int
    flow_count: int
    attachment: Attachment = Attachment.MACHINE
    unit: str = "Gbit/s"

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"{self.attachment.prefix}{self.direction}-{self.mtu_bytes}-{self.flow_count}"

    @property
    def title(self) -> str:
        """For people."""
        flows = "1 flow" if self.flow_count == 1 else f"{self.flow_count} flows"
        return f"{self.direction.described}, MTU {self.mtu_bytes}, {flows}"

    @property
    def has_floor(self) -> bool:
        """The veth has one MTU: the floor is measured once."""
        return self.mtu_bytes == MTUS[0]


@dataclass(frozen=True)
class Flood:
    """Datagrams in one flow, sent as fast as the sender can: what arrives of them.

    The sender hands so many of a `train` to its kernel at once (UDP_SEGMENT), and the receiver takes them joined
    (UDP_GRO); 1: one by one.
    """

    direction: Direction
    payload_bytes: int
    attachment: Attachment = Attachment.MACHINE
    mtu_bytes: int = MTUS[0]
    unit: str = "Gbit/s"
    has_floor: bool = True
    train: int = 1

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        kind = "udp" if self.train == 1 else "udp-trains"
        return f"{self.attachment.prefix}{kind}-{self.direction}-{self.payload_bytes}"

    @property
    def title(self) -> str:
        """For people."""
        how = "" if self.train == 1 else f", in trains of {self.train}"
        return f"{self.direction.described}, datagrams of {self.payload_bytes} bytes{how}"

    @property
    def lost(self) -> Beside:
        """The share that does not arrive."""
        return Beside(f"lost-{self.name}", f"{self.title}, a flood, %", "% lost", self.attachment)


@dataclass(frozen=True)
class Paced:
    """Datagrams in one flow, one after the other at a rate: the share of them that does not arrive."""

    direction: Direction
    payload_bytes: int
    megabits_per_s: int
    attachment: Attachment = Attachment.MACHINE
    mtu_bytes: int = MTUS[0]
    unit: str = "% lost"
    has_floor: bool = True

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"udp-paced-{self.direction}-{self.payload_bytes}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.direction.described}, datagrams of {self.payload_bytes} bytes, {self.megabits_per_s} Mbit/s, %"


@dataclass(frozen=True)
class Lookups:
    """Queries at a rate, as of DNS, each from a port of its own: how many are not answered within a second."""

    name: str
    queries_per_s: int
    query_count: int
    attachment: Attachment = Attachment.MACHINE
    mtu_bytes: int = MTUS[0]
    unit: str = "lost"
    has_floor: bool = True

    @property
    def title(self) -> str:
        """For people."""
        return f"lost, of {self.query_count} queries"


@dataclass(frozen=True)
class Beside:
    """What a UDP cell has measured beside its own number."""

    name: str
    title: str
    unit: str
    attachment: Attachment = Attachment.MACHINE


@dataclass(frozen=True)
class Cpu:
    """What a bulk cell, or a flood, has measured beside the throughput."""

    bulk: Bulk | Flood | Local
    unit: str = "CPU s/GB"

    @property
    def attachment(self) -> Attachment:
        """That of the cell."""
        return self.bulk.attachment

    @property
    def name(self) -> str:
        """Short, for JSON."""
        return f"cpu-{self.bulk.name}"

    @property
    def title(self) -> str:
        """For people."""
        return self.bulk.title


@dataclass(frozen=True)
class Rate:
    """Exchanges of a byte, one after the other: in one connection (`rr`, `udp-rr`), or each in its own (`crr`).

    `kind` is one of these words.
    """

    kind: str
    title: str
    attachment: Attachment = Attachment.MACHINE
    mtu_bytes: int = MTUS[0]
    unit: str = "1/s"
    has_floor: bool = True

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"{self.attachment.prefix}{self.kind}"

    @property
    def is_udp(self) -> bool:
        """Else TCP."""
        return self.kind.startswith("udp")

    @property
    def lost(self) -> Beside:
        """Of UDP: exchanges without an answer."""
        return Beside(f"lost-{self.name}", "request/response, exchanges", "lost", self.attachment)

    @property
    def cpu(self) -> Beside:
        """The program's CPU time for each exchange."""
        return Beside(f"cpu-{self.name}", self.title, CPU_OF_EACH, self.attachment)


@dataclass(frozen=True)
class Local:
    """From loopback to loopback, past the tap: throughput ("bulk": whoever connects sends), or exchanges as of `Rate`.

    Nothing stands in for these: slirp4netns has no such way, and a veth has none, either.
    """

    kind: str
    is_inward: bool
    attachment: Attachment = Attachment.NAMESPACE
    mtu_bytes: int = MTUS[0]
    has_floor: bool = False

    @property
    def unit(self) -> str:
        """Of the number."""
        return "Gbit/s" if self.kind == "bulk" else "1/s"

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"{self.attachment.prefix}local-{'in' if self.is_inward else 'out'}-{self.kind}"

    @property
    def title(self) -> str:
        """For people."""
        way = "host loopback → namespace" if self.is_inward else "namespace loopback → host"
        return way if self.kind == "bulk" else f"{way}, {RATES[self.kind]}"

    @property
    def cpu(self) -> Beside:
        """The program's CPU time for each exchange."""
        return Beside(f"cpu-{self.name}", self.title, CPU_OF_EACH, self.attachment)


TRAIN = 40
"""Datagrams of 1400 bytes that a sender of much hands to its kernel at once: 56,000 bytes."""

RATES = {"rr": "request/response", "crr": "connect-request-response", "udp-rr": "request/response, UDP"}
RR, CRR, UDP_RR = (Rate(kind, title) for kind, title in RATES.items())

DNS = Lookups("dns", queries_per_s=2000, query_count=3000)
DNS_MEDIAN = Beside("dns-median", "latency, ms, median", "ms")
DNS_P99 = Beside("dns-p99", "latency, ms, 99th percentile", "ms")
DNS_CPU = Beside("dns-cpu", "CPU time of the program, % of a CPU", "% of a CPU")

Measured = Bulk | Rate | Flood | Paced | Lookups | Local
Cell = Measured | Cpu | Beside

UDP: tuple[Measured, ...] = (
    *(Flood(direction, payload) for payload in PAYLOADS for direction in Direction),
    *(Paced(direction, payload, rate) for payload, rate in PACED_MEGABITS_PER_S.items() for direction in Direction),
    UDP_RR,
    DNS,
)
NAMESPACE: tuple[Measured, ...] = (
    *(Bulk(direction, mtu, 1, Attachment.NAMESPACE) for mtu in (MTUS[0], MTUS[-1]) for direction in Direction),
    *(Rate(kind, title, Attachment.NAMESPACE) for kind, title in RATES.items()),
    *(Local(kind, is_inward) for kind in ("bulk", "rr", "crr") for is_inward in (True, False)),
    *(
        Flood(direction, PAYLOADS[0], Attachment.NAMESPACE, train=train)
        for train in (1, TRAIN)
        for direction in Direction
    ),
)
ALL: tuple[Measured, ...] = (
    *(Bulk(direction, mtu, flows) for mtu in MTUS for direction in Direction for flows in FLOWS),
    RR,
    CRR,
    *UDP,
    *NAMESPACE,
)
SHORT: tuple[Measured, ...] = (
    Bulk(Direction.UP, 65520, 1),
    Bulk(Direction.DOWN, 1500, 8),
    RR,
    CRR,
    Flood(Direction.UP, 9000),
    UDP_RR,
    Bulk(Direction.UP, 65520, 1, Attachment.NAMESPACE),
    Rate("crr", RATES["crr"], Attachment.NAMESPACE),
    Local("rr", is_inward=True),
    Local("bulk", is_inward=False),
    Flood(Direction.DOWN, 1400, Attachment.NAMESPACE, train=TRAIN),
)


def has(cell: Measured, program: str) -> bool:
    """Whether a cell is measured with a program."""
    if isinstance(cell, Local):
        return program in (OURS_PASTA, PASTA)
    return program in cell.attachment.programs and (program != FLOOR or cell.has_floor)


def beside(cell: Measured) -> list[Cell]:
    """Further rows that a cell brings numbers for."""
    match cell:
        case Bulk():
            return [Cpu(cell)] if cell.flow_count == 1 else []
        case Flood():
            return [cell.lost, Cpu(cell)]
        case Local(kind="bulk"):
            return [Cpu(cell)]
        case Local():
            return [cell.cpu]
        case Lookups():
            return [DNS_MEDIAN, DNS_P99, DNS_CPU]
        case Rate():
            return [*([cell.lost] if cell.is_udp else []), *([cell.cpu] if cell.attachment.has_cpu_of_each else [])]
    return []


def rows(measured: tuple[Measured, ...]) -> list[Cell]:
    """The rows of the table, in its order: what is measured, then what comes with it."""
    return [*measured, *(row for cell in measured for row in beside(cell))]
