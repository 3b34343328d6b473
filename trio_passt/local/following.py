"""Ports that are forwarded as long as something listens on the other side: looked for, opened, and closed again.

Theory of operation
-------------------
Every second the kernel is asked what listens (`host.listening`), what should be open is decided (`automatic`), and what
is different is opened or closed.  It takes a thousandth of the time; where it takes more, as with very many sockets, it
is done less often.  Our own sockets are no reason for anything, or two directions would keep each other's ports open
for ever.

Neither are those that another program like this one has in the namespace on behalf of the host: two for one namespace
would do the same to each other.  It matters only where loopback leads to loopback.  Its sockets there have a mark that
the kernel lists, or are told by who has them, a process that is out here.

There may be very many who listen, and every connection takes a descriptor, too: each direction gets a share of them.

A port that can't be had (a program of that side has it, or it takes a privilege) is tried again, with one line for
those who debug.
"""

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import trio
from attrs import define, field

from trio_passt.config import AutomaticPorts, PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host import limits, port_ranges, sockets
from trio_passt.host.ephemeral import ephemeral_ports
from trio_passt.host.holder import held_from_here
from trio_passt.host.listeners import PortListeners
from trio_passt.host.listening import BoundSocket, Listing
from trio_passt.local import automatic

log = logging.getLogger("trio_passt.ports")

EVERY_S = 1.0
MOST_SHARE = 0.05
"""Of the time of a processor."""

ONE_IN = 8
"""So many of this process's descriptors are for one direction."""

AGAIN_AT_FIRST_S, AGAIN_AT_LAST_S = 1.0, 16.0
"""What is refused for a reason that can't be seen is tried again, less and less often."""

FIND_HOLDERS_WITHIN_S = 0.1


@define(eq=False)
class _Place:
    """A side with our ports there, and what others have there, as it was found in this round."""

    listing: Listing
    listeners: PortListeners
    protocols: frozenset[Protocol]
    ephemeral: range
    others: list[BoundSocket] | None = None
    settled: list[BoundSocket] = field(factory=list)
    seen: set[int] = field(factory=set)
    spent_s: float = 0.0

    def begin_round(self) -> None:
        self.others = None
        self.spent_s = 0.0

    async def look(self) -> list[BoundSocket]:
        """All that others have there, by one look in a round.  Raises OSError."""
        if self.others is None:
            found: list[BoundSocket] = []
            for protocol in self.protocols:
                found += await self.listing.read(protocol)
                self.spent_s += self.listing.spent_s
            own = self.listeners.inodes
            self.others = [sock for sock in found if sock.inode not in own]
            self.settled, self.seen = automatic.settled(self.others, self.ephemeral, self.seen)
        return self.others


@define(eq=False)
class _Refused:
    again_at: float
    pause_s: float = 0.0


@define(eq=False)
class _Direction:
    """What is open at one side for what listens at the other; `named` are the forwards of the other direction."""

    candidates: Sequence[PortForward]
    named: Collection[PortForward]
    place: _Place
    towards: str
    most: int
    open: set[PortForward] = field(factory=set)
    refused: dict[PortForward, _Refused] = field(factory=dict)
    was_full: bool = False

    async def update(self, wanted: set[PortForward], level: int) -> None:
        """Open and close what is different, and tell.  Raises OSError."""
        wanted = automatic.without_reserved(wanted, self.named)
        gone = self.open - wanted
        for forward in gone:
            self.place.listeners.remove(forward)
        self.open -= gone
        self.refused = {forward: refused for forward, refused in self.refused.items() if forward in wanted}
        now = trio.current_time()
        new = [forward for forward in wanted - self.open if self._is_due(forward, now)]
        opened: set[PortForward] = set()
        for forward in sorted(new, key=_order):
            if len(self.open) + len(opened) >= self.most:
                self._tell_full(len(wanted))
                break
            if self._add(forward, await self.place.look()):
                opened.add(forward)
        _tell(level, "forwarding %s ports to %s: %s", self.towards, opened, self.open | gone)
        self.open |= opened
        _tell(
            level, "%s ports are not forwarded to %s any more, nobody listens there: %s", self.towards, gone, self.open
        )

    def _tell_full(self, wanted: int) -> None:
        if not self.was_full:
            text = "forwarding only %d of %d ports to %s, the rest of the descriptors is for connections: %s"
            log.warning(text, self.most, wanted, self.towards, limits.describe(errno.EMFILE))
        self.was_full = True

    def _is_due(self, forward: PortForward, now: float) -> bool:
        refused = self.refused.get(forward)
        return refused is None or refused.again_at <= now

    def _add(self, forward: PortForward, there: Iterable[BoundSocket]) -> bool:
        if automatic.is_taken(forward, there):
            self._refuse(forward, "a program of that side has it", pauses=False)
            return False
        try:
            self.place.listeners.add(forward, holder_within_s=0.0)
        except StartupError as error:
            self._refuse(forward, str(error), pauses=True)
            return False
        self.refused.pop(forward, None)
        return True

    def _refuse(self, forward: PortForward, why: str, *, pauses: bool) -> None:
        """It is seen when somebody has gone who was in the way; all else has to be tried."""
        refused = self.refused.get(forward)
        if refused is None:
            refused = self.refused[forward] = _Refused(0.0)
            log.debug("%s port %d at %s: %s", forward.protocol.name, forward.first, forward.address, why)
        if pauses:
            refused.pause_s = min(max(refused.pause_s * 2, AGAIN_AT_FIRST_S), AGAIN_AT_LAST_S)
            refused.again_at = trio.current_time() + refused.pause_s


class AutomaticForwards:
    """Both directions.

    `inside` lists the guest's namespace, where `to_host` are; `outside` the host, where `to_guest` are.  What leads to
    the guest leads to one of `own_addresses`, or, with `to_loopback`, to its loopback.  `named` are
    forwards that were asked for by name, to the guest and to the host.
    """

    def __init__(
        self,
        ports: AutomaticPorts,
        inside: Listing,
        outside: Listing,
        to_guest: PortListeners,
        to_host: PortListeners,
        own_addresses: Callable[[], Collection[bytes]],
        *,
        to_loopback: bool,
        named: tuple[Collection[PortForward], Collection[PortForward]] = ((), ()),
    ) -> None:
        protocols = frozenset(forward.protocol for forward in (*ports.to_guest, *ports.to_host))
        ephemeral = ephemeral_ports()
        self._inside = _Place(inside, to_host, protocols, ephemeral)
        self._outside = _Place(outside, to_guest, protocols, ephemeral)
        most = sockets.descriptor_limit() // ONE_IN
        self._to_guest = _Direction(ports.to_guest, named[1], self._outside, "the namespace", most)
        self._to_host = _Direction(ports.to_host, named[0], self._inside, "the host", most)
        self._own_addresses = own_addresses
        self._to_loopback = to_loopback
        self._judged: dict[int, bool] = {}
        """Sockets in the namespace, by inode: whether they are another program's like this one."""
        self._has_failed = False

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        if not self._inside.protocols:
            return
        while True:
            spent_s = self._inside.spent_s + self._outside.spent_s
            await trio.sleep(max(EVERY_S, spent_s / MOST_SHARE))
            await self.look()

    async def look(self, level: int = logging.INFO) -> None:
        """One round: what listens now is forwarded when this returns.  Changes are logged at this level."""
        try:
            await self._update(level)
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                log.warning("can't find out what listens, and so which ports to forward: %s", error.strerror or error)
            self._has_failed = True

    async def _update(self, level: int) -> None:
        self._inside.begin_round()
        self._outside.begin_round()
        if self._to_guest.candidates:
            await self._inside.look()
            inside = self._without_strangers() if self._to_loopback else self._inside.settled
            wanted = automatic.to_guest(
                self._to_guest.candidates, inside, self._own_addresses(), to_loopback=self._to_loopback
            )
            await self._to_guest.update(wanted, level)
        if self._to_host.candidates:
            await self._outside.look()
            wanted = automatic.to_host(self._to_host.candidates, self._outside.settled)
            await self._to_host.update(wanted, level)

    def _without_strangers(self) -> list[BoundSocket]:
        """Those in the namespace, but not loopback's that are marked, or that a process out here has."""
        sockets = [sock for sock in self._inside.settled if not sock.is_marked]
        loopbacks = {sock.inode for sock in sockets if sock.is_loopback}
        unknown = loopbacks - self._judged.keys()
        strangers = held_from_here(unknown, within_s=FIND_HOLDERS_WITHIN_S) if unknown else set()
        self._judged = {inode: self._judged.get(inode, inode in strangers) for inode in loopbacks}
        return [sock for sock in sockets if not self._judged.get(sock.inode, False)]


def _order(forward: PortForward) -> tuple[str, int, str]:
    return forward.protocol.value, forward.first, str(forward.address)


def _tell(level: int, text: str, towards: str, changed: set[PortForward], others: set[PortForward]) -> None:
    """Ports, whatever their addresses, of which there are no `others`."""
    for protocol in Protocol:
        ports = {forward.first for forward in changed if forward.protocol is protocol}
        ports -= {forward.first for forward in others if forward.protocol is protocol}
        if ports:
            runs = port_ranges.runs(sorted(ports))
            log.log(level, text, protocol.name, towards, ", ".join(map(port_ranges.text, runs)))
