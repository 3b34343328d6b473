"""Setting what `setup` has planned, in the network namespace that this process is in: rtnetlink(7).

Theory of operation
-------------------
The interface comes up first: the kernel has no routes by one that is down.  It makes no link-local address by itself,
for that would not be usable before duplicate address detection has taken a second; the one that is planned is
used at once, like all others: nobody else is on this link.

What is there already is left as it is, and so is what others have: a route for the same destination with the same
metric is one more.
"""

import socket
import struct
from contextlib import suppress
from pathlib import Path

from trio_passt.errors import StartupError
from trio_passt.host.rtnetlink import NEWADDR, NEWLINK, NEWROUTE, NLM_F_APPEND, NLM_F_CREATE, Requests, attribute
from trio_passt.namespace.setup import Hop, Plan, Route, TapAddress

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 4, 26, 8
_ADDR_GEN_MODE_NONE = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 4, 6, 8
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_FOREVER = 0xFFFFFFFF
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_PREF = 9, 20
_RTNH_F_ONLINK = 0x4
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_NLA_F_NESTED = 0x8000
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def apply(plan: Plan, interface: str) -> None:
    """Set all of it.  Raises `StartupError`, which names what the kernel does not take."""
    ipv6 = Path("/proc/sys/net/ipv6/conf", interface)
    has_ipv6 = ipv6.exists()
    if has_ipv6 and plan.with_ipv6:
        _write(ipv6 / "disable_ipv6", "0")
        _write(ipv6 / "accept_ra", "0")
    try:
        requests = Requests()
    except OSError as error:
        raise StartupError(f"can't configure {interface}: no netlink: {error.strerror}") from error
    with requests:
        index = socket.if_nametoindex(interface)
        if has_ipv6:
            with suppress(OSError):  # where IPv6 is off
                requests.make(NEWLINK, 0, _without_link_local(index))
        _make(requests, NEWLINK, 0, _up(index, plan.mtu_bytes), f"bring {interface} up with an MTU of {plan.mtu_bytes}")
        for address in _in_the_kernels_order(plan.addresses):
            if has_ipv6 or address.of.address.version == 4:
                what = f"give {interface} the address {address.of.address}"
                _make(requests, NEWADDR, NLM_F_CREATE, _address(address, index), what)
        for route in plan.routes:
            if has_ipv6 or route.destination.version == 4:
                what = f"add the route {_text(route)} by {interface}"
                _make(requests, NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, _route(route, index), what)


def _write(setting: Path, value: str) -> None:
    """Where /proc/sys may not be written, what follows tells whether that mattered."""
    with suppress(OSError):
        setting.write_text(value, encoding="ascii")


def _make(requests: Requests, kind: int, flags: int, body: bytes, what: str) -> None:
    try:
        requests.make(kind, flags, body)
    except FileExistsError:
        return
    except OSError as error:
        raise StartupError(f"can't {what}: {error.strerror}") from error


def _in_the_kernels_order(addresses: tuple[TapAddress, ...]) -> list[TapAddress]:
    """So that the first one is what the kernel prefers: of IPv6, it is the one that was added last."""
    ipv4 = [one for one in addresses if one.of.address.version == 4]
    return ipv4 + [one for one in reversed(addresses) if one.of.address.version == 6]


def _without_link_local(index: int) -> bytes:
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_MODE_NONE]))
    nested = attribute(_IFLA_AF_SPEC | _NLA_F_NESTED, attribute(socket.AF_INET6 | _NLA_F_NESTED, mode))
    return _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + nested


def _up(index: int, mtu_bytes: int | None) -> bytes:
    mtu = attribute(_IFLA_MTU, _U32.pack(mtu_bytes)) if mtu_bytes is not None else b""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP) + mtu


def _address(address: TapAddress, index: int) -> bytes:
    one = address.of
    flags = 0 if address.makes_route else _IFA_F_NOPREFIXROUTE
    if one.address.version == 6:
        flags |= _IFA_F_NODAD
    own = one.address.ip.packed
    body = _ADDRESS.pack(_FAMILY[one.address.version], one.address.network.prefixlen, flags & 0xFF, one.scope, index)
    body += attribute(_IFA_LOCAL, own) + attribute(_IFA_ADDRESS, one.peer.packed if one.peer is not None else own)
    body += attribute(_IFA_FLAGS, _U32.pack(flags))
    if one.broadcast is not None:
        body += attribute(_IFA_BROADCAST, one.broadcast.packed)
    if not one.lasts:
        body += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    return body


def _route(route: Route, index: int) -> bytes:
    family = _FAMILY[route.destination.version]
    on_link = len(route.hops) == 1 and route.hops[0].on_link
    body = _ROUTE.pack(
        family,
        route.destination.prefixlen,
        0,
        route.tos,
        _RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        _RTN_UNICAST,
        _RTNH_F_ONLINK if on_link else 0,
    )
    if route.destination.prefixlen:
        body += attribute(_RTA_DST, route.destination.network_address.packed)
    if route.metric:
        body += attribute(_RTA_PRIORITY, _U32.pack(route.metric))
    if route.source is not None:
        body += attribute(_RTA_PREFSRC, route.source.packed)
    if route.metrics:
        body += attribute(_RTA_METRICS | _NLA_F_NESTED, route.metrics)
    if route.preference is not None:
        body += attribute(_RTA_PREF, bytes([route.preference]))
    if len(route.hops) == 1:
        return body + attribute(_RTA_OIF, struct.pack("=i", index)) + _gateway(route.hops[0])
    return body + attribute(_RTA_MULTIPATH | _NLA_F_NESTED, b"".join(_next_hop(hop, index) for hop in route.hops))


def _next_hop(hop: Hop, index: int) -> bytes:
    gateway = _gateway(hop)
    flags = _RTNH_F_ONLINK if hop.on_link else 0
    return _NEXT_HOP.pack(_NEXT_HOP.size + len(gateway), flags, hop.weight - 1, index) + gateway


def _gateway(hop: Hop) -> bytes:
    return attribute(_RTA_GATEWAY, hop.gateway.packed) if hop.gateway is not None else b""


def _text(route: Route) -> str:
    """As ip-route(8) has it."""
    destination = str(route.destination) if route.destination.prefixlen else "default"
    via = " and ".join(f"via {hop.gateway}" for hop in route.hops if hop.gateway is not None)
    return " ".join(filter(None, (destination, via, f"metric {route.metric}" if route.metric else "")))
