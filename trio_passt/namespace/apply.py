"""Setting what `setup` has planned, in the network namespace that this process is in: the I/O after it.

Theory of operation
-------------------
The interface comes up before its routes: the kernel has none by one that is down.  It makes no link-local address by
itself, for that would not be usable before duplicate address detection has taken a second; the one that is planned is
used at once, like all others: nobody else is on this link.

What is there already is left as it is, and so is what others have: where they have a route to the same destination with
the same metric, ours comes after it (IPv4), or is none (IPv6: both would be one, of two ways that are taken by turns).
"""

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trio_passt.errors import StartupError
from trio_passt.host.network import MAIN_TABLE
from trio_passt.namespace.setup import Hop, Plan, Route, TapAddress

_IN6_ADDR_GEN_MODE_NONE = 1
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_RTNH_F_ONLINK = 0x4
_RTN_UNICAST = 1
_FOREVER = 0xFFFFFFFF
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def apply(plan: Plan, interface: str) -> None:
    """Set all of it.  Raises `StartupError`, which names what the kernel does not take."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def set_(what: str, change: Callable[..., Any], *arguments: Any, **values: Any) -> None:
        try:
            change(*arguments, **values)
        except (OSError, NetlinkError) as error:
            number = error.code if isinstance(error, NetlinkError) else error.errno
            if number != errno.EEXIST:
                raise StartupError(f"can't {what}: {os.strerror(number or 0)}") from error

    has_ipv6 = _prepare_ipv6(plan, interface)
    try:
        netlink = IPRoute()
    except OSError as error:
        raise StartupError(f"can't configure {interface}: no netlink: {error.strerror}") from error
    with netlink:
        index = socket.if_nametoindex(interface)
        if has_ipv6:
            with suppress(OSError, NetlinkError):  # a kernel that is older than this way to say it, 3.17
                netlink.link("set", index=index, IFLA_AF_SPEC=_NO_LINK_LOCAL)
        mtu = {"mtu": plan.mtu_bytes} if plan.mtu_bytes is not None else {}
        set_(f"bring {interface} up (MTU: {plan.mtu_bytes})", netlink.link, "set", index=index, state="up", **mtu)
        for address in _in_the_kernels_order(plan.addresses):
            if has_ipv6 or address.of.address.version == 4:
                what = f"give {interface} the address {address.of.address}"
                set_(what, netlink.addr, "add", index=index, **_address(address))
        for route in plan.routes:
            if has_ipv6 or route.destination.version == 4:
                what = f"add the route {_text(route)} by {interface}"
                verb = "append" if route.destination.version == 4 else "add"
                set_(what, netlink.route, verb, **_route(route, index))


_NO_LINK_LOCAL = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]})]}


def _prepare_ipv6(plan: Plan, interface: str) -> bool:
    """Whether the kernel has IPv6 at all.  If it is for us to set up, router advertisements have no say in it.

    They would add an address, which the kernel would prefer, as the latest, to the one that is the host's, too.
    """
    settings = Path("/proc/sys/net/ipv6/conf", interface)
    if plan.with_ipv6:
        for name, value in (("disable_ipv6", "0"), ("accept_ra", "0")):
            with suppress(OSError):  # where /proc/sys may not be written, what follows tells whether that mattered
                (settings / name).write_text(value, encoding="ascii")
    return settings.exists()


def _in_the_kernels_order(addresses: tuple[TapAddress, ...]) -> list[TapAddress]:
    """So that the first one is what the kernel prefers: of IPv6, it is the one that was added last."""
    ipv4 = [one for one in addresses if one.of.address.version == 4]
    return ipv4 + [one for one in reversed(addresses) if one.of.address.version == 6]


def _address(address: TapAddress) -> dict[str, Any]:
    one = address.of
    own = str(one.address.ip)
    flags = 0 if address.makes_route else _IFA_F_NOPREFIXROUTE
    values: dict[str, Any] = {
        "family": _FAMILY[one.address.version],
        "address": str(one.peer) if one.peer is not None else own,
        "local": own,
        "prefixlen": one.address.network.prefixlen,
        "scope": one.scope,
        "IFA_FLAGS": flags | _IFA_F_NODAD if one.address.version == 6 else flags,
    }
    if one.broadcast is not None:
        values["broadcast"] = str(one.broadcast)
    if not one.lasts:
        lifetimes_s = {"preferred": 0, "valid": _FOREVER}  # names of older pyroute2, beside the kernel's
        values["IFA_CACHEINFO"] = lifetimes_s | {f"ifa_{name}": value for name, value in lifetimes_s.items()}
    return values


def _route(route: Route, index: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "family": _FAMILY[route.destination.version],
        "dst": str(route.destination.network_address),
        "dst_len": route.destination.prefixlen,
        "tos": route.tos,
        "table": MAIN_TABLE,
        "proto": route.protocol,
        "scope": route.scope,
        "type": _RTN_UNICAST,
    }
    if route.metric:
        values["priority"] = route.metric
    if route.source is not None:
        values["prefsrc"] = str(route.source)
    if route.metrics:
        values["metrics"] = {name.removeprefix("RTAX_").lower(): value for name, value in route.metrics}
    if route.preference is not None:
        values["RTA_PREF"] = route.preference
    if len(route.hops) > 1:
        hops = [_hop(hop) | {"oif": index, "hops": hop.weight - 1} for hop in route.hops]
        return values | {"multipath": hops}
    return values | {"oif": index} | _hop(route.hops[0])


def _hop(hop: Hop) -> dict[str, Any]:
    values: dict[str, Any] = {"flags": _RTNH_F_ONLINK if hop.on_link else 0}
    return values | ({"gateway": str(hop.gateway)} if hop.gateway is not None else {})


def _text(route: Route) -> str:
    """As ip-route(8) has it."""
    destination = str(route.destination) if route.destination.prefixlen else "default"
    via = " and ".join(f"via {hop.gateway}" for hop in route.hops if hop.gateway is not None)
    return " ".join(filter(None, (destination, via, f"metric {route.metric}" if route.metric else "")))
