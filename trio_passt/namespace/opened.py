"""A network namespace, opened to be a guest: its tap, sockets of its own, its command, its end."""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack

from attrs import frozen

from trio_passt.config import Config, GuestNetwork, RunAs
from trio_passt.host.side import Side
from trio_passt.namespace.agent import Birth
from trio_passt.namespace.command import Command
from trio_passt.namespace.configurator import Configurator
from trio_passt.namespace.departure import Departure, departure
from trio_passt.namespace.enter import find
from trio_passt.namespace.inside import Inside

log = logging.getLogger("trio_passt.namespace")

DEFAULT_INTERFACE = "tap0"
"""The tap's name where the guest's network is not taken from an interface of the host's."""


@frozen
class Ended:
    """Why there is nothing to do any more: `reason` for the log; `status` is that of the command, if there was one."""

    reason: str
    status: int | None = None


class OpenedNamespace:
    """What is there between `open_namespace` and `close`.

    `tap_fd` is the tap's descriptor, with IFF_TAP, IFF_NO_PI and, where there is such a thing, IFF_VNET_HDR, and
    non-blocking; whoever uses it closes it.  `interface` is the tap's name, `mac` its MAC address.  `side` makes
    sockets of the namespace.  `runs_command`: the namespace is new, and ends with its command.
    """

    tap_fd: int
    interface: str
    mac: bytes
    side: Side
    runs_command: bool

    def __init__(self, interface: str, inside: Inside, command: Command | None, departs: Departure | None) -> None:
        """One of a command or a departure."""
        self.tap_fd = inside.tap_fd
        self.interface = interface
        self.mac = inside.mac
        self.side = inside
        self.runs_command = command is not None
        self._inside = inside
        self._command = command
        self._departure = departs

    def start_command(self) -> None:
        """Now that everything is ready: let the command run; without one nothing happens."""
        if self._command is not None:
            self._command.start()

    def signal(self, number: int) -> None:
        """Send a signal to the command; nothing happens if there is none (any more)."""
        if self._command is not None:
            self._command.signal(number)

    async def wait_end(self) -> Ended:
        """Returns when the command has ended, the process is gone, the file is gone; or never."""
        if self._command is not None:
            status = await self._command.wait()
            return Ended(f"the command has ended with status {status}", status)
        assert self._departure is not None
        return Ended(await self._departure.wait())

    def close(self) -> None:
        """Let go of everything, except the tap's descriptor; what a command left is killed."""
        if self._command is not None:
            self._command.close()
        if self._departure is not None:
            self._departure.close()
        self._inside.close()


def open_namespace(
    config: Config,
    *,
    umask: int | None = None,
    command_user: RunAs | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> OpenedNamespace:
    """Make or join the namespace that `config.namespace` says, with its tap; before Trio runs, since this forks.

    The command waits for `start_command`.  It has `umask` for new files, and runs as `command_user` if who calls is
    root and wants that, in the namespace as its root in any case.  When all processes have been forked, `meanwhile` is
    called, for they take a moment.  Raises `StartupError`.
    """
    wanted = config.namespace
    assert wanted is not None
    interface = wanted.interface or default_interface(config.network)
    with ExitStack() as failed, ExitStack() as begun:
        configurator = None
        if wanted.configures:
            configurator = Configurator(config)
            begun.callback(configurator.close)
        command = departs = None
        if wanted.is_new:
            command = Command(wanted, umask=umask, user=command_user)
            failed.callback(command.close)
            namespaces = command.namespaces
        else:
            departs = departure(wanted)  # before the process's files are opened: it is the one that had them
            failed.callback(departs.close)
            namespaces = find(wanted)
        begun.callback(namespaces.close)
        inside = Inside(Birth(namespaces, interface, wanted.mac, config.run_as))
        failed.callback(os.close, inside.tap_fd)
        failed.callback(inside.close)
        if configurator is not None:
            configurator.configure(namespaces, interface, inside.mac)
        if meanwhile is not None:
            meanwhile()
        if configurator is not None:
            configurator.finish()
        failed.pop_all()
    return OpenedNamespace(interface, inside, command, departs)


def default_interface(network: GuestNetwork) -> str:
    """The name of the host's interface that the guest has its network of."""
    for guest in (network.ipv4, network.ipv6):
        if guest is not None and guest.interface is not None:
            return guest.interface
    return DEFAULT_INTERFACE
