"""Forwarded ports: bound at start, or when the guest gets their family, and watched by one task through one epoll
descriptor.

A listening TCP socket gives connections, a UDP socket datagrams; both are handed to whoever is `Receiver` at the
moment: the guest session, if there is one.  With no guest there is nobody to answer: a connection is reset, a
datagram dropped.  A guest that is there but takes no more leaves datagrams where they are, in the sockets' receive
buffers.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol as TypingProtocol

from trio_passt.config import IPAddress, PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host import error_queue, sockets
from trio_passt.host.datagrams import IP_PKTINFO, SLOTS, Ancillary, DatagramBuffer, expect_bulk
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.readiness import ERROR, READABLE, Readiness
from trio_passt.host.seldom import SeldomLog
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.datagrams import Train

log = logging.getLogger("trio_passt.ports")

ACCEPTS_PER_TURN = 64
"""A busy port gets its turn and then others do; the epoll is level-triggered, so nothing is forgotten."""

BACKLOG = 1024
"""Limited by net.core.somaxconn; connections wait here only until the task's next turn."""

NO_DESCRIPTORS_PAUSE_S = 0.1
"""Out of descriptors, a connection stays in the backlog and its socket readable; this keeps that from spinning."""

_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")


_MISSING_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
_WILDCARD: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class UdpPort:
    """A bound UDP socket, and the guest's port that it forwards to.

    `address` is the one of the host that it is bound to, `None` for all of them.
    """

    __slots__ = ("_listeners", "address", "overflowed", "socket", "target")

    def __init__(
        self, sock: socket.socket, target: int, listeners: "PortListeners", address: IPAddress | None = None
    ) -> None:
        self.socket = sock
        self.target = target
        self.address = address
        self.overflowed = 0
        """What the kernel's counter of dropped datagrams was when it was last looked at."""
        self._listeners = listeners

    def can_reach(self, destination: bytes) -> bool:
        """Whether datagrams to this packed address may leave from here: from loopback to loopback only."""
        if self.address is None:
            return True
        return self.address.is_loopback == ip_address(destination).is_loopback and not self.address.is_link_local

    def send(self, payloads: Sequence[Buffer], ancillary: Ancillary, peer: Endpoint, source: bytes) -> None:
        """One `sendmsg` to `peer` from the packed local address `source` (IP_PKTINFO), or, if that is all zeros, from
        one of the kernel's choice.  Raises OSError."""
        if any(source):
            if len(source) == 4:
                chosen = (socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, source, bytes(4)))
            else:
                chosen = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source, peer.scope_id))
            ancillary = [*ancillary, chosen]
        self.socket.sendmsg(payloads, ancillary, 0, peer.sockaddr())

    def read_errors(self) -> bool:
        """Tell what the error queue has; whether some of it is about what was sent just now."""
        return self._listeners.read_errors(self)


class Receiver(TypingProtocol):
    """Who takes what arrives at forwarded ports."""

    def on_connection(self, host: socket.socket, peer: Endpoint, target: int) -> None:
        """An accepted, non-blocking socket, the receiver's from now on; `target` is the guest's port."""

    def on_datagrams(
        self, port: UdpPort, peer: Endpoint, local: bytes, buffer: memoryview, trains: list[Train]
    ) -> None:
        """Datagrams from `peer` to the packed host address `local`, in a buffer that is used again."""

    def on_datagram_error(self, port: UdpPort, error: DatagramError) -> None:
        """An error about a datagram that was sent through this port."""

    def on_overflow(self, datagrams: int) -> None:
        """The kernel has dropped so many, since the receive buffer of a port was full."""

    @property
    def is_full(self) -> bool:
        """Whether it can take no datagrams now."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once when it can."""


class PortListeners:
    """Every forwarded port's sockets.  `receiver` is set while a guest is there."""

    def __init__(self, readiness: Readiness, sockets_to_close: ExitStack) -> None:
        self._receiver: Receiver | None = None
        self._parked: dict[UdpPort, None] = {}
        self._heard: dict[UdpPort, None] = {}
        """Those that a guest has had datagrams from."""
        self._udp_ports: dict[tuple[int, int], list[UdpPort]] = {}
        self._buffer = DatagramBuffer()
        self._readiness = readiness
        self._sockets = sockets_to_close
        self._exhaustion = SeldomLog()
        self._forwards: tuple[PortForward, ...] = ()
        self._families: set[int] = set()
        self.bound: list[PortForward] = []
        """The forwards that have at least one socket."""

    @classmethod
    def bind(
        cls, forwards: Iterable[PortForward], families: Collection[int] = (socket.AF_INET, socket.AF_INET6)
    ) -> "PortListeners":
        """Bind all of them, in those of the `families` that the guest has.

        StartupError names the first forward that must be bound and can't be, and why.
        """
        with ExitStack() as opened:
            readiness = Readiness()
            opened.callback(readiness.close)
            listeners = cls(readiness, opened)
            listeners._forwards, listeners._families = tuple(forwards), set(families)
            for forward in listeners._forwards:
                listeners._bind(forward, [family for family in _families(forward) if family in families])
            listeners._sockets = opened.pop_all()
            return listeners

    def add_families(self, families: Collection[int]) -> None:
        """The guest has these now; ports that can't be bound in one that it had not are said in the log."""
        new = set(families) - self._families
        self._families |= new
        for forward in self._forwards if new else ():
            for family in new.intersection(_families(forward)):
                try:
                    self._open(forward, family)
                except OSError as error:
                    log.warning("%s, going on without it", _refusal(forward, family, error))
                else:
                    if forward not in self.bound:
                        self.bound.append(forward)

    @property
    def receiver(self) -> Receiver | None:
        """The guest session, while there is one."""
        return self._receiver

    @receiver.setter
    def receiver(self, receiver: Receiver | None) -> None:
        if self._receiver is not None:
            self._count_overflows(self._receiver)
        self._receiver = receiver
        self._unpark()

    def udp_port(self, target: int, destination: bytes) -> UdpPort | None:
        """The port that is forwarded to the guest's `target` and can reach this packed address.

        One that is bound to all addresses of the host comes before one that is bound to a certain one.
        """
        ports = self._udp_ports.get((target, len(destination)), ())
        return next((port for port in ports if port.can_reach(destination)), None)

    async def run(self) -> None:
        """Accept and receive until cancelled."""
        await self._readiness.run()

    def close(self) -> None:
        """Close all sockets."""
        self._sockets.close()

    def _bind(self, forward: PortForward, families: Sequence[socket.AddressFamily]) -> None:
        """Both families where no address is given; one is enough, since a host may lack the other."""
        failures: dict[socket.AddressFamily, OSError] = {}
        for family in families:
            try:
                self._open(forward, family)
            except OSError as error:
                failures[family] = error
        if len(failures) < len(families):
            self.bound.append(forward)
        for family, failure in failures.items():
            if failure.errno in _MISSING_FAMILY and len(failures) < len(families):
                continue
            refusal = _refusal(forward, family, failure)
            if forward.must_bind:
                raise StartupError(refusal)
            log.warning("%s, going on without it", refusal)
        if not families:
            raise StartupError(f"can't forward port {forward.port} of {forward.address}: that address family is off")

    def _open(self, forward: PortForward, family: int) -> None:
        is_tcp = forward.protocol is Protocol.TCP
        kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            _prepare(sock, family, is_tcp)
            sock.bind((str(forward.address or _WILDCARD[family]), forward.port))
            if is_tcp:
                sock.listen(BACKLOG)
                self._watch(sock, lambda: self._accept(sock, forward.target))
            else:
                port = UdpPort(sock, forward.target, self, forward.address)
                self._readiness.watch(
                    sock.fileno(), partial(self._on_port_event, port), events=READABLE, edge_triggered=False
                )
                ports = self._udp_ports.setdefault((forward.target, 4 if family == socket.AF_INET else 16), [])
                ports.insert(0 if forward.address is None else len(ports), port)
        except BaseException:
            sock.close()
            raise
        self._sockets.callback(sock.close)

    def _watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        self._readiness.watch(sock.fileno(), lambda _mask: on_readable(), events=READABLE, edge_triggered=False)

    def _accept(self, listener: socket.socket, target: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                host, name = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in sockets.EXHAUSTED:
                    self._exhaustion.warn(log, "can't accept a connection to a forwarded port: %s", error.strerror)
                    self._readiness.pause(NO_DESCRIPTORS_PAUSE_S)
                    return
                continue  # accept(2): errors of the connection, which is gone
            host.setblocking(False)
            if self.receiver is None:
                sockets.reset(host)
                continue
            try:
                sockets.prepare_tcp(host)
                self.receiver.on_connection(host, Endpoint.of(name), target)
            except OSError as error:
                log.debug("connection from %s: %s", name, error)
                sockets.reset(host)

    def _on_port_event(self, port: UdpPort, mask: int) -> None:
        if port in self._parked:
            return  # it will be told again
        try:
            if mask & ERROR:
                self.read_errors(port)
                sockets.pending_error(port.socket)  # one that is not in the queue would be reported for ever
            if mask & READABLE:
                self._receive(port)
        except Exception:  # the port outlives the guest that it was a bug with
            log.exception("internal error at a forwarded UDP port; please report this")

    def _receive(self, port: UdpPort) -> None:
        receiver = self._receiver
        if receiver is not None:
            self._heard[port] = None
            if receiver.is_full:
                self._park(port, receiver)
                return
        try:
            received = self._buffer.read_named(port.socket, SLOTS)
        except BlockingIOError:
            return
        except OSError:  # about an earlier reply
            self.read_errors(port)
            return
        if receiver is None:
            port.overflowed = sockets.overflowed_datagrams(port.socket)  # nobody's loss
        else:
            for peer, local, trains in received:
                receiver.on_datagrams(port, peer, local, self._buffer.view, trains)

    def read_errors(self, port: UdpPort) -> bool:
        """Tell what the network said about datagrams that were sent through this port; see `UdpPort.read_errors`."""
        errors = error_queue.read_all(port.socket)
        for error in errors:
            if self._receiver is not None:
                self._receiver.on_datagram_error(port, error)
        return any(error.is_immediate for error in errors)

    def _park(self, port: UdpPort, receiver: Receiver) -> None:
        """Do not look at it until the guest takes datagrams again."""
        self._readiness.suspend(port.socket.fileno())
        if not self._parked:
            receiver.when_ready(self._unpark)
        self._parked[port] = None

    def _unpark(self) -> None:
        parked, self._parked = self._parked, {}
        for port in parked:
            if port.socket.fileno() >= 0:
                self._readiness.resume(port.socket.fileno(), events=READABLE)

    def _count_overflows(self, receiver: Receiver) -> None:
        heard, self._heard = self._heard, {}
        for port in heard:
            if port.socket.fileno() >= 0:
                overflowed = sockets.overflowed_datagrams(port.socket)
                receiver.on_overflow(overflowed - port.overflowed & 0xFFFFFFFF)
                port.overflowed = overflowed


def _prepare(sock: socket.socket, family: int, is_tcp: bool) -> None:
    """Options before the bind: one family, quick restarts, and for UDP the address that a datagram was sent to."""
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if is_tcp:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    error_queue.enable(sock)
    expect_bulk(sock)


def _refusal(forward: PortForward, family: int, error: OSError) -> str:
    where = forward.address or _WILDCARD[family]
    return f"can't forward {forward.protocol.name} port {forward.port} of {where}: {_explain(error, forward.port)}"


def _families(forward: PortForward) -> list[socket.AddressFamily]:
    match forward.address:
        case IPv4Address():
            return [socket.AF_INET]
        case IPv6Address():
            return [socket.AF_INET6]
        case _:
            return [socket.AF_INET, socket.AF_INET6]


def _explain(error: OSError, port: int) -> str:
    reason = os.strerror(error.errno or 0)
    if error.errno == errno.EACCES and port < 1024:
        return f"{reason}: ports below net.ipv4.ip_unprivileged_port_start (see sysctl(8)) need CAP_NET_BIND_SERVICE"
    return reason
