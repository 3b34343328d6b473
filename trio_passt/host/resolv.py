"""resolv.conf(5) → what the guest is told, and what is done with what it then asks.

A nameserver is told as it is, unless the guest would not reach it there: a loopback address, the host's own
address (which is the guest's own, too), and the one that is mapped to the host's loopback, which is the gateway's
unless the operator has set another.  Each of these is told as that mapped address, with a `DnsForward` from there to
the real one; or, if the operator has set an address for it (`--dns-forward`), as that.  With neither they are not told.

In local mode there may be no nameserver yet: then the mapped address is told all the same, so that the guest has
one as soon as the host does.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from trio_passt.config import (
    LOOPBACK,
    MAX_NAME_CHARACTERS,
    DnsForward,
    GuestIPv4,
    GuestIPv6,
    IPAddress,
    Resolvers,
    Wishes,
)
from trio_passt.host.mapping import loopback_address, of_family

NO_WISHES = Wishes()

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


@frozen
class Nameserver:
    """An address, and the zone (interface) that a link-local one was written with."""

    address: IPAddress
    zone: str | None = None


@frozen
class ResolvConf:
    """What the file says and is understood: nameservers and search list in order, without duplicates."""

    nameservers: tuple[Nameserver, ...] = ()
    search: tuple[str, ...] = ()


@frozen
class GuestResolvers:
    """What the guest is told, and the forwards that make it true; `nameservers` as in `GuestNetwork`."""

    resolvers: Resolvers
    forwards: tuple[DnsForward, ...] = ()
    nameservers: tuple[IPAddress, ...] = ()


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


def resolvers_for_guest(
    conf: ResolvConf, ipv4: GuestIPv4 | None, ipv6: GuestIPv6 | None, wishes: Wishes = NO_WISHES
) -> GuestResolvers:
    """The nameservers of the families that are on; at most one behind each gateway's address: the first.

    A link-local nameserver is told only if it is on the interface that the guest's IPv6 is taken from: on
    another, there is no way to say so to the guest.
    """
    told: list[IPAddress] = []
    forwards: list[DnsForward] = []
    nameservers: list[IPAddress] = []
    for guest in (ipv4, ipv6):
        if guest is not None:
            on_host = [address for nameserver in conf.nameservers if (address := _usable(nameserver, guest))]
            family = _of_family(guest, on_host, wishes)
            told += family.told
            forwards += family.forwards
            nameservers += family.nameservers
    told4 = tuple(address for address in told if isinstance(address, IPv4Address))
    told6 = tuple(address for address in told if isinstance(address, IPv6Address))
    return GuestResolvers(Resolvers(told4, told6, conf.search), tuple(forwards), tuple(nameservers))


@frozen
class _FamilyResolvers:
    told: list[IPAddress]
    forwards: list[DnsForward]
    nameservers: list[IPAddress]


def _of_family(guest: GuestIPv4 | GuestIPv6, on_host: Sequence[IPAddress], wishes: Wishes) -> _FamilyResolvers:
    """What one family is told, of its nameservers in order."""
    version = guest.address.version
    set_forward = of_family(wishes.dns_forwards, version)
    set_host = of_family(wishes.dns_hosts, version)
    mapped = loopback_address(guest, wishes)
    at_our_address = set_forward or mapped
    hidden = [address for address in on_host if _needs_forward(address, guest, mapped)]
    told = [address for address in on_host if address not in hidden]
    if at_our_address is not None:
        told = [at_our_address if address in hidden else address for address in on_host]
        if not told and (guest.is_local or set_host):
            told = [at_our_address]
    candidates = on_host if set_forward else [*hidden, *on_host]
    nameserver = set_host or next(map(_reachable, candidates), None)
    forwards = []
    if nameserver is not None and at_our_address is not None and (set_forward or at_our_address in told):
        forwards = [DnsForward(at_our_address, nameserver)]
    return _FamilyResolvers(list(dict.fromkeys(told)), forwards, [] if nameserver is None else [nameserver])


def _usable(nameserver: Nameserver, guest: GuestIPv4 | GuestIPv6) -> IPAddress | None:
    """The address, if a guest with this family can have it asked."""
    if nameserver.address.version != guest.address.version:
        return None
    is_elsewhere = nameserver.address.is_link_local and nameserver.address.version == 6
    return None if is_elsewhere and nameserver.zone != guest.interface else nameserver.address


def _needs_forward(address: IPAddress, guest: GuestIPv4 | GuestIPv6, mapped: IPAddress | None) -> bool:
    return address.is_loopback or address.is_unspecified or address in (guest.address, mapped)


def _reachable(address: IPAddress) -> IPAddress:
    """The C library takes 0.0.0.0 and :: as this host."""
    return LOOPBACK[address.version] if address.is_unspecified else address


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
    return tuple(dict.fromkeys(name for name in names if is_domain(name)))


def is_domain(name: str) -> bool:
    """Whether DNS can carry this name, which has no dot at its end."""
    return len(name) <= MAX_NAME_CHARACTERS and all(_LABEL.fullmatch(label) for label in name.split("."))
