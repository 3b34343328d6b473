"""The host's network changes under a running daemon: what its guest is told, and what goes on meanwhile.

What the guest is seen to have, it has by its own clients: udhcpc, and the kernel's autoconfiguration.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.guest.kernel import DEVICE
from tests.integration import servers
from tests.integration.changing_host import (
    HOME,
    OFFICE,
    OTHER_GATEWAYS,
    REMOTE,
    VPN,
    WAIT_S,
    ChangingHost,
    Serving,
    World,
    ask,
    ask_datagram,
    ask_stream,
    host_and_world,
    serving,
    wait_for,
)
from tests.integration.client_guest import Advertisement, ClientGuest, SilentGuest, busybox
from tests.integration.daemon import RawGuest

VERSIONS = (4, 6)
ROUTER_LIFETIME_S, VALID_S, PREFERRED_S = 1800, 86400, 14400
"""What advertisements say while nothing changes."""

HOME_PREFIX, OFFICE_PREFIX, VPN_PREFIX = "2001:db8:1::", "2001:db8:3::", "2001:db8:4::"
RESOLVER = {"home": "198.51.100.53", "vpn": "198.18.0.53"}

LOCAL_ADDRESS, LOCAL_GATEWAY, LOCAL_ROUTER = "169.254.2.1", "169.254.2.2", "fe80::1"
LOCAL_LEASE_S = "120"
"""What a guest gets on a host without a network."""

PORT = 8022
QUICKLY_S = 5.0
NOISE, NOISY_ROUNDS = 20, 5
NOISE_CPU_S, NOISE_CPU_SHARE = 1.0, 0.25
"""What it may cost, whichever is more: who is noisy for longer is looked at more often."""
GUEST_MAC = "52:54:00:12:34:56"

both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["ipv4", "ipv6"])


@pytest.fixture
def host_in_world() -> Iterator[tuple[ChangingHost, World]]:
    """A host that is connected to nothing yet."""
    with host_and_world() as both:
        yield both


@pytest.fixture
def away(host_in_world: tuple[ChangingHost, World], directory: Path) -> Iterator[Serving]:
    """A daemon that was started where there is no network."""
    with serving(*host_in_world, directory, "-t", str(PORT)) as served:
        yield served


@pytest.fixture
def home(host_in_world: tuple[ChangingHost, World], directory: Path) -> Iterator[Serving]:
    """A daemon that was started at home."""
    host, world = host_in_world
    host.rewrite_resolv_conf(f"nameserver {RESOLVER['home']}\nsearch home.example\n")
    host.join(HOME)
    with serving(host, world, directory, "-t", str(PORT)) as served:
        yield served


@pytest.fixture
def guest(home: Serving, directory: Path) -> Iterator[ClientGuest]:
    """A guest that is online at home."""
    with ClientGuest(home, directory) as guest:
        assert guest.dhcp.next_event("bound").address == HOME.addresses[4]
        guest.online()
        home.log.until("guest connected")
        yield guest


@contextlib.contextmanager
def connections(world: World, guest: ClientGuest) -> Iterator[list[socket.socket]]:
    """One of each IP version, in use."""
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(world.connect(guest.namespace, version)) for version in VERSIONS]
        assert [ask(connection) for connection in made] == [HOME.addresses[version] for version in VERSIONS]
        yield made


def assert_flows_come_from(addresses: dict[int, str], world: World, guest: ClientGuest) -> None:
    """New ones of every kind work, and the world sees these addresses."""
    for version, address in addresses.items():
        assert world.sees_tcp(guest.namespace, version) == address
        assert world.sees_udp(guest.namespace, version) == address
        guest.ping(REMOTE[version])


def test_another_network(home: Serving, guest: ClientGuest) -> None:
    guest.frames.advertisements()
    home.host.move(HOME, OFFICE)

    ipv4, ipv6 = home.log.until("IPv6 is now")
    assert "IPv4 is now 203.0.113.2/24, gateway 203.0.113.1 (from uplink)" in ipv4
    assert "keeps 192.0.2.2 until it renews its lease" in ipv4
    assert "renew it in the guest" in ipv4
    assert "IPv6 is now 2001:db8:3::2/64, gateway fe80::b:1 (from uplink)" in ipv6
    assert "told by a router advertisement" in ipv6

    said = guest.frames.advertisements_until(lambda said: OFFICE_PREFIX in said.prefixes, "the office's prefix")
    assert said[-1].router == OFFICE.gateways[6]
    assert said[-1].lifetime_s == ROUTER_LIFETIME_S
    assert said[-1].prefixes == {OFFICE_PREFIX: (VALID_S, PREFERRED_S), HOME_PREFIX: (0, 0)}
    assert [each.lifetime_s for each in said if each.router == HOME.gateways[6]][-1] == 0
    wait_for(lambda: guest.default_routers() == {OFFICE.gateways[6]}, "the new router only")
    assert guest.autoconfigured("2001:db8:1:", deprecated=True)
    assert not guest.autoconfigured("2001:db8:1:")
    wait_for(lambda: guest.autoconfigured("2001:db8:3:"), "an address of the office's")

    assert guest.default_routers(4) == {HOME.gateways[4]}  # the guest has not asked yet
    assert_flows_come_from(OFFICE.addresses, home.world, guest)
    guest.dhcp.renew()
    assert guest.dhcp.next_event("nak", "bound", "renew").kind == "nak"
    lease = guest.dhcp.next_event("bound")
    assert (lease.address, lease.router, lease.server) == ("203.0.113.2", "203.0.113.1", "203.0.113.1")
    assert_flows_come_from(OFFICE.addresses, home.world, guest)
    assert home.log.more() == []


def is_from(router: str, said: Advertisement) -> bool:
    """Whether this router offers itself."""
    return said.router == router and said.lifetime_s > 0


def test_another_gateway_and_back(home: Serving, guest: ClientGuest) -> None:
    for gateways in (OTHER_GATEWAYS, HOME.gateways):
        place = replace(HOME, gateways=gateways)
        home.host.batch(*place.route_lines(4, "replace"), *place.route_lines(6, "replace"))
        ipv4, ipv6 = home.log.until("IPv6 is now")
        assert f"gateway {gateways[4]} (from uplink): the guest hears of it when it renews its lease" in ipv4
        assert f"gateway {gateways[6]} (from uplink): the guest is told" in ipv6
        guest.frames.advertisements_until(functools.partial(is_from, gateways[6]), "the router")
        wait_for(lambda: len(guest.default_routers()) == 1, "that router only")
        assert guest.default_routers() == {gateways[6]}
        assert guest.autoconfigured("2001:db8:1:")
        assert_flows_come_from(HOME.addresses, home.world, guest)
        guest.dhcp.renew()
        lease = guest.dhcp.next_event("renew", "nak")
        assert (lease.kind, lease.address, lease.router) == ("renew", HOME.addresses[4], gateways[4])
        assert home.log.more() == []


def test_a_vpn_comes_and_goes(home: Serving, guest: ClientGuest) -> None:
    with connections(home.world, guest) as connected:
        home.world.plug("vpn")
        home.host.join(VPN)
        home.host.replace_resolv_conf(f"nameserver {RESOLVER['vpn']}\nsearch vpn.example\n")
        lines: list[str] = []
        for text in (
            "IPv4 is now 198.18.0.2/24, gateway 198.18.0.1 (from vpn)",
            "IPv6 is now 2001:db8:4::2/64, gateway fe80::c:1 (from vpn)",
            f"DNS servers or domains: {RESOLVER['vpn']}; search: vpn.example",
        ):
            if not any(text in line for line in lines):
                lines += home.log.until(text)
        lines += home.log.more()
        assert len(lines) == len(VERSIONS) + 1

        guest.frames.advertisements_until(lambda said: "vpn.example" in said.search, "the VPN's domain")
        wait_for(lambda: guest.default_routers() == {VPN.gateways[6]}, "the VPN's router only")
        assert guest.autoconfigured("2001:db8:1:", deprecated=True)
        wait_for(lambda: guest.autoconfigured("2001:db8:4:"), "an address of the VPN's")
        assert [ask(connection) for connection in connected] == list(HOME.addresses.values())
        assert_flows_come_from(VPN.addresses, home.world, guest)

        guest.dhcp.renew()
        lease = guest.dhcp.next_event("renew", "nak")
        assert (lease.kind, lease.address, lease.router) == ("renew", HOME.addresses[4], HOME.gateways[4])
        assert (lease.dns, lease.search) == ([RESOLVER["vpn"]], ["vpn.example"])
        assert [ask(connection) for connection in connected] == list(HOME.addresses.values())
        assert_flows_come_from(VPN.addresses, home.world, guest)

        home.host.ip("link", "del", "vpn")
        home.host.rewrite_resolv_conf(f"nameserver {RESOLVER['home']}\nsearch home.example\n")
        guest.frames.advertisements_until(lambda said: said.search.get("home.example", 0) > 0, "the domain at home")
        wait_for(lambda: guest.default_routers() == {HOME.gateways[6]}, "the router at home only")
        assert guest.autoconfigured("2001:db8:1:")
        assert [ask(connection) for connection in connected] == list(HOME.addresses.values())
        assert_flows_come_from(HOME.addresses, home.world, guest)
        guest.dhcp.renew()
        lease = guest.dhcp.next_event("renew", "nak")
        assert (lease.kind, lease.address, lease.dns) == ("renew", HOME.addresses[4], [RESOLVER["home"]])


def test_a_lid_is_closed_and_opened(home: Serving, guest: ClientGuest) -> None:
    (address,) = guest.autoconfigured("2001:db8:1:")
    with connections(home.world, guest) as connected:
        home.host.ip("link", "set", "uplink", "down")
        for version in VERSIONS:
            home.log.until(f"the host has no IPv{version} default route any more: the guest keeps what it has")
        wait_for(lambda: not guest.default_routers(), "no IPv6 router")
        for version in VERSIONS:
            start = time.monotonic()
            with pytest.raises(OSError, match=r"unreachable|No route to host"):
                home.world.connect(guest.namespace, version)
            assert time.monotonic() - start < QUICKLY_S

        home.host.batch("link set uplink up", *HOME.address_lines(6, "replace"), *HOME.route_lines(6))
        assert "the host has an IPv6 default route again" in home.log.until("IPv")[-1]
        home.host.batch(*HOME.route_lines(4))  # a client of DHCP has to wait for its answer
        assert "the host has an IPv4 default route again" in home.log.until("IPv")[-1]
        wait_for(lambda: guest.default_routers() == {HOME.gateways[6]}, "the IPv6 router is back")
        assert guest.default_routers(4) == {HOME.gateways[4]}
        assert guest.autoconfigured("2001:db8:1:") == [address]
        assert [ask(connection) for connection in connected] == list(HOME.addresses.values())
        assert_flows_come_from(HOME.addresses, home.world, guest)
    assert home.log.more() == []


def test_the_network_comes_up_after_the_start(away: Serving, directory: Path) -> None:
    with (
        ClientGuest(away, directory) as guest,
        servers.udp_server(away.world.namespace, REMOTE[4], bytes.upper, port=53),
        servers.tcp_server(away.world.namespace, REMOTE[4], servers.echo_after_end, port=53),
    ):
        lease = guest.dhcp.next_event("bound")
        assert (lease.address, lease.router, lease.dns) == (LOCAL_ADDRESS, LOCAL_GATEWAY, [LOCAL_GATEWAY])
        assert lease.lease_s == LOCAL_LEASE_S
        wait_for(lambda: guest.default_routers() == {LOCAL_ROUTER}, "the host itself as IPv6 router")
        away.log.until("guest connected")

        away.host.join(HOME)
        ipv4, ipv6 = away.log.until("IPv6 is now")
        assert "IPv4 is now 192.0.2.2/24" in ipv4
        assert "IPv6 is now 2001:db8:1::2/64" in ipv6
        assert away.world.sees_tcp(guest.namespace, 4) == HOME.addresses[4]  # and nothing has changed in the guest
        assert away.world.sees_udp(guest.namespace, 4) == HOME.addresses[4]
        guest.ping(REMOTE[4])
        wait_for(lambda: guest.default_routers() == {HOME.gateways[6]}, "the IPv6 router")
        assert_flows_come_from({6: HOME.addresses[6]}, away.world, guest)

        away.host.replace_resolv_conf(f"nameserver {REMOTE[4]}\n")
        away.log.until(f"DNS servers or domains: {REMOTE[4]}")
        assert ask_datagram(guest.namespace, LOCAL_GATEWAY, 53, b"name") == b"NAME"
        assert ask_stream(guest.namespace, LOCAL_GATEWAY, 53, b"name") == b"name"

        guest.dhcp.renew()
        lease = guest.dhcp.next_event("bound")
        assert (lease.address, lease.router, lease.dns) == (HOME.addresses[4], HOME.gateways[4], [REMOTE[4]])
        assert_flows_come_from(HOME.addresses, away.world, guest)
        assert away.log.more() == []


def test_ipv6_comes_later_and_goes(host_in_world: tuple[ChangingHost, World], directory: Path) -> None:
    host, world = host_in_world
    host.join(HOME, 4)
    with (
        serving(host, world, directory, "-t", str(PORT)) as served,
        ClientGuest(served, directory) as guest,
        servers.tcp_server(guest.namespace, "::", servers.echo_after_end, PORT),
    ):
        guest.online(4)
        assert not guest.default_routers()

        host.join(HOME, 6)
        served.log.until("IPv6 is now")
        guest.online(6)
        assert_flows_come_from(HOME.addresses, world, guest)
        assert ask_stream(world.namespace, HOME.addresses[6], PORT, b"knock") == b"knock"

        host.batch(*HOME.route_lines(6, "del"))
        served.log.until("no IPv6 default route any more")
        guest.frames.advertisements_until(lambda said: said.lifetime_s == 0, "the router goes")
        wait_for(lambda: not guest.default_routers(), "no IPv6 router")
        assert_flows_come_from({4: HOME.addresses[4]}, world, guest)
        assert served.log.more() == []


def test_ipv4_comes_later(host_in_world: tuple[ChangingHost, World], directory: Path) -> None:
    host, world = host_in_world
    host.join(HOME, 6)
    with (
        serving(host, world, directory, "-t", str(PORT)) as served,
        ClientGuest(served, directory) as guest,
        servers.tcp_server(guest.namespace, "0.0.0.0", servers.echo_after_end, PORT),
    ):
        guest.online(6)
        assert_flows_come_from({6: HOME.addresses[6]}, world, guest)
        host.join(HOME, 4)
        served.log.until("IPv4 is now")
        assert guest.dhcp.next_event("bound").address == HOME.addresses[4]  # it has asked all the time
        assert_flows_come_from(HOME.addresses, world, guest)
        assert ask_stream(world.namespace, HOME.addresses[4], PORT, b"knock") == b"knock"
        assert served.log.more() == []


def test_a_lease_of_the_hosts_is_renewed(home: Serving, guest: ClientGuest) -> None:
    """By a client that takes the address away and gives it back."""
    guest.frames.advertisements()
    with connections(home.world, guest) as connected:
        for version in VERSIONS:
            renewal = [*HOME.address_lines(version, "del"), *HOME.address_lines(version), *HOME.route_lines(version)]
            if version == 6:
                renewal.insert(0, *HOME.route_lines(6, "del"))  # it does not go with the address
            home.host.batch(*renewal)
        assert_nothing_was_said(home, guest)
        assert [ask(connection) for connection in connected] == list(HOME.addresses.values())
        assert_flows_come_from(HOME.addresses, home.world, guest)


def test_noise(home: Serving, guest: ClientGuest) -> None:
    """What does not concern the guest costs little."""
    guest.frames.advertisements()
    devices = [f"noise{number}" for number in range(NOISE)]
    start_s, cpu_before_s = time.monotonic(), cpu_seconds(home.daemon.process.pid)
    for _ in range(NOISY_ROUNDS):
        home.host.batch(
            *(f"link add {device} up type veth peer name {device}-peer" for device in devices),
            *(f"addr add 100.64.{number}.1/24 dev {device}" for number, device in enumerate(devices)),
            *(f"addr add 2001:db8:77:{number}::1/64 dev {device} nodad" for number, device in enumerate(devices)),
            *(f"route add 100.65.{number}.0/24 dev {device}" for number, device in enumerate(devices)),
            *(f"route add 2001:db8:78:{number}::/64 dev {device}" for number, device in enumerate(devices)),
            f"route add default dev {devices[0]} metric 5000",
            *(f"link del {device}" for device in devices),
        )
    assert_nothing_was_said(home, guest)
    cpu_s, elapsed_s = cpu_seconds(home.daemon.process.pid) - cpu_before_s, time.monotonic() - start_s
    assert cpu_s < max(NOISE_CPU_S, NOISE_CPU_SHARE * elapsed_s)
    assert_flows_come_from(HOME.addresses, home.world, guest)


def assert_nothing_was_said(home: Serving, guest: ClientGuest) -> None:
    """Neither in the log, nor to the guest, until another change, which is made here, has been noticed."""
    home.host.rewrite_resolv_conf(f"nameserver {RESOLVER['home']}\nsearch later.example\n")
    (line,) = home.log.until("DNS servers")
    assert "later.example" in line
    for said in guest.frames.advertisements_until(lambda said: "later.example" in said.search, "the new domain"):
        assert said.router == HOME.gateways[6]
        assert said.lifetime_s == ROUTER_LIFETIME_S
        assert said.prefixes == {HOME_PREFIX: (VALID_S, PREFERRED_S)}


def cpu_seconds(process_id: int) -> float:
    """Time that a process and those of its children that have ended have computed."""
    values = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")  # proc(5): fields 14 to 17


def test_the_router_goes_with_the_daemon(home: Serving, guest: ClientGuest) -> None:
    assert guest.default_routers() == {HOME.gateways[6]}
    assert home.daemon.stop(signal.SIGTERM) == 0
    said = guest.frames.advertisements_until(lambda said: said.lifetime_s == 0, "the router's farewell")
    assert said[-1].router == HOME.gateways[6]
    wait_for(lambda: not guest.default_routers(), "no IPv6 router")


def packets(guest: RawGuest) -> Iterator[Packet]:
    """As they come, for a while."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        yield Ether(guest.receive_frame())
    raise AssertionError("that frame does not come")


@both_versions
def test_the_guest_is_asked_for_its_address_at_start(home: Serving, version: int) -> None:
    """Its answer is the only frame it sends before a connection reaches it."""
    reply: Packet
    with RawGuest(home.daemon.socket_path, WAIT_S) as guest:
        for packet in packets(guest):
            if version == 4 and ARP in packet:
                assert (packet[ARP].op, packet[ARP].pdst) == (1, HOME.addresses[4])
                mac, address = packet[ARP].hwsrc, packet[ARP].psrc
                reply = ARP(op=2, hwsrc=GUEST_MAC, psrc=HOME.addresses[4], hwdst=mac, pdst=address)
                break
            if version == 6 and ICMPv6ND_NS in packet:
                assert packet[ICMPv6ND_NS].tgt == HOME.addresses[6]
                mac = packet.src
                reply = (
                    IPv6(src=HOME.addresses[6], dst=packet[IPv6].src, hlim=255)
                    / ICMPv6ND_NA(tgt=HOME.addresses[6], S=1, R=0, O=1)
                    / ICMPv6NDOptDstLLAddr(lladdr=GUEST_MAC)
                )
                break
        guest.send_frame(bytes(Ether(src=GUEST_MAC, dst=mac) / reply))
        with home.world.namespace.socket(servers.family(HOME.addresses[version]), socket.SOCK_STREAM) as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((HOME.addresses[version], PORT))
            # The connection may come before the guest's frame: its first SYN is for everybody then.
            syn = next(packet for packet in packets(guest) if TCP in packet and packet.dst == GUEST_MAC)
    assert syn.payload.dst == HOME.addresses[version]
    assert syn[TCP].dport == PORT


def test_a_connection_to_a_guest_that_has_not_spoken(home: Serving) -> None:
    with (
        SilentGuest(home, HOME.addresses[4]) as guest,
        servers.tcp_server(guest.namespace, "0.0.0.0", servers.echo_after_end, PORT),
    ):
        home.log.until("guest connected")
        guest.frames.update()
        assert all(is_arp_reply(packet) for packet in guest.frames.sent)  # to the request at start
        assert ask_stream(home.world.namespace, HOME.addresses[4], PORT, b"knock") == b"knock"
        guest.frames.update()
        assert is_arp_reply(guest.frames.sent[0])


def test_a_connection_to_a_guest_that_has_only_made_itself_an_address(home: Serving, directory: Path) -> None:
    """By SLAAC: it has asked whether somebody has that address, and not said a word from there."""
    prefix = HOME.addresses[6].removesuffix("2")
    with ClientGuest(home, directory) as guest:
        guest.namespace.sysctl(f"net/ipv6/conf/{DEVICE}/accept_dad=1")
        for state in ("down", "up"):
            guest.namespace.ip("link", "set", DEVICE, state)
        wait_for(lambda: guest.autoconfigured(prefix.removesuffix(":")), "an address")
        with servers.tcp_server(guest.namespace, "::", servers.echo_after_end, PORT):
            assert ask_stream(home.world.namespace, HOME.addresses[6], PORT, b"knock") == b"knock"


def is_arp_reply(packet: Packet) -> bool:
    """Whether the guest says its own address because it was asked."""
    return ARP in packet and packet[ARP].op == 2 and packet[ARP].psrc == HOME.addresses[4]


@pytest.mark.parametrize("announcement", ["-A", "-U"], ids=["reply", "request"])
def test_a_guest_that_announces_another_address(home: Serving, announcement: str) -> None:
    address = "192.0.2.77"
    with (
        SilentGuest(home, address) as guest,
        servers.tcp_server(guest.namespace, "0.0.0.0", servers.echo_after_end, PORT),
    ):
        guest.run(busybox(), "arping", announcement, "-c", "1", "-I", DEVICE, address)
        for attempt in itertools.count(1):  # the frame goes another way than the connection, and may come second
            with home.world.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(2)
                client.connect((HOME.addresses[4], PORT))
                client.sendall(b"knock")
                client.shutdown(socket.SHUT_WR)
                try:
                    assert servers.receive_all(client) == b"knock"
                    break
                except OSError:
                    assert attempt < WAIT_S / 2, "the guest is not reached"
        guest.frames.update()
        assert ARP in guest.frames.sent[0]
