"""How a guest gets its configuration: DHCP, SLAAC, DHCPv6, each with clients that are not ours."""

from __future__ import annotations

import ipaddress
import re

from tests.guest.machine import Guest
from tests.integration import topology
from tests.integration.clients import settings
from tests.integration.conftest import Configured

MTU = "65520"


def test_udhcpc_gets_the_hosts_own_configuration(configured: Configured) -> None:
    lease = configured.dhcp
    assert lease["ip"] == topology.HOST4
    assert lease["mask"] == str(topology.PREFIX4)
    assert lease["router"] == topology.GATEWAY4
    assert lease["dns"] == topology.RESOLVER4
    assert lease["search"] == topology.SEARCH
    assert lease["mtu"] == MTU
    assert int(lease["lease"]) > 60


def test_dhclient_gets_the_same_and_applies_it(guest: Guest) -> None:
    guest.check("dhclient -4 -1 -v -lf /run/dhclient4.leases -pf /run/dhclient4.pid eth0")
    try:
        lease = guest.check("cat /run/dhclient4.leases")
        assert f"fixed-address {topology.HOST4};" in lease
        assert "option subnet-mask 255.255.255.0;" in lease
        assert f"option routers {topology.GATEWAY4};" in lease
        assert f"option domain-name-servers {topology.RESOLVER4};" in lease
        assert f'option domain-search "{topology.SEARCH}.";' in lease
        assert f"inet {topology.HOST4}/{topology.PREFIX4} " in guest.check("ip -4 addr show dev eth0")
        assert f"default via {topology.GATEWAY4} dev eth0" in guest.check("ip -4 route")
    finally:
        guest.check("kill $(cat /run/dhclient4.pid)")
        guest.check("online -4")


def test_ipconfig_gets_the_same_and_applies_it(guest: Guest) -> None:
    """What `ip=dhcp` on the kernel's command line means with Debian's initramfs: klibc's ipconfig. Debian's kernels are
    built without CONFIG_IP_PNP, and do not configure themselves."""
    guest.check("ip -4 addr flush dev eth0 && ip link set eth0 mtu 1500")
    try:
        guest.check("/usr/lib/klibc/bin/ipconfig -t 20 -c dhcp -d eth0")
        told = settings(guest.check("cat /run/net-eth0.conf"))
        assert told == told | {
            "PROTO": "dhcp",
            "IPV4ADDR": topology.HOST4,
            "IPV4NETMASK": "255.255.255.0",
            "IPV4GATEWAY": topology.GATEWAY4,
            "IPV4DNS0": topology.RESOLVER4,
            "DNSDOMAIN": topology.SEARCH,
            "DOMAINSEARCH": f"{topology.SEARCH}.",
            "DHCPLEASETIME": "86400",
        }
        assert f"inet {topology.HOST4}/{topology.PREFIX4} " in guest.check("ip -4 addr show dev eth0")
        assert f"default via {topology.GATEWAY4} dev eth0" in guest.check("ip -4 route")
        assert f"mtu {MTU} " in guest.check("ip link show dev eth0")
    finally:
        guest.check("online -4")


def test_dhcp_configuration_is_in_force(guest: Guest) -> None:
    assert f"inet {topology.HOST4}/{topology.PREFIX4} " in guest.check("ip -4 addr show dev eth0")
    assert f"default via {topology.GATEWAY4} dev eth0" in guest.check("ip -4 route")
    assert f"mtu {MTU} " in guest.check("ip link show dev eth0")


def test_kernel_takes_address_and_route_from_router_advertisements(guest: Guest) -> None:
    addresses = guest.check("ip -6 addr show dev eth0 scope global")
    autoconfigured = re.findall(r"inet6 (\S+) scope global dynamic mngtmpaddr", addresses)
    prefix = ipaddress.IPv6Interface(f"{topology.HOST6}/{topology.PREFIX6}").network
    assert [ipaddress.IPv6Interface(address).network for address in autoconfigured] == [prefix], addresses
    default = guest.check("ip -6 route show default")
    assert re.search(rf"default via {topology.GATEWAY6} dev eth0 proto ra", default)


def test_dhclient_gets_the_hosts_own_address_by_dhcpv6(guest: Guest, configured: Configured) -> None:
    assert f"iaaddr {topology.HOST6} " in configured.dhcpv6_lease
    assert f"option dhcp6.name-servers {topology.RESOLVER6};" in configured.dhcpv6_lease
    assert f'option dhcp6.domain-search "{topology.SEARCH}.";' in configured.dhcpv6_lease
    assert f"inet6 {topology.HOST6}/" in guest.check("ip -6 addr show dev eth0 scope global")


def test_duplicate_address_detection_finds_nothing(guest: Guest) -> None:
    assert guest.check("ip -6 addr show dev eth0 dadfailed") == ""
