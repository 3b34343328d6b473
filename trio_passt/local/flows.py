"""Local flows of one direction: how they are opened, found, and counted."""

import errno
import fcntl
import logging
import os
import socket
import struct

import trio
from attrs import frozen

from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import Session
from trio_passt.flow.table import BriefTable, FlowLimit, SilentTable
from trio_passt.host import error_queue, sockets
from trio_passt.host.endpoint import Endpoint, is_loopback
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.listeners import UdpPort
from trio_passt.host.outbound import Way
from trio_passt.host.side import Side
from trio_passt.local.connection import LocalConnection
from trio_passt.local.datagrams import Clients, LocalDatagrams, key_of
from trio_passt.local.pipes import PipePool
from trio_passt.wire.datagrams import Train

log = logging.getLogger("trio_passt.local")

OWN_FOR_S = 1.0
"""So long an address of that side's is taken to be there still."""

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1
_INTERFACE = struct.Struct("=16sH22x")
"""struct ifreq of netdevice(7): name, flags."""


@frozen
class Means:
    """What local flows are made with: `tcp_limit` is that of all TCP connections of the guest's, `most_udp` our own."""

    session: Session
    nursery: trio.Nursery
    tcp_limit: FlowLimit
    most_udp: int
    pool: PipePool


class LocalFlows:
    """Flows from clients at one side to servers at `side`, the other one."""

    def __init__(self, means: Means, side: Side, *, is_from_guest: bool) -> None:
        session = self._session = means.session
        self._side = side
        self._pool = means.pool
        self._is_from_guest = is_from_guest
        self._clients: Clients = {}
        self._own: dict[bytes, float] = {}
        """Addresses that were found to be the side's own, and when."""
        later = session.readiness.later
        self.tcp: BriefTable[LocalConnection] = BriefTable(means.nursery, means.tcp_limit, later)
        self.udp: SilentTable[LocalDatagrams] = SilentTable(means.nursery, means.most_udp, "local UDP", later)

    def connect(self, client: socket.socket, peer: Endpoint, dialled: Endpoint, destination: Endpoint) -> bool:
        """Join an accepted connection to a new one; false if there is no way there, and nothing was done.

        The client is reset if the destination refuses it.
        """
        server = self._socket(destination, socket.SOCK_STREAM)
        if server is None:
            return False
        try:
            is_connected = self._dial(server, destination)
        except OSError as error:
            server.close()
            if error.errno in sockets.NO_WAY:
                log.debug("no local way for %s to %s: %s", peer, destination, error.strerror)
                return False
            log.debug("local connection from %s to %s: %s", peer, destination, error.strerror)
            self._warn(error)
            sockets.reset(client)
            return True
        key = FlowKey(dialled.address, dialled.port, peer.address, peer.port)
        former = self.tcp.get(key)
        if former is not None:
            former.end()  # as it has had one of these names, its client is gone
            self.tcp.forget(former)
        flow = LocalConnection(
            self._session,
            key,
            client,
            server,
            destination if self._is_from_guest else peer,
            self._pool,
            is_connected=is_connected,
            is_from_guest=self._is_from_guest,
        )
        if self.tcp.start(flow):
            flow.begin()
        else:
            server.close()
            sockets.reset(client)
        return True

    def pass_on(
        self,
        port: UdpPort,
        peer: Endpoint,
        local: bytes,
        destination: Endpoint,
        buffer: memoryview,
        trains: list[Train],
    ) -> bool:
        """Give datagrams to their client's flow, perhaps a new one; false if there is no way, and nothing was done."""
        flow = self.udp.get(key_of(port, peer, local))
        if flow is None or flow.is_over:
            server = self._socket(destination, socket.SOCK_DGRAM)
            if server is None:
                return False
            try:
                self._connect_udp(server, destination)
            except OSError as error:
                server.close()
                if error.errno in sockets.NO_WAY:
                    return False
                self._warn(error)
                self._session.drops[f"udp: {error.strerror}"] += sum(train.datagrams for train in trains)
                return True
            flow = LocalDatagrams(
                self._session, port, peer, local, server, destination, self._clients, is_from_guest=self._is_from_guest
            )
            self.udp.start(flow)  # the idlest have made way
            flow.begin()
        flow.deliver(buffer, trains)
        return True

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> bool:
        """It goes to the flow that it is about; false if that is none of these."""
        flow = self._clients.get((port, error.destination)) if error.destination is not None else None
        if flow is None or flow.is_over:
            return False
        flow.deliver_error(error)
        return True

    def _warn(self, error: OSError) -> None:
        if sockets.lacks_means(error):
            self._session.exhaustion.warn(log, "can't open a local connection: %s", error.strerror)

    def _socket(self, destination: Endpoint, kind: int) -> socket.socket | None:
        """One of that side; `None` if there is none to be had: whatever lacks there, the tap may still lead there."""
        try:
            return self._side.socket(destination.family, kind)
        except OSError as error:
            log.debug("no socket for a local flow to %s: %s", destination, error.strerror)
            self._warn(error)
            return None

    def _dial(self, sock: socket.socket, destination: Endpoint) -> bool:
        """Whether it is connected already: on loopback it mostly is.  Raises OSError."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bind(sock, destination)
        number = sock.connect_ex(destination.sockaddr())
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        return not number

    def _connect_udp(self, sock: socket.socket, destination: Endpoint) -> None:
        """Raises OSError."""
        error_queue.enable(sock)
        self._bind(sock, destination)
        sock.connect(destination.sockaddr())

    def _bind(self, sock: socket.socket, destination: Endpoint) -> None:
        """To the address that it goes to, if that is not a loopback one: it has to be that side's own.

        Else it would leave that side, and so come by the tap.  And that side's loopback has to be up: a kernel sends
        what is for itself by that, and drops it if it is not.  Raises OSError.
        """
        address = destination.address
        if is_loopback(address):
            return
        now = trio.current_time()
        if self._own.get(address, -OWN_FOR_S) + OWN_FOR_S <= now:
            self._own.pop(address, None)
            Way(source=address).bind_to_source(sock)
            if not _loopback_is_up(sock):
                raise OSError(errno.ENETUNREACH, "loopback is down")
            self._own[address] = now


def _loopback_is_up(sock: socket.socket) -> bool:
    """That of the side which this socket is of (netdevice(7), SIOCGIFFLAGS)."""
    flags: int = _INTERFACE.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _INTERFACE.pack(b"lo", 0)))[1]
    return bool(flags & _IFF_UP)
