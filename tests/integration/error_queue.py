"""What a kernel tells its sockets about ICMP errors: the error queue of ip(7), IP_RECVERR, and ipv6(7)."""

from __future__ import annotations

import errno
import select
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

# From linux/in.h and linux/in6.h; Python's socket module does not have them in every version.
IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_MTU = 10, 11, 12, 14
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR = 23, 24, 25
PMTUDISC_DO = 2
"""Never fragment, nor let anybody: for both families."""

_EXTENDED_ERROR = struct.Struct("=I4BII")
_OFFENDER = {socket.AF_INET: struct.Struct("=H2x4s"), socket.AF_INET6: struct.Struct("=H6x16s")}
_CONTROL_BYTES = 512


class Origin(IntEnum):
    """SO_EE_ORIGIN_*: who says so."""

    LOCAL = 1
    ICMP = 2
    ICMP6 = 3


@dataclass(frozen=True)
class Reported:
    """One entry: the errno and its origin, type, code and data (the MTU), who sent it, and what it quotes."""

    error: int
    origin: Origin
    type: int
    code: int
    info: int
    offender: str
    destination: tuple[str, int]
    payload: bytes

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, self.error)
        return f"{name} ({self.origin.name} {self.type}/{self.code}, {self.info}) from {self.offender}"


def demand(endpoint: socket.socket) -> None:
    """All errors are to be reported, not only those that icmp(7) calls fatal."""
    if endpoint.family is socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        endpoint.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def demand_path_mtu(endpoint: socket.socket) -> None:
    """No fragments: what is too big for the path is an error."""
    if endpoint.family is socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    else:
        endpoint.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)


def path_mtu_bytes(endpoint: socket.socket) -> int:
    """What the kernel knows about the way to the peer of a connect()ed socket."""
    if endpoint.family is socket.AF_INET6:
        return endpoint.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
    return endpoint.getsockopt(socket.IPPROTO_IP, IP_MTU)


def has_report(endpoint: socket.socket, timeout_s: float) -> bool:
    """Whether there is an entry in the queue, within that time."""
    poll = select.poll()
    poll.register(endpoint, 0)  # POLLERR is reported in any case
    return bool(poll.poll(timeout_s * 1000))


def next_report(endpoint: socket.socket, timeout_s: float) -> Reported:
    """The next entry of the queue; AssertionError if there is none in time."""
    if not has_report(endpoint, timeout_s):
        raise AssertionError(f"no error was reported in {timeout_s} s")
    payload, control, _, (address, port, *_) = endpoint.recvmsg(65536, _CONTROL_BYTES, socket.MSG_ERRQUEUE)
    ((_, _, data),) = [item for item in control if item[1] in (IP_RECVERR, IPV6_RECVERR)]
    error, origin, kind, code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
    offender = _offender(data[_EXTENDED_ERROR.size :])
    destination = (address.partition("%")[0], port)
    return Reported(error, Origin(origin), kind, code, info, offender, destination, payload)


def pending_error(endpoint: socket.socket, timeout_s: float) -> int:
    """The errno of the next receive call, which must fail within that time; as SO_ERROR, it is told once."""
    endpoint.settimeout(timeout_s)
    try:
        data = endpoint.recv(65536)
    except TimeoutError:
        raise AssertionError(f"no error after {timeout_s} s") from None
    except OSError as error:
        return error.errno or 0
    raise AssertionError(f"received {data!r}")


def _offender(address: bytes) -> str:
    (family,) = struct.unpack_from("=H", address)
    if family not in _OFFENDER:
        return ""  # AF_UNSPEC: nobody but this machine
    _, packed = _OFFENDER[socket.AddressFamily(family)].unpack_from(address)
    return socket.inet_ntop(family, packed)
