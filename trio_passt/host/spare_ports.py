"""Ports of which nobody named a single one: as many as possible, and what is said about it."""

import logging
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Protocol as TypingProtocol

from trio_passt.config import PortForward, Protocol
from trio_passt.host import limits
from trio_passt.host.opener import Opener
from trio_passt.host.refusals import Holders, Refusals

log = logging.getLogger("trio_passt.ports")


class OpenPort(TypingProtocol):
    """A bound socket, of this port of the host's."""

    forward: PortForward
    port: int


class OpenPorts(TypingProtocol):
    """Where the sockets are kept."""

    @property
    def spare(self) -> Sequence[OpenPort]:
        """Those of spare forwards, in the order in which they were opened."""

    @property
    def descriptors(self) -> int:
        """How many there are of this process's."""

    def open_port(self, opener: Opener, port: int) -> None:
        """Raises OSError."""

    def close_last_spare(self) -> None:
        """Close the spare one that was opened last."""

    def close_all_of(self, forward: PortForward) -> None:
        """Close all of this forward, which is not a spare one."""

    def close_all_at(self, interface: str) -> None:
        """Close all that are of forwards with this interface."""


class SparePorts:
    """One attempt to bind all ports of these openers."""

    def __init__(self, openers: Sequence[Opener], ports: OpenPorts) -> None:
        self.openers = openers
        self.refusals = Refusals()
        self.opened = 0
        """Sockets."""
        self.stopped_by: int | None = None
        """The error of a limit."""
        self._ports = ports

    def give_back(self, port: int) -> int:
        """Close the share of the flows, and what there is of a port that could not be had whole; how many these are."""
        before, share = self.opened, limits.share_for_flows(self.opened)
        while self.opened and (last := self._last()) and (before - self.opened < share or last == port):
            port = last
            self._ports.close_last_spare()
            self.opened -= 1
        return before - self.opened

    def _last(self) -> int | None:
        """The port that was opened last; all may have been closed meanwhile, with the interface that they were at."""
        return self._ports.spare[-1].port if self._ports.spare else None

    def limit_reached(self) -> str | None:
        """What limit kept how many from being bound, and what would do."""
        if self.stopped_by is None:
            return None
        every = sum(len(opener.forward.ports) for opener in self.openers)
        missing = every - self.opened - len(self.refusals)
        hint = limits.describe(self.stopped_by, wanted=limits.open_descriptors() + missing, missing=missing)
        last = self._last() if self.opened else None
        up_to = f"up to port {last}, " if last is not None else ""
        return f"{up_to}{self.opened} of {every} sockets for non-ephemeral ports: {hint}"

    def why_none(self, holders: Holders) -> list[str]:
        """The lines of the error that not a single one could be bound."""
        reached = self.limit_reached()
        return ([f"can't forward more than {reached}"] if reached is not None else []) + self.refusals.lines(holders)

    def report(self, holders: Holders) -> None:
        """One line for each protocol, and one about a limit that was met."""
        if (reached := self.limit_reached()) is not None:
            log.warning("forwarding only %s", reached)
        for protocol in dict.fromkeys(opener.forward.protocol for opener in self.openers):
            self._report(protocol, holders)
        for line in self.refusals.lines(holders) if log.isEnabledFor(logging.DEBUG) else ():
            log.debug("%s", line)

    def _report(self, protocol: Protocol, holders: Holders) -> None:
        families: dict[PortForward, int] = {}
        for opener in self.openers:
            if opener.forward.protocol is protocol:
                families[opener.forward] = families.get(opener.forward, 0) + 1
        every = sum(len(forward.ports) for forward in families)
        forwarded = partly = 0
        ports = self._ports.spare
        opened = (port for port in islice(ports, len(ports) - self.opened, None) if port.forward.protocol is protocol)
        for (forward, _), group in groupby(opened, lambda port: (port.forward, port.port)):
            forwarded += 1
            partly += sum(1 for _ in group) < families[forward]
        text = f"forwarding {forwarded} of {every} non-ephemeral {protocol.name} ports"
        if partly:
            text += f", {partly} of them in one address family only"
        log.log(
            logging.INFO if forwarded else logging.WARNING,
            "%s",
            "; ".join([text, *self.refusals.summary(protocol, holders)]),
        )
