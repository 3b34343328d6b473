"""Small hosts to look at: what netlink and resolv.conf would say of them; and one that changes."""

from contextlib import suppress
from ipaddress import ip_address

import trio
from attrs import evolve

from trio_passt.host.network import Address, DefaultRoute, Host, Link, NextHop
from trio_passt.host.resolv import parse_resolv_conf

LINKS = (Link(1, "lo", loopback=True), Link(2, "eth0"), Link(3, "wlan0"), Link(4, "tun0"))
INDEX = {link.name: link.index for link in LINKS}


def host(*addresses: str, routes: tuple[str, ...] = (), resolv_conf: str = "") -> Host:
    """`addresses` as "192.0.2.2/24 eth0", default routes as "192.0.2.1 eth0", the best of a family first."""
    found = []
    for address in addresses:
        text, interface = address.split()
        own, _, length = text.partition("/")
        found.append(Address(INDEX[interface], ip_address(own), int(length)))
    return Host(
        LINKS,
        tuple(found),
        tuple(_route(text, metric) for metric, text in enumerate(routes)),
        parse_resolv_conf(resolv_conf),
    )


def _route(text: str, metric: int) -> DefaultRoute:
    gateway, interface = text.split()
    router = ip_address(gateway)
    return DefaultRoute(router.version, (NextHop(INDEX[interface], router),), metric)


def with_resolv_conf(host: Host, text: str) -> Host:
    """The same host with another file."""
    return evolve(host, resolv_conf=parse_resolv_conf(text))


NAMESERVERS = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"

HOME = host(
    "192.0.2.2/24 eth0",
    "2001:db8:1::2/64 eth0",
    routes=("192.0.2.1 eth0", "fe80::1 eth0"),
    resolv_conf=NAMESERVERS,
)
OFFICE = host(
    "198.51.100.7/25 wlan0",
    "2001:db8:2::7/64 wlan0",
    routes=("198.51.100.1 wlan0", "fe80::2 wlan0"),
    resolv_conf=NAMESERVERS,
)
OFFLINE = host()
HOME_4 = host("192.0.2.2/24 eth0", routes=("192.0.2.1 eth0",), resolv_conf=NAMESERVERS)
HOME_6 = host("2001:db8:1::2/64 eth0", routes=("fe80::1 eth0",), resolv_conf=NAMESERVERS)


class ChangingHost:
    """A host that changes when the test says so: in place of `HostWatch`, and of `discover_again`."""

    def __init__(self, first: Host) -> None:
        self.looks: list[float] = []
        """When it was looked at."""
        self._now: Host | Exception | None = first
        self._change, self._changes = trio.open_memory_channel[None](1)

    def is_unnoticed(self, now: Host | Exception | None) -> None:
        """What a look says of it from now on, or how it fails; None: it says nothing, and never ends."""
        self._now = now

    def becomes(self, now: Host | Exception | None) -> None:
        """The same, and it is noticed."""
        self.is_unnoticed(now)
        with suppress(trio.WouldBlock):  # it has not been heard of the one before
            self._change.send_nowait(None)

    async def changed(self) -> None:
        """As `HostWatch` has it."""
        await self._changes.receive()

    async def discover_again(self) -> Host:
        """As `trio_passt.host.discovery` has it."""
        self.looks.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self._now is None:
            await trio.sleep_forever()
        if isinstance(self._now, Exception):
            raise self._now
        return self._now
