"""Who takes what arrives at forwarded ports, where it may go past the tap.

`ToGuest` is at the host's ports.  Loopback's clients go to the guest's own address, or to its loopback, by sockets of
its namespace; all others go by the tap, as a virtual machine's do, and so do those whom the namespace has no way for:
it may have no address yet.

`ToHost` is at the namespace's ports, which lead to the host's loopback, and there to the address that was dialled: a
resolver at 127.0.0.53 is found at 127.0.0.53.
"""

import socket
from collections.abc import Callable

from trio_passt.flow.guest import Guest
from trio_passt.host import sockets
from trio_passt.host.endpoint import LOOPBACK, Endpoint, is_loopback
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import Receiver, UdpPort
from trio_passt.host.side import Side
from trio_passt.local.flows import LocalFlows, Means
from trio_passt.wire.datagrams import Train
from trio_passt.wire.ipv6 import is_link_local


class ToGuest:
    """The receiver at the host's ports; what is not local is `others`'."""

    def __init__(self, means: Means, side: Side, others: Receiver, *, to_loopback: bool) -> None:
        self.flows = LocalFlows(means, side, is_from_guest=False)
        self._guest = means.session.guest
        self._others = others
        self._to_loopback = to_loopback

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        """By the one way or the other."""
        if is_loopback(peer.address):
            dialled = Endpoint.of(host.getsockname())
            address = self._destination(dialled.address)
            if address is not None and self.flows.connect(host, peer, dialled, Endpoint(address, target)):
                return
        self._others.on_connection(host, peer, target)

    def on_datagrams(
        self, port: UdpPort, peer: Endpoint, local: bytes, buffer: memoryview, trains: list[Train]
    ) -> None:
        """By the one way or the other."""
        if is_loopback(peer.address):
            address = self._destination(local)
            if address is not None and self.flows.pass_on(
                port, peer, local, Endpoint(address, port.target), buffer, trains
            ):
                return
        self._others.on_datagrams(port, peer, local, buffer, trains)

    def _destination(self, dialled: bytes) -> bytes | None:
        return _loopback_for(dialled) if self._to_loopback else _own_address(self._guest, dialled)

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> None:
        """Of whichever flow it is."""
        if not self.flows.on_datagram_error(port, error):
            self._others.on_datagram_error(port, error)

    def on_overflow(self, datagrams: int) -> None:
        """Whose they were is unknown."""
        self._others.on_overflow(datagrams)

    @property
    def is_full(self) -> bool:
        """Whose the next datagrams are is not known before they are read, so all wait."""
        return self._others.is_full

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once when the guest takes datagrams again."""
        self._others.when_ready(callback)


class ToHost:
    """The receiver at the namespace's ports."""

    def __init__(self, means: Means, side: Side) -> None:
        self.flows = LocalFlows(means, side, is_from_guest=True)
        self._drops = means.session.drops

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        """To the host's loopback."""
        dialled = Endpoint.of(host.getsockname())
        if not self.flows.connect(host, peer, dialled, Endpoint(_loopback_for(dialled.address), target)):
            sockets.reset(host)

    def on_datagrams(
        self, port: UdpPort, peer: Endpoint, local: bytes, buffer: memoryview, trains: list[Train]
    ) -> None:
        """To the host's loopback."""
        if not self.flows.pass_on(port, peer, local, Endpoint(_loopback_for(local), port.target), buffer, trains):
            self._drops["udp: no way to the host's loopback"] += sum(train.datagrams for train in trains)

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> None:
        """A client has gone."""
        self.flows.on_datagram_error(port, error)

    def on_overflow(self, datagrams: int) -> None:
        """The kernel has dropped so many, since the receive buffer of a port was full."""
        if datagrams:
            self._drops["udp: receive buffer in the namespace full"] += datagrams

    @property
    def is_full(self) -> bool:
        """The host's kernel takes or drops them."""
        return False

    def when_ready(self, callback: Callable[[], None]) -> None:
        """It always is."""
        callback()


def _loopback_for(dialled: bytes) -> bytes:
    """The loopback address that was dialled, or one of that family."""
    return dialled if is_loopback(dialled) else LOOPBACK[len(dialled)]


def _own_address(guest: Guest, dialled: bytes) -> bytes | None:
    """The guest's of the same family; not a link-local one, whose interface we do not know."""
    address = guest.address_towards(LOOPBACK[len(dialled)])
    return None if address is None or is_link_local(address) else address
