"""The daemon while the host's network changes: a guest at a real socket sees what a guest has to see."""

import logging
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from attrs import evolve
from harness.hosts import ChangingHost, host
from harness.running import Running, StreamGuest, ends, running
from harness.stage import GUEST_MAC, V4, V6, Family, frame_of
from harness.waiting import eventually
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6ND_RS, ICMPv6NDOptPrefixInfo, ICMPv6NDOptRDNSS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from trio_passt.config import Attachment, Binding, Config, PortForward, Protocol, Wishes
from trio_passt.daemon import END_SIGNALS, STATUS_SIGNAL
from trio_passt.host import binder, follow
from trio_passt.host.guest_network import decide
from trio_passt.host.network import LOCAL_IPV4, LOCAL_IPV6, Host
from trio_passt.host.watch import HostWatch
from trio_passt.wire import ip, udp
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import ACK, SYN, TcpOptions, TcpSegment
from trio_passt.wire.udp import UdpHeader

MAC = GUEST_MAC.hex(":")
LINK_LOCAL = "fe80::5054:ff:fe12:3456"

HOME = host(
    f"{V4.guest}/24 eth0",
    f"{V6.guest}/64 eth0",
    routes=(f"{V4.gateway} eth0", f"{V6.gateway} eth0"),
    resolv_conf="nameserver 192.0.2.53\nnameserver 2001:db8::53\n",
)
"""The network that the harness's guests have."""
NEW_V4 = Family(4, "203.0.113.7", "203.0.113.1", "127.0.0.1")
NEW_V6 = Family(6, "2001:db8:7::7", "fe80::7", "::1")
OFFICE = host(
    "203.0.113.7/24 wlan0",
    "2001:db8:7::7/64 wlan0",
    routes=("203.0.113.1 wlan0", "fe80::7 wlan0"),
    resolv_conf="nameserver 203.0.113.53\nnameserver 2001:db8:7::53\n",
)
HOME_4 = evolve(HOME, routes=HOME.routes[:1])
VPN = evolve(OFFICE, addresses=(*OFFICE.addresses, *HOME.addresses))
"""The host is elsewhere, and has its former addresses still."""


@asynccontextmanager
async def daemon_on(
    changing: ChangingHost, first: Host, tmp_path: Path, *, forwards: tuple[PortForward, ...] = ()
) -> AsyncIterator[Running]:
    """A daemon that was started when its host was `first`."""
    config = Config(
        decide(Wishes(), first).network, Attachment(socket_path=tmp_path / "guest.socket"), forwards=forwards
    )
    async with running(config, changing) as daemon:  # type: ignore[arg-type]
        yield daemon


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> ChangingHost:
    """The host, in place of the real one."""
    changing = ChangingHost(HOME)
    monkeypatch.setattr(follow, "discover_again", changing.discover_again)
    monkeypatch.setattr(follow, "PAUSE_S", 0.0)
    return changing


@pytest.fixture
async def daemon(changing: ChangingHost, tmp_path: Path) -> AsyncIterator[Running]:
    """A daemon that follows the host, which is at home."""
    async with daemon_on(changing, HOME, tmp_path) as daemon:
        yield daemon


@pytest.fixture
async def guest(daemon: Running) -> AsyncIterator[StreamGuest]:
    """Its guest, which the daemon knows of."""
    guest = await arrived(daemon)
    yield guest
    guest.leaves()


async def arrived(daemon: Running) -> StreamGuest:
    assert daemon.path is not None
    guest = StreamGuest.at(daemon.path)
    await guest.frame()
    return guest


def frame(*layers: Packet | bytes) -> bytes:
    packet = Ether(src=MAC, dst="9a:55:9a:55:9a:55")
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


async def next_with(
    guest: StreamGuest, layer: type[Packet], wanted: Callable[[Packet], bool] = lambda _packet: True
) -> Packet:
    """The next frame with this in it; all before it does not matter."""
    while True:
        packet = Ether(await guest.frame())
        if packet.haslayer(layer) and wanted(packet):
            return packet


def datagram(family: Family, ports: tuple[int, int], payload: bytes, remote: str | None = None) -> bytes:
    source, destination = family.guest_packed, ip_address(remote or family.gateway).packed
    return frame_of(
        ip.emit_packet(source, destination, IPProtocol.UDP, udp.emit(source, destination, UdpHeader(*ports), payload))
    )


async def router(guest: StreamGuest) -> tuple[str, int]:
    """Who says in the next router advertisement that it is a router, and for how long."""
    packet = await next_with(guest, ICMPv6ND_RA)
    assert packet[IPv6].dst == "ff02::1"
    return packet[IPv6].src, packet[ICMPv6ND_RA].routerlifetime


def prefixes(packet: Packet) -> dict[str, int]:
    """The preferred lifetimes of the prefixes in a router advertisement."""
    found, option = {}, packet[ICMPv6ND_RA]
    while option := option.payload.getlayer(ICMPv6NDOptPrefixInfo):
        found[option.prefix] = option.preferredlifetime
    return found


async def leased(guest: StreamGuest, kind: str, *options: tuple[str, object], renewed: str | None = None) -> str:
    """What DHCP answers, in a word and who says so; `renewed`: by whom it was given the address that it renews."""
    source, to = ("0.0.0.0", "255.255.255.255") if renewed is None else (V4.guest, renewed)
    message = BOOTP(chaddr=GUEST_MAC, xid=7, ciaddr=source)
    message /= DHCP(options=[("message-type", kind), *options, "end"])
    guest.sends(frame(IP(src=source, dst=to), UDP(sport=68, dport=67), message))
    reply = await next_with(guest, BOOTP)
    said = dict(option for option in reply[DHCP].options if isinstance(option, tuple))
    word = {2: "OFFER", 5: "ACK", 6: "NAK"}[said["message-type"]]
    return f"{word} {reply[BOOTP].yiaddr} from {reply[IP].src}"


class TestGuestIsTold:
    async def test_at_once_by_router_advertisements(self, guest: StreamGuest, changing: ChangingHost) -> None:
        changing.becomes(OFFICE)
        assert await router(guest) == (V6.gateway, 0)
        packet = await next_with(guest, ICMPv6ND_RA)
        assert (packet[IPv6].src, packet[ICMPv6ND_RA].routerlifetime) == (NEW_V6.gateway, 1800)
        assert prefixes(packet) == {"2001:db8:7::": 14400, "2001:db8:1:2::": 0}
        assert packet[ICMPv6NDOptRDNSS].dns == ["2001:db8:7::53"]

    async def test_when_it_asks_by_dhcp(self, guest: StreamGuest, changing: ChangingHost) -> None:
        """As a client does that comes to its renewal, is refused, and starts again."""
        assert await leased(guest, "request", ("requested_addr", V4.guest)) == f"ACK {V4.guest} from {V4.gateway}"
        changing.becomes(OFFICE)
        await router(guest)
        assert await leased(guest, "request", renewed=V4.gateway) == f"NAK 0.0.0.0 from {V4.gateway}"
        assert await leased(guest, "discover") == f"OFFER {NEW_V4.guest} from {NEW_V4.gateway}"
        select = (("requested_addr", NEW_V4.guest), ("server_id", NEW_V4.gateway))
        assert await leased(guest, "request", *select) == f"ACK {NEW_V4.guest} from {NEW_V4.gateway}"

    async def test_that_it_may_keep_an_address_that_the_host_has_still(
        self, guest: StreamGuest, changing: ChangingHost
    ) -> None:
        changing.becomes(VPN)
        await router(guest)
        assert await leased(guest, "request", renewed=V4.gateway) == f"ACK {V4.guest} from {V4.gateway}"
        changing.becomes(OFFICE)
        await router(guest)
        assert await leased(guest, "request", renewed=V4.gateway) == f"NAK 0.0.0.0 from {V4.gateway}"

    async def test_that_its_router_leads_nowhere_and_does_again(
        self, guest: StreamGuest, changing: ChangingHost
    ) -> None:
        changing.becomes(evolve(HOME, routes=()))
        assert await router(guest) == (V6.gateway, 0)
        assert await leased(guest, "request", renewed=V4.gateway) == f"ACK {V4.guest} from {V4.gateway}"
        changing.becomes(HOME)
        assert await router(guest) == (V6.gateway, 1800)

    async def test_of_other_resolvers(self, guest: StreamGuest, changing: ChangingHost) -> None:
        changing.becomes(evolve(HOME, resolv_conf=OFFICE.resolv_conf))
        packet = await next_with(guest, ICMPv6ND_RA)
        servers = [packet[ICMPv6ND_RA].getlayer(ICMPv6NDOptRDNSS, number) for number in (1, 2)]
        assert [(option.lifetime, option.dns) for option in servers] == [
            (1800, ["2001:db8:7::53"]),
            (0, ["2001:db8::53"]),
        ]

    async def test_of_each_change(self, guest: StreamGuest, changing: ChangingHost) -> None:
        """There and back."""
        changing.becomes(OFFICE)
        assert [await router(guest) for _ in range(2)] == [(V6.gateway, 0), (NEW_V6.gateway, 1800)]
        changing.becomes(HOME)
        assert [await router(guest) for _ in range(2)] == [(NEW_V6.gateway, 0), (V6.gateway, 1800)]
        assert await leased(guest, "request", renewed=V4.gateway) == f"ACK {V4.guest} from {V4.gateway}"

    async def test_and_the_operator_too(
        self, guest: StreamGuest, changing: ChangingHost, caplog: pytest.LogCaptureFixture
    ) -> None:
        changing.becomes(OFFICE)
        await router(guest)
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "the host's IPv4 is now 203.0.113.7/24, gateway 203.0.113.1 (from wlan0)" in warning


class TestFlows:
    @pytest.mark.parametrize("then", [OFFICE, VPN, evolve(HOME, routes=())], ids=["elsewhere", "VPN", "offline"])
    async def test_connection_that_is_open_goes_on(
        self, guest: StreamGuest, changing: ChangingHost, family: Family, then: Host
    ) -> None:
        with socket.create_server((family.local, 0), family=family.socket_family) as server:
            server.settimeout(30)
            ports = (40_000, server.getsockname()[1])
            guest.sends_segment(family, TcpSegment(*ports, 100, 0, SYN, 65535, b"", TcpOptions(1460)))
            answer = await guest.segment(family)
            guest.sends_segment(family, TcpSegment(*ports, 101, answer.seq + 1, ACK, 65535, b"before"))
            connection, _ = server.accept()
            with connection:
                connection.settimeout(30)
                assert (await guest.segment(family)).ack == 107
                assert connection.recv(100) == b"before"
                changing.becomes(then)
                await router(guest)
                guest.sends_segment(family, TcpSegment(*ports, 107, answer.seq + 1, ACK, 65535, b"after"))
                assert (await guest.segment(family)).ack == 112
                assert connection.recv(100) == b"after"
                connection.sendall(b"reply")
                segment = await guest.segment(family)
                assert (segment.payload, segment.destination_port) == (b"reply", 40_000)

    async def test_datagrams_go_on(self, guest: StreamGuest, changing: ChangingHost, family: Family) -> None:
        with socket.socket(family.socket_family, socket.SOCK_DGRAM) as server:
            server.bind((family.local, 0))
            server.setblocking(False)
            ports = (40_000, server.getsockname()[1])

            def received() -> tuple[bytes, object] | None:
                try:
                    return server.recvfrom(100)
                except BlockingIOError:
                    return None

            guest.sends(datagram(family, ports, b"before"))
            _, peer = await eventually(received, "a datagram")
            changing.becomes(OFFICE)
            await router(guest)
            guest.sends(datagram(family, ports, b"after"))
            assert await eventually(received, "a datagram") == (b"after", peer)
            server.sendto(b"reply", peer)
            packet = await next_with(guest, UDP, lambda packet: packet[UDP].sport == ports[1])
            assert bytes(packet[UDP].payload) == b"reply"
            layer = packet[IP if family is V4 else IPv6]
            assert (layer.src, layer.dst) == (family.gateway, family.guest)

    async def test_new_ones_are_of_the_new_network(self, guest: StreamGuest, changing: ChangingHost) -> None:
        changing.becomes(OFFICE)
        await router(guest)
        for family in (NEW_V4, NEW_V6):
            with socket.create_server((family.local, 0), family=family.socket_family) as server:
                ports = (40_000, server.getsockname()[1])
                guest.sends_segment(family, TcpSegment(*ports, 100, 0, SYN, 65535, b"", TcpOptions(1460)))
                assert (await guest.segment(family)).flags == SYN | ACK


class TestOtherGuests:
    async def test_next_guest_is_told_as_if_nothing_had_been(
        self, daemon: Running, guest: StreamGuest, changing: ChangingHost
    ) -> None:
        changing.becomes(OFFICE)
        await router(guest)
        guest.leaves()
        other = await arrived(daemon)
        assert await leased(other, "discover") == f"OFFER {NEW_V4.guest} from {NEW_V4.gateway}"
        wrong = await leased(other, "request", ("requested_addr", V4.guest))
        assert wrong == f"NAK 0.0.0.0 from {NEW_V4.gateway}"
        other.sends(frame(IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255), ICMPv6ND_RS()))
        packet = await next_with(other, ICMPv6ND_RA)
        assert prefixes(packet) == {"2001:db8:7::": 14400}
        other.leaves()

    async def test_change_while_there_is_no_guest(self, daemon: Running, changing: ChangingHost) -> None:
        changing.becomes(OFFICE)
        await eventually(lambda: changing.looks or None, "a look")
        guest = await arrived(daemon)
        assert await leased(guest, "discover") == f"OFFER {NEW_V4.guest} from {NEW_V4.gateway}"
        changing.becomes(HOME)
        assert await router(guest) == (NEW_V6.gateway, 0)
        guest.leaves()

    async def test_guest_that_was_looked_for_is_looked_for_where_it_is_now(
        self, daemon: Running, changing: ChangingHost
    ) -> None:
        changing.becomes(OFFICE)
        await eventually(lambda: changing.looks or None, "a look")
        assert daemon.path is not None
        guest = StreamGuest.at(daemon.path)
        assert (await next_with(guest, ARP))[ARP].pdst == NEW_V4.guest
        guest.leaves()


def is_there(kind: socket.SocketKind, port: int) -> None:
    """Or ConnectionRefusedError is raised."""
    with socket.socket(socket.AF_INET6, kind) as client:
        client.settimeout(30)
        client.connect(("::1", port))
        client.send(b"x")
        client.recv(1)


class TestOnlineLater:
    """The daemon was started before the network was up."""

    async def test_guest_comes_online_when_the_host_does(self, changing: ChangingHost, tmp_path: Path) -> None:
        async with daemon_on(changing, Host(), tmp_path) as daemon:
            guest = await arrived(daemon)
            local = LOCAL_IPV4
            assert await leased(guest, "discover") == f"OFFER {local.address} from {local.gateway}"
            changing.becomes(HOME)
            packet = await next_with(guest, ICMPv6ND_RA)  # the router of local mode is the same
            assert packet[IPv6].src == str(LOCAL_IPV6.gateway)
            assert prefixes(packet) == {"2001:db8:1:2::": 14400}
            refused = await leased(guest, "request", ("requested_addr", str(local.address)))
            assert refused == f"NAK 0.0.0.0 from {local.gateway}"
            assert await leased(guest, "discover") == f"OFFER {V4.guest} from {V4.gateway}"
            guest.leaves()

    @pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
    async def test_forwarded_port_is_bound_when_ipv6_appears(
        self, changing: ChangingHost, tmp_path: Path, protocol: Protocol
    ) -> None:
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET6, kind) as free:
            free.bind(("::1", 0))
            port = free.getsockname()[1]
        forwards = (PortForward(protocol, port, port, 80),)
        async with daemon_on(changing, HOME_4, tmp_path, forwards=forwards) as daemon:
            guest = await arrived(daemon)
            with pytest.raises(ConnectionRefusedError):
                is_there(kind, port)
            changing.becomes(HOME)
            assert await router(guest) == (V6.gateway, 1800)
            with socket.socket(socket.AF_INET6, kind) as client:
                client.connect(("::1", port))
                if protocol is Protocol.TCP:
                    syn = await next_with(guest, IPv6, lambda packet: packet[IPv6].nh == 6 and packet.dport == 80)
                    assert syn[IPv6].dst == V6.guest
                else:
                    client.send(b"hello")
                    packet = await next_with(guest, UDP, lambda packet: packet[UDP].dport == 80)
                    assert (packet[IPv6].dst, bytes(packet[UDP].payload)) == (V6.guest, b"hello")
            guest.leaves()

    async def test_the_status_tells_of_ports_that_are_open_since(
        self, changing: ChangingHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "trio_passt")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            forwards = (PortForward(Protocol.TCP, port, port, port, binding=Binding.WANTED),)
            async with daemon_on(changing, HOME_4, tmp_path, forwards=forwards) as daemon:
                guest = await arrived(daemon)
                changing.becomes(HOME)
                assert await router(guest) == (V6.gateway, 1800)
                signal.raise_signal(STATUS_SIGNAL)
                await eventually(lambda: f"forwarded: TCP {port}\n" in caplog.text or None, "the port")
                guest.leaves()

    async def test_port_that_cannot_be_bound_then_does_not_end_the_daemon(
        self,
        changing: ChangingHost,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(binder, "FIND_HOLDERS_WITHIN_S", 30)
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            port = taken.getsockname()[1]
            forwards = (PortForward(Protocol.TCP, port, port, 80),)
            async with daemon_on(changing, HOME_4, tmp_path, forwards=forwards) as daemon:
                guest = await arrived(daemon)
                changing.becomes(HOME)
                assert await router(guest) == (V6.gateway, 1800)
                guest.leaves()
        assert f"can't forward TCP port {port} of ::: Address already in use by " in caplog.text
        assert ", going on without it" in caplog.text


class TestFarewell:
    """RFC 4861 section 6.2.5: hosts look for another router at once."""

    @pytest.mark.parametrize("number", END_SIGNALS, ids=str)
    async def test_router_lifetime_0_is_the_last_that_a_guest_hears(
        self, daemon: Running, guest: StreamGuest, number: signal.Signals
    ) -> None:
        signal.raise_signal(number)
        await ends(daemon)
        packet = await next_with(guest, ICMPv6ND_RA)
        assert (packet[IPv6].src, packet[ICMPv6ND_RA].routerlifetime) == (V6.gateway, 0)
        assert packet[ICMPv6NDOptRDNSS].lifetime == 0
        await guest.is_turned_away()

    async def test_of_the_router_of_now(self, daemon: Running, guest: StreamGuest, changing: ChangingHost) -> None:
        changing.becomes(OFFICE)
        assert [await router(guest) for _ in range(2)] == [(V6.gateway, 0), (NEW_V6.gateway, 1800)]
        signal.raise_signal(signal.SIGTERM)
        await ends(daemon)
        assert await router(guest) == (NEW_V6.gateway, 0)

    async def test_no_router_no_farewell(self, changing: ChangingHost, tmp_path: Path) -> None:
        async with daemon_on(changing, HOME_4, tmp_path) as daemon:
            guest = await arrived(daemon)
            signal.raise_signal(signal.SIGTERM)
            await ends(daemon)
            await guest.is_turned_away()  # nothing comes before the end
            guest.leaves()

    async def test_guest_that_goes_needs_none(self, daemon: Running, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        guest = await arrived(daemon)
        guest.leaves()
        await eventually(lambda: "guest gone: " in caplog.text or None, "the end of the session")


async def test_without_a_watch_nothing_is_followed(changing: ChangingHost, tmp_path: Path) -> None:
    config = Config(decide(Wishes(), HOME).network, Attachment(socket_path=tmp_path / "guest.socket"))
    async with running(config) as daemon:
        guest = await arrived(daemon)
        changing.becomes(OFFICE)
        assert await leased(guest, "discover") == f"OFFER {V4.guest} from {V4.gateway}"
        assert changing.looks == []
        guest.leaves()


@pytest.mark.usefixtures("namespace")
async def test_real_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel's own word, from the first message to the guest's router advertisement."""
    caplog.set_level(logging.INFO)
    resolv_conf = tmp_path / "resolv.conf"
    with HostWatch(resolv_conf) as watch:
        config = Config(decide(Wishes(), Host()).network, Attachment(socket_path=tmp_path / "guest.socket"))
        async with running(config, watch) as daemon:
            guest = await arrived(daemon)
            for command in (
                "link add eth0 type veth peer name far0",
                "link set far0 up",
                "link set eth0 up",
                "address add 198.51.100.5/24 dev eth0",
                "address add 2001:db8:1:2::5/64 dev eth0 nodad",
                "route add default via 198.51.100.1",
                "-6 route add default via fe80::1 dev eth0",
            ):
                subprocess.run(["ip", *command.split()], check=True)  # noqa: ASYNC221
            with trio.fail_after(30):  # a look takes 0.3 s, if the machine has nothing else to do
                while "IPv6 is now" not in caplog.text:  # noqa: ASYNC110 - the log tells nobody
                    await trio.sleep(0.02)
            await next_with(guest, ICMPv6ND_RA, lambda packet: prefixes(packet) == {"2001:db8:1:2::": 14400})
            assert await leased(guest, "discover") == f"OFFER {V4.guest} from {V4.gateway}"
            guest.leaves()
