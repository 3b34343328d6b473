"""A network namespace as guest, of an ordinary user: what is checked with a machine is checked with it.

The same functions are run, found in the files that have them; who serves whom is another. Here the user has made the
namespace, the program joins it by the ID of a process in it, and the guest asks for its configuration: udhcpc, the
kernel's SLAAC, dhclient -6. Connections from the host's own loopback pass the tap as all others do (`--no-splice`), so
that of them is seen what a machine sees. test_pasta_guest_root.py does it the other way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import tun
from tests.guest.image import Image
from tests.guest.unprivileged import Unprivileged
from tests.integration import test_configure, test_forward, test_ping, test_tcp, test_traceroute, test_udp
from tests.integration.conftest import FORWARDS, Configured, go_online
from tests.integration.daemon import daemon_directory
from tests.integration.namespace_guest import NamespaceDaemon, NamespaceGuest, checks
from tests.integration.test_tcp import random_file  # noqa: F401 # a fixture
from tests.integration.topology import UNPRIVILEGED_ID, Topology

NOT_ABOUT_THIS_GUEST = ["test_without_permission_the_gateway_still_answers_and_one_warning_names_the_setting"]

globals().update(
    checks(
        *(test_configure, test_forward, test_ping, test_tcp, test_traceroute, test_udp),
        without=NOT_ABOUT_THIS_GUEST,
    )
)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """In place of the session's, where the session's daemon may have the ports that are forwarded here, too."""
    with Topology("pasta") as topology:
        yield topology


@pytest.fixture(scope="module")
def namespace(topology: Topology) -> Iterator[Unprivileged]:
    """The user's."""
    with tun.open_to_everybody(), Unprivileged(topology.host.enter_unprivileged()) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def daemon(topology: Topology, directory: Path, namespace: Unprivileged) -> Iterator[NamespaceDaemon]:
    """In place of the session's."""
    own = daemon_directory(directory, "pasta")
    arguments = [*FORWARDS, "-T", "none", "-U", "none", "--no-splice", "--dhcp-dns", "--dhcp-search"]
    with NamespaceDaemon(topology.host, own, *arguments, str(namespace.process_id)) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def offline_guest(
    image: Image, daemon: NamespaceDaemon, namespace: Unprivileged, directory: Path
) -> Iterator[NamespaceGuest]:
    """In place of the session's: its device is down, and has nothing."""
    with NamespaceGuest(namespace, image, directory / "pasta-guest") as guest:
        assert "state DOWN" in guest.check("ip link show dev eth0")
        assert "inet" not in guest.check("ip addr show dev eth0")
        yield guest


@pytest.fixture(scope="module")
def configured(offline_guest: NamespaceGuest) -> Configured:
    """What its clients were told. It is quick: duplicate address detection takes longer than all of that."""
    told = go_online(offline_guest)
    offline_guest.check("while ip -6 addr show dev eth0 tentative | grep -q inet6; do sleep 0.1; done")
    return told


@pytest.fixture
def guest(offline_guest: NamespaceGuest, configured: Configured) -> NamespaceGuest:
    """Online."""
    return offline_guest


def test_what_serves_it_is_an_ordinary_users(
    guest: NamespaceGuest, daemon: NamespaceDaemon, topology: Topology
) -> None:
    """On the host's side of the network, and with no privileges there."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert f"Uid:\t{UNPRIVILEGED_ID}\t{UNPRIVILEGED_ID}\t{UNPRIVILEGED_ID}" in status
    assert "CapEff:\t0000000000000000" in status
    assert daemon.process.pid in topology.host.process_ids()
