"""The path that the guest sees is the host's: `traceroute` there, beside the same command in the host's namespace."""

from __future__ import annotations

import re

import pytest

from tests.guest.machine import Guest
from tests.integration.topology import (
    ABSENT4,
    ABSENT6,
    FAR4,
    FAR6,
    GATEWAY4,
    GATEWAY6,
    PROHIBITED6,
    REMOTE4,
    REMOTE6,
    ROUTER4,
    ROUTER6,
    UNREACHABLE6,
    Topology,
    run,
)

Hops = list[list[str]]

PATIENTLY = "-n -w 10,0,0"
"""For each answer as long, however soon others came."""

methods = pytest.mark.parametrize("method", ["", "-I"], ids=["udp", "echo"])


def hops(output: str) -> Hops:
    """Of each hop, what answered the probes, and "!H" and the like where it was an error: without times, in order."""
    found = []
    for line in output.splitlines()[1:]:
        words = re.sub(r"\d+\.\d+ ms", "", line).split()
        found.append(sorted(set(words[1:])))
    return found


def on_host(topology: Topology, arguments: str) -> Hops:
    """The same command in the host's namespace."""
    return hops(run(*topology.host.enter(), "traceroute", *arguments.split()))


@methods
@pytest.mark.parametrize(
    ("address", "path"),
    [
        pytest.param(FAR4, [[ROUTER4], [FAR4]], id="ipv4"),
        pytest.param(FAR6, [[ROUTER6], [FAR6]], id="ipv6"),
        pytest.param(REMOTE4, [[REMOTE4]], id="remote-ipv4"),
        pytest.param(REMOTE6, [[REMOTE6]], id="remote-ipv6"),
    ],
)
def test_the_guest_sees_the_hosts_path(guest: Guest, topology: Topology, address: str, path: Hops, method: str) -> None:
    arguments = f"{PATIENTLY} {method} {address}"
    assert on_host(topology, arguments) == path
    assert hops(guest.check(f"traceroute {arguments}")) == path


@methods
@pytest.mark.parametrize("gateway", [GATEWAY4, GATEWAY6], ids=["ipv4", "ipv6"])
def test_the_gateway_stands_for_the_host_and_is_one_hop_away(guest: Guest, gateway: str, method: str) -> None:
    scoped = f"{gateway}%eth0" if ":" in gateway else gateway
    (hop,) = hops(guest.check(f"traceroute {PATIENTLY} {method} {scoped}"))
    assert hop in ([gateway], [scoped])


@pytest.mark.parametrize(
    ("address", "path"),
    [
        pytest.param(ABSENT4, [["!H", ROUTER4]], id="absent-ipv4"),
        pytest.param(ABSENT6, [["!H", ROUTER6]], id="absent-ipv6"),
        pytest.param(UNREACHABLE6, [["!N", ROUTER6]], id="unreachable-ipv6"),
        pytest.param(PROHIBITED6, [["!X", ROUTER6]], id="prohibited-ipv6"),
    ],
)
def test_where_the_path_ends_the_guest_sees_why(guest: Guest, topology: Topology, address: str, path: Hops) -> None:
    arguments = f"{PATIENTLY} -f 2 -m 2 {address}"
    ends = hops(guest.check(f"traceroute {arguments}"))
    assert ends == on_host(topology, arguments) == path
