"""What the real kernel says, in a network namespace of the test's own, and what of that is a change."""

import re
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_passt.host.watch import HostWatch

pytestmark = pytest.mark.usefixtures("namespace")

A_MOMENT_S = 0.005
"""So long the clock stands, for what the kernel does a little later."""

QUIET_S = 8.0

RTMGRP_IPV6_IFADDR = 0x100


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=A_MOMENT_S)


def ip(*commands: str) -> None:
    for command in commands:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as heard:
            heard.bind((0, RTMGRP_IPV6_IFADDR))
            heard.settimeout(30)
            subprocess.run(["ip", *command.split()], check=True)
            if new := re.search("address add ([0-9a-f:]+)/64", command):
                while ip_address(new[1]).packed not in heard.recv(65536):
                    pass  # the kernel leaves new IPv6 addresses to a work queue


@pytest.fixture
def watch(namespace: None) -> Iterator[HostWatch]:
    """Of a host with an interface, an address and a default route of each family, which it has heard of."""
    with HostWatch(Path("/nonexistent")) as watch:
        ip(
            "link add eth0 type veth peer name far0",
            "link set eth0 addrgenmode none",
            "link set far0 addrgenmode none",
            "link set eth0 up",
            "link set far0 up",
            "address add 192.0.2.2/24 dev eth0",
            "address add 2001:db8::2/64 dev eth0 nodad",
            "route add default via 192.0.2.1",
            "-6 route add default via fe80::1 dev eth0",
        )
        yield watch


async def is_noticed(watch: HostWatch) -> bool:
    with trio.move_on_after(QUIET_S) as waiting:
        await watch.changed()
    return not waiting.cancelled_caught


CHANGES = {
    "address added": "address add 192.0.2.3/24 dev eth0",
    "address removed": "address delete 192.0.2.2/24 dev eth0",
    "IPv6 address added": "address add 2001:db8::3/64 dev eth0 nodad",
    "IPv6 address removed": "address delete 2001:db8::2/64 dev eth0",
    "IPv6 address deprecated": "-6 address change 2001:db8::2/64 dev eth0 preferred_lft 0",
    "interface down": "link set eth0 down",
    "interface renamed": "link set far0 name far1",
    "interface added": "link add other type veth peer name other1",
    "interface gone": "link delete far0",
    "default route gone": "route delete default",
    "default route added": "route add default via 192.0.2.9 metric 50",
    "default route replaced": "route replace default via 192.0.2.9",
    "IPv6 default route gone": "-6 route delete default",
    "IPv6 default route added": "-6 route add default via fe80::9 dev eth0 metric 50",
    "IPv6 default route replaced": "-6 route replace default via fe80::9 dev eth0",
    "unreachable": "route add unreachable default metric 1",
    "two paths": "route replace default nexthop via 192.0.2.1 nexthop via 192.0.2.9",
}

NO_CHANGES = {
    "other route": "route add 203.0.113.0/24 via 192.0.2.1",
    "other IPv6 route": "-6 route add 2001:db8:77::/48 via fe80::1 dev eth0",
    "neighbour": "neighbour add 192.0.2.77 lladdr 52:54:00:12:34:56 dev eth0",
    "rule": "rule add from 192.0.2.2 lookup 100",
    "MTU": "link set far0 mtu 1400",
    "the same again": "route replace default via 192.0.2.1",
}


async def heard(watch: HostWatch) -> None:
    """All that was said so far, with nothing more to come."""
    while await is_noticed(watch):
        pass


@pytest.mark.parametrize("command", CHANGES.values(), ids=CHANGES)
async def test_change(watch: HostWatch, command: str, clock: MockClock) -> None:
    await heard(watch)
    ip(command)
    assert await is_noticed(watch)
    assert not await is_noticed(watch)


@pytest.mark.parametrize("command", NO_CHANGES.values(), ids=NO_CHANGES)
async def test_no_change(watch: HostWatch, command: str, clock: MockClock) -> None:
    await heard(watch)
    ip(command)
    assert not await is_noticed(watch)


async def test_refreshed_lifetimes_are_no_change(watch: HostWatch, clock: MockClock) -> None:
    """What a router advertisement and a DHCP client do every now and then."""
    refreshes = (
        "-6 address change 2001:db8::2/64 dev eth0 valid_lft {} preferred_lft {}",
        "address change 192.0.2.2/24 dev eth0 valid_lft {} preferred_lft {}",
        "-6 route replace default via fe80::1 dev eth0 expires {}",
    )
    ip(*(refresh.format(1000, 1000) for refresh in refreshes))
    await heard(watch)
    ip(*(refresh.format(900, 900) for refresh in refreshes))
    assert not await is_noticed(watch)


async def test_same_route_after_a_suspension(watch: HostWatch, clock: MockClock) -> None:
    """The lid is closed and opened: the interface comes back at once, the route when the lease is there."""
    await heard(watch)
    ip("link set eth0 down")
    assert await is_noticed(watch)
    ip("link set eth0 up")
    assert await is_noticed(watch)
    ip("route add default via 192.0.2.1")
    assert await is_noticed(watch)


async def test_same_route_after_a_renewal(watch: HostWatch, clock: MockClock) -> None:
    """Some DHCP clients take the address away and give it back, and then add the route."""
    await heard(watch)
    ip("address delete 192.0.2.2/24 dev eth0", "address add 192.0.2.2/24 dev eth0")
    assert await is_noticed(watch)
    ip("route add default via 192.0.2.1")
    assert await is_noticed(watch)


@pytest.mark.parametrize(
    "route", ["route replace default via 192.0.2.{}", "-6 route replace default via fe80::{} dev eth0"]
)
async def test_there_and_back(watch: HostWatch, route: str, clock: MockClock) -> None:
    await heard(watch)
    for last in (9, 1, 9, 1):
        ip(route.format(last))
        assert await is_noticed(watch)


async def test_more_than_there_is_room_for(watch: HostWatch, clock: MockClock) -> None:
    """The last of many messages is lost, and it is noticed all the same."""
    await heard(watch)
    flood = [f"route add 203.0.{third}.{fourth}/32 via 192.0.2.1" for third in range(12) for fourth in range(250)]
    batch = "\n".join([*flood, "route delete default"])
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)  # noqa: ASYNC221 - nobody reads meanwhile
    assert await is_noticed(watch)


async def test_route_that_goes_with_its_nexthop_object(watch: HostWatch, clock: MockClock) -> None:
    """The kernel says nothing of the route (ip-nexthop(8))."""
    ip("nexthop add id 7 via 192.0.2.9 dev eth0", "route add default nhid 7 metric 50")
    await heard(watch)
    ip("nexthop delete id 7")
    assert await is_noticed(watch)
    assert not await is_noticed(watch)
