"""Who holds a port that we can't have: the process that has a socket there, as far as we may see it.

proc(5): `/proc/net/tcp`, `tcp6`, `udp` and `udp6` list this network namespace's sockets, each with its local address,
its user and its inode; `/proc/PID/fd` has a link `socket:[INODE]` for each that a process has open.  Only the
descriptors of one's own processes may be read, unless one is root; of others the user is known.  A TCP socket that is
bound and does not listen is in no list.

It is help for a message: nothing here fails, and it takes no longer than it is given.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from attrs import frozen

from trio_passt.config import IPAddress, Protocol

WITHIN_S = 2.0
"""How long it may take altogether: a desktop's processes are looked at within some 20 ms, 10,000 sockets in 0.2 s."""

_PROC = Path("/proc")
_READ_BYTES = 1 << 20
_LISTENING = b"0A"
_UNUSED_INODE = b"0"


class BoundPort(NamedTuple):
    """A port of one address of the host, which may be the unspecified one."""

    protocol: Protocol
    address: IPAddress
    port: int


@frozen
class Holder:
    """A process with its name, or just a user whose process it is."""

    uid: int
    pid: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid is not None else f"a process of user {self.uid}"


class _Socket(NamedTuple):
    address: IPAddress
    uid: int
    inode: bytes
    is_listening: bool


def find_holders(
    ports: Collection[BoundPort], *, within_s: float = WITHIN_S, proc: Path = _PROC
) -> dict[BoundPort, Holder]:
    """Those that could be found, for ports that are in use."""
    if not ports:
        return {}
    deadline = time.monotonic() + within_s
    found: dict[BoundPort, _Socket] = {}
    for protocol in {port.protocol for port in ports}:
        sockets = _sockets(protocol, {port.port for port in ports if port.protocol is protocol}, proc, deadline)
        for port in ports:
            if port.protocol is protocol and (sock := _in_the_way(port, sockets.get(port.port, ()))) is not None:
                found[port] = sock
    processes = _processes({sock.inode for sock in found.values()}, proc, deadline)
    return {port: Holder(sock.uid, *processes.get(sock.inode, (None, ""))) for port, sock in found.items()}


def held_from_here(inodes: Collection[int], *, within_s: float = WITHIN_S, proc: Path = _PROC) -> set[int]:
    """Those sockets that a process has that is in this network namespace, wherever they are."""
    deadline = time.monotonic() + within_s
    links = {f"socket:[{inode}]": str(inode).encode() for inode in inodes}
    found: set[int] = set()
    with suppress(OSError):
        here = os.readlink(proc / "self/ns/net")
        for process in os.listdir(proc) if links else ():
            if not process.isdecimal():
                continue
            with suppress(OSError):  # gone meanwhile, or another user's
                if os.readlink(f"{proc}/{process}/ns/net") == here:
                    found.update(map(int, _inodes(f"{proc}/{process}/fd", links, deadline)))
            if time.monotonic() > deadline:
                break
    return found


def _in_the_way(port: BoundPort, sockets: Collection[_Socket]) -> _Socket | None:
    """The one that keeps us from binding it; a listener, if there is one."""
    able = [sock for sock in sockets if _covers(sock.address, port.address)]
    return next((sock for sock in able if sock.is_listening), able[0] if able else None)


def _covers(one: IPAddress, other: IPAddress) -> bool:
    """Whether they share an address; an IPv6 socket may be IPv4's, too."""
    if isinstance(one, IPv6Address) and isinstance(other, IPv4Address):
        mapped = one.ipv4_mapped
        return one.is_unspecified or (mapped is not None and _covers(mapped, other))
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def _sockets(protocol: Protocol, ports: set[int], proc: Path, deadline: float) -> dict[int, list[_Socket]]:
    """Sockets that have one of these ports, IPv4's first."""
    found: dict[int, list[_Socket]] = {}
    wanted = {b"%04X" % port for port in ports}
    for name in (protocol.value, f"{protocol.value}6"):
        for line in _lines(proc / "net" / name, deadline):
            fields = line.split(None, 10)
            if len(fields) < 10 or fields[1][-4:] not in wanted or fields[9] == _UNUSED_INODE:
                continue
            with suppress(ValueError):
                sock = _Socket(proc_address(fields[1][:-5]), int(fields[7]), fields[9], fields[3] == _LISTENING)
                found.setdefault(int(fields[1][-4:], 16), []).append(sock)
    return found


def _lines(path: Path, deadline: float) -> Iterator[bytes]:
    """The lines of a file of /proc/net, for as long as there is time."""
    rest = b""
    with suppress(OSError), path.open("rb", buffering=0) as file:
        while time.monotonic() < deadline and (part := file.read(_READ_BYTES)):
            *lines, rest = (rest + part).split(b"\n")
            yield from lines


@lru_cache(maxsize=64)
def proc_address(text: bytes) -> IPAddress:
    """As the kernel prints it: words of 32 bits, each in the machine's byte order.  Raises ValueError."""
    data = bytes.fromhex(text.decode("ascii"))
    if sys.byteorder == "little":
        data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return ip_address(data)


def _processes(inodes: set[bytes], proc: Path, deadline: float) -> dict[bytes, tuple[int, str]]:
    """For each inode, a process that has it open: its ID and its name."""
    links = {f"socket:[{inode.decode('ascii', 'replace')}]": inode for inode in inodes}
    found: dict[bytes, tuple[int, str]] = {}
    with suppress(OSError):
        for process in os.listdir(proc) if links else ():
            if not process.isdecimal():
                continue
            with suppress(OSError):  # gone meanwhile, or another user's
                inodes_there = list(_inodes(f"{proc}/{process}/fd", links, deadline))
                if inodes_there:
                    here = (int(process), _name(proc / process))
                    found = dict.fromkeys(inodes_there, here) | found
            if len(found) == len(links) or time.monotonic() > deadline:
                break
    return found


def _inodes(directory: str, links: dict[str, bytes], deadline: float) -> Iterator[bytes]:
    for number, descriptor in enumerate(os.listdir(directory)):
        if number % 1024 == 1023 and time.monotonic() > deadline:
            return
        with suppress(OSError):
            inode = links.get(os.readlink(f"{directory}/{descriptor}"))
            if inode is not None:
                yield inode


def _name(process: Path) -> str:
    """The process chose it: what can't be printed is left out."""
    with suppress(OSError):
        name = (process / "comm").read_text(errors="replace").removesuffix("\n")
        return "".join(letter if letter.isprintable() else "?" for letter in name)
    return "?"
