"""What DHCP tells about the network (RFC 2132): the options that a client asks for, as far as there is an answer."""

from bisect import bisect_right
from ipaddress import IPv4Address, IPv4Interface

from trio_passt.config import GuestIPv4, GuestNetwork
from trio_passt.services import host_side
from trio_passt.wire import dhcp, domain
from trio_passt.wire.dhcp import DhcpMessage, DhcpOption

Options = dict[int, bytes]

DEAREST = (
    DhcpOption.MESSAGE_TYPE,
    DhcpOption.SERVER_IDENTIFIER,
    DhcpOption.LEASE_TIME,
    DhcpOption.RAPID_COMMIT,
    DhcpOption.SUBNET_MASK,
    DhcpOption.ROUTER,
    DhcpOption.INTERFACE_MTU,
    DhcpOption.CLASSLESS_ROUTES,
    DhcpOption.MICROSOFT_ROUTES,
    DhcpOption.DOMAIN_NAME_SERVER,
    DhcpOption.RENEWAL_TIME,
    DhcpOption.REBINDING_TIME,
    DhcpOption.CLIENT_IDENTIFIER,
    DhcpOption.CLIENT_MACHINE,
)
"""What takes a guest online, the dearest first; where not everything has room, names make way for these."""

_UNSPECIFIED = IPv4Address(0)
_MIN_MTU_BYTES = 68
"""Option 26 cannot say less (RFC 2132 section 5.1)."""
_BOOTP_DNS_SERVERS = 3
"""As many as resolvers ask (resolv.conf(5)): more would take the room that BOOTP has for all options."""
_MAX_SEARCH_BYTES = 1024
_FQDN_FIXED_BYTES = 3
_FQDN_S, _FQDN_O, _FQDN_E, _FQDN_N = 1, 2, 4, 8
"""Flags of option 81 (RFC 4702 section 2.1): the server updates the address record; what the client wanted of
that is overridden; the name is in DNS wire format; the server updates nothing."""
_FQDN_RCODES = b"\xff\xff"


def is_bootp(asked: DhcpMessage) -> bool:
    """Whether the client speaks BOOTP: whatever it is told holds for good, and has to fit into 64 bytes."""
    return asked.option(DhcpOption.MESSAGE_TYPE) is None


def parameters(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork, room_bytes: int) -> Options:
    """What the client asked for, in its order (RFC 2132 section 9.8); what everybody may want, if it did not say.

    The mask goes before the router whatever the order (RFC 2132 section 3.3).  The search list has as many names
    as fit beside the rest into `room_bytes`, or where it may, into a field of its own.
    """
    known = _for_everybody(asked, guest, network)
    if fqdn := _client_fqdn(asked, network):
        known[DhcpOption.CLIENT_FQDN] = fqdn
    requested = asked.option(DhcpOption.PARAMETER_REQUEST_LIST)
    if requested is not None:
        known |= _for_who_asks(guest, network)
        codes = [*requested, DhcpOption.CLIENT_FQDN]
        if DhcpOption.ROUTER in codes and DhcpOption.SUBNET_MASK in codes:
            codes.insert(codes.index(DhcpOption.ROUTER), DhcpOption.SUBNET_MASK)
        known = {code: known[code] for code in dict.fromkeys(codes) if code in known}
    if DhcpOption.DOMAIN_SEARCH not in known:
        return known
    others = {code: value for code, value in known.items() if code != DhcpOption.DOMAIN_SEARCH}
    room_bytes -= dhcp.encoded_bytes(others)
    search = _search_that_fits(network, room_bytes if is_bootp(asked) else max(room_bytes, dhcp.MAX_FILE_BYTES))
    return known | search if search else others


def _search_that_fits(network: GuestNetwork, room_bytes: int) -> Options:
    """Option 119 (RFC 3397) with as many names as there is room for, or none."""
    names = host_side.search_list(network, _MAX_SEARCH_BYTES)

    def option(count: int) -> Options:
        return {DhcpOption.DOMAIN_SEARCH: domain.emit_compressed(names[:count])}

    counts = range(1, len(names) + 1)
    fitting = bisect_right(counts, room_bytes, key=lambda count: dhcp.encoded_bytes(option(count)))
    return option(fitting) if fitting else {}


def _for_everybody(asked: DhcpMessage, guest: GuestIPv4, network: GuestNetwork) -> Options:
    gateway = host_side.ipv4_address(guest)
    interface = IPv4Interface((guest.address, guest.prefix_length))
    options: Options = {DhcpOption.SUBNET_MASK: interface.netmask.packed}
    if not host_side.gateway_is_on_link(guest):
        options[DhcpOption.CLASSLESS_ROUTES] = _routes_to_off_link(gateway)
    options[DhcpOption.ROUTER] = gateway.packed
    limit = _BOOTP_DNS_SERVERS if is_bootp(asked) else host_side.MAX_DNS_SERVERS
    if servers := network.resolvers.ipv4[:limit]:
        options[DhcpOption.DOMAIN_NAME_SERVER] = host_side.packed_list(servers)
    if network.mtu_bytes >= _MIN_MTU_BYTES:
        options[DhcpOption.INTERFACE_MTU] = network.mtu_bytes.to_bytes(2, "big")
    if network.hostname and domain.is_encodable(network.hostname):
        options[DhcpOption.HOST_NAME] = network.hostname.encode("ascii")
    if search := host_side.search_list(network, _MAX_SEARCH_BYTES):
        options[DhcpOption.DOMAIN_NAME] = search[0].removesuffix(".").encode("ascii")
        options[DhcpOption.DOMAIN_SEARCH] = domain.emit_compressed(search)
    return options


def _for_who_asks(guest: GuestIPv4, network: GuestNetwork) -> Options:
    """What is of no use to most, or stands elsewhere in the message, too."""
    options: Options = {}
    if not host_side.gateway_is_on_link(guest):
        options[DhcpOption.MICROSOFT_ROUTES] = _routes_to_off_link(host_side.ipv4_address(guest))
    boot = network.boot
    if boot is not None:
        texts = {DhcpOption.BOOT_FILE: boot.file, DhcpOption.SERVER_NAME: boot.server_name}
        options |= {code: text.encode("ascii") for code, text in texts.items() if text}
    return options


def _routes_to_off_link(gateway: IPv4Address) -> bytes:
    """Option 121 (RFC 3442): the gateway itself is on the link, and everything else is behind it.

    A client that understands it ignores option 3, so the default route is in it too.
    """
    gateway_on_link = bytes((32,)) + gateway.packed + _UNSPECIFIED.packed
    default_by_gateway = bytes((0,)) + gateway.packed
    return gateway_on_link + default_by_gateway


def _client_fqdn(asked: DhcpMessage, network: GuestNetwork) -> bytes | None:
    """Option 81 for who sent it or lists it (RFC 4702 section 4), in the encoding the client speaks (section 2.1).

    Nobody updates DNS here (N, and S clear); O says so to a client that wanted it.  What is too short for flags
    is taken as if it had not been sent.
    """
    name = network.fqdn
    sent = asked.option(DhcpOption.CLIENT_FQDN) or b""
    is_sent = len(sent) >= _FQDN_FIXED_BYTES
    is_listed = DhcpOption.CLIENT_FQDN in (asked.option(DhcpOption.PARAMETER_REQUEST_LIST) or b"")
    if name is None or not domain.is_encodable(name) or not (is_sent or is_listed):
        return None
    wishes = sent[0] if is_sent else _FQDN_E
    flags = _FQDN_N | (wishes & _FQDN_E) | (_FQDN_O if wishes & _FQDN_S else 0)
    encoded = domain.emit(name) if flags & _FQDN_E else name.encode("ascii")
    return bytes((flags,)) + _FQDN_RCODES + encoded
