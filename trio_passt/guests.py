"""Guests: who is served, one after the other, and what one guest connection owns from its begin to its end.

A guest session is a nursery: the root task, which owns the frames; the link, which finishes what was written in part;
readiness, which fetches the events of the link and of all host sockets; router advertisements; fragments; the flows.
"""

import logging
import random
import secrets
from collections.abc import Callable, Collection, Sequence
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
from trio_passt.host.guest_network import afresh
from trio_passt.host.listeners import PortListeners, Receiver
from trio_passt.host.queue import SCRATCH_BYTES
from trio_passt.host.readiness import READABLE, Readiness
from trio_passt.link.base import Link, LinkClosed
from trio_passt.link.capture import Capture, CapturingLink
from trio_passt.link.listener import GuestListener, from_fd, from_listening_fd, listen
from trio_passt.link.stream import StreamLink
from trio_passt.link.trace import TracingLink
from trio_passt.responder import Responder
from trio_passt.services import ndp

log = logging.getLogger("trio_passt")


@define(eq=False)
class Current:
    """What is served: a guest's network, which may change, and the guest session that is there to be told.

    `guest` is that session for whoever asks about it.
    """

    network: GuestNetwork
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


class Machines:
    """Virtual machines at a stream socket: one that is connected, or whoever comes in by a listening one.

    Opened when made; StartupError if that can't be.
    """

    def __init__(self, serving: Serving) -> None:
        config = serving.config
        attachment = config.attachment
        self._serving = serving
        self._only = from_fd(attachment.fd) if attachment.fd is not None else None
        self._door: GuestListener | None = None
        if attachment.listen_fd is not None:
            self._door = from_listening_fd(attachment.listen_fd)
        elif self._only is None:
            self._door = listen(attachment.socket_path)
        if self._door is not None and config.run_as is not None:
            try:
                self._door.give_to(config.run_as.uid, config.run_as.gid)
            except BaseException:
                self._door.close()
                raise

    @property
    def path(self) -> Path | None:
        """Where guests come in."""
        return self._door.path if self._door is not None else None

    runs_command = False

    async def open(self) -> None:
        """Nothing more is to be opened."""

    def add_families(self, families: Collection[int]) -> None:
        """Nothing is open but the forwarded ports."""

    async def serve(self) -> int:
        """Until the only guest is gone; 0."""
        if self._only is not None:
            await serve_guest(self._only, self._serving)
        elif self._door is not None:
            await serve_guests(self._door, self._serving)
        return 0

    def close(self) -> None:
        """Close what was opened."""
        for attachment in (self._only, self._door):
            if attachment is not None:
                attachment.close()


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


@frozen
class Beside:
    """What a guest session has besides the tap's flows: who takes what comes to forwarded ports, and what to tell."""

    receiver: Receiver
    flows: Sequence[status.NamedFlows] = ()
    forwards_to_host: Callable[[], Sequence[PortForward]] | None = None


OnSession = Callable[[Session, Dispatcher, trio.Nursery], Beside]
"""Called when a guest session begins, with its nursery."""


async def serve_guest(link: Link, serving: Serving, on_session: OnSession | None = None) -> None:
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
            drops=link.drops,
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
            beside = on_session(session, dispatcher, nursery) if on_session is not None else Beside(dispatcher)
            serving.listeners.receiver, serving.current.responder = beside.receiver, responder
            serving.current.guest = status.Attached(
                session, dispatcher, trio.current_time(), beside.flows, beside.forwards_to_host
            )
            readiness.include(serving.listeners.readiness)
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
                readiness.exclude(serving.listeners.readiness)
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
