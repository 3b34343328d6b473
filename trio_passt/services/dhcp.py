"""DHCP (RFC 2131): one guest, one address, and no state: what is asked decides what is answered.

Every lease says the same until the host's network changes, so nothing needs to be remembered between an offer
and its request, and a guest that comes back from suspension, or a second client in the guest (an initramfs,
then the system), finds what the first one found.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface

from attrs import evolve

from trio_passt.config import GuestIPv4, GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import dhcp, domain
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.dhcp import (
    CLIENT_PORT,
    HARDWARE_ETHERNET,
    MIN_MESSAGE_BYTES,
    SERVER_PORT,
    DhcpMessage,
    DhcpMessageType,
    DhcpOperation,
    DhcpOption,
)
from trio_passt.wire.errors import MalformedPacket

LEASE_S = 86400
"""A day: a guest that was suspended over night keeps its connections, and learns of new resolvers in time."""

_BROADCAST = IPv4Address("255.255.255.255")
_UNSPECIFIED = IPv4Address(0)
_UDP_IP_BYTES = 28
_DEFAULT_DATAGRAM_BYTES = 576
"""What a client takes that does not say (RFC 2131 section 2)."""
_MIN_MTU_BYTES = 68
"""Option 26 cannot say less (RFC 2132 section 5.1)."""
_MAX_SEARCH_BYTES = 1024

Options = dict[int, bytes]


def answer(guest_mac: bytes, payload: Buffer, network: GuestNetwork) -> bytes | None:
    """The frame that answers what a client sent to UDP port 67, or None where silence is right.

    Silence for: replies, relayed messages, other hardware than Ethernet, requests meant for another server,
    RELEASE and DECLINE (there is nothing to give back, and no other address to give).

    Raises MalformedPacket.
    """
    if network.ipv4 is None:
        return None
    asked = dhcp.parse(payload)
    if asked.operation != DhcpOperation.REQUEST or asked.giaddr != _UNSPECIFIED:
        return None
    if asked.hardware_type != HARDWARE_ETHERNET or len(asked.client_mac) != 6:
        return None
    reply = _reply(asked, network.ipv4, network)
    if reply is None:
        return None
    source = host_side.ipv4_address(network.ipv4)
    addresses = (source.packed, _destination(reply).packed)
    is_bootp = asked.option(DhcpOption.MESSAGE_TYPE) is None
    encoded = dhcp.emit(reply, _limit_bytes(asked, network), may_overload=not is_bootp)
    return host_side.udp_frame((network.host_mac, guest_mac), addresses, (SERVER_PORT, CLIENT_PORT), encoded)


def _reply(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage | None:
    """What to say to a client's message (RFC 2131 section 4.3)."""
    server = asked.option(DhcpOption.SERVER_IDENTIFIER)
    if server is not None and server != host_side.ipv4_address(guest).packed:
        return None
    match _message_type(asked):
        case None:
            return _bootp_reply(asked, guest, network)
        case DhcpMessageType.DISCOVER if asked.option(DhcpOption.RAPID_COMMIT) is None:
            return _lease(DhcpMessageType.OFFER, asked, guest, network)
        case DhcpMessageType.DISCOVER:  # RFC 4039 section 3.1
            return _lease(DhcpMessageType.ACK, asked, guest, network)
        case DhcpMessageType.REQUEST:
            match _requested_address(asked):
                case None:
                    return None
                case guest.address:
                    return _lease(DhcpMessageType.ACK, asked, guest, network)
            return _refusal(asked, guest)
        case DhcpMessageType.INFORM:
            return _information(asked, guest, network)
    return None


def _message_type(asked: DhcpMessage) -> int | None:
    value = asked.option(DhcpOption.MESSAGE_TYPE)
    if value is not None and len(value) != 1:
        raise MalformedPacket(f"DHCP message type of {len(value)} bytes")
    return None if value is None else value[0]


def _requested_address(asked: DhcpMessage) -> IPv4Address | None:
    """The address that a REQUEST is about: RFC 2131 section 4.3.2 tells the client's state by where it
    stands.
    """
    value = asked.option(DhcpOption.REQUESTED_ADDRESS)
    if value is None:
        return asked.ciaddr if asked.ciaddr != _UNSPECIFIED else None
    if len(value) != 4:
        raise MalformedPacket(f"DHCP requested address of {len(value)} bytes")
    return IPv4Address(value)


def _lease(kind: DhcpMessageType, asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """An OFFER or ACK of the guest's address."""
    options = _identification(kind, asked, guest)
    times = (DhcpOption.LEASE_TIME, LEASE_S), (DhcpOption.RENEWAL_TIME, LEASE_S // 2)
    for code, seconds in (*times, (DhcpOption.REBINDING_TIME, LEASE_S * 7 // 8)):
        options[code] = seconds.to_bytes(4, "big")
    if kind == DhcpMessageType.ACK and _message_type(asked) == DhcpMessageType.DISCOVER:
        options[DhcpOption.RAPID_COMMIT] = b""
    options |= _wanted(asked, _parameters(guest, network))
    reply = evolve(_blank(asked, options), yiaddr=guest.address)
    return evolve(reply, ciaddr=asked.ciaddr) if kind == DhcpMessageType.ACK else reply


def _information(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """The ACK of an INFORM: parameters without an address or times (RFC 2131 section 4.3.5)."""
    options = _identification(DhcpMessageType.ACK, asked, guest)
    options |= _wanted(asked, _parameters(guest, network))
    return evolve(_blank(asked, options), ciaddr=asked.ciaddr)


def _refusal(asked: DhcpMessage, guest: GuestIPv4) -> DhcpMessage:
    """A NAK, so that the client starts again; always broadcast (RFC 2131 sections 4.1, 4.3.2)."""
    options = _identification(DhcpMessageType.NAK, asked, guest)
    options[DhcpOption.MESSAGE] = b"not the host's address"
    return evolve(_blank(asked, options), broadcast=True)


def _bootp_reply(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """For a client that knows no leases (RFC 1534 section 2): the address, and BOOTP's vendor extensions."""
    return evolve(_blank(asked, _parameters(guest, network)), yiaddr=guest.address, ciaddr=asked.ciaddr)


def _blank(asked: DhcpMessage, options: Options) -> DhcpMessage:
    return DhcpMessage(
        DhcpOperation.REPLY,
        asked.transaction_id,
        asked.client_mac,
        tuple(options.items()),
        asked.broadcast,
    )


def _identification(kind: DhcpMessageType, asked: DhcpMessage, guest: GuestIPv4) -> Options:
    """What every reply to a DHCP client starts with; its identifier is returned to it (RFC 6842)."""
    options: Options = {
        DhcpOption.MESSAGE_TYPE: bytes((kind,)),
        DhcpOption.SERVER_IDENTIFIER: host_side.ipv4_address(guest).packed,
    }
    identifier = asked.option(DhcpOption.CLIENT_IDENTIFIER)
    if identifier is not None and len(identifier) <= 255:
        options[DhcpOption.CLIENT_IDENTIFIER] = identifier
    return options


def _parameters(guest: GuestIPv4, network: GuestNetwork) -> Options:
    """All that a client may ask to be told about the network; the most important first."""
    gateway = host_side.ipv4_address(guest)
    interface = IPv4Interface((guest.address, guest.prefix_length))
    options: Options = {DhcpOption.SUBNET_MASK: interface.netmask.packed}
    if not host_side.gateway_is_on_link(guest):
        options[DhcpOption.CLASSLESS_ROUTES] = _routes_to_off_link(gateway)
    options[DhcpOption.ROUTER] = gateway.packed
    if servers := network.resolvers.ipv4[: host_side.MAX_DNS_SERVERS]:
        options[DhcpOption.DOMAIN_NAME_SERVER] = host_side.packed_list(servers)
    if network.mtu_bytes >= _MIN_MTU_BYTES:
        options[DhcpOption.INTERFACE_MTU] = network.mtu_bytes.to_bytes(2, "big")
    if search := host_side.search_list(network, _MAX_SEARCH_BYTES):
        options[DhcpOption.DOMAIN_NAME] = search[0].removesuffix(".").encode("ascii")
        options[DhcpOption.DOMAIN_SEARCH] = domain.emit_compressed(search)
    return options


def _routes_to_off_link(gateway: IPv4Address) -> bytes:
    """Option 121 (RFC 3442): the gateway itself is on the link, and everything else is behind it.

    A client that understands it ignores option 3, so the default route is in it too.
    """
    gateway_on_link = bytes((32,)) + gateway.packed + _UNSPECIFIED.packed
    default_by_gateway = bytes((0,)) + gateway.packed
    return gateway_on_link + default_by_gateway


def _wanted(asked: DhcpMessage, available: Options) -> Options:
    """What the client asked for, in its order (RFC 2132 section 9.8); all that is `available`, if it did not.

    The mask goes before the router whatever the order (RFC 2132 section 3.3).
    """
    requested: Iterable[int] | None = asked.option(DhcpOption.PARAMETER_REQUEST_LIST)
    if requested is None:
        return available
    codes = [code for code in dict.fromkeys(requested) if code in available]
    mask, router = DhcpOption.SUBNET_MASK, DhcpOption.ROUTER
    if mask in codes and router in codes and codes.index(router) < codes.index(mask):
        codes.remove(mask)
        codes.insert(codes.index(router), mask)
    return {code: available[code] for code in codes}


def _limit_bytes(asked: DhcpMessage, network: GuestNetwork) -> int:
    """How long the reply may be: what client and link take, but never less than a BOOTP message.

    Option 57 and its default are lengths of the IP datagram; values below the default are not legal (RFC 2132
    section 9.10).  A BOOTP client need not take more than 300 bytes.
    """
    if asked.option(DhcpOption.MESSAGE_TYPE) is None:
        return MIN_MESSAGE_BYTES
    value = asked.option(DhcpOption.MAX_MESSAGE_SIZE)
    if value is not None and len(value) != 2:
        raise MalformedPacket(f"DHCP maximum message size of {len(value)} bytes")
    client_takes = max(_DEFAULT_DATAGRAM_BYTES, int.from_bytes(value or b"", "big"))
    return max(MIN_MESSAGE_BYTES, min(client_takes, network.link_mtu_bytes) - _UDP_IP_BYTES)


def _destination(reply: DhcpMessage) -> IPv4Address:
    """To the address the client has, or to the one it gets if it takes that now (RFC 2131 section 4.1)."""
    if reply.option(DhcpOption.MESSAGE_TYPE) == bytes((DhcpMessageType.NAK,)):
        return _BROADCAST
    if reply.ciaddr != _UNSPECIFIED:
        return reply.ciaddr
    if reply.broadcast or reply.yiaddr == _UNSPECIFIED:
        return _BROADCAST
    return reply.yiaddr
