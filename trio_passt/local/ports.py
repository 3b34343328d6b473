"""The ports that join a namespace guest and its host past the tap: what is opened before the guest runs, and served
with it.
"""

import logging
from collections.abc import Collection, Iterable

import trio

from trio_passt.config import Binding, Config, PortForward
from trio_passt.flow.guest import Guest
from trio_passt.flow.session import Session
from trio_passt.flow.table import FlowLimit, FlowTable
from trio_passt.host import sockets
from trio_passt.host.listeners import PortListeners, Receiver
from trio_passt.host.listening import Listing
from trio_passt.host.side import Here, Side
from trio_passt.local.connection import LocalConnection
from trio_passt.local.datagrams import LocalDatagrams
from trio_passt.local.flows import LocalFlows, Means
from trio_passt.local.following import AutomaticForwards
from trio_passt.local.pipes import PipePool
from trio_passt.local.receiver import ToGuest, ToHost

UDP_ONE_IN = 16
"""So many of this process's descriptors are for UDP's local flows of one direction.  The tap's have half of them, and
automatic ports a quarter (`following`)."""


class LocalPorts:
    """Forwards to the host, bound in the guest's namespace (`side`), and automatic ones of both directions.

    `listeners` are the forwarded ports of the host.  StartupError, or a group of them, as of `PortListeners.bind`.
    """

    def __init__(
        self,
        config: Config,
        side: Side,
        listeners: PortListeners,
        families: Collection[int],
    ) -> None:
        assert config.namespace is not None
        self._namespace = config.namespace
        self._side = side
        self._listeners = listeners
        self._guest = Guest(config.network)
        self._flows: list[LocalFlows] = []
        self.to_host = PortListeners.bind(config.forwards_to_host, families, side=side, on_loopback=True)
        self._listings = Listing(side), Listing(Here())
        self._automatic = AutomaticForwards(
            config.automatic,
            *self._listings,
            listeners,
            self.to_host,
            lambda: self._guest.addresses,
            to_loopback=self._namespace.loopback_to_loopback,
            named=(_by_name(config.forwards), _by_name(config.forwards_to_host)),
        )

    @property
    def connections(self) -> list[FlowTable[LocalConnection]]:
        """TCP's flows, of the session that is served."""
        return [flows.tcp for flows in self._flows]

    @property
    def datagrams(self) -> list[FlowTable[LocalDatagrams]]:
        """UDP's."""
        return [flows.udp for flows in self._flows]

    def is_sending(self) -> bool:
        """Whether something that was sent by one side and ended is still on its way to the other."""
        return any(flow.is_sending for table in self.connections for flow in table)

    async def open(self) -> None:
        """Before the guest runs: what the host has for it now is there from the beginning, and nothing that is new."""
        await self._automatic.look(logging.DEBUG)

    def serve(
        self, session: Session, nursery: trio.Nursery, tcp_limit: FlowLimit, most_udp: int, others: Receiver
    ) -> Receiver:
        """Begin a guest session, and say who takes what comes to the host's ports; what goes by the tap is `others`'.

        It ends with `nursery`.
        """
        self._guest = session.guest
        most_udp = min(most_udp, sockets.descriptor_limit() // UDP_ONE_IN)
        means = Means(session, nursery, tcp_limit, most_udp, PipePool())
        to_host = ToHost(means, Here())
        self._flows = [to_host.flows]
        receiver = others
        if self._namespace.splices:
            to_guest = ToGuest(means, self._side, others, to_loopback=self._namespace.loopback_to_loopback)
            self._flows.append(to_guest.flows)
            receiver = to_guest
        nursery.start_soon(self._serve, session, to_host, means.pool)
        return receiver

    async def _serve(self, session: Session, to_host: ToHost, pool: PipePool) -> None:
        listeners = self.to_host
        listeners.receiver = to_host
        session.readiness.include(listeners.readiness)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listeners.run)
                nursery.start_soon(self._automatic.run)
        finally:
            session.readiness.exclude(listeners.readiness)
            listeners.receiver = None
            self._flows = []
            pool.close()

    def close(self) -> None:
        """Close all sockets."""
        self.to_host.close()
        for listing in self._listings:
            listing.close()


def _by_name(forwards: Iterable[PortForward]) -> list[PortForward]:
    return [forward for forward in forwards if forward.binding is not Binding.SPARE]
