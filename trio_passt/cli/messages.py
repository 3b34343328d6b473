"""What the program says to its user at the start, as lines: pure."""

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from attrs import evolve

from trio_passt.cli.getopt import Option, Section
from trio_passt.cli.mode import PROGRAM, Mode
from trio_passt.cli.option_table import sections
from trio_passt.cli.ports import Where
from trio_passt.config import Config, GuestNetwork, Namespace, Outbound, PortForward, Protocol, Resolvers
from trio_passt.host import port_ranges
from trio_passt.host.port_ranges import ALL_PORTS

_WIDTH = 80
_HELP_COLUMN = 26
_MOST_RANGES = 16


_FORMS = {
    Mode.VM: ("[OPTION]...",),
    Mode.NAMESPACE: ("[OPTION]... [COMMAND [ARG]...]", "[OPTION]... PID", "[OPTION]... --netns PATH|NAME"),
}
"""What can be said after the program's name."""

_PURPOSE = {
    Mode.VM: "Connect a QEMU guest to the network from an unprivileged process: the guest gets the host's own"
    " addresses, and its connections become ordinary sockets.",
    Mode.NAMESPACE: "Connect a network namespace to the network from an unprivileged process: the guest in there gets"
    " the host's own addresses, and its connections become ordinary sockets. COMMAND, by default the user's shell, runs"
    " in a new namespace.",
}


def help_text(mode: Mode) -> str:
    """The `--help` page: usage and one paragraph an option."""
    return help_page(mode.value, _FORMS[mode], _PURPOSE[mode], sections(mode))


def help_page(program: str, forms: Sequence[str], purpose: str, options: Sequence[Section]) -> str:
    """The same for any program, which may be called in several forms."""
    words = ["Usage:"] + ["      "] * (len(forms) - 1)
    lines = [f"{word} {program} {form}" for word, form in zip(words, forms, strict=True)]
    lines += ["", *textwrap.wrap(purpose, _WIDTH - 1)]
    for section in options:
        lines += ["", f"{section.title}:"]
        for option in section.options:
            lines += _help_of(option)
    return "\n".join(lines) + "\n"


def version_text(version: str, mode: Mode = Mode.VM) -> str:
    """The `--version` page."""
    return f"{mode.value} {version}\n"


def startup_message(config: Config, socket_path: Path | None, machine: str, interface: str | None = None) -> str:
    """What the guest will get, how to reach it, and how to start it.

    `socket_path` is where QEMU connects (`None` with `--fd`, where somebody else has started it); `machine`
    is uname's.  For a namespace, which has our `interface`, it is less, for somebody wants to go on in there.
    """
    if config.namespace is not None:
        return _namespace_message(config, config.namespace, interface or "the interface")
    lines = [f"{PROGRAM}: the guest gets"]
    lines += _indented([*_network(config.network), *_outbound(config.outbound), *_off(config.network)])
    lines += ["Ports of this host that are forwarded to the guest"]
    lines += _indented(_forwards(config.forwards) or ["none"])
    lines += ["Addresses at which the guest reaches this host"]
    lines += _indented(_mapped(config.network) or ["none"])
    if socket_path is not None:
        user = f" as root or as user {config.run_as.uid}, whose the socket is," if config.run_as else ""
        lines += [f"Start the guest{user} with", f"    {_qemu(socket_path, machine)}"]
    return "\n".join(lines) + "\n"


def _namespace_message(config: Config, namespace: Namespace, interface: str) -> str:
    network = config.network
    told = network if config.wishes.tells_dns else evolve(network, resolvers=Resolvers())
    if namespace.configures and namespace.copies_routes and network.ipv6 is not None and network.ipv6.host_gateway:
        told = evolve(told, ipv6=evolve(network.ipv6, gateway=network.ipv6.host_gateway))  # by the host's own routes
    lines = [f"{PROGRAM}: the namespace gets"]
    lines += _indented([f"Link     {interface}" + (", set up" if namespace.configures else "")])
    lines += _indented(line for line in _network(told) if line != "DNS      none")
    lines += _indented([*_outbound(config.outbound), *_off(network)])
    for title, parts in (
        ("Ports of this host that are forwarded to it", _with_automatic(config.forwards, config.automatic.to_guest)),
        ("Ports of this host at its loopback", _with_automatic(config.forwards_to_host, config.automatic.to_host)),
        ("Addresses at which it reaches this host", _mapped(network)),
    ):
        lines.append(f"{title}: {', '.join(parts) or 'none'}")
    return "\n".join(lines) + "\n"


def _with_automatic(forwards: Sequence[PortForward], candidates: Sequence[PortForward]) -> list[str]:
    """As parts of one line, with the automatic ones, as far as they are not of all others."""
    parts = [" ".join(line.split()) for line in _forwards(forwards)]
    for (protocol, where), group in _grouped(candidates).items():
        text = f"{protocol.name} auto"
        if sum(len(forward.ports) for forward in group) <= len(ALL_PORTS) // 2:
            text += f" of {', '.join(joined_ranges(group))}"
        else:
            spoken_of = (forward.ports for forward in (*forwards, *group) if forward.protocol is protocol)
            excluded = port_ranges.others(spoken_of)
            text += f" but {', '.join(map(port_ranges.text, excluded))}" if excluded else ""
        parts.append(text + (f" on {where}" if where else ""))
    return parts


def _grouped(forwards: Iterable[PortForward]) -> dict[tuple[Protocol, str], list[PortForward]]:
    """By protocol, and what is bound of the host."""
    groups: dict[tuple[Protocol, str], list[PortForward]] = {}
    for forward in forwards:
        groups.setdefault((forward.protocol, str(Where(forward.address, forward.interface))), []).append(forward)
    return groups


def _help_of(option: Option) -> Iterator[str]:
    short = f"-{option.short}, " if option.short else "    "
    left = f"  {short}--{option.key}" + (f" {option.argument}" if option.argument else "")
    aliases = [f"--{name}" for name in option.names[1:]]
    text = option.help + (f" Also {', '.join(aliases)}." if aliases else "")
    paragraph = textwrap.wrap(text, _WIDTH - _HELP_COLUMN, break_on_hyphens=False)
    if len(left) + 2 > _HELP_COLUMN:
        yield left
        left = ""
    for line in paragraph:
        yield f"{left:{_HELP_COLUMN}}{line}"
        left = ""


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _network(network: GuestNetwork) -> list[str]:
    lines = []
    if (ipv4 := network.ipv4) is not None:
        mask = IPv4Network((0, ipv4.prefix_length)).netmask
        lines.append(
            f"IPv4     {ipv4.address}/{ipv4.prefix_length} (mask {mask}), gateway {ipv4.gateway}{_from(ipv4.interface)}"
        )
        lines += [f"         {other}" for other in ipv4.others]
    if (ipv6 := network.ipv6) is not None:
        address = "its own link-local address" if ipv6.address.is_link_local else f"{ipv6.address}/{ipv6.prefix_length}"
        lines.append(f"IPv6     {address}, gateway {ipv6.gateway}{_from(ipv6.interface)}")
        lines += [f"         {other}" for other in ipv6.others]
    resolvers = network.resolvers
    lines.append("DNS      " + (", ".join(map(str, [*resolvers.ipv4, *resolvers.ipv6])) or "none"))
    if resolvers.search:
        lines.append("Search   " + " ".join(resolvers.search))
    lines.append(f"MTU      {network.mtu_bytes or 'not told'}")
    return lines + _names(network)


def _names(network: GuestNetwork) -> list[str]:
    """What was set to be told; a host name and what to boot are DHCP's, which is IPv4's."""
    lines = []
    if network.hostname and network.ipv4:
        lines.append(f"Name     {network.hostname}")
    if network.fqdn:
        lines.append(f"FQDN     {network.fqdn}")
    if (boot := network.boot) is not None and network.ipv4:
        name = f" ({boot.server_name})" if boot.server_name else ""
        server = boot.server or network.loopback_ipv4 or network.ipv4.gateway
        lines.append(f"Boot     {boot.file} from {server}{name}")
    return lines


def _outbound(outbound: Outbound) -> list[str]:
    """Where connections leave, if that was set."""
    parts = [
        " ".join([family, *([f"from {address}"] if address else []), *([f"by {interface}"] if interface else [])])
        for family, address, interface in (
            ("IPv4", outbound.ipv4_address, outbound.ipv4_interface),
            ("IPv6", outbound.ipv6_address, outbound.ipv6_interface),
        )
        if address or interface
    ]
    return [f"Leaving  {', '.join(parts)}"] if parts else []


def _off(network: GuestNetwork) -> list[str]:
    """What does not work, since it was switched off."""
    services, transports = network.services, network.transports
    off = [
        name
        for name, is_on in (
            ("TCP", transports.tcp),
            ("UDP", transports.udp),
            ("ICMP echo", transports.icmp),
            ("DHCP", services.dhcp),
            ("DHCPv6", services.dhcpv6),
            ("neighbour discovery", services.ndp),
            ("router advertisements", services.router_advertisements),
        )
        if not is_on
    ]
    return [f"Off      {', '.join(off)}"] if off else []


def _from(interface: str | None) -> str:
    return f" (from {interface})" if interface else " (local mode)"


def _forwards(forwards: Sequence[PortForward]) -> list[str]:
    """One line for each protocol, and what is bound of the host; a long one is cut."""
    lines = []
    for (protocol, where), group in _grouped(forwards).items():
        texts = joined_ranges(group)
        if len(texts) > _MOST_RANGES:
            texts = [*texts[:_MOST_RANGES], f"and {len(texts) - _MOST_RANGES} others"]
        lines.append(f"{protocol.name:8} {', '.join(texts)}" + (f" on {where}" if where else ""))
    return lines


def joined_ranges(forwards: Iterable[PortForward]) -> list[str]:
    """Neighbouring ports as ranges: `22`, `8000-8010`, `2222 -> 22`, `8000-8010 -> 9000-9010`."""
    joined: list[tuple[int, int, int]] = []
    for forward in sorted(forwards, key=lambda forward: forward.first):
        offset = forward.target - forward.first
        if joined and joined[-1][1:] == (forward.first - 1, offset):
            joined[-1] = (joined[-1][0], forward.last, offset)
        else:
            joined.append((forward.first, forward.last, offset))
    texts = []
    for first, last, offset in joined:
        source = port_ranges.text(range(first, last + 1))
        target = port_ranges.text(range(first + offset, last + offset + 1))
        texts.append(source if source == target else f"{source} -> {target}")
    return texts


def _mapped(network: GuestNetwork) -> list[str]:
    lines = [f"{address.seen_by_guest} -> {address.on_host}" for address in network.host_addresses]
    forwards = (f"{forward.seen_by_guest} -> {forward.on_host}" for forward in network.dns_forwards)
    return [*lines, *(f"{line} on ports 53 and 853 (DNS)" for line in forwards if line not in lines)]


def _qemu(socket_path: Path, machine: str) -> str:
    """QEMU's arguments (7.2 or later); a comma in a value of `-netdev` is written twice."""
    path = str(socket_path).replace(",", ",,")
    netdev = f"stream,id=n,server=off,addr.type=unix,addr.path={path}"
    return f"qemu-system-{machine} ... -device virtio-net-pci,netdev=n -netdev {shlex.quote(netdev)}"
