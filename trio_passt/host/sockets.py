"""Host sockets and their options: everything that a flow asks of the kernel, by name.

All sockets are non-blocking.  Errors are the kernel's `OSError`.
"""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import termios
from collections.abc import Sequence

from trio_passt.host import error_queue
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import NoWayOutError, Way

EXHAUSTED: frozenset[int] = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a host that has no more descriptors, or memory for sockets."""

NO_WAY = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL}
    | {errno.ECONNABORTED, errno.ENOTCONN, errno.EDESTADDRREQ, errno.EBADF}
)
"""Errors of sending at all: from the address that a connected socket has there is no way to its peer (any more); or it
is not connected any more (ss(8), -K), or closed, since the interface of its port is another now."""

FORGET_MOST = 1000
"""Datagrams that a new socket has heard before it was connected; whoever sends more than that in a moment is let in."""

SO_PEEK_OFF, SO_MEMINFO = 42, 55  # asm-generic/socket.h; not in Python's socket module
_MEMINFO_BYTES, _MEMINFO_DROPS_AT = 36, 32
"""Nine numbers (linux/sock_diag.h), the last of which are the drops."""

_TCP_INFO_BYTES = 104
_TCP_INFO_RTT_AT = 68
_LINGER_ZERO = struct.pack("ii", 1, 0)
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_INT = struct.Struct("i")


def lacks_means(error: OSError) -> bool:
    """Whether it is this host that lacks something, whoever the peer is: an operator wants to know."""
    return error.errno in EXHAUSTED or isinstance(error, NoWayOutError)


def start_tcp_connection(peer: Endpoint, way: Way | None = None) -> socket.socket:
    """A socket that is connecting, or connected already; readiness to write tells the end, `pending_error` the outcome.

    It has yet to be prepared (`prepare_tcp`), before anything is written.
    Raises OSError for what fails at once (refused on loopback, unreachable, no descriptors left, no such `way`).
    """
    sock = socket.socket(peer.family, _STREAM)
    try:
        keep_urgent_in_line(sock)
        if way is not None:
            way.bind(sock)
        number = sock.connect_ex(peer.sockaddr())
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock


def is_connected(sock: socket.socket, peer: Endpoint) -> bool:
    """Whether a connection that was started is there already: a peer on this machine has answered by now.

    Raises the OSError of one that has failed (connect(2): asking for the same connection again tells).
    """
    number = sock.connect_ex(peer.sockaddr())
    if number in (errno.EALREADY, errno.EINPROGRESS):
        return False
    if number not in (0, errno.EISCONN):
        raise OSError(number, os.strerror(number))
    return True


def peer_of(sock: socket.socket) -> Endpoint | None:
    """The other end of a connection; `None` if there is none (any more)."""
    with contextlib.suppress(OSError):
        return Endpoint.of(sock.getpeername())
    return None


def prepare_tcp(sock: socket.socket) -> None:
    """Options of every TCP socket that carries a flow: no delay by Nagle (the guest has its own), keep-alive."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def keep_urgent_in_line(sock: socket.socket) -> None:
    """Urgent data is ordinary data: a byte left out of the stream would not be counted by what is peeked of it.

    To be said before there is any: of two urgent bytes in a row the kernel would forget the first one.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def pending_error(sock: socket.socket) -> OSError | None:
    """The error that the kernel holds for this socket (SO_ERROR), which is cleared by asking."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a reset to its peer instead of a FIN (socket(7), SO_LINGER with time 0)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes the peer has not acknowledged yet, a FIN counted as one (tcp(7), SIOCOUTQ)."""
    return int(_INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def received_bytes(sock: socket.socket) -> int:
    """How many bytes wait in the receive queue, a FIN not counted (tcp(7), SIOCINQ)."""
    return int(_INT.unpack(fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0])


def send_buffer_bytes(sock: socket.socket) -> int:
    """The present size of the send buffer, which the kernel tunes."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def round_trip_s(sock: socket.socket) -> float:
    """The kernel's smoothed round trip to the peer (tcp(7), TCP_INFO, tcpi_rtt)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int.from_bytes(info[_TCP_INFO_RTT_AT : _TCP_INFO_RTT_AT + 4], sys.byteorder) / 1e6


def open_ping(address_bytes: int, identifier: int, way: Way | None = None) -> socket.socket:
    """A ping socket (icmp(7), "ICMP datagram sockets") with the given echo identifier, if that one is free.

    Otherwise the kernel chooses the identifier (`getsockname()[1]`).  PermissionError: the process's group is not in
    `net.ipv4.ping_group_range`.  OSError also if there is no such `way`.
    """
    if address_bytes == 4:
        family, protocol = socket.AF_INET, socket.IPPROTO_ICMP
    else:
        family, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    error_queue.enable(sock)
    # Ping sockets are born with it, and then several may share an identifier, and one gets the replies to all.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    try:
        if way is not None:
            way.bind_to_interface(sock)
        try:
            _bind_to(sock, identifier, way)
        except NoWayOutError:
            raise
        except OSError:
            _bind_to(sock, 0, way)
    except BaseException:
        sock.close()
        raise
    return sock


def open_udp(
    peer: Endpoint, port: int = 0, sharing: Sequence[socket.socket] = (), way: Way | None = None
) -> tuple[socket.socket, bool]:
    """A UDP socket connected to `peer`: only that peer's datagrams, and errors about what it was sent, come back.

    And whether it has the local `port`, which it has if that is free; else it has one of the kernel's choice.  Sockets
    of ours in `sharing` may have it already, each with another peer: the kernel tells them apart.  They agree to it
    (socket(7), SO_REUSEPORT), which holds for sockets of this user only.  Raises OSError, also if there is no such
    `way`.
    """
    sock = socket.socket(peer.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if way is not None:
            way.bind_to_interface(sock)
        has_port = port != 0 and _bind(sock, port, sharing, way)
        if way is not None and not has_port:
            way.bind_to_source(sock)
        error_queue.enable(sock)
        sock.connect(peer.sockaddr())
        if has_port:
            _forget_received(sock)
    except BaseException:
        sock.close()
        raise
    return sock, has_port


def _bind(sock: socket.socket, port: int, sharing: Sequence[socket.socket], way: Way | None) -> bool:
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the same port of IPv4 is another flow's
        for one in (*sharing, sock) if sharing else ():
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind_to(sock, port, way)
    except NoWayOutError:
        raise
    except OSError:
        return False
    return True


def _bind_to(sock: socket.socket, port: int, way: Way | None) -> None:
    """To any address of the host, or to that of `way`."""
    if way is not None and way.source is not None:
        way.bind_to_source(sock, port)
    else:
        sock.bind(("", port))


def _forget_received(sock: socket.socket) -> None:
    """Between bind and connect, datagrams of anybody may have come, and errors; a flood is not waited for."""
    for _ in range(FORGET_MOST):
        try:
            sock.recv(1)
        except BlockingIOError:
            return
        except OSError:  # there may be more
            continue


HOP_LIMIT = 64
"""Of a socket that was not told otherwise.  Where the host has another default, a guest that uses 64 gets that."""


def set_hop_limit(sock: socket.socket, hop_limit: int) -> None:
    """What leaves from now on lives for so many hops (ip(7), IP_TTL; ipv6(7), IPV6_UNICAST_HOPS), 1 to 255."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop_limit)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop_limit)


def descriptor_limit() -> int:
    """How many files this process may have open (getrlimit(2), RLIMIT_NOFILE, the soft one)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def overflowed_datagrams(sock: socket.socket) -> int:
    """How many datagrams the kernel has dropped since the receive buffer was full (socket(7), SO_MEMINFO)."""
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO_BYTES)
    except OSError:
        return 0
    return int.from_bytes(info[_MEMINFO_DROPS_AT : _MEMINFO_DROPS_AT + 4], sys.byteorder)
