"""The top nursery: the whole program, from the top.

root nursery
├─ signals                  SIGTERM, SIGINT, SIGQUIT, SIGHUP end everything in order (or go to the command that we run)
├─ status                   SIGUSR1 asks for a table of flows and counters
├─ port listeners           one task for all forwarded ports
├─ host follower            tells when the host's network changes
├─ beside                   what a front end adds, such as slirp4netns' API socket
└─ guests, one after the other (`guests`), or the one that is a namespace (`namespace_guest`)
   ├─ door                  turns away a second one meanwhile
   └─ guest session         a nursery for all that one guest connection owns; the guest goes, it is cancelled
      ├─ root task          owns the frames: has each batch dispatched, and ends with the link
      ├─ link, readiness    finish partly written frames; fetch the events of the link and of all host sockets
      ├─ router             unsolicited router advertisements
      ├─ fragments          gives up what never becomes whole
      └─ flows              one task each
"""

import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

from trio_passt import status
from trio_passt.config import Config, GuestNetwork, PortForward
from trio_passt.guests import Current, Serving, serve_guest, serve_guests
from trio_passt.host.follow import follow
from trio_passt.host.listeners import PortListeners
from trio_passt.host.outbound import check_outbound
from trio_passt.host.watch import HostWatch
from trio_passt.icmp.flow import check_permission as check_ping_permission
from trio_passt.link.capture import open_capture
from trio_passt.link.listener import GuestListener, from_fd, from_listening_fd, listen
from trio_passt.namespace.opened import OpenedNamespace
from trio_passt.namespace_guest import NamespaceGuest, pass_on_signals

log = logging.getLogger("trio_passt")

OnReady = Callable[[Path | None, Sequence[PortForward]], None]

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""Watched before anything is opened, so that there is no moment at which one of them leaves a socket's file behind."""

STATUS_SIGNAL = signal.SIGUSR1
"""Watched from then on, too: by default it would end the process.  Before, `cli.main` has it ignored."""


async def run(
    config: Config,
    *,
    on_open: Callable[[], None] | None = None,
    on_ready: OnReady,
    watch: HostWatch | None = None,
    namespace: OpenedNamespace | None = None,
    beside: Callable[[PortListeners], Awaitable[None]] | None = None,
) -> int:
    """Open everything, call `on_open` and `on_ready`, serve guests until the end; returns the exit status.

    `on_open` may give up the privileges that opening took.  `on_ready` gets the socket's path (None with a connected
    one) and the forwards that could be bound.  `watch` tells of changes of the host's network since before it was read
    for `config`; without it, none is followed.  `namespace` is the guest if `config.namespace` says so; whoever opened
    it closes it.  `beside` is one more task, which ends when the daemon does.

    Returns after SIGTERM, SIGINT, SIGQUIT or SIGHUP, and when the only guest has gone (`one_off`, a connected
    descriptor, or a namespace); the status is that of a namespace's command, else 0.  Raises StartupError if something
    can't be opened; everything that was opened is closed again in any case.
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
        current = Current(config.network)
        serving = Serving(config, current, listeners, capture)
        namespace_guest = only_guest = door = None
        if namespace is not None:
            namespace_guest = NamespaceGuest(namespace, serving, _families(config.network))
            opened.callback(namespace_guest.close)
            await namespace_guest.open()
        elif config.attachment.fd is not None:
            only_guest = from_fd(config.attachment.fd)
            opened.callback(only_guest.close)
        else:
            door = open_door(config)
            opened.callback(door.close)
            if config.run_as is not None:
                door.give_to(config.run_as.uid, config.run_as.gid)
        if on_open is not None:
            on_open()
        if config.network.transports.icmp and not (namespace is not None and namespace.runs_command):
            check_ping_permission()  # who runs a command is told when it pings
        current.forwards = listeners.bound
        on_ready(door.path if door else None, current.forwards)
        exit_status = 0
        async with trio.open_nursery() as root:
            if namespace is not None and namespace.runs_command:
                root.start_soon(pass_on_signals, signals, namespace)
            else:
                root.start_soon(end_on_signal, signals, root.cancel_scope)
            root.start_soon(listeners.run)
            root.start_soon(
                status.answer,
                asked,
                lambda: current.guest,
                lambda: listeners.bound if config.binds_later else current.forwards,
            )
            if beside is not None:
                root.start_soon(beside, listeners)
            if watch is not None:
                root.start_soon(follow_host, watch, serving, namespace_guest)
            if namespace_guest is not None:
                exit_status = await namespace_guest.serve()
            elif only_guest is not None:
                await serve_guest(only_guest, serving)
            elif door is not None:
                await serve_guests(door, serving)
            root.cancel_scope.cancel()
        return exit_status


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


async def follow_host(watch: HostWatch, serving: Serving, namespace: NamespaceGuest | None = None) -> None:
    """The host's network changes: forwarded ports are bound in a family that is new, and the guest is told."""

    def on_change(network: GuestNetwork) -> None:
        before = serving.listeners.descriptors
        serving.listeners.add_families(_families(network))
        if namespace is not None:
            namespace.add_families(_families(network))
        if serving.listeners.descriptors != before:
            serving.current.forwards = serving.listeners.bound
        serving.current.change(network)

    def on_look() -> None:
        if serving.listeners.follow_interfaces():
            serving.current.forwards = serving.listeners.bound

    await follow(watch, serving.config.wishes, serving.config.network, on_change, on_look)


def _families(network: GuestNetwork) -> list[int]:
    """The address families that the guest has: ports are not forwarded in another."""
    families = ((network.ipv4, socket.AF_INET), (network.ipv6, socket.AF_INET6))
    return [family for part, family in families if part is not None]


def raise_descriptor_limit() -> None:
    """The soft limit of open files up to the hard one: every flow holds a descriptor."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
