"""Port numbers as runs of neighbours: how they are told to people, and kept where there are many."""

from collections.abc import Iterable

ALL_PORTS = range(1, 65536)


def runs(ports: Iterable[int]) -> list[range]:
    """Ascending ports, each once → runs of neighbours."""
    found: list[range] = []
    first = last = 0
    for port in ports:
        if port == last + 1 and found:
            found[-1] = range(first, port + 1)
        else:
            first = port
            found.append(range(port, port + 1))
        last = port
    return found


def others(taken: Iterable[range]) -> list[range]:
    """All ports that are in none of these, which may overlap."""
    found: list[range] = []
    first = ALL_PORTS.start
    for run in sorted(taken, key=lambda run: run.start):
        if run.start > first:
            found.append(range(first, run.start))
        first = max(first, run.stop)
    if first < ALL_PORTS.stop:
        found.append(range(first, ALL_PORTS.stop))
    return found


def text(run: range) -> str:
    """`22`, or `8000-8010`."""
    return str(run.start) if len(run) == 1 else f"{run.start}-{run.stop - 1}"
