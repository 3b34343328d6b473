"""A host without a kernel: its ping sockets talk to the test, and fail as they are told."""

import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from harness.stage import V4, V6, Family

from trio_passt.host import sockets
from trio_passt.host.error_queue import IP_RECVERR, IPV6_RECVERR, ORIGIN_ICMP, ORIGIN_ICMPV6, ORIGIN_LOCAL
from trio_passt.host.outbound import Way
from trio_passt.icmp.flow import warn_no_permission

ELSEWHERE = {V4: "203.0.113.9", V6: "2001:db8:9::9"}
ROUTER = {V4: "203.0.113.1", V6: "2001:db8:9::1"}


class FakePing(socket.socket):
    """One end of a pair of datagram sockets that passes for a ping socket; errors may be put into its way."""

    fails_to_send: list[OSError]
    fails_to_receive: list[OSError]
    entries: list[tuple[bytes, list[tuple[int, int, bytes]], int, Any]]
    peer: Any

    def connect(self, address: Any) -> None:
        """There is nothing to connect to, but for the address that replies come from."""
        self.peer = address

    def send(self, data: Any, flags: int = 0) -> int:
        if self.fails_to_send:
            raise self.fails_to_send.pop()
        return super().send(data, flags)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        if self.fails_to_receive:
            raise self.fails_to_receive.pop()
        return self.recv(size, flags), self.peer

    def recvmsg(self, *_sizes: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """Of its error queue."""
        if not self.entries:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.entries.pop(0)


class FakeHost:
    """What the flow's ping socket talks to."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.ping = FakePing(fileno=near.detach())
        self.ping.fails_to_send, self.ping.fails_to_receive, self.ping.entries = [], [], []
        self.requests: list[tuple[int, int]] = []

    def open(self, address_bytes: int, identifier: int, _way: Way | None = None) -> socket.socket:
        self.requests.append((address_bytes, identifier))
        return self.ping

    def hears_of(
        self,
        family: Family,
        type_: int,
        code: int,
        quoted: bytes,
        *,
        number: int = errno.EHOSTUNREACH,
        info: int = 0,
        is_local: bool = False,
    ) -> None:
        """A router of the address `ROUTER`, or the kernel itself, has said so of a request that began like this."""
        router = ip_address(ROUTER[family]).packed
        if family is V4:
            option, origin = (socket.IPPROTO_IP, IP_RECVERR), ORIGIN_ICMP
            name = struct.pack("=HH4s8x", socket.AF_INET, 0, router)
        else:
            option, origin = (socket.IPPROTO_IPV6, IPV6_RECVERR), ORIGIN_ICMPV6
            name = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, router, 0)
        if is_local:
            origin = ORIGIN_LOCAL
        control = (*option, struct.pack("=IBBBxII", number, origin, type_, code, info, 0) + name)
        self.ping.entries.append((quoted, [control], 0, (ELSEWHERE[family], 0)))
        self.ping.fails_to_send.append(OSError(number, os.strerror(number)))

    def close(self) -> None:
        self.ping.close()
        self.far.close()


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def kernels_reply(family: Family, identifier: int, sequence: int, data: bytes = b"") -> bytes:
    """As a ping socket gives it; the checksum has been looked at already."""
    kind = 0 if family.version == 4 else 129
    return bytes((kind, 0, 0, 0)) + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + data


def kernels_request(family: Family, identifier: int, sequence: int, data: bytes = b"") -> bytes:
    """As a router quotes it."""
    kind = 8 if family.version == 4 else 128
    return bytes((kind, 0, 0xAB, 0xCD)) + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + data


def raiser(failure: OSError) -> Callable[..., socket.socket]:
    def fail(*_arguments: object) -> socket.socket:
        raise failure

    return fail


def no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "open_ping", raiser(PermissionError(errno.EACCES, "Permission denied")))
    warn_no_permission.cache_clear()
