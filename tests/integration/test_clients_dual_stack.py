"""The clients that do everything at once, DHCP, DHCPv6 and router advertisements: dhcpcd and systemd-networkd."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP

from tests.integration.changing_host import wait_for
from tests.integration.clients import (
    DHCPV6,
    IPV4,
    LEASE_S,
    MTU,
    NETWORKD,
    PREFIX,
    REBINDING_S,
    RENEWAL_S,
    Client,
    daemon_for_clients,
    settings,
)
from tests.integration.daemon import Daemon
from tests.integration.exchanges import kinds, message
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    PREFIX4,
    RESOLVER4,
    RESOLVER6,
    SEARCH,
    Topology,
)

BROADCAST, UNSPECIFIED = "255.255.255.255", "0.0.0.0"


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for the guests of this file, one after the other."""
    with daemon_for_clients(topology, directory, "clients-dual-stack") as daemon:
        yield daemon


def _leave_routers_to_the_client(client: Client) -> None:
    client.namespace.sysctl("net/ipv6/conf/tap0/accept_ra=0")
    client.check(f"ip link set tap0 mtu {MTU} up")


@pytest.fixture(scope="module", autouse=True)
def patient(topology: Topology, directory: Path) -> Iterator[Client]:
    """A guest with a daemon of its own: dhcpcd probes for five seconds whether its address is free, meanwhile others
    are tested."""
    with daemon_for_clients(topology, directory, "clients-patient") as daemon, Client(daemon, up=False) as client:
        _leave_routers_to_the_client(client)
        client.start("dhcpcd --debug --logfile=/tmp/dhcpcd.log --waitip=46 tap0")
        yield client


@pytest.fixture
def client(own_daemon: Daemon) -> Iterator[Client]:
    """A new guest without configuration."""
    with Client(own_daemon, up=False) as client:
        _leave_routers_to_the_client(client)
        yield client


def test_networkd_configures_the_device_and_does_it_again_when_the_link_was_down(client: Client) -> None:
    """It has neither udev nor D-Bus here, as in a container. It releases nothing when it ends."""
    client.check(NETWORKD)
    client.start("/lib/systemd/systemd-networkd")
    client.until(f"ip -6 addr show dev tap0 | grep {HOST6}/128")
    client.until("grep -q ADMIN_STATE=configured /run/systemd/netif/links/*")
    lease = settings(client.check("cat /run/systemd/netif/leases/*"))
    assert lease == lease | {
        "ADDRESS": HOST4,
        "NETMASK": "255.255.255.0",
        "ROUTER": GATEWAY4,
        "SERVER_ADDRESS": GATEWAY4,
        "MTU": str(MTU),
        "T1": str(RENEWAL_S),
        "T2": str(REBINDING_S),
        "LIFETIME": str(LEASE_S),
        "DNS": RESOLVER4,
        "DOMAINNAME": SEARCH,
        "DOMAIN_SEARCH_LIST": SEARCH,
    }
    ifindex = client.check("cat /sys/class/net/tap0/ifindex").strip()
    link = settings(client.check(f"cat /run/systemd/netif/links/{ifindex}"))
    assert set(link["DNS"].split()) == {RESOLVER4, RESOLVER6}
    assert set(link["DOMAINS"].split()) == {SEARCH}
    seen4, seen6 = client.configuration(4), client.configuration(6)
    assert (seen4.addresses, seen4.gateways) == (IPV4.addresses, IPV4.gateways)
    assert (seen6.addresses, seen6.gateways) == (DHCPV6.addresses, DHCPV6.gateways)
    (slaac,) = wait_for(lambda: [each for each in client.addresses(6) if each.get("mngtmpaddr")], "its own address")
    assert ipaddress.IPv6Address(slaac["local"]) in PREFIX
    assert client.mtu_bytes() == MTU
    leases = {"DHCPDISCOVER", "DHCPOFFER", "DHCPREQUEST", "DHCPACK", "SOLICIT", "REPLY"}
    assert set(kinds(client.wire.exchange("DHCPACK", "REPLY") + client.wire.rest())) == leases

    client.check("ip link set tap0 down && ip link set tap0 up")
    exchange = client.wire.exchange("DHCPACK", "REPLY")
    if_up_again_soon = {"DHCPRELEASE"}  # before it has noticed that the link is down
    assert set(kinds(exchange)) - if_up_again_soon == {"DHCPREQUEST", "DHCPACK", "SOLICIT", "REPLY"}
    request = message(exchange, "DHCPREQUEST")
    assert (request[IP].dst, request[BOOTP].ciaddr) == (BROADCAST, UNSPECIFIED)
    client.until(f"ip -4 addr show dev tap0 | grep {HOST4}/{PREFIX4}")


def _signal_dhcpcd(client: Client, name: str, until: str) -> None:
    """What `dhcpcd --exit`, `--release` and `--renew` do; but now and then, it loses a signal."""
    signal = f"kill -{name} $(cat /run/dhcpcd/tap0.pid)"
    wait = f"for _ in $(seq 20); do {until} && exit; sleep 0.1; done"
    client.check(f"for _ in $(seq 30); do {signal}; {wait}; done; exit 1")


def test_dhcpcd_comes_back_to_its_leases_and_releases_them(client: Client) -> None:
    """Without probes for other hosts with its address, which take it four seconds."""
    client.check("dhcpcd --noarp --waitip=46 tap0")
    client.until(f"grep -q nameserver.*{RESOLVER6} /etc/resolv.conf && test -s /var/lib/dhcpcd/tap0.lease6")
    _signal_dhcpcd(client, "TERM", until="! pidof dhcpcd")
    client.wire.rest()

    client.check("dhcpcd --noarp --waitip=46 tap0")
    exchange = client.wire.exchange("DHCPACK", "REPLY")
    assert set(kinds(exchange)) == {"DHCPREQUEST", "DHCPACK", "CONFIRM", "REPLY"}
    request = message(exchange, "DHCPREQUEST")  # RFC 2131 section 4.3.2: INIT-REBOOT
    assert (request[IP].dst, request[BOOTP].ciaddr) == (BROADCAST, UNSPECIFIED)
    client.until(f"ip -6 addr show dev tap0 | grep {HOST6}/128")

    client.meets_gateway()
    _signal_dhcpcd(client, "ALRM", until="! pidof dhcpcd")
    client.wire.exchange("DHCPRELEASE", "RELEASE", "REPLY")
    assert client.configuration(4).addresses == client.configuration(6).addresses == ()


def test_dhcpcd_configures_the_device(patient: Client) -> None:
    """With rapid commit in both families, and after it has probed that nobody else has its address (RFC 5227)."""
    for version, address in (4, f"{HOST4}/{PREFIX4}"), (6, f"{HOST6}/128"):  # it does not always say that it is done
        patient.until(f"ip -{version} addr show dev tap0 | grep {address}")
    patient.becomes(IPV4, 4)
    patient.becomes(DHCPV6, 6)
    told = settings(patient.until("dhcpcd -U tap0 | grep -q dhcp6_rapid_commit && dhcpcd -U tap0"))
    assert told == told | {
        "ip_address": HOST4,
        "subnet_cidr": str(PREFIX4),
        "routers": GATEWAY4,
        "domain_name_servers": RESOLVER4,
        "domain_name": SEARCH,
        "domain_search": SEARCH,
        "interface_mtu": str(MTU),
        "dhcp_lease_time": str(LEASE_S),
        "dhcp_renewal_time": str(RENEWAL_S),
        "dhcp_rebinding_time": str(REBINDING_S),
        "rapid_commit": "",
        "nd1_from": GATEWAY6,
        "nd1_hoplimit": "64",
        "nd1_flags": "MO",
        "nd1_mtu": str(MTU),
        "nd1_prefix_information1_prefix": str(PREFIX.network_address),
        "nd1_prefix_information1_length": str(PREFIX.prefixlen),
        "nd1_prefix_information1_flags": "LA",
        "nd1_rdnss1_servers": RESOLVER6,
        "nd1_dnssl1_search": SEARCH,
        "dhcp6_ia_na1_ia_addr1": HOST6,
        "dhcp6_ia_na1_t1": str(RENEWAL_S),
        "dhcp6_ia_na1_t2": str(REBINDING_S),
        "dhcp6_name_servers": RESOLVER6,
        "dhcp6_domain_search": SEARCH,
        "dhcp6_rapid_commit": "",
    }
    exchange = patient.wire.exchange("DHCPACK", "REPLY") + patient.wire.rest()
    assert set(kinds(exchange)) == {"DHCPDISCOVER", "DHCPACK", "SOLICIT", "REPLY"}
    probes = [packet for packet in exchange if ARP in packet and packet[ARP].psrc == UNSPECIFIED]
    assert len(probes) == 3

    _signal_dhcpcd(patient, "USR1", until="grep -q 'renewing lease' /tmp/dhcpcd.log")
    renewal = patient.wire.exchange("DHCPACK", "REPLY")
    assert set(kinds(renewal)) == {"DHCPREQUEST", "DHCPACK", "RENEW", "REPLY"}
    request = message(renewal, "DHCPREQUEST")
    assert (request[IP].src, request[IP].dst, request[BOOTP].ciaddr) == (HOST4, GATEWAY4, HOST4)
