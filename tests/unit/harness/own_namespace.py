"""A network namespace of a test's own, where ping sockets are allowed: the calling thread moves there and back."""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLONE_NEWNET = 0x40000000
WAIT_S = 30.0
PING_GROUP_RANGE = Path("/proc/sys/net/ipv4/ping_group_range")

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_namespace() -> Iterator[None]:
    """Sockets that are opened here are in a new namespace, with loopback up.  PermissionError without CAP_SYS_ADMIN."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            PING_GROUP_RANGE.write_text(f"{os.getegid()} {os.getegid()}")
            yield
        finally:
            _check(_libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def answer_for(subnet: str, *, source: str) -> None:
    """All addresses of `subnet` are the host's own, and are asked from the one `source` (with its prefix length)."""
    has_address(source)
    address = source.partition("/")[0]
    subprocess.run(["ip", "route", "add", "local", subnet, "dev", "lo", "src", address], check=True)


def has_address(address: str) -> None:
    """The host has it."""
    subprocess.run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])], check=True)
    if ":" in address:
        wait_until_it_works(address.partition("/")[0])


def wait_until_it_works(address: str, interface: str = "lo") -> None:
    """Without duplicate address detection, too, the kernel leaves the rest of a new IPv6 address to a work queue."""
    deadline = time.monotonic() + WAIT_S
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.01)
        sock.bind((address, 0, 0, socket.if_nametoindex(interface)))
        while time.monotonic() < deadline:
            with suppress(OSError):
                sock.sendto(b"?", sock.getsockname())
                sock.recv(1)
                return
    raise TimeoutError(f"{address} does not work")


def loopback_carries(mtu_bytes: int) -> None:
    """Packets of this size at most."""
    subprocess.run(["ip", "link", "set", "lo", "mtu", str(mtu_bytes)], check=True)


def has_no_way_to(kind: str, subnet: str) -> None:
    """A route that is there only to say why there is none: `unreachable`, or `prohibit`."""
    subprocess.run(["ip", "route", "add", kind, subnet, "table", "local"], check=True)


def has_a_way_again(kind: str, subnet: str) -> None:
    """Take back what `has_no_way_to` has done."""
    subprocess.run(["ip", "route", "delete", kind, subnet, "table", "local"], check=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
