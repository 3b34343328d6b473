"""UDP and names, from the guest."""

from __future__ import annotations

import hashlib
import re
import socket
import time

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.guest.machine import Guest
from tests.integration import servers
from tests.integration.daemon import Daemon
from tests.integration.test_tcp import assert_refused_at_once
from tests.integration.topology import GATEWAY4, GATEWAY6, REMOTE4, REMOTE6, RESOLVER4, RESOLVER6, SEARCH, Topology

NAMES, AT_A_TIME = 200, 8
IPERF_RATES = ("8M", "4M", "2M", "1M")
IPERF_OPTIONS = "-l 1400 -n 1500K -w 200K"
IPERF_DATAGRAMS, IPERF_LOSS_LIMIT_PERCENT = 1000, 1.0
NTP_PORT = 123
ETHERTYPE_ALL = 3  # linux/if_ether.h

both_families = pytest.mark.parametrize("address", [REMOTE4, REMOTE6], ids=["ipv4", "ipv6"])

# One datagram out, one back: socat does not know when a UDP peer has finished, so the size of its output tells.
EXCHANGE = """
rm -f /tmp/reply
socat -b 65536 -t 60 OPEN:/tmp/request,rdonly!!CREATE:/tmp/reply UDP:{peer} & socat=$!
for _ in $(seq 600); do
    [ "$(stat -c %s /tmp/reply 2>/dev/null)" = {size} ] && break
    sleep 0.05
done
kill $socat
cat /tmp/reply | sha256sum
"""


@both_families
@pytest.mark.parametrize("size", [1, 1400, 9000, 65507])
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
        output = guest.check("cat /etc/resolv.conf; ping -n -4 -c 1 -W 20 server; ping -n -6 -c 1 -W 20 server")
    assert f"64 bytes from {REMOTE4}" in output
    assert f"64 bytes from {REMOTE6}" in output


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6], ids=["ipv4", "ipv6"])
def test_many_names_in_quick_succession(guest: Guest, topology: Topology, address: str) -> None:
    """Each is a process of its own, and two queries from a port of their own; it would ask again in half a minute."""
    addresses = {
        f"host{number}.{SEARCH}": (f"203.0.113.{number}", f"2001:db8:7::{number:x}") for number in range(1, NAMES + 1)
    }
    command = f"seq {NAMES} | xargs -P {AT_A_TIME} -I {{}} busybox nslookup -timeout=60 host{{}}.{SEARCH} {address}"
    with servers.udp_server(topology.remote, address, servers.resolver(addresses), port=53) as server:
        output = guest.check(command)
    found = re.findall(r"^Name:\s(\S+)\nAddress: (\S+)$", output, re.MULTILINE)
    assert sorted(found) == sorted((name, each) for name, pair in addresses.items() for each in pair)
    assert len(server.peers) == 2 * NAMES  # nobody had to ask twice


@pytest.mark.parametrize("gateway", [False, True], ids=["remote", "gateway"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_a_closed_port_is_refused_at_once(guest: Guest, family: int, gateway: bool) -> None:
    if gateway:
        address = GATEWAY4 if family == 4 else f"[{GATEWAY6}%eth0]"
    else:
        address = REMOTE4 if family == 4 else f"[{REMOTE6}]"
    assert_refused_at_once(guest, f"echo | socat -t 20 - UDP:{address}:9")


@both_families
@pytest.mark.parametrize("option", ["", "-R"], ids=["forward", "reverse"])
def test_iperf3(guest: Guest, topology: Topology, address: str, option: str, measurements: list[str]) -> None:
    """At a rate that QEMU without KVM can do, with buffers for a quarter of a second in which others compute. If that
    was not enough, or the server has ended before it had read the last ones, it is tried again with less at a time."""
    for rate in IPERF_RATES:
        with servers.process(
            [*topology.remote.enter(), "iperf3", "-s", "-1", "-B", address, "-p", "5201", "--forceflush"],
            ready=b"Server listening",
        ):
            output = guest.check(f"iperf3 -c {address} -p 5201 -u -b {rate} {IPERF_OPTIONS} -f m {option}", 60)
        ((reached, lost, sent),) = re.findall(r"([\d.]+) Mbits/sec.* (\d+)/(\d+) \(\S+%\)  receiver", output)
        measurements.append(f"iperf3 -u {option or '  '} {address}: {reached} Mbit/s, {lost} of {sent} datagrams lost")
        if int(sent) >= IPERF_DATAGRAMS and int(lost) * 100 / int(sent) <= IPERF_LOSS_LIMIT_PERCENT:
            break
    assert int(sent) >= IPERF_DATAGRAMS
    assert int(lost) * 100 / int(sent) <= IPERF_LOSS_LIMIT_PERCENT


@both_families
def test_the_time_by_sntp(guest: Guest, topology: Topology, address: str) -> None:
    family = 6 if ":" in address else 4
    with servers.udp_server(topology.remote, address, servers.ntp, NTP_PORT) as server:
        output = guest.check(f"TZ=UTC rdate -{family} -n -o {NTP_PORT} -p -v {address}")
    assert time.strftime("%Y", time.gmtime()) in output
    assert server.peers


@both_families
def test_an_ntp_client_at_the_servers_port(guest: Guest, topology: Topology, address: str) -> None:
    """From port 123, as ntpd asks; the guest is answered there, from whichever port the daemon may ask."""
    request = bytes([4 << 3 | 3]) + bytes(47)
    guest.check(f"printf '\\{request[0]:03o}' >/tmp/request; head -c 47 /dev/zero >>/tmp/request")
    with servers.udp_server(topology.remote, address, servers.ntp, NTP_PORT) as server:
        peer = f"{server.socat},bind=:{NTP_PORT},reuseaddr"
        guest.check(EXCHANGE.format(peer=peer, size=len(request)))
    assert len(server.peers) == 1
    answer = bytes.fromhex(guest.check("od -An -v -tx1 /tmp/reply").replace(" ", ""))
    assert (len(answer), answer[0] & 7, answer[12:16]) == (48, 4, b"TEST")


NOISE = {
    "224.0.0.251": "UDP4-DATAGRAM:224.0.0.251:5353,ip-add-membership=224.0.0.251:eth0",  # mDNS, with IGMP
    "239.255.255.250": "UDP4-DATAGRAM:239.255.255.250:1900",  # SSDP
    "255.255.255.255": "UDP4-DATAGRAM:255.255.255.255:9,broadcast",
    "192.0.2.255": "UDP4-DATAGRAM:192.0.2.255:137,broadcast",  # NetBIOS names
    "ff02::fb": "UDP6-DATAGRAM:[ff02::fb%eth0]:5353,ipv6-join-group=[ff02::fb]:eth0",  # mDNS, with MLD
    "ff02::1:3": "UDP6-DATAGRAM:[ff02::1:3%eth0]:5355",  # LLMNR
}
"""What a desktop says to its neighbours unasked, and how socat says it."""


def test_multicast_and_broadcast_go_nowhere_and_into_no_log(guest: Guest, topology: Topology, daemon: Daemon) -> None:
    said_before = daemon.log.read_text()
    with topology.remote.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("uplink", ETHERTYPE_ALL))
        for address in NOISE.values():
            guest.check(f"for _ in 1 2 3; do echo noise; done | socat -u - '{address}'")
        guest.check("online -4")  # DHCP, after all that; so the daemon has dealt with it
        guest.check(f"echo end | socat -u - UDP:{REMOTE4}:9")
        heard = destinations(wire)
    assert not heard & NOISE.keys()
    assert daemon.log.read_text() == said_before


def destinations(wire: socket.socket) -> set[str]:
    """Where packets that were seen went, until the one to the remote machine."""
    wire.settimeout(60)
    seen: set[str] = set()
    while REMOTE4 not in seen:
        packet = Ether(wire.recv(65536))
        seen.update(packet[layer].dst for layer in (IP, IPv6) if layer in packet)
    return seen
