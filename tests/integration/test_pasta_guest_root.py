"""A network namespace as guest, of root: by the name that `ip netns add` gave it, set up by `--config-net`.

Of what test_pasta_guest.py checks of the ways to the world, something of each kind, without any client in the guest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.image import Image
from tests.integration import test_forward, test_ping, test_tcp, test_udp
from tests.integration.changing_host import wait_for
from tests.integration.conftest import FORWARDS
from tests.integration.daemon import daemon_directory
from tests.integration.namespace_guest import NamespaceDaemon, NamespaceGuest, checks
from tests.integration.test_tcp import random_file  # noqa: F401 # a fixture
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    PREFIX4,
    PREFIX6,
    Namespace,
    Topology,
    named_namespace,
)

globals().update(
    checks(
        *(test_forward, test_ping, test_tcp, test_udp),
        only=[
            "test_parallel_connections_stay_apart",
            "test_every_echo_request_is_answered",
            "test_requests_of_all_sizes_are_answered",
            "test_what_a_router_says_is_shown",
            "test_upload_arrives_as_it_was",
            "test_download_arrives_as_it_was",
            "test_both_directions_at_a_time",
            "test_nothing_at_all",
            "test_a_refused_connection_is_refused_at_once",
            "test_the_gateways_address_leads_to_the_hosts_loopback",
            "test_request_and_response",
            "test_many_names_in_quick_succession",
            "test_a_closed_port_is_refused_at_once",
        ],
    )
)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """In place of the session's, where the session's daemon may have the ports that are forwarded here, too."""
    with Topology("root") as topology:
        yield topology


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """Root's, with a name."""
    namespace = named_namespace("named")
    try:
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture(scope="module")
def daemon(topology: Topology, directory: Path, namespace: Namespace) -> Iterator[NamespaceDaemon]:
    """In place of the session's."""
    own = daemon_directory(directory, "pasta-root")
    arguments = [*FORWARDS, "-T", "none", "-U", "none", "--config-net", "--netns", namespace.name]
    with NamespaceDaemon(topology.host, own, *arguments, as_root=True) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def offline_guest(
    image: Image, daemon: NamespaceDaemon, namespace: Namespace, directory: Path
) -> Iterator[NamespaceGuest]:
    """In place of the session's; it is online when the program is ready."""
    with NamespaceGuest(namespace, image, directory / "pasta-root-guest") as guest:
        yield guest


@pytest.fixture
def guest(offline_guest: NamespaceGuest) -> NamespaceGuest:
    """Online."""
    return offline_guest


def _shown(guest: NamespaceGuest, what: str) -> list[dict[str, Any]]:
    return list(json.loads(guest.check(f"ip -json {what}") or "[]"))


def test_it_is_set_up_when_the_program_is_ready(guest: NamespaceGuest) -> None:
    """Addresses, also those without duplicate address detection, routes, the MTU; and the loopback device is up."""
    (device,) = [each for each in _shown(guest, "addr show dev eth0") if each]
    (loopback,) = [each for each in _shown(guest, "link show dev lo") if each]
    assert {"UP", "LOWER_UP"} <= set(device["flags"])
    assert "UP" in loopback["flags"]
    assert device["mtu"] == 65520
    addresses = {f"{each['local']}/{each['prefixlen']}" for each in device["addr_info"] if each["scope"] == "global"}
    assert addresses == {f"{HOST4}/{PREFIX4}", f"{HOST6}/{PREFIX6}"}
    assert not any(each.get("tentative") or each.get("dadfailed") for each in device["addr_info"])
    for version, gateway in ((4, GATEWAY4), (6, GATEWAY6)):
        (route,) = _shown(guest, f"-{version} route show default")
        assert (route["gateway"], route["dev"]) == (gateway, "eth0")


def test_what_serves_it_is_nobodys(guest: NamespaceGuest, daemon: NamespaceDaemon) -> None:
    """Root becomes somebody else when all is set up, and the PID file is written."""
    status = Path(f"/proc/{daemon.process.pid}/status")
    wait_for(lambda: "Uid:\t65534\t65534\t65534\t65534" in status.read_text(), "being nobody")
    assert "CapEff:\t0000000000000000" in status.read_text()
