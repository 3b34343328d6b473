"""argv → `Options`: what the user asked for, checked as far as that is possible without looking at the host.

`OPTIONS` is the one table: the scanner, `--help` and the reference read it.  Given twice, the later one of an
option wins (so that a wrapper's user can overrule it), except `-t` and `-u`, which add up.
"""

import os
from collections.abc import Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from attrs import field, frozen, mutable

from trio_passt.cli.getopt import Given, Option, scan
from trio_passt.cli.guest import dns_address, domain_name, network_boot
from trio_passt.cli.ports import follow, parse_ports
from trio_passt.cli.values import UsageError, absolute_path, invalid, number
from trio_passt.config import DEFAULT_MTU_BYTES, Attachment, LogLevel, NetworkBoot, PortForward, Protocol, Wishes

MINIMUM_MTU_BYTES = 68
"""RFC 791: every internet module must be able to forward a datagram of 68 octets without fragmentation."""

MINIMUM_IPV6_MTU_BYTES = 1280
"""RFC 8200 section 5: a link with less can't carry IPv6."""

SOCKET_PATH_BYTES = 107
"""sun_path of unix(7), less its terminating NUL."""

OPTIONS = (
    Option(("foreground",), "f", None, "Don't go into the background."),
    Option(
        ("debug",),
        "d",
        None,
        "Log what happens to every flow.",
    ),
    Option(("quiet",), "q", None, "No start-up message; log warnings and errors only."),
    Option(("stderr",), "e", None, "Accepted for compatibility, without effect."),
    Option(("help",), "h", None, "Print this help and exit."),
    Option(("version",), None, None, "Print the version and exit."),
    Option(("pcap",), "p", "FILE", "Capture the guest's frames, both ways, to FILE in pcap format."),
    Option(("pid",), "P", "FILE", "Write the daemon's process ID to FILE once it is ready; removed at the end."),
    Option(
        ("mtu",),
        "m",
        "BYTES",
        f"MTU told to the guest: {MINIMUM_MTU_BYTES} to {DEFAULT_MTU_BYTES}, or 0 to tell it none."
        f" Below {MINIMUM_IPV6_MTU_BYTES} there is no IPv6. Default: {DEFAULT_MTU_BYTES}.",
    ),
    Option(("hostname",), "H", "NAME", "Host name for the guest, told by DHCP."),
    Option(("fqdn",), None, "NAME", "Fully qualified domain name for the guest, told by DHCP and DHCPv6."),
    Option(
        ("dns-forward",),
        None,
        "ADDRESS",
        "What the guest sends to ADDRESS, ports 53 and 853 of TCP and UDP, goes to the host's nameserver (see"
        " --dns-host). Once for each of IPv4 and IPv6. A nameserver that only the host can reach is told the guest as"
        " ADDRESS.",
    ),
    Option(
        ("dns-host",),
        None,
        "ADDRESS",
        "The host's nameserver for --dns-forward, and for what the guest asks at its gateway's address. Once for each"
        " of IPv4 and IPv6. Default: the first one of /etc/resolv.conf.",
    ),
    Option(
        ("dhcp-boot",),
        None,
        "FILE[,NAME[,ADDRESS]]",
        "For a guest that boots from the network: FILE is a path for TFTP or a URL, NAME and ADDRESS are the server's."
        " Default: no name, and the address at which the guest reaches this host. (Not an option of passt.)",
    ),
    Option(("ipv4-only",), "4", None, "The guest gets IPv4 only."),
    Option(("ipv6-only",), "6", None, "The guest gets IPv6 only."),
    Option(
        ("socket", "socket-path"),
        "s",
        "PATH",
        "UNIX socket for QEMU to connect to. Default: the first free one of /tmp/passt_1.socket to _64.",
    ),
    Option(("fd",), "F", "FD", "Use the connected socket FD, inherited from the caller; implies --one-off."),
    Option(("one-off",), "1", None, "Exit when the first guest disconnects."),
    Option(
        ("tcp-ports",),
        "t",
        "SPEC",
        "Forward TCP ports of the host to the guest; may be repeated. SPEC is 'none' (default), or a comma-"
        "separated list of ports (22), ranges (8000-8010), ports with another target in the guest (2222:22,"
        " 8000-8010:9000-9010) and exclusions (~8005); after ADDRESS/ only that address of the host is bound"
        " (127.0.0.1/22).",
    ),
    Option(
        ("udp-ports",),
        "u",
        "SPEC",
        "The same for UDP. Default: the host's port numbers given with -t, not translated.",
    ),
)


class Show(Enum):
    """What `--help` and `--version` ask for instead of a daemon."""

    HELP = "help"
    VERSION = "version"


@frozen
class Options:
    """What was asked for.  Paths are absolute; `forwards` include the UDP ports that follow TCP."""

    attachment: Attachment = field(factory=Attachment)
    foreground: bool = False
    one_off: bool = False
    pcap: Path | None = None
    pid_file: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    wishes: Wishes = field(factory=Wishes)
    forwards: tuple[PortForward, ...] = ()


@mutable
class _Collected:
    """Option by option, before what depends on several of them is decided."""

    flags: set[str] = field(factory=set)
    paths: dict[str, Path] = field(factory=dict)
    fd: int | None = None
    mtu_bytes: int = DEFAULT_MTU_BYTES
    names: dict[str, str] = field(factory=dict)
    dns: dict[tuple[str, int], IPv4Address | IPv6Address] = field(factory=dict)
    boot: NetworkBoot | None = None
    ports: dict[str, list[str]] = field(factory=dict)


def parse_options(words: Sequence[str], directory: Path) -> Options | Show:
    """What `words` (argv without the program's name) ask for; relative paths start at `directory`.

    Options act in order: the first of `--help` and `--version` ends the matter unless an error came before
    it.  Raises `UsageError`, whose text names the option and the value.
    """
    collected = _Collected()
    for given in scan(OPTIONS, words):
        if isinstance(given, str):
            raise UsageError(f"extra argument '{given}': only options are expected")
        if given.option.key in ("help", "version"):
            return Show(given.option.key)
        _collect(collected, given, directory)
    _refuse_contradictions(collected)
    return _decide(collected)


def _collect(collected: _Collected, given: Given, directory: Path) -> None:
    key, value = given.option.key, given.value
    option = f"--{key}"
    if value is None:
        collected.flags.add(key)
        return
    match key:
        case "socket" | "pcap" | "pid":
            collected.paths[key] = absolute_path(option, value, directory)
            if key == "socket":
                _check_socket_path(option, collected.paths[key])
        case "fd":
            collected.fd = _descriptor(option, value)
        case "mtu":
            collected.mtu_bytes = _mtu(option, value)
        case "hostname" | "fqdn":
            collected.names[key] = domain_name(option, value)
        case "dns-forward" | "dns-host":
            server = dns_address(option, value)
            collected.dns[key, server.version] = server
        case "dhcp-boot":
            collected.boot = network_boot(option, value)
        case _:
            collected.ports.setdefault(key, []).append(value)  # they are judged together, at the end


def _check_socket_path(option: str, path: Path) -> None:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        reason = f"{length} bytes, where the absolute path of a UNIX socket has {SOCKET_PATH_BYTES} at most"
        raise invalid(option, str(path), reason)


def _descriptor(option: str, value: str) -> int:
    fd = number(value)
    if fd is None or fd > 0x7FFFFFFF:
        raise invalid(option, value, "a file descriptor's number is expected")
    if fd in (1, 2):
        raise invalid(option, value, "this is where messages go (standard output, standard error)")
    return fd


def _mtu(option: str, value: str) -> int:
    mtu_bytes = number(value)
    if mtu_bytes is None or not (mtu_bytes == 0 or MINIMUM_MTU_BYTES <= mtu_bytes <= DEFAULT_MTU_BYTES):
        allowed = f"{MINIMUM_MTU_BYTES} to {DEFAULT_MTU_BYTES} is expected, or 0 to tell the guest none"
        raise invalid(option, value, allowed)
    return mtu_bytes


def _ports(key: str, specifications: Sequence[str]) -> tuple[PortForward, ...]:
    protocol = Protocol.TCP if key == "tcp-ports" else Protocol.UDP
    return parse_ports(f"--{key}", protocol, specifications)


def _refuse_contradictions(collected: _Collected) -> None:
    given: dict[str, str] = {flag: f"'--{flag}'" for flag in collected.flags}
    if "socket" in collected.paths:
        given["socket"] = f"'--socket {collected.paths['socket']}'"
    if collected.fd is not None:
        given["fd"] = f"'--fd {collected.fd}'"
    for one, other in (("ipv4-only", "ipv6-only"), ("socket", "fd"), ("debug", "quiet")):
        if one in given and other in given:
            raise UsageError(f"options {given[one]} and {given[other]} contradict each other")
    if "ipv6-only" in given and 0 < collected.mtu_bytes < MINIMUM_IPV6_MTU_BYTES:
        raise UsageError(
            f"options '--ipv6-only' and '--mtu {collected.mtu_bytes}' contradict each other:"
            f" IPv6 needs {MINIMUM_IPV6_MTU_BYTES} bytes"
        )


def _decide(collected: _Collected) -> Options:
    flags, paths = collected.flags, collected.paths
    log_level = LogLevel.INFO
    if "debug" in flags:
        log_level = LogLevel.DEBUG
    elif "quiet" in flags:
        log_level = LogLevel.QUIET
    tcp = _ports("tcp-ports", collected.ports.get("tcp-ports", []))
    udp = _ports("udp-ports", collected.ports["udp-ports"]) if "udp-ports" in collected.ports else follow(tcp)
    return Options(
        attachment=Attachment(paths.get("socket"), collected.fd),
        foreground="foreground" in flags,
        one_off="one-off" in flags or collected.fd is not None,
        pcap=paths.get("pcap"),
        pid_file=paths.get("pid"),
        log_level=log_level,
        wishes=_wishes(collected),
        forwards=tcp + udp,
    )


def _wishes(collected: _Collected) -> Wishes:
    def dns(key: str) -> tuple[IPv4Address | IPv6Address, ...]:
        return tuple(address for (option, _), address in collected.dns.items() if option == key)

    return Wishes(
        ipv4="ipv6-only" not in collected.flags,
        ipv6="ipv4-only" not in collected.flags,
        mtu_bytes=collected.mtu_bytes,
        hostname=collected.names.get("hostname"),
        fqdn=collected.names.get("fqdn"),
        boot=collected.boot,
        dns_forwards=dns("dns-forward"),
        dns_hosts=dns("dns-host"),
    )
