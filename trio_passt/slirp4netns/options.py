"""slirp4netns' argv → what the same daemon is asked for in its own words.  Pure.

Theory of operation
-------------------
All of it can be said with options of `trio-pasta`, and is: addresses of a network of its own in place of the host's,
the gateway's address for the host's loopback, a nameserver's address for the host's nameserver.  What cannot is the
rest of `Asked`.  The daemon lives until it is told to end, not as long as the process whose namespace it joined.
Connections from the host's loopback do not bypass the tap: they come from the gateway's address, as with slirp4netns.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from attrs import frozen, mutable

from trio_passt.cli import addresses
from trio_passt.cli.getopt import scan
from trio_passt.cli.namespace import process
from trio_passt.cli.option_table import MINIMUM_MTU_BYTES
from trio_passt.cli.options import Options, Show, check_socket_path
from trio_passt.cli.values import UsageError, absolute_path, address, descriptor, invalid, number
from trio_passt.config import DEFAULT_MTU_BYTES as LINK_MTU_BYTES
from trio_passt.config import HOST_MAC, IPAddress, IPNetwork, Namespace, Outbound, WishedAddress, Wishes
from trio_passt.slirp4netns.option_table import DEFAULT_CIDR, DEFAULT_MTU_BYTES, LARGEST_MTU_BYTES, OPTIONS

GUEST, HOST, NAMESERVER = 100, 2, 3
"""Who has which address of the network, counted from its first."""

LONGEST_PREFIX = 25
"""There have to be so many addresses."""

IPV6_NETWORK = IPv6Network("fd00::/64")
GUEST_IPV6, HOST_IPV6, NAMESERVER_IPV6 = IPv6Address("fd00::100"), IPv6Address("fd00::2"), IPv6Address("fd00::3")

DEFAULT_INTERFACE = "tap0"


@frozen
class Asked:
    """What was asked for: what any daemon can do, and what only slirp4netns' callers ask for.

    `guest` is where forwarded ports lead.
    """

    options: Options
    guest: IPv4Address
    ready_fd: int | None = None
    exit_fd: int | None = None
    api_socket: Path | None = None
    gives_up_capabilities: bool = False


@mutable
class _Collected:
    flags: set[str]
    values: dict[str, str]
    words: list[str]


def parse_options(words: Sequence[str], directory: Path) -> Asked | Show:
    """What `words` (argv without the program's name) ask for; relative paths start at `directory`.

    Raises `UsageError`, whose text names the option and the value.
    """
    collected = _Collected(set(), {}, [])
    for given in scan(OPTIONS, words):
        if isinstance(given, str):
            collected.words.append(given)
        elif given.option.key in ("help", "version"):
            return Show(given.option.key)
        elif given.value is None:
            collected.flags.add(given.option.key)
        else:
            collected.values[given.option.key] = given.value
    return _decide(collected, directory)


def _decide(collected: _Collected, directory: Path) -> Asked:
    flags, values = collected.flags, collected.values
    network = _network("--cidr", values.get("cidr", DEFAULT_CIDR))
    ready_fd, exit_fd = _descriptor("--ready-fd", values), _descriptor("--exit-fd", values)
    if ready_fd is not None and ready_fd == exit_fd:
        raise UsageError(f"options '--ready-fd {ready_fd}' and '--exit-fd {exit_fd}' contradict each other")
    if values.get("target-type", "netns") != "netns":
        reason = "'netns' is expected: sockets of a User Mode Linux ('bess') can't be joined"
        raise invalid("--target-type", values["target-type"], reason)
    api_socket = None
    if "api-socket" in values:
        api_socket = absolute_path("--api-socket", values["api-socket"], directory)
        check_socket_path("--api-socket", api_socket)
    wishes = _wishes(flags, values, network)
    addresses.check_together(wishes)
    options = Options(
        foreground=True,
        wishes=wishes,
        outbound=_outbound(values),
        namespace=_namespace(collected, directory),
        binds_later=api_socket is not None,
    )
    return Asked(options, network[GUEST], ready_fd, exit_fd, api_socket, "enable-sandbox" in flags)


def _namespace(collected: _Collected, directory: Path) -> Namespace:
    flags, values, words = collected.flags, collected.values, collected.words
    if not words:
        raise UsageError("whose namespace? A process ID, or a path with '--netns-type=path', is expected")
    if len(words) > 2:
        raise UsageError(f"extra argument '{words[2]}': a namespace and an interface's name are expected")
    pid = path = None
    match values.get("netns-type", "pid"):
        case "pid":
            pid = process(words[0])
        case "path":
            path = absolute_path("--netns-type=path", words[0], directory)
        case other:
            raise invalid("--netns-type", other, "'pid' or 'path' is expected")
    mac = None
    if "macaddress" in values:
        mac = addresses.mac_address("--macaddress", values["macaddress"])
        if mac == HOST_MAC:
            raise UsageError(f"option '--macaddress {values['macaddress']}': this is the address of the host's side")
        if "configure" not in flags:
            raise UsageError(f"option '--macaddress {values['macaddress']}' is for '--configure', which is not given")
    user_path = values.get("userns-path")
    return Namespace(
        pid=pid,
        path=path,
        user_path=absolute_path("--userns-path", user_path, directory) if user_path is not None else None,
        quits=False,
        interface=addresses.interface_name("TAPNAME", words[1]) if len(words) > 1 else DEFAULT_INTERFACE,
        mac=mac,
        configures="configure" in flags,
        copies_addresses=False,
        copies_routes=False,
        splices=False,
    )


def _wishes(flags: set[str], values: dict[str, str], network: IPv4Network) -> Wishes:
    guests = [WishedAddress(network[GUEST], network.prefixlen)]
    hosts: list[IPAddress] = [network[HOST]]
    nameservers: list[IPAddress] = [network[NAMESERVER]]
    closed: list[IPNetwork] = [network]
    has_ipv6 = "enable-ipv6" in flags
    if has_ipv6:
        closed.append(IPV6_NETWORK)
        guests.append(WishedAddress(GUEST_IPV6, IPV6_NETWORK.prefixlen))
        hosts.append(HOST_IPV6)
        nameservers.append(NAMESERVER_IPV6)
    return Wishes(
        ipv6=has_ipv6,
        mtu_bytes=_mtu("--mtu", values["mtu"]) if "mtu" in values else DEFAULT_MTU_BYTES,
        addresses=tuple(guests),
        gateways=tuple(hosts),
        dns_forwards=() if "disable-dns" in flags else tuple(nameservers),
        maps_gateway="disable-host-loopback" not in flags,
        closed=tuple(closed),
    )


def _network(option: str, value: str) -> IPv4Network:
    text, slash, prefix_text = value.partition("/")
    base, prefix_length = address(text), number(prefix_text)
    if not slash or not isinstance(base, IPv4Address) or prefix_length is None:
        raise invalid(option, value, f"an IPv4 network as in {DEFAULT_CIDR} is expected")
    if not 1 <= prefix_length <= LONGEST_PREFIX:
        raise invalid(option, value, f"a prefix length from 1 to {LONGEST_PREFIX} is expected")
    network = IPv4Network((base, prefix_length), strict=False)
    if network.network_address != base:
        raise invalid(option, value, f"this is an address of the network {network}")
    if not addresses.is_interfaces(network[GUEST]) or network.is_loopback:
        raise invalid(option, value, "no interface can have an address of this network")
    return network


def _mtu(option: str, value: str) -> int:
    mtu_bytes = number(value)
    if mtu_bytes is None or not MINIMUM_MTU_BYTES <= mtu_bytes <= LARGEST_MTU_BYTES:
        raise invalid(option, value, f"{MINIMUM_MTU_BYTES} to {LARGEST_MTU_BYTES} is expected")
    return min(mtu_bytes, LINK_MTU_BYTES)


def _descriptor(option: str, values: dict[str, str]) -> int | None:
    value = values.get(option.removeprefix("--"))
    return descriptor(option, value) if value is not None else None


def _outbound(values: dict[str, str]) -> Outbound:
    ipv4, ipv4_interface = _leaving("outbound-addr", values, 4)
    ipv6, ipv6_interface = _leaving("outbound-addr6", values, 6)
    return Outbound(
        ipv4 if isinstance(ipv4, IPv4Address) else None,
        ipv6 if isinstance(ipv6, IPv6Address) else None,
        ipv4_interface,
        ipv6_interface,
    )


def _leaving(key: str, values: dict[str, str], version: int) -> tuple[IPAddress | None, str | None]:
    """An address of the family, or an interface's name."""
    if key not in values:
        return None, None
    option, value = f"--{key}", values[key]
    if address(value) is None:
        return None, addresses.interface_name(option, value)
    given = addresses.unicast_address(option, value)
    if given.version != version:
        raise invalid(option, value, f"an IPv{version} address, or an interface's name, is expected")
    return given, None
