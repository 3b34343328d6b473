"""The host's links, addresses and default routes from the kernel: the I/O of `trio_passt.host.network`."""

import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from trio_passt.errors import StartupError
from trio_passt.host.network import Address, DefaultRoute, Link, NextHop
from trio_passt.host.rtnetlink import dump_default_routes

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_TEMPORARY = 0x01  # IPv4's IFA_F_SECONDARY has the same value
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_IFA_F_PERMANENT = 0x80
_RT_SCOPE_UNIVERSE = 0
_RTN_UNICAST = 1
_RTNH_F_DEAD = 1
_VERSION = {socket.AF_INET: 4, socket.AF_INET6: 6}
_PREFERENCE = {1: 1, 3: -1}
"""RTA_PREF: RFC 4191's two bits, as a number to compare."""


def read_host_network() -> tuple[list[Link], list[Address], list[DefaultRoute]]:
    """Dumps of rtnetlink(7) in the caller's network namespace; blocks while the kernel lists its routes: a
    millisecond, or seconds on a router.

    Raises `StartupError` where there is no netlink to ask (some sandboxes).
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    def parse_route(data: bytes) -> Any:
        message = rtmsg(data)
        message.decode()
        return message

    try:
        with IPRoute() as netlink:
            links = [_link(message) for message in netlink.get_links()]
            addresses = [address for message in netlink.get_addr() if (address := _address(message))]
        dumped = [parse_route(data) for family in _VERSION for data in dump_default_routes(family)]
        routes = [route for message in dumped if (route := _default_route(message))]
    except (OSError, NetlinkError) as error:
        raise StartupError(f"can't read the host's interfaces and routes from netlink: {error}") from error
    return links, addresses, routes


def _link(message: Any) -> Link:
    flags = message["flags"]
    return Link(
        message["index"],
        os.fsdecode(message.get_attr("IFLA_IFNAME")),  # pyroute2 gives bytes that are not UTF-8 as they are
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
    )


def _address(message: Any) -> Address | None:
    """IPv4 has its own address in IFA_LOCAL and the peer's in IFA_ADDRESS (equal where there is no peer)."""
    other = message.get_attr("IFA_ADDRESS")
    own = message.get_attr("IFA_LOCAL") or other
    if message["family"] not in _VERSION or own is None:
        return None
    flags = message.get_attr("IFA_FLAGS")  # 32 bits; the header's field has 8
    if flags is None:
        flags = message["flags"]
    return Address(
        message["index"],
        ip_address(own),
        message["prefixlen"],
        peer=ip_address(other) if other is not None and other != own else None,
        global_scope=message["scope"] == _RT_SCOPE_UNIVERSE,
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        temporary=bool(flags & _IFA_F_TEMPORARY),
        tentative=bool(flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)),
        permanent=bool(flags & _IFA_F_PERMANENT),
    )


def _default_route(message: Any) -> DefaultRoute | None:
    if message["dst_len"] != 0 or message["src_len"] != 0 or message["type"] != _RTN_UNICAST:
        return None
    source = message.get_attr("RTA_PREFSRC")
    return DefaultRoute(
        _VERSION[message["family"]],
        _next_hops(message),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        table=message.get_attr("RTA_TABLE") or message["table"],
        source=ip_address(source) if source else None,
        preference=_PREFERENCE.get(message.get_attr("RTA_PREF") or 0, 0),
    )


def _next_hops(message: Any) -> tuple[NextHop, ...]:
    """A multipath route lists its next hops; any other route is its own."""
    if multipath := message.get_attr("RTA_MULTIPATH"):
        return tuple(NextHop(hop["oif"], gateway_of(hop), dead=bool(hop["flags"] & _RTNH_F_DEAD)) for hop in multipath)
    link_index = message.get_attr("RTA_OIF")
    if link_index is None:
        return ()
    return (NextHop(link_index, gateway_of(message), dead=bool(message["flags"] & _RTNH_F_DEAD)),)


def gateway_of(message: Any) -> IPv4Address | IPv6Address | None:
    """RTA_GATEWAY, or RTA_VIA: an IPv4 route by a router with an IPv6 address."""
    if gateway := message.get_attr("RTA_GATEWAY"):
        return ip_address(gateway)
    if via := message.get_attr("RTA_VIA"):
        return ip_address(via["addr"])
    return None
