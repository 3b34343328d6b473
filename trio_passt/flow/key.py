"""What names a flow."""

from typing import NamedTuple


class FlowKey(NamedTuple):
    """Both ends of a flow as the guest sees them: packed addresses (4 or 16 bytes, both of one family) and ports.

    For ICMP echo, `guest_port` is the identifier and `remote_port` 0.  A tuple, because it is hashed once a packet.
    """

    guest: bytes
    guest_port: int
    remote: bytes
    remote_port: int

    def __str__(self) -> str:
        from ipaddress import ip_address

        return f"{ip_address(self.guest)} port {self.guest_port} ↔ {ip_address(self.remote)} port {self.remote_port}"
