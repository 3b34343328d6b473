"""When to look at the host's network again: what the kernel says (rtnetlink(7)), and resolv.conf(5).

Theory of operation
-------------------
What changed is not read from the kernel's messages: they only say that it is time for a new look at everything, which
can't go wrong by missing one.  But a look costs a process (`trio_passt.host.apart`), and a busy host says a lot that
is not news: router advertisements refresh lifetimes every few seconds, wireless interfaces report their signal.  So
the messages are compared with what was said before about the same thing, lifetimes left out, and only what differs
counts.  Some changes the kernel does not tell: that routes went with their address, interface or nexthop object, and
which route another one has replaced.  Else a route that comes back would be no news; so news of the former has all
that was said about routes forgotten, and a route that replaces has it of those in its place.  Then it is waited until
the kernel has been quiet for a moment: an interface that comes up brings a dozen messages, and so does a lease that is
renewed by taking the address away and giving it back.

resolv.conf is asked for its status every other second.  Not inotify(7): the file may be a link to a file in a
directory that does not exist yet, be replaced by another, or be a mount; a status is right in each case, costs 2 µs,
and it is what the C library does at each look-up.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import trio
from attrs import frozen

from trio_passt.host.rtnetlink import (
    DELADDR,
    DELLINK,
    DELNEXTHOP,
    DELROUTE,
    NETLINK_ROUTE,
    NEWADDR,
    NEWLINK,
    NEWNEXTHOP,
    NEWROUTE,
    aligned,
    messages,
)

log = logging.getLogger("trio_passt.host")

RESOLV_CONF_INTERVAL_S = 2.0
SETTLE_S = 0.3
"""The kernel has been quiet for so long."""
MAX_SETTLE_S = 2.0
"""On a host where it never is."""

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE."""

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_NEXTHOP = 270, 1, 32
"""A route that goes with its nexthop object (ip-nexthop(8)) is not spoken of."""

_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_BODY_BYTES = {
    NEWLINK: 16,
    DELLINK: 16,
    NEWADDR: 8,
    DELADDR: 8,
    NEWROUTE: 12,
    DELROUTE: 12,
    NEWNEXTHOP: 8,
    DELNEXTHOP: 8,
}
_NLM_F_REPLACE = 0x100
_IFF_UP = 0x1
_IFLA_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_NHA_ID = 1
_RTA_TIMES = {12, 23}
"""RTA_CACHEINFO, RTA_EXPIRES."""
_RTA_PLACE = {6, 15}
"""RTA_PRIORITY, RTA_TABLE."""

_RECEIVE_BYTES = 65536
_MOST_REMEMBERED = 4096


class HostWatch:
    """Watches from the moment it is made, so that what is read after that can't be out of date unnoticed.

    Where there is no netlink (some sandboxes), it watches resolv.conf only.
    """

    def __init__(self, resolv_conf: Path) -> None:
        self._resolv_conf = resolv_conf
        self._status = _status(resolv_conf)
        self._news = News()
        self._socket: socket.socket | None = None
        try:
            self._socket = _open()
        except OSError as error:
            log.warning("changes of the host's network will go unnoticed: no netlink: %s", error.strerror)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def changed(self) -> None:
        """Wait until something may have changed since the last time, and nothing more has for a moment."""
        while not self._resolv_conf_changed():
            with trio.move_on_after(RESOLV_CONF_INTERVAL_S) as look_at_the_file:
                await self._kernel_has_news()
            if not look_at_the_file.cancelled_caught:
                break
        await self._settled()
        self._resolv_conf_changed()  # it will be read with all the rest

    def _resolv_conf_changed(self) -> bool:
        before, self._status = self._status, _status(self._resolv_conf)
        return self._status != before

    async def _kernel_has_news(self) -> None:
        while True:
            await self._readable()
            if self._take_messages():
                return

    async def _settled(self) -> None:
        """Until nothing came for `SETTLE_S`.  What comes after that counts for the next time."""
        with trio.move_on_after(MAX_SETTLE_S):
            while True:
                with trio.move_on_after(SETTLE_S) as quiet:
                    await self._kernel_has_news()
                if quiet.cancelled_caught:
                    return

    async def _readable(self) -> None:
        if self._socket is None:
            await trio.sleep_forever()
        else:
            await trio.lowlevel.wait_readable(self._socket.fileno())

    def _take_messages(self) -> bool:
        """Read what the kernel has said; whether some of it is news."""
        assert self._socket is not None
        has_news = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return has_news
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # netlink(7): more was said than there was room for
                    raise
                has_news, self._news = True, News()
            else:
                has_news |= self._news.take(data)


@frozen
class _About:
    """The thing that a message is about.  Of routes that have one `place`, one may replace another."""

    thing: bytes
    place: bytes | None = None

    @property
    def is_route(self) -> bool:
        return self.place is not None


class News:
    """Tells what the kernel had not said before."""

    def __init__(self) -> None:
        self._said: dict[_About, bytes] = {}

    def take(self, data: bytes) -> bool:
        """Whether one of the messages in what was read from a socket concerns us, and differs from what is known."""
        new = [self._is_new(*message) for message in messages(data)]  # all of them are remembered
        return any(new)

    def _is_new(self, kind: int, flags: int, body: bytes) -> bool:
        told = _essence(kind, body)
        if told is None:
            return False
        about, what = told
        if self._said.get(about) == what:
            return False
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.clear()
        if not about.is_route or flags & _NLM_F_REPLACE:
            self._forget_routes(about.place)
        self._said[about] = what
        return True

    def _forget_routes(self, place: bytes | None) -> None:
        """Those of a place, or all."""
        for about in list(self._said):
            if about.is_route and place in (None, about.place):
                del self._said[about]


def _open() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
    try:
        sock.bind((0, _GROUPS))
        with suppress(OSError):  # before Linux 5.3
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_NEXTHOP)
    except BaseException:
        sock.close()
        raise
    return sock


def _status(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another; empty for none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    who_may_read_it = (status.st_mode, status.st_uid, status.st_gid)
    return (status.st_dev, status.st_ino, *who_may_read_it, status.st_size, status.st_mtime_ns)


def _essence(kind: int, body: bytes) -> tuple[_About, bytes] | None:
    """What a message is about, and what it says of it, both in a form to compare; None if it does not concern us."""
    if len(body) < _BODY_BYTES.get(kind, len(body) + 1):
        return None
    head, attributes = body[: _BODY_BYTES[kind]], list(_attributes(body[_BODY_BYTES[kind] :]))
    if kind in (NEWLINK, DELLINK):
        _, _, index, flags, _ = _LINK.unpack(head)
        name = [value for code, value in attributes if code == _IFLA_IFNAME]
        return _About(b"link %d" % index), b"%d %d " % (kind, flags & _IFF_UP) + b"".join(name)
    said = b"%d " % kind + head
    if kind in (NEWADDR, DELADDR):
        family, prefix_length, _, _, index = _ADDRESS.unpack(head)
        addresses = [value for code, value in attributes if code in (_IFA_ADDRESS, _IFA_LOCAL)]
        others = [value for code, value in attributes if code != _IFA_CACHEINFO]
        about = _About(b"address %d %d %d " % (family, prefix_length, index) + b"".join(addresses))
        return about, said + b"".join(others)
    if kind in (NEWNEXTHOP, DELNEXTHOP):
        identifier = [value for code, value in attributes if code == _NHA_ID]
        return _About(b"nexthop " + b"".join(identifier)), said + b"".join(value for _, value in attributes)
    family, destination_bits = head[:2]
    if destination_bits:
        return None  # not a default route
    lasting = [value for code, value in attributes if code not in _RTA_TIMES]
    place = [value for code, value in attributes if code in _RTA_PLACE]
    return _About(b"route %d " % family + b"".join(lasting), b"%d " % family + b"".join(place)), said


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of the attributes (rtnetlink(7)), with their headers."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind, data[:length]
        data = data[aligned(length) :]
