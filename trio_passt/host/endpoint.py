"""Addresses as the host's sockets want and give them."""

import socket
from ipaddress import ip_address

from attrs import frozen

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
        text = str(ip_address(self.address))
        return (text, self.port) if len(self.address) == 4 else (text, self.port, 0, self.scope_id)

    @classmethod
    def of(cls, sockaddr: SocketAddress) -> "Endpoint":
        """From what Python's socket functions give; IPv4-mapped IPv6 addresses become IPv4."""
        name, _, _ = sockaddr[0].partition("%")
        address = ip_address(name)
        mapped = getattr(address, "ipv4_mapped", None)
        scope_id = sockaddr[3] if len(sockaddr) == 4 and mapped is None else 0
        return cls((mapped or address).packed, sockaddr[1], scope_id)

    def __str__(self) -> str:
        text = str(ip_address(self.address))
        return f"{text}:{self.port}" if len(self.address) == 4 else f"[{text}]:{self.port}"


def interface_index(name: str | None) -> int:
    """The number of the host's interface of this name, which a scope is; 0 if there is none (any more)."""
    try:
        return socket.if_nametoindex(name) if name is not None else 0
    except OSError:
        return 0
