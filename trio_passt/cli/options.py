"""argv → `Options`: what the user asked for, checked as far as that is possible without looking at the host.

Given twice, the later one of an option wins (so that a wrapper's user can overrule it), except those that may be
repeated, which add up.

A namespace (`Mode.NAMESPACE`) is the guest of the same program, with some options more and some less.  What differs
otherwise are defaults: DHCP tells no nameservers, for the namespace has the host's resolv.conf, and ports are forwarded
automatically.  UDP ports are automatic on their own there: those that would follow TCP's are found when they are used.
"""

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from attrs import field, frozen, mutable

from trio_passt.cli import addresses
from trio_passt.cli.getopt import scan
from trio_passt.cli.guest import dns_address, dns_server, domain_name, network_boot, search_list
from trio_passt.cli.mode import Mode
from trio_passt.cli.namespace import namespace, namespace_path
from trio_passt.cli.option_table import (
    MINIMUM_IPV6_MTU_BYTES,
    MINIMUM_LOG_SIZE_BYTES,
    MINIMUM_MTU_BYTES,
    options,
)
from trio_passt.cli.ports import Ports, follow, parse_automatic_ports, parse_ports
from trio_passt.cli.privileges import run_as
from trio_passt.cli.values import UsageError, absolute_path, descriptor, invalid, number
from trio_passt.config import (
    DEFAULT_MTU_BYTES,
    HOST_MAC,
    LOG_SIZE_BYTES,
    Attachment,
    AutomaticPorts,
    IPAddress,
    LogLevel,
    Namespace,
    NetworkBoot,
    Outbound,
    PortForward,
    Protocol,
    RunAs,
    Services,
    Transports,
    WishedAddress,
    Wishes,
)
from trio_passt.host.ephemeral import USUAL

SOCKET_PATH_BYTES = 107
"""sun_path of unix(7), less its terminating NUL."""

_PER_FAMILY = {
    "gateway": addresses.unicast_address,
    "outbound": addresses.unicast_address,
    "dns-forward": dns_address,
    "dns-host": dns_address,
    "map-host-loopback": addresses.unicast_or_none,
    "map-guest-addr": addresses.unicast_or_none,
}
"""Options that may be given once for each family, and what their values are."""

_OPPOSITES = {
    "dhcp-dns": "no-dhcp-dns",
    "no-dhcp-dns": "dhcp-dns",
    "dhcp-search": "no-dhcp-search",
    "no-dhcp-search": "dhcp-search",
    "config-net": "no-config-net",
    "no-config-net": "config-net",
}
"""Flags of which the later one counts."""

_DEFAULT_FLAGS = {Mode.VM: frozenset[str](), Mode.NAMESPACE: frozenset({"no-dhcp-dns", "no-dhcp-search"})}
"""What is as if it had been given."""

_PORTS = ("tcp-ports", "udp-ports", "tcp-ns", "udp-ns")


class Show(Enum):
    """What `--help` and `--version` ask for instead of a daemon."""

    HELP = "help"
    VERSION = "version"


@frozen
class Options:
    """What was asked for.  Paths are absolute; `forwards` include the UDP ports that follow TCP.

    A `namespace` is the guest, in place of an `attachment`; only then there are `forwards_to_host`, and `automatic`.
    `binds_later`: somebody will ask for ports while the daemon runs.
    """

    attachment: Attachment = field(factory=Attachment)
    foreground: bool = False
    one_off: bool = False
    pcap: Path | None = None
    pid_file: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    wishes: Wishes = field(factory=Wishes)
    forwards: tuple[PortForward, ...] = ()
    outbound: Outbound = field(factory=Outbound)
    freebind: bool = False
    log_file: Path | None = None
    log_size_bytes: int = LOG_SIZE_BYTES
    run_as: RunAs | None = None
    namespace: Namespace | None = None
    forwards_to_host: tuple[PortForward, ...] = ()
    automatic: AutomaticPorts = field(factory=AutomaticPorts)
    binds_later: bool = False


@mutable
class _Collected:
    """Option by option, before what depends on several of them is decided."""

    flags: set[str] = field(factory=set)
    paths: dict[str, Path] = field(factory=dict)
    names: dict[str, str] = field(factory=dict)
    per_family: dict[tuple[str, int], IPAddress] = field(factory=dict)
    fd: int | None = None
    log_size_bytes: int = LOG_SIZE_BYTES
    run_as: RunAs | None = None
    mtu_bytes: int = DEFAULT_MTU_BYTES
    host_mac: bytes = HOST_MAC
    addresses: list[WishedAddress] = field(factory=list)
    netmask_bits: int | None = None
    dns: list[IPAddress | None] = field(factory=list)
    search: list[tuple[str, ...]] = field(factory=list)
    boot: NetworkBoot | None = None
    ports: dict[str, list[str]] = field(factory=dict)
    ns_mac: bytes | None = None
    others: list[str] = field(factory=list)
    """The words that are no options."""

    def of_each_family(self, key: str) -> tuple[IPAddress, ...]:
        """What was given for this option, IPv4 before IPv6."""
        both = (self.per_family.get((key, version)) for version in (4, 6))
        return tuple(address for address in both if address is not None)


def parse_options(
    words: Sequence[str], directory: Path, ephemeral: range = USUAL, mode: Mode = Mode.VM
) -> Options | Show:
    """What `words` (argv without the program's name) ask for; relative paths start at `directory`.

    Options act in order: the first of `--help` and `--version` ends the matter unless an error came before
    it.  `ephemeral` are the ports that are not among "all".  Raises `UsageError`, whose text names the option and the
    value.
    """
    collected = _Collected(flags=set(_DEFAULT_FLAGS[mode]))
    for given in scan(options(mode), words, permutes=mode is Mode.VM):
        if isinstance(given, str):
            if mode is Mode.VM:
                raise UsageError(f"extra argument '{given}': only options are expected")
            collected.others.append(given)
        elif given.option.key in ("help", "version"):
            return Show(given.option.key)
        elif given.value is None:
            _collect_flag(collected, given.option.key)
        else:
            _collect(collected, given.option.key, given.value, directory)
    _refuse_contradictions(collected)
    return _decide(collected, ephemeral, mode)


def _collect_flag(collected: _Collected, key: str) -> None:
    collected.flags.discard(_OPPOSITES.get(key, ""))
    collected.flags.add(key)


def _collect(collected: _Collected, key: str, value: str, directory: Path) -> None:
    option = f"--{key}"
    match key:
        case "socket" | "pcap" | "pid" | "log-file":
            collected.paths[key] = absolute_path(option, value, directory)
            if key == "socket":
                check_socket_path(option, collected.paths[key])
        case "fd":
            collected.fd = _descriptor(option, value)
        case "log-size":
            collected.log_size_bytes = _log_size(option, value)
        case "runas":
            collected.run_as = run_as(option, value)
        case "tcp-ports" | "udp-ports" | "tcp-ns" | "udp-ns":
            collected.ports.setdefault(key, []).append(value)  # they are judged together, at the end
        case "netns":
            collected.paths[key] = namespace_path(option, value, directory)
        case "userns":
            collected.paths[key] = absolute_path(option, value, directory)
        case _:
            _collect_wish(collected, option, key, value)


def _collect_wish(collected: _Collected, option: str, key: str, value: str) -> None:
    """What the guest gets, and how it is connected."""
    match key:
        case "mtu":
            collected.mtu_bytes = _mtu(option, value)
        case "hostname" | "fqdn":
            collected.names[key] = domain_name(option, value)
        case "interface" | "outbound-if4" | "outbound-if6" | "ns-ifname":
            collected.names[key] = addresses.interface_name(option, value)
        case "address":
            collected.addresses.append(addresses.wished_address(option, value))
        case "netmask":
            collected.netmask_bits = addresses.netmask_bits(option, value)
        case "mac-addr":
            collected.host_mac = addresses.mac_address(option, value)
        case "ns-mac-addr":
            collected.ns_mac = addresses.mac_address(option, value)
        case "dns":
            collected.dns.append(dns_server(option, value))
        case "search":
            collected.search.append(search_list(option, value))
        case "dhcp-boot":
            collected.boot = network_boot(option, value)
        case _:
            _collect_per_family(collected, option, key, value)


def _collect_per_family(collected: _Collected, option: str, key: str, value: str) -> None:
    """One address for each family, or the word "none", which takes back what was said before and the default."""
    address = _PER_FAMILY[key](option, value)
    if address is not None:
        collected.per_family[key, address.version] = address
        return
    for version in (4, 6):
        collected.per_family.pop((key, version), None)
    if key == "map-host-loopback":
        collected.flags.add("no-map-gw")


def check_socket_path(option: str, path: Path) -> None:
    """A socket's path has its limit.  Raises `UsageError`."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        reason = f"{length} bytes, where the absolute path of a UNIX socket has {SOCKET_PATH_BYTES} at most"
        raise invalid(option, str(path), reason)


def _descriptor(option: str, value: str) -> int:
    fd = descriptor(option, value)
    if fd in (1, 2):
        raise invalid(option, value, "this is where messages go (standard output, standard error)")
    return fd


def _mtu(option: str, value: str) -> int:
    mtu_bytes = number(value)
    if mtu_bytes is None or not (mtu_bytes == 0 or MINIMUM_MTU_BYTES <= mtu_bytes <= DEFAULT_MTU_BYTES):
        allowed = f"{MINIMUM_MTU_BYTES} to {DEFAULT_MTU_BYTES} is expected, or 0 to tell the guest none"
        raise invalid(option, value, allowed)
    return mtu_bytes


def _log_size(option: str, value: str) -> int:
    size_bytes = number(value)
    if size_bytes is None or size_bytes < MINIMUM_LOG_SIZE_BYTES:
        raise invalid(option, value, f"a number of bytes is expected, {MINIMUM_LOG_SIZE_BYTES} or more")
    return size_bytes


def _refuse_contradictions(collected: _Collected) -> None:
    given: dict[str, str] = {flag: f"'--{flag}'" for flag in collected.flags}
    if "socket" in collected.paths:
        given["socket"] = f"'--socket {collected.paths['socket']}'"
    if collected.fd is not None:
        given["fd"] = f"'--fd {collected.fd}'"
    if "userns" in collected.paths:
        given["userns"] = f"'--userns {collected.paths['userns']}'"
    for one, other in (
        ("ipv4-only", "ipv6-only"),
        ("socket", "fd"),
        ("debug", "quiet"),
        ("trace", "quiet"),
        ("userns", "netns-only"),
        ("host-lo-to-ns-lo", "no-splice"),
    ):
        if one in given and other in given:
            raise UsageError(f"options {given[one]} and {given[other]} contradict each other")
    if "ipv6-only" in given and 0 < collected.mtu_bytes < MINIMUM_IPV6_MTU_BYTES:
        raise UsageError(
            f"options '--ipv6-only' and '--mtu {collected.mtu_bytes}' contradict each other:"
            f" IPv6 needs {MINIMUM_IPV6_MTU_BYTES} bytes"
        )
    _refuse_shared_paths(collected.paths)
    if None in collected.dns and len(set(collected.dns)) > 1:
        server = next(address for address in collected.dns if address is not None)
        raise UsageError(f"options '--dns none' and '--dns {server}' contradict each other")
    if () in collected.search and any(collected.search):
        domains = next(" ".join(names) for names in collected.search if names)
        raise UsageError(f"options '--search none' and '--search {domains}' contradict each other")


def _refuse_shared_paths(paths: dict[str, Path]) -> None:
    """One file can't be two things."""
    first: dict[str, str] = {}
    for key, path in paths.items():
        other = first.setdefault(os.path.normpath(path), key)
        if other != key:
            raise UsageError(f"options '--{other} {paths[other]}' and '--{key} {path}' contradict each other")


def _decide(collected: _Collected, ephemeral: range, mode: Mode) -> Options:
    flags, paths = collected.flags, collected.paths
    wishes = _wishes(collected)
    addresses.check_together(wishes)
    guest = None
    if mode is Mode.NAMESPACE:
        guest = namespace(collected.others, flags, paths, collected.names.get("ns-ifname"), collected.ns_mac)
        _refuse_one_mac(collected)
    forwarded, to_host = _ports(collected, ephemeral, mode)
    return Options(
        attachment=Attachment(paths.get("socket"), collected.fd),
        foreground="foreground" in flags or (guest is not None and guest.is_new),
        one_off="one-off" in flags or collected.fd is not None,
        pcap=paths.get("pcap"),
        pid_file=paths.get("pid"),
        log_level=_log_level(flags),
        wishes=wishes,
        forwards=forwarded.forwards,
        outbound=_outbound(collected),
        freebind="freebind" in flags,
        log_file=paths.get("log-file"),
        log_size_bytes=collected.log_size_bytes,
        run_as=collected.run_as,
        namespace=guest,
        forwards_to_host=to_host.forwards,
        automatic=AutomaticPorts(forwarded.automatic, to_host.automatic),
    )


def _refuse_one_mac(collected: _Collected) -> None:
    """Both ends of a cable can't be one."""
    if collected.ns_mac == collected.host_mac:
        text = collected.host_mac.hex(":")
        raise UsageError(f"option '--ns-mac-addr {text}': this is the address of the host's side (see '--mac-addr')")


def _log_level(flags: set[str]) -> LogLevel:
    chosen = (level for level in (LogLevel.TRACE, LogLevel.DEBUG, LogLevel.QUIET) if level.value in flags)
    return next(chosen, LogLevel.INFO)


def _ports(collected: _Collected, ephemeral: range, mode: Mode) -> tuple[Ports, Ports]:
    """What is forwarded to the guest, and from it to the host."""
    if mode is Mode.VM:
        return Ports(_forwards(collected, ephemeral)), Ports()
    tcp, udp, tcp_ns, udp_ns = (
        parse_automatic_ports(
            f"--{key}",
            Protocol.TCP if key.startswith("tcp") else Protocol.UDP,
            collected.ports.get(key, ["auto"]),
            ephemeral=ephemeral,
            only_loopback=key.endswith("-ns"),
        )
        for key in _PORTS
    )
    return _both(tcp, udp), _both(tcp_ns, udp_ns)


def _both(one: Ports, other: Ports) -> Ports:
    return Ports(one.forwards + other.forwards, one.automatic + other.automatic)


def _forwards(collected: _Collected, ephemeral: range) -> tuple[PortForward, ...]:
    ports = collected.ports
    tcp = parse_ports("--tcp-ports", Protocol.TCP, ports.get("tcp-ports", []), ephemeral=ephemeral)
    if "udp-ports" not in ports:
        return tcp if "no-tcp" in collected.flags else tcp + follow(tcp)
    return tcp + parse_ports("--udp-ports", Protocol.UDP, ports["udp-ports"], ephemeral=ephemeral)


def _outbound(collected: _Collected) -> Outbound:
    return Outbound(
        ipv4_address=collected.per_family.get(("outbound", 4)),  # type: ignore[arg-type]
        ipv6_address=collected.per_family.get(("outbound", 6)),  # type: ignore[arg-type]
        ipv4_interface=collected.names.get("outbound-if4"),
        ipv6_interface=collected.names.get("outbound-if6"),
    )


def _wishes(collected: _Collected) -> Wishes:
    flags, names = collected.flags, collected.names
    servers = tuple(dict.fromkeys(address for address in collected.dns if address is not None))
    domains = tuple(dict.fromkeys(name for given in collected.search for name in given))
    interface = names.get("interface")
    return Wishes(
        ipv4="ipv6-only" not in flags,
        ipv6="ipv4-only" not in flags,
        mtu_bytes=collected.mtu_bytes,
        hostname=names.get("hostname"),
        fqdn=names.get("fqdn"),
        boot=collected.boot,
        dns_forwards=collected.of_each_family("dns-forward"),
        dns_hosts=collected.of_each_family("dns-host"),
        addresses=_without_repetitions(collected.addresses),
        netmask_bits=collected.netmask_bits,
        gateways=collected.of_each_family("gateway"),
        interface_ipv4=interface or names.get("outbound-if4"),
        interface_ipv6=interface or names.get("outbound-if6"),
        host_mac=collected.host_mac,
        dns_servers=servers if collected.dns else None,
        search=domains if collected.search else None,
        tells_dns="no-dhcp-dns" not in flags,
        tells_search="no-dhcp-search" not in flags,
        maps_gateway="no-map-gw" not in flags,
        loopback_addresses=collected.of_each_family("map-host-loopback"),
        own_addresses=collected.of_each_family("map-guest-addr"),
        services=Services(
            dhcp="no-dhcp" not in flags,
            dhcpv6="no-dhcpv6" not in flags,
            ndp="no-ndp" not in flags,
            router_advertisements="no-ra" not in flags and "no-ndp" not in flags,
        ),
        transports=Transports(tcp="no-tcp" not in flags, udp="no-udp" not in flags, icmp="no-icmp" not in flags),
    )


def _without_repetitions(wished: Sequence[WishedAddress]) -> tuple[WishedAddress, ...]:
    """In the order of their first mention; the last mention's prefix counts."""
    return tuple({one.address: one for one in wished}.values())
