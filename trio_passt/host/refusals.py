"""The ports that could not be bound, and how that is told.

Neighbours with the same reason, and the same holder, become one line: thousands may be refused at once.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from itertools import groupby

from trio_passt.config import Protocol
from trio_passt.host import limits, port_ranges
from trio_passt.host.holder import BoundPort, Holder
from trio_passt.host.opener import Opener
from trio_passt.host.port_ranges import runs

MOST_LINES = 20
"""What a message has at most; the others are counted."""

MOST_HOLDERS = 8
"""How many are named on one line."""

_PRIVILEGES = "CAP_NET_BIND_SERVICE (or a lower net.ipv4.ip_unprivileged_port_start, see sysctl(8))"

Holders = Mapping[BoundPort, Holder]


class Refusals:
    """Ports with the opener that could not have them, and the error's number."""

    def __init__(self) -> None:
        self._ports: dict[tuple[Opener, int], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._ports)

    def __len__(self) -> int:
        return sum(map(len, self._ports.values()))

    def add(self, opener: Opener, port: int, error: OSError) -> None:
        """Ports come in ascending order.  An error without number is `if_nametoindex`'s."""
        self._ports.setdefault((opener, error.errno or errno.ENODEV), []).append(port)

    def in_use(self) -> set[BoundPort]:
        """Those that somebody else has."""
        return {
            opener.bound(port)
            for (opener, number), ports in self._ports.items()
            if number == errno.EADDRINUSE
            for port in ports
        }

    def lines(self, holders: Holders, ending: str = "") -> list[str]:
        """One line for neighbours that were refused for the same reason, of one address or of several."""
        places: dict[tuple[Protocol, range, str], list[str]] = {}
        for (opener, number), ports in self._ports.items():
            for reason, run in _runs((port, _reason(opener, number, port, holders)) for port in ports):
                places.setdefault((opener.forward.protocol, run, reason), []).append(opener.where)
        lines = []
        for (protocol, run, reason), where in places.items():
            ports_text = f"{protocol.name} port{'s' if len(run) > 1 else ''} {port_ranges.text(run)}"
            lines.append(f"can't forward {ports_text} of {' and '.join(dict.fromkeys(where))}: {reason}{ending}")
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [
                f"can't forward others for such reasons, which would be {len(lines) - MOST_LINES} lines"
            ]
        return lines

    def summary(self, protocol: Protocol, holders: Holders) -> list[str]:
        """For each reason how many of a protocol's ports were refused for it, at least in one family."""
        by_number: dict[int, dict[int, str]] = {}
        for (opener, number), ports in self._ports.items():
            if opener.forward.protocol is protocol:
                found = by_number.setdefault(number, {})
                for port in ports:
                    holder = holders.get(opener.bound(port)) if number == errno.EADDRINUSE else None
                    found[port] = found.get(port) or (f" by {holder}" if holder is not None else "")
        return [_summary(number, ports) for number, ports in by_number.items()]


def _summary(number: int, ports: Mapping[int, str]) -> str:
    count = len(ports)
    if number == errno.EACCES:
        return f"{count} need{'s' if count == 1 else ''} {_PRIVILEGES}"
    if number != errno.EADDRINUSE:
        return f"{count} refused: {os.strerror(number)}"
    texts = [port_ranges.text(run) + by for by, run in _runs(sorted(ports.items()))]
    if len(texts) > MOST_HOLDERS:
        texts[MOST_HOLDERS:] = ["..."]
    return f"{count} in use by others: {', '.join(texts)}"


def _runs(ports: Iterable[tuple[int, str]]) -> list[tuple[str, range]]:
    """Neighbours of which the same is to be said."""
    return [
        (text, run) for text, group in groupby(ports, lambda item: item[1]) for run in runs(port for port, _ in group)
    ]


def _reason(opener: Opener, number: int, port: int, holders: Holders) -> str:
    text = os.strerror(number)
    forward = opener.forward
    hint = ""
    if number == errno.EADDRINUSE and (holder := holders.get(opener.bound(port))) is not None:
        return f"{text} by {holder}"
    if number == errno.EACCES and port < (start := limits.unprivileged_port_start()):
        hint = f"ports below {start} need {_PRIVILEGES}"
    elif number == errno.EADDRNOTAVAIL and forward.address is not None:
        hint = "this host does not have it (with --freebind it may come later)"
    elif number == errno.ENODEV and forward.interface is not None:
        hint = f"this host has no interface '{forward.interface}'"
    elif number == errno.EPERM and forward.interface is not None:
        hint = "to bind to an interface takes CAP_NET_RAW before Linux 5.7"
    elif number in limits.LIMIT_ERRORS:
        hint = limits.describe(number)
    return f"{text}: {hint}" if hint else text
