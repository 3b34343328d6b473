"""UDP's errors, as a kernel tells them to its sockets: what a guest hears is what the host itself would hear.

The guest is the kernel's stack (`KernelGuest`). Where the remote machine or a router is the one to refuse, each test
runs in the host's own namespace too, without a daemon: that is what it is compared with.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.kernel import KernelGuest
from tests.integration import error_queue, servers
from tests.integration.daemon import Daemon, daemon_directory
from tests.integration.error_queue import Origin, Reported
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
    UNREACHABLE4,
    UNREACHABLE6,
    Namespace,
    Topology,
)

CLOSED_PORT = 9
PATIENCE_S = 30.0
"""It comes at once: nothing that was sent is sent again."""

ALLOWANCE_S, ATTEMPTS = 1.0, 10
ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED = 3, 11
ICMP6_UNREACHABLE, ICMP6_TOO_BIG, ICMP6_TIME_EXCEEDED = 1, 2, 3
IP_UDP_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}
QUESTION = b"is there anybody?"

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])
both_gateways = pytest.mark.parametrize("gateway", [GATEWAY4, GATEWAY6], ids=["ipv4", "ipv6"])
far_families = pytest.mark.parametrize("address", [FAR4, FAR6], ids=["ipv4", "ipv6"])


@dataclass(frozen=True)
class Refusal:
    """An address that datagrams do not come to, and the error that says so."""

    address: str
    error: int
    type: int
    code: int
    offender: str

    def reported(self, port: int) -> Reported:
        """What is in the error queue of a socket that has sent `QUESTION` to that port."""
        origin = Origin.ICMP6 if ":" in self.address else Origin.ICMP
        return Reported(
            self.error, origin, self.type, self.code, 0, self.offender, (self.address, port), payload=QUESTION
        )


REFUSALS = {
    "closed-ipv4": Refusal(REMOTE4, errno.ECONNREFUSED, ICMP_UNREACHABLE, 3, REMOTE4),
    "closed-far-ipv4": Refusal(FAR4, errno.ECONNREFUSED, ICMP_UNREACHABLE, 3, FAR4),
    "absent-ipv4": Refusal(ABSENT4, errno.EHOSTUNREACH, ICMP_UNREACHABLE, 1, ROUTER4),
    "closed-ipv6": Refusal(REMOTE6, errno.ECONNREFUSED, ICMP6_UNREACHABLE, 4, REMOTE6),
    "closed-far-ipv6": Refusal(FAR6, errno.ECONNREFUSED, ICMP6_UNREACHABLE, 4, FAR6),
    "unreachable-ipv6": Refusal(UNREACHABLE6, errno.ENETUNREACH, ICMP6_UNREACHABLE, 0, ROUTER6),
    "absent-ipv6": Refusal(ABSENT6, errno.EHOSTUNREACH, ICMP6_UNREACHABLE, 3, ROUTER6),
    "nowhere-ipv6": Refusal(NOWHERE6, errno.ENETUNREACH, ICMP6_UNREACHABLE, 0, ROUTER6),
    "prohibited-ipv6": Refusal(PROHIBITED6, errno.EACCES, ICMP6_UNREACHABLE, 1, ROUTER6),
}

BY_ROUTE = {
    "unreachable-ipv4": Refusal(UNREACHABLE4, errno.EHOSTUNREACH, ICMP_UNREACHABLE, 1, ROUTER4),
    "nowhere-ipv4": Refusal(NOWHERE4, errno.ENETUNREACH, ICMP_UNREACHABLE, 0, ROUTER4),
    "prohibited-ipv4": Refusal(PROHIBITED4, errno.EHOSTUNREACH, ICMP_UNREACHABLE, 13, ROUTER4),
}
"""Linux allows a sender five of these, and then one a second (`net.ipv4.route.error_burst`, not a namespace's own)."""

TIME_EXCEEDED = {socket.AF_INET: (ICMP_TIME_EXCEEDED, 0, ROUTER4), socket.AF_INET6: (ICMP6_TIME_EXCEEDED, 0, ROUTER6)}
TOO_BIG = {
    socket.AF_INET: (Origin.ICMP, ICMP_UNREACHABLE, 4, ROUTER4),
    socket.AF_INET6: (Origin.ICMP6, ICMP6_TOO_BIG, 0, ROUTER6),
}


@pytest.fixture(scope="module")
def own_daemon(topology: Topology, directory: Path) -> Iterator[Daemon]:
    """A daemon for this file's guest; it has nothing to warn of, the errors being the network's."""
    with Daemon(topology.host, daemon_directory(directory, "udp-errors"), "--quiet") as daemon:
        yield daemon.wait_ready()
        assert daemon.process.poll() is None
        assert daemon.log_tail() == ""


@pytest.fixture(scope="module")
def guest(own_daemon: Daemon) -> Iterator[KernelGuest]:
    """A guest of that daemon."""
    with KernelGuest(own_daemon.socket_path) as guest:
        yield guest


@pytest.fixture(params=["host", "guest"])
def stack(request: pytest.FixtureRequest, topology: Topology) -> Namespace:
    """Who sends: the host itself, and the guest."""
    if request.param == "host":
        return topology.host
    guest: KernelGuest = request.getfixturevalue("guest")
    return guest.namespace


def connected(namespace: Namespace, address: str, port: int, scope: int = 0) -> socket.socket:
    """A connect()ed socket."""
    endpoint = namespace.socket(servers.family(address), socket.SOCK_DGRAM)
    endpoint.connect((address, port, 0, scope) if ":" in address else (address, port))
    return endpoint


def set_hop_limit(endpoint: socket.socket, hops: int) -> None:
    """IPv4 calls it time to live."""
    if endpoint.family is socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        endpoint.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


@both_families
def test_a_closed_port_is_refused_at_once(stack: Namespace, address: str) -> None:
    with connected(stack, address, CLOSED_PORT) as endpoint:
        endpoint.send(QUESTION)
        assert errno.errorcode[error_queue.pending_error(endpoint, PATIENCE_S)] == "ECONNREFUSED"


@both_gateways
def test_so_is_a_closed_port_of_the_hosts_loopback_and_the_gateway_says_it(guest: KernelGuest, gateway: str) -> None:
    scope = guest.device_index()
    with connected(guest.namespace, gateway, CLOSED_PORT, scope) as endpoint:
        endpoint.send(QUESTION)
        assert errno.errorcode[error_queue.pending_error(endpoint, PATIENCE_S)] == "ECONNREFUSED"
    with connected(guest.namespace, gateway, CLOSED_PORT, scope) as endpoint:
        error_queue.demand(endpoint)
        endpoint.send(QUESTION)
        report = error_queue.next_report(endpoint, PATIENCE_S)
    assert report.offender == gateway
    assert report.destination == (gateway, CLOSED_PORT)
    assert report.payload == QUESTION


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_passed_on_with_who_why_and_what(stack: Namespace, refusal: Refusal) -> None:
    with stack.socket(servers.family(refusal.address), socket.SOCK_DGRAM) as endpoint:
        error_queue.demand(endpoint)
        endpoint.sendto(QUESTION, (refusal.address, CLOSED_PORT))
        report = error_queue.next_report(endpoint, PATIENCE_S)
    assert report == refusal.reported(CLOSED_PORT)


@pytest.mark.parametrize("refusal", BY_ROUTE.values(), ids=BY_ROUTE)
def test_so_is_one_by_a_route(stack: Namespace, refusal: Refusal) -> None:
    """Asked again where it takes a second: see `BY_ROUTE`."""
    with stack.socket(servers.family(refusal.address), socket.SOCK_DGRAM) as endpoint:
        error_queue.demand(endpoint)
        for _ in range(ATTEMPTS):
            endpoint.sendto(QUESTION, (refusal.address, CLOSED_PORT))
            if error_queue.has_report(endpoint, ALLOWANCE_S):
                break
        report = error_queue.next_report(endpoint, 0)
    assert report == refusal.reported(CLOSED_PORT)


def test_errors_find_the_socket_that_they_concern(stack: Namespace) -> None:
    """All refusals at a time, each with a port of its own."""
    with contextlib.ExitStack() as opened:
        asked = {}
        for port, refusal in enumerate(REFUSALS.values(), start=CLOSED_PORT):
            endpoint = opened.enter_context(connected(stack, refusal.address, port))
            error_queue.demand(endpoint)
            asked[endpoint] = refusal.reported(port)
        for endpoint in asked:
            endpoint.send(QUESTION)
        for endpoint, expected in asked.items():
            assert error_queue.next_report(endpoint, PATIENCE_S) == expected


@both_families
def test_a_socket_that_was_refused_can_be_used_on(stack: Namespace, topology: Topology, address: str) -> None:
    with servers.udp_socket(topology.remote, address) as server:
        port = server.getsockname()[1]
    with connected(stack, address, port) as endpoint:
        for _ in range(3):
            endpoint.send(QUESTION)
            assert error_queue.pending_error(endpoint, PATIENCE_S) == errno.ECONNREFUSED
        with servers.udp_server(topology.remote, address, bytes.upper, port):
            endpoint.send(QUESTION)
            assert endpoint.recv(65536) == QUESTION.upper()
        endpoint.send(QUESTION)
        assert error_queue.pending_error(endpoint, PATIENCE_S) == errno.ECONNREFUSED


@both_families
def test_a_refusal_does_not_harm_the_datagrams_after_it(stack: Namespace, topology: Topology, address: str) -> None:
    """A socket that is not connect()ed and has not asked for errors does not see them: only the answers."""
    with (
        servers.udp_server(topology.remote, address, bytes.upper) as server,
        stack.socket(servers.family(address), socket.SOCK_DGRAM) as endpoint,
    ):
        endpoint.settimeout(PATIENCE_S)
        for number in range(20):
            endpoint.sendto(QUESTION, (address, CLOSED_PORT))
            question = b"question %d" % number
            endpoint.sendto(question, (address, server.port))
            assert endpoint.recvfrom(65536)[0] == question.upper()


@far_families
def test_the_router_where_the_hop_limit_ends_is_named(stack: Namespace, topology: Topology, address: str) -> None:
    with (
        servers.udp_socket(topology.far, address) as server,
        connected(stack, address, server.getsockname()[1]) as endpoint,
    ):
        error_queue.demand(endpoint)
        set_hop_limit(endpoint, 1)
        endpoint.send(QUESTION)
        report = error_queue.next_report(endpoint, PATIENCE_S)
        expected = Refusal(address, errno.EHOSTUNREACH, *TIME_EXCEEDED[endpoint.family])
        assert report == expected.reported(server.getsockname()[1])
        set_hop_limit(endpoint, 2)
        endpoint.send(QUESTION)
        assert server.recv(65536) == QUESTION


@far_families
def test_the_mtu_of_the_path_is_found(stack: Namespace, topology: Topology, address: str) -> None:
    for namespace in (topology.host, stack):
        namespace.forget_path_mtus()
    with (
        servers.udp_socket(topology.far, address) as server,
        connected(stack, address, server.getsockname()[1]) as endpoint,
    ):
        error_queue.demand(endpoint)
        error_queue.demand_path_mtu(endpoint)
        endpoint.settimeout(PATIENCE_S)
        fits = FAR_MTU_BYTES - IP_UDP_BYTES[endpoint.family]
        endpoint.send(bytes(fits + 1))
        report = error_queue.next_report(endpoint, PATIENCE_S)
        assert (report.origin, report.type, report.code, report.offender) == TOO_BIG[endpoint.family]
        assert errno.errorcode[report.error] == "EMSGSIZE"
        assert report.info == FAR_MTU_BYTES
        assert error_queue.path_mtu_bytes(endpoint) == FAR_MTU_BYTES
        data = servers.payload(fits)
        endpoint.send(data)
        assert server.recv(65536) == data
