"""DHCPv6 (RFC 8415): one guest, and no state, as with DHCP for IPv4.

The guest has its default route and its prefixes from router advertisements; from here it has the host's very
address (or those that the operator has for it), its name, the resolvers and the search list.

No bindings are kept: the configuration is the binding.  The guest's addresses are whoever's IA_NA asks for them, one in
a message; what the host had before its network changed is known, too, and whether it still has it.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network

from attrs import define, field, frozen

from trio_passt.config import GuestIPv6, GuestNetwork
from trio_passt.services import host_side
from trio_passt.services.host_side import LeaseTimes
from trio_passt.wire import dhcpv6, domain, ipv6, udp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.dhcpv6 import (
    CLIENT_PORT,
    MAX_DUID_BYTES,
    SERVER_PORT,
    ClientFqdn,
    Dhcpv6Message,
    Dhcpv6Option,
    Dhcpv6OptionCode,
    Dhcpv6Status,
    Dhcpv6Type,
    IaAddress,
    IdentityAssociation,
)
from trio_passt.wire.errors import MalformedPacket

IRT_MINIMUM_S = 600
"""A client without address asks again no sooner than this (RFC 8415 section 21.23)."""

_UDP_IPV6_BYTES = ipv6.HEADER_BYTES + udp.HEADER_BYTES
_MESSAGE_HEAD_BYTES = 4
_OPTION_HEAD_BYTES = 4
_MAX_SEARCH_BYTES = 512
_MAX_ADDRESSES = 16
"""So many are given the guest in one reply."""
_MAX_OTHERS = 8
"""Of the other addresses in a client's IA, so many are answered at a time: the reply has to fit a packet."""
_DUID_LL = bytes.fromhex("00030001")
_ASSOCIATIONS = (Dhcpv6OptionCode.IA_NA, Dhcpv6OptionCode.IA_TA, Dhcpv6OptionCode.IA_PD)
_MOST_ASSOCIATIONS = 64
"""Clients have one or two of each kind, and a reply has room for about as many; others are not looked at."""
_FOR_ONE_SERVER = (Dhcpv6Type.REQUEST, Dhcpv6Type.RENEW, Dhcpv6Type.RELEASE, Dhcpv6Type.DECLINE)


def server_duid(network: GuestNetwork) -> bytes:
    """A DUID based on the link-layer address of the host's side (RFC 8415 section 11.4): stable for the run."""
    return _DUID_LL + network.host_mac


def answer(
    guest_mac: bytes,
    source: bytes,
    payload: Buffer,
    network: GuestNetwork,
    server_duid: bytes,
    *,
    to_group: bool = True,
) -> bytes | None:
    """The frame that answers what a client at `source` (packed) sent to UDP port 547, or None where silence
    is right.

    Silence for: relayed messages, messages that only servers send, and what RFC 8415 section 16 wants
    discarded, such as a request meant for another server.  `to_group` is false for what was sent to the server's
    own address, which it never allows (RFC 8415 section 18.4).

    Raises MalformedPacket.
    """
    client = IPv6Address(source)
    if network.ipv6 is None or dhcpv6.is_relayed(payload) or client.is_multicast or client.is_unspecified:
        return None
    asked = dhcpv6.parse(payload)
    if not _is_valid(asked, server_duid):
        return None
    room_bytes = min(host_side.IPV6_MIN_MTU_BYTES, network.link_mtu_bytes) - _UDP_IPV6_BYTES
    reply = _Reply(asked, server_duid, room_bytes)
    message = _reply(asked, network.ipv6, network, reply) if to_group else _use_multicast(asked, reply)
    if message is None:
        return None
    addresses = (host_side.ipv6_address(network.ipv6).packed, source)
    return host_side.udp_frame(
        (network.host_mac, guest_mac), addresses, (SERVER_PORT, CLIENT_PORT), dhcpv6.emit(message)
    )


@define
class _Reply:
    """A reply in the making: options are added while the datagram has room."""

    asked: Dhcpv6Message
    server_duid: bytes
    room_bytes: int
    options: list[Dhcpv6Option] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.room_bytes -= _MESSAGE_HEAD_BYTES
        client_duid = self.asked.option(Dhcpv6OptionCode.CLIENT_IDENTIFIER)
        if client_duid is not None:
            self.add(Dhcpv6Option(Dhcpv6OptionCode.CLIENT_IDENTIFIER, client_duid))
        self.add(Dhcpv6Option(Dhcpv6OptionCode.SERVER_IDENTIFIER, self.server_duid))

    def add(self, *options: Dhcpv6Option) -> None:
        for option in options:
            if len(option.value) + _OPTION_HEAD_BYTES <= self.room_bytes:
                self.room_bytes -= len(option.value) + _OPTION_HEAD_BYTES
                self.options.append(option)

    def finish(self, kind: Dhcpv6Type) -> Dhcpv6Message:
        return Dhcpv6Message(kind, self.asked.transaction_id, tuple(self.options))


@frozen
class _Association:
    """An IA of the client's, and the addresses it names, each once."""

    code: int
    identifier: int
    addresses: tuple[IPv6Address, ...]


@frozen
class _Leases:
    """Which addresses the guest has or had: `current` (there may be none to have), `former` from before the host's
    network changed, and of these `kept`, that the host still has.
    """

    current: tuple[IPv6Address, ...]
    former: frozenset[IPv6Address]
    kept: frozenset[IPv6Address]
    links: tuple[IPv6Network, ...]
    times: LeaseTimes

    def are_on_link(self, addresses: Iterable[IPv6Address]) -> bool:
        """Whether all have the prefix of the host's interface or a /64 that is announced, or are kept."""
        return all(address in self.kept or any(address in link for link in self.links) for address in addresses)

    def had(self, association: _Association) -> bool:
        """Whether the IA names an address that the guest has or had."""
        return self.has(association) or not self.former.isdisjoint(association.addresses)

    def has(self, association: _Association) -> bool:
        """Whether it names one that the guest has."""
        return any(address in association.addresses for address in self.current)

    def rank(self, association: _Association) -> tuple[bool, bool]:
        """The smallest is whose the addresses are, or shall be, among the IA_NAs of a message."""
        return not self.has(association), not self.had(association)


def _is_valid(asked: Dhcpv6Message, server_duid: bytes) -> bool:
    """RFC 8415 section 16: which identifiers a message must have and must not have."""
    client = asked.option(Dhcpv6OptionCode.CLIENT_IDENTIFIER)
    server = asked.option(Dhcpv6OptionCode.SERVER_IDENTIFIER)
    if client is not None and not 2 < len(client) <= MAX_DUID_BYTES:
        raise MalformedPacket(f"DHCPv6 client DUID of {len(client)} bytes")
    match asked.type:
        case Dhcpv6Type.SOLICIT | Dhcpv6Type.CONFIRM | Dhcpv6Type.REBIND:
            return client is not None and server is None
        case kind if kind in _FOR_ONE_SERVER:
            return client is not None and server == server_duid
        case Dhcpv6Type.INFORMATION_REQUEST:
            return server in (None, server_duid) and not asked.all(*_ASSOCIATIONS)
    return False


def _use_multicast(asked: Dhcpv6Message, reply: _Reply) -> Dhcpv6Message | None:
    """RFC 8415 section 18.4: what may be meant for one server is told how to reach it, all else discarded."""
    if asked.type not in _FOR_ONE_SERVER:
        return None
    reply.add(dhcpv6.status_option(Dhcpv6Status.USE_MULTICAST, "send to ff02::1:2"))
    return reply.finish(Dhcpv6Type.REPLY)


def _reply(asked: Dhcpv6Message, guest: GuestIPv6, network: GuestNetwork, reply: _Reply) -> Dhcpv6Message | None:
    """What to say to a client's valid message (RFC 8415 section 18.3)."""
    kind = Dhcpv6Type.REPLY
    leases = _leases(guest, network)
    associations = [_parse_association(option) for option in asked.all(*_ASSOCIATIONS)[:_MOST_ASSOCIATIONS]]
    match asked.type:
        case Dhcpv6Type.SOLICIT:
            kind = _offer(asked, associations, leases, reply)
            _assign(asked, associations, leases, network, reply)
        case Dhcpv6Type.REQUEST | Dhcpv6Type.RENEW | Dhcpv6Type.REBIND:
            _assign(asked, associations, leases, network, reply)
        case Dhcpv6Type.CONFIRM:
            claimed = [address for association in associations for address in association.addresses]
            if not claimed:  # nothing to confirm: RFC 8415 section 18.3.3
                return None
            reply.add(_confirmation(claimed, leases))
        case Dhcpv6Type.RELEASE | Dhcpv6Type.DECLINE:
            reply.add(*_noted(associations, leases))
        case _:  # an information request: nothing else is valid
            _add_parameters(asked, network, leases, reply)
    return reply.finish(kind)


def _offer(asked: Dhcpv6Message, associations: Iterable[_Association], leases: _Leases, reply: _Reply) -> Dhcpv6Type:
    """Whether to offer or to commit (RFC 8415 section 18.3.1); nothing can't be committed, and others may have more."""
    if _chosen(associations, leases) is None:
        return Dhcpv6Type.ADVERTISE
    if asked.option(Dhcpv6OptionCode.RAPID_COMMIT) is None:
        reply.add(Dhcpv6Option(Dhcpv6OptionCode.PREFERENCE, b"\xff"))  # do not wait for others
        return Dhcpv6Type.ADVERTISE
    reply.add(Dhcpv6Option(Dhcpv6OptionCode.RAPID_COMMIT, b""))
    return Dhcpv6Type.REPLY


def _leases(guest: GuestIPv6, network: GuestNetwork) -> _Leases:
    """In local mode there is no address to have: link-local ones the guest makes itself."""
    own = host_side.own_ipv6(guest)
    current = tuple(each.ip for each in own if not each.ip.is_link_local)[:_MAX_ADDRESSES]
    had = [(each.guest, each.on_host) for each in network.former if isinstance(each.guest, GuestIPv6)]
    former = frozenset(each.ip for guest, _ in had for each in host_side.own_ipv6(guest))
    kept = frozenset(each.ip for guest, on_host in had if on_host for each in host_side.own_ipv6(guest))
    links = tuple(IPv6Network((each.ip, min(64, each.network.prefixlen)), strict=False) for each in own)
    return _Leases(current, former, kept, links, host_side.lease_times(guest))


def _parse_association(option: Dhcpv6Option) -> _Association:
    """An IA_PD names prefixes, not addresses."""
    association = dhcpv6.parse_association(option)
    options = (inner for inner in association.options if inner.code == Dhcpv6OptionCode.IA_ADDRESS)
    addresses = dict.fromkeys(dhcpv6.parse_address(inner.value).address for inner in options)
    return _Association(option.code, association.identifier, tuple(addresses))


def _chosen(associations: Iterable[_Association], leases: _Leases) -> _Association | None:
    """The one that has the addresses: an IA_NA that names one already, or has a former one, or the first."""
    permanent = [association for association in associations if association.code == Dhcpv6OptionCode.IA_NA]
    return min(permanent, key=leases.rank, default=None) if leases.current else None


def _assign(
    asked: Dhcpv6Message,
    associations: list[_Association],
    leases: _Leases,
    network: GuestNetwork,
    reply: _Reply,
) -> None:
    """An answer to each IA, the one that has the addresses first, for there may be no room for all; and parameters."""
    chosen = _chosen(associations, leases)
    for association in sorted(associations, key=lambda each: each is not chosen):
        reply.add(_assigned(asked.type, association, leases, is_chosen=association is chosen))
    _add_parameters(asked, network, leases, reply)


def _assigned(kind: int, association: _Association, leases: _Leases, *, is_chosen: bool) -> Dhcpv6Option:
    """The IA with the guest's addresses or a status; when it is renewed, also with what becomes of others (RFC 8415
    sections 18.3.2, 18.3.4, 18.3.5): those the host still has are deprecated, all others not valid any more.
    """
    if association.code == Dhcpv6OptionCode.IA_PD:
        return _refused(association, Dhcpv6Status.NO_PREFIX_AVAILABLE, "no prefixes here")
    if kind == Dhcpv6Type.REQUEST and not leases.are_on_link(association.addresses):
        return _refused(association, Dhcpv6Status.NOT_ON_LINK, "not an address of this link")
    times = leases.times
    answers = []
    if is_chosen:
        answers += [IaAddress(address, times.valid_s, times.valid_s) for address in leases.current]
    if kind in (Dhcpv6Type.RENEW, Dhcpv6Type.REBIND):
        others = [address for address in association.addresses if address not in leases.current]
        answers += [IaAddress(each, 0, times.valid_s if each in leases.kept else 0) for each in others[:_MAX_OTHERS]]
    if not answers:
        return _refused(association, Dhcpv6Status.NO_ADDRESSES_AVAILABLE, "there are no other addresses")
    t1_s, t2_s = (times.renewal_s, times.rebinding_s) if any(each.valid_s for each in answers) else (0, 0)
    options = tuple(map(dhcpv6.emit_address, answers))
    return dhcpv6.emit_association(association.code, IdentityAssociation(association.identifier, t1_s, t2_s, options))


def _refused(association: _Association, status: Dhcpv6Status, text: str) -> Dhcpv6Option:
    options = (dhcpv6.status_option(status, text),)
    return dhcpv6.emit_association(association.code, IdentityAssociation(association.identifier, options=options))


def _confirmation(claimed: Iterable[IPv6Address], leases: _Leases) -> Dhcpv6Option:
    if leases.are_on_link(claimed):
        return dhcpv6.status_option(Dhcpv6Status.SUCCESS, "all addresses are of this link")
    return dhcpv6.status_option(Dhcpv6Status.NOT_ON_LINK, "not all addresses are of this link")


def _noted(associations: Iterable[_Association], leases: _Leases) -> Iterable[Dhcpv6Option]:
    """Success, and which IAs were never answered with an address (RFC 8415 sections 18.3.7, 18.3.8)."""
    yield dhcpv6.status_option(Dhcpv6Status.SUCCESS, "noted")
    for association in associations:
        is_permanent = association.code == Dhcpv6OptionCode.IA_NA
        if not is_permanent or (association.addresses and not leases.had(association)):
            yield _refused(association, Dhcpv6Status.NO_BINDING, "not known here")


def _add_parameters(asked: Dhcpv6Message, network: GuestNetwork, leases: _Leases, reply: _Reply) -> None:
    """DNS servers and search list (RFC 3646), the guest's name (RFC 4704), and when to ask again (RFC 8415 section
    21.23), as far as the client asked for them.
    """
    wanted = _wanted(asked)
    servers = network.resolvers.ipv6[: host_side.MAX_DNS_SERVERS]
    if servers and Dhcpv6OptionCode.DNS_SERVERS in wanted:
        reply.add(Dhcpv6Option(Dhcpv6OptionCode.DNS_SERVERS, host_side.packed_list(servers)))
    if Dhcpv6OptionCode.INFORMATION_REFRESH_TIME in wanted and asked.type == Dhcpv6Type.INFORMATION_REQUEST:
        refresh_s = max(IRT_MINIMUM_S, leases.times.renewal_s)
        reply.add(Dhcpv6Option(Dhcpv6OptionCode.INFORMATION_REFRESH_TIME, refresh_s.to_bytes(4, "big")))
    if network.fqdn and domain.is_encodable(network.fqdn) and Dhcpv6OptionCode.CLIENT_FQDN in wanted:
        reply.add(_named(asked, network.fqdn))
    search = host_side.search_list(network, min(_MAX_SEARCH_BYTES, reply.room_bytes - _OPTION_HEAD_BYTES))
    if search and Dhcpv6OptionCode.DOMAIN_LIST in wanted:
        reply.add(Dhcpv6Option(Dhcpv6OptionCode.DOMAIN_LIST, domain.emit_list(search)))


def _wanted(asked: Dhcpv6Message) -> set[int]:
    """The codes in the client's option request; without one, it is taken to want DNS, and what it speaks of itself."""
    value = asked.option(Dhcpv6OptionCode.OPTION_REQUEST)
    if value is None:
        names = {option.code for option in asked.all(Dhcpv6OptionCode.CLIENT_FQDN)}
        return {Dhcpv6OptionCode.DNS_SERVERS, Dhcpv6OptionCode.DOMAIN_LIST} | names
    if len(value) % 2:
        raise MalformedPacket(f"DHCPv6 option request of {len(value)} bytes")
    return {int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value), 2)}


def _named(asked: Dhcpv6Message, name: str) -> Dhcpv6Option:
    """The guest's name, with the flags that say: no DNS records are kept for it (RFC 4704 sections 4.1, 6).

    RFC 4704 wants it told only to clients that also sent the option; one that requests a name may have none to send.
    """
    return dhcpv6.emit_fqdn(ClientFqdn(name, overridden=_wants_records(asked), no_updates=True))


def _wants_records(asked: Dhcpv6Message) -> bool:
    """Whether the client wants the server to keep its AAAA records; if that is malformed, it does not say so."""
    value = asked.option(Dhcpv6OptionCode.CLIENT_FQDN)
    try:
        return value is not None and dhcpv6.parse_fqdn(value).server_updates
    except MalformedPacket:
        return False
