"""Which host port a guest's endpoint speaks from: its own, where that is free.

Peers may care: some protocols have fixed ports on both sides (NTP's symmetric mode, IKE), others find out what a NAT
makes of a port (STUN), and whoever looks at a capture does.  A guest's endpoint that speaks to several remotes has one
port on the host, too, so all its flows' sockets share it, each connected to another peer.
"""

import socket

from trio_passt.host import sockets
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import Way

SHARED_BY_MOST = 1024
"""The kernel looks for the right one among those of a port one by one."""


class SourcePorts:
    """The sockets of all outbound flows of a guest, by the port that they have."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[tuple[int, int], dict[Endpoint, socket.socket]] = {}

    def open(self, port: int, peer: Endpoint, way: Way | None = None) -> socket.socket:
        """A socket connected to `peer`, with the guest's port if possible, and bound to `way`.  Raises OSError."""
        key = (peer.family, port)
        holders = self._holders.get(key)
        if holders is None:
            sock, has_port = sockets.open_udp(peer, port, (), way)
        elif peer in holders or len(holders) >= SHARED_BY_MOST:
            sock, has_port = sockets.open_udp(peer, 0, (), way)
        else:
            one = next(iter(holders.values()))  # the others have agreed already, when they joined it
            sock, has_port = sockets.open_udp(peer, port, [one], way)
        if has_port:
            self._holders.setdefault(key, {})[peer] = sock
        return sock

    def close(self, sock: socket.socket, port: int, peer: Endpoint) -> None:
        """Close a socket that `open` gave."""
        key = (peer.family, port)
        holders = self._holders.get(key)
        if holders is not None and holders.get(peer) is sock:
            del holders[peer]
            if not holders:
                del self._holders[key]
        sock.close()
