"""What the network said about datagrams that were sent: the error queue of a socket (ip(7), ipv6(7): IP_RECVERR).

A router, or the destination, may answer a datagram with an ICMP error.  The kernel finds the socket that had sent it
and keeps the error, with what was quoted of the datagram, until it is read.  Errors of the kernel itself (no route, no
answer to ARP, too large) come the same way.
"""

import socket
import struct
from contextlib import suppress

from attrs import frozen

from trio_passt.host.endpoint import Endpoint

IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h; not in Python 3.11's socket module
ORIGIN_LOCAL, ORIGIN_ICMP, ORIGIN_ICMPV6 = 1, 2, 3  # linux/errqueue.h

QUOTED_BYTES = 2048
"""More than an ICMP error quotes: 576 bytes in IPv4 and 1,280 in IPv6, headers included."""

READ_AT_A_TIME, TOLD_AT_A_TIME = 256, 16

_ERROR = struct.Struct("=IBBBxII")
_SOCKADDR4 = struct.Struct("=HH4s8x")
_SOCKADDR6 = struct.Struct("=HHI16sI")
_ANCILLARY_BYTES = 2 * socket.CMSG_SPACE(_ERROR.size + _SOCKADDR6.size)  # and a time stamp, should there be one


@frozen
class DatagramError:
    """One error.

    `number` is an errno.  `type` and `code` are those of the ICMP or ICMPv6 message, if it came as one (`origin`);
    `info` is the MTU of "too big".  `reporter` is the packed address of whoever sent it.  `destination` is where the
    datagram had been sent (an echo has no port), and `quoted` what is known of it: of a UDP datagram the beginning of
    the payload, of an echo the beginning of the message.
    """

    number: int
    origin: int
    type: int
    code: int
    info: int
    reporter: bytes | None
    destination: Endpoint | None
    quoted: bytes

    @property
    def is_immediate(self) -> bool:
        """Whether the kernel has refused a datagram before it left: it is the one that was sent last."""
        return self.origin == ORIGIN_LOCAL


def enable(sock: socket.socket) -> None:
    """Have the kernel keep errors for a datagram socket, connected or not."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)


def read_all(sock: socket.socket) -> list[DatagramError]:
    """What there is, but only the first `TOLD_AT_A_TIME`: whoever does not heed those heeds none (RFC 1812 4.3.2.8)."""
    errors = []
    for _ in range(READ_AT_A_TIME):
        error = read(sock)
        if error is None:
            break
        errors.append(error)
    return errors[:TOLD_AT_A_TIME]


def read(sock: socket.socket) -> DatagramError | None:
    """The next error; `None` if there is none.

    With the last one the socket's pending error is gone, too, that another call would have raised.
    """
    try:
        quoted, ancillary, _, name = sock.recvmsg(
            QUOTED_BYTES, _ANCILLARY_BYTES, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
        )
    except OSError:
        return None
    destination = Endpoint.of(name) if name else None
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
            number, origin, type_, code, info, _ = _ERROR.unpack_from(data)
            reporter = _address(data[_ERROR.size :]) if origin != ORIGIN_LOCAL else None
            return DatagramError(number, origin, type_, code, info, reporter, destination, quoted)
    return DatagramError(0, 0, 0, 0, 0, None, destination, quoted)


def _address(sockaddr: bytes) -> bytes | None:
    """The packed address in a `struct sockaddr`, if it is one of IP's."""
    with suppress(struct.error):
        if sockaddr[:2] == struct.pack("=H", socket.AF_INET):
            return bytes(_SOCKADDR4.unpack_from(sockaddr)[2])
        if sockaddr[:2] == struct.pack("=H", socket.AF_INET6):
            return bytes(_SOCKADDR6.unpack_from(sockaddr)[3])
    return None
