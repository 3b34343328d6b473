"""slirp4netns' argv → what the daemon is asked for; what callers say, word for word; errors."""

import contextlib
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.configure import configure
from trio_passt.cli.options import Options, Show
from trio_passt.cli.values import UsageError
from trio_passt.config import DnsForward, HostAddress, Namespace, Outbound, WishedAddress, Wishes
from trio_passt.host.network import Host
from trio_passt.host.resolv import Nameserver, ResolvConf
from trio_passt.slirp4netns.main import check_descriptors, help_text, tell_ready, version_text
from trio_passt.slirp4netns.option_table import OPTIONS
from trio_passt.slirp4netns.options import Asked, parse_options

HERE = Path("/some/where")
GUEST, GATEWAY, DNS = IPv4Address("10.0.2.100"), IPv4Address("10.0.2.2"), IPv4Address("10.0.2.3")

SLIRP4NETNS = {
    ("configure", "c", False),
    ("exit-fd", "e", True),
    ("ready-fd", "r", True),
    ("mtu", "m", True),
    ("enable-ipv6", "6", False),
    ("api-socket", "a", True),
    ("cidr", None, True),
    ("disable-host-loopback", None, False),
    ("netns-type", None, True),
    ("userns-path", None, True),
    ("enable-sandbox", None, False),
    ("enable-seccomp", None, False),
    ("outbound-addr", None, True),
    ("outbound-addr6", None, True),
    ("disable-dns", None, False),
    ("macaddress", None, True),
    ("target-type", None, True),
    ("help", "h", False),
    ("version", "v", False),
}
"""slirp4netns(1)'s options: long name, letter, and whether there is an argument."""


def parsed(*words: str) -> Asked:
    asked = parse_options(words, HERE)
    assert isinstance(asked, Asked)
    return asked


def namespace(*words: str) -> Namespace:
    found = parsed(*words).options.namespace
    assert found is not None
    return found


def of_tap(**values: object) -> Namespace:
    common = {"interface": "tap0", "quits": False, "copies_addresses": False, "copies_routes": False, "splices": False}
    return Namespace(**(common | values))  # type: ignore[arg-type]


def test_the_table_has_slirp4netns_options() -> None:
    assert {(option.key, option.short, option.argument is not None) for option in OPTIONS} == SLIRP4NETNS
    assert len(OPTIONS) == len(SLIRP4NETNS)


def test_by_default() -> None:
    assert parsed("17") == Asked(
        Options(
            foreground=True,
            wishes=Wishes(
                ipv6=False,
                mtu_bytes=1500,
                addresses=(WishedAddress(GUEST, 24),),
                gateways=(GATEWAY,),
                dns_forwards=(DNS,),
                closed=(IPv4Network("10.0.2.0/24"),),
            ),
            namespace=of_tap(pid=17),
        ),
        GUEST,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("17", "tap7"), of_tap(pid=17, interface="tap7")),
        (("17", "tap7", "-c"), of_tap(pid=17, interface="tap7", configures=True)),
        (("-c", "17"), of_tap(pid=17, configures=True)),
        (("--netns-type=pid", "17"), of_tap(pid=17)),
        (("--netns-type=path", "/run/netns/x"), of_tap(path=Path("/run/netns/x"))),
        (("--netns-type", "path", "x", "tap1"), of_tap(path=HERE / "x", interface="tap1")),
        (("--netns-type=path", "17"), of_tap(path=HERE / "17")),
        (("--userns-path=u", "17"), of_tap(pid=17, user_path=HERE / "u")),
        (("--target-type=netns", "17"), of_tap(pid=17)),
        (("-c", "--macaddress=02:00:00:00:00:05", "17"), of_tap(pid=17, configures=True, mac=b"\x02\0\0\0\0\x05")),
        (("--", "17"), of_tap(pid=17)),
    ],
)
def test_which_namespace(words: tuple[str, ...], expected: Namespace) -> None:
    assert namespace(*words) == expected


@pytest.mark.parametrize(
    ("words", "mtu_bytes"), [((), 1500), (("-m", "65520"), 65520), (("--mtu=65521",), 65520), (("-m68",), 68)]
)
def test_mtu(words: tuple[str, ...], mtu_bytes: int) -> None:
    """slirp4netns' largest is one more than the link's."""
    assert parsed("17", *words).options.wishes.mtu_bytes == mtu_bytes


@pytest.mark.parametrize(
    ("cidr", "addresses"),
    [
        ("10.0.2.0/24", ("10.0.2.100", "10.0.2.2", "10.0.2.3")),
        ("192.0.2.128/25", ("192.0.2.228", "192.0.2.130", "192.0.2.131")),
        ("10.0.0.0/8", ("10.0.0.100", "10.0.0.2", "10.0.0.3")),
        ("128.0.0.0/1", ("128.0.0.100", "128.0.0.2", "128.0.0.3")),
    ],
)
def test_addresses_are_counted_from_the_networks(cidr: str, addresses: tuple[str, str, str]) -> None:
    guest, gateway, nameserver = map(IPv4Address, addresses)
    asked = parsed("--cidr", cidr, "17")
    assert asked.guest == guest
    assert asked.options.wishes.addresses == (WishedAddress(guest, int(cidr.partition("/")[2])),)
    assert asked.options.wishes.gateways == (gateway,)
    assert asked.options.wishes.dns_forwards == (nameserver,)


def test_ipv6_is_beside_it() -> None:
    wishes = parsed("-6", "17").options.wishes
    assert wishes.ipv6
    assert wishes.addresses == (WishedAddress(GUEST, 24), WishedAddress(IPv6Address("fd00::100"), 64))
    assert wishes.gateways == (GATEWAY, IPv6Address("fd00::2"))
    assert wishes.dns_forwards == (DNS, IPv6Address("fd00::3"))


NAMESERVERS = ResolvConf((Nameserver(IPv4Address("127.0.0.53"), None), Nameserver(IPv6Address("2001:db8::53"), None)))


def test_what_the_guest_reaches() -> None:
    """The host's loopback by the gateway's address, its nameserver by that of DNS; each can be switched off."""
    host = Host(resolv_conf=NAMESERVERS)
    network = configure(parsed("17", "-6").options, host).config.network
    assert set(network.host_addresses) >= {
        HostAddress(GATEWAY, IPv4Address("127.0.0.1")),
        HostAddress(IPv6Address("fd00::2"), IPv6Address("::1")),
    }
    assert network.dns_forwards == (
        DnsForward(DNS, IPv4Address("127.0.0.53")),
        DnsForward(IPv6Address("fd00::3"), IPv6Address("2001:db8::53")),
    )
    assert network.ipv4 is not None
    assert (network.ipv4.address, network.ipv4.gateway, network.ipv4.prefix_length) == (GUEST, GATEWAY, 24)
    without = configure(parsed("17", "--disable-host-loopback").options, host).config.network
    assert without.host_addresses == ()
    assert without.dns_forwards == (DnsForward(DNS, IPv4Address("127.0.0.53")),)
    assert without.ipv6 is None
    without_dns = configure(parsed("17", "--disable-dns", "--disable-host-loopback").options, host).config.network
    assert (without_dns.host_addresses, without_dns.dns_forwards) == ((), ())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Outbound()),
        (("--outbound-addr=192.0.2.7",), Outbound(ipv4_address=IPv4Address("192.0.2.7"))),
        (("--outbound-addr=eth1",), Outbound(ipv4_interface="eth1")),
        (("--outbound-addr6=2001:db8::7",), Outbound(ipv6_address=IPv6Address("2001:db8::7"))),
        (
            ("--outbound-addr", "192.0.2.7", "--outbound-addr6", "eth1"),
            Outbound(ipv4_address=IPv4Address("192.0.2.7"), ipv6_interface="eth1"),
        ),
    ],
)
def test_where_connections_leave(words: tuple[str, ...], expected: Outbound) -> None:
    assert parsed("17", *words).options.outbound == expected


def test_what_callers_wait_for() -> None:
    asked = parsed("-e", "5", "-r6", "-a", "api.sock", "--enable-sandbox", "--enable-seccomp", "17", "tap0")
    assert (asked.exit_fd, asked.ready_fd, asked.api_socket) == (5, 6, HERE / "api.sock")
    assert asked.gives_up_capabilities
    assert asked.options.binds_later
    assert not parsed("17").options.binds_later


def test_podman() -> None:
    words = (
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -e 3 -r 4"
        " --netns-type=path /run/user/1000/netns/netns-1 tap0 --api-socket /run/user/1000/x.net"
    )
    asked = parsed(*words.split())
    assert asked.options.namespace == of_tap(path=Path("/run/user/1000/netns/netns-1"), configures=True)
    assert (asked.exit_fd, asked.ready_fd, asked.api_socket) == (3, 4, Path("/run/user/1000/x.net"))
    assert (asked.options.wishes.mtu_bytes, asked.options.wishes.maps_gateway) == (65520, False)


def test_rootlesskit() -> None:
    words = "--mtu=65520 -r 3 --disable-host-loopback --api-socket /tmp/rootlesskit/.s4nn.sock 4711 tap0"
    asked = parsed(*words.split())
    assert asked.options.namespace == of_tap(pid=4711)
    assert (asked.exit_fd, asked.ready_fd) == (None, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "whose namespace? A process ID, or a path with '--netns-type=path', is expected"),
        (("0",), "'0' is not a process ID"),
        (("abc", "tap0"), "'abc' is not a process ID"),
        (("17", "tap0", "x"), "extra argument 'x': a namespace and an interface's name are expected"),
        (("17", "a/b"), "invalid value 'a/b' for option 'TAPNAME': an interface's name has 1 to 15 bytes"),
        (("17", ""), "invalid value '' for option 'TAPNAME'"),
        (("--bogus",), "unrecognized option '--bogus'"),
        (("-1",), "invalid option -- '1'"),
        (("-m", "65522", "17"), "invalid value '65522' for option '--mtu': 68 to 65521 is expected"),
        (("-m", "0", "17"), "invalid value '0' for option '--mtu'"),
        (("-m", "x", "17"), "invalid value 'x' for option '--mtu'"),
        (("--cidr", "10.0.2.0", "17"), "invalid value '10.0.2.0' for option '--cidr': an IPv4 network as in"),
        (("--cidr", "fd00::/64", "17"), "invalid value 'fd00::/64' for option '--cidr': an IPv4 network as in"),
        (("--cidr", "10.0.2.5/24", "17"), "invalid value '10.0.2.5/24' for option '--cidr': this is an address of the"),
        (("--cidr", "192.0.2.0/26", "17"), "invalid value '192.0.2.0/26' for option '--cidr': a prefix length from 1"),
        (("--cidr", "192.0.2.0/0", "17"), "invalid value '192.0.2.0/0' for option '--cidr': a prefix length from 1 to"),
        (("--cidr", "127.0.0.0/8", "17"), "invalid value '127.0.0.0/8' for option '--cidr': no interface can have"),
        (("--cidr", "224.0.0.0/8", "17"), "invalid value '224.0.0.0/8' for option '--cidr': no interface can have"),
        (("-r", "x", "17"), "invalid value 'x' for option '--ready-fd': a file descriptor's number is expected"),
        (("-e", "-3", "17"), "invalid value '-3' for option '--exit-fd': a file descriptor's number is expected"),
        (("-e", "3", "-r", "3", "17"), "options '--ready-fd 3' and '--exit-fd 3' contradict each other"),
        (("--netns-type=x", "17"), "invalid value 'x' for option '--netns-type': 'pid' or 'path' is expected"),
        (("--target-type=bess", "/s"), "invalid value 'bess' for option '--target-type': 'netns' is expected"),
        (
            ("--macaddress=9a:55:9a:55:9a:55", "-c", "17"),
            "option '--macaddress 9a:55:9a:55:9a:55': this is the address of the host",
        ),
        (("--macaddress=01:00:00:00:00:01", "-c", "17"), "invalid value '01:00:00:00:00:01' for option '--macaddress'"),
        (("--macaddress=02:00:00:00:00:01", "17"), "option '--macaddress 02:00:00:00:00:01' is for '--configure'"),
        (("--outbound-addr=2001:db8::1", "17"), "invalid value '2001:db8::1' for option '--outbound-addr': an IPv4"),
        (("--outbound-addr6=192.0.2.1", "17"), "invalid value '192.0.2.1' for option '--outbound-addr6': an IPv6"),
        (("--outbound-addr=0.0.0.0", "17"), "invalid value '0.0.0.0' for option '--outbound-addr': no interface"),
        (("--outbound-addr=a/b", "17"), "invalid value 'a/b' for option '--outbound-addr': an interface's name"),
        (("-a", "x" * 100, "17"), f"invalid value '/some/where/{'x' * 100}' for option '--api-socket': 112 bytes"),
        (("-a", "", "17"), "invalid value '' for option '--api-socket': a path must not be empty"),
        (("--userns-path=", "17"), "invalid value '' for option '--userns-path': a path must not be empty"),
    ],
)
def test_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert str(caught.value).startswith(message)


def test_help_and_version_act_at_once() -> None:
    assert parse_options(("--cidr", "x", "-h", "--bogus"), HERE) is Show.HELP
    assert parse_options(("17", "--version"), HERE) is Show.VERSION


def test_what_callers_look_for() -> None:
    """They ask for the help, and use what it names; some read the version."""
    assert help_text().isascii()
    assert max(map(len, help_text().splitlines())) <= 80
    assert all(f"--{option.key}" in help_text() for option in OPTIONS)
    assert version_text().splitlines()[0] == "slirp4netns version 1.2.0"


WORDS = st.lists(
    st.one_of(
        st.sampled_from([f"--{option.key}" for option in OPTIONS]),
        st.sampled_from([f"-{option.short}" for option in OPTIONS if option.short]),
        st.sampled_from(["--", "-", "17", "tap0", "path", "10.0.2.0/24", "--m=1"]),
        st.text(max_size=8),
    ),
    max_size=6,
)


@given(WORDS)
def test_anything_is_options_or_a_usage_error(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_options(words, HERE), Asked | Show)


# -- descriptors ------------------------------------------------------------------------------------------------------


def asked(ready_fd: int | None = None, exit_fd: int | None = None) -> Asked:
    return Asked(Options(), GUEST, ready_fd, exit_fd)


def test_descriptors_that_are_not_there_are_found_out_before() -> None:
    read_fd, write_fd = os.pipe()
    check_descriptors(asked(write_fd, read_fd))
    os.close(read_fd)
    os.close(write_fd)
    with pytest.raises(UsageError, match=f"option '--ready-fd {write_fd}': Bad file descriptor"):
        check_descriptors(asked(ready_fd=write_fd))
    with pytest.raises(UsageError, match=f"option '--exit-fd {read_fd}': Bad file descriptor"):
        check_descriptors(asked(exit_fd=read_fd))


def test_a_file_has_no_events(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        fd = file.fileno()
        with pytest.raises(UsageError, match=f"option '--exit-fd {fd}': a pipe or a socket is expected"):
            check_descriptors(asked(exit_fd=fd))


def test_ready_is_a_one_and_an_end() -> None:
    read_fd, write_fd = os.pipe()
    try:
        tell_ready(write_fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(write_fd)
        assert os.read(read_fd, 10) == b"1"
        assert os.read(read_fd, 10) == b""
    finally:
        os.close(read_fd)


def test_nobody_reads_that_it_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    tell_ready(write_fd)
    assert [record.getMessage() for record in caplog.records] == [f"can't write to --ready-fd {write_fd}: Broken pipe"]


def test_standard_output_may_be_where_it_is_told() -> None:
    """It is at an end after that, as far as anybody can see."""
    script = "import os; from trio_passt.slirp4netns.main import tell_ready; tell_ready(1); os.write(1, b'more')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"1", b"")
