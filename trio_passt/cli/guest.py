"""Values of the options about what the guest is told: names, nameservers, network boot."""

import re
from ipaddress import IPv4Address, IPv6Address

from trio_passt.cli.addresses import NONE, is_interfaces
from trio_passt.cli.values import address, invalid
from trio_passt.config import MAX_NAME_CHARACTERS, NetworkBoot
from trio_passt.host.resolv import is_domain

_BOOT_FILE_CHARACTERS, _BOOT_SERVER_CHARACTERS = 127, 63
"""What the fields of a DHCP message hold (RFC 2131 section 2), less the zero at their end."""

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)


def domain_name(option: str, value: str) -> str:
    """A host name, with its domain or without (RFC 1123 section 2.1); a dot at its end is taken off."""
    name = value.removesuffix(".")
    if not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise invalid(option, value, "a host name is letters, digits and hyphens, in parts of 1 to 63 between dots")
    if len(name) > MAX_NAME_CHARACTERS:
        raise invalid(option, value, f"a host name has {MAX_NAME_CHARACTERS} characters at most")
    return name


def dns_address(option: str, value: str) -> IPv4Address | IPv6Address:
    """The address of a nameserver, or of what stands for one."""
    given = address(value)
    if given is None:
        raise invalid(option, value, "an IPv4 or IPv6 address is expected")
    is_loopback_for_guest = option == "--dns-forward" and given.is_loopback
    if not is_interfaces(given) or is_loopback_for_guest:
        raise invalid(option, value, "no nameserver can have this address" + " for a guest" * is_loopback_for_guest)
    return given


def network_boot(option: str, value: str) -> NetworkBoot:
    """FILE[,NAME[,ADDRESS]]; NAME may be empty.  A file's name can't contain a comma."""
    file, _, rest = value.partition(",")
    name, has_address, server_text = rest.partition(",")
    if not file:
        raise invalid(option, value, "the file's name is missing")
    for text, limit in ((file, _BOOT_FILE_CHARACTERS), (name, _BOOT_SERVER_CHARACTERS)):
        if not (text.isascii() and text.isprintable()) or len(text) > limit:
            raise invalid(option, value, f"'{text}' is more than {limit} characters, or not all printable ASCII")
    server = address(server_text) if has_address else None
    if has_address and not (isinstance(server, IPv4Address) and is_interfaces(server) and not server.is_loopback):
        raise invalid(option, value, f"'{server_text}' is not the IPv4 address of a server")
    return NetworkBoot(file, name, server if isinstance(server, IPv4Address) else None)


def dns_server(option: str, value: str) -> IPv4Address | IPv6Address | None:
    """The address of a nameserver of the host's, which may be the host itself; `None` for the word "none"."""
    return None if value == NONE else dns_address(option, value)


def search_list(option: str, value: str) -> tuple[str, ...]:
    """Domains, separated by blanks; none for the word "none" (one that is called so is written "none.")."""
    if value == NONE:
        return ()
    names = tuple(word.removesuffix(".") for word in value.split())
    for name in names:
        if not is_domain(name):
            raise invalid(option, value, f"'{name}' is not a domain name")
    if not names:
        raise invalid(option, value, "a list of domains is expected, or 'none'")
    return names
