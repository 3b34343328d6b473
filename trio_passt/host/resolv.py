"""resolv.conf(5) → what the guest is told, and what is done with what it then asks.

A nameserver is told as it is, unless the guest would not reach it there: a loopback address, the host's own
address (which is the guest's own, too), and the gateway's (which the guest's packets to would end at the
host's loopback). Each of these is told as the gateway's address, with a `DnsForward` from there to the real
one.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from trio_passt.config import DnsForward, GuestIPv4, GuestIPv6, Resolvers

MAXIMUM_NAME_LENGTH = 253
"""RFC 1035 section 2.3.4: 255 octets on the wire, which is two more than as text."""

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


@frozen
class Nameserver:
    """An address, and the zone (interface) that a link-local one was written with."""

    address: IPv4Address | IPv6Address
    zone: str | None = None


@frozen
class ResolvConf:
    """What the file says and is understood: nameservers and search list in order, without duplicates."""

    nameservers: tuple[Nameserver, ...] = ()
    search: tuple[str, ...] = ()


@frozen
class GuestResolvers:
    """What the guest is told, and the forwards that make it true."""

    resolvers: Resolvers
    forwards: tuple[DnsForward, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Parse as the C library does; never raises, what can't be understood is left out.

    Keywords start a line; `#` and `;` start a comment there, and, more tolerantly, before any later word.
    The last of `search` and `domain` counts.
    """
    nameservers: list[Nameserver] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        if line[:1].isspace():
            continue
        words = _words(line)
        match words[:1]:
            case ["nameserver"] if len(words) > 1 and (nameserver := _nameserver(words[1])):
                nameservers.append(nameserver)
            case ["domain"] if len(words) > 1:
                search = _domains(words[1:2])
            case ["search"]:
                search = _domains(words[1:])
            case _:
                pass
    return ResolvConf(tuple(dict.fromkeys(nameservers)), search)


def resolvers_for_guest(conf: ResolvConf, ipv4: GuestIPv4 | None, ipv6: GuestIPv6 | None) -> GuestResolvers:
    """The nameservers of the families that are on; at most one behind each gateway's address: the first.

    A link-local nameserver is told only if it is on the interface that the guest's IPv6 is taken from: on
    another, there is no way to say so to the guest.
    """
    told4: list[IPv4Address] = []
    told6: list[IPv6Address] = []
    forwards: dict[IPv4Address | IPv6Address, DnsForward] = {}
    for nameserver in conf.nameservers:
        match nameserver.address:
            case IPv4Address() as address if ipv4 is not None:
                if _needs_forward(address, ipv4):
                    forwards.setdefault(ipv4.gateway, DnsForward(ipv4.gateway, _reachable(address)))
                    address = ipv4.gateway
                told4.append(address)
            case IPv6Address() as address if ipv6 is not None and _same_link(nameserver, ipv6):
                if _needs_forward(address, ipv6):
                    forwards.setdefault(ipv6.gateway, DnsForward(ipv6.gateway, _reachable(address)))
                    address = ipv6.gateway
                told6.append(address)
            case _:
                pass
    resolvers = Resolvers(tuple(dict.fromkeys(told4)), tuple(dict.fromkeys(told6)), conf.search)
    return GuestResolvers(resolvers, tuple(forwards.values()))


def _needs_forward(address: IPv4Address | IPv6Address, guest: GuestIPv4 | GuestIPv6) -> bool:
    return address.is_loopback or address.is_unspecified or address in (guest.address, guest.gateway)


def _reachable(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The C library takes 0.0.0.0 and :: as this host."""
    if not address.is_unspecified:
        return address
    return IPv4Address("127.0.0.1") if address.version == 4 else IPv6Address("::1")


def _same_link(nameserver: Nameserver, guest: GuestIPv6) -> bool:
    return not nameserver.address.is_link_local or nameserver.zone == guest.interface


def _words(line: str) -> list[str]:
    words = []
    for word in line.split():
        if word[0] in "#;":
            break
        words.append(word)
    return words


def _nameserver(word: str) -> Nameserver | None:
    text, _, zone = word.partition("%")
    try:
        address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return Nameserver(address, zone or None)


def _domains(words: Iterable[str]) -> tuple[str, ...]:
    """Names that DNS can carry, without the final dot; systemd's `search .` is the root, and says nothing."""
    names = (word.removesuffix(".") for word in words)
    return tuple(dict.fromkeys(name for name in names if _is_domain(name)))


def _is_domain(name: str) -> bool:
    return len(name) <= MAXIMUM_NAME_LENGTH and all(_LABEL.fullmatch(label) for label in name.split("."))
