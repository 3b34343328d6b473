"""The guest's name: `--hostname` by DHCP, `--fqdn` by DHCP and DHCPv6, as clients understand them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients import NETWORKD, Client, daemon_for_clients, settings
from tests.integration.daemon import Daemon
from tests.integration.topology import SEARCH, Topology

HOSTNAME = "guest-a"
FQDN = f"{HOSTNAME}.{SEARCH}"
UDHCPC_SCRIPT = "#!/bin/sh\nenv >/run/udhcpc.$1\n"
WANTED_NAME = "another.example.com"
"""What the guest would like to be called."""


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for the guests of this file, one after the other."""
    names = ["--hostname", HOSTNAME, "--fqdn", FQDN]
    with daemon_for_clients(topology, directory, "clients-names", *names) as daemon:
        yield daemon


@pytest.fixture
def client(own_daemon: Daemon) -> Iterator[Client]:
    """A new guest without configuration, called localhost."""
    with Client(own_daemon) as client:
        yield client


def test_udhcpc_is_told_both_names(client: Client) -> None:
    client.check(f"printf '{UDHCPC_SCRIPT}' >/root/script && chmod +x /root/script")
    client.check("udhcpc -i tap0 -q -n -O hostname -O 81 -s /root/script")
    told = settings(client.check("cat /run/udhcpc.bound"))
    assert told["hostname"] == HOSTNAME
    wire_format = b"".join(bytes((len(label),)) + label.encode() for label in FQDN.split(".")) + b"\0"
    assert bytes.fromhex(told["opt81"])[3:] == wire_format  # RFC 4702 section 2.1: after flags and two codes

    client.check(f"udhcpc -i tap0 -q -n -F {WANTED_NAME} -s /root/script")
    told = settings(client.check("cat /run/udhcpc.bound"))
    assert bytes.fromhex(told["opt81"])[3:] == FQDN.encode()  # in the encoding in which udhcpc asked


def test_dhclient_takes_the_host_name(client: Client) -> None:
    client.check("dhclient -4 -1 tap0")
    assert client.check("hostname").strip() == HOSTNAME
    lease = client.check("cat /var/lib/dhcp/dhclient.leases")
    assert f'option host-name "{HOSTNAME}";' in lease
    assert "fqdn" not in lease


def test_dhclient_is_told_another_full_name_than_it_wanted(client: Client) -> None:
    wanted = f'send fqdn.fqdn "{WANTED_NAME}"; send fqdn.encoded on; send fqdn.server-update on;'
    client.check(f"echo '{wanted} also request fqdn.fqdn;' >>/etc/dhcp/dhclient.conf && dhclient -4 -1 tap0")
    lease = client.check("cat /var/lib/dhcp/dhclient.leases")
    for line in (
        f'option fqdn.fqdn "{FQDN}";',
        "option fqdn.encoded true;",
        "option fqdn.server-update false;",
        "option fqdn.no-client-update true;",
    ):
        assert line in lease


def test_dhclient_is_told_the_full_name_by_dhcpv6(client: Client) -> None:
    client.check("dhclient -6 -1 tap0")
    assert f'option fqdn.fqdn "{FQDN}";' in client.check("cat /var/lib/dhcp/dhclient6.leases")


def test_dhcpcd_takes_the_full_name(client: Client) -> None:
    client.check(f"dhcpcd --noarp --fqdn=both --hostname={WANTED_NAME} --waitip=46 tap0")
    client.until("test -s /var/lib/dhcpcd/tap0.lease6")
    told = settings(client.until("dhcpcd -U tap0 | grep dhcp6_fqdn >/dev/null && dhcpcd -U tap0"))
    assert told == told | {
        "host_name": HOSTNAME,
        "fqdn": FQDN,
        "fqdn_flags": "NEO",
        "dhcp6_fqdn": FQDN,
    }
    client.until(f"hostname | grep -x {FQDN}")


def test_networkd_is_told_the_host_name(client: Client) -> None:
    client.check(NETWORKD)
    client.start("/lib/systemd/systemd-networkd")
    assert f"HOSTNAME={HOSTNAME}\n" in client.until("cat /run/systemd/netif/leases/*")
