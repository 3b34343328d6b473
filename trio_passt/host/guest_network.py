"""The operator's wishes and the host's network → the guest's network: at start, and each time the host's changes.

Theory of operation
-------------------
`decide` is pure.  At start it takes the host as it is.  Later it knows what the guest was told, and:

- A family that has a default route is as it would be at start; if that is not what was told, the former state is kept
  in mind, because a guest goes by it until it has heard (DHCP clients ask when it is time for them, not when we wish).
- A family that has lost its default route is offline, and what was told remains: the host's network may be back in a
  moment (a lid opened again, a lease renewed), and what flows can go on meanwhile do.  The same if both have: local
  mode is for hosts that have been offline from the start.
- Questions to an address of ours that the guest was told as its nameserver go to the nameserver that the host has now.
"""

from collections.abc import Collection
from typing import TypeVar

from attrs import evolve, frozen

from trio_passt.config import DnsForward, Former, GuestIPv4, GuestIPv6, GuestNetwork, IPAddress, Wishes
from trio_passt.host.network import Host, choose
from trio_passt.host.resolv import ResolvConf, resolvers_for_guest

FORMER_KEPT = 128
"""So many former states of both families are kept in mind.  The guest hears of IPv4 every ten minutes, in which a VPN
may come back many times, with another address each: a guest whose own lease is forgotten renews it with nobody.
"""

_Guest = TypeVar("_Guest", GuestIPv4, GuestIPv6)


@frozen
class Decision:
    """What the guest gets, and what may surprise an operator about it."""

    network: GuestNetwork
    notes: tuple[str, ...] = ()


def decide(wishes: Wishes, host: Host, told: GuestNetwork | None = None) -> Decision:
    """What the guest gets from this host; `told` is what it has been told before."""
    known = [guest.address for guest in (told.ipv4, told.ipv6) if guest] if told else []
    found = choose(host.links, host.addresses, host.routes, ipv4=wishes.ipv4, ipv6=wishes.ipv6, known=known)
    ipv4 = _kept(told.ipv4 if told else None, found.ipv4)
    ipv6 = _kept(told.ipv6 if told else None, found.ipv6)
    names = resolvers_for_guest(_with_named_zones(host), ipv4, ipv6, wishes)
    notes = list(found.notes)
    own = {guest.address for guest in (ipv4, ipv6) if guest}
    notes += [
        f"--dns-forward {address} is the guest's own address: it won't work"
        for address in wishes.dns_forwards
        if address in own
    ]
    if not (names.resolvers.ipv4 or names.resolvers.ipv6):
        notes.append("no nameserver of /etc/resolv.conf is one that the guest can use: it is told none")
    network = GuestNetwork(
        ipv4,
        ipv6,
        names.resolvers,
        wishes.mtu_bytes,
        dns_forwards=names.forwards,
        hostname=wishes.hostname,
        fqdn=wishes.fqdn,
        boot=wishes.boot,
        nameservers=names.nameservers,
        ipv4_offline=_is_offline(ipv4, found.ipv4),
        ipv6_offline=_is_offline(ipv6, found.ipv6),
    )
    if told is not None:
        network = evolve(network, former=_former(told, network, {address.address for address in host.addresses}))
        network = evolve(network, former_dns_forwards=_former_dns_forwards(told, network))
    return Decision(network, tuple(notes))


def _with_named_zones(host: Host) -> ResolvConf:
    """Zones may be given by interfaces' numbers, as the C library knows them, too."""
    names = {str(link.index): link.name for link in host.links}
    nameservers = (
        evolve(server, zone=names.get(server.zone or "", server.zone)) for server in host.resolv_conf.nameservers
    )
    return evolve(host.resolv_conf, nameservers=tuple(nameservers))


def afresh(network: GuestNetwork) -> GuestNetwork:
    """The same for a guest that has been told nothing yet."""
    return evolve(network, former=(), former_dns_forwards=())


def without(
    network: GuestNetwork, forgotten: Collection[GuestIPv4 | GuestIPv6], nameservers: Collection[IPAddress]
) -> GuestNetwork:
    """The same for a guest that does not go by these former states and nameservers any more: it has asked since."""
    former = tuple(former for former in network.former if former.guest not in forgotten)
    forwards = tuple(forward for forward in network.former_dns_forwards if forward.seen_by_guest not in nameservers)
    return evolve(network, former=former, former_dns_forwards=forwards)


def _kept(told: _Guest | None, found: _Guest | None) -> _Guest | None:
    """What is found, but a family that was on stays on, and one that had a network does not fall back to local mode."""
    if told is not None and (found is None or found.is_local):
        return told
    return found


def _is_offline(now: GuestIPv4 | GuestIPv6 | None, found: GuestIPv4 | GuestIPv6 | None) -> bool:
    """Whether the guest has the family from a time when the host had it, too."""
    if now is None:
        return False
    return found is None or (found.is_local and not now.is_local)


def _former(told: GuestNetwork, now: GuestNetwork, own: Collection[IPAddress]) -> tuple[Former, ...]:
    """What does not hold any more, the latest first; what holds again is not former."""
    before = (told.ipv4, told.ipv6, *(former.guest for former in told.former))
    current = {terms(guest) for guest in (now.ipv4, now.ipv6) if guest}
    former = {terms(guest): Former(guest, guest.address in own) for guest in reversed(before) if guest}
    latest_first = reversed(former.items())
    return tuple(value for terms, value in latest_first if terms not in current)[:FORMER_KEPT]


def terms(guest: GuestIPv4 | GuestIPv6) -> tuple[IPAddress, int, IPAddress]:
    """What the guest knows of it."""
    return guest.address, guest.prefix_length, guest.gateway


def _former_dns_forwards(told: GuestNetwork, now: GuestNetwork) -> tuple[DnsForward, ...]:
    """For addresses of ours that the guest may have as its nameserver, but is not told as such any more.

    One that it is told, but is no gateway of today's, is a nameserver's own.
    """
    gateways = {guest.gateway for guest in (now.ipv4, now.ipv6) if guest}
    ours = {*gateways, *(former.guest.gateway for former in now.former)}
    local = (former.guest.gateway for former in now.former if former.guest.is_local)  # told even without a nameserver
    before: dict[IPAddress, IPAddress | None] = dict.fromkeys((*local, *told.resolvers.ipv4, *told.resolvers.ipv6))
    for forward in (*told.former_dns_forwards, *told.dns_forwards):
        before[forward.seen_by_guest] = forward.on_host
    current = {*now.resolvers.ipv4, *now.resolvers.ipv6} - gateways
    current |= {forward.seen_by_guest for forward in now.dns_forwards}
    nameserver = {address.version: address for address in now.nameservers}
    in_order = sorted(before.items(), key=lambda item: item[0].packed)  # the same one at each look
    return tuple(
        DnsForward(seen, on_host)
        for seen, formerly in in_order
        if seen not in current and seen in ours and (on_host := nameserver.get(seen.version, formerly))
    )
