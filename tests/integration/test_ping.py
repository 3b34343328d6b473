"""ICMP and ICMPv6 echo from the guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.kernel import DEVICE, KernelGuest
from tests.guest.machine import Guest
from tests.integration.changing_host import wait_for
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.pinging import all_answered, echoes
from tests.integration.topology import (
    ABSENT4,
    ABSENT6,
    FAR4,
    FAR6,
    FAR_MTU_BYTES,
    GATEWAY4,
    GATEWAY6,
    NOWHERE4,
    NOWHERE6,
    PROHIBITED4,
    PROHIBITED6,
    REMOTE4,
    REMOTE6,
    ROUTER4,
    ROUTER6,
    SILENT4,
    SILENT6,
    UNREACHABLE4,
    UNREACHABLE6,
    Topology,
)

MTU_BYTES = 65520
HEADER_BYTES = {REMOTE4: 20 + 8, REMOTE6: 40 + 8}
LARGEST = 65507
"""What `ping` can send: more than the guest's MTU."""

FLOODS = 3
"""One without a loss is enough: `ping` waits for the last answer for no more than twice the longest round trip."""

SIZES = (0, 1, 7, 8, 9, 56, 255, 1024, 1472, 1473, 4000, 16384)


@pytest.mark.parametrize("address", [GATEWAY4, f"{GATEWAY6}%eth0", REMOTE4, REMOTE6, FAR4, FAR6])
@pytest.mark.parametrize("size", [8, 1300])
def test_every_echo_request_is_answered(guest: Guest, address: str, size: int) -> None:
    assert all_answered(guest.check(f"ping {echoes(3, 0.2)} -s {size} {address}"), 3)


@pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])
def test_requests_of_all_sizes_are_answered(guest: Guest, address: str) -> None:
    """Up to the MTU and beyond; `ping` compares what comes back with what it has sent."""
    largest = MTU_BYTES - HEADER_BYTES[address]
    sizes = [*SIZES, largest - 1, largest, largest + 1, LARGEST]
    output = guest.check(f"for size in {' '.join(map(str, sizes))}; do ping -n -c 1 -W 20 -s $size {address}; done")
    assert re.findall(r"^(\d+) bytes from \S+: icmp_seq=1 ", output, re.MULTILINE) == [str(size + 8) for size in sizes]
    assert "wrong data byte" not in output


def test_two_pings_at_a_time_do_not_mix(guest: Guest) -> None:
    under_way = [guest.start(f"ping {echoes(5, 0.2)} {address}") for address in (REMOTE4, REMOTE4, REMOTE6)]
    for pending in under_way:
        assert all_answered(pending.result().check().stdout, 5)


def test_nor_do_many_to_all_kinds_of_addresses(guest: Guest) -> None:
    addresses = [GATEWAY4, f"{GATEWAY6}%eth0", REMOTE4, REMOTE6, FAR4, FAR6]
    under_way = [
        guest.start(f"ping {echoes(10, 0.1)} -s {size} {address}") for address in addresses for size in (56, 1300)
    ]
    for pending in under_way:
        assert all_answered(pending.result().check().stdout, 10)


def test_one_flood(guest: Guest) -> None:
    for _ in range(FLOODS):
        output = guest.check(f"ping -n -q -f -c 500 {REMOTE4}")
        if "500 packets transmitted, 500 received" in output:
            break
    assert "500 packets transmitted, 500 received, 0% packet loss" in output


@pytest.mark.parametrize("address", [SILENT4, SILENT6], ids=["ipv4", "ipv6"])
def test_an_address_that_nobody_has_stays_silent(guest: Guest, address: str) -> None:
    result = guest.run(f"ping -n -c 1 -W 1 {address}")
    assert result.status == 1
    assert re.search(r"1 packets transmitted, 0 received, 100% packet loss", result.stdout)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(f"-t 1 {FAR4}", f"From {ROUTER4} icmp_seq=1 Time to live exceeded", id="hops-ipv4"),
        pytest.param(ABSENT4, f"From {ROUTER4} icmp_seq=1 Destination Host Unreachable", id="absent-ipv4"),
        pytest.param(UNREACHABLE4, f"From {ROUTER4} icmp_seq=1 Destination Host Unreachable", id="unreachable-ipv4"),
        pytest.param(NOWHERE4, f"From {ROUTER4} icmp_seq=1 Destination Net Unreachable", id="nowhere-ipv4"),
        pytest.param(PROHIBITED4, f"From {ROUTER4} icmp_seq=1 Packet filtered", id="prohibited-ipv4"),
        pytest.param(f"-t 1 {FAR6}", f"From {ROUTER6} icmp_seq=1 Time exceeded: Hop limit", id="hops-ipv6"),
        pytest.param(
            ABSENT6, f"From {ROUTER6} icmp_seq=1 Destination unreachable: Address unreachable", id="absent-ipv6"
        ),
        pytest.param(
            UNREACHABLE6, f"From {ROUTER6} icmp_seq=1 Destination unreachable: No route", id="unreachable-ipv6"
        ),
        pytest.param(NOWHERE6, f"From {ROUTER6} icmp_seq=1 Destination unreachable: No route", id="nowhere-ipv6"),
        pytest.param(
            PROHIBITED6,
            f"From {ROUTER6} icmp_seq=1 Destination unreachable: Administratively prohibited",
            id="prohibited-ipv6",
        ),
    ],
)
def test_what_a_router_says_is_shown(guest: Guest, target: str, expected: str) -> None:
    result = guest.run(f"ping -n -c 1 -W 20 {target}")
    assert result.status == 1
    assert expected in result.stdout.splitlines()
    assert "1 packets transmitted, 0 received, +1 errors, 100% packet loss" in result.stdout


@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        (FAR4, 1472, f"From {ROUTER4} icmp_seq=1 Frag needed and DF set (mtu = {FAR_MTU_BYTES})"),
        (FAR6, 1452, f"From {ROUTER6} icmp_seq=1 Packet too big: mtu={FAR_MTU_BYTES}"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_a_router_with_a_smaller_mtu_says_so(
    guest: Guest, topology: Topology, address: str, size: int, expected: str
) -> None:
    forget = "for family in -4 -6; do ip $family route flush cache; done"
    topology.host.forget_path_mtus()
    guest.check(forget)
    try:
        ping = f"ping -n -c 1 -W 20 -M do {address} -s"
        assert expected in guest.run(f"{ping} {size}").stdout.splitlines()
        assert re.search(rf"local error: message too long, mtu\W+{FAR_MTU_BYTES}$", guest.run(f"{ping} {size}").stderr)
        assert "1 packets transmitted, 1 received" in guest.check(f"{ping} {size - (1500 - FAR_MTU_BYTES)}")
    finally:
        guest.check(forget)


def test_without_permission_the_gateway_still_answers_and_one_warning_names_the_setting(
    topology: Topology, directory: Path
) -> None:
    with (
        topology.host.changed("net/ipv4/ping_group_range=1 0"),
        Daemon(topology.host, daemon_directory(directory, "no-ping"), "--quiet") as daemon,
        KernelGuest(daemon.wait_ready().socket_path) as guest,
    ):
        for gateway in (GATEWAY4, f"{GATEWAY6}%{DEVICE}"):
            assert all_answered(guest.run("ping", *echoes(3, 0.1).split(), gateway), 3)
        for address in (REMOTE4, REMOTE6):
            output = guest.run("sh", "-c", f"ping -n -c 2 -i 0.1 -W 1 {address} || true")
            assert "2 packets transmitted, 0 received" in output
        wait_for(daemon.log_tail, "a warning")
        (warning,) = daemon.log_tail().splitlines()
    assert "net.ipv4.ping_group_range" in warning
