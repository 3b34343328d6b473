"""What the user reads at the start: exactly, for it is a promise to be copied from."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest
from attrs import evolve

from trio_passt.cli.configure import configure
from trio_passt.cli.messages import help_text, joined_ranges, startup_message, version_text
from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import options
from trio_passt.cli.options import Options, parse_options
from trio_passt.cli.ports import follow, parse_ports
from trio_passt.config import (
    Config,
    DnsForward,
    GuestIPv4,
    GuestIPv6,
    GuestNetwork,
    HostAddress,
    NetworkBoot,
    Outbound,
    PortForward,
    Protocol,
    Resolvers,
    Services,
    Transports,
)
from trio_passt.host.network import Host

GUEST_4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
MAPPED_4 = HostAddress(IPv4Address("192.0.2.1"), IPv4Address("127.0.0.1"))
MAPPED_6 = HostAddress(IPv6Address("fe80::1"), IPv6Address("::1"))
GUEST_6 = GuestIPv6(IPv6Address("2001:db8::2"), 64, IPv6Address("fe80::1"), "wlan0")


def test_the_whole_message() -> None:
    tcp = parse_ports(
        "-t",
        Protocol.TCP,
        ["22,8000-8010:9000-9010,8011", "127.0.0.1/2222:22", "%eth0/80", "fe80::1%eth0/81"],
        ephemeral=range(0),
    )
    network = GuestNetwork(
        GUEST_4,
        GUEST_6,
        Resolvers((IPv4Address("192.0.2.1"),), (IPv6Address("2001:db8::53"),), ("example.org", "example.net")),
        dns_forwards=(DnsForward(IPv4Address("192.0.2.1"), IPv4Address("127.0.0.53")),),
        host_addresses=(MAPPED_4, MAPPED_6),
    )
    config = Config(network, forwards=tcp + follow(tcp))
    assert startup_message(config, Path("/tmp/a b,c"), "x86_64") == (
        "trio-passt: the guest gets\n"
        "    IPv4     192.0.2.2/24 (mask 255.255.255.0), gateway 192.0.2.1 (from eth0)\n"
        "    IPv6     2001:db8::2/64, gateway fe80::1 (from wlan0)\n"
        "    DNS      192.0.2.1, 2001:db8::53\n"
        "    Search   example.org example.net\n"
        "    MTU      65520\n"
        "Ports of this host that are forwarded to the guest\n"
        "    TCP      22, 8000-8010 -> 9000-9010, 8011\n"
        "    TCP      2222 -> 22 on 127.0.0.1\n"
        "    TCP      80 on %eth0\n"
        "    TCP      81 on fe80::1%eth0\n"
        "    UDP      22, 8000-8011\n"
        "    UDP      2222 on 127.0.0.1\n"
        "    UDP      80 on %eth0\n"
        "    UDP      81 on fe80::1%eth0\n"
        "Addresses at which the guest reaches this host\n"
        "    192.0.2.1 -> 127.0.0.1\n"
        "    fe80::1 -> ::1\n"
        "    192.0.2.1 -> 127.0.0.53 on ports 53 and 853 (DNS)\n"
        "Start the guest with\n"
        "    qemu-system-x86_64 ... -device virtio-net-pci,netdev=n"
        " -netdev 'stream,id=n,server=off,addr.type=unix,addr.path=/tmp/a b,,c'\n"
    )


def test_the_least_message() -> None:
    local = GuestIPv4(IPv4Address("169.254.2.1"), 16, IPv4Address("169.254.2.2"))
    mapped = HostAddress(IPv4Address("169.254.2.2"), IPv4Address("127.0.0.1"))
    assert startup_message(Config(GuestNetwork(local, mtu_bytes=0, host_addresses=(mapped,))), None, "x86_64") == (
        "trio-passt: the guest gets\n"
        "    IPv4     169.254.2.1/16 (mask 255.255.0.0), gateway 169.254.2.2 (local mode)\n"
        "    DNS      none\n"
        "    MTU      not told\n"
        "Ports of this host that are forwarded to the guest\n"
        "    none\n"
        "Addresses at which the guest reaches this host\n"
        "    169.254.2.2 -> 127.0.0.1\n"
    )


def told(network: GuestNetwork) -> list[str]:
    """What the guest gets."""
    lines = startup_message(Config(network), None, "x86_64").splitlines()
    return [line.strip() for line in lines[1 : lines.index("Ports of this host that are forwarded to the guest")]]


def test_names_and_what_to_boot() -> None:
    boot = NetworkBoot("pxe/pxelinux.0", "boot.example.org", IPv4Address("192.0.2.9"))
    network = GuestNetwork(GUEST_4, GUEST_6, hostname="guest", fqdn="guest.example.org", boot=boot)
    assert told(network)[-4:] == [
        "MTU      65520",
        "Name     guest",
        "FQDN     guest.example.org",
        "Boot     pxe/pxelinux.0 from 192.0.2.9 (boot.example.org)",
    ]


def test_what_to_boot_is_at_the_gateway_unless_it_is_said_where() -> None:
    network = GuestNetwork(GUEST_4, boot=NetworkBoot("http://192.0.2.1/boot.ipxe"))
    assert told(network)[-1] == "Boot     http://192.0.2.1/boot.ipxe from 192.0.2.1"


def test_what_to_boot_is_where_the_guest_reaches_this_host() -> None:
    """`--map-host-loopback`: the gateway's address is the gateway's then; DHCP says the same (next-server)."""
    mapped = HostAddress(IPv4Address("203.0.113.9"), IPv4Address("127.0.0.1"))
    network = GuestNetwork(GUEST_4, boot=NetworkBoot("file"), host_addresses=(MAPPED_6, mapped))
    assert told(network)[-1] == "Boot     file from 203.0.113.9"


def test_without_ipv4_there_is_no_dhcp_to_tell_a_host_name_or_what_to_boot() -> None:
    network = GuestNetwork(ipv6=GUEST_6, hostname="guest", fqdn="guest.example.org", boot=NetworkBoot("file"))
    assert told(network)[-2:] == ["MTU      65520", "FQDN     guest.example.org"]


def test_nothing_that_was_not_set() -> None:
    assert told(GuestNetwork(GUEST_4))[-1] == "MTU      65520"


def test_nameserver_that_is_where_the_gateway_leads_anyway_is_one_line() -> None:
    forwards = (
        DnsForward(IPv4Address("192.0.2.1"), IPv4Address("127.0.0.1")),
        DnsForward(IPv4Address("203.0.113.53"), IPv4Address("127.0.0.53")),
    )
    message = startup_message(
        Config(GuestNetwork(GUEST_4, dns_forwards=forwards, host_addresses=(MAPPED_4,))), None, "x86_64"
    )
    assert message.splitlines()[-2:] == [
        "    192.0.2.1 -> 127.0.0.1",
        "    203.0.113.53 -> 127.0.0.53 on ports 53 and 853 (DNS)",
    ]


def test_ipv6_alone() -> None:
    message = startup_message(Config(GuestNetwork(ipv6=GUEST_6)), None, "x86_64")
    assert "IPv4" not in message
    assert "127.0.0.1" not in message


@pytest.mark.parametrize(
    ("pairs", "texts"),
    [
        ([], []),
        ([(22, 22)], ["22"]),
        ([(23, 23), (22, 22)], ["22-23"]),
        ([(22, 22), (24, 24)], ["22", "24"]),
        ([(22, 30), (23, 31), (24, 24)], ["22-23 -> 30-31", "24"]),
        ([(22, 80), (23, 80)], ["22 -> 80", "23 -> 80"]),
    ],
)
def test_joined_ranges(pairs: list[tuple[int, int]], texts: list[str]) -> None:
    assert joined_ranges(PortForward(Protocol.TCP, port, port, target) for port, target in pairs) == texts


def test_neighbouring_ranges_are_joined() -> None:
    forwards = [
        PortForward(Protocol.TCP, 30, 39, 130),
        PortForward(Protocol.TCP, 20, 29, 120),
        PortForward(Protocol.TCP, 40, 40, 141),
        PortForward(Protocol.TCP, 42, 65535, 42),
    ]
    assert joined_ranges(forwards) == ["20-39 -> 120-139", "40 -> 141", "42-65535"]


def test_ports_with_many_gaps_are_not_all_said() -> None:
    forwards = tuple(PortForward(Protocol.TCP, port, port, port) for port in range(2, 42, 2))
    message = startup_message(Config(GuestNetwork(GUEST_4), forwards=forwards), None, "x86_64")
    (line,) = (line for line in message.splitlines() if "TCP" in line)
    assert line == "    TCP      2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, and 4 others"


@pytest.mark.parametrize("mode", [Mode.VM, Mode.NAMESPACE])
def test_help_names_every_option_and_fits_a_terminal(mode: Mode) -> None:
    text = help_text(mode)
    assert text.isascii()
    assert all(f"--{name}" in text for option in options(mode) for name in option.names)
    assert max(map(len, text.splitlines())) <= 80


def test_help_begins_with_what_can_be_said() -> None:
    assert help_text(Mode.VM).splitlines()[:2] == ["Usage: trio-passt [OPTION]...", ""]
    assert help_text(Mode.NAMESPACE).splitlines()[:4] == [
        "Usage: trio-pasta [OPTION]... [COMMAND [ARG]...]",
        "       trio-pasta [OPTION]... PID",
        "       trio-pasta [OPTION]... --netns PATH|NAME",
        "",
    ]


def test_version() -> None:
    assert version_text("1.2.3") == "trio-passt 1.2.3\n"
    assert version_text("1.2.3", Mode.NAMESPACE) == "trio-pasta 1.2.3\n"


# -- of a namespace ---------------------------------------------------------------------------------------------------


def said(*words: str, network: GuestNetwork | None = None) -> list[str]:
    """With these options, for a namespace that has tap0."""
    options = parse_options(words, Path("/"), range(32768, 61000), Mode.NAMESPACE)
    assert isinstance(options, Options)
    config = evolve(
        configure(options, Host()).config,
        network=network or GuestNetwork(GUEST_4, GUEST_6, host_addresses=(MAPPED_4, MAPPED_6)),
    )
    return startup_message(config, None, "x86_64", "tap0").removeprefix("trio-passt: ").splitlines()


def test_of_a_namespace_it_is_short() -> None:
    assert (
        said()
        == said("--config-net")
        == [
            "the namespace gets",
            "    Link     tap0, set up",
            "    IPv4     192.0.2.2/24 (mask 255.255.255.0), gateway 192.0.2.1 (from eth0)",
            "    IPv6     2001:db8::2/64, gateway fe80::1 (from wlan0)",
            "    MTU      65520",
            "Ports of this host that are forwarded to it: TCP auto, UDP auto",
            "Ports of this host at its loopback: TCP auto, UDP auto",
            "Addresses at which it reaches this host: 192.0.2.1 -> 127.0.0.1, fe80::1 -> ::1",
        ]
    )


def test_gateway_of_a_namespace_is_the_hosts_where_it_has_its_routes() -> None:
    both = GuestNetwork(ipv6=evolve(GUEST_6, host_gateway=IPv6Address("2001:db8::1")))
    gateways = {
        words: said(*words, network=both)[2].split()[-3] for words in ((), ("--no-copy-routes",), ("--no-config-net",))
    }
    assert list(gateways.values()) == ["2001:db8::1", "fe80::1", "fe80::1"]


def test_of_a_namespace_that_has_to_ask() -> None:
    resolvers = Resolvers((IPv4Address("192.0.2.53"),))
    lines = said("--no-config-net", "--dhcp-dns", network=GuestNetwork(GUEST_4, resolvers=resolvers))
    assert lines[1:4] == [
        "    Link     tap0",
        "    IPv4     192.0.2.2/24 (mask 255.255.255.0), gateway 192.0.2.1 (from eth0)",
        "    DNS      192.0.2.53",
    ]
    assert lines[-1] == "Addresses at which it reaches this host: none"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("-t none -u none", "none"),
        ("-t 8080:80,443 -u none", "TCP 443, 8080 -> 80"),
        ("-t 22 -t auto -u none", "TCP 22, TCP auto"),
        ("-t ~22,auto -u none", "TCP auto but 22"),
        ("-t ~22,~25-110,auto -t 80 -u none", "TCP 80, TCP auto but 22, 25-79, 81-110"),
        ("-t 8000-8010,22,auto -u 53", "UDP 53, TCP auto of 22, 8000-8010"),
        ("-t 127.0.0.1/22 -t ::1/auto -u none", "TCP 22 on 127.0.0.1, TCP auto on ::1"),
    ],
)
def test_which_ports_are_forwarded(words: str, line: str) -> None:
    assert f"Ports of this host that are forwarded to it: {line}" in said(*words.split())


def test_which_ports_lead_to_the_host() -> None:
    assert "Ports of this host at its loopback: TCP 8080 -> 80, UDP auto" in said("-T", "8080:80")


def test_the_reference_describes_every_option() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference.md").read_text()
    for option in (*options(Mode.VM), *options(Mode.NAMESPACE)):
        assert all(f"--{name}" in text for name in option.names)
        assert option.short is None or f"`-{option.short}`" in text


def test_local_mode_promises_no_ipv6_address() -> None:
    """A guest makes its own link-local one; there is none to be given."""
    network = GuestNetwork(ipv6=GuestIPv6(IPv6Address("fe80::2"), 64, IPv6Address("fe80::1")))
    message = startup_message(Config(network), None, "x86_64")
    assert "    IPv6     its own link-local address, gateway fe80::1 (local mode)\n" in message


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (Config(GuestNetwork(), outbound=Outbound(IPv4Address("192.0.2.3"))), "Leaving  IPv4 from 192.0.2.3"),
        (
            Config(
                GuestNetwork(),
                outbound=Outbound(IPv4Address("192.0.2.3"), IPv6Address("2001:db8::3"), "eth1", "eth2"),
            ),
            "Leaving  IPv4 from 192.0.2.3 by eth1, IPv6 from 2001:db8::3 by eth2",
        ),
        (Config(GuestNetwork(), outbound=Outbound(ipv6_interface="eth2")), "Leaving  IPv6 by eth2"),
        (Config(GuestNetwork(transports=Transports(tcp=False))), "Off      TCP"),
        (
            Config(
                GuestNetwork(
                    transports=Transports(udp=False, icmp=False),
                    services=Services(dhcp=False, dhcpv6=False, ndp=False, router_advertisements=False),
                )
            ),
            "Off      UDP, ICMP echo, DHCP, DHCPv6, neighbour discovery, router advertisements",
        ),
    ],
)
def test_what_is_not_as_usual(config: Config, line: str) -> None:
    assert line in [text.strip() for text in startup_message(config, None, "x86_64").splitlines()]


def test_what_is_as_usual_is_not_spoken_of() -> None:
    message = startup_message(Config(GuestNetwork(GUEST_4, GUEST_6)), None, "x86_64")
    assert "Leaving" not in message
    assert "Off" not in message


def test_other_addresses_of_the_guest() -> None:
    ipv4 = evolve(GUEST_4, others=(IPv4Interface("198.51.100.7/25"),))
    ipv6 = evolve(GUEST_6, others=(IPv6Interface("2001:db8:7::2/56"),))
    lines = startup_message(Config(GuestNetwork(ipv4, ipv6)), None, "x86_64").splitlines()
    assert lines[2] == "             198.51.100.7/25"
    assert lines[4] == "             2001:db8:7::2/56"


def test_nothing_reaches_the_host() -> None:
    assert startup_message(Config(GuestNetwork(GUEST_4)), None, "x86_64").splitlines()[-2:] == [
        "Addresses at which the guest reaches this host",
        "    none",
    ]
