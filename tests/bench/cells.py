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
class Cpu:
    """What a bulk cell has measured beside the throughput."""

    bulk: Bulk
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
    """Exchanges of a byte, one after the other: in one connection (`rr`), or each in its own (`crr`)."""

    name: str
    title: str
    mtu_bytes: int = MTUS[0]
    unit: str = "1/s"
    has_floor: bool = True


RR = Rate("rr", "request/response")
CRR = Rate("crr", "connect-request-response")

Measured = Bulk | Rate
Cell = Bulk | Cpu | Rate

ALL: tuple[Measured, ...] = (
    *(Bulk(direction, mtu, flows) for mtu in MTUS for direction in Direction for flows in FLOWS),
    RR,
    CRR,
)
SHORT: tuple[Measured, ...] = (Bulk(Direction.UP, 65520, 1), Bulk(Direction.DOWN, 1500, 8), RR, CRR)


def rows(measured: tuple[Measured, ...]) -> list[Cell]:
    """The rows of the table, in its order: throughput, rates, and CPU time of the cells with one flow."""
    bulk = [cell for cell in measured if isinstance(cell, Bulk)]
    return [*measured, *(Cpu(cell) for cell in bulk if cell.flow_count == 1)]
