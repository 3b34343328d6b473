"""SIGUSR1: a table of flows and counters in the log.

Theory of operation
-------------------
Whoever asks gets the table, also with `--quiet`.  It may have a thousand lines, and traffic goes on meanwhile: so the
flows are asked a few at a time, and the lines written a few at a time, with pauses in which others have their turn,
also the log's reader, whose pipe does not hold a thousand lines.  However often it is asked for, there is one table at
a time, and a rest between two.  The newest flows of each protocol are shown; of the others, how many there are.

Nothing is counted for it: what is shown is what flows know anyway, or what the kernel does (`host.traffic`).
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Protocol as TypingProtocol

import trio
from attrs import frozen

from trio_passt.config import PortForward, Protocol
from trio_passt.dispatch import Dispatcher
from trio_passt.flow.key import FlowKey
from trio_passt.flow.session import WAITING_DATAGRAM_BYTES, Session
from trio_passt.flow.status import FlowStatus, Unit
from trio_passt.flow.table import FlowLimit
from trio_passt.host import port_ranges, sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.wire.ethernet import format_mac

log = logging.getLogger("trio_passt.status")
log.setLevel(logging.INFO)  # whatever the others' level is: somebody has asked

FLOWS_SHOWN = 500
"""Of each protocol."""

AT_ONCE = 10
"""So many flows, or lines, and then others have their turn.  A system's log holds ten messages that were not read yet
(net.unix.max_dgram_qlen)."""

PAUSE_S = 0.002
REST_S = 1.0

_RANGES_SHOWN = 12
_DIRECTORY = "/proc/self/fd"
_DESCRIPTORS_AT_ONCE = 500
_HEADINGS = ("PROTOCOL", "STATE", "GUEST", "", "REMOTE", "ON THE HOST", "IDLE", "FROM GUEST", "TO GUEST")
_NUMBERS_FROM = _HEADINGS.index("IDLE")
"""Those and the ones to their right are aligned at their right."""


class _Flow(TypingProtocol):
    def status(self) -> FlowStatus: ...


class Table(TypingProtocol):
    """Flows that can be asked."""

    def __len__(self) -> int: ...

    @property
    def limit(self) -> FlowLimit:
        """How many there may be; several tables may have one together."""

    def newest(self, most: int) -> Sequence[_Flow]:
        """Up to so many, the newest first."""


NamedFlows = tuple[str, Sequence[Table]]
"""The tables of one kind of flows."""


@frozen
class Flows:
    """The flows of one protocol, of which there are `count` now, and may be `most`; the newest are `shown`."""

    protocol: str
    count: int
    most: int
    shown: tuple[FlowStatus, ...] = ()


@frozen
class GuestStatus:
    """The guest that is connected, for `connected_s`.

    `flows_waiting` is how many wait until the link has room again, `waiting_bytes` what they keep of datagrams
    meanwhile.  `drops` are by reason, the most first.  A namespace also has `forwards_to_host`.
    """

    connected_s: float
    mac: bytes | None = None
    addresses: tuple[bytes, ...] = ()
    is_link_full: bool = False
    flows_waiting: int = 0
    waiting_bytes: int = 0
    drops: tuple[tuple[str, int], ...] = ()
    flows: tuple[Flows, ...] = ()
    forwards_to_host: tuple[PortForward, ...] | None = None


@frozen
class Status:
    """What the table is made of."""

    up_s: float
    descriptors: int | None
    descriptor_limit: int
    forwards: tuple[PortForward, ...] = ()
    guest: GuestStatus | None = None


@frozen
class Attached:
    """A guest that is connected since then, on Trio's clock; a namespace has flows past the tap, and forwards."""

    session: Session
    dispatcher: Dispatcher
    since: float
    flows: Sequence[NamedFlows] = ()
    forwards_to_host: Callable[[], Sequence[PortForward]] | None = None


async def answer(
    asked: AsyncIterator[int], attached: Callable[[], Attached | None], forwards: Callable[[], Sequence[PortForward]]
) -> None:
    """A table for each signal of `asked`, or for several that come while there is one already."""
    started_at = trio.current_time()
    async for _ in asked:
        try:
            guest = attached()
            status = Status(
                up_s=trio.current_time() - started_at,
                descriptors=await open_descriptors(),
                descriptor_limit=sockets.descriptor_limit(),
                forwards=tuple(forwards()),
                guest=await look_at(guest) if guest is not None else None,
            )
            await _write(table(status))
        except Exception:
            log.exception("internal error in the status; please report this")
        await trio.sleep(REST_S)


async def _write(lines: Sequence[str]) -> None:
    for start in range(0, len(lines), AT_ONCE):
        for line in lines[start : start + AT_ONCE]:
            log.info("%s", line)
        await trio.sleep(PAUSE_S)


# -- looking ----------------------------------------------------------------------------------------------------------


async def look_at(guest: Attached) -> GuestStatus:
    """How a guest's session stands, from now to a moment later."""
    session, dispatcher = guest.session, guest.dispatcher
    tables: list[NamedFlows] = [
        ("TCP", [dispatcher.tcp]),
        ("UDP", [dispatcher.udp]),
        ("echo", [dispatcher.echo]),
        *guest.flows,
    ]
    flows = [
        Flows(
            name,
            sum(map(len, of)),
            sum(limit.most for limit in {table.limit for table in of}),
            await _ask([flow for table in of for flow in table.newest(FLOWS_SHOWN // len(of))]),
        )
        for name, of in tables
    ]
    return GuestStatus(
        connected_s=trio.current_time() - guest.since,
        mac=session.guest.mac if session.guest.is_known else None,
        addresses=tuple(session.guest.addresses),
        is_link_full=session.link.is_full,
        flows_waiting=session.link.waiting,
        waiting_bytes=WAITING_DATAGRAM_BYTES - session.datagrams.left_bytes,
        drops=tuple(session.drops.most_common()),
        flows=tuple(flows),
        forwards_to_host=None if guest.forwards_to_host is None else tuple(guest.forwards_to_host()),
    )


async def _ask(flows: Sequence[_Flow]) -> tuple[FlowStatus, ...]:
    told = []
    for start in range(0, len(flows), AT_ONCE):
        told += [flow.status() for flow in flows[start : start + AT_ONCE]]
        await trio.sleep(PAUSE_S)
    return tuple(told)


async def open_descriptors() -> int | None:
    """How many this process has open; `None` if there is no /proc.

    The kernel knows (proc(5): the directory's size, since Linux 6.2); older ones have them counted.
    """
    try:
        count = os.stat(_DIRECTORY).st_size
        if not count:
            with os.scandir(_DIRECTORY) as entries:
                for _ in entries:
                    count += 1
                    if count % _DESCRIPTORS_AT_ONCE == 0:
                        await trio.sleep(PAUSE_S)
            count -= 1  # that of the directory itself
    except OSError:
        return None
    return count


# -- the table --------------------------------------------------------------------------------------------------------


def table(status: Status) -> list[str]:
    """The lines of the table, for people."""
    guest = status.guest
    connected = f"a guest is connected, for {_duration(guest.connected_s)}" if guest else "no guest is connected"
    lines = [
        f"status after {_duration(status.up_s)}: {connected}",
        f"descriptors: {status.descriptors or 'an unknown number'} of {status.descriptor_limit} are open",
    ]
    lines += [f"forwarded: {protocol.name} {_ports(status.forwards, protocol)}" for protocol in Protocol]
    return lines + _guest(guest) if guest else lines


def _guest(guest: GuestStatus) -> list[str]:
    names = ", ".join(str(ip_address(address)) for address in guest.addresses)
    link = "full" if guest.is_link_full else "has room"
    to_host = guest.forwards_to_host
    return [
        *(f"forwarded to the host: {kind.name} {_ports(to_host, kind)}" for kind in Protocol if to_host is not None),
        f"guest: {format_mac(guest.mac) if guest.mac else 'MAC address not known yet'}, {names or 'no address'}",
        f"link: {link}, {guest.flows_waiting} flows wait; {guest.waiting_bytes} bytes of datagrams wait",
        *(f"dropped: {count} ({reason})" for reason, count in guest.drops),
        "flows: " + ", ".join(f"{flows.count} {flows.protocol} (of {flows.most})" for flows in guest.flows),
        *_flows(guest.flows),
    ]


def _flows(tables: Iterable[Flows]) -> list[str]:
    """A line for each flow that is shown, in columns, and below each protocol's how many are not."""
    rows = [(flows, [_row(flows.protocol, flow) for flow in flows.shown]) for flows in tables]
    cells = [_HEADINGS, *(row for _, some in rows for row in some)]
    if len(cells) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    formats = [f">{width}" if at >= _NUMBERS_FROM else f"<{width}" for at, width in enumerate(widths)]
    line = "  ".join(f"{{:{one}}}" for one in formats).format
    lines = [line(*_HEADINGS)]
    for flows, some in rows:
        lines += [line(*row) for row in some]
        if flows.count > len(some):
            lines.append(f"... and {flows.count - len(some)} more of {flows.protocol}")
    return lines


def _row(protocol: str, flow: FlowStatus) -> tuple[str, ...]:
    key, on_host = flow.key, flow.on_host
    if protocol == "echo":
        guest, remote = f"{ip_address(key.guest)} id {key.guest_port}", str(ip_address(key.remote))
    else:
        guest, remote = str(Endpoint(key.guest, key.guest_port)), str(Endpoint(key.remote, key.remote_port))
    return (
        protocol,
        flow.state,
        guest,
        "->" if flow.is_opened_by_guest else "<-",
        remote,
        _elsewhere(key, on_host, protocol) if on_host is not None else "",
        "-" if flow.idle_s is None else _duration(flow.idle_s),
        _amount(flow.from_guest, flow.unit),
        _amount(flow.to_guest, flow.unit),
    )


def _elsewhere(key: FlowKey, on_host: Endpoint, protocol: str) -> str:
    """The other end as the host has it, if that is not as the guest sees it."""
    if (on_host.address, on_host.port) == (key.remote, key.remote_port):
        return ""
    return str(ip_address(on_host.address)) if protocol == "echo" else str(on_host)


def _amount(count: int | None, unit: Unit) -> str:
    if count is None:
        return "-"
    if unit is Unit.DATAGRAMS:
        return f"{count} datagrams" if count != 1 else "1 datagram"
    size, power = float(count), 0
    while size >= 1024 and power < 4:
        size, power = size / 1024, power + 1
    return f"{size:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if power else f"{count} B"


def _duration(seconds: float) -> str:
    """In the two largest units: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 0 min`, `4 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, part_size, name, part_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part_size} {part_name}"
    return f"{whole} s"


def _ports(forwards: Iterable[PortForward], protocol: Protocol) -> str:
    texts = [_forward(forward) for forward in forwards if forward.protocol is protocol]
    more = f" ... and {len(texts) - _RANGES_SHOWN} more" if len(texts) > _RANGES_SHOWN else ""
    return (", ".join(texts[:_RANGES_SHOWN]) or "none") + more


def _forward(forward: PortForward) -> str:
    """As it could be given with -t, but for the arrow."""
    where = (str(forward.address) if forward.address else "") + (f"%{forward.interface}" if forward.interface else "")
    ports = port_ranges.text(forward.ports)
    if forward.targets != forward.ports:
        ports += f" -> {port_ranges.text(forward.targets)}"
    return f"{where}/{ports}" if where else ports
