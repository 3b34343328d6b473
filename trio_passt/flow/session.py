"""What all flows of one guest connection share."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from attrs import define, field

from trio_passt.config import GuestNetwork, Outbound
from trio_passt.flow.budget import Budget
from trio_passt.flow.guest import Guest
from trio_passt.flow.streak import Streak
from trio_passt.flow.translate import AddressMap
from trio_passt.host.datagrams import DatagramBuffer
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import Way, way
from trio_passt.host.readiness import Readiness
from trio_passt.host.seldom import SeldomLog
from trio_passt.wire import fragment
from trio_passt.wire.frames import Capabilities, FrameRun

WAITING_DATAGRAM_BYTES = 16 * 1024 * 1024
"""Datagrams that wait for a full link, of all flows together: anybody can send them to a guest that does not read."""

OUT_OF_ORDER_BYTES = 64 * 1024 * 1024
"""What of TCP's is kept behind gaps, of all flows together: a guest needs nobody to leave a gap in each."""


class FrameSink(Protocol):
    """The half of a link that flows use (see `trio_passt.link.base.Link`); they are handed it, and never import one."""

    @property
    def capabilities(self) -> Capabilities:
        """What the link does by itself."""

    def send(self, runs: Sequence[FrameRun]) -> int:
        """Take frames without waiting, and say how many."""

    @property
    def is_full(self) -> bool:
        """Whether `send` is known to take nothing."""

    @property
    def room_bytes(self) -> int:
        """About how much `send` would take now, frames and their prefixes; 0 or less if none."""

    @property
    def waiting(self) -> int:
        """How many callbacks wait for room."""

    def gather(self) -> None:
        """Small frames may be kept until `release`."""

    def release(self) -> None:
        """Send what was kept."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once when a link that was full may take frames again."""

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back after all."""


@define(eq=False)
class Session:
    """One guest connection, as its flows see it.  Only `change` changes what it has.

    `scratch` is the buffer that all of them peek and receive into, each within one step that does not await.  `drops`
    counts what was dropped, by reason.  `secret` keys the initial sequence numbers (RFC 6528).  `datagrams` bounds what
    may wait for a full link, `out_of_order` what of TCP's is kept behind gaps.  `buffer` is for what datagram sockets
    have, as `scratch` for streams; `identifications` number the datagrams that go to the guest in fragments.
    `exhaustion` says, now and then, that the host has no descriptors left, or not what `outbound` asks for, which is
    how the guest's flows leave the host.  `quick_firsts` counts the connections whose first answer was quick
    (`tcp.riding`).
    """

    link: FrameSink
    network: GuestNetwork
    guest: Guest
    addresses: AddressMap
    readiness: Readiness
    drops: Counter[str]
    scratch: memoryview
    secret: bytes
    buffer: DatagramBuffer = field(factory=DatagramBuffer)
    identifications: Iterator[int] = field(factory=lambda: fragment.identifications(secrets.randbits(32)))
    exhaustion: SeldomLog = field(factory=SeldomLog)
    datagrams: Budget = field(factory=lambda: Budget(WAITING_DATAGRAM_BYTES))
    out_of_order: Budget = field(factory=lambda: Budget(OUT_OF_ORDER_BYTES))
    outbound: Outbound = Outbound()  # noqa: RUF009 - a frozen value
    quick_firsts: Streak = field(factory=Streak)

    def change(self, network: GuestNetwork) -> None:
        """The host's network has changed, and with it what the guest is told.  Flows go on as they are."""
        self.network = network
        self.addresses = AddressMap(network, self.outbound.ipv6_interface)
        self.guest.assign(network)

    def way_to(self, peer: Endpoint) -> Way | None:
        """What a new socket for this peer is bound to; `None`: nothing, as the host's routes say."""
        found = way(self.outbound, len(peer.address))
        return None if found is None or self.addresses.is_host(peer.address) else found
