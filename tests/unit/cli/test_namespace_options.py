"""argv of `trio-pasta` → `Options`: which namespace, ports both ways, and what its callers say, word for word."""

import contextlib
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.configure import configure
from trio_passt.cli.mode import Mode, mode_of
from trio_passt.cli.option_table import options
from trio_passt.cli.options import Options, Show, parse_options
from trio_passt.cli.values import UsageError
from trio_passt.config import (
    AutomaticPorts,
    Binding,
    Config,
    LogLevel,
    Namespace,
    PortForward,
    Protocol,
    WishedAddress,
    Wishes,
)
from trio_passt.host.network import Host

HERE = Path("/some/where")
TCP, UDP = Protocol.TCP, Protocol.UDP


def parsed(*words: str) -> Options:
    options = parse_options(words, HERE, range(32768, 61000), Mode.NAMESPACE)
    assert isinstance(options, Options)
    return options


def namespace(*words: str) -> Namespace:
    found = parsed(*words).namespace
    assert found is not None
    return found


def configured(*words: str) -> Config:
    return configure(parsed(*words), Host()).config


def spare(protocol: Protocol, first: int, last: int, address: str | None = None) -> PortForward:
    bind = None if address is None else IPv6Address(address) if ":" in address else IPv4Address(address)
    return PortForward(protocol, first, last, first, bind, binding=Binding.SPARE)


def new(**values: Any) -> Namespace:
    """One that is made for a command, which is online then."""
    return Namespace(configures=True, **values)


def joined(**values: Any) -> Namespace:
    """One that is there: what becomes of its network is its own to decide."""
    return Namespace(**values)


ALL = (spare(TCP, 1, 65535), spare(UDP, 1, 65535))


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("trio-passt", Mode.VM),
        ("/usr/bin/passt", Mode.VM),
        ("/pasta/passt", Mode.VM),
        ("", Mode.VM),
        ("trio-pasta", Mode.NAMESPACE),
        ("/usr/local/libexec/podman/pasta", Mode.NAMESPACE),
        ("./pasta.avx2", Mode.NAMESPACE),
        ("/passt/my-pasta-2", Mode.NAMESPACE),
        ("slirp4netns", Mode.SLIRP4NETNS),
        ("/opt/bin/trio-slirp4netns", Mode.SLIRP4NETNS),
        ("/opt/slirp4netns/passt", Mode.VM),
    ],
)
def test_the_name_says_what_it_is(path: str, mode: Mode) -> None:
    assert mode_of(path) is mode


@pytest.mark.parametrize(
    ("name", "words", "status", "said"),
    [
        ("passt", ["-I", "x"], 1, "trio-passt: invalid option -- 'I'\n"),
        ("pasta.avx2", ["-s", "x"], 1, "trio-pasta: invalid option -- 's'\n"),
        ("pasta", ["--bogus=1", "ls"], 1, "trio-pasta: unrecognized option '--bogus=1'\n"),
        ("pasta", ["-h"], 0, "Usage: trio-pasta [OPTION]... [COMMAND [ARG]...]\n"),
        ("slirp4netns", ["--bogus"], 1, "trio-slirp4netns: unrecognized option '--bogus'\n"),
        ("slirp4netns", ["-v"], 0, "slirp4netns version 1.2.0\n"),
    ],
)
def test_a_program_that_is_called_so(tmp_path: Path, name: str, words: list[str], status: int, said: str) -> None:
    """By whichever path, as a link or a copy."""
    (tmp_path / "program").write_text("import sys\nfrom trio_passt.__main__ import run\nsys.exit(run())\n")
    (tmp_path / name).symlink_to("program")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / name), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert (done.stderr if status else done.stdout).startswith(said)
    assert not (done.stdout if status else done.stderr)


# -- which namespace --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), new()),
        (("--",), new()),
        (("ls",), new(command=("ls",))),
        (("ls", "-f", "--netns", "x"), new(command=("ls", "-f", "--netns", "x"))),
        (("-q", "--", "curl", "--", "-x"), new(command=("curl", "--", "-x"))),
        (("1",), joined(pid=1)),
        (("--", "4194304"), joined(pid=4194304)),
        (("12", "34"), new(command=("12", "34"))),
        (("./12",), new(command=("./12",))),
        (("12a",), new(command=("12a",))),
        (("\u0661\u0662",), new(command=("\u0661\u0662",))),
        (("",), new(command=("",))),
        (("--netns", "blue"), joined(path=Path("/run/netns/blue"))),
        (("--netns=/proc/7/ns/net",), joined(path=Path("/proc/7/ns/net"))),
        (("--netns", "./blue"), joined(path=HERE / "blue")),
        (("--netns", "x/blue"), joined(path=HERE / "x/blue")),
        (("--netns=123",), joined(path=Path("/run/netns/123"))),
        (("--netns=a", "--netns=b"), joined(path=Path("/run/netns/b"))),
        (("--userns", "u", "--netns=a"), joined(path=Path("/run/netns/a"), user_path=HERE / "u")),
        (("--userns=/u", "17"), joined(pid=17, user_path=Path("/u"))),
        (("--netns-only", "17"), joined(pid=17, joins_user=False)),
        (("--netns-only", "ls"), new(command=("ls",), joins_user=False)),
        (("--no-netns-quit", "17"), joined(pid=17, quits=False)),
        (("-I", "fifteen-letters"), new(interface="fifteen-letters")),
        (("--ns-ifname=tap0",), new(interface="tap0")),
        (("--ns-mac-addr", "02:00:00:00:00:0A"), new(mac=b"\x02\0\0\0\0\x0a")),
        (("--no-copy-routes",), new(copies_routes=False)),
        (("--no-copy-addrs",), new(copies_addresses=False)),
        (("--no-splice",), new(splices=False)),
        (("--host-lo-to-ns-lo",), new(loopback_to_loopback=True)),
    ],
)
def test_which_namespace_and_what_becomes_of_it(words: tuple[str, ...], expected: Namespace) -> None:
    assert namespace(*words) == expected


@pytest.mark.parametrize(
    ("words", "configures"),
    [
        ((), True),
        (("--no-dhcp", "ls"), True),
        (("--config-net", "ls"), True),
        (("--no-config-net", "ls"), False),
        (("--no-config-net", "--config-net"), True),
        (("--config-net", "--no-config-net"), False),
        (("17",), False),
        (("--netns=x",), False),
        (("--config-net", "17"), True),
        (("--config-net", "--netns=x", "--no-dhcp"), True),
        (("--no-config-net", "17"), False),
    ],
)
def test_who_is_set_up(words: tuple[str, ...], configures: bool) -> None:
    """What is new, for that is online at once then; and who wants to be."""
    assert namespace(*words).configures == configures


@pytest.mark.parametrize("words", [(), ("ls",), ("-q", "ls", "-l")])
def test_a_command_keeps_it_in_foreground(words: tuple[str, ...]) -> None:
    assert parsed(*words).foreground


@pytest.mark.parametrize(("words", "foreground"), [(("17",), False), (("--netns=x",), False), (("-f", "17"), True)])
def test_a_namespace_that_is_there_does_not(words: tuple[str, ...], foreground: bool) -> None:
    assert parsed(*words).foreground is foreground


# -- what is told -----------------------------------------------------------------------------------------------------


def test_no_nameservers_are_told_unless_one_wants_them_to_be() -> None:
    """pasta(1): the namespace reads the host's resolv.conf."""
    wishes = parsed().wishes
    assert (wishes.tells_dns, wishes.tells_search) == (False, False)
    assert parsed("--dhcp-dns").wishes.tells_dns
    assert parsed("--dhcp-search").wishes.tells_search
    assert not parsed("--dhcp-dns", "--no-dhcp-dns").wishes.tells_dns
    assert parsed("--no-dhcp-dns", "--dhcp-dns").wishes.tells_dns


def test_all_else_is_as_with_virtual_machines() -> None:
    options = parse_options((), HERE)
    assert isinstance(options, Options)
    assert parsed().wishes == evolve(options.wishes, tells_dns=False, tells_search=False)


# -- ports ------------------------------------------------------------------------------------------------------------


def test_all_ports_are_automatic_both_ways() -> None:
    assert parsed().automatic == AutomaticPorts(ALL, ALL)
    assert parsed("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto") == parsed()
    assert (parsed().forwards, parsed().forwards_to_host) == ((), ())


def test_none_is_none() -> None:
    options = parsed("-t", "none", "-u", "none", "-T", "none", "-U", "none")
    assert (options.forwards, options.forwards_to_host, options.automatic) == ((), (), AutomaticPorts())


def test_udp_is_automatic_where_only_tcp_is_named() -> None:
    """What would follow TCP's is found as soon as it is used."""
    options = parsed("-t", "2222:22", "-T", "8080:80")
    assert options.forwards == (PortForward(TCP, 2222, 2222, 22),)
    assert options.forwards_to_host == (PortForward(TCP, 8080, 8080, 80),)
    assert options.automatic == AutomaticPorts(ALL[1:], ALL[1:])


def test_what_is_named_is_not_automatic() -> None:
    options = parsed("-t", "auto", "-t", "22", "-t", "127.0.0.1/80-81", "-u", "none")
    assert options.forwards == (PortForward(TCP, 22, 22, 22), PortForward(TCP, 80, 81, 80, IPv4Address("127.0.0.1")))
    assert options.automatic.to_guest == (spare(TCP, 1, 21), spare(TCP, 23, 79), spare(TCP, 82, 65535))


@pytest.mark.parametrize(
    ("texts", "candidates"),
    [
        (["~22,auto"], [spare(TCP, 1, 21), spare(TCP, 23, 65535)]),
        (["auto,~1-1023,~2000-65535"], [spare(TCP, 1024, 1999)]),
        (["8000-8010,auto"], [spare(TCP, 8000, 8010)]),
        (["auto,8000-8010,~8005,22"], [spare(TCP, 8000, 8004), spare(TCP, 8006, 8010), spare(TCP, 22, 22)]),
        (["8000:80,auto"], [PortForward(TCP, 8000, 8000, 80, binding=Binding.SPARE)]),
        (["::1/auto"], [spare(TCP, 1, 65535, "::1")]),
        (["0.0.0.0/auto", "::/auto"], [spare(TCP, 1, 65535, "0.0.0.0"), spare(TCP, 1, 65535, "::")]),
        (["%eth0/22,auto"], [PortForward(TCP, 22, 22, 22, None, "eth0", Binding.SPARE)]),
        (["40000,auto"], [spare(TCP, 40000, 40000)]),
    ],
)
def test_auto_is_of_the_ports_of_its_list(texts: list[str], candidates: list[PortForward]) -> None:
    """passt(1) has it so since 2026: "-t 8000-8010,auto" forwards ports of the range if they are bound there."""
    words = [word for text in texts for word in ("-t", text)]
    assert parsed(*words).automatic.to_guest == (*candidates, ALL[1])
    assert parsed(*words).forwards == ()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("53", None),
        ("%lo/53", None),
        ("127.0.0.1/53", "127.0.0.1"),
        ("127.0.0.53/53", "127.0.0.53"),
        ("127.0.0.53%lo/53", "127.0.0.53"),
        ("0.0.0.0/53", "127.0.0.1"),
        ("::1/53", "::1"),
        ("[::]/53", "::1"),
    ],
)
def test_ports_in_the_namespace_are_its_loopbacks(text: str, address: str | None) -> None:
    (forward,) = parsed("-U", text).forwards_to_host
    bind = None if address is None else IPv6Address(address) if ":" in address else IPv4Address(address)
    assert forward == PortForward(UDP, 53, 53, 53, bind)


def test_any_of_both_ways_is_one_place_of_the_loopback() -> None:
    with pytest.raises(UsageError, match="port 53 is given more than once"):
        parsed("-U", "0.0.0.0/53", "-U", "127.0.0.1/53")


@pytest.mark.parametrize("off", [TCP, UDP])
def test_a_transport_that_is_off_is_not_automatic(off: Protocol) -> None:
    config = configured(f"--no-{off.value}", "-T", "80")
    assert {forward.protocol for forward in config.automatic.to_guest} == {TCP, UDP} - {off}
    assert off not in {forward.protocol for forward in (*config.automatic.to_host, *config.forwards_to_host)}


def test_a_transport_that_is_off_and_named_is_noted_once() -> None:
    done = configure(parsed("--no-tcp", "-T", "80", "-t", "80"), Host())
    assert [note for note in done.notes if "--no-tcp" in note] == ["--no-tcp: TCP ports are not forwarded"]


def test_ports_are_bound_later_only_if_something_says_so() -> None:
    assert configured().binds_later
    assert not configured("-t", "22", "-u", "none").binds_later


def test_it_reaches_the_configuration() -> None:
    config = configured("-T", "80", "-I", "tap7", "17")
    assert config.namespace == joined(pid=17, interface="tap7")
    assert config.forwards_to_host == (PortForward(TCP, 80, 80, 80),)
    assert config.automatic == AutomaticPorts(ALL, ALL[1:])
    assert "automatic.to_guest[0].first = 1" in str(config).splitlines()


# -- callers ----------------------------------------------------------------------------------------------------------


def test_podman() -> None:
    words = (
        "--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet"
        " --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2"
    )
    assert parsed(*words.split()) == Options(
        log_level=LogLevel.QUIET,
        wishes=Wishes(
            dns_forwards=(IPv4Address("169.254.1.1"),),
            own_addresses=(IPv4Address("169.254.1.2"),),
            maps_gateway=False,
            tells_dns=False,
            tells_search=False,
        ),
        namespace=Namespace(path=Path("/run/user/1000/netns/netns-1"), configures=True),
    )


def test_podman_with_published_ports() -> None:
    """As podman-run(1) has them: -p 8080:80, -p 127.0.0.1:53:53/udp."""
    words = (
        "--config-net -t 8080-8080:80-80 -u 127.0.0.1/53-53:53-53 --dns-forward 169.254.1.1 -T none -U none"
        " --no-map-gw --quiet --netns /run/netns/x --map-guest-addr 169.254.1.2"
    )
    options = parsed(*words.split())
    assert options.forwards == (
        PortForward(TCP, 8080, 8080, 80),
        PortForward(UDP, 53, 53, 53, IPv4Address("127.0.0.1")),
    )
    assert (options.automatic, options.forwards_to_host) == (AutomaticPorts(), ())


def test_rootlesskit() -> None:
    words = (
        "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2"
        " --dns-forward=10.0.2.3 --no-map-gw --tcp-ports=auto --udp-ports=auto 4711"
    )
    assert parsed(*words.split()) == Options(
        wishes=Wishes(
            dns_forwards=(IPv4Address("10.0.2.3"),),
            addresses=(WishedAddress(IPv4Address("10.0.2.100")),),
            netmask_bits=24,
            gateways=(IPv4Address("10.0.2.2"),),
            maps_gateway=False,
            tells_dns=False,
            tells_search=False,
        ),
        namespace=Namespace(pid=4711, interface="tap0", configures=True),
        automatic=AutomaticPorts(ALL, ALL),
    )
    network = configured(*words.split()).network
    assert network.ipv4 is not None
    assert (network.ipv4.address, network.ipv4.prefix_length) == (IPv4Address("10.0.2.100"), 24)
    assert network.ipv4.gateway == IPv4Address("10.0.2.2")
    assert network.loopback_ipv4 is None


def test_rootlesskit_with_a_tap_of_its_own() -> None:
    """2.0.2, which makes the tap and gives it its address itself."""
    words = (
        "--foreground --stderr --ns-ifname=tap0 --mtu=65520 --no-dhcp --no-ra --address=10.0.2.100 --netmask=24"
        " --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=auto 4711"
    )
    options = parsed(*words.split())
    assert options.foreground
    assert options.namespace == joined(pid=4711, interface="tap0")
    services = options.wishes.services
    assert (services.dhcp, services.router_advertisements, services.dhcpv6) == (False, False, True)
    assert options.automatic.to_guest == ALL


# -- anything ---------------------------------------------------------------------------------------------------------

TABLE = options(Mode.NAMESPACE)
WORDS = st.lists(
    st.one_of(
        st.sampled_from([f"--{name}" for option in TABLE for name in option.names]),
        st.sampled_from([f"-{option.short}" for option in TABLE if option.short]),
        st.sampled_from(["--", "-", "22", "auto", "~1,auto", "x", "/x", "4711", "--m=1"]),
        st.text(max_size=8),
    ),
    max_size=6,
)


@given(WORDS)
def test_anything_is_options_or_a_usage_error(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_options(words, HERE, mode=Mode.NAMESPACE), Options | Show)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_a_command_is_taken_as_it_is(command: list[str]) -> None:
    """Whatever it is: after "--" nothing is an option."""
    if len(command) == 1 and command[0].isascii() and command[0].isdigit():
        return
    assert namespace("--", *command).command == tuple(command)
    if not command[0].startswith("-"):
        assert namespace(*command).command == tuple(command)


@given(st.integers(1, 4194304))
def test_a_process(pid: int) -> None:
    assert namespace(str(pid)) == joined(pid=pid)
    assert not namespace(str(pid)).is_new
