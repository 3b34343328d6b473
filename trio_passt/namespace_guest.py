"""A network namespace as the guest, from the daemon's point of view: its tap, its command, its end.

Theory of operation
-------------------
The guest session is the same as a virtual machine's; the link is a tap.  There is one session, which begins when the
command may start, and ends when the namespace does: with its command, with the process whose it is, or with its file.
A command's exit status is ours, and so signals are the command's, as long as it runs.

When the command has ended, nothing else runs in there any more, but what it sent may still be on its way: sockets that
have no process any more.  They get a moment to be done (`LINGER_S`).

A tap that is deleted from inside ends the session, too.  A command goes on without network then.
"""

import errno
import logging
import os
import signal
from collections.abc import Collection
from contextlib import suppress

import trio

from trio_passt.config import Protocol
from trio_passt.dispatch import Dispatcher
from trio_passt.errors import StartupError
from trio_passt.flow.session import Session
from trio_passt.guests import Beside, Serving, serve_guest
from trio_passt.host import limits, sockets
from trio_passt.host.listening import CLOSING, FIN_WAIT_1, LAST_ACK, Listing
from trio_passt.link.tap import TapLink
from trio_passt.local.ports import LocalPorts
from trio_passt.namespace.opened import OpenedNamespace

log = logging.getLogger("trio_passt")

LINGER_S = 2.0
"""How long what a command sent in its last moment may take to get out.  A kernel would take minutes for a peer that
does not answer, but somebody waits for us to end."""

LEAST_FOR_SESSION = 16
"""Descriptors: those of the session itself, and some for connections."""

LOOK_AGAIN_S = 0.01
"""How often it is looked whether it has."""

ENDED = frozenset({FIN_WAIT_1, LAST_ACK, CLOSING})
"""States of TCP sockets whose program has ended them, and whose peer has not acknowledged that yet."""


class NamespaceGuest:
    """The one guest of a daemon that was started for a namespace."""

    def __init__(self, namespace: OpenedNamespace, serving: Serving, families: Collection[int]) -> None:
        self._namespace = namespace
        self._serving = serving
        self._link = TapLink(namespace.tap_fd)
        try:
            self._local = LocalPorts(serving.config, namespace.side, serving.listeners, families)
        except BaseException:
            self._link.close()
            raise

    path = None
    """Nobody comes in by a socket."""

    @property
    def runs_command(self) -> bool:
        """Whether there is a command, to which signals go."""
        return self._namespace.runs_command

    async def open(self) -> None:
        """Have the ports open that are wanted from the beginning.

        Raises StartupError where that leaves nothing for a session, which a command would go on without.
        """
        await self._local.open()
        if limits.open_descriptors() + LEAST_FOR_SESSION > sockets.descriptor_limit():
            raise StartupError(f"too few descriptors are left for the guest: {limits.describe(errno.EMFILE)}")

    def add_families(self, families: Collection[int]) -> None:
        """The guest's network has changed, and it has these now."""
        self._local.to_host.add_families(families)

    def close(self) -> None:
        """Close what was opened here."""
        self._local.close()
        self._link.close()

    async def serve(self) -> int:
        """Start the command, if there is one; returns its exit status, or 0, when the namespace has gone."""
        status = 0
        async with trio.open_nursery() as nursery:

            async def end_with_namespace() -> None:
                nonlocal status
                ended = await self._namespace.wait_end()
                log.info("the namespace's end: %s", ended.reason)
                status = ended.status or 0
                if ended.status is not None:
                    with trio.move_on_after(LINGER_S):
                        await self._sent()
                nursery.cancel_scope.cancel()

            self._namespace.start_command()
            nursery.start_soon(end_with_namespace)
            await serve_guest(self._link, self._serving, self._begin_session)
            if not self._namespace.runs_command:
                nursery.cancel_scope.cancel()
        return status

    def _begin_session(self, session: Session, dispatcher: Dispatcher, nursery: trio.Nursery) -> Beside:
        session.guest.learn_mac(self._namespace.mac)
        local = self._local
        receiver = local.serve(session, nursery, dispatcher.tcp.limit, dispatcher.udp.most, dispatcher)
        flows = (("local TCP", local.connections), ("local UDP", local.datagrams))
        return Beside(receiver, flows, lambda: local.to_host.bound)

    async def _sent(self) -> None:
        """Wait until the namespace's sockets have sent what they had when their programs ended, and we have, too."""
        listing = Listing(self._namespace.side)
        try:
            while await listing.read(Protocol.TCP, ENDED) or self._local.is_sending():  # noqa: ASYNC110 - no event tells
                await trio.sleep(LOOK_AGAIN_S)
        except OSError as error:
            log.debug("can't find out what the namespace has still to send: %s", error)
        finally:
            listing.close()

    def pass_on(self, number: signal.Signals) -> None:
        """A signal to the command, which decides what it means, and whose end is ours.

        What was typed at the terminal it has had already, as all in the foreground had.
        """
        if number in (signal.SIGINT, signal.SIGQUIT) and _is_in_foreground():
            return
        log.debug("%s is passed on to the command", number.name)
        self._namespace.signal(number)


def _is_in_foreground() -> bool:
    """Whether this process and the command have the terminal's foreground (credentials(7))."""
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
