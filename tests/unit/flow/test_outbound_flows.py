"""The guest's flows leave the host where the operator says (`--outbound`, `--outbound-if4`, `--outbound-if6`).

On a host with two addresses of each family, of which the kernel would choose the first.  Its remote is itself, at an
address that it does not know as its own.
"""

import logging
import socket
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from attrs import evolve
from harness.own_namespace import answer_for, has_address
from harness.stage import V4, V6, Family, Stage
from harness.tcp import HostServer
from harness.waiting import eventually
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from trio_passt.config import Outbound, Protocol
from trio_passt.host.endpoint import Endpoint
from trio_passt.host.outbound import Way
from trio_passt.wire.tcp import ACK, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock", "two_addresses")

FIRST = {V4: "192.0.2.2", V6: "2001:db8:9::2"}
SECOND = {V4: "203.0.113.2", V6: "2001:db8:3::2"}
REMOTE = {V4: "203.0.113.80", V6: "2001:db8:8::80"}
BITS = {V4: 32, V6: 128}

BY_ADDRESS = Outbound(IPv4Address(SECOND[V4]), IPv6Address(SECOND[V6]))
BY_BOTH = evolve(BY_ADDRESS, ipv4_interface="lo", ipv6_interface="lo")
GONE = Outbound(ipv4_interface="gone0", ipv6_interface="gone0")


@pytest.fixture
def two_addresses(namespace: None) -> None:
    for family in (V4, V6):
        answer_for(f"{REMOTE[family]}/{BITS[family]}", source=f"{FIRST[family]}/{BITS[family]}")
        has_address(f"{SECOND[family]}/{BITS[family]}")


def loses(address: str, family: Family) -> None:
    """The host has it no more."""
    subprocess.run(["ip", "address", "del", f"{address}/{BITS[family]}", "dev", "lo"], check=True)


def udp_server(guest: Stage, family: Family) -> socket.socket:
    return guest.host_udp(family, ("", 0))


async def asked(host: socket.socket) -> tuple[str, int]:
    """Who has sent the next datagram."""

    def arrived() -> tuple[str, int] | None:
        try:
            name: tuple[str, int] = host.recvfrom(100)[1][:2]
        except BlockingIOError:
            return None
        return name

    return await eventually(arrived, "a datagram at the host")


def sends(guest: Stage, family: Family, port: int, host: socket.socket, remote: str | None = None) -> None:
    guest.sends_datagram(family, port, host.getsockname()[1], b"data", remote or REMOTE[family])


def ping(family: Family, remote: str) -> bytes:
    if family is V4:
        return bytes(IP(src=V4.guest, dst=remote) / ICMP(id=9, seq=1))
    return bytes(IPv6(src=V6.guest, dst=remote) / ICMPv6EchoRequest(id=9, seq=1))


async def test_who_is_not_the_host_itself_has_a_way(guest: Stage, family: Family) -> None:
    def way_to(address: str) -> Way | None:
        return guest.session.way_to(Endpoint(ip_address(address).packed, 80))

    assert way_to(REMOTE[family]) is None
    guest.session.outbound = BY_BOTH
    assert way_to(REMOTE[family]) == Way("lo", ip_address(SECOND[family]).packed)
    assert way_to(family.local) is None
    assert way_to(family.guest) is None, "the host's own address"
    assert way_to("127.0.0.53") is None


@pytest.mark.parametrize("outbound", [BY_ADDRESS, BY_BOTH], ids=["address", "address and interface"])
class TestLeaves:
    async def test_connection(self, guest: Stage, family: Family, outbound: Outbound) -> None:
        guest.session.outbound = outbound
        server = HostServer(family.socket_family, "")
        guest.opened.callback(server.close)
        tcp = guest.tcp(family, server.port, remote=REMOTE[family])
        tcp.sends(SYN)
        await tcp.expects(SYN | ACK)
        host = await server.accepts()
        assert host.socket.getpeername()[0] == SECOND[family]

    async def test_datagrams_from_the_guests_port(self, guest: Stage, family: Family, outbound: Outbound) -> None:
        guest.session.outbound = outbound
        hosts = [udp_server(guest, family) for _ in range(2)]
        for host in hosts:
            sends(guest, family, 5353, host)
            assert await asked(host) == (SECOND[family], 5353)

    async def test_from_a_forwarded_port(self, guest: Stage, family: Family, outbound: Outbound) -> None:
        """Which the guest has towards its remotes, too, if the kernel can do that; clients are answered from where they
        ask.
        """
        guest.session.outbound = outbound
        number = guest.forwards(Protocol.UDP, 7000)
        host = udp_server(guest, family)
        sends(guest, family, 7000, host)
        keeps_port = family is V4 or outbound is BY_ADDRESS
        assert await asked(host) == (SECOND[family], number if keeps_port else 7000)

        client = guest.host_udp(family, ("", 0))
        client.sendto(b"question", (FIRST[family], number))
        seen = await guest.expects_datagram()
        guest.sends_datagram(family, 7000, seen.source_port, b"answer", seen.source)
        assert await asked(client) == (FIRST[family], number)

    async def test_not_from_a_port_that_is_forwarded_elsewhere(
        self, guest: Stage, family: Family, outbound: Outbound
    ) -> None:
        """Answers to the second address would not come to a socket that is bound to the first."""
        guest.session.outbound = outbound
        number = guest.forwards(Protocol.UDP, 7000, FIRST[family])
        host = udp_server(guest, family)
        sends(guest, family, 7000, host)
        assert await asked(host) == (SECOND[family], 7000)
        assert number != 7000

    async def test_echo(self, guest: Stage, family: Family, outbound: Outbound) -> None:
        guest.session.outbound = outbound
        guest.sends_packets(ping(family, REMOTE[family]))
        seen = await guest.expects_other()
        assert seen.packet.haslayer(ICMP if family is V4 else ICMPv6EchoReply)
        assert [flow._host.getsockname()[0] for flow in guest.dispatcher.echo if flow._host] == [SECOND[family]]

    async def test_what_goes_to_loopback_is_not_concerned(
        self, guest: Stage, family: Family, outbound: Outbound
    ) -> None:
        guest.session.outbound = outbound
        host = guest.host_udp(family)
        sends(guest, family, 5353, host, family.gateway)
        assert await asked(host) == (family.local, 5353)


class TestInterfaceIsGone:
    """To the guest, there is no route; to the operator, a line now and then."""

    async def test_connection(self, guest: Stage, family: Family, caplog: pytest.LogCaptureFixture) -> None:
        guest.session.outbound = GONE
        for port in (1000, 1001, 1002):
            tcp = guest.tcp(family, 80, remote=REMOTE[family], guest_port=port)
            tcp.sends(SYN)
            assert (await guest.expects_error()).code == 0
            await tcp.expects(RST | ACK)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == ("can't open a connection for the guest: interface gone0: no such interface")

    async def test_datagrams(self, guest: Stage, family: Family, caplog: pytest.LogCaptureFixture) -> None:
        guest.session.outbound = GONE
        host = udp_server(guest, family)
        for port in (1000, 1001, 1002):
            sends(guest, family, port, host)
            assert (await guest.expects_error()).code == 0
        await guest.settles()
        assert len(guest.dispatcher.udp) == 0
        assert guest.session.drops == {"udp: interface gone0: no such interface": 3}
        assert len(caplog.records) == 1

    async def test_echo(self, guest: Stage, family: Family, caplog: pytest.LogCaptureFixture) -> None:
        guest.session.outbound = GONE
        guest.sends_packets(ping(family, REMOTE[family]))
        assert (await guest.expects_error()).code == 0
        await guest.settles()
        assert guest.session.drops == {"echo: interface gone0: no such interface": 1}
        assert len(caplog.records) == 1

    async def test_forwarded_port(self, guest: Stage, family: Family) -> None:
        guest.session.outbound = GONE
        guest.forwards(Protocol.UDP, 7000)
        host = udp_server(guest, family)
        sends(guest, family, 7000, host)
        assert (await guest.expects_error()).code == 0
        assert guest.session.drops == {"udp: interface gone0: no such interface": 1}


async def test_address_that_goes_ends_a_flow_and_the_next_one_says_why(guest: Stage, family: Family) -> None:
    guest.session.outbound = BY_ADDRESS
    host = udp_server(guest, family)
    sends(guest, family, 5353, host)
    await asked(host)
    loses(SECOND[family], family)
    reason = f"udp: source address {SECOND[family]}: not an address of this host"
    for port in (5353, 5353) if family is V4 else (5354,):  # the kernel looks at IPv6 ones only when they are bound
        sends(guest, family, port, host)
        await guest.settles()
    assert guest.session.drops[reason] == 1
    has_address(f"{SECOND[family]}/{BITS[family]}")
    sends(guest, family, 5353, host)
    assert await asked(host) == (SECOND[family], 5353)


async def test_forwarded_port_whose_interface_is_another_by_now(guest: Stage, family: Family) -> None:
    """The flow begins anew, by the interface that has the name then."""
    guest.session.outbound = Outbound(ipv4_interface="lo", ipv6_interface="lo")
    number = guest.forwards(Protocol.UDP, 7000)
    host = udp_server(guest, family)
    sends(guest, family, 7000, host)
    await asked(host)
    (flow,) = guest.dispatcher.udp
    stale = [Way("lo", None).of_one_datagram(len(family.guest_packed))]
    level, kind, data = stale[0]
    index = socket.if_nametoindex("lo").to_bytes(4, "little")
    flow._by_way = [(level, kind, data.replace(index, (9999).to_bytes(4, "little"), 1))]  # type: ignore[attr-defined]
    sends(guest, family, 7000, host)
    await guest.settles()
    sends(guest, family, 7000, host)
    assert await asked(host) == (FIRST[family], number)
