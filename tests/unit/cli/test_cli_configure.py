"""Options and a host → the configuration, with what is said about it."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from attrs import evolve

from trio_passt.cli.configure import configure
from trio_passt.cli.options import Options
from trio_passt.config import (
    Attachment,
    Binding,
    Config,
    DnsForward,
    GuestIPv4,
    GuestIPv6,
    GuestNetwork,
    HostAddress,
    LogLevel,
    Outbound,
    PortForward,
    Protocol,
    Resolvers,
    Transports,
    Wishes,
)
from trio_passt.errors import StartupError
from trio_passt.host.network import Address, DefaultRoute, Host, Link, NextHop
from trio_passt.host.resolv import parse_resolv_conf

HOST = Host(
    (Link(1, "eth0"),),
    (Address(1, IPv4Address("192.0.2.2"), 24), Address(1, IPv6Address("2001:db8::2"), 64)),
    (
        DefaultRoute(4, (NextHop(1, IPv4Address("192.0.2.1")),)),
        DefaultRoute(6, (NextHop(1, IPv6Address("fe80::1")),)),
    ),
    parse_resolv_conf("nameserver 127.0.0.53\nsearch example.org\n"),
)
IPV4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
IPV6 = GuestIPv6(IPv6Address("2001:db8::2"), 64, IPv6Address("fe80::1"), "eth0")


def test_everything_arrives_in_the_configuration() -> None:
    options = Options(
        Attachment(Path("/s")),
        foreground=True,
        one_off=True,
        pcap=Path("/pcap"),
        pid_file=Path("/pid"),
        log_level=LogLevel.DEBUG,
        wishes=Wishes(mtu_bytes=1500, hostname="guest"),
        forwards=(PortForward(Protocol.TCP, 22, 22, 22),),
    )
    configured = configure(options, HOST)
    assert configured.config == Config(
        GuestNetwork(
            IPV4,
            IPV6,
            Resolvers((IPv4Address("192.0.2.1"),), (), ("example.org",)),
            1500,
            dns_forwards=(DnsForward(IPv4Address("192.0.2.1"), IPv4Address("127.0.0.53")),),
            hostname="guest",
            nameservers=(IPv4Address("127.0.0.53"),),
            host_addresses=(
                HostAddress(IPv4Address("192.0.2.1"), IPv4Address("127.0.0.1")),
                HostAddress(IPv6Address("fe80::1"), IPv6Address("::1")),
            ),
        ),
        Attachment(Path("/s")),
        (PortForward(Protocol.TCP, 22, 22, 22),),
        one_off=True,
        foreground=True,
        pcap=Path("/pcap"),
        pid_file=Path("/pid"),
        log_level=LogLevel.DEBUG,
        wishes=Wishes(mtu_bytes=1500, hostname="guest"),
    )
    assert (configured.warnings, configured.notes) == ((), ())


def test_a_small_mtu_takes_ipv6_away_with_a_warning() -> None:
    configured = configure(Options(wishes=Wishes(mtu_bytes=1279)), HOST)
    assert configured.config.network.ipv6 is None
    assert configured.warnings == ("IPv6 is off: an MTU of 1279 is below the 1280 it needs",)


@pytest.mark.parametrize("mtu_bytes", [0, 1280, 65520])
def test_other_mtus_do_not(mtu_bytes: int) -> None:
    configured = configure(Options(wishes=Wishes(mtu_bytes=mtu_bytes)), HOST)
    assert configured.config.network.ipv6 == IPV6
    assert configured.warnings == ()


def test_one_family_as_asked_for() -> None:
    only4, only6 = (
        configure(Options(wishes=Wishes(ipv6=False)), HOST),
        configure(Options(wishes=Wishes(ipv4=False)), HOST),
    )
    assert (only4.config.network.ipv4, only4.config.network.ipv6) == (IPV4, None)
    assert (only6.config.network.ipv4, only6.config.network.ipv6) == (None, IPV6)
    assert only6.notes == ("no nameserver of /etc/resolv.conf is one that the guest can use: it is told none",)


def test_no_family_left() -> None:
    with pytest.raises(StartupError, match="neither IPv4 nor IPv6"):
        configure(Options(wishes=Wishes(ipv4=False, mtu_bytes=1000)), HOST)


def test_an_empty_host_is_local_mode() -> None:
    configured = configure(Options(), Host())
    assert configured.config.network.ipv4 is not None
    assert configured.config.network.ipv4.interface is None
    assert len(configured.notes) == 1


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(interface_ipv4="eth9"), "this host has no interface 'eth9' (it has: eth0)"),
        (Wishes(interface_ipv6="eth9", ipv4=False), "this host has no interface 'eth9' (it has: eth0)"),
        (Wishes(interface_ipv4="lo"), "a guest can't have the network of 'lo', which is the loopback interface"),
    ],
)
def test_an_interface_that_can_not_be(wishes: Wishes, message: str) -> None:
    host = evolve(HOST, links=(Link(2, "lo", loopback=True), *HOST.links))
    with pytest.raises(StartupError) as caught:
        configure(Options(wishes=wishes), host)
    assert str(caught.value) == message


def test_an_interface_of_a_family_that_is_off_need_not_be_there() -> None:
    assert configure(Options(wishes=Wishes(interface_ipv6="eth9", ipv6=False)), HOST).config.network.ipv6 is None


def test_where_connections_of_a_family_that_is_off_would_leave_is_forgotten() -> None:
    everything = Outbound(IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"), "eth0", "eth0")
    of_ipv4 = configure(Options(outbound=everything, wishes=Wishes(ipv6=False)), HOST).config.outbound
    assert of_ipv4 == Outbound(ipv4_address=IPv4Address("192.0.2.2"), ipv4_interface="eth0")
    of_ipv6 = configure(Options(outbound=everything, wishes=Wishes(ipv4=False)), HOST).config.outbound
    assert of_ipv6 == Outbound(ipv6_address=IPv6Address("2001:db8::2"), ipv6_interface="eth0")
    assert configure(Options(outbound=everything), HOST).config.outbound == everything


def test_ports_of_a_transport_that_is_off() -> None:
    forwards = (PortForward(Protocol.TCP, 22, 22, 22), PortForward(Protocol.UDP, 53, 53, 53))
    configured = configure(Options(forwards=forwards, wishes=Wishes(transports=Transports(tcp=False))), HOST)
    assert configured.config.forwards == forwards[1:]
    assert configured.notes == ("--no-tcp: TCP ports are not forwarded",)
    silent = (PortForward(Protocol.UDP, 53, 53, 53, binding=Binding.WANTED),)
    configured = configure(Options(forwards=silent, wishes=Wishes(transports=Transports(udp=False))), HOST)
    assert (configured.config.forwards, configured.notes) == ((), ())
