"""Everything that was decided before the first packet: frozen values, no behaviour.

The command line and the discovery of the host's network produce one `Config`; the rest of the program only reads it.
Nothing here imports anything of the package, so that every layer may import it.
"""

from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from attrs import field, frozen

HOST_MAC = bytes.fromhex("9a559a559a55")
"""MAC address of the host's side of the link: the one every frame to the guest comes from."""

DEFAULT_MTU_BYTES = 65520
"""Told to the guest by DHCP and RA: the largest multiple of 4 + 16 that keeps an IPv4 packet within 65535 bytes."""


@frozen
class GuestIPv4:
    """What a guest is given for IPv4: the host's own address, so that to its peers the guest *is* the host."""

    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address


@frozen
class GuestIPv6:
    """What a guest is given for IPv6.

    `address` is assigned by DHCPv6; its /64 prefix is announced for SLAAC.  `gateway` is a link-local address: the
    source of router advertisements, and so the guest's default router.
    """

    address: IPv6Address
    prefix_length: int
    gateway: IPv6Address


@frozen
class Resolvers:
    """Nameservers and search list as the guest is told them (already translated for the guest's use)."""

    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    search: tuple[str, ...] = ()


@frozen
class GuestNetwork:
    """The network that the guest sees; `None` for a family means that this family is off.

    `mtu_bytes` is the largest IP packet on the link; 0 means: tell the guest nothing (the link still takes 65520).
    """

    ipv4: GuestIPv4 | None = None
    ipv6: GuestIPv6 | None = None
    resolvers: Resolvers = Resolvers()
    mtu_bytes: int = DEFAULT_MTU_BYTES
    host_mac: bytes = HOST_MAC

    @property
    def link_mtu_bytes(self) -> int:
        """The largest IP packet that may be sent to the guest."""
        return self.mtu_bytes or DEFAULT_MTU_BYTES


class Protocol(Enum):
    """The transport of a forwarded port."""

    TCP = "tcp"
    UDP = "udp"


@frozen
class PortForward:
    """One forwarded port: connections to `port` on the host go to `target` in the guest.

    `address` is the host address to bind (`None`: all, both families).
    """

    protocol: Protocol
    port: int
    target: int
    address: IPv4Address | IPv6Address | None = None


@frozen
class Attachment:
    """How the guest is attached: a listening socket's path, or one connected descriptor; both `None`: default path."""

    socket_path: Path | None = None
    fd: int | None = None


class LogLevel(Enum):
    """How much is logged: `--quiet` warnings and errors, the default also what an operator wants, `--debug` all."""

    QUIET = "quiet"
    INFO = "info"
    DEBUG = "debug"


@frozen
class Config:
    """The whole configuration: the product of `cli` and of the host's discovered network."""

    network: GuestNetwork
    attachment: Attachment = Attachment()
    forwards: tuple[PortForward, ...] = ()
    one_off: bool = False
    foreground: bool = False
    pcap: Path | None = None
    pid_file: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    flow_limit: int = field(default=65536)
