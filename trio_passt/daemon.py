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
      ├─ local ports        of a namespace: those that lead to the host, and automatic ones
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
from trio_passt.guests import Current, Machines, Serving
from trio_passt.host.follow import follow
from trio_passt.host.listeners import PortListeners
from trio_passt.host.outbound import check_outbound
from trio_passt.host.watch import HostWatch
from trio_passt.icmp.flow import check_permission as check_ping_permission
from trio_passt.link.capture import open_capture
from trio_passt.namespace.opened import OpenedNamespace
from trio_passt.namespace_guest import NamespaceGuest

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
    can't be opened; everything that was opened here is closed again in any case.
    """
    with ExitStack() as opened:
        asked = opened.enter_context(trio.open_signal_receiver(STATUS_SIGNAL))
        signals = opened.enter_context(trio.open_signal_receiver(*end_signals()))
        raise_descriptor_limit()
        check_outbound(config.outbound)
        families = _families(config.network)
        listeners = PortListeners.bind(config.forwards, families, freebind=config.freebind)
        opened.callback(listeners.close)
        capture = open_capture(config.pcap) if config.pcap else None
        if capture is not None:
            opened.callback(capture.close)
        current = Current(config.network)
        serving = Serving(config, current, listeners, capture)
        guests = Machines(serving) if namespace is None else NamespaceGuest(namespace, serving, families)
        opened.callback(guests.close)
        await guests.open()
        if on_open is not None:
            on_open()
        if config.network.transports.icmp and not guests.runs_command:
            check_ping_permission()  # who runs a command is told when it pings
        on_ready(guests.path, listeners.bound)
        exit_status = 0
        async with trio.open_nursery() as root:
            root.start_soon(heed_signals, signals, guests, root.cancel_scope)
            root.start_soon(listeners.run)
            root.start_soon(status.answer, asked, lambda: current.guest, lambda: listeners.bound)
            if beside is not None:
                root.start_soon(beside, listeners)
            if watch is not None:
                root.start_soon(follow_host, watch, serving, guests)
            exit_status = await guests.serve()
            root.cancel_scope.cancel()
        return exit_status


def end_signals() -> list[signal.Signals]:
    """Those of `END_SIGNALS` that mean us: nohup(1) has its programs ignore SIGHUP."""
    return [number for number in END_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


async def heed_signals(
    signals: AsyncIterator[int], guests: Machines | NamespaceGuest, everything: trio.CancelScope
) -> None:
    """The orderly end; but a command that we run has them first, and its end is ours."""
    async for number in signals:
        if isinstance(guests, NamespaceGuest) and guests.runs_command:
            guests.pass_on(signal.Signals(number))
        else:
            log.info("ended by %s", signal.Signals(number).name)
            everything.cancel()


async def follow_host(watch: HostWatch, serving: Serving, guests: Machines | NamespaceGuest) -> None:
    """The host's network changes: forwarded ports are bound in a family that is new, and the guest is told."""

    def on_change(network: GuestNetwork) -> None:
        serving.listeners.add_families(_families(network))
        guests.add_families(_families(network))
        serving.current.change(network)

    await follow(watch, serving.config.wishes, serving.config.network, on_change, serving.listeners.follow_interfaces)


def _families(network: GuestNetwork) -> list[int]:
    """The address families that the guest has: ports are not forwarded in another."""
    families = ((network.ipv4, socket.AF_INET), (network.ipv6, socket.AF_INET6))
    return [family for part, family in families if part is not None]


def raise_descriptor_limit() -> None:
    """The soft limit of open files up to the hard one: every flow holds a descriptor."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
