"""Datagrams of host sockets in bulk: many with one system call, either way.

Theory of operation
-------------------
Reading.  Python reads one datagram a call.  The kernel can give up to `SLOTS` of them, each into a slot of one buffer,
with one `recvmmsg` (recvmmsg(2)); Python does not have it, but ctypes does.  NumPy makes its array of headers, once,
and reads the lengths out of it.  And where datagrams of one size came to the host together, the kernel may give them as
one (udp(7), UDP_GRO), with the size of each.  Either way the result is a list of trains (`wire.datagrams.Train`).

A question and its answer are one datagram, for which a plain `recv` is quicker.  So a socket is read in bulk only when
there is bulk: see `SocketReader`.

Writing.  Datagrams of one size, of which the last may be shorter, go out with one `sendmsg` (udp(7), UDP_SEGMENT): the
kernel takes them through its layers as one, and cuts them at the end, or even the network card does.  It refuses what
the path's MTU would have it fragment; then they are sent one by one.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trio_passt.host.endpoint import Endpoint
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.datagrams import Train

SLOTS = 64
"""Datagrams that one call reads."""

DATAGRAM_BYTES = 65536
SLOT_BYTES = DATAGRAM_BYTES + 24 * 64
"""Not a power of two, or the beginnings of all slots would share the same few lines of the processor's caches."""

RECEIVE_BUFFER_BYTES = 2048 * 1024
"""Of a socket with bulk: what comes while something else is done has to fit, each datagram with about 1 KB of the
kernel's own."""

BULK_IN_A_ROW = 4
"""So many datagrams without one the other way are bulk."""

SEGMENTS_MOST = 64
"""Of one `sendmsg` (UDP_MAX_SEGMENTS; newer kernels take 128)."""

TRAIN_BYTES_MOST = 65000
"""Of one `sendmsg`, less than what an IP packet carries."""

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h; not in Python 3.11's socket module
IP_PKTINFO = 8  # linux/in.h; not in Python 3.11's socket module

NO_SEGMENTATION = frozenset({errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
"""What `sendmsg` says of segments that are too large for the path, or of a kernel or device that can't."""

Ancillary = list[tuple[int, int, bytes]]

_PKTINFO4, _PKTINFO6 = struct.Struct("=i4s4s"), struct.Struct("=16si")

_NAME_BYTES, _CONTROL_BYTES = 28, 128
_MSGHDR = np.dtype(
    [
        ("name", np.uintp),
        ("name_bytes", np.uint32),
        ("iov", np.uintp),
        ("iov_count", np.uintp),
        ("control", np.uintp),
        ("control_bytes", np.uintp),
        ("flags", np.int32),
    ],
    align=True,
)
_MMSGHDR = np.dtype([("header", _MSGHDR), ("bytes", np.uint32)], align=True)
"""`struct mmsghdr` of recvmmsg(2), as glibc has it."""

_CMSG = struct.Struct("@Nii")
_INT = struct.Struct("=i")
_SEGMENT = struct.Struct("=H")

_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]


class Received(NamedTuple):
    """Datagrams that came one after the other from `peer` to the packed local address `local`."""

    peer: Endpoint
    local: bytes
    trains: list[Train]


class DatagramBuffer:
    """A buffer for `SLOTS` datagrams, and the calls that fill it: what it held before is gone then.

    Memory is taken only for as much of it as was ever filled.
    """

    def __init__(self) -> None:
        self._memory = np.empty(SLOTS * SLOT_BYTES, np.uint8)
        self.view = self._memory.data
        self._first = self.view[:DATAGRAM_BYTES]
        self._names = np.zeros((SLOTS, _NAME_BYTES), np.uint8)
        self._control = np.zeros((SLOTS, _CONTROL_BYTES), np.uint8)
        self._iov = np.zeros((SLOTS, 2), np.uintp)
        self._iov[:, 0] = _addresses(self._memory, SLOT_BYTES)
        self._iov[:, 1] = DATAGRAM_BYTES
        self._messages = np.zeros(SLOTS, _MMSGHDR)
        headers = self._messages["header"]
        headers["iov"] = _addresses(self._iov, self._iov.strides[0])
        headers["iov_count"] = 1
        headers["control"] = _addresses(self._control, _CONTROL_BYTES)
        headers["name"] = _addresses(self._names, _NAME_BYTES)
        self._name_bytes, self._control_bytes = headers["name_bytes"], headers["control_bytes"]
        self._lengths = self._messages["bytes"]
        self._address = self._messages.ctypes.data

    def read_one(self, sock: socket.socket) -> memoryview:
        """One datagram from a socket without UDP_GRO, a view.  Raises BlockingIOError, and OSError."""
        count = sock.recv_into(self._first)
        return self._first[:count]

    def read(self, sock: socket.socket, most: int) -> list[Train]:
        """Up to `most` datagrams (at most `SLOTS`), or as many of what UDP_GRO makes of them.  Raises as `read_one`."""
        count = self._receive(sock, most)
        gro = self._control_bytes[:count]
        segments = [0] * count
        if gro.any():
            segments = [_meaning(control)[1] if control else 0 for control in self._controls(count)]
        return _trains(self._lengths[:count].tolist(), segments, 0)

    def read_named(self, sock: socket.socket, most: int) -> list[Received]:
        """The same of a socket with IP_PKTINFO that is not connected: in order, those of one peer together."""
        count = self._receive(sock, most)
        lengths, controls = self._lengths[:count].tolist(), self._controls(count)
        names = [
            name[:size].tobytes()
            for name, size in zip(self._names[:count], self._name_bytes[:count].tolist(), strict=True)
        ]
        found: list[Received] = []
        begin = 0
        for end in range(1, count + 1):
            if end < count and names[end] == names[begin] and _is_to_the_same(controls[end], controls[begin]):
                continue
            local, _ = _meaning(controls[begin])
            if local is not None and (peer := _peer(names[begin])) is not None:
                segments = [_meaning(control)[1] for control in controls[begin:end]]
                found.append(Received(peer, local, _trains(lengths[begin:end], segments, begin)))
            begin = end
        return found

    def _receive(self, sock: socket.socket, most: int) -> int:
        self._name_bytes[:most] = _NAME_BYTES
        self._control_bytes[:most] = _CONTROL_BYTES
        count: int = _recvmmsg(sock.fileno(), self._address, most, socket.MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count

    def _controls(self, count: int) -> list[bytes]:
        sizes = self._control_bytes[:count].tolist()
        return [control[:size].tobytes() for control, size in zip(self._control[:count], sizes, strict=True)]


class SocketReader:
    """How one connected socket is to be read: datagram by datagram, or, once there is bulk, many at a time."""

    __slots__ = ("_in_a_row", "_is_bulk", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in_a_row = 0
        self._is_bulk = False

    def answered(self) -> None:
        """A datagram went the other way."""
        self._in_a_row = 0

    def expects_one(self) -> bool:
        """Whether `DatagramBuffer.read_one` is to be called now, or `read`."""
        if self._is_bulk:
            return False
        self._in_a_row += 1
        if self._in_a_row > BULK_IN_A_ROW:
            self._is_bulk = True
            expect_bulk(self._sock)
        return not self._is_bulk


def expect_bulk(sock: socket.socket) -> None:
    """There may be many datagrams: a larger receive buffer, as far as the kernel gives it (net.core.rmem_max).

    And the kernel may give several as one, if it can (udp(7), UDP_GRO); `DatagramBuffer.read_one` would not know.
    """
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES),
        (socket.IPPROTO_UDP, UDP_GRO, 1),
    ):
        with suppress(OSError):
            sock.setsockopt(level, option, value)


def train_stop(payloads: Sequence[Buffer], begin: int, largest: int) -> int:
    """The payloads from index `begin` to before the returned one can go out together, as segments of one `sendmsg`.

    Larger ones than `largest` can't.
    """
    size = total = len(payloads[begin])
    stop = begin + 1
    if not 0 < size <= largest:
        return stop
    end = min(len(payloads), begin + SEGMENTS_MOST)
    while stop < end:
        more = len(payloads[stop])
        total += more
        if not 0 < more <= size or total > TRAIN_BYTES_MOST:
            break
        stop += 1
        if more < size:
            break
    return stop


def segments(size: int) -> Ancillary:
    """What tells `sendmsg` to cut what it is given into datagrams of this size."""
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(size))]


def _addresses(array: npt.NDArray[Any], stride: int) -> npt.NDArray[np.uintp]:
    """Where each slot of an array begins in memory."""
    return np.arange(SLOTS, dtype=np.uintp) * np.uintp(stride) + np.uintp(array.ctypes.data)


def _trains(lengths: list[int], segments: list[int], first_slot: int) -> list[Train]:
    """Slots from `first_slot` on, of these lengths, each of them in segments of this size unless that is 0."""
    trains: list[Train] = []
    start, before, together = first_slot * SLOT_BYTES, -1, 0
    for slot, (length, segment) in enumerate(zip(lengths, segments, strict=True), first_slot):
        is_joined = 0 < segment < length
        if together and (is_joined or length != before):
            trains.append(Train(start, before, together, SLOT_BYTES))
            together = 0
        if is_joined:
            at, (whole, rest) = slot * SLOT_BYTES, divmod(length, segment)
            trains.append(Train(at, segment, whole, segment))
            if rest:
                trains.append(Train(at + whole * segment, rest))
            continue
        if not together:
            start, before = slot * SLOT_BYTES, length
        together += 1
    if together:
        trains.append(Train(start, before, together, SLOT_BYTES))
    return trains


def _is_to_the_same(one: bytes, other: bytes) -> bool:
    return one == other or _meaning(one)[0] == _meaning(other)[0]


@lru_cache(maxsize=1024)
def _meaning(control: bytes) -> tuple[bytes | None, int]:
    """The packed local address of a datagram (ip(7), ipv6(7): PKTINFO), and the size of its segments, or 0.

    The address is a good source for the reply.  Of a broadcast or a datagram to a group of IPv4 it is the interface's;
    for a group of IPv6 it is all zeros, for one that the kernel is to choose.
    """
    local, segment, at = None, 0, 0
    align = _CMSG.size - 8
    while at + _CMSG.size <= len(control):
        size = int.from_bytes(control[at : at + align], sys.byteorder)
        level, kind = struct.unpack_from("=ii", control, at + align)
        data = control[at + _CMSG.size : at + size]
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            local = data[4:8]
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            local = data[:16] if data[0] != 0xFF else bytes(16)
        elif (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
            (segment,) = _INT.unpack_from(data)
        at += max(size + align - 1 & -align, _CMSG.size)
    return local, segment


@lru_cache(maxsize=1024)
def _peer(name: bytes) -> Endpoint | None:
    """The endpoint in a `struct sockaddr_in` or `sockaddr_in6`."""
    family = int.from_bytes(name[:2], sys.byteorder)
    port = int.from_bytes(name[2:4], "big")
    if family == socket.AF_INET and len(name) >= 8:
        return Endpoint(name[4:8], port)
    if family == socket.AF_INET6 and len(name) >= _NAME_BYTES:
        return Endpoint(name[8:24], port, int.from_bytes(name[24:28], sys.byteorder))
    return None


def packet_information(source: bytes, interface_index: int = 0) -> tuple[int, int, bytes]:
    """What tells `sendmsg` the packed address and the interface to leave from (ip(7), IP_PKTINFO; ipv6(7)).

    All zeros, and 0: as the routes say.
    """
    if len(source) == 4:
        return (socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(interface_index, source, bytes(4)))
    return (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source, interface_index))
