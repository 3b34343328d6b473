"""What the kernel has counted of a TCP connection (tcp(7), TCP_INFO; struct tcp_info of linux/tcp.h).

One system call, for whoever asks: nobody has to count for each packet.
"""

import socket
import struct

from attrs import frozen

_BYTES = 216
_IDLE = struct.Struct("=44xI4xI")
"""tcpi_last_data_sent, tcpi_last_data_recv, in milliseconds."""
_RECEIVED = struct.Struct("=128xQ")
_SENT = struct.Struct("=200xQQ")
"""tcpi_bytes_sent, and tcpi_bytes_retrans, which are among them; since Linux 4.19."""


@frozen
class Traffic:
    """Bytes of data that were sent to the peer, and that came from it; and for how long none has passed.

    A FIN that came counts as one byte.
    """

    sent_bytes: int
    received_bytes: int
    idle_s: float


def of(sock: socket.socket) -> Traffic:
    """That of a connected TCP socket.  Raises OSError."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES).ljust(_BYTES, b"\0")
    sent, again = _SENT.unpack_from(info)
    (received,) = _RECEIVED.unpack_from(info)
    return Traffic(sent - again, received, min(_IDLE.unpack_from(info)) / 1000)
