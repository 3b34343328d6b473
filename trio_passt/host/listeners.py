"""Forwarded ports: bound at start, or when the guest gets their family, and watched by one task through one epoll
descriptor.

A listening TCP socket gives connections, a UDP socket datagrams; both are handed to whoever is `Receiver` at the
moment: the guest session, if there is one.  With no guest there is nobody to answer: a connection is reset, a
datagram dropped.  A guest that is there but takes no more leaves datagrams where they are, in the sockets' receive
buffers.

More can be added, and taken away again, at any time.  A guest that is a namespace has such ports, too, which lead to
the host: their sockets are made at that side (`host.side`), and are like any others then.

There may be 150,000 sockets (`-t all -u all`).  So a port is two small objects, its socket and what is known of it; the
latter is what epoll's event is handed to.  Nothing is done for a port at which nothing happens, and nothing
that happens at one port takes longer because there are others.
"""

import gc
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from itertools import chain
from typing import Protocol as TypingProtocol

import trio
from attrs import evolve

from trio_passt.config import Binding, IPAddress, PortForward, Protocol
from trio_passt.host import error_queue, sockets
from trio_passt.host.binder import FIND_HOLDERS_WITHIN_S, Binder
from trio_passt.host.datagrams import SLOTS, Ancillary, DatagramBuffer, expect_bulk, packet_information
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.error_queue import DatagramError
from trio_passt.host.opener import Opener
from trio_passt.host.port_ranges import runs
from trio_passt.host.readiness import ERROR, READABLE, Readiness
from trio_passt.host.seldom import SeldomLog
from trio_passt.host.side import Here, Side
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.datagrams import Train

log = logging.getLogger("trio_passt.ports")

ACCEPTS_PER_TURN = 64
"""A busy port gets its turn and then others do; the epoll is level-triggered, so nothing is forgotten."""

NO_DESCRIPTORS_PAUSE_S = 0.1
"""Out of descriptors, a connection stays in the backlog and its socket readable; this keeps that from spinning."""

MANY_PORTS = 1000
"""As many objects, which live as long as the program, are no longer the garbage collector's business."""


class TcpPort:
    """A listening TCP socket.  There may be very many of them."""

    __slots__ = ("_listeners", "forward", "is_prepared", "port", "socket")

    def __init__(self, sock: socket.socket, forward: PortForward, port: int, listeners: "PortListeners") -> None:
        self.socket = sock
        self.forward = forward
        self.port = port
        self.is_prepared = False
        """Whether it has the options of a connection, which those that are accepted inherit."""
        self._listeners = listeners

    @property
    def target(self) -> int:
        """The guest's port."""
        return self.forward.target_of(self.port)

    def __call__(self, _mask: int) -> None:
        """Readiness tells of an event."""
        self._listeners.accept(self)


class UdpPort:
    """A bound UDP socket, and the guest's port that it forwards to.  There may be very many of them."""

    __slots__ = ("_listeners", "forward", "overflowed", "port", "socket", "target")

    def __init__(self, sock: socket.socket, forward: PortForward, port: int, listeners: "PortListeners") -> None:
        self.socket = sock
        self.forward = forward
        self.port = port
        self.target = port if forward.target == forward.first else forward.target_of(port)
        self.overflowed = 0
        """What the kernel's counter of dropped datagrams was when it was last looked at."""
        self._listeners = listeners

    def __call__(self, mask: int) -> None:
        """Readiness tells of an event."""
        self._listeners.on_port_event(self, mask)

    @property
    def address(self) -> IPAddress | None:
        """The one of the host that it is bound to, `None` for all of them."""
        return self.forward.address

    def can_reach(self, destination: bytes) -> bool:
        """Whether datagrams to this packed address may leave from here: from loopback to loopback only."""
        address, interface = self.forward.address, self.forward.interface
        if address is not None and address.is_unspecified:
            address = None
        if address is None and interface is None:
            return True
        if address is not None and address.is_link_local:
            return False
        is_loopback = address.is_loopback if address is not None else interface == "lo"
        return is_loopback == ip_address(destination).is_loopback

    def send(self, payloads: Sequence[Buffer], ancillary: Ancillary, peer: Endpoint, source: bytes) -> None:
        """One `sendmsg` to `peer` from the packed local address `source` (IP_PKTINFO), or, if that is all zeros, from
        one of the kernel's choice.  Raises OSError."""
        if any(source):
            ancillary = [*ancillary, packet_information(source, peer.scope_id)]
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

    def __init__(
        self,
        readiness: Readiness,
        forwards: Sequence[PortForward],
        families: Collection[int],
        *,
        freebind: bool,
        side: Side | None = None,
        on_loopback: bool = False,
    ) -> None:
        self._receiver: Receiver | None = None
        self._parked: dict[UdpPort, None] = {}
        self._heard: dict[UdpPort, None] = {}
        """Those that a guest has had datagrams from."""
        self._udp_ports: dict[int, dict[int, tuple[UdpPort, ...]]] = {4: {}, 16: {}}
        """By the bytes of an address, and by target."""
        self._buffer = DatagramBuffer()
        self._readiness = readiness
        self._exhaustion = SeldomLog()
        self._named: dict[int, list[TcpPort | UdpPort]] = {}
        """By the identity of the forward, which is quicker to look up than its value."""
        self._named_count = 0
        self.spare: list[TcpPort | UdpPort] = []
        self._runs: dict[int, list[PortForward]] = {}
        """What is bound of a forward, in the same way, until that changes."""
        self._inodes: set[int] | None = None
        self._side = side if side is not None else Here()
        self._binder = Binder(
            self, forwards, families, freebind=freebind, on_loopback=on_loopback, is_here=side is None
        )

    @classmethod
    def bind(
        cls,
        forwards: Iterable[PortForward],
        families: Collection[int] = (socket.AF_INET, socket.AF_INET6),
        *,
        freebind: bool = False,
        side: Side | None = None,
        on_loopback: bool = False,
    ) -> "PortListeners":
        """Bind all of them, in those of the `families` that the guest has.

        At another `side` than this process's, if one is given; `on_loopback`: those without address at loopback.
        StartupError, or a group of them: each names neighbouring ports that must be bound and can't be, and why.
        """
        with ExitStack() as opened:
            readiness = Readiness()
            opened.callback(readiness.close)
            listeners = cls(readiness, tuple(forwards), families, freebind=freebind, side=side, on_loopback=on_loopback)
            opened.callback(listeners.close)
            with _uncollected():
                listeners._binder.bind()
            if listeners.descriptors > MANY_PORTS:
                gc.freeze()
            opened.pop_all()
            return listeners

    def add_families(self, families: Collection[int]) -> None:
        """The guest's network has changed, and it has these now.

        Ports that can't be bound in one that it had not are said in the log; what was refused before is tried again.
        """
        self._binder.add_families(families)

    def follow_interfaces(self) -> bool:
        """An interface of the host's may have gone, or come again under its name; ports of that one are bound anew.

        Says whether there was one.
        """
        return self._binder.follow_interfaces()

    def add(self, forward: PortForward, *, holder_within_s: float = FIND_HOLDERS_WITHIN_S) -> None:
        """Have one more, not one of spare ports.

        As at start: StartupError, with one line, if it must be bound and can't be, and then none of its ports is.  Who
        has them is looked for so long.
        """
        self._binder.add(forward, within_s=holder_within_s)

    def remove(self, forward: PortForward) -> bool:
        """Close the ports of a forward that was added, or not of spare ports; false if there is none.

        TCP's connections go on; UDP's flows end, since their datagrams went through these sockets.
        """
        return self._binder.remove(forward)

    @property
    def bound(self) -> list[PortForward]:
        """The forwards that have a socket; of those that could be bound in part only, these ranges.

        It costs little to ask again.
        """
        forwards = self._binder.forwards
        unknown = {id(forward): set[int]() for forward in forwards if id(forward) not in self._runs}
        named = chain.from_iterable(self._named.get(key, ()) for key in unknown)
        has_spare = any(id(forward) in unknown and forward.binding is Binding.SPARE for forward in forwards)
        for port in chain(named, self.spare if has_spare else ()):
            ports = unknown.get(id(port.forward))
            if ports is not None:
                ports.add(port.port)
        for forward in forwards if unknown else ():
            if id(forward) in unknown:
                self._runs[id(forward)] = [
                    evolve(forward, first=run.start, last=run.stop - 1, target=forward.target_of(run.start))
                    for run in runs(sorted(unknown[id(forward)]))
                ]
        return [run for forward in forwards for run in self._runs[id(forward)]]

    @property
    def named(self) -> list[TcpPort | UdpPort]:
        """Those that are not spare ones."""
        return [*chain.from_iterable(self._named.values())]

    @property
    def descriptors(self) -> int:
        """How many there are of this process's."""
        return self._named_count + len(self.spare)

    @property
    def inodes(self) -> set[int]:
        """What the kernel lists our own sockets by; kept from the first time on that somebody asks."""
        if self._inodes is None:
            ports = chain(*self._named.values(), self.spare)
            self._inodes = {os.fstat(port.socket.fileno()).st_ino for port in ports}
        return self._inodes

    @property
    def readiness(self) -> Readiness:
        """Where their sockets are watched."""
        return self._readiness

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
        ports = self._udp_ports[len(destination)].get(target, ())
        return next((port for port in ports if port.can_reach(destination)), None)

    async def run(self) -> None:
        """Accept and receive, and bind what comes later, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._binder.run)
            nursery.start_soon(self._readiness.run)

    def close(self) -> None:
        """Close all sockets."""
        for port in chain(*self._named.values(), self.spare):
            port.socket.close()
        self._named.clear()
        self._named_count = 0
        self.spare.clear()
        self._runs.clear()
        self._udp_ports = {4: {}, 16: {}}
        self._readiness.close()

    def open_port(self, opener: Opener, port: int) -> None:
        """Have another socket.  Raises OSError."""
        sock, forward = self._side.open(opener, port), opener.forward
        found: TcpPort | UdpPort
        try:
            found = (TcpPort if forward.protocol is Protocol.TCP else UdpPort)(sock, forward, port, self)
            if isinstance(found, UdpPort):
                expect_bulk(sock)
            self._readiness.watch(sock.fileno(), found, events=READABLE, edge_triggered=False)
        except BaseException:
            sock.close()
            raise
        if self._inodes is not None:
            self._inodes.add(os.fstat(sock.fileno()).st_ino)
        self._runs.pop(id(forward), None)
        if forward.binding is Binding.SPARE:
            self.spare.append(found)
        else:
            self._named.setdefault(id(forward), []).append(found)
            self._named_count += 1
        if isinstance(found, UdpPort):
            by_target = self._udp_ports[4 if opener.family == socket.AF_INET else 16]
            others = by_target.get(found.target, ())
            is_first = forward.address is None and forward.interface is None
            by_target[found.target] = (found, *others) if is_first else (*others, found)

    def close_last_spare(self) -> None:
        """Close the spare one that was opened last."""
        self._close(self.spare.pop())

    def close_all_of(self, forward: PortForward) -> None:
        """Close all of this forward, which is not a spare one."""
        ports = self._named.pop(id(forward), [])
        self._named_count -= len(ports)
        for port in ports:
            self._close(port)
        self._runs.pop(id(forward), None)

    def close_all_at(self, interface: str) -> None:
        """Close all that are of forwards with this interface."""
        for forward in self._binder.forwards:
            if forward.interface == interface:
                self.close_all_of(forward)
        closed = [port for port in self.spare if port.forward.interface == interface]
        self.spare[:] = [port for port in self.spare if port.forward.interface != interface]
        for port in closed:
            self._close(port)

    def _close(self, port: TcpPort | UdpPort) -> None:
        self._runs.pop(id(port.forward), None)
        if self._inodes is not None:
            self._inodes.discard(os.fstat(port.socket.fileno()).st_ino)
        if isinstance(port, UdpPort):
            by_target = self._udp_ports[4 if port.socket.family == socket.AF_INET else 16]
            others = tuple(other for other in by_target[port.target] if other is not port)
            if others:
                by_target[port.target] = others
            else:
                del by_target[port.target]
            self._parked.pop(port, None)
            self._heard.pop(port, None)
        self._readiness.forget(port.socket.fileno())
        port.socket.close()

    def accept(self, port: TcpPort) -> None:
        """Connections have come."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                host, name = port.socket.accept()
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
                if not port.is_prepared:
                    for one in (host, port.socket):
                        sockets.keep_urgent_in_line(one)
                        sockets.prepare_tcp(one)
                    port.is_prepared = True
                self.receiver.on_connection(host, Endpoint.of(name), port.target)
            except OSError as error:
                log.debug("connection from %s: %s", name, error)
                sockets.reset(host)

    def on_port_event(self, port: UdpPort, mask: int) -> None:
        """Datagrams have come, or errors about those that were sent."""
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: so many new objects would set it off many times, in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
