"""IPv6 with what guests bring: the kernel's SLAAC, clients of DHCPv6, and one of router advertisements alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp6 import DHCP6OptIA_NA, DHCP6OptIA_PD, DHCP6OptRapidCommit, DHCP6OptStatusCode
from scapy.layers.inet6 import IPv6

from tests.integration.changing_host import wait_for
from tests.integration.clients import DHCPV6, LEASE_S, MTU, PREFIX, REBINDING_S, RENEWAL_S, Client, daemon_for_clients
from tests.integration.daemon import Daemon
from tests.integration.exchanges import kinds, message
from tests.integration.topology import GATEWAY6, HOST6, RESOLVER6, SEARCH, Topology

ALL_DHCP_SERVERS = "ff02::1:2"
NO_PREFIX_AVAILABLE = 6
FOUR_MESSAGES = ["SOLICIT", "ADVERTISE", "REQUEST", "REPLY"]


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for the guests of this file, one after the other."""
    with daemon_for_clients(topology, directory, "clients-ipv6") as daemon:
        yield daemon


@pytest.fixture
def client(own_daemon: Daemon) -> Iterator[Client]:
    """A new guest without configuration; its kernel asks for a router, unless a test forbids it."""
    with Client(own_daemon, up=False) as client:
        yield client


def test_the_kernel_configures_itself(client: Client) -> None:
    """The MTU of the device is larger than the announced one, so that it is seen that this one counts."""
    client.check(f"ip link set tap0 mtu {MTU + 1} up")
    client.until("ip -6 route show default | grep via")
    wait_for(lambda: client.addresses(6), "an address")
    (address,) = client.addresses(6)
    assert ipaddress.IPv6Address(address["local"]) in PREFIX
    assert address["prefixlen"] == PREFIX.prefixlen
    assert LEASE_S - 60 < address["valid_life_time"] <= LEASE_S
    routes = {route["dst"]: route for route in client.routes(6)}
    assert (routes["default"]["gateway"], routes["default"]["protocol"]) == (GATEWAY6, "ra")
    assert str(PREFIX) in routes
    assert client.check("cat /proc/sys/net/ipv6/conf/tap0/mtu").strip() == str(MTU)
    assert client.check("cat /proc/sys/net/ipv6/conf/tap0/hop_limit").strip() == "64"


def test_the_kernel_finds_nobody_with_its_addresses(client: Client) -> None:
    """Duplicate address detection (RFC 4862 section 5.4): a second for each of them."""
    client.namespace.sysctl("net/ipv6/conf/tap0/accept_dad=1")
    client.check("ip link set tap0 up")
    client.until("ip -6 addr show dev tap0 -tentative scope global | grep inet6")
    assert client.check("ip -6 addr show dev tap0 dadfailed") == ""


def test_dhclient_configures_the_device_and_releases(client: Client) -> None:
    client.check("ip link set tap0 up && dhclient -6 -1 tap0")
    assert client.configuration(6) == DHCPV6
    lease = client.check("cat /var/lib/dhcp/dhclient6.leases")
    for line in (
        f"iaaddr {HOST6} {{",
        f"renew {RENEWAL_S};",
        f"rebind {REBINDING_S};",
        f"max-life {LEASE_S};",
        f"option dhcp6.name-servers {RESOLVER6};",
        f'option dhcp6.domain-search "{SEARCH}.";',
    ):
        assert line in lease
    assert kinds(client.wire.exchange("REPLY")) == FOUR_MESSAGES

    client.until("test -s /run/dhclient6.pid")
    client.wire.rest()  # a slow machine's client has asked twice
    client.check("dhclient -6 -r tap0")
    reply = message(client.wire.exchange("REPLY"), "REPLY")
    assert reply[DHCP6OptStatusCode].statuscode == 0
    assert client.configuration(6).addresses == ()


def test_dhclient_with_a_lease_has_it_confirmed(client: Client) -> None:
    client.check("ip link set tap0 up && dhclient -6 -1 tap0 && killall -KILL dhclient")
    client.check("ip -6 addr flush dev tap0 scope global")
    client.wire.exchange("REPLY")
    client.wire.rest()
    client.check("dhclient -6 -1 tap0")
    confirmed = client.wire.exchange("REPLY")
    assert kinds(confirmed) == ["CONFIRM", "REPLY"]
    assert message(confirmed, "REPLY")[DHCP6OptStatusCode].statuscode == 0
    assert client.configuration(6).addresses == DHCPV6.addresses


def test_dhclient_asks_for_information_only(client: Client) -> None:
    client.check("ip link set tap0 up && dhclient -6 -S -1 tap0")
    assert kinds(client.wire.exchange("REPLY")) == ["INFORMATION-REQUEST", "REPLY"]
    seen = client.configuration(6)
    assert (seen.nameservers, seen.search) == (DHCPV6.nameservers, DHCPV6.search)
    assert seen.addresses == ()


def test_dhclient_is_given_an_address_but_no_prefix(client: Client) -> None:
    client.check("ip link set tap0 up")
    client.start("dhclient -6 -N -P -1 tap0")
    reply = message(client.wire.exchange("REPLY"), "REPLY")
    assert reply[DHCP6OptIA_PD][DHCP6OptStatusCode].statuscode == NO_PREFIX_AVAILABLE
    client.until(f"ip -6 addr show dev tap0 | grep {HOST6}/128")


def test_dhcp6c_has_its_address_in_two_messages_and_gives_it_back(client: Client) -> None:
    client.check("ip link set tap0 up && : >/etc/resolv.conf")
    client.check(
        "printf 'interface tap0 { send ia-na 0; send rapid-commit; request domain-name-servers, domain-name;"
        ' script "/etc/wide-dhcpv6/dhcp6c-script"; }; id-assoc na 0 {};\' >/etc/wide-dhcpv6/dhcp6c.conf'
    )
    client.check("dhcp6c -p /run/dhcp6c.pid tap0")
    exchange = client.wire.exchange("REPLY")
    assert kinds(exchange) == ["SOLICIT", "REPLY"]
    reply = message(exchange, "REPLY")
    assert DHCP6OptRapidCommit in reply
    assert (reply[DHCP6OptIA_NA].T1, reply[DHCP6OptIA_NA].T2) == (RENEWAL_S, REBINDING_S)
    client.becomes(DHCPV6, 6)

    client.wire.rest()
    client.check("kill $(cat /run/dhcp6c.pid)")
    exchange = client.wire.exchange("REPLY")
    assert kinds(exchange) == ["RELEASE", "REPLY"]
    assert message(exchange, "RELEASE")[IPv6].dst == ALL_DHCP_SERVERS
    client.until(f"! ip -6 addr show dev tap0 | grep {HOST6}/128")


def test_dhcp6c_asks_for_information_only(client: Client) -> None:
    """As Debian configures it."""
    client.check("ip link set tap0 up && : >/etc/resolv.conf && dhcp6c -P default tap0")
    assert kinds(client.wire.exchange("REPLY")) == ["INFORMATION-REQUEST", "REPLY"]

    def told() -> bool:
        seen = client.configuration(6)
        return (seen.nameservers, seen.search) == (DHCPV6.nameservers, DHCPV6.search)

    wait_for(told, "resolver and search list")


def test_rdnssd_takes_resolvers_from_router_advertisements(client: Client) -> None:
    client.check("ip link set tap0 up && mkdir /run/rdnssd && chown rdnssd /run/rdnssd && : >/etc/resolv.conf")
    client.start("rdnssd -f -u rdnssd -H /etc/rdnssd/merge-hook")
    client.until("rdisc6 -1 -q tap0 >/dev/null; grep nameserver /etc/resolv.conf")

    def told() -> bool:  # it writes both again with each advertisement, in place
        said = client.check("cat /run/rdnssd/resolv.conf").splitlines()
        merged = client.check("cat /etc/resolv.conf").split()
        return sorted(said) == [f"nameserver {RESOLVER6}", f"search {SEARCH}"] and merged == ["nameserver", RESOLVER6]

    wait_for(told, "the resolver in both files")
