"""Which ports are forwarded because something listens on the other side (`-t auto` and its like): pure.

To the guest: what its namespace's programs listen at, at any address or at one that the guest is reached at, is open at
all of the host's addresses.  What they listen at on loopback only stays theirs, unless the operator wants the host's
loopback to lead there; then it is open at the host's loopback only.

To the host: what the host's programs listen at, at any address or at loopback, is open at the namespace's loopback.
What they listen at on another address only, the guest reaches by that one.

DHCP is between the guest and us, and its ports have to be free for the programs of either side.
"""

from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address

from attrs import evolve

from trio_passt.config import Binding, IPAddress, PortForward, Protocol
from trio_passt.host.endpoint import LOOPBACK
from trio_passt.host.listening import LOOPBACK_INTERFACE, BoundSocket

DHCP_PORTS = frozenset({67, 68, 546, 547})
"""Of UDP: RFC 2131, RFC 8415 section 7.2."""

_ANY = {4: bytes(4), 16: bytes(16)}


def to_guest(
    candidates: Iterable[PortForward],
    inside: Iterable[BoundSocket],
    own_addresses: Collection[bytes],
    *,
    to_loopback: bool,
) -> set[PortForward]:
    """The forwards that what listens `inside` asks for, each of one address of the host.

    `own_addresses` are the guest's, packed.  `to_loopback`: what comes from the host's loopback goes to the guest's.
    """
    found: set[PortForward] = set()
    by_port = _by_port(inside)
    for forward, sock in _matches(candidates, by_port):
        for size in _families(sock):
            if sock.is_loopback:
                if to_loopback:
                    address = LOOPBACK[size] if sock.is_wildcard else sock.address
                    found |= _at(forward, size, address, only=address)
            elif sock.is_wildcard or sock.address in own_addresses:
                found |= _at(forward, size, _ANY[size])
    return found


def to_host(candidates: Iterable[PortForward], outside: Iterable[BoundSocket]) -> set[PortForward]:
    """The forwards that what listens `outside` asks for, each of one address of the namespace."""
    found: set[PortForward] = set()
    by_port = _by_port(outside)
    for forward, sock in _matches(candidates, by_port):
        if sock.interface not in (0, LOOPBACK_INTERFACE):
            continue
        for size in _families(sock):
            if sock.is_wildcard:
                found |= _at(forward, size, LOOPBACK[size])
            elif sock.is_loopback:
                found |= _at(forward, size, sock.address, only=sock.address)
    return found


def without_reserved(wanted: set[PortForward], named: Collection[PortForward]) -> set[PortForward]:
    """Those whose port is not the target of a forward of the other direction that was asked for by name.

    A server is expected there, and would not get the port.
    """
    return {
        forward
        for forward in wanted
        if not any(other.protocol is forward.protocol and forward.first in other.targets for other in named)
    }


def is_taken(forward: PortForward, there: Iterable[BoundSocket]) -> bool:
    """Whether one of the sockets at the place of a forward with an address is known to be in its way."""
    assert forward.address is not None
    own = forward.address.packed
    return any(
        sock.protocol is forward.protocol
        and sock.port in forward.ports
        and any(
            len(own) == size and (sock.is_wildcard or not any(own) or sock.address == own) for size in _families(sock)
        )
        for sock in there
    )


def settled(
    sockets: Iterable[BoundSocket], ephemeral: range, seen_before: Collection[int]
) -> tuple[list[BoundSocket], set[int]]:
    """Those that are there to stay, and the inodes to know the next time.

    A client of UDP's has a port of the kernel's choice for a moment, and looks like a server meanwhile: sockets of such
    ports are looked at twice.
    """
    stay, seen = [], set()
    for sock in sockets:
        if sock.protocol is Protocol.UDP and sock.port in ephemeral:
            seen.add(sock.inode)
            if sock.inode not in seen_before:
                continue
        stay.append(sock)
    return stay, seen


def _by_port(sockets: Iterable[BoundSocket]) -> dict[tuple[Protocol, int], list[BoundSocket]]:
    found: dict[tuple[Protocol, int], list[BoundSocket]] = {}
    for sock in sockets:
        if sock.protocol is not Protocol.UDP or sock.port not in DHCP_PORTS:
            found.setdefault((sock.protocol, sock.port), []).append(sock)
    return found


def _matches(
    candidates: Iterable[PortForward], by_port: dict[tuple[Protocol, int], list[BoundSocket]]
) -> Iterator[tuple[PortForward, BoundSocket]]:
    """Each socket with the forward of one port that leads to it."""
    for candidate in candidates:
        targets = candidate.targets
        for (protocol, port), sockets in by_port.items():
            if protocol is candidate.protocol and port in targets:
                own = port - candidate.target + candidate.first
                forward = evolve(candidate, first=own, last=own, target=port, binding=Binding.REQUIRED)
                for sock in sockets:
                    yield forward, sock


def _families(sock: BoundSocket) -> tuple[int, ...]:
    """By the bytes of an address."""
    return (4, 16) if sock.is_dual else (len(sock.address),)


def _at(forward: PortForward, size: int, address: bytes, *, only: bytes | None = None) -> set[PortForward]:
    """It at this address, or at the one that the operator names, if that is of this family, and leads to `only`."""
    wished: IPAddress | None = forward.address
    if wished is None:
        return {evolve(forward, address=ip_address(address))}
    if len(wished.packed) != size or (only is not None and wished.packed != only):
        return set()
    return {forward}
