"""Which forwarded ports are bound when, and what becomes of those that can't be.

Theory of operation.  Ports that must be bound come first: all of them are tried, and if any is refused the daemon does
not start, and says every one.  Then those that are wanted: what is refused is a line in the log.  At last the spare
ones, lowest numbers first, each port with all its sockets (TCP and UDP, IPv4 and IPv6) before the next one: so what is
there is whole, wherever a limit ends it.  What others have is left to them.

Every connection of the guest's takes a descriptor, too.  So none but the ports that must be bound get the last quarter
of the process's descriptors, 16384 at most; and where a limit of the whole host is met, as much is given back.

A forward may be added later, and taken away again (`add`, `remove`): that concerns its own ports only.

A family may come later, when the host gets it.  Then its ports are bound in the same way, but refusals don't end a
daemon that runs, and the spare ones are many: they are bound little by little, by a task, between other work.  Whatever
was refused by name is tried again whenever the guest's network has changed, and what is bound to an interface is bound
anew when that was made anew.
"""

import errno
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter

import trio

from trio_passt.config import Binding, PortForward
from trio_passt.errors import StartupError
from trio_passt.host import limits, port_ranges, sockets
from trio_passt.host.endpoint import interface_index
from trio_passt.host.holder import BoundPort, Holder, find_holders
from trio_passt.host.opener import MISSING_FAMILY, OF_THE_PLACE, Opener, by_port
from trio_passt.host.port_ranges import runs
from trio_passt.host.refusals import Holders, Refusals
from trio_passt.host.spare_ports import OpenPorts, SparePorts

log = logging.getLogger("trio_passt.ports")

FIND_HOLDERS_WITHIN_S = 0.1
"""While guests are served; at start it may take longer."""

PORTS_PER_TURN = 8
"""Of those that are bound little by little: less than a millisecond."""


class Binder:
    """All forwards; `ports` is where their sockets go."""

    def __init__(
        self,
        ports: OpenPorts,
        forwards: Collection[PortForward],
        families: Collection[int],
        *,
        freebind: bool,
        on_loopback: bool = False,
        is_here: bool = True,
    ) -> None:
        """`is_here`: those who have other sockets at that side can be found by this process's /proc."""
        self._ports = ports
        self._families = set(families)
        # loopback may not be up yet in a namespace
        self._make_openers = partial(Opener.all_of, freebind=freebind or on_loopback, on_loopback=on_loopback)
        self._find_holders = find_holders if is_here else _find_nobody
        self._openers = {forward: self._make_openers(forward) for forward in forwards}
        self._refused: dict[Opener, list[int]] = {}
        """Of those that are forwarded by name."""
        self._hopeless: dict[Opener, int] = {}
        """Openers none of whose ports can be had at the moment, with the error's number."""
        self._interfaces = {forward.interface: 0 for forward in forwards if forward.interface is not None}
        """Their numbers: a socket is bound to the number, which is another when the interface is made anew."""
        self._later: list[Opener] = []
        self._has_later = trio.Event()
        self._left = 0
        """Descriptors that may be taken for ports that need not be bound."""

    def bind(self) -> None:
        """At start.  Raises StartupError, or a group of them, which name all that must be bound and can't be."""
        self._interfaces = {name: interface_index(name) for name in self._interfaces}
        limit = sockets.descriptor_limit()
        self._left = limit - limits.share_for_flows(limit) - limits.open_descriptors()
        for forward in self._openers:
            self._check_family(forward)
        required = self._bind_named(Binding.REQUIRED)
        if required:
            raise _startup_error(required.lines(self._find_holders(required.in_use())))
        wanted = self._bind_named(Binding.WANTED)
        spare = SparePorts(
            [opener for opener in self._all(Binding.SPARE) if opener.family in self._families], self._ports
        )
        for _ in self._bind_spare(spare):
            pass
        holders = self._find_holders(wanted.in_use() | spare.refusals.in_use())
        _warn(wanted, holders)
        if spare.openers and not spare.opened:
            raise _startup_error(spare.why_none(holders))
        spare.report(holders)

    @property
    def forwards(self) -> Collection[PortForward]:
        """All of them, in the order in which they came."""
        return self._openers.keys()

    def _check_family(self, forward: PortForward) -> None:
        if not self._of_families(forward):
            ports = port_ranges.text(forward.ports)
            version = 6 if forward.address and forward.address.version == 6 else 4
            text = f"can't forward {forward.protocol.name} port {ports} of {forward.address}"
            raise StartupError(f"{text}: IPv{version} is off, by an option or because this host has no network for it")

    def add(self, forward: PortForward, *, within_s: float) -> None:
        """One more, which is not a spare one, bound as at start.  Raises StartupError, and nothing is bound then.

        Whoever has its ports is looked for, for the message, `within_s`.
        """
        assert forward.binding is not Binding.SPARE
        if forward in self._openers:
            ports = f"{forward.protocol.name} port {port_ranges.text(forward.ports)}"
            raise StartupError(f"can't forward {ports}: it is forwarded already")
        self._openers[forward] = self._make_openers(forward)
        try:
            self._check_family(forward)
            if forward.interface is not None:
                self._interfaces.setdefault(forward.interface, interface_index(forward.interface))
            refused = Refusals()
            self._bind_one(forward, refused)
            if refused and forward.binding is Binding.REQUIRED:
                raise StartupError("; ".join(refused.lines(self._find_holders(refused.in_use(), within_s=within_s))))
            _warn(refused, self._find_holders(refused.in_use(), within_s=within_s))
        except BaseException:
            self.remove(forward)
            raise

    def remove(self, forward: PortForward) -> bool:
        """Close its ports; false if there is no such forward."""
        openers = self._openers.pop(forward, None)
        if openers is None:
            return False
        assert forward.binding is not Binding.SPARE
        for opener in openers:
            self._refused.pop(opener, None)
            self._hopeless.pop(opener, None)
        before = self._ports.descriptors
        self._ports.close_all_of(openers[0].forward)
        self._left += before - self._ports.descriptors
        name = forward.interface
        if name is not None and not any(other.interface == name for other in self._openers):
            del self._interfaces[name]
        return True

    def add_families(self, families: Collection[int]) -> None:
        """The guest's network has changed, and it has these now; what is refused in a new one is said in the log."""
        self._hopeless.clear()
        new = set(families) - self._families
        self._families |= new
        again, self._refused = self._refused, {}
        refused = Refusals()
        for opener in [*self._all(Binding.REQUIRED), *self._all(Binding.WANTED)]:
            if opener.family in new:
                self._open_all(opener, opener.forward.ports, refused)
            elif opener in again:
                _say_bound(opener, self._open_all(opener, again[opener], Refusals()))
        _warn(refused, self._find_holders(refused.in_use(), within_s=FIND_HOLDERS_WITHIN_S))
        self._later += [opener for opener in self._all(Binding.SPARE) if opener.family in new]
        if self._later:
            self._has_later.set()

    def follow_interfaces(self) -> bool:
        """Bind anew what is bound to an interface that has come again; whether there was one that is another now."""
        changed = {name for name, index in self._interfaces.items() if interface_index(name) != index}
        for name in sorted(changed):
            self._interfaces[name] = interface_index(name)
            if not self._interfaces[name]:
                log.warning("interface %s is gone: ports that are forwarded there are not open until it is back", name)
                continue
            log.info("interface %s is another now: ports that are forwarded there are opened anew", name)
            before = self._ports.descriptors
            self._ports.close_all_at(name)
            self._left += before - self._ports.descriptors
            self._bind_anew(name)
        return bool(changed)

    def _bind_anew(self, interface: str) -> None:
        refused = Refusals()
        for opener in self._of_interface(interface):
            self._hopeless.pop(opener, None)
            self._refused.pop(opener, None)
            if opener.forward.binding is Binding.SPARE:
                self._later.append(opener)
                self._has_later.set()
            else:
                self._open_all(opener, opener.forward.ports, refused)
        _warn(refused, self._find_holders(refused.in_use(), within_s=FIND_HOLDERS_WITHIN_S))

    def _of_interface(self, name: str) -> list[Opener]:
        """The openers of the guest's families whose forward has this interface."""
        return [
            opener for forward in self._openers if forward.interface == name for opener in self._of_families(forward)
        ]

    async def run(self) -> None:
        """Bind the spare ports of families that come later, until cancelled."""
        while True:
            await self._has_later.wait()
            self._has_later = trio.Event()
            openers, self._later = self._later, []
            spare = SparePorts(openers, self._ports)
            for count, _ in enumerate(self._bind_spare(spare)):
                if count % PORTS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            spare.report(self._find_holders(spare.refusals.in_use(), within_s=FIND_HOLDERS_WITHIN_S))

    def _all(self, binding: Binding) -> list[Opener]:
        return [opener for forward, of in self._openers.items() if forward.binding is binding for opener in of]

    def _of_families(self, forward: PortForward) -> list[Opener]:
        return [opener for opener in self._openers[forward] if opener.family in self._families]

    def _open(self, opener: Opener, port: int) -> None:
        if self._left <= 0 and opener.forward.binding is not Binding.REQUIRED:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        hopeless = self._hopeless.get(opener)
        if hopeless is not None:
            raise OSError(hopeless, os.strerror(hopeless))
        try:
            self._ports.open_port(opener, port)
        except OSError as error:
            number = error.errno or errno.ENODEV  # if_nametoindex says none
            if number in OF_THE_PLACE:
                self._hopeless[opener] = number
            raise
        self._left -= 1

    def _open_all(self, opener: Opener, ports: Iterable[int], refused: Refusals) -> list[int]:
        """Those that could be bound; the others are added to the refused ones."""
        opened = []
        for port in ports:
            try:
                self._open(opener, port)
            except OSError as error:
                refused.add(opener, port, error)
                self._refused.setdefault(opener, []).append(port)
            else:
                opened.append(port)
        return opened

    def _bind_named(self, binding: Binding) -> Refusals:
        """Bind what is forwarded by name.  One family is enough where the host lacks the other."""
        refused = Refusals()
        for forward in self._openers:
            if forward.binding is binding:
                self._bind_one(forward, refused)
        return refused

    def _bind_one(self, forward: PortForward, refused: Refusals) -> None:
        openers = self._of_families(forward)
        for port in forward.ports if openers else ():
            failures = self._open_one(openers, port)
            for opener, error in failures:
                self._refused.setdefault(opener, []).append(port)
                if error.errno not in MISSING_FAMILY or len(failures) == len(openers):
                    refused.add(opener, port, error)

    def _open_one(self, openers: Sequence[Opener], port: int) -> list[tuple[Opener, OSError]]:
        failures = []
        for opener in openers:
            try:
                self._open(opener, port)
            except OSError as error:
                failures.append((opener, error))
        return failures

    def _bind_spare(self, spare: SparePorts) -> Iterator[None]:
        """Port by port, until a limit is met."""
        for port, openers in by_port(spare.openers):
            if len(openers) > self._left:
                spare.stopped_by = errno.EMFILE
                return
            for _, group in groupby(openers, attrgetter("forward")):
                of_forward = list(group)
                failures = self._open_one(of_forward, port)
                spare.opened += len(of_forward) - len(failures)
                for opener, error in failures:
                    if error.errno in limits.LIMIT_ERRORS:
                        spare.stopped_by = error.errno
                        self._left += spare.give_back(port)
                        return
                    if error.errno not in MISSING_FAMILY or len(failures) == len(of_forward):
                        spare.refusals.add(opener, port, error)
            yield


def _find_nobody(_ports: Collection[BoundPort], *, within_s: float = 0.0) -> dict[BoundPort, Holder]:
    return {}


def _startup_error(lines: Sequence[str]) -> Exception:
    errors = [StartupError(line) for line in lines]
    return errors[0] if len(errors) == 1 else ExceptionGroup("ports can't be forwarded", errors)


def _warn(refusals: Refusals, holders: Holders) -> None:
    for line in refusals.lines(holders, ending=", going on without it"):
        log.warning("%s", line)


def _say_bound(opener: Opener, ports: Iterable[int]) -> None:
    for run in runs(ports):
        log.info("%s port %s of %s is forwarded now", opener.forward.protocol.name, port_ranges.text(run), opener.where)
