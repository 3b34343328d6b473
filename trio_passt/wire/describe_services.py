"""What the services of the link are asked, and what they answer, in words, for `describe`.

All raise MalformedPacket, as the parsers do that they use.
"""

from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from trio_passt.wire import dhcp, dhcpv6, ndp
from trio_passt.wire.checksum import Buffer
from trio_passt.wire.dhcp import DhcpMessageType, DhcpOption
from trio_passt.wire.dhcpv6 import Dhcpv6Option, Dhcpv6OptionCode, Dhcpv6Type
from trio_passt.wire.ethernet import format_mac
from trio_passt.wire.icmp import IcmpMessage, Icmpv6Type

NDP_TYPES = range(Icmpv6Type.ROUTER_SOLICITATION, Icmpv6Type.NEIGHBOR_ADVERTISEMENT + 1)

_DHCP_ADDRESSES = (
    ("requested", DhcpOption.REQUESTED_ADDRESS),
    ("server", DhcpOption.SERVER_IDENTIFIER),
    ("mask", DhcpOption.SUBNET_MASK),
    ("router", DhcpOption.ROUTER),
    ("dns", DhcpOption.DOMAIN_NAME_SERVER),
)
_DHCP_NUMBERS = (("lease", DhcpOption.LEASE_TIME), ("mtu", DhcpOption.INTERFACE_MTU))
_DHCP_TEXTS = (("name", DhcpOption.HOST_NAME), ("text", DhcpOption.MESSAGE))

_MOST_NAMES = 4


def ndp_message(message: IcmpMessage) -> str:
    """A message of neighbour discovery."""
    match ndp.parse(message):
        case ndp.RouterSolicitation(mac):
            return f"router solicitation{_by(mac)}"
        case ndp.NeighborSolicitation(target, mac):
            return f"neighbor solicitation: who has {target}{_by(mac)}"
        case ndp.NeighborAdvertisement() as told:
            flags = (("router", told.router), ("solicited", told.solicited), ("override", told.override))
            at = f" is at {format_mac(told.target_mac)}" if told.target_mac else ""
            return f"neighbor advertisement: {told.target}{at}{_flags(flags)}"
        case ndp.RouterAdvertisement() as told:
            return "router advertisement: " + " ".join(_router(told))


def _by(mac: bytes | None) -> str:
    return f", asks {format_mac(mac)}" if mac else ""


def _flags(flags: tuple[tuple[str, bool], ...]) -> str:
    names = "|".join(name for name, is_set in flags if is_set)
    return f" {names}" if names else ""


def _router(told: ndp.RouterAdvertisement) -> Iterator[str]:
    yield f"lifetime={told.router_lifetime_s}s{_flags((('managed', told.managed), ('other', told.other)))}"
    if told.source_mac:
        yield f"mac={format_mac(told.source_mac)}"
    if told.mtu_bytes is not None:
        yield f"mtu={told.mtu_bytes}"
    for prefix in told.prefixes:
        flags = _flags((("on-link", prefix.on_link), ("autonomous", prefix.autonomous)))
        yield f"prefix={prefix.address}/{prefix.length} ({prefix.valid_s}s{flags})"
    for servers in told.dns_servers:
        yield f"dns={_some(map(str, servers.addresses))} ({servers.lifetime_s}s)"
    for search in told.dns_search:
        yield f"search={_some(search.names)} ({search.lifetime_s}s)"


def dhcp_message(payload: Buffer) -> str:
    """DHCP for IPv4, or BOOTP."""
    message = dhcp.parse(payload)
    return " ".join(_dhcp(message))


def _dhcp(message: dhcp.DhcpMessage) -> Iterator[str]:
    yield _dhcp_type(message)
    yield f"xid={message.transaction_id:#010x} client={format_mac(message.client_mac)}"
    addresses = (("ciaddr", message.ciaddr), ("yiaddr", message.yiaddr), ("giaddr", message.giaddr))
    yield from (f"{name}={address}" for name, address in addresses if int(address))
    for name, code in _DHCP_ADDRESSES:
        value = message.option(code)
        if value and len(value) % 4 == 0:
            yield f"{name}=" + _some(str(IPv4Address(value[at : at + 4])) for at in range(0, len(value), 4))
    for name, code in _DHCP_NUMBERS:
        value = message.option(code)
        if value is not None:
            yield f"{name}={int.from_bytes(value, 'big')}"
    for name, code in _DHCP_TEXTS:
        value = message.option(code)
        if value is not None:
            yield f"{name}={value.decode('latin-1')}"


def _dhcp_type(message: dhcp.DhcpMessage) -> str:
    kind = message.option(DhcpOption.MESSAGE_TYPE)
    if kind is None:
        return "BOOTP request" if message.operation == dhcp.DhcpOperation.REQUEST else "BOOTP reply"
    return _name(DhcpMessageType, int.from_bytes(kind, "big"))


def dhcpv6_message(payload: Buffer) -> str:
    """DHCPv6 between client and server; of one between relays, the type only."""
    if dhcpv6.is_relayed(payload):
        return _name(Dhcpv6Type, payload[0])
    message = dhcpv6.parse(payload)
    options = "".join(f" {_dhcpv6_option(option)}" for option in message.options)
    return f"{_name(Dhcpv6Type, message.type)} xid={message.transaction_id:#08x}{options}"


def _dhcpv6_option(option: Dhcpv6Option, *, is_inner: bool = False) -> str:
    """An association inside of another is not looked into: a guest could nest thousands."""
    code, value = option.code, option.value
    match code:
        case Dhcpv6OptionCode.CLIENT_IDENTIFIER:
            return f"client={value.hex()}"
        case Dhcpv6OptionCode.SERVER_IDENTIFIER:
            return f"server={value.hex()}"
        case Dhcpv6OptionCode.IA_NA | Dhcpv6OptionCode.IA_TA | Dhcpv6OptionCode.IA_PD if not is_inner:
            association = dhcpv6.parse_association(option)
            inner = " ".join(_dhcpv6_option(one, is_inner=True) for one in association.options)
            return f"{_name(Dhcpv6OptionCode, code)}={association.identifier:#x}({inner})"
        case Dhcpv6OptionCode.IA_ADDRESS:
            address = dhcpv6.parse_address(value)
            return f"address={address.address} ({address.valid_s}s)"
        case Dhcpv6OptionCode.DNS_SERVERS if value and len(value) % 16 == 0:
            return "dns=" + _some(str(IPv6Address(value[at : at + 16])) for at in range(0, len(value), 16))
        case Dhcpv6OptionCode.STATUS_CODE if len(value) >= 2:
            return f"status={int.from_bytes(value[:2], 'big')} ({value[2:].decode('latin-1')})"
        case Dhcpv6OptionCode.RAPID_COMMIT:
            return "rapid"
        case Dhcpv6OptionCode.CLIENT_FQDN:
            return f"fqdn={dhcpv6.parse_fqdn(value).name}"
    return f"option{code}"


def _name(types: type[IntEnum], number: int) -> str:
    names: dict[int, str] = {member.value: member.name for member in types}
    return names.get(number, f"type {number}").replace("_", "-")


def _some(texts: Iterator[str] | tuple[str, ...]) -> str:
    """The first few of them."""
    every = list(texts)
    return ",".join(every[:_MOST_NAMES]) + (f",... ({len(every)})" if len(every) > _MOST_NAMES else "")
