"""Everything that was decided before the first packet: frozen values, no behaviour.

The command line and the discovery of the host's network produce one `Config`; the rest of the program only
reads it.  Nothing here imports anything of the package, so that every layer may import it.
"""

from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from attrs import frozen

IPAddress = IPv4Address | IPv6Address

HOST_MAC = bytes.fromhex("9a559a559a55")
"""MAC address of the host's side of the link: the one every frame to the guest comes from."""

DEFAULT_MTU_BYTES = 65520
"""Told to the guest by DHCP and RA: the largest multiple of 4 + 16 that keeps an IPv4 packet within 65535."""

MAX_NAME_CHARACTERS = 253
"""Of a domain name: it has 255 bytes on the wire at most (RFC 1035 section 2.3.4), which is two more than as text."""


@frozen
class GuestIPv4:
    """What a guest is given for IPv4: the host's own address, so that to its peers the guest *is* the host.

    `interface` names the host's interface that this was taken from; `None` in local mode.
    """

    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address
    interface: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether this is local mode: the host has no network yet, and may have one soon."""
        return self.interface is None


@frozen
class GuestIPv6:
    """What a guest is given for IPv6.

    `address` is assigned by DHCPv6; its /64 prefix is announced for SLAAC (not in local mode, where the
    address is a link-local one).  `gateway` is a link-local address: the source of router advertisements, and
    so the guest's default router.  `interface` names the host's interface that this was taken from, which is
    also the scope that link-local destinations need on the host; `None` in local mode.
    """

    address: IPv6Address
    prefix_length: int
    gateway: IPv6Address
    interface: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether this is local mode, as of IPv4."""
        return self.interface is None


@frozen
class Resolvers:
    """Nameservers and search list as the guest is told them (already translated for the guest's use)."""

    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    search: tuple[str, ...] = ()


@frozen
class DnsForward:
    """What the guest sends to `seen_by_guest`, ports 53 and 853 of TCP and UDP, goes to `on_host`.

    It has precedence over the mapping of the gateway's address to the host's loopback: nameservers that only
    the host can reach (127.0.0.53), and the one that *is* the gateway, are told the guest as the gateway's
    address.  Both addresses are of one family.
    """

    seen_by_guest: IPAddress
    on_host: IPAddress


@frozen
class NetworkBoot:
    """Where a guest that boots from the network finds its program: `file` is a path for TFTP, or a URL.

    `server` is the next server's address (`None`: the gateway's, which is the host's loopback), `server_name` its name.
    All are printable ASCII; `file` has 127 characters at most, and `server_name` 63.
    """

    file: str
    server_name: str = ""
    server: IPv4Address | None = None


@frozen
class Former:
    """What the guest was told before the host's network changed, and may go by until it asks again.

    `on_host`: the host still has this address, so that the guest may keep it, with the connections that it has.
    """

    guest: GuestIPv4 | GuestIPv6
    on_host: bool


@frozen
class GuestNetwork:
    """The network that the guest sees; `None` for a family means that this family is off.

    `mtu_bytes` is the largest IP packet on the link; 0 means: tell the guest nothing (the link still takes
    65520).  `hostname` and `fqdn` are names for the guest (`None`: it is told none), without a dot at their end.
    `nameservers` are where questions go that the guest has for a nameserver at one of our addresses: addresses of the
    host's side, at most one of a family.  Offline: the host had a default route of this family and has none any more;
    for IPv6, the guest then has no default router.  `former`, the latest first, is what held before the host's network
    changed, and `former_dns_forwards` are for nameservers that the guest was told then.
    """

    ipv4: GuestIPv4 | None = None
    ipv6: GuestIPv6 | None = None
    resolvers: Resolvers = Resolvers()
    mtu_bytes: int = DEFAULT_MTU_BYTES
    host_mac: bytes = HOST_MAC
    dns_forwards: tuple[DnsForward, ...] = ()
    hostname: str | None = None
    fqdn: str | None = None
    boot: NetworkBoot | None = None
    nameservers: tuple[IPAddress, ...] = ()
    ipv4_offline: bool = False
    ipv6_offline: bool = False
    former: tuple[Former, ...] = ()
    former_dns_forwards: tuple[DnsForward, ...] = ()

    @property
    def link_mtu_bytes(self) -> int:
        """The largest IP packet that may be sent to the guest."""
        return self.mtu_bytes or DEFAULT_MTU_BYTES


@frozen
class Wishes:
    """What the operator asked for about the guest's network, whatever the host's is at the moment.

    `dns_forwards` are addresses at which the guest finds the host's nameserver, `dns_hosts` that nameserver in place of
    the first one of resolv.conf: each at most one of a family.
    """

    ipv4: bool = True
    ipv6: bool = True
    mtu_bytes: int = DEFAULT_MTU_BYTES
    hostname: str | None = None
    fqdn: str | None = None
    boot: NetworkBoot | None = None
    dns_forwards: tuple[IPAddress, ...] = ()
    dns_hosts: tuple[IPAddress, ...] = ()


class Protocol(Enum):
    """The transport of a forwarded port."""

    TCP = "tcp"
    UDP = "udp"


@frozen
class PortForward:
    """One forwarded port: connections to `port` on the host go to `target` in the guest.

    `address` is the host address to bind (`None`: all, both families).  Not `must_bind`: when the port can't
    be bound that is worth a line in the log, and no reason not to start.
    """

    protocol: Protocol
    port: int
    target: int
    address: IPAddress | None = None
    must_bind: bool = True


@frozen
class Attachment:
    """How the guest is attached: a socket's path to listen on, or a connected descriptor; else a default path."""

    socket_path: Path | None = None
    fd: int | None = None


class LogLevel(Enum):
    """How much is logged: `--quiet` warnings and errors, default what an operator wants, `--debug` all."""

    QUIET = "quiet"
    INFO = "info"
    DEBUG = "debug"


@frozen
class Config:
    """The whole configuration: the product of `cli` and of the host's discovered network.

    `flow_limit` is how many TCP connections a guest may have; UDP and echo have lower limits of their own (`dispatch`).
    `network` is what `wishes` come to with the host as it is at start.
    """

    network: GuestNetwork
    attachment: Attachment = Attachment()
    forwards: tuple[PortForward, ...] = ()
    one_off: bool = False
    foreground: bool = False
    pcap: Path | None = None
    pid_file: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    flow_limit: int = 65536
    wishes: Wishes = Wishes()
