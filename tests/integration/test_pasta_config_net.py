"""`--config-net`: what the guest's tap has, beside what the host's interface has, as iproute2 shows both.

The hosts are namespaces of the test, which have all that a host may have; the program runs as an ordinary user.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import tun
from tests.integration.daemon import namespace_program
from tests.integration.topology import Namespace, named_namespace, run

WAIT_S = 60.0
NO_PORTS = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
SHOW = "ip -json -details address; echo; ip -json route; echo; ip -json -6 route"

UPLINK = """
link add uplink type veth peer name cable
link set cable up
link set uplink addrgenmode none
link set uplink up
"""
ALL = """
addr add 192.0.2.2/24 brd + dev uplink noprefixroute
addr add 192.0.2.3/24 brd + dev uplink noprefixroute
addr add 198.51.100.7/32 dev uplink
addr add 203.0.113.1 peer 203.0.113.9/32 dev uplink
addr add 2001:db8:1::2/64 dev uplink nodad
addr add 2001:db8:1::3/64 dev uplink nodad
addr add 2001:db8:2::3/128 dev uplink nodad preferred_lft 0
route add 192.0.2.0/24 dev uplink proto kernel scope link src 192.0.2.2 metric 100
route add default via 192.0.2.1 proto dhcp src 192.0.2.2 metric 100
route add default via 192.0.2.9 metric 200
route append default via 192.0.2.10 metric 200
route add 10.0.0.0/8 via 192.0.2.77 mtu lock 1300 initcwnd 20 hoplimit 9 metric 5
route add 10.9.0.0/16 via 198.51.100.77 dev uplink onlink
route add 10.10.0.0/16 nexthop via 192.0.2.5 weight 2 nexthop via 192.0.2.6
route add 10.11.0.0/16 tos 0x10 via 192.0.2.7
route add 192.0.2.128/25 dev uplink scope link
route add default via fe80::1 dev uplink metric 1024 pref high
route add 2001:db8:9::/48 via 2001:db8:1::99 dev uplink mtu 1400
route add 2001:db8:a::/48 nexthop via fe80::7 dev uplink nexthop via fe80::8 dev uplink
route add 10.20.0.0/16 dev cable
route add unreachable 10.21.0.0/16
"""
"""What is by another interface, or by none, is not the guest's."""

OFF_LINK = """
addr add 192.0.2.2/32 dev uplink
route add 203.0.113.1 dev uplink
route add default via 203.0.113.1
"""
"""As many a rented machine has it."""

IPV6_ONLY = """
addr add 2001:db8:1::2/64 dev uplink nodad
route add default via 2001:db8:1::1
"""


@contextlib.contextmanager
def host_with(role: str, lines: str) -> Iterator[Namespace]:
    """A host with all that."""
    namespace = named_namespace(role, "nameserver 192.0.2.1\n")
    try:
        command = ["ip", "-n", namespace.name, "-batch", "-"]
        subprocess.run(command, input=lines, text=True, check=True, stdout=subprocess.DEVNULL)
        namespace.sysctl("net/ipv4/ping_group_range=0 2147483647")
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture(scope="module", autouse=True)
def tap_for_everybody() -> Iterator[None]:
    """As udev has it."""
    with tun.open_to_everybody():
        yield


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """The one that has everything."""
    with host_with("rich", UPLINK + ALL) as namespace:
        yield namespace


Shown = tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]
"""An interface, its routes of IPv4, and those of IPv6, as iproute2 shows them."""


def shown(output: str, interface: str) -> Shown:
    """From what `SHOW` prints."""
    devices, *routes = (json.loads(part or "[]") for part in output.split("\n\n"))
    (device,) = [one for one in devices if one.get("ifname") == interface]
    ipv4, ipv6 = ([one for one in part if by(one, interface)] for part in routes)
    return device, ipv4, ipv6


def by(route: dict[str, Any], interface: str) -> bool:
    """Whether it leaves by that one."""
    return interface in [route.get("dev"), *(hop.get("dev") for hop in route.get("nexthops", ()))]


def guest_of(host: Namespace, *arguments: str, interface: str = "uplink") -> Shown:
    """What a command in a new namespace is shown, at its very beginning."""
    command = [*host.enter_unprivileged(), *namespace_program(), "-q", *NO_PORTS, *arguments, "--", "sh", "-c", SHOW]
    result = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd="/")
    assert (result.returncode, result.stderr) == (0, "")
    return shown(result.stdout, interface)


def addresses(device: dict[str, Any]) -> list[dict[str, Any]]:
    """What is the same in the guest: not who makes its route, nor the link-local one."""
    return [
        {key: value for key, value in one.items() if key not in ("noprefixroute", "label")}
        for one in device["addr_info"]
        if not one["local"].startswith("fe80:")
    ]


def routes(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same of routes: not what the kernel makes of a link-local address, nor what is counted."""
    return sorted(
        (
            {key: value for key, value in one.items() if key != "flags"} | {"flags": sorted(one["flags"])}
            for one in part
        ),
        key=json.dumps,
    )


def text(part: list[dict[str, Any]]) -> list[str]:
    """The same in short, without those of link-local addresses."""
    lines = (
        " via ".join(filter(None, (one["dst"], one.get("gateway")))) + "".join(f" {flag}" for flag in one["flags"])
        for one in part
    )
    return sorted(line for line in lines if not line.startswith("fe80:"))


def local(device: dict[str, Any]) -> list[str]:
    """The interface's addresses in short."""
    return [f"{one['local']}/{one['prefixlen']}" for one in device["addr_info"]]


def test_all_that_the_host_has(host: Namespace) -> None:
    """Addresses with peers, scopes and broadcast, deprecated ones; all routes, with all that is said of them."""
    device, ipv4, ipv6 = guest_of(host, "--config-net", "--ns-mac-addr", "02:00:00:00:00:07", "-m", "9000")
    own, own_ipv4, own_ipv6 = shown(run(*host.enter(), "sh", "-c", SHOW), "uplink")
    link_local = {"fe80::ff:fe00:7"}
    assert {one["local"] for one in device["addr_info"] if one["local"].startswith("fe80:")} == link_local
    assert sorted(addresses(device), key=json.dumps) == sorted(addresses(own), key=json.dumps)
    assert [one for one in local(device) if "." in one] == [one for one in local(own) if "." in one], "in this order"
    assert routes(ipv4) == routes(own_ipv4)
    assert len(ipv4) == 10
    assert routes([one for one in ipv6 if one["dst"] != "fe80::/64"]) == routes(own_ipv6)
    assert (device["mtu"], device["address"]) == (9000, "02:00:00:00:00:07")
    assert {"UP", "LOWER_UP"} <= set(device["flags"])
    assert not any(one.get("tentative") for one in device["addr_info"])


def test_as_little_as_can_be(host: Namespace) -> None:
    """One address of each family and its route, and a default route."""
    device, ipv4, ipv6 = guest_of(host, "--config-net", "--no-copy-addrs", "--no-copy-routes")
    main, other, *_ = local(device)
    assert main == "192.0.2.2/24"
    assert other in ("2001:db8:1::2/64", "2001:db8:1::3/64")
    assert len(device["addr_info"]) == 3
    assert device["addr_info"][0]["broadcast"] == "192.0.2.255"
    assert text(ipv4) == ["192.0.2.0/24", "default via 192.0.2.1"]
    assert text(ipv6) == ["2001:db8:1::/64", "default via fe80::1"]


def test_what_is_asked_for(host: Namespace) -> None:
    """Addresses, mask and gateway of IPv4 in place of the host's; IPv6 is the host's all the same."""
    options = ["-a", "198.51.100.9", "-n", "28", "-a", "198.51.100.10", "-g", "203.0.113.254", "-I", "tap9"]
    device, ipv4, ipv6 = guest_of(host, "--config-net", *options, interface="tap9")
    assert local(device)[:2] == ["198.51.100.9/28", "198.51.100.10/28"]
    assert text(ipv4) == ["198.51.100.0/28", "default via 203.0.113.254 onlink"]
    assert {"2001:db8:1::2/64", "2001:db8:1::3/64", "2001:db8:2::3/128"} <= set(local(device))
    assert len(ipv6) == 6


@pytest.mark.parametrize(
    ("options", "ipv4"),
    [
        ([], ["203.0.113.1", "default via 203.0.113.1"]),
        (["--no-copy-routes"], ["default via 203.0.113.1 onlink"]),
    ],
)
def test_gateway_that_is_not_on_the_link(options: list[str], ipv4: list[str]) -> None:
    """It is by a route of its own, as on the host, or said to be on the link. No IPv6 at all on this host."""
    with host_with("offlink", UPLINK + OFF_LINK) as host:
        device, found, ipv6 = guest_of(host, "--config-net", *options)
        assert local(device) == ["192.0.2.2/32"]
        assert text(found) == ipv4
        assert ipv6 == []


def test_ipv6_only() -> None:
    """Also a router that has no link-local address."""
    with host_with("six", UPLINK + IPV6_ONLY) as host:
        device, ipv4, ipv6 = guest_of(host, "--config-net")
        assert [one for one in local(device) if not one.startswith("fe80:")] == ["2001:db8:1::2/64"]
        assert ipv4 == []
        assert text(ipv6) == ["2001:db8:1::/64", "default via 2001:db8:1::1"]


def test_host_without_network() -> None:
    """Local mode."""
    with host_with("offline", "") as host:
        device, ipv4, ipv6 = guest_of(host, "--config-net", interface="tap0")
        assert local(device) == ["169.254.2.1/16", "fe80::2/64"]
        assert text(ipv4) == ["169.254.0.0/16", "default via 169.254.2.2"]
        assert text(ipv6) == ["default via fe80::1"]


def test_only_one_family(host: Namespace) -> None:
    """The other one is not touched."""
    device, ipv4, ipv6 = guest_of(host, "--config-net", "-4")
    assert all("." in one for one in local(device))
    assert (len(ipv4), ipv6) == (10, [])


def test_nothing_is_set_up(host: Namespace) -> None:
    """But the loopback device."""
    device, ipv4, ipv6 = guest_of(host, "--no-config-net")
    assert (device["addr_info"], ipv4, ipv6) == ([], [], [])
    assert "UP" not in device["flags"]
    assert device["mtu"] == 1500


def wait_until_serving(process: subprocess.Popen[str]) -> None:
    """Root becomes somebody else when all is set up."""
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{process.pid}").stat().st_uid == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_namespace_that_is_not_empty(host: Namespace) -> None:
    """What it has stays, also where it is the same as what is to be added."""
    with host_with("full", "link add other type veth peer name end\nlink set other up\n") as guest:
        guest.ip("link", "set", "end", "up")
        guest.ip("address", "add", "192.0.2.2/24", "dev", "other")
        guest.ip("route", "add", "default", "via", "192.0.2.1", "dev", "other", "metric", "100")
        guest.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "other")
        before = shown(run(*guest.enter(), "sh", "-c", SHOW), "other")
        command = [*host.enter(), *namespace_program(), "-q", "-f", *NO_PORTS, "--config-net", "--netns", guest.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/") as process:
            try:
                wait_until_serving(process)
                after = run(*guest.enter(), "sh", "-c", SHOW)
                device, ipv4, ipv6 = shown(after, "uplink")
                assert len(device["addr_info"]) == 8, local(device)
                assert (len(ipv4), len(ipv6)) == (10, 5), "the default route is the other's"
                unchanged = shown(after, "other")
                assert addresses(unchanged[0]) == addresses(before[0])
                assert [routes(part) for part in unchanged[1:]] == [routes(part) for part in before[1:]]
            finally:
                process.terminate()
                _, errors = process.communicate(timeout=WAIT_S)
        assert errors == ""
        assert "uplink" not in run("ip", "-n", guest.name, "link")
