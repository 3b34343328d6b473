"""What is measured: cells of the table, each with a name, a unit, and the conditions it is measured under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

OURS = "trio-passt"
PASST = "passt"
SLIRP = "slirp4netns"
FLOOR = "floor"
PROGRAMS = (OURS, PASST, SLIRP, FLOOR)
"""The floor is a namespace that speaks to the remote one over the veth, with nothing between."""

MTUS = (65520, 9000, 1500)
FLOWS = (1, 8)
PAYLOADS = (1400, 9000)
PACED_MEGABITS_PER_S = {1400: 300, 9000: 500}
"""By payload: what every program should carry. At 1000, passt and slirp4netns already lose some on two CPUs."""

WHOLE = ("1/s", "lost")
"""Units of what is counted."""

LOSSES = ("% lost", "lost")
"""Units of what should be nothing: no program's is a multiple of another's."""


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
    unit: str = "Gbit/s"

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"{self.direction}-{self.mtu_bytes}-{self.flow_count}"

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
    """Datagrams in one flow, sent as fast as the sender can: what arrives of them."""

    direction: Direction
    payload_bytes: int
    mtu_bytes: int = MTUS[0]
    unit: str = "Gbit/s"
    has_floor: bool = True

    @property
    def name(self) -> str:
        """Short, for `--only` and JSON."""
        return f"udp-{self.direction}-{self.payload_bytes}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.direction.described}, datagrams of {self.payload_bytes} bytes"

    @property
    def lost(self) -> Beside:
        """The share that does not arrive."""
        return Beside(f"lost-{self.name}", f"{self.title}, a flood, %", "% lost")


@dataclass(frozen=True)
class Paced:
    """Datagrams in one flow, one after the other at a rate: the share of them that does not arrive."""

    direction: Direction
    payload_bytes: int
    megabits_per_s: int
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


@dataclass(frozen=True)
class Cpu:
    """What a bulk cell, or a flood, has measured beside the throughput."""

    bulk: Bulk | Flood
    unit: str = "CPU s/GB"

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
    """Exchanges of a byte, one after the other: in one connection (`rr`, `udp-rr`), or each in its own (`crr`)."""

    name: str
    title: str
    mtu_bytes: int = MTUS[0]
    unit: str = "1/s"
    has_floor: bool = True


RR = Rate("rr", "request/response")
CRR = Rate("crr", "connect-request-response")
UDP_RR = Rate("udp-rr", "request/response, UDP")
UDP_RR_LOST = Beside("lost-udp-rr", "request/response, exchanges", "lost")

DNS = Lookups("dns", queries_per_s=2000, query_count=3000)
DNS_MEDIAN = Beside("dns-median", "latency, ms, median", "ms")
DNS_P99 = Beside("dns-p99", "latency, ms, 99th percentile", "ms")
DNS_CPU = Beside("dns-cpu", "CPU time of the program, % of a CPU", "% of a CPU")

Measured = Bulk | Rate | Flood | Paced | Lookups
Cell = Measured | Cpu | Beside

UDP: tuple[Measured, ...] = (
    *(Flood(direction, payload) for payload in PAYLOADS for direction in Direction),
    *(Paced(direction, payload, rate) for payload, rate in PACED_MEGABITS_PER_S.items() for direction in Direction),
    UDP_RR,
    DNS,
)
ALL: tuple[Measured, ...] = (
    *(Bulk(direction, mtu, flows) for mtu in MTUS for direction in Direction for flows in FLOWS),
    RR,
    CRR,
    *UDP,
)
SHORT: tuple[Measured, ...] = (
    Bulk(Direction.UP, 65520, 1),
    Bulk(Direction.DOWN, 1500, 8),
    RR,
    CRR,
    Flood(Direction.UP, 9000),
    UDP_RR,
)


def beside(cell: Measured) -> list[Cell]:
    """Further rows that a cell brings numbers for."""
    match cell:
        case Bulk():
            return [Cpu(cell)] if cell.flow_count == 1 else []
        case Flood():
            return [cell.lost, Cpu(cell)]
        case Lookups():
            return [DNS_MEDIAN, DNS_P99, DNS_CPU]
    return [UDP_RR_LOST] if cell == UDP_RR else []


def rows(measured: tuple[Measured, ...]) -> list[Cell]:
    """The rows of the table, in its order: what is measured, then what comes with it."""
    return [*measured, *(row for cell in measured for row in beside(cell))]
