"""What an interface of the host's has that can be copied to a guest's, from the kernel: the I/O before `setup`."""

import logging
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

from trio_passt.config import GuestNetwork
from trio_passt.errors import StartupError
from trio_passt.host.netlink import gateway_of
from trio_passt.host.network import MAIN_TABLE
from trio_passt.host.rtnetlink import dump_routes
from trio_passt.namespace.setup import SCOPE_LINK, Hop, HostAddress, Route, Template

log = logging.getLogger("trio_passt.namespace")

MOST_ROUTES = 1_000
"""Of more than these, a router's, only default routes are copied and those of its own subnets: each takes 0.3 ms."""

_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_RTNH_F_DEAD, _RTNH_F_ONLINK, _RTM_F_CLONED = 0x1, 0x4, 0x200
_RTN_UNICAST = 1
_HEADER_BYTES = 16
_ROUTE = struct.Struct("=BBBBBBBBI")
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
_EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def read_templates(network: GuestNetwork) -> dict[str, Template]:
    """Those of the interfaces that the guest's network is taken from, by name.  Raises `StartupError`."""
    guests = (network.ipv4, network.ipv6)
    names = {guest.interface for guest in guests if guest is not None and guest.interface is not None}
    return {name: read_template(name) for name in sorted(names)}


def read_template(interface: str) -> Template:
    """What it has in this process's network namespace; nothing if there is none of that name any more.

    Raises `StartupError`.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            return Template()
        with IPRoute() as netlink:
            addresses = [address for message in netlink.get_addr(index=index) for address in _address(message)]
        return Template(tuple(addresses), tuple(_routes(interface, index)))
    except (OSError, NetlinkError) as error:
        raise StartupError(f"can't read what {interface} has from netlink: {error}") from error


def _address(message: Any) -> Iterator[HostAddress]:
    """One, or none if it is not for the guest.

    IPv4 has its own address in IFA_LOCAL and the peer's in IFA_ADDRESS (equal where there is no peer).
    """
    other = message.get_attr("IFA_ADDRESS")
    own = message.get_attr("IFA_LOCAL") or other
    if message["family"] not in _BITS or own is None:
        return
    flags = message.get_attr("IFA_FLAGS")  # 32 bits; the header's field has 8
    if flags is None:
        flags = message["flags"]
    address = ip_address(own)
    unwanted = _IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_TEMPORARY  # the last is IPv4's IFA_F_SECONDARY
    if address.is_link_local or (address.version == 6 and flags & unwanted):
        return
    broadcast = message.get_attr("IFA_BROADCAST")
    yield HostAddress(
        ip_interface((address, message["prefixlen"])),
        peer=ip_address(other) if other and other != own else None,
        broadcast=IPv4Address(broadcast) if broadcast else None,
        scope=message["scope"],
        lasts=not flags & _IFA_F_DEPRECATED,
    )


def _routes(interface: str, index: int) -> list[Route]:
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    number = struct.pack("=i", index)

    def may_be(body: bytes) -> bool:
        """As far as can be told at a glance, where there are a million; the number is somewhere if it is by it."""
        _, _, source_bits, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
        is_plain = table == MAIN_TABLE and kind == _RTN_UNICAST and not source_bits and not flags & _RTM_F_CLONED
        return is_plain and number in body[_ROUTE.size :]

    dumped = [data for family in _BITS for data in dump_routes(family, may_be)]
    if len(dumped) > MOST_ROUTES:
        log.warning("%s has %d routes: only default routes and its own subnets' are copied", interface, len(dumped))
        dumped = [data for data in dumped if data[_HEADER_BYTES + 1] == 0 or data[_HEADER_BYTES + 6] == SCOPE_LINK]
    routes: list[Route] = []
    for data in dumped:
        message = rtmsg(data)
        message.decode()
        routes += _route(message, index)
    return routes


def _route(message: Any, index: int) -> Iterator[Route]:
    """One, or none if it is not by that interface, or encapsulates."""
    family = message["family"]
    hops = tuple(_hops(message, index))
    if not hops or message.get_attr("RTA_ENCAP"):
        return
    source = message.get_attr("RTA_PREFSRC")
    metrics = message.get_attr("RTA_METRICS")
    yield Route(
        ip_network((message.get_attr("RTA_DST") or _EVERYWHERE[family], message["dst_len"])),
        hops,
        metric=message.get_attr("RTA_PRIORITY") or 0,
        scope=message["scope"],
        protocol=message["proto"],
        source=ip_address(source) if source else None,
        tos=message["tos"],
        metrics=tuple((name, value) for name, value in metrics["attrs"]) if metrics else (),
        preference=message.get_attr("RTA_PREF"),
    )


def _hops(message: Any, index: int) -> Iterator[Hop]:
    """Those by the interface that are up."""
    if multipath := message.get_attr("RTA_MULTIPATH"):
        for hop in multipath:
            if hop["oif"] == index and not hop["flags"] & _RTNH_F_DEAD and not hop.get_attr("RTA_ENCAP"):
                yield Hop(gateway_of(hop), on_link=bool(hop["flags"] & _RTNH_F_ONLINK), weight=hop["hops"] + 1)
    elif message.get_attr("RTA_OIF") == index and not message["flags"] & _RTNH_F_DEAD:
        yield Hop(gateway_of(message), on_link=bool(message["flags"] & _RTNH_F_ONLINK))
