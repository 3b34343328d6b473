"""UDP and names, from the guest."""

from __future__ import annotations

import hashlib

import pytest

from tests.guest.machine import Guest
from tests.integration import servers
from tests.integration.topology import GATEWAY4, GATEWAY6, REMOTE4, REMOTE6, RESOLVER4, RESOLVER6, SEARCH, Topology

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])

# One datagram out, one back: socat does not know when a UDP peer has finished, so the size of its output tells.
EXCHANGE = """
rm -f /tmp/reply
socat -b 65536 -t 10 OPEN:/tmp/request,rdonly!!CREATE:/tmp/reply UDP:{peer} & socat=$!
for _ in $(seq 50); do
    [ "$(stat -c %s /tmp/reply 2>/dev/null)" = {size} ] && break
    sleep 0.1
done
kill $socat
cat /tmp/reply | sha256sum
"""


@both_families
@pytest.mark.parametrize("size", [1, 1400, 9000])
def test_request_and_response(guest: Guest, topology: Topology, address: str, size: int) -> None:
    requests = []

    def reply(request: bytes) -> bytes:
        requests.append(request)
        return request[::-1]

    guest.check(f"head -c {size} /dev/urandom >/tmp/request")
    with servers.udp_server(topology.remote, address, reply) as server:
        output = guest.check(EXCHANGE.format(peer=server.socat, size=size))
    assert [len(request) for request in requests] == [size]
    assert hashlib.sha256(requests[0]).hexdigest() == guest.check("sha256sum /tmp/request").split()[0]
    assert output.split()[0] == hashlib.sha256(requests[0][::-1]).hexdigest()


@pytest.mark.parametrize(
    ("gateway", "loopback"), [(GATEWAY4, "127.0.0.1"), (f"{GATEWAY6}%eth0", "::1")], ids=["ipv4", "ipv6"]
)
def test_the_gateways_address_leads_to_the_hosts_loopback(
    guest: Guest, topology: Topology, gateway: str, loopback: str
) -> None:
    guest.check("printf local >/tmp/request")
    with servers.udp_server(topology.host, loopback, bytes.upper) as server:
        peer = f"{servers.bracketed(gateway)}:{server.port}"
        output = guest.check(EXCHANGE.format(peer=peer, size=5))
    assert server.peers == [loopback]
    assert output.split()[0] == hashlib.sha256(b"LOCAL").hexdigest()


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6], ids=["ipv4", "ipv6"])
def test_names_are_resolved_through_the_resolvers_given(guest: Guest, topology: Topology, address: str) -> None:
    name = f"server.{SEARCH}"
    answer = servers.resolver({name: ("203.0.113.7", "2001:db8:7::7")})
    with servers.udp_server(topology.remote, address, answer, port=53) as server:
        output = guest.check(f"busybox nslookup {name} {address}")
    assert "203.0.113.7" in output
    assert "2001:db8:7::7" in output
    assert server.peers


def test_a_name_is_found_with_what_the_guest_was_told_about_resolvers(guest: Guest, topology: Topology) -> None:
    answer = servers.resolver({f"server.{SEARCH}": (REMOTE4, REMOTE6)})
    with (
        servers.udp_server(topology.remote, RESOLVER4, answer, port=53),
        servers.udp_server(topology.remote, RESOLVER6, answer, port=53),
    ):
        output = guest.check("cat /etc/resolv.conf; ping -n -4 -c 1 server; ping -n -6 -c 1 server")
    assert f"64 bytes from {REMOTE4}" in output
    assert f"64 bytes from {REMOTE6}" in output
