"""Address rules: one option's address, mask, MAC address or interface → a value; and what contradicts what.  Pure.

Whether the host has what is named is for those to find out who look at it (`trio_passt.host`).
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address

from trio_passt.cli.values import UsageError, address, invalid, number
from trio_passt.config import IPAddress, WishedAddress, Wishes

NONE = "none"
"""In place of an address: there is none, also none by default."""

_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}", re.ASCII)
_INTERFACE_BYTES = 15
"""IFNAMSIZ of netdevice(7), less the zero at its end."""


def wished_address(option: str, value: str) -> WishedAddress:
    """ADDRESS or ADDRESS/PREFIX, for the guest."""
    text, slash, prefix_text = value.partition("/")
    given = _unicast(option, value, text)
    if given.is_link_local and given.version == 6:
        raise invalid(option, value, "a guest makes its link-local address by itself")
    if not slash:
        return WishedAddress(given)
    prefix_length = number(prefix_text)
    longest = given.max_prefixlen
    if prefix_length is None or not 1 <= prefix_length <= longest:
        raise invalid(option, value, f"a prefix length from 1 to {longest} is expected after '/'")
    _refuse_subnet_addresses(option, value, given, prefix_length)
    return WishedAddress(given, prefix_length)


def netmask_bits(option: str, value: str) -> int:
    """A mask, dotted (255.255.255.0) or as its number of bits (24)."""
    bits = number(value)
    if bits is None:
        try:
            mask = int(IPv4Address(value))
        except ValueError:
            raise invalid(option, value, "a mask as in 255.255.255.0, or its number of bits, is expected") from None
        bits = mask.bit_count()
        if mask != (0xFFFFFFFF << 32 - bits) & 0xFFFFFFFF:
            raise invalid(option, value, "the ones of a mask are all at its left")
    if not 1 <= bits <= 32:
        raise invalid(option, value, "a mask has 1 to 32 bits")
    return bits


def unicast_address(option: str, value: str) -> IPAddress:
    """The address of a gateway, one to leave the host from, or one that stands for another."""
    return _unicast(option, value, value)


def unicast_or_none(option: str, value: str) -> IPAddress | None:
    """The same, or `None` for the word "none"."""
    return None if value == NONE else unicast_address(option, value)


def mac_address(option: str, value: str) -> bytes:
    """Six bytes, as in 02:00:00:00:00:01; a group's, and all zeros, are nobody's."""
    if not _MAC.fullmatch(value):
        raise invalid(option, value, "a MAC address as in 02:00:00:00:00:01 is expected")
    mac = bytes.fromhex(value.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise invalid(option, value, "no interface can have this MAC address")
    return mac


def interface_name(option: str, value: str) -> str:
    """A name as the kernel would take it (`dev_valid_name`); whether there is one is not known here."""
    is_name = value not in ("", ".", "..") and not any(letter in "/:" or letter.isspace() for letter in value)
    if not is_name or len(value.encode("utf-8", "surrogateescape")) > _INTERFACE_BYTES:
        raise invalid(
            option, value, f"an interface's name has 1 to {_INTERFACE_BYTES} bytes, without '/', ':' or blanks"
        )
    return value


def check_together(wishes: Wishes) -> None:
    """Raises `UsageError` naming two options that contradict each other."""
    _check_families(wishes)
    with_prefix = [wished for wished in wishes.addresses if wished.prefix_length is not None]
    for wished in with_prefix:
        if wishes.netmask_bits not in (None, wished.prefix_length) and wished.address.version == 4:
            text = f"'--address {wished.address}/{wished.prefix_length}' and '--netmask' (/{wishes.netmask_bits})"
            raise UsageError(f"options {text} contradict each other")
    own = {wished.address: "--address" for wished in wishes.addresses}
    for option, others in (
        ("--gateway", wishes.gateways),
        ("--map-host-loopback", wishes.loopback_addresses),
        ("--map-guest-addr", wishes.own_addresses),
        ("--dns-forward", wishes.dns_forwards),
    ):
        _refuse_common(own, option, others)
    _refuse_common(
        dict.fromkeys(wishes.loopback_addresses, "--map-host-loopback"), "--map-guest-addr", wishes.own_addresses
    )
    if wishes.netmask_bits is not None:
        for wished in wishes.addresses:
            if wished.prefix_length is None and wished.address.version == 4:
                text = f"{wished.address}/{wishes.netmask_bits}"
                _refuse_subnet_addresses("--address", text, wished.address, wishes.netmask_bits)


def _check_families(wishes: Wishes) -> None:
    for version, is_on, other in ((4, wishes.ipv4, "--ipv6-only"), (6, wishes.ipv6, "--ipv4-only")):
        given = [("--address", wished.address) for wished in wishes.addresses]
        given += [("--gateway", gateway) for gateway in wishes.gateways]
        for option, one in given:
            if one.version == version and not is_on:
                raise UsageError(f"options '{option} {one}' and '{other}' contradict each other")
    if wishes.netmask_bits is not None and not wishes.ipv4:
        raise UsageError("options '--netmask' and '--ipv6-only' contradict each other: a mask is IPv4's")


def _refuse_common(ones: dict[IPAddress, str], option: str, others: Iterable[IPAddress]) -> None:
    for other in others:
        if other in ones:
            raise UsageError(f"options '{ones[other]}' and '{option}' can't both be {other}")


def _unicast(option: str, value: str, text: str) -> IPAddress:
    given = address(text)
    if given is None:
        raise invalid(option, value, "an IPv4 or IPv6 address is expected")
    if not is_interfaces(given) or given.is_loopback:
        raise invalid(option, value, "no interface can have this address")
    return given


def is_interfaces(given: IPAddress) -> bool:
    """Whether an interface may have this address; an IPv6 form of an IPv4 address is no interface's."""
    if given.is_unspecified or given.is_multicast:
        return False
    if isinstance(given, IPv6Address):
        return given.ipv4_mapped is None
    return not given.is_reserved and given.packed[0] != 0


def _refuse_subnet_addresses(option: str, value: str, given: IPAddress, prefix_length: int) -> None:
    """An IPv4 subnet's first address names it, and its last one is everybody's; not so where it has only two."""
    if not isinstance(given, IPv4Address) or prefix_length > 30:
        return
    subnet = IPv4Interface((given, prefix_length)).network
    if given in (subnet.network_address, subnet.broadcast_address):
        is_first = given == subnet.network_address
        raise invalid(option, value, f"this is the {'network' if is_first else 'broadcast'} address of {subnet}")
