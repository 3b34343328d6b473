"""DHCPv6 (RFC 8415): one guest, one address, and no state, as with DHCP for IPv4.

The guest has its default route and its prefix from router advertisements; from here it has the host's very
address, the resolvers and the search list.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Interface

from attrs import define, field

from trio_passt.config import GuestIPv6, GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import dhcpv6, domain
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.dhcpv6 import (
    CLIENT_PORT,
    MAX_DUID_BYTES,
    SERVER_PORT,
    Dhcpv6Message,
    Dhcpv6Option,
    Dhcpv6OptionCode,
    Dhcpv6Status,
    Dhcpv6Type,
    IaAddress,
    IdentityAssociation,
)
from trio_passt.wire.errors import MalformedPacket

LEASE_S = 86400
"""Valid and preferred lifetime, as long as DHCP's lease; renewed after half of it."""

_UDP_IPV6_BYTES = 48
_MAX_SEARCH_BYTES = 512
_MAX_WITHDRAWN = 8
"""Of a client's former addresses, so many are withdrawn at a time: the reply has to fit a packet."""
_DUID_LL = bytes.fromhex("00030001")
_ASSOCIATIONS = (Dhcpv6OptionCode.IA_NA, Dhcpv6OptionCode.IA_TA, Dhcpv6OptionCode.IA_PD)


def server_duid(network: GuestNetwork) -> bytes:
    """A DUID based on the link-layer address of the host's side (RFC 8415 section 11.4): stable for the
    run.
    """
    return _DUID_LL + network.host_mac


def answer(guest_mac: bytes, source: bytes, payload: Buffer, network: GuestNetwork, server_duid: bytes) -> bytes | None:
    """The frame that answers what a client at `source` (packed) sent to UDP port 547, or None where silence
    is right.

    Silence for: relayed messages, messages that only servers send, and what RFC 8415 section 16 wants
    discarded, such as a request meant for another server.

    Raises MalformedPacket.
    """
    client = IPv6Address(source)
    if network.ipv6 is None or dhcpv6.is_relayed(payload) or client.is_multicast or client.is_unspecified:
        return None
    asked = dhcpv6.parse(payload)
    if not _is_valid(asked, server_duid):
        return None
    room = min(host_side.IPV6_MIN_MTU_BYTES, network.link_mtu_bytes) - _UDP_IPV6_BYTES
    reply = _reply(asked, network.ipv6, network, _Reply(asked, server_duid, room))
    if reply is None:
        return None
    addresses = (host_side.ipv6_address(network.ipv6, network.host_mac).packed, source)
    return host_side.udp_frame((network.host_mac, guest_mac), addresses, (SERVER_PORT, CLIENT_PORT), dhcpv6.emit(reply))


@define
class _Reply:
    """A reply in the making: options are added while the datagram has room."""

    asked: Dhcpv6Message
    server_duid: bytes
    room_bytes: int
    options: list[Dhcpv6Option] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.room_bytes -= 4
        client_duid = self.asked.option(Dhcpv6OptionCode.CLIENT_IDENTIFIER)
        if client_duid is not None:
            self.add(Dhcpv6Option(Dhcpv6OptionCode.CLIENT_IDENTIFIER, client_duid))
        self.add(Dhcpv6Option(Dhcpv6OptionCode.SERVER_IDENTIFIER, self.server_duid))

    def add(self, *options: Dhcpv6Option) -> None:
        for option in options:
            if len(option.value) + 4 <= self.room_bytes:
                self.room_bytes -= len(option.value) + 4
                self.options.append(option)

    def finish(self, kind: Dhcpv6Type) -> Dhcpv6Message:
        return Dhcpv6Message(kind, self.asked.transaction_id, tuple(self.options))


def _is_valid(asked: Dhcpv6Message, server_duid: bytes) -> bool:
    """RFC 8415 section 16: which identifiers a message must have and must not have."""
    client = asked.option(Dhcpv6OptionCode.CLIENT_IDENTIFIER)
    server = asked.option(Dhcpv6OptionCode.SERVER_IDENTIFIER)
    if client is not None and not 2 < len(client) <= MAX_DUID_BYTES:
        raise MalformedPacket(f"DHCPv6 client DUID of {len(client)} bytes")
    match asked.type:
        case Dhcpv6Type.SOLICIT | Dhcpv6Type.CONFIRM | Dhcpv6Type.REBIND:
            return client is not None and server is None
        case Dhcpv6Type.REQUEST | Dhcpv6Type.RENEW | Dhcpv6Type.RELEASE | Dhcpv6Type.DECLINE:
            return client is not None and server == server_duid
        case Dhcpv6Type.INFORMATION_REQUEST:
            return server in (None, server_duid) and not asked.all(*_ASSOCIATIONS)
    return False


def _reply(asked: Dhcpv6Message, guest: GuestIPv6, network: GuestNetwork, reply: _Reply) -> Dhcpv6Message | None:
    """What to say to a client's valid message (RFC 8415 section 18.3)."""
    kind = Dhcpv6Type.REPLY
    match asked.type:
        case Dhcpv6Type.SOLICIT:
            if asked.option(Dhcpv6OptionCode.RAPID_COMMIT) is None:
                kind = Dhcpv6Type.ADVERTISE
                reply.add(Dhcpv6Option(Dhcpv6OptionCode.PREFERENCE, b"\xff"))  # do not wait for others
            else:
                reply.add(Dhcpv6Option(Dhcpv6OptionCode.RAPID_COMMIT, b""))
            reply.add(*_associations(asked, guest), *_parameters(asked, network))
        case Dhcpv6Type.REQUEST | Dhcpv6Type.RENEW | Dhcpv6Type.REBIND:
            reply.add(*_associations(asked, guest), *_parameters(asked, network))
        case Dhcpv6Type.CONFIRM:
            claimed = [address for _, ia in _parsed(asked) for address in _addresses(ia)]
            if not claimed:  # nothing to confirm: RFC 8415 section 18.3.3
                return None
            reply.add(_confirmation(claimed, guest))
        case Dhcpv6Type.RELEASE | Dhcpv6Type.DECLINE:
            reply.add(dhcpv6.status_option(Dhcpv6Status.SUCCESS, "noted"))
        case _:  # an information request: nothing else is valid
            reply.add(*_parameters(asked, network))
    return reply.finish(kind)


def _parsed(asked: Dhcpv6Message) -> list[tuple[int, IdentityAssociation]]:
    return [(option.code, dhcpv6.parse_association(option)) for option in asked.all(*_ASSOCIATIONS)]


def _addresses(association: IdentityAssociation) -> list[IPv6Address]:
    """The addresses that the client names in an IA_NA or IA_TA."""
    options = (option for option in association.options if option.code == Dhcpv6OptionCode.IA_ADDRESS)
    return [dhcpv6.parse_address(option.value).address for option in options]


def _associations(asked: Dhcpv6Message, guest: GuestIPv6) -> Iterable[Dhcpv6Option]:
    """An answer to each IA: the first IA_NA, or the one that names it already, has the address; there are no
    others.
    """
    parsed = _parsed(asked)
    permanent = [ia for code, ia in parsed if code == Dhcpv6OptionCode.IA_NA]
    if guest.address.is_link_local:  # local mode: SLAAC alone makes such addresses
        permanent = []
    first = permanent[0] if permanent else None
    chosen = next((ia for ia in permanent if guest.address in _addresses(ia)), first)
    for code, ia in parsed:
        if ia is chosen:
            yield _bound(asked, ia, guest)
        elif code == Dhcpv6OptionCode.IA_PD:
            yield _empty(code, ia, Dhcpv6Status.NO_PREFIX_AVAILABLE, "no prefixes here")
        else:
            yield _empty(code, ia, Dhcpv6Status.NO_ADDRESSES_AVAILABLE, "the host has one address")


def _bound(asked: Dhcpv6Message, ia: IdentityAssociation, guest: GuestIPv6) -> Dhcpv6Option:
    """The IA_NA with the guest's address; others that the client has shall not be used any more."""
    others = [address for address in dict.fromkeys(_addresses(ia)) if address != guest.address]
    if asked.type == Dhcpv6Type.REQUEST and not _are_on_link(others, guest):
        return _empty(Dhcpv6OptionCode.IA_NA, ia, Dhcpv6Status.NOT_ON_LINK, "not an address of this link")
    options = [dhcpv6.emit_address(IaAddress(guest.address, LEASE_S, LEASE_S))]
    if asked.type in (Dhcpv6Type.RENEW, Dhcpv6Type.REBIND):
        options += [dhcpv6.emit_address(IaAddress(address)) for address in others[:_MAX_WITHDRAWN]]
    bound = IdentityAssociation(ia.identifier, LEASE_S // 2, LEASE_S * 4 // 5, tuple(options))
    return dhcpv6.emit_association(Dhcpv6OptionCode.IA_NA, bound)


def _empty(code: int, ia: IdentityAssociation, status: Dhcpv6Status, text: str) -> Dhcpv6Option:
    return dhcpv6.emit_association(
        code, IdentityAssociation(ia.identifier, options=(dhcpv6.status_option(status, text),))
    )


def _confirmation(claimed: Iterable[IPv6Address], guest: GuestIPv6) -> Dhcpv6Option:
    if _are_on_link(claimed, guest):
        return dhcpv6.status_option(Dhcpv6Status.SUCCESS, "all addresses are of this link")
    return dhcpv6.status_option(Dhcpv6Status.NOT_ON_LINK, "not all addresses are of this link")


def _are_on_link(addresses: Iterable[IPv6Address], guest: GuestIPv6) -> bool:
    """Whether all of them have the prefix of the host's interface or the /64 that is announced."""
    network = IPv6Interface((guest.address, min(64, guest.prefix_length))).network
    return all(address in network for address in addresses)


def _parameters(asked: Dhcpv6Message, network: GuestNetwork) -> Iterable[Dhcpv6Option]:
    """DNS servers and search list (RFC 3646), as far as the client asked for them; both, if it asked for
    nothing.
    """
    value = asked.option(Dhcpv6OptionCode.OPTION_REQUEST)
    if value is not None and len(value) % 2:
        raise MalformedPacket(f"DHCPv6 option request of {len(value)} bytes")
    wanted: set[int] = {Dhcpv6OptionCode.DNS_SERVERS, Dhcpv6OptionCode.DOMAIN_LIST}
    if value is not None:
        wanted &= {int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value), 2)}
    servers = network.resolvers.ipv6[: host_side.MAX_DNS_SERVERS]
    if servers and Dhcpv6OptionCode.DNS_SERVERS in wanted:
        yield Dhcpv6Option(Dhcpv6OptionCode.DNS_SERVERS, host_side.packed_list(servers))
    search = host_side.search_list(network, _MAX_SEARCH_BYTES)
    if search and Dhcpv6OptionCode.DOMAIN_LIST in wanted:
        yield Dhcpv6Option(Dhcpv6OptionCode.DOMAIN_LIST, domain.emit_list(search))
