"""The services as programs see them that only look: rdisc6, ndisc6, arping, dhcping, nmap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients import LEASE_S, MTU, PREFIX, Client, daemon_for_clients
from tests.integration.topology import GATEWAY4, GATEWAY6, HOST4, HOST6, RESOLVER4, RESOLVER6, SEARCH, Topology

ROUTER_MAC = "9A:55:9A:55:9A:55"
NEIGHBOR4, NEIGHBOR6 = "192.0.2.99", "2001:db8:1::99"
"""On the guest's link, as it was told, and no host's."""


@pytest.fixture(scope="module")
def guest(topology: Topology, directory: Path) -> Iterator[Client]:
    """A guest that has its addresses."""
    with daemon_for_clients(topology, directory, "observers") as daemon, Client(daemon) as guest:
        guest.check("udhcpc -i tap0 -q -n && dhclient -6 -1 tap0")
        yield guest


def _fields(text: str) -> dict[str, str]:
    """Lines of the form `name : value`."""
    pairs = (line.partition(": ") for line in text.splitlines() if ": " in line)
    return {name.strip(" |_:"): value.strip() for name, _, value in pairs}


def test_rdisc6_finds_the_router(guest: Client) -> None:
    found = guest.check("rdisc6 -1 tap0")
    assert found.rstrip().endswith(f"from {GATEWAY6}")
    fields = _fields(found)
    assert int(fields.pop("Pref. time").split()[0]) <= LEASE_S
    assert fields == {
        "Hop limit": "64 (      0x40)",
        "Stateful address conf.": "Yes",
        "Stateful other conf.": "Yes",
        "Mobile home agent": "No",
        "Router preference": "medium",
        "Neighbor discovery proxy": "No",
        "Router lifetime": "1800 (0x00000708) seconds",
        "Reachable time": "unspecified (0x00000000)",
        "Retransmit time": "unspecified (0x00000000)",
        "Source link-layer address": ROUTER_MAC,
        "MTU": f"{MTU} bytes (valid)",
        "Prefix": str(PREFIX),
        "On-link": "Yes",
        "Autonomous address conf.": "Yes",
        "Valid time": f"{LEASE_S} (0x{LEASE_S:08x}) seconds",
        "Recursive DNS server": RESOLVER6,
        "DNS server lifetime": "1800 (0x00000708) seconds",
        "DNS search list": SEARCH,
        "DNS search list lifetime": "1800 (0x00000708) seconds",
    }


@pytest.mark.parametrize("address", [GATEWAY6, NEIGHBOR6, "2001:db8:1::1", "fe80::1234"])
def test_ndisc6_finds_every_neighbor(guest: Client, address: str) -> None:
    assert guest.check(f"ndisc6 -q {address} tap0").strip() == ROUTER_MAC


def test_ndisc6_does_not_find_the_guest_itself(guest: Client) -> None:
    (link_local,) = re.findall(r"inet6 (fe80::\S+)/64", guest.check("ip -6 addr show dev tap0 scope link"))
    for address in (HOST6, link_local):
        assert "No response" in guest.check(f"ndisc6 -r 1 -w 300 {address} tap0 2>&1 || true")


@pytest.mark.parametrize("address", [GATEWAY4, NEIGHBOR4])
def test_arping_finds_every_neighbor(guest: Client, address: str) -> None:
    assert f"reply from {address} [{ROUTER_MAC}]" in guest.check(f"arping -f -w 20 -I tap0 {address}")


def test_arping_does_not_find_the_guest_itself(guest: Client) -> None:
    assert "Received 0 response(s)" in guest.check(f"arping -c 1 -w 1 -I tap0 {HOST4} || true")


@pytest.mark.parametrize(("address", "replies"), [(HOST4, 0), (GATEWAY4, 1)], ids=["own", "gateway"])
def test_arping_finds_whether_another_has_an_address(guest: Client, address: str, replies: int) -> None:
    """As a client probes before it takes an address (RFC 5227)."""
    patience_s = 20 if replies else 1
    said = guest.check(f"arping -D -c 1 -w {patience_s} -I tap0 {address} || true")
    assert f"Received {replies} response(s)" in said


@pytest.mark.parametrize("inform", ["", "-i"], ids=["request", "inform"])
def test_dhcping_is_answered(guest: Client, inform: str) -> None:
    """It sends less than the 300 bytes that BOOTP wants."""
    mac = guest.check("cat /sys/class/net/tap0/address").strip()
    said = guest.check(f"dhcping -v {inform} -s {GATEWAY4} -c {HOST4} -h {mac}")
    assert said.strip() == f"Got answer from: {GATEWAY4}"


def test_dhcping_is_refused_another_address(guest: Client) -> None:
    mac = guest.check("cat /sys/class/net/tap0/address").strip()
    said = guest.check(f"dhcping -V -s {GATEWAY4} -c {NEIGHBOR4} -h {mac} || true")
    assert "DHCPNAK" in said


def test_nmap_discovers_the_dhcp_server(guest: Client) -> None:
    """By broadcast, as a client with another link-layer address (broadcast-dhcp6-discover cannot be used: it fails on
    each server whose DUID has no time in it)."""
    script = "broadcast-dhcp-discover"
    found = guest.check(f"nmap -e tap0 --script {script} --script-args {script}.timeout=2")
    assert "Response 1 of 1" in found
    told = _fields(found)
    assert told == told | {
        "IP Offered": HOST4,
        "DHCP Message Type": "DHCPOFFER",
        "Server Identifier": GATEWAY4,
        "IP Address Lease Time": "1d00h00m00s",
        "Renewal Time Value": "10m00s",
        "Rebinding Time Value": "21h00m00s",
        "Subnet Mask": "255.255.255.0",
        "Router": GATEWAY4,
        "Domain Name Server": RESOLVER4,
        "Domain Name": SEARCH,
        "Interface MTU": str(MTU),
    }


def test_nmap_is_informed_by_the_dhcp_server(guest: Client) -> None:
    """By unicast, with DHCPINFORM."""
    found = guest.check(f"nmap -n -e tap0 -sU -p 67 --script dhcp-discover {GATEWAY4}")
    told = _fields(found)
    assert told == told | {
        "DHCP Message Type": "DHCPACK",
        "Server Identifier": GATEWAY4,
        "Subnet Mask": "255.255.255.0",
        "Router": GATEWAY4,
        "Domain Name Server": RESOLVER4,
        "Domain Name": SEARCH,
        "Interface MTU": str(MTU),
    }
    assert "Lease Time" not in found
