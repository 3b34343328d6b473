"""The top nursery: the whole program, from the top.

root nursery
├─ signals                  SIGTERM, SIGINT, SIGQUIT, SIGHUP end everything in order
├─ status                   SIGUSR1 asks for a table of flows and counters
├─ port listeners           one task for all forwarded ports
├─ host follower            tells when the host's network changes
└─ guests, one after the other
   ├─ door                  turns away a second one meanwhile
   └─ guest session         a nursery for all that one guest connection owns; the guest goes, it is cancelled
      ├─ root task          owns the frames: has each batch dispatched, and ends with the link
      ├─ link, readiness    finish partly written frames; fetch the events of the link and of all host sockets
      ├─ router             unsolicited router advertisements
      ├─ fragments          gives up what never becomes whole
      └─ flows              one task each
"""

import logging
import random
import resource
import secrets
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import trio
from attrs import define, field, frozen

from trio_passt import status
from trio_passt.config import Config, GuestNetwork, LogLevel, PortForward
from trio_passt.dispatch import Dispatcher
from trio_passt.flow.guest import Guest
from trio_passt.flow.session import Session
from trio_passt.flow.translate import AddressMap
from trio_passt.host.follow import follow
from trio_passt.host.guest_network import afresh
from trio_passt.host.listeners import PortListeners
from trio_passt.host.outbound import check_outbound
from trio_passt.host.queue import SCRATCH_BYTES
from trio_passt.host.readiness import READABLE, Readiness
from trio_passt.host.watch import HostWatch
from trio_passt.icmp.flow import check_permission as check_ping_permission
from trio_passt.link.base import Link, LinkClosed
from trio_passt.link.capture import Capture, CapturingLink, open_capture
from trio_passt.link.listener import GuestListener, from_fd, from_listening_fd, listen
from trio_passt.link.stream import StreamLink
from trio_passt.link.trace import TracingLink
from trio_passt.responder import Responder
from trio_passt.services import ndp

log = logging.getLogger("trio_passt")

OnReady = Callable[[Path | None, Sequence[PortForward]], None]

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""Watched before anything is opened, so that there is no moment at which one of them leaves a socket's file behind."""

STATUS_SIGNAL = signal.SIGUSR1
"""Watched from then on, too: by default it would end the process.  Before, `cli.main` has it ignored."""


@define(eq=False)
class Current:
    """What is served: a guest's network, which may change, and the guest session that is there to be told.

    `guest` is that session for whoever asks about it, `forwards` the forwarded ports that are open: to find out takes a
    while, where they are many.
    """

    network: GuestNetwork
    forwards: Sequence[PortForward] = ()
    guest: status.Attached | None = None
    responder: Responder | None = None
    changed: trio.Event = field(factory=trio.Event)

    def change(self, network: GuestNetwork) -> None:
        """The host's network is another now."""
        self.network = network
        if self.responder is not None:
            self.responder.change(network)
        self.changed.set()
        self.changed = trio.Event()


@frozen
class Serving:
    """What all guests are served with."""

    config: Config
    current: Current
    listeners: PortListeners
    capture: Capture | None = None


async def run(
    config: Config, *, on_open: Callable[[], None] | None = None, on_ready: OnReady, watch: HostWatch | None = None
) -> None:
    """Open everything, call `on_open` and `on_ready`, serve guests until the end.

    `on_open` may give up the privileges that opening took.  `on_ready` gets the socket's path (None with a connected
    one) and the forwards that could be bound.  `watch` tells of changes of the host's network since before it was read
    for `config`; without it, none is followed.  Returns after SIGTERM, SIGINT, SIGQUIT or SIGHUP, and when the only
    guest has gone (`one_off`, or a connected descriptor).  Raises StartupError if something can't be opened; everything
    that was opened is closed again in any case.
    """
    with ExitStack() as opened:
        asked = opened.enter_context(trio.open_signal_receiver(STATUS_SIGNAL))
        signals = opened.enter_context(trio.open_signal_receiver(*end_signals()))
        raise_descriptor_limit()
        check_outbound(config.outbound)
        listeners = PortListeners.bind(config.forwards, _families(config.network), freebind=config.freebind)
        opened.callback(listeners.close)
        capture = open_capture(config.pcap) if config.pcap else None
        if capture is not None:
            opened.callback(capture.close)
        only_guest = from_fd(config.attachment.fd) if config.attachment.fd is not None else None
        door = open_door(config) if only_guest is None else None
        for attachment in (door, only_guest):
            if attachment is not None:
                opened.callback(attachment.close)
        if door is not None and config.run_as is not None:
            door.give_to(config.run_as.uid, config.run_as.gid)
        if on_open is not None:
            on_open()
        if config.network.transports.icmp:
            check_ping_permission()
        current = Current(config.network, listeners.bound)
        on_ready(door.path if door else None, current.forwards)
        async with trio.open_nursery() as root:
            root.start_soon(end_on_signal, signals, root.cancel_scope)
            root.start_soon(listeners.run)
            root.start_soon(status.answer, asked, lambda: current.guest, lambda: current.forwards)
            serving = Serving(config, current, listeners, capture)
            if watch is not None:
                root.start_soon(follow_host, watch, serving)
            if only_guest is not None:
                await serve_guest(only_guest, serving)
            elif door is not None:
                await serve_guests(door, serving)
            root.cancel_scope.cancel()


def open_door(config: Config) -> GuestListener:
    """Where guests come in."""
    if config.attachment.listen_fd is not None:
        return from_listening_fd(config.attachment.listen_fd)
    return listen(config.attachment.socket_path)


def end_signals() -> list[signal.Signals]:
    """Those of `END_SIGNALS` that mean us: nohup(1) has its programs ignore SIGHUP."""
    return [number for number in END_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


async def end_on_signal(signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
    """The orderly end."""
    async for number in signals:
        log.info("ended by %s", signal.Signals(number).name)
        everything.cancel()


async def follow_host(watch: HostWatch, serving: Serving) -> None:
    """The host's network changes: forwarded ports are bound in a family that is new, and the guest is told."""

    def on_change(network: GuestNetwork) -> None:
        before = serving.listeners.descriptors
        serving.listeners.add_families(_families(network))
        if serving.listeners.descriptors != before:
            serving.current.forwards = serving.listeners.bound
        serving.current.change(network)

    def on_look() -> None:
        if serving.listeners.follow_interfaces():
            serving.current.forwards = serving.listeners.bound

    await follow(watch, serving.config.wishes, serving.config.network, on_change, on_look)


async def serve_guests(door: GuestListener, serving: Serving) -> None:
    """One guest at a time, one after the other; with `one_off` the first is the last."""
    waiting: list[StreamLink] = []
    try:
        while True:
            link = waiting.pop() if waiting else await door.accept()
            log.info("guest connected")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turn_away, door, link, waiting)
                await serve_guest(link, serving)
                nursery.cancel_scope.cancel()
            if serving.config.one_off:
                return
    finally:
        for link in waiting:
            link.close()


async def turn_away(door: GuestListener, guest: StreamLink, waiting: list[StreamLink]) -> None:
    """Accept and close whoever comes while a guest is there.

    Unless that one has hung up, and it is only not known everywhere yet: a guest that starts anew may be quick.  Then
    who comes is `waiting`, and whoever comes after waits outside.
    """
    while not waiting:
        link = await door.accept()
        if guest.has_hung_up():
            waiting.append(link)
        else:
            link.close()
            log.warning("refused a second guest: one is connected already")


async def serve_guest(link: Link, serving: Serving) -> None:
    """One guest session, from its connection to its end; without descriptors for it, its end comes at once."""
    if serving.capture is not None:
        link = CapturingLink(link, serving.capture)
    if serving.config.log_level is LogLevel.TRACE:
        link = TracingLink(link)
    with ExitStack() as opened:
        opened.callback(link.close)
        try:
            readiness = Readiness(lingers=True)
        except OSError as error:
            log.error("can't serve the guest: %s", error.strerror)
            return
        opened.callback(readiness.close)
        network, outbound = afresh(serving.current.network), serving.config.outbound
        session = Session(
            link=link,
            network=network,
            guest=Guest(network),
            addresses=AddressMap(network, outbound.ipv6_interface),
            readiness=readiness,
            drops=Counter(),
            scratch=memoryview(bytearray(SCRATCH_BYTES)),
            secret=secrets.token_bytes(32),
            outbound=outbound,
        )
        async with trio.open_nursery() as nursery:
            dispatcher = Dispatcher(session, nursery, serving.config.flow_limit, serving.listeners)
            responder = dispatcher.responder
            nursery.start_soon(link.run)
            nursery.start_soon(readiness.run)
            nursery.start_soon(advertise_router, responder, serving.current)
            nursery.start_soon(dispatcher.fragments.run)
            serving.listeners.receiver, serving.current.responder = dispatcher, responder
            serving.current.guest = status.Attached(session, dispatcher, trio.current_time())
            try:
                await own_frames(link, dispatcher, readiness)
            except LinkClosed as closed:
                log.info("guest gone: %s", closed)
            except trio.Cancelled:
                responder.farewell()
                raise
            finally:
                serving.current.responder = serving.current.guest = None
                serving.listeners.receiver = None  # before the nursery closes, which takes no more flows then
            nursery.cancel_scope.cancel()
        for reason, count in session.drops.most_common():
            log.debug("dropped: %s: %d", reason, count)


async def own_frames(link: Link, dispatcher: Dispatcher, readiness: Readiness) -> None:
    """The root task: batches of frames are dispatched as they come.  It never awaits a flow.  Ends with `LinkClosed`.

    A link's descriptor is watched together with the host's sockets, since what comes from one side goes to the other.
    """
    dispatcher.responder.find_guest()
    descriptor = link.fileno()
    if descriptor is None:
        while True:
            dispatcher.dispatch(await link.receive_batch())
    ended = trio.Event()
    reasons: list[Exception] = []

    def take(_mask: int) -> None:
        try:
            batch = link.receive_now()
            if batch is not None:
                readiness.moved(len(batch.data))
                dispatcher.dispatch(batch)
        except Exception as reason:
            readiness.forget(descriptor)
            reasons.append(reason)
            ended.set()

    readiness.watch(descriptor, take, events=READABLE, edge_triggered=False)
    try:
        await ended.wait()
    finally:
        readiness.forget(descriptor)
    raise reasons[0]


async def advertise_router(responder: Responder, current: Current) -> None:
    """Unsolicited router advertisements (RFC 4861 section 6.2.4): the first few follow soon, also after a change.

    A change never puts one off: on a host that keeps changing the guest's routers would expire.
    """

    def next_one() -> float:
        return trio.current_time() + ndp.next_interval_s(sent, random.random())

    sent = 0
    due = next_one()
    while True:
        changed = current.changed
        with trio.move_on_at(due):
            await changed.wait()
        if changed.is_set():
            sent = 0
            due = min(due, next_one())
        else:
            responder.advertise_router()
            sent += 1
            due = next_one()


def _families(network: GuestNetwork) -> list[int]:
    """The address families that the guest has: ports are not forwarded in another."""
    families = ((network.ipv4, socket.AF_INET), (network.ipv6, socket.AF_INET6))
    return [family for part, family in families if part is not None]


def raise_descriptor_limit() -> None:
    """The soft limit of open files up to the hard one: every flow holds a descriptor."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
