"""Everything that was decided before the first packet: frozen values, no behaviour.

The command line and the discovery of the host's network produce one `Config`; the rest of the program only
reads it.  Nothing here imports anything of the package, so that every layer may import it.
"""

from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from attrs import fields, frozen, has

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

LOOPBACK: dict[int, IPAddress] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}
"""By the version of IP."""

HOST_MAC = bytes.fromhex("9a559a559a55")
"""MAC address of the host's side of the link: the one every frame to the guest comes from."""

DEFAULT_MTU_BYTES = 65520
"""Told to the guest by DHCP and RA: the largest multiple of 4 + 16 that keeps an IPv4 packet within 65535."""

MAX_NAME_CHARACTERS = 253
"""Of a domain name: it has 255 bytes on the wire at most (RFC 1035 section 2.3.4), which is two more than as text."""


@frozen
class GuestIPv4:
    """What a guest is given for IPv4: the host's own address, so that to its peers the guest *is* the host.

    `interface` names the host's interface that this was taken from; `None` in local mode.  `others` are further
    addresses that the guest may have.
    """

    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address
    interface: str | None = None
    others: tuple[IPv4Interface, ...] = ()

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
    also the scope that link-local destinations need on the host; `None` in local mode.  `others` are further
    addresses for it, assigned and announced in the same way.  `host_gateway` is the host's own gateway if that is not a
    link-local address, and so not the guest's.
    """

    address: IPv6Address
    prefix_length: int
    gateway: IPv6Address
    interface: str | None = None
    others: tuple[IPv6Interface, ...] = ()
    host_gateway: IPv6Address | None = None

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
class HostAddress:
    """An address of one family that reaches the host itself: what the guest sends to `seen_by_guest` goes to `on_host`.

    `on_host` is the host's loopback address, or the one that the guest shares with the host.
    """

    seen_by_guest: IPAddress
    on_host: IPAddress


@frozen
class Services:
    """What is answered at the link; without NDP there are no router advertisements either."""

    dhcp: bool = True
    dhcpv6: bool = True
    ndp: bool = True
    router_advertisements: bool = True


@frozen
class Transports:
    """What is translated; packets of another transport are dropped."""

    tcp: bool = True
    udp: bool = True
    icmp: bool = True


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
    for IPv6, the guest then has no default router.  `host_addresses` reach the host itself.  `former`, the latest
    first, is what held before the host's network changed, and `former_dns_forwards` are for nameservers that the guest
    was told then.  In `closed` networks there is nobody but the guest and what stands for the host.
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
    host_addresses: tuple[HostAddress, ...] = ()
    services: Services = Services()
    transports: Transports = Transports()
    closed: tuple[IPNetwork, ...] = ()

    @property
    def loopback_ipv4(self) -> IPv4Address | None:
        """The address at which the guest reaches the host's IPv4 loopback, if one does."""
        for mapping in self.host_addresses:
            if isinstance(mapping.seen_by_guest, IPv4Address) and mapping.on_host.is_loopback:
                return mapping.seen_by_guest
        return None

    @property
    def link_mtu_bytes(self) -> int:
        """The largest IP packet that may be sent to the guest."""
        return self.mtu_bytes or DEFAULT_MTU_BYTES


@frozen
class WishedAddress:
    """An address for the guest; `prefix_length` `None`: what fits it on this host (`guest_network`)."""

    address: IPAddress
    prefix_length: int | None = None


@frozen
class Wishes:
    """What the operator asked for about the guest's network, whatever the host's is at the moment.

    `addresses` are the guest's in place of the host's, the first of a family before others; `netmask_bits` is for the
    IPv4 ones without prefix, also the host's.  `gateways` are in place of the host's, at most one of a family.
    `interface_ipv4` and `interface_ipv6` name interfaces of the host to take a family from, in place of the default
    route's.  `host_mac` is the MAC address of the host's side.

    `dns_servers` and `search` are in place of what resolv.conf says (`None`: what it says); `tells_dns` and
    `tells_search` are whether the guest is told.  `dns_forwards` are addresses at which the guest finds the host's
    nameserver, `dns_hosts` that nameserver in place of the first one: each at most one of a family.

    `loopback_addresses` reach the host's loopback, at most one of a family; where there is none, the gateway's address
    does if `maps_gateway`.  `own_addresses` reach the host's own address, at most one of a family.  `closed` networks
    are the guest's link: what it sends there goes nowhere else.
    """

    ipv4: bool = True
    ipv6: bool = True
    mtu_bytes: int = DEFAULT_MTU_BYTES
    hostname: str | None = None
    fqdn: str | None = None
    boot: NetworkBoot | None = None
    dns_forwards: tuple[IPAddress, ...] = ()
    dns_hosts: tuple[IPAddress, ...] = ()
    addresses: tuple[WishedAddress, ...] = ()
    netmask_bits: int | None = None
    gateways: tuple[IPAddress, ...] = ()
    interface_ipv4: str | None = None
    interface_ipv6: str | None = None
    host_mac: bytes = HOST_MAC
    dns_servers: tuple[IPAddress, ...] | None = None
    search: tuple[str, ...] | None = None
    tells_dns: bool = True
    tells_search: bool = True
    maps_gateway: bool = True
    loopback_addresses: tuple[IPAddress, ...] = ()
    own_addresses: tuple[IPAddress, ...] = ()
    closed: tuple[IPNetwork, ...] = ()
    services: Services = Services()
    transports: Transports = Transports()


@frozen
class Outbound:
    """Where connections of the guest's leave the host: source addresses and interfaces; `None`: as its routes say.

    Not for what goes to the host's own loopback.
    """

    ipv4_address: IPv4Address | None = None
    ipv6_address: IPv6Address | None = None
    ipv4_interface: str | None = None
    ipv6_interface: str | None = None


class Protocol(Enum):
    """The transport of a forwarded port."""

    TCP = "tcp"
    UDP = "udp"


class Binding(Enum):
    """What becomes of a forward whose port can't be bound.

    Required: the daemon does not start.  Wanted: a line in the log.  Spare: one of many that are taken as far as they
    are free and the limits allow, with one line for all of them; only if none of them can be had is that an error.
    """

    REQUIRED = "required"
    WANTED = "wanted"
    SPARE = "spare"


@frozen
class PortForward:
    """Forwarded ports `first` to `last`, both included: what comes to `first` goes to `target` in the guest, and so on.

    `address` is the host's address to bind (`None`: all, both families), `interface` the one of the host's that alone
    is listened at (SO_BINDTODEVICE of socket(7)).
    """

    protocol: Protocol
    first: int
    last: int
    target: int
    address: IPAddress | None = None
    interface: str | None = None
    binding: Binding = Binding.REQUIRED

    @property
    def ports(self) -> range:
        """The ports of the host."""
        return range(self.first, self.last + 1)

    @property
    def targets(self) -> range:
        """The ports of the guest."""
        return range(self.target, self.target_of(self.last) + 1)

    def target_of(self, port: int) -> int:
        """The guest's port for one of `ports`."""
        return port - self.first + self.target


@frozen
class Attachment:
    """How the guest is attached: one of a socket's path to listen on, a connected descriptor, and one that listens
    already (a service manager's); else a default path.
    """

    socket_path: Path | None = None
    fd: int | None = None
    listen_fd: int | None = None


@frozen
class Namespace:
    """A network namespace that is the guest (`trio-pasta`), and what is to be done with it.

    Which one: that of the process `pid`, or of the file `path` (one of the two at most), or else a new one in which
    `command` runs (`()`: the user's shell).  `user_path` is the user namespace to join for that; `None`: the one that
    owns the network namespace, or none at all if not `joins_user`.  Unless `quits`, the daemon stays when the process
    is gone, or the namespace from its path.

    The tap in there is called `interface` (`None`: as the host's interface that the guest's network is taken from) and
    has the MAC address `mac` (`None`: the kernel's choice).  With `configures` it is set up and has what the guest gets
    of the host, also its further addresses if `copies_addresses`, and its further routes if `copies_routes`.

    With `splices`, connections between loopback here and loopback there bypass the tap.  Those to forwarded ports
    arrive at the guest's own address, or with `loopback_to_loopback` at its loopback address.
    """

    command: tuple[str, ...] = ()
    pid: int | None = None
    path: Path | None = None
    user_path: Path | None = None
    joins_user: bool = True
    quits: bool = True
    interface: str | None = None
    mac: bytes | None = None
    configures: bool = False
    copies_addresses: bool = True
    copies_routes: bool = True
    splices: bool = True
    loopback_to_loopback: bool = False

    @property
    def is_new(self) -> bool:
        """Whether it is made for a command, and ends with it."""
        return self.pid is None and self.path is None


@frozen
class AutomaticPorts:
    """Candidates: each of their ports is forwarded as long as something listens at its target on the other side.

    `to_guest` follows what listens in the guest's namespace (`-t auto`, `-u auto`), `to_host` what listens on the host
    (`-T auto`, `-U auto`).  No port is a candidate twice at one place, or one that is forwarded anyway.
    """

    to_guest: tuple[PortForward, ...] = ()
    to_host: tuple[PortForward, ...] = ()


class LogLevel(Enum):
    """How much is logged: `--quiet` warnings and errors, default what an operator wants, `--debug` all, `--trace` each
    frame, too."""

    QUIET = "quiet"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


LOG_SIZE_BYTES = 1024 * 1024
"""What a log file may have, if nobody says otherwise."""


@frozen
class RunAs:
    """The user and group that a daemon that was started as root goes on as."""

    uid: int
    gid: int


@frozen
class Config:
    """The whole configuration: the product of `cli` and of the host's discovered network.

    `flow_limit` is how many TCP connections a guest may have; UDP and echo have lower limits of their own (`dispatch`).
    `freebind`: forwards may be bound to addresses that the host does not have (yet).  `log_file` has `log_size_bytes`
    at most.
    `network` is what `wishes` come to with the host as it is at start.  With a `namespace` that is the guest, in place
    of `attachment`: then there may be `forwards_to_host`, ports of the namespace's loopback that lead to the host's
    (their `ports` are the namespace's, their `targets` the host's), and `automatic` ones.  `binds_later`: ports of the
    host are bound at any time, not only at start.
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
    outbound: Outbound = Outbound()
    freebind: bool = False
    log_file: Path | None = None
    log_size_bytes: int = LOG_SIZE_BYTES
    run_as: RunAs | None = None
    namespace: Namespace | None = None
    forwards_to_host: tuple[PortForward, ...] = ()
    automatic: AutomaticPorts = AutomaticPorts()
    binds_later: bool = False

    def __str__(self) -> str:
        """Each value that is set, on a line of its own: `network.ipv4.address = 192.0.2.2`."""
        return "\n".join(_lines("", self))


def _lines(name: str, value: object) -> Iterator[str]:
    cls = type(value)
    if has(cls):
        prefix = f"{name}." if name else ""
        for field in fields(cls):
            yield from _lines(prefix + field.name, getattr(value, field.name))
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _lines(f"{name}[{number}]", item)
    elif isinstance(value, Enum):
        yield f"{name} = {value.value}"
    elif isinstance(value, bytes):
        yield f"{name} = {value.hex(':')}"
    elif value is not None:
        yield f"{name} = {value}"
