"""IPv4 with the DHCP clients that guests bring: lease, renewal, restart, release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP
from scapy.packet import Packet

from tests.integration.clients import IPV4, LEASE_S, MTU, REBINDING_S, RENEWAL_S, Client, daemon_for_clients, settings
from tests.integration.daemon import Daemon
from tests.integration.exchanges import kind, kinds, message, options
from tests.integration.topology import GATEWAY4, HOST4, RESOLVER4, SEARCH, Topology

BROADCAST, UNSPECIFIED = "255.255.255.255", "0.0.0.0"
FOUR_MESSAGES = ["DHCPDISCOVER", "DHCPOFFER", "DHCPREQUEST", "DHCPACK"]


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for the guests of this file, one after the other."""
    with daemon_for_clients(topology, directory, "clients-dhcp") as daemon:
        yield daemon


@pytest.fixture
def client(own_daemon: Daemon) -> Iterator[Client]:
    """A new guest without configuration."""
    with Client(own_daemon) as client:
        yield client


def test_udhcpc_configures_the_device_and_renews_and_releases(client: Client) -> None:
    client.check("udhcpc -i tap0 -b -p /run/udhcpc.pid -O mtu")
    client.becomes(IPV4, 4)
    assert client.mtu_bytes() == MTU
    assert kinds(client.wire.exchange("DHCPACK")) == FOUR_MESSAGES

    client.wire.rest()  # a slow machine's client has asked twice
    client.until("kill -USR1 $(cat /run/udhcpc.pid)")  # renew
    renewal = client.wire.exchange("DHCPACK")
    request = message(renewal, "DHCPREQUEST")
    assert (request[IP].src, request[IP].dst) == (HOST4, GATEWAY4)
    assert request[BOOTP].ciaddr == HOST4
    assert message(renewal, "DHCPACK")[BOOTP].yiaddr == HOST4

    client.meets_gateway()
    client.check("kill -USR2 $(cat /run/udhcpc.pid)")  # release
    release = message(client.wire.exchange("DHCPRELEASE"), "DHCPRELEASE")
    assert (release[IP].dst, release[BOOTP].ciaddr) == (GATEWAY4, HOST4)
    client.until("! ip -4 addr show dev tap0 | grep inet")

    client.check("kill -USR1 $(cat /run/udhcpc.pid)")  # start again
    assert kinds(client.wire.exchange("DHCPACK")) == FOUR_MESSAGES
    client.until(f"ip -4 addr show dev tap0 | grep 'inet {HOST4}'")


def test_udhcpc_asks_for_what_it_had(client: Client) -> None:
    client.check(f"udhcpc -i tap0 -q -n -r {HOST4}")
    assert client.configuration(4) == IPV4


def test_udhcpc_is_offered_another_address_than_it_had(client: Client) -> None:
    client.check("udhcpc -i tap0 -q -n -r 10.1.2.3")
    assert client.configuration(4) == IPV4


def test_udhcpc_finds_that_nobody_has_its_address(client: Client) -> None:
    client.check("udhcpc -i tap0 -q -n -a")
    assert "DHCPDECLINE" not in kinds(client.wire.exchange("DHCPACK") + client.wire.rest())
    assert client.configuration(4) == IPV4


def test_dhclient_configures_the_device_and_releases(client: Client) -> None:
    client.check("dhclient -4 -1 tap0")
    assert client.configuration(4) == IPV4
    assert client.mtu_bytes() == MTU
    lease = client.check("cat /var/lib/dhcp/dhclient.leases")
    for line in (
        f"fixed-address {HOST4};",
        "option subnet-mask 255.255.255.0;",
        f"option routers {GATEWAY4};",
        f"option domain-name-servers {RESOLVER4};",
        f'option domain-name "{SEARCH}";',
        f'option domain-search "{SEARCH}.";',
        f"option interface-mtu {MTU};",
        f"option dhcp-lease-time {LEASE_S};",
        f"option dhcp-renewal-time {RENEWAL_S};",
        f"option dhcp-rebinding-time {REBINDING_S};",
        f"option dhcp-server-identifier {GATEWAY4};",
    ):
        assert line in lease
    assert "host-name" not in lease
    assert kinds(client.wire.exchange("DHCPACK")) == FOUR_MESSAGES

    client.until("test -s /run/dhclient.pid")
    client.meets_gateway()
    client.check("dhclient -4 -r tap0")
    release = message(client.wire.exchange("DHCPRELEASE"), "DHCPRELEASE")
    assert (release[IP].src, release[IP].dst, release[BOOTP].ciaddr) == (HOST4, GATEWAY4, HOST4)
    assert client.configuration(4).addresses == ()


def _has_been_switched_off_with_a_lease(client: Client) -> None:
    client.check("dhclient -4 -1 tap0 && killall -KILL dhclient && ip -4 addr flush dev tap0")
    assert kinds(client.wire.exchange("DHCPACK")) == FOUR_MESSAGES
    client.wire.rest()


def test_dhclient_with_a_lease_reboots_in_two_messages(client: Client) -> None:
    _has_been_switched_off_with_a_lease(client)
    client.check("dhclient -4 -1 tap0")
    exchange = client.wire.exchange("DHCPACK")
    assert kinds(exchange) == ["DHCPREQUEST", "DHCPACK"]
    request = message(exchange, "DHCPREQUEST")  # RFC 2131 section 4.3.2: INIT-REBOOT
    assert (request[IP].dst, request[BOOTP].ciaddr) == (BROADCAST, UNSPECIFIED)
    assert options(request)["requested_addr"] == HOST4
    assert "server_id" not in options(request)
    assert client.configuration(4) == IPV4


def test_dhclient_with_a_lease_of_another_network_is_refused_and_starts_again(client: Client) -> None:
    _has_been_switched_off_with_a_lease(client)
    client.check(f"sed -i 's/fixed-address {HOST4}/fixed-address 10.1.2.3/' /var/lib/dhcp/dhclient.leases")
    client.check("dhclient -4 -1 tap0")
    assert kinds(client.wire.exchange("DHCPACK")) == ["DHCPREQUEST", "DHCPNAK", "DHCPDISCOVER", "DHCPOFFER", "DHCPACK"]
    assert client.configuration(4) == IPV4


def test_dhclient_renews_by_itself(client: Client) -> None:
    """The times are its own configuration's, so that the test need not wait for ours."""
    times = "supersede dhcp-renewal-time 1; supersede dhcp-rebinding-time 600;"
    client.check(f"echo '{times}' >>/etc/dhcp/dhclient.conf && dhclient -4 -1 tap0")
    client.wire.exchange("DHCPACK")
    for _ in range(2):
        renewal: list[Packet] = []
        while not any(kind(packet) == "DHCPREQUEST" and packet[IP].src == HOST4 for packet in renewal):
            renewal = client.wire.exchange("DHCPREQUEST", "DHCPACK")  # the first ones may be of the lease still
        request = next(packet for packet in renewal if kind(packet) == "DHCPREQUEST" and packet[IP].src == HOST4)
        assert (request[IP].dst, request[BOOTP].ciaddr) == (GATEWAY4, HOST4)
        assert "requested_addr" not in options(request)
    client.becomes(IPV4, 4)  # its script is at it, every second


@pytest.mark.parametrize("protocol", ["dhcp", "bootp"])
def test_ipconfig_configures_the_device(client: Client, protocol: str) -> None:
    """Klibc's, of Debian's initramfs; it speaks BOOTP without DHCP, too (RFC 951, RFC 1534 section 2)."""
    client.check(f"/usr/lib/klibc/bin/ipconfig -t 20 -c {protocol} -d tap0")
    told = settings(client.check("cat /run/net-tap0.conf"))
    assert told == told | {
        "PROTO": protocol,
        "IPV4ADDR": HOST4,
        "IPV4NETMASK": "255.255.255.0",
        "IPV4GATEWAY": GATEWAY4,
        "IPV4DNS0": RESOLVER4,
        "DNSDOMAIN": SEARCH,
    }
    seen = client.configuration(4)
    assert (seen.addresses, seen.gateways) == (IPV4.addresses, IPV4.gateways)
    assert client.mtu_bytes() == MTU
    assert kinds(client.wire.exchange("DHCPACK") if protocol == "dhcp" else client.wire.rest()) == (
        FOUR_MESSAGES if protocol == "dhcp" else []
    )
