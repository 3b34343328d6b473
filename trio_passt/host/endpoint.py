"""Addresses as the host's sockets want and give them."""

import socket
from functools import lru_cache
from ipaddress import ip_address

from attrs import frozen

LOOPBACK = {4: bytes((127, 0, 0, 1)), 16: bytes(15) + b"\1"}
"""By the length of a packed address."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@frozen
class Endpoint:
    """A packed address (4 or 16 bytes) and a port; `scope_id` is the interface's index for link-local addresses."""

    address: bytes
    port: int
    scope_id: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if len(self.address) == 4 else socket.AF_INET6

    def sockaddr(self) -> SocketAddress:
        """As Python's socket functions want it."""
        if len(self.address) == 4:
            return (socket.inet_ntop(socket.AF_INET, self.address), self.port)
        return (socket.inet_ntop(socket.AF_INET6, self.address), self.port, 0, self.scope_id)

    @classmethod
    def of(cls, sockaddr: SocketAddress) -> "Endpoint":
        """From what Python's socket functions give; IPv4-mapped IPv6 addresses become IPv4."""
        address = _packed(sockaddr[0])
        scope_id = sockaddr[3] if len(sockaddr) == 4 and len(address) == 16 else 0
        return cls(address, sockaddr[1], scope_id)

    def __str__(self) -> str:
        text = str(ip_address(self.address))
        return f"{text}:{self.port}" if len(self.address) == 4 else f"[{text}]:{self.port}"


@lru_cache(maxsize=1024)
def _packed(text: str) -> bytes:
    """Without its scope."""
    address = ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    packed: bytes = (mapped or address).packed
    return packed


def is_loopback(address: bytes) -> bool:
    """Whether this packed address is one of loopback's."""
    return address[0] == 127 if len(address) == 4 else address == LOOPBACK[16]


def interface_index(name: str | None) -> int:
    """The number of the host's interface of this name, which a scope is; 0 if there is none (any more)."""
    try:
        return socket.if_nametoindex(name) if name is not None else 0
    except OSError:
        return 0
