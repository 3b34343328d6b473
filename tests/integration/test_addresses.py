"""Addresses, ways out, and what is switched off: the options, as the guest, the host's peers and the host see them.

The host is at home at its device `uplink`, and has a second way into the world at `vpn`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DHCP6,
    DUID_LL,
    DHCP6_InfoRequest,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptOptReq,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.guest.kernel import DEVICE, KernelGuest
from tests.integration import servers
from tests.integration.changing_host import (
    HOME,
    REMOTE,
    VPN,
    ChangingHost,
    World,
    ask_datagram,
    ask_stream,
    host_and_world,
    serving,
    wait_for,
)
from tests.integration.client_guest import ETH_P_ALL, PACKET_OUTGOING, Advertisement, ClientGuest, DhcpClient, Frames
from tests.integration.clients import CAPTURE, Client
from tests.integration.daemon import STOP_TIMEOUT_S, Daemon, RawGuest, daemon_directory
from tests.integration.exchanges import kind, options
from tests.integration.topology import Namespace

VERSIONS = (4, 6)
PORT = 8022
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SECOND = {4: "192.0.2.9", 6: "2001:db8:1::9"}
AWAY_SECOND = {4: "198.18.0.9", 6: "2001:db8:4::9"}
"""Other addresses of the host's, which it does not take by itself: at home, and the second way out."""

MAPPED = {4: "192.0.2.77", 6: "2001:db8:77::1"}
"""For the host's loopback: inside of the guest's subnet, and outside."""
OWN_MAPPED = {4: "203.0.113.78", 6: "2001:db8:1::78"}
"""For the host's own address: the other way round."""

AWAY = replace(VPN, metric=200)
"""The second way, which the host does not take by itself."""

GUEST_MAC, GUEST_LINK_LOCAL = "52:54:00:12:34:56", "fe80::5054:ff:fe12:3456"
MARKER = "198.51.100.254"
"""What is asked last: services answer in order, so when this is answered all others have been."""

SHORT_S = 0.3
"""For an answer that would come at once, and does not."""

HostInWorld = tuple[ChangingHost, World]


@pytest.fixture(scope="module")
def host_in_world() -> Iterator[HostInWorld]:
    """One host for this file."""
    with host_and_world() as (host, world):
        world.plug(AWAY.device)
        host.join(HOME)
        host.join(AWAY)
        for device, addresses in (("uplink", SECOND), ("vpn", AWAY_SECOND)):
            host.ip("addr", "add", f"{addresses[4]}/32", "dev", device)
            host.ip("addr", "add", f"{addresses[6]}/128", "dev", device, "nodad", "preferred_lft", "0")
        host.rewrite_resolv_conf("search lan.example.com\nnameserver 198.51.100.53\nnameserver 2001:db8:2::53\n")
        yield host, world


@contextlib.contextmanager
def telling(namespace: Namespace, address: str, name: str = "", port: int = 0) -> Iterator[servers.Served]:
    """A server that tells each client its own `name` and the client's address."""

    def tell(connection: socket.socket) -> None:
        servers.receive_all(connection)
        connection.sendall(f"{name}{connection.getpeername()[0]}".encode())

    with servers.tcp_server(namespace, address, tell, port) as served:
        yield served


def ask_from(client: Namespace, source: str, address: str, port: int) -> str:
    """What a server there says to a client at `source`."""
    with client.socket(servers.family(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.bind((source, 0))
        connection.connect((address, port))
        connection.shutdown(socket.SHUT_WR)
        return servers.receive_all(connection).decode()


def ask_datagram_from(client: Namespace, source: str, address: str, port: int) -> None:
    """One that has to be answered."""
    with servers.udp_socket(client, source) as endpoint:
        endpoint.connect((address, port))
        endpoint.send(b"question")
        assert endpoint.recv(100) == b"question"


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_addresses_that_the_host_does_not_have(host_in_world: HostInWorld, directory: Path) -> None:
    """Two of IPv6, by DHCPv6 and by autoconfiguration; another gateway, and another MAC address behind it.

    What the guest sends from there leaves from the host's address, as ever.
    """
    host, world = host_in_world
    own = daemon_directory(directory, "addresses")
    arguments = ["-a", "203.0.113.40/28", "-a", "2001:db8:7::5", "-a", "2001:db8:8::5/64"]
    arguments += ["-g", "203.0.113.33", "-g", "fe80::77", "-M", "52:54:00:aa:bb:cc", "-p", str(own / CAPTURE)]
    with Daemon(host, own, *arguments) as daemon, Client(daemon.wait_ready(), up=False) as client:
        client.check(f"ip link set {DEVICE} up && dhclient -6 -1 {DEVICE} && dhclient -4 -1 {DEVICE}")
        ipv4, ipv6 = client.configuration(4), client.configuration(6)
        assert (ipv4.addresses, ipv4.gateways) == (("203.0.113.40/28",), ("203.0.113.33",))
        assert (set(ipv6.addresses), ipv6.gateways) == ({"2001:db8:7::5/128", "2001:db8:8::5/128"}, ("fe80::77",))

        def made() -> set[str]:
            return {
                str(ipaddress.IPv6Interface(f"{address['local']}/{address['prefixlen']}").network)
                for address in client.addresses(6)
                if address.get("mngtmpaddr")
            }

        wait_for(lambda: made() == {"2001:db8:7::/64", "2001:db8:8::/64"}, "an address in either")
        for version in VERSIONS:
            assert world.sees_tcp(client.namespace, version) == HOME.addresses[version]
        with (
            telling(host, LOOPBACK[4], "loopback ") as loopback,
            telling(host, HOME.addresses[4], "own ") as own_server,
        ):
            reached = [
                ask_stream(client.namespace, "203.0.113.33", loopback.port),
                ask_stream(client.namespace, HOME.addresses[4], own_server.port),
            ]
            assert reached == [b"loopback 127.0.0.1", b"own 192.0.2.2"], "the host's own address is a neighbour's"
        assert set(client.check(f"ip neigh show dev {DEVICE} nud reachable | cut -d ' ' -f 3").split()) == {
            "52:54:00:aa:bb:cc"
        }


def test_mask_is_the_operators(host_in_world: HostInWorld, directory: Path) -> None:
    """With the host's own address."""
    with serving(*host_in_world, directory, "-n", "255.255.0.0") as served, ClientGuest(served, directory) as guest:
        lease = guest.dhcp.next_event("bound")
        assert (lease.address, lease.prefix_length, lease.router) == ("192.0.2.2", "16", "192.0.2.1")


# -- addresses that stand for the host ---------------------------------------------------------------------------------


@contextlib.contextmanager
def home_guest(host_in_world: HostInWorld, directory: Path, *arguments: str) -> Iterator[KernelGuest]:
    """A guest that has the host's addresses already."""
    with serving(*host_in_world, directory, *arguments) as served, KernelGuest(served.daemon.socket_path) as guest:
        yield guest


def test_other_addresses_stand_for_the_host(host_in_world: HostInWorld, directory: Path) -> None:
    """Both families, both directions, TCP, UDP and echo."""
    host, world = host_in_world
    arguments = [f"--map-host-loopback={address}" for address in MAPPED.values()]
    arguments += [f"--map-guest-addr={address}" for address in OWN_MAPPED.values()]
    with home_guest(host_in_world, directory, *arguments, "-t", str(PORT)) as guest:
        for version in VERSIONS:
            own, loopback = HOME.addresses[version], LOOPBACK[version]
            with (
                telling(host, loopback, "loopback ") as at_loopback,
                telling(host, own, "own ") as at_own,
                servers.udp_server(host, loopback, lambda question: b"loopback " + question) as udp_loopback,
                servers.udp_server(host, own, lambda question: b"own " + question) as udp_own,
            ):
                inside = guest.namespace
                assert ask_stream(inside, MAPPED[version], at_loopback.port).decode() == f"loopback {loopback}"
                assert ask_stream(inside, OWN_MAPPED[version], at_own.port).decode() == f"own {own}"
                assert ask_datagram(inside, MAPPED[version], udp_loopback.port) == b"loopback ?"
                assert ask_datagram(inside, OWN_MAPPED[version], udp_own.port) == b"own ?"
            for address in (MAPPED[version], OWN_MAPPED[version]):
                guest.run("ping", "-n", "-c", "1", "-W", "20", address)

            with (
                telling(guest.namespace, own, port=PORT),
                servers.udp_server(guest.namespace, own, lambda question: question, PORT) as answering,
            ):
                for where, source, destination, seen in (
                    (host, loopback, loopback, MAPPED[version]),
                    (host, own, own, OWN_MAPPED[version]),
                    (host, SECOND[version], own, SECOND[version]),
                    (world.namespace, REMOTE[version], own, REMOTE[version]),
                ):
                    assert ask_from(where, source, destination, PORT) == seen
                    ask_datagram_from(where, source, destination, PORT)
                    assert answering.peers[-1] == seen


def test_gateway_is_the_gateway(host_in_world: HostInWorld, directory: Path) -> None:
    """`--no-map-gw`: the real one is reached, and the host's loopback is not."""
    host, world = host_in_world
    with home_guest(host_in_world, directory, "--no-map-gw", "-t", str(PORT)) as guest:
        scope = guest.device_index()
        for version, bound, seen_from in ((4, HOME.gateways[4], HOME.addresses[4]), (6, "::", "fe80::")):
            gateway = HOME.gateways[version] + (f"%{scope}" if version == 6 else "")
            with telling(world.namespace, bound, "gateway ") as real:
                assert ask_stream(guest.namespace, gateway, real.port).decode().startswith(f"gateway {seen_from}")
            with telling(host, LOOPBACK[version]) as loopback, pytest.raises(ConnectionRefusedError):
                ask_stream(guest.namespace, gateway, loopback.port)
            guest.run(
                "ping", "-n", "-c", "1", "-W", "20", HOME.gateways[version] + (f"%{DEVICE}" if version == 6 else "")
            )
            with telling(guest.namespace, "0.0.0.0" if version == 4 else "::", port=PORT):
                seen = ask_from(host, LOOPBACK[version], LOOPBACK[version], PORT)
                assert seen.partition("%")[0] == HOME.gateways[version]


# -- ways out ----------------------------------------------------------------------------------------------------------


class Passing:
    """IP packets of the guest's that arrive in the world at one of its devices, from when this is made."""

    def __init__(self, world: World, device: str) -> None:
        self._socket = world.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def close(self) -> None:
        """Look no more."""
        self._socket.close()

    def sources(self) -> dict[str, set[str]]:
        """Whose packets to `REMOTE` have come since the last time, by kind."""
        seen: dict[str, set[str]] = {}
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(70000)
                packet = Ether(frame)
                layer = packet.getlayer(IP) or packet.getlayer(IPv6)
                if address[2] != PACKET_OUTGOING and layer is not None and layer.dst in REMOTE.values():
                    of = (TCP, "tcp"), (UDP, "udp"), (ICMP, "echo"), (ICMPv6EchoRequest, "echo")
                    name = next((name for kind, name in of if kind in packet), "other")
                    seen.setdefault(name, set()).add(layer.src)
        return seen


@pytest.mark.parametrize(
    ("arguments", "device", "sources", "keeps_port"),
    [
        ([f"-o{SECOND[4]}", "-o", SECOND[6]], "uplink", SECOND, {4: True, 6: True}),
        (["--outbound-if4=vpn", "--outbound-if6=vpn", "-i", "uplink"], "vpn", AWAY.addresses, {4: True, 6: True}),
        (
            ["--outbound-if4=vpn", "--outbound-if6=vpn", "-iuplink", "-o", AWAY_SECOND[4], "-o", AWAY_SECOND[6]],
            "vpn",
            AWAY_SECOND,
            {4: True, 6: False},
        ),
    ],
    ids=["address", "interface", "both"],
)
def test_way_out(
    host_in_world: HostInWorld,
    directory: Path,
    arguments: list[str],
    device: str,
    sources: dict[int, str],
    keeps_port: dict[int, bool],
) -> None:
    """The world sees the address, and at the right cable, also of what the guest sends from a forwarded port; which it
    then has in the world, too, if the kernel can do that.  The host itself is reached all the same.
    """
    host, world = host_in_world
    other = "vpn" if device == "uplink" else "uplink"
    with contextlib.ExitStack() as opened:
        guest = opened.enter_context(home_guest(host_in_world, directory, *arguments, "-u", f"{PORT}:7000"))
        here, there = Passing(world, device), Passing(world, other)
        opened.callback(here.close)
        opened.callback(there.close)
        for version in VERSIONS:
            assert world.sees_tcp(guest.namespace, version) == sources[version]
            assert world.sees_udp(guest.namespace, version) == sources[version]
            guest.run("ping", "-n", "-c", "1", "-W", "20", REMOTE[version])
            with (
                servers.udp_server(world.namespace, REMOTE[version], lambda question: question) as remote,
                servers.udp_socket(guest.namespace, HOME.addresses[version], 7000) as forwarded,
            ):
                forwarded.sendto(b"question", (REMOTE[version], remote.port))
                assert forwarded.recv(100) == b"question"
                assert remote.peers == [sources[version]]
                if keeps_port[version]:
                    assert remote.peer_ports == [PORT]
        assert here.sources() == {kind: set(sources.values()) for kind in ("tcp", "udp", "echo")}
        assert there.sources() == {}
        for version, gateway in (4, HOME.gateways[4]), (6, f"{HOME.gateways[6]}%{guest.device_index()}"):
            with telling(host, LOOPBACK[version], "loopback ") as loopback:
                assert ask_stream(guest.namespace, gateway, loopback.port).startswith(b"loopback ")


def test_way_out_that_is_gone(host_in_world: HostInWorld, directory: Path) -> None:
    """At start, that is an error; later, an unreachable network, until it is there again."""
    host, world = host_in_world
    with Daemon(host, daemon_directory(directory, "no-way-out"), "-o", "2001:db8:1::99") as refused:
        assert refused.process.wait(STOP_TIMEOUT_S) == 1
        assert "--outbound 2001:db8:1::99: not an address of this host" in refused.log_tail()
    arguments = ["--outbound-if4=vpn", "--outbound-if6=vpn", "-i", "uplink"]
    with serving(host, world, directory, *arguments) as served, KernelGuest(served.daemon.socket_path) as guest:
        host.batch("link del vpn")
        try:
            for version in VERSIONS:
                with pytest.raises(OSError, match=r"unreachable|refused"):
                    world.connect(guest.namespace, version)
            served.log.until("can't open a connection for the guest: interface vpn: no such interface")
        finally:
            world.plug("vpn")
            host.join(AWAY)
        for version in VERSIONS:
            assert world.sees_tcp(guest.namespace, version) == AWAY.addresses[version]


# -- what is switched off ----------------------------------------------------------------------------------------------


def ask_for_router(namespace: Namespace) -> None:
    """Have its MAC address told; the kernel may know it already, and not ask."""
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((DEVICE, 0))
        ethernet = Ether(src=link.getsockname()[4].hex(":"), dst="33:33:ff:0a:00:01")
        to_group = IPv6(src=HOME.addresses[6], dst="ff02::1:ff0a:1", hlim=255)
        link.send(bytes(ethernet / to_group / ICMPv6ND_NS(tgt=HOME.gateways[6])))


def has_advertisement(frames: Frames) -> bool:
    """Whether a neighbour has told its MAC address."""
    frames.update()
    return any(ICMPv6ND_NA in packet for packet in frames.received)


def test_transports_that_are_off(host_in_world: HostInWorld, directory: Path) -> None:
    """The guest hears nothing at all of them, and is served all the same; nothing is listened at."""
    host, world = host_in_world
    arguments = ["--no-tcp", "--no-udp", "--no-icmp", "-d", "-t", str(PORT), "-u", str(PORT)]
    with serving(host, world, directory, *arguments) as served:
        with KernelGuest(served.daemon.socket_path) as guest, contextlib.ExitStack() as opened:
            frames = Frames(guest.namespace)
            opened.callback(frames.close)
            for version in VERSIONS:
                with pytest.raises(TimeoutError):
                    world.connect(guest.namespace, version, SHORT_S)
                with servers.udp_socket(guest.namespace, HOME.addresses[version], timeout_s=SHORT_S) as endpoint:
                    endpoint.sendto(b"question", (REMOTE[version], 53))
                    with pytest.raises(TimeoutError):
                        endpoint.recv(100)
                with pytest.raises(RuntimeError, match="100% packet loss"):
                    guest.run("ping", "-n", "-c", "1", "-W", str(SHORT_S), REMOTE[version])
                with pytest.raises(ConnectionRefusedError):
                    ask_from(host, LOOPBACK[version], LOOPBACK[version], PORT)
                with servers.udp_socket(host, LOOPBACK[version], PORT):
                    pass  # nobody has it
            with DhcpClient(guest, directory) as dhcp:
                assert dhcp.next_event("bound").address == HOME.addresses[4]
            ask_for_router(guest.namespace)
            wait_for(lambda: has_advertisement(frames), "a neighbour advertisement")
            loud = [TCP, ICMP, ICMPv6DestUnreach]
            assert [packet.summary() for packet in frames.received if any(layer in packet for layer in loud)] == []
        lines = served.log.until("dropped: icmp is off")
        for reason in ("tcp is off", "udp is off", "icmp is off"):
            assert any(f"dropped: {reason}" in line for line in [*lines, *served.log.more()]), reason


@dataclass
class Told:
    """What a guest is told that asks for everything once."""

    kinds: set[str] = field(default_factory=set)
    dhcp: dict[str | int, object] = field(default_factory=dict)
    advertisement: Advertisement | None = None
    flags: tuple[int, int] = (0, 0)
    """M and O of the router advertisement."""
    dhcpv6: Packet | None = None


def interview(daemon: Daemon) -> Told:
    """Ask by DHCP, DHCPv6, for a router, for a neighbour, and by ARP."""
    to_all = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff")
    ip6 = IPv6(src=GUEST_LINK_LOCAL, dst="ff02::2", hlim=255)
    chaddr = bytes.fromhex(GUEST_MAC.replace(":", ""))
    wanted = [("message-type", "discover"), ("param_req_list", [1, 3, 6, 15, 119]), "end"]
    information = DHCP6_InfoRequest(trid=7) / DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC))
    asked = [
        to_all
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=chaddr)
        / DHCP(options=wanted),
        to_all
        / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:2")
        / UDP(sport=546, dport=547)
        / information
        / DHCP6OptOptReq(reqopts=[23, 24]),
        to_all / ip6 / ICMPv6ND_RS(),
        to_all / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:ff0a:1", hlim=255) / ICMPv6ND_NS(tgt="fe80::a:1"),
        to_all / ARP(op=1, hwsrc=GUEST_MAC, psrc=HOME.addresses[4], pdst=HOME.gateways[4]),
        to_all / ARP(op=1, hwsrc=GUEST_MAC, psrc=HOME.addresses[4], pdst=MARKER),
    ]
    told = Told()
    with RawGuest(daemon.socket_path) as guest:
        for packet in asked:
            guest.send_frame(bytes(packet))
        while True:
            packet = Ether(guest.receive_frame())
            if ARP in packet and packet[ARP].op == 2:
                if packet[ARP].psrc == MARKER:
                    return told
                told.kinds.add("ARP")
            elif ICMPv6ND_NA in packet:
                told.kinds.add("NA")
            elif ICMPv6ND_RA in packet:
                told.kinds.add("RA")
                told.advertisement = Advertisement.parse(packet)
                told.flags = packet[ICMPv6ND_RA].M, packet[ICMPv6ND_RA].O
            elif kind(packet) == "DHCPOFFER":
                told.kinds.add("DHCP")
                told.dhcp = options(packet)
            elif packet.getlayer(DHCP6, _subclass=True) is not None:
                told.kinds.add("DHCPv6")
                told.dhcpv6 = packet


EVERYTHING = {"DHCP", "DHCPv6", "RA", "NA", "ARP"}


@pytest.mark.parametrize(
    ("arguments", "answers", "flags"),
    [
        (["--no-dhcp"], EVERYTHING - {"DHCP"}, (1, 1)),
        (["--no-dhcpv6"], EVERYTHING - {"DHCPv6"}, (0, 0)),
        (["--no-ra"], EVERYTHING - {"RA"}, (0, 0)),
        (["--no-ndp"], EVERYTHING - {"RA", "NA"}, (0, 0)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_services_that_are_off(
    host_in_world: HostInWorld, directory: Path, arguments: list[str], answers: set[str], flags: tuple[int, int]
) -> None:
    with serving(*host_in_world, directory, *arguments) as served:
        told = interview(served.daemon)
        assert (told.kinds, told.flags) == (answers, flags)


def test_guest_that_is_told_nothing_can_still_be_configured_by_hand(
    host_in_world: HostInWorld, directory: Path
) -> None:
    """By its kernel and udhcpc, it gets nothing; with the right addresses, all is there."""
    host, world = host_in_world
    arguments = ["--no-dhcp", "--no-dhcpv6", "--no-ra"]
    with serving(host, world, directory, *arguments) as served, ClientGuest(served, directory) as guest:

        def has_asked() -> bool:
            guest.frames.update()
            asked = guest.frames.sent
            return any(DHCP in packet for packet in asked) and any(ICMPv6ND_RS in packet for packet in asked)

        wait_for(has_asked, "questions")
        namespace = guest.namespace
        for version in VERSIONS:
            bits = HOME.prefix_lengths[version]
            nodad = ["nodad"] if version == 6 else []
            namespace.ip("addr", "add", f"{HOME.addresses[version]}/{bits}", "dev", DEVICE, *nodad)
            namespace.ip(f"-{version}", "route", "add", "default", "via", HOME.gateways[version], "dev", DEVICE)
            assert world.sees_tcp(namespace, version) == HOME.addresses[version]
        assert guest.frames.advertisements() == []
        assert not any(DHCP in packet or DHCP6 in packet for packet in guest.frames.received)


NEW_SERVERS = ["-D", "198.51.100.99", "-D2001:db8:2::99"]


@pytest.mark.parametrize(
    ("arguments", "ipv4", "ipv6", "domain"),
    [
        ([*NEW_SERVERS, "-S", "one.example"], "198.51.100.99", "2001:db8:2::99", "one.example"),
        (["-D", "none", "-S", "none"], None, None, None),
        (["--no-dhcp-dns", "--no-dhcp-search", *NEW_SERVERS], None, None, None),
        (["--no-dhcp-search"], "198.51.100.53", "2001:db8:2::53", None),
    ],
    ids=["others", "none", "nothing told", "no domains told"],
)
def test_nameservers_and_domains(
    host_in_world: HostInWorld,
    directory: Path,
    arguments: list[str],
    ipv4: str | None,
    ipv6: str | None,
    domain: str | None,
) -> None:
    """As told by DHCP, DHCPv6 and router advertisements."""
    with serving(*host_in_world, directory, *arguments) as served:
        told = interview(served.daemon)
    assert told.kinds == EVERYTHING
    assert told.advertisement is not None
    assert told.dhcpv6 is not None
    encoded = domain and b"".join(bytes((len(label),)) + label.encode() for label in [*domain.split("."), ""])
    assert (told.dhcp.get("name_server"), told.dhcp.get(119)) == (ipv4, encoded)
    assert list(told.advertisement.servers) == ([ipv6] if ipv6 else [])
    assert list(told.advertisement.search) == ([domain] if domain else [])
    servers_told, domains_told = (told.dhcpv6.getlayer(kind) for kind in (DHCP6OptDNSServers, DHCP6OptDNSDomains))
    assert (servers_told.dnsservers if servers_told else None) == ([ipv6] if ipv6 else None)
    assert ([name.removesuffix(".") for name in domains_told.dnsdomains] if domains_told else None) == (
        [domain] if domain else None
    )
