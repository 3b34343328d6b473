"""DHCP (RFC 2131): one guest, and no state: what is asked decides what is answered.

Theory of operation
-------------------
Every lease says the same until the host's network changes, so nothing needs to be remembered between an offer
and its request, and a guest that comes back from suspension, or a second client in the guest (an initramfs,
then the system), finds what the first one found.  Which state a client is in can be read from its REQUEST (RFC
2131 section 4.3.2).

A guest with several addresses is given the first, unless it asks for another of them.

When the host's network has changed, a guest that asks for its former address keeps it, and with it its
connections, as long as the host has it, too; else it is refused, and starts again with today's.  We speak to it
as the server that it knows, for some clients take no refusal from another.

Left undone: a client has no say in the length of its lease (option 51; RFC 2131 section 4.3.1 leaves that to the
server); relays are answered in the guest's own subnet only, since there are no addresses of others, and their
option 82 is not returned (RFC 3046 section 2.2 allows that); nobody is told to do without IPv4 (option 108).
"""

import logging
from ipaddress import IPv4Address, IPv4Interface

from attrs import evolve

from trio_passt.config import GuestIPv4, GuestNetwork
from trio_passt.services import dhcp_options, host_side
from trio_passt.services.dhcp_options import Options
from trio_passt.wire import dhcp, ethernet, ipv4, udp
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

log = logging.getLogger("trio_passt.dhcp")

_BROADCAST = IPv4Address("255.255.255.255")
_UNSPECIFIED = IPv4Address(0)
_UDP_IP_BYTES = ipv4.HEADER_BYTES + udp.HEADER_BYTES
_MESSAGE_START = ethernet.HEADER_BYTES + _UDP_IP_BYTES
_DEFAULT_DATAGRAM_BYTES = 576
"""What a client takes that does not say (RFC 2131 section 2)."""
_HTTP_CLIENT = b"HTTPClient"
"""Firmware that boots by HTTP takes no offer without this class (UEFI 2.10, section 24.7.3.1)."""
_MAX_ECHOED_BYTES = 255
"""Longer identifiers came in parts, are nobody's, and would crowd out the lease."""


def answer(guest_mac: bytes, payload: Buffer, network: GuestNetwork) -> bytes | None:
    """The frame that answers what a client sent to UDP port 67, in a frame from `guest_mac`, or None where silence
    is right.

    Silence for: replies, messages relayed from other subnets, other hardware than Ethernet, requests meant for
    another server, RELEASE and DECLINE (there is nothing to give back, and no other address to give).

    Raises MalformedPacket.
    """
    if network.ipv4 is None:
        return None
    asked = dhcp.parse(payload)
    if not _is_from_client(asked, network.ipv4):
        return None
    decision = _decide(asked, network.ipv4, network)
    if decision is None:
        return None
    guest, reply = decision
    encoded = dhcp.emit(
        reply,
        _limit_bytes(asked, network),
        may_overload=not dhcp_options.is_bootp(asked),
        dearest=dhcp_options.DEAREST,
    )
    mac, address, port = _destination(guest_mac, asked, reply)
    addresses = (host_side.ipv4_address(guest).packed, address.packed)
    return host_side.udp_frame((network.host_mac, mac), addresses, (SERVER_PORT, port), encoded)


def acknowledged_address(frame: bytes) -> IPv4Address | None:
    """The address that the guest has from now on, by a `frame` that `answer` returned: the one in an ACK, or in a
    reply to BOOTP.  None if it gives no address (yet).
    """
    reply = dhcp.parse(frame[_MESSAGE_START:])
    has_given = reply.option(DhcpOption.MESSAGE_TYPE) in (None, bytes((DhcpMessageType.ACK,)))
    return reply.yiaddr if has_given and reply.yiaddr != _UNSPECIFIED else None


def _is_from_client(asked: DhcpMessage, guest: GuestIPv4) -> bool:
    """Whether it is a request of an Ethernet client in the guest's subnet, be it by a relay."""
    if asked.operation != DhcpOperation.REQUEST or asked.hardware_type != HARDWARE_ETHERNET:
        return False
    if len(asked.client_mac) != 6 or ethernet.is_multicast(asked.client_mac):
        return False
    subnet = IPv4Interface((guest.address, guest.prefix_length)).network
    return asked.giaddr == _UNSPECIFIED or asked.giaddr in subnet


_Decision = tuple[GuestIPv4, DhcpMessage]
"""The lease by whose server the reply is given (today's or a former one), and the reply."""


def _decide(asked: DhcpMessage, today: GuestIPv4, network: GuestNetwork) -> _Decision | None:
    """What to say to a client's message (RFC 2131 section 4.3)."""
    match _message_type(asked):
        case None if asked.server_name.lower() not in (b"", _boot_server_name(network)):
            return None  # it wants a certain server: RFC 951 section 7.3
        case None:
            guest = _with_requested(asked, today)
            return guest, _bootp_reply(asked, guest, network)
        case DhcpMessageType.DISCOVER:
            is_rapid = asked.option(DhcpOption.RAPID_COMMIT) is not None  # RFC 4039 section 3.1
            kind = DhcpMessageType.ACK if is_rapid else DhcpMessageType.OFFER
            guest = _with_requested(asked, today)
            return guest, _lease(kind, asked, guest, network)
        case DhcpMessageType.REQUEST:
            return _decide_request(asked, today, network)
        case DhcpMessageType.INFORM:
            guest = _with_requested(asked, today)
            return guest, _information(asked, guest, network)
        case DhcpMessageType.DECLINE:
            log.debug("the guest declines its address: it is in use, it says")
    return None


def _decide_request(asked: DhcpMessage, today: GuestIPv4, network: GuestNetwork) -> _Decision | None:
    """RFC 2131 section 4.3.2.  Today's addresses are acknowledged in any state, a former one where a client may have
    connections with it: not in SELECTING, in which it names a server and has no address.
    """
    former = [(one.guest, one.on_host) for one in network.former if isinstance(one.guest, GuestIPv4)]
    server = asked.option(DhcpOption.SERVER_IDENTIFIER)
    leases = [today, *(guest for guest, _ in former)]
    named = next((guest for guest in leases if host_side.ipv4_address(guest).packed == server), None)
    address = _requested_address(asked)
    if address is None or (server is not None and named is None):
        return None
    if (own := host_side.with_first(today, address)) is not None:
        return own, _lease(DhcpMessageType.ACK, asked, own, network)
    if named is not None and asked.ciaddr == _UNSPECIFIED:
        return named, _refusal(asked, named)
    had = ((host_side.with_first(guest, address), is_kept) for guest, is_kept in former)
    guest, is_kept = next(((guest, is_kept) for guest, is_kept in had if guest is not None), (today, False))
    return guest, _lease(DhcpMessageType.ACK, asked, guest, network) if is_kept else _refusal(asked, guest)


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


def _with_requested(asked: DhcpMessage, guest: GuestIPv4) -> GuestIPv4:
    """With the address that the client asks for or has, if it may have that, as its first (section 4.3.1)."""
    value = asked.option(DhcpOption.REQUESTED_ADDRESS)
    address = IPv4Address(value) if value is not None and len(value) == 4 else asked.ciaddr
    return host_side.with_first(guest, address) or guest


def _lease(kind: DhcpMessageType, asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """An OFFER or ACK of the guest's address."""
    options = _identification(kind, asked, guest)
    times = host_side.lease_times(guest)
    options[DhcpOption.LEASE_TIME] = times.valid_s.to_bytes(4, "big")
    options[DhcpOption.RENEWAL_TIME] = times.renewal_s.to_bytes(4, "big")
    options[DhcpOption.REBINDING_TIME] = times.rebinding_s.to_bytes(4, "big")
    if kind == DhcpMessageType.ACK and _message_type(asked) == DhcpMessageType.DISCOVER:
        options[DhcpOption.RAPID_COMMIT] = b""
    reply = evolve(_configuration(asked, options, guest, network), yiaddr=guest.address)
    return evolve(reply, ciaddr=asked.ciaddr) if kind == DhcpMessageType.ACK else reply


def _information(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """The ACK of an INFORM: parameters without an address or times (RFC 2131 section 4.3.5)."""
    options = _identification(DhcpMessageType.ACK, asked, guest)
    return evolve(_configuration(asked, options, guest, network), ciaddr=asked.ciaddr)


def _bootp_reply(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """For a client that knows no leases (RFC 1534 section 2): BOOTP's vendor extensions, and an address if it has
    none (RFC 951 section 3).
    """
    address = guest.address if asked.ciaddr == _UNSPECIFIED else _UNSPECIFIED
    return evolve(_configuration(asked, {}, guest, network), yiaddr=address, ciaddr=asked.ciaddr)


def _refusal(asked: DhcpMessage, guest: GuestIPv4) -> DhcpMessage:
    """A NAK, so that the client starts again; a relay is to broadcast it (RFC 2131 section 4.3.2)."""
    options = _identification(DhcpMessageType.NAK, asked, guest)
    options[DhcpOption.MESSAGE] = b"not the host's address"
    return evolve(_blank(asked, options), broadcast=asked.broadcast or asked.giaddr != _UNSPECIFIED)


def _configuration(asked: DhcpMessage, options: Options, guest: GuestIPv4, network: GuestNetwork) -> DhcpMessage:
    """A message with the parameters of the network behind `options`, and what to boot (RFC 2131 section 2)."""
    room_bytes = _limit_bytes(asked, network) - dhcp.EMPTY_MESSAGE_BYTES - dhcp.encoded_bytes(options)
    reply = _blank(asked, options | dhcp_options.parameters(asked, guest, network, room_bytes))
    if network.boot is None:
        return reply
    if (asked.option(DhcpOption.VENDOR_CLASS) or b"").startswith(_HTTP_CLIENT):
        reply = evolve(reply, options=(*reply.options, (DhcpOption.VENDOR_CLASS, _HTTP_CLIENT)))
    return evolve(
        reply,
        siaddr=network.boot.server or host_side.host_ipv4_address(network, guest),
        server_name=network.boot.server_name.encode("ascii"),
        boot_file=network.boot.file.encode("ascii"),
    )


def _boot_server_name(network: GuestNetwork) -> bytes:
    return network.boot.server_name.encode("ascii").lower() if network.boot else b""


def _blank(asked: DhcpMessage, options: Options) -> DhcpMessage:
    return DhcpMessage(
        DhcpOperation.REPLY,
        asked.transaction_id,
        asked.client_mac,
        tuple(options.items()),
        asked.broadcast,
        giaddr=asked.giaddr,
    )


def _identification(kind: DhcpMessageType, asked: DhcpMessage, guest: GuestIPv4) -> Options:
    """What every reply to a DHCP client starts with; its identifiers are returned to it (RFC 6842, RFC 4578 section
    2.3).
    """
    options: Options = {
        DhcpOption.MESSAGE_TYPE: bytes((kind,)),
        DhcpOption.SERVER_IDENTIFIER: host_side.ipv4_address(guest).packed,
    }
    for code in (DhcpOption.CLIENT_IDENTIFIER, DhcpOption.CLIENT_MACHINE):
        identifier = asked.option(code)
        if identifier is not None and len(identifier) <= _MAX_ECHOED_BYTES:
            options[code] = identifier
    return options


def _limit_bytes(asked: DhcpMessage, network: GuestNetwork) -> int:
    """How long the reply may be: what client and link take, but never less than a BOOTP message.

    Option 57 and its default are lengths of the IP datagram; values below the default are not legal (RFC 2132
    section 9.10).  A BOOTP client need not take more than 300 bytes.
    """
    if dhcp_options.is_bootp(asked):
        return MIN_MESSAGE_BYTES
    value = asked.option(DhcpOption.MAX_MESSAGE_SIZE)
    if value is not None and len(value) != 2:
        raise MalformedPacket(f"DHCP maximum message size of {len(value)} bytes")
    client_takes = max(_DEFAULT_DATAGRAM_BYTES, int.from_bytes(value or b"", "big"))
    return max(MIN_MESSAGE_BYTES, min(client_takes, network.link_mtu_bytes) - _UDP_IP_BYTES)


def _destination(guest_mac: bytes, asked: DhcpMessage, reply: DhcpMessage) -> tuple[bytes, IPv4Address, int]:
    """MAC address, IP address and port that the reply goes to (RFC 2131 section 4.1).

    Who has an address (a relay, a client in ciaddr) is where the request came from, which may be behind a router;
    who has none is found by the hardware address in the message.  A broadcast's MAC address follows from the IP
    address.
    """
    if asked.giaddr != _UNSPECIFIED:
        return guest_mac, asked.giaddr, SERVER_PORT
    if reply.option(DhcpOption.MESSAGE_TYPE) == bytes((DhcpMessageType.NAK,)):
        return guest_mac, _BROADCAST, CLIENT_PORT
    if asked.ciaddr != _UNSPECIFIED:
        return guest_mac, asked.ciaddr, CLIENT_PORT
    if asked.broadcast or reply.yiaddr == _UNSPECIFIED:
        return guest_mac, _BROADCAST, CLIENT_PORT
    return asked.client_mac, reply.yiaddr, CLIENT_PORT
