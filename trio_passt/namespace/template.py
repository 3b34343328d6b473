"""What an interface of the host's has that can be copied to a guest's: rtnetlink(7)."""

import logging
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from trio_passt.config import Config, IPAddress
from trio_passt.errors import StartupError
from trio_passt.host.rtnetlink import GETADDR, GETROUTE, aligned, attributes, dump
from trio_passt.namespace.setup import Hop, HostAddress, Route, Template

log = logging.getLogger("trio_passt.namespace")

MOST_ROUTES = 10_000
"""Of more than these, a router's, only default routes are copied and those without gateway: each takes 10 µs."""

_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_VIA, _RTA_PREF, _RTA_ENCAP = 9, 18, 20, 22
_RTNH_F_DEAD, _RTNH_F_ONLINK, _RTM_F_CLONED = 0x1, 0x4, 0x200
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}


def read_templates(config: Config) -> dict[str, Template]:
    """Those of the interfaces that the guest's network is taken from, by name.  Raises `StartupError`."""
    guests = (config.network.ipv4, config.network.ipv6)
    names = {guest.interface for guest in guests if guest is not None and guest.interface is not None}
    return {name: read_template(name) for name in names}


def read_template(interface: str) -> Template:
    """What it has in this process's network namespace; nothing if there is none of that name any more.

    Raises `StartupError`.
    """
    try:
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            return Template()
        addresses = [address for body in dump(GETADDR, bytes(_ADDRESS.size), bool) for address in _address(body, index)]
        routes = []
        for family in _BITS:
            asked = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            routes += [route for body in dump(GETROUTE, asked, _may_be_copied) for route in _route(body, index)]
    except OSError as error:
        raise StartupError(f"can't read what {interface} has from netlink: {error}") from error
    if len(routes) > MOST_ROUTES:
        log.warning(
            "%s has %d routes: only default routes and those without gateway are copied", interface, len(routes)
        )
        routes = [one for one in routes if not one.destination.prefixlen or one.hops[0].gateway is None]
    return Template(tuple(addresses), tuple(routes))


def _address(body: bytes, index: int) -> Iterator[HostAddress]:
    """One, or none if it is another interface's, or is not for the guest."""
    family, prefix_length, flags, scope, link = _ADDRESS.unpack_from(body)
    if link != index or family not in _BITS:
        return
    found = dict(attributes(body[_ADDRESS.size :]))
    if _IFA_FLAGS in found:
        (flags,) = struct.unpack("=I", found[_IFA_FLAGS])  # 32 bits; the header's field has 8
    other = found.get(_IFA_ADDRESS, b"")
    own = found.get(_IFA_LOCAL, other)
    address = ip_address(own)
    is_uncertain = flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
    if address.is_link_local or (family == socket.AF_INET6 and (is_uncertain or flags & _IFA_F_TEMPORARY)):
        return  # the flag for a temporary one is that for a secondary one in IPv4
    broadcast = found.get(_IFA_BROADCAST)
    yield HostAddress(
        ip_interface((address, prefix_length)),
        peer=ip_address(other) if other and other != own else None,
        broadcast=IPv4Address(broadcast) if broadcast is not None else None,
        scope=scope,
        lasts=not flags & _IFA_F_DEPRECATED,
    )


def _may_be_copied(body: bytes) -> bool:
    """As far as its header says; attributes take a while where there are a million."""
    _, _, source_bits, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
    return table == _RT_TABLE_MAIN and kind == _RTN_UNICAST and not source_bits and not flags & _RTM_F_CLONED


def _route(body: bytes, index: int) -> Iterator[Route]:
    """One, or none if it is not by that interface, or encapsulates."""
    family, bits, _, tos, _, protocol, scope, _, flags = _ROUTE.unpack_from(body)
    found = dict(attributes(body[_ROUTE.size :]))
    hops = tuple(_hops(found, flags, index))
    if not hops or _RTA_ENCAP in found:
        return
    destination = ip_address(found.get(_RTA_DST, bytes(_BITS[family] // 8)))
    source = found.get(_RTA_PREFSRC)
    preference = found.get(_RTA_PREF)
    yield Route(
        ip_network((destination, bits)),
        hops,
        metric=int.from_bytes(found.get(_RTA_PRIORITY, b""), sys.byteorder),
        scope=scope,
        protocol=protocol,
        source=ip_address(source) if source is not None else None,
        tos=tos,
        metrics=found.get(_RTA_METRICS, b""),
        preference=preference[0] if preference else None,
    )


def _hops(route: dict[int, bytes], flags: int, index: int) -> Iterator[Hop]:
    """Those by the interface that are up."""
    if _RTA_MULTIPATH not in route:
        link = struct.unpack("=i", route[_RTA_OIF])[0] if _RTA_OIF in route else 0
        if link == index and not flags & _RTNH_F_DEAD:
            yield Hop(_gateway(route), on_link=bool(flags & _RTNH_F_ONLINK))
        return
    data = route[_RTA_MULTIPATH]
    while len(data) >= _NEXT_HOP.size:
        length, hop_flags, weight, link = _NEXT_HOP.unpack_from(data)
        if not _NEXT_HOP.size <= length <= len(data):
            return
        of_hop = dict(attributes(data[_NEXT_HOP.size : length]))
        if link == index and not hop_flags & _RTNH_F_DEAD and _RTA_ENCAP not in of_hop:
            yield Hop(_gateway(of_hop), on_link=bool(hop_flags & _RTNH_F_ONLINK), weight=weight + 1)
        data = data[aligned(length) :]


def _gateway(route: dict[int, bytes]) -> IPAddress | None:
    if _RTA_GATEWAY in route:
        return ip_address(route[_RTA_GATEWAY])
    if _RTA_VIA in route:
        return ip_address(route[_RTA_VIA][2:])  # of the other family, after its number
    return None
