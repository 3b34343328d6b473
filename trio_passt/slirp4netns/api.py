"""slirp4netns' API: ports that are forwarded while the daemon runs, one request and one reply a connection.

    {"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
                                             "guest_addr": "10.0.2.100", "guest_port": 80}}
    {"return": {"id": 1}}

Theory of operation
-------------------
slirp4netns(1), "API SOCKET", says what there is; replies are those of version 1.2.0, to the byte.  With one
exception: it answers `list_hostfwd` with {"entries": ...}, where its manual has {"return": {"entries": ...}}.  We say
both in one.

A request is answered as soon as it is whole, whether or not its sender shuts the connection down after it, as the
manual has it.  Whoever sends nothing, a little at a time, or too much costs a descriptor and 4 KiB for some seconds;
when there are too many, the one that has been there for longest has to go.

Forwarded ports lead to the guest, and a guest has one address here: any other `guest_addr` is refused.
"""

import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address
from typing import Any
from typing import Protocol as TypingProtocol

import trio

from trio_passt.cli.ports import Where
from trio_passt.config import PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host.port_ranges import ALL_PORTS
from trio_passt.host.seldom import SeldomLog

log = logging.getLogger("trio_passt.slirp4netns")

REQUEST_BYTES = 4096
"""A request has less."""

CLIENTS = 64
"""So many connections there are at once."""

CLIENT_S = 10.0
"""How long one may take, all in all."""

FIND_HOLDER_WITHIN_S = 0.1
"""Who else has a port is looked for in /proc; everybody's traffic waits meanwhile."""

RETRY_ACCEPT_S = 0.1
"""Out of descriptors or memory, until others may be free."""


class BadRequestError(Exception):
    """What is wrong with it."""


class Ports(TypingProtocol):
    """`host.listeners.PortListeners`, as far as it is needed here."""

    def add(self, forward: PortForward, *, holder_within_s: float) -> None:
        """Forward it.  StartupError, with one line, if it can't be bound."""

    def remove(self, forward: PortForward) -> bool:
        """Forward it no more."""


class HostForwards:
    """The ports that were asked for, each by its number; all lead to `guest`."""

    def __init__(self, ports: Ports, guest: IPv4Address) -> None:
        self._ports = ports
        self._guest = guest
        self._forwards: dict[int, PortForward] = {}
        self._last = 0
        self._functions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "add_hostfwd": self._add,
            "list_hostfwd": self._list,
            "remove_hostfwd": self._remove,
        }

    def reply(self, request: bytes) -> bytes:
        """What is to be said to a request, which is done then."""
        try:
            answer = self._answer(request)
        except BadRequestError as bad:
            answer = {"error": {"desc": f"bad request: {bad}"}}
        return json.dumps(answer, separators=(",", ":")).encode()

    def _answer(self, request: bytes) -> dict[str, Any]:
        if len(request) >= REQUEST_BYTES:
            raise BadRequestError("too large message")
        found = parse(request)
        if found is None:
            raise BadRequestError("cannot parse JSON")
        if not isinstance(found, dict):
            raise BadRequestError("json_object() failed")
        name, arguments = found.get("execute"), found.get("arguments")
        if not isinstance(name, str):
            raise BadRequestError("no execute found")
        if name not in self._functions:
            raise BadRequestError("unknown execute")
        return self._functions[name](arguments if isinstance(arguments, dict) else {})

    def _add(self, arguments: dict[str, Any]) -> dict[str, Any]:
        forward = self._forward(arguments)
        try:
            self._ports.add(forward, holder_within_s=FIND_HOLDER_WITHIN_S)
        except (StartupError, OSError) as error:
            raise BadRequestError(f"add_hostfwd: {error}") from error
        self._last += 1
        self._forwards[self._last] = forward
        log.info("%s is forwarded from now on (%d)", _told(forward), self._last)
        return {"return": {"id": self._last}}

    def _forward(self, arguments: dict[str, Any]) -> PortForward:
        """What is asked for; in the order in which slirp4netns looks at it."""

        def bad(key: str, reason: str = "") -> BadRequestError:
            return BadRequestError(f"add_hostfwd: bad arguments.{key}{reason}")

        try:
            protocol = Protocol(arguments.get("proto"))
        except ValueError:
            raise bad("proto") from None
        host, guest = _address(arguments.get("host_addr")), _address(arguments.get("guest_addr"))
        host_port, guest_port = _integer(arguments.get("host_port")), _integer(arguments.get("guest_port"))
        if host is None:
            raise bad("host_addr")
        if host_port not in ALL_PORTS:
            raise bad("host_port")
        if guest is None:
            raise bad("guest_addr")
        if not (guest == self._guest or guest.is_unspecified):
            raise bad("guest_addr", f": ports are forwarded to {self._guest} only")
        if guest_port not in ALL_PORTS:
            raise bad("guest_port")
        forward = PortForward(protocol, host_port, host_port, guest_port, host)
        for number, other in self._forwards.items():
            if (other.protocol, other.first) == (protocol, host_port) and _where(other).overlaps(_where(forward)):
                raise BadRequestError(
                    f"add_hostfwd: can't forward {_told(forward)}: it is forwarded already (id {number})"
                )
        return forward

    def _list(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        entries = [
            {
                "id": number,
                "proto": forward.protocol.value,
                "host_addr": str(forward.address),
                "host_port": forward.first,
                "guest_addr": str(self._guest),
                "guest_port": forward.target,
            }
            for number, forward in self._forwards.items()
        ]
        return {"entries": entries, "return": {"entries": entries}}

    def _remove(self, arguments: dict[str, Any]) -> dict[str, Any]:
        number = _integer(arguments.get("id"))
        if number not in self._forwards:
            raise BadRequestError("remove_hostfwd: bad arguments.id")
        forward = self._forwards.pop(number)
        self._ports.remove(forward)
        log.info("%s is not forwarded any more (%d)", _told(forward), number)
        return {"return": {}}


def parse(request: bytes) -> object | None:
    """The JSON value that a request begins with; `None` if there is none, or not yet all of it.

    What follows it does not matter; a zero ends it, as with slirp4netns.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_each_once)
    try:
        text = request.partition(b"\0")[0].decode().lstrip()
        value: object = decoder.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
    return value


async def serve(forwards: HostForwards, listening: socket.socket) -> None:
    """Answer whoever comes, until cancelled."""
    door = trio.socket.from_stdlib_socket(listening)
    present: dict[trio.CancelScope, None] = {}
    refused = SeldomLog()

    async def answer(client: trio.socket.SocketType, visit: trio.CancelScope) -> None:
        with client, visit:
            visit.deadline = trio.current_time() + CLIENT_S
            try:
                await _answer(client, forwards)
            except OSError as error:
                log.debug("a client of the API socket has gone: %s", error.strerror)
            except Exception:  # the daemon serves others, too
                log.exception("internal error at the API socket; please report this")
        present.pop(visit, None)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                client, _ = await door.accept()
            except OSError as error:
                refused.warn(log, "can't accept a client at the API socket: %s", error.strerror)
                await trio.sleep(RETRY_ACCEPT_S)
                continue
            if len(present) >= CLIENTS:
                oldest = next(iter(present))
                del present[oldest]
                oldest.cancel()
            visit = trio.CancelScope()
            present[visit] = None
            nursery.start_soon(answer, client, visit)


async def _answer(client: trio.socket.SocketType, forwards: HostForwards) -> None:
    request = b""
    while len(request) < REQUEST_BYTES:
        data = await client.recv(REQUEST_BYTES - len(request))
        request += data
        if not data or isinstance(parse(request), dict):
            break
    reply = memoryview(forwards.reply(request))
    while reply:
        reply = reply[await client.send(reply) :]
    client.shutdown(socket.SHUT_WR)
    while await client.recv(REQUEST_BYTES):  # or the reply would be lost with what was not read
        pass


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _address(value: object) -> IPv4Address | None:
    """Any of the host's, or the guest's own, if none is said; `None` for what is not one."""
    if not isinstance(value, str) or not value:
        return IPv4Address(0)
    with suppress(AddressValueError):
        return IPv4Address(value)
    return None


def _integer(value: object) -> int:
    """-1 for what is not one; JSON's numbers may have been made of floating-point ones."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _where(forward: PortForward) -> Where:
    return Where(forward.address, forward.interface)


def _told(forward: PortForward) -> str:
    return f"{forward.protocol.name} port {forward.first} of {forward.address}"
