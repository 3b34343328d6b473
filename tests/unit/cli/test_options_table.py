"""The whole table of options against passt's: names, letters, arguments, prefixes, repetition, wrong values."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from trio_passt import __version__
from trio_passt.cli.getopt import Given, scan
from trio_passt.cli.main import main
from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import options
from trio_passt.cli.options import Options, parse_options
from trio_passt.cli.values import UsageError
from trio_passt.config import WishedAddress

HERE = Path("/some/where")

COMMON = {
    ("debug", "d", False),
    ("trace", None, False),
    ("quiet", "q", False),
    ("foreground", "f", False),
    ("stderr", "e", False),
    ("log-file", "l", True),
    ("log-size", None, True),
    ("runas", None, True),
    ("help", "h", False),
    ("version", None, False),
    ("pcap", "p", True),
    ("pid", "P", True),
    ("mtu", "m", True),
    ("address", "a", True),
    ("netmask", "n", True),
    ("mac-addr", "M", True),
    ("gateway", "g", True),
    ("interface", "i", True),
    ("outbound", "o", True),
    ("outbound-if4", None, True),
    ("outbound-if6", None, True),
    ("dns", "D", True),
    ("dns-forward", None, True),
    ("dns-host", None, True),
    ("search", "S", True),
    ("no-dhcp-dns", None, False),
    ("dhcp-dns", None, False),
    ("no-dhcp-search", None, False),
    ("dhcp-search", None, False),
    ("hostname", "H", True),
    ("fqdn", None, True),
    ("no-tcp", None, False),
    ("no-udp", None, False),
    ("no-icmp", None, False),
    ("no-dhcp", None, False),
    ("no-ndp", None, False),
    ("no-dhcpv6", None, False),
    ("no-ra", None, False),
    ("freebind", None, False),
    ("map-host-loopback", None, True),
    ("no-map-gw", None, False),
    ("map-guest-addr", None, True),
    ("ipv4-only", "4", False),
    ("ipv6-only", "6", False),
    ("tcp-ports", "t", True),
    ("udp-ports", "u", True),
}
"""passt(1)'s options: long name, letter, and whether there is an argument."""

PASST = {
    Mode.VM: {
        ("socket", "s", True),
        ("socket-path", "s", True),
        ("fd", "F", True),
        ("one-off", "1", False),
    },
    Mode.NAMESPACE: {
        ("ns-ifname", "I", True),
        ("tcp-ns", "T", True),
        ("udp-ns", "U", True),
        ("host-lo-to-ns-lo", None, False),
        ("userns", None, True),
        ("netns", None, True),
        ("netns-only", None, False),
        ("no-netns-quit", None, False),
        ("config-net", None, False),
        ("no-copy-routes", None, False),
        ("no-copy-addrs", None, False),
        ("ns-mac-addr", None, True),
        ("no-splice", None, False),
    },
}
"""What one of its modes has."""

MODES = (Mode.VM, Mode.NAMESPACE)
TABLE = [(mode, option) for mode in MODES for option in options(mode)]

OUR_OWN = {
    Mode.VM: {("dhcp-boot", None, True)},
    Mode.NAMESPACE: {("dhcp-boot", None, True), ("no-config-net", None, False)},
}


def parsed(*words: str, mode: Mode = Mode.VM) -> Options:
    options = parse_options(words, HERE, mode=mode)
    assert isinstance(options, Options)
    return options


@pytest.mark.parametrize("mode", MODES)
def test_the_table_has_passts_options(mode: Mode) -> None:
    table = [(name, option.short, option.argument is not None) for option in options(mode) for name in option.names]
    assert set(table) == COMMON | PASST[mode] | OUR_OWN[mode]
    assert len(set(table)) == len(table)


@pytest.mark.parametrize(("mode", "option"), TABLE, ids=[f"{mode.name}-{option.key}" for mode, option in TABLE])
def test_each_form_of_an_option_means_it(mode: Mode, option: Any) -> None:
    value = None if option.argument is None else "some value"
    forms = [[f"--{name}"] for name in option.names] + ([[f"-{option.short}"]] if option.short else [])
    if value is None:
        written = [[*form, "-x"] for form in forms]
    else:
        written = [[*form, value] for form in forms] + [[f"--{name}={value}"] for name in option.names]
        written += [[f"-{option.short}{value}"]] if option.short else []
    for words in written:
        assert next(scan(options(mode), words)) == Given(option, value)


# -- as GNU's getopt_long has it --------------------------------------------------------------------------------------


def gnu(*words: str, mode: Mode = Mode.VM) -> tuple[list[str], str]:
    """What getopt(1) of util-linux makes of `words`, with the same options; and its complaint.

    It knows no aliases: two names would be two options.
    """
    table = options(mode)
    letters = "".join(option.short + (":" if option.argument else "") for option in table if option.short)
    names = ",".join(option.key + (":" if option.argument else "") for option in table)
    plus = "" if mode is Mode.VM else "+"
    command = ["getopt", "-n", "x", "-u", "-o", plus + letters, "-l", names, "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split(), done.stderr.removeprefix("x: ").strip()


def ours(*words: str, mode: Mode = Mode.VM) -> tuple[list[str], str]:
    """The same of our scanner."""
    normal: list[str] = []
    others: list[str] = []
    complaint = ""
    try:
        for given in scan(options(mode), words, permutes=mode is Mode.VM):
            if isinstance(given, str):
                others.append(given)
            else:
                normal += [f"--{given.option.key}", *([given.value] if given.value is not None else [])]
    except UsageError as error:
        complaint = str(error)
    return [*normal, "--", *others], complaint


def canonical(words: list[str], mode: Mode = Mode.VM) -> list[str]:
    """getopt(1)'s output with each option's long name."""
    keys = {f"-{option.short}": f"--{option.key}" for option in options(mode) if option.short}
    end = words.index("--")
    return [keys.get(word, word) for word in words[:end]] + words[end:]


PREFIXES = {
    mode: sorted({option.key[:length] for option in options(mode) for length in range(1, len(option.key) + 1)})
    for mode in MODES
}


@pytest.mark.parametrize(
    ("mode", "letter"), [(mode, letter) for mode in MODES for letter in sorted({name[0] for name in PREFIXES[mode]})]
)
def test_every_prefix_is_what_gnu_takes_it_for(mode: Mode, letter: str) -> None:
    for prefix in (prefix for prefix in PREFIXES[mode] if prefix[0] == letter):
        words, complaint = gnu(f"--{prefix}", "value", mode=mode)
        assert ours(f"--{prefix}", "value", mode=mode)[1].replace(" '--socket-path'", "") == complaint
        if not complaint:
            assert ours(f"--{prefix}", "value", mode=mode)[0] == canonical(words, mode), prefix


@pytest.mark.parametrize("prefix", ["so", "socket", "socket-", "socket-path"])
def test_two_names_of_one_option_are_not_ambiguous(prefix: str) -> None:
    assert ours(f"--{prefix}", "x") == (["--socket", "x", "--"], "")


@pytest.mark.parametrize(
    "words",
    [
        ("-fd1",),
        ("-fdP", "x", "rest"),
        ("-fdPx", "rest"),
        ("rest", "-f", "more", "--mtu=5", "--", "-q"),
        ("--pid", "--mtu"),
        ("--pid", "--", "rest"),
        ("--mtu=",),
        ("--mtu",),
        ("-m",),
        ("-fm",),
        ("-Z",),
        ("-fZ",),
        ("--foreground=x",),
        ("--fore=",),
        ("--bogus",),
        ("--bogus=1",),
        ("--",),
        ("-",),
        ("--sock", "x", "--socket=y", "-s", "z"),
        *itertools.product(["-4", "-t22", "x"], ["--no-ra", "-1", "--"], ["-tall", "--dns=none"]),
    ],
    ids=" ".join,
)
def test_words_are_what_gnu_takes_them_for(words: tuple[str, ...]) -> None:
    theirs, complaint = gnu(*words)
    assert ours(*words)[1] == complaint
    if not complaint:
        assert [word for word in ours(*words)[0] if word] == canonical(theirs)


@pytest.mark.parametrize(
    "words",
    [
        ("-fd", "rest"),
        ("rest", "-f", "more", "--mtu=5", "--", "-q"),
        ("-fT", "x", "rest", "-Z", "--bogus"),
        ("--", "rest", "--", "-f"),
        ("-f", "--", "-d"),
        ("-", "-f"),
        ("-I", "-x", "rest", "-f"),
        ("-If",),
        ("--netns", "--", "4711"),
        ("-s", "x"),
        ("-F",),
        ("-1",),
        ("--one-off",),
        ("--socket=x",),
        ("--config-n", "--no-cop", "x"),
        ("--ns-i=x", "--userns"),
        *itertools.product(["-4", "-Uall", "x"], ["--no-splice", "-q", "--"], ["-tauto", "--netns=x"]),
    ],
    ids=" ".join,
)
def test_options_end_where_the_command_begins(words: tuple[str, ...]) -> None:
    theirs, complaint = gnu(*words, mode=Mode.NAMESPACE)
    assert ours(*words, mode=Mode.NAMESPACE)[1] == complaint
    if not complaint:
        assert ours(*words, mode=Mode.NAMESPACE)[0] == canonical(theirs, Mode.NAMESPACE)


# -- the end of the program -------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The program up to its end, which comes before it is a daemon: status, standard output, standard error."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    umask = os.umask(0o022)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGUSR1)}

    def run(*words: str, mode: Mode = Mode.VM) -> tuple[int, str, str]:
        status = main(words, mode=mode)
        return status, *capfd.readouterr()

    yield run
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in handlers.items():
        signal.signal(number, handler)


WRONG = [
    ("log-file", ""),
    ("log-size", "4095"),
    ("log-size", "1M"),
    ("runas", "no-such-user-here"),
    ("runas", "1:2:3"),
    ("runas", ""),
    ("pcap", ""),
    ("pid", ""),
    ("mtu", "67"),
    ("mtu", "65521"),
    ("mtu", "1500 "),
    ("address", "192.0.2"),
    ("address", "192.0.2.256"),
    ("address", "192.0.2.1/33"),
    ("address", "192.0.2.0/24"),
    ("address", "127.0.0.1"),
    ("address", "2001:db8::1/129"),
    ("address", "fe80::1"),
    ("address", "::ffff:192.0.2.1"),
    ("address", "none"),
    ("netmask", "255.0.255.0"),
    ("netmask", "33"),
    ("netmask", "0"),
    ("netmask", "ffffff00"),
    ("mac-addr", "9a:55:9a:55:9a"),
    ("mac-addr", "01:00:00:00:00:01"),
    ("mac-addr", "00:00:00:00:00:00"),
    ("mac-addr", "9a-55-9a-55-9a-55"),
    ("gateway", "224.0.0.1"),
    ("gateway", "any"),
    ("interface", "a/b"),
    ("interface", "sixteen-letters-"),
    ("interface", ""),
    ("outbound", "0.0.0.0"),
    ("outbound", "x"),
    ("outbound-if4", "a b"),
    ("outbound-if6", ".."),
    ("dns", "ns.example.org"),
    ("dns", "0.0.0.0/0"),
    ("dns-forward", "127.0.0.1"),
    ("dns-forward", "x"),
    ("dns-host", "x"),
    ("search", "a..b"),
    ("search", "-a.example"),
    ("hostname", "under_score"),
    ("hostname", ""),
    ("fqdn", "a b"),
    ("map-host-loopback", "ff02::1"),
    ("map-guest-addr", "x"),
    ("socket", ""),
    ("socket", "/" + "x" * 107),
    ("fd", "1"),
    ("fd", "x"),
    ("tcp-ports", "65536"),
    ("tcp-ports", "0"),
    ("tcp-ports", "22,"),
    ("tcp-ports", "30-20"),
    ("tcp-ports", "1-2:3-5"),
    ("udp-ports", "none,53"),
    ("udp-ports", "192.0.2.300/53"),
    ("dhcp-boot", ""),
]

WRONG_IN_NAMESPACE = [
    ("ns-ifname", "a/b"),
    ("ns-ifname", "a b"),
    ("ns-ifname", "sixteen-letters-"),
    ("ns-ifname", "eth0:1"),
    ("ns-ifname", ""),
    ("ns-ifname", "."),
    ("ns-mac-addr", "9a:55:9a:55:9a"),
    ("ns-mac-addr", "01:00:00:00:00:01"),
    ("ns-mac-addr", "ff:ff:ff:ff:ff:ff"),
    ("ns-mac-addr", "00:00:00:00:00:00"),
    ("userns", ""),
    ("netns", ""),
    ("netns", "."),
    ("netns", ".."),
    ("tcp-ns", "x"),
    ("tcp-ns", "192.0.2.1/22"),
    ("tcp-ns", "2001:db8::1/auto"),
    ("tcp-ns", "%eth0/22"),
    ("tcp-ns", "none,auto"),
    ("tcp-ns", "auto,all"),
    ("udp-ns", "53,~53,auto"),
    ("udp-ns", "127.0.0.1%eth0/53"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_option_and_value(run: Run, key: str, value: str) -> None:
    status, out, error = run(f"--{key}={value}")
    assert (status, out) == (1, "")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1
    assert error.startswith(f"trio-passt: invalid value '{value}' for option '--{key}': ")
    assert len(error) > len(f"trio-passt: invalid value '{value}' for option '--{key}': \n") + 10, "a reason"


@pytest.mark.parametrize(("key", "value"), WRONG_IN_NAMESPACE)
def test_a_wrong_value_in_namespace_mode_is_one(run: Run, key: str, value: str) -> None:
    status, out, error = run(f"--{key}={value}", mode=Mode.NAMESPACE)
    assert (status, out, len(error.splitlines())) == (1, "", 1)
    assert f": invalid value '{value}' for option '--{key}': " in error


def test_each_option_with_an_argument_has_a_wrong_value_above() -> None:
    assert {key for key, _ in WRONG} == {option.key for option in options(Mode.VM) if option.argument}
    everything = {key for key, _ in WRONG + WRONG_IN_NAMESPACE} - {"socket", "fd"}
    assert everything == {option.key for option in options(Mode.NAMESPACE) if option.argument}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--netns", "a", "true"], "option '--netns /run/netns/a' and a command ('true') contradict each other"),
        (["--netns", "/a", "17"], "option '--netns /a' and a process ID ('17') contradict each other"),
        (["0"], "'0' is not a process ID"),
        (["4194305"], "'4194305' is not a process ID"),
        (["9" * 40], f"'{'9' * 40}' is not a process ID"),
        (["--userns", "/u", "--netns-only", "17"], "options '--userns /u' and '--netns-only' contradict each other"),
        (
            ["--userns", "/u", "true"],
            "option '--userns /u' is for a namespace that is there: a process ID or '--netns' is expected",
        ),
        (["--host-lo-to-ns-lo", "--no-splice"], "options '--host-lo-to-ns-lo' and '--no-splice' contradict each other"),
        (
            ["--ns-mac-addr", "9a:55:9a:55:9a:55"],
            "option '--ns-mac-addr 9a:55:9a:55:9a:55': this is the address of the host's side (see '--mac-addr')",
        ),
        (["--socket", "x"], "unrecognized option '--socket'"),
        (["--one-off"], "unrecognized option '--one-off'"),
        (["--fd=3"], "unrecognized option '--fd=3'"),
        (["-s", "x"], "invalid option -- 's'"),
        (["-F", "3"], "invalid option -- 'F'"),
        (["-1"], "invalid option -- '1'"),
        (["-t", "22", "-t", "22,auto"], "invalid value '22,auto' for option '--tcp-ports': port 22 is given more than"),
        (["-t", "none", "-t", "auto"], "invalid value 'none' for option '--tcp-ports': contradicts 'auto'"),
    ],
)
def test_wrong_usage_in_namespace_mode(run: Run, words: list[str], error: str) -> None:
    status, out, said = run(*words, mode=Mode.NAMESPACE)
    assert (status, out, len(said.splitlines())) == (1, "", 1)
    assert said.partition(": ")[2].startswith(error)


@pytest.mark.parametrize("option", [option for option in options(Mode.NAMESPACE) if option.mode is Mode.NAMESPACE])
def test_namespace_options_are_unknown_to_virtual_machines(run: Run, option: Any) -> None:
    if option.key in {other.key for other in options(Mode.VM)}:
        assert option.help != next(other.help for other in options(Mode.VM) if other.key == option.key)
        return
    word = f"--{option.key}" + ("=1" if option.argument else "")
    assert run(word) == (1, "", f"trio-passt: unrecognized option '{word}'\n")
    if option.short:
        assert run(f"-{option.short}1") == (1, "", f"trio-passt: invalid option -- '{option.short}'\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--netns-only"], "unrecognized option '--netns-only'"),
        (["-f", "--bogus", "--version"], "unrecognized option '--bogus'"),
        (["--bogus=x"], "unrecognized option '--bogus=x'"),
        (["-fk"], "invalid option -- 'k'"),
        (["--mtu"], "option '--mtu' requires an argument"),
        (["--no-ra=1"], "option '--no-ra' doesn't allow an argument"),
        (["--no-"], None),
        (["-4", "-6"], "options '--ipv4-only' and '--ipv6-only' contradict each other"),
        (["--trace", "-q"], "options '--trace' and '--quiet' contradict each other"),
        (["-4", "-a", "2001:db8::1"], "options '--address 2001:db8::1' and '--ipv4-only' contradict each other"),
        (["-6", "-g", "192.0.2.1"], "options '--gateway 192.0.2.1' and '--ipv6-only' contradict each other"),
        (["-a", "192.0.2.1", "-g", "192.0.2.1"], "options '--address' and '--gateway' can't both be 192.0.2.1"),
        (["-D", "none", "-D", "192.0.2.53"], "options '--dns none' and '--dns 192.0.2.53' contradict each other"),
        (["-S", "none", "-S", "a.example"], "options '--search none' and '--search a.example' contradict each other"),
        (["control\n\x1b[31mcharacters"], r"extra argument 'control\x0a\x1b[31mcharacters': only options are expected"),
    ],
)
def test_wrong_usage_is_one_line_and_status_1(run: Run, words: list[str], error: str | None) -> None:
    status, out, said = run(*words)
    assert (status, out, len(said.splitlines())) == (1, "", 1)
    if error is not None:
        assert said == f"trio-passt: {error}\n"
    else:
        assert said.startswith("trio-passt: option '--no-' is ambiguous; possibilities: '--no-dhcp-dns' ")


def test_help_and_version_act_in_their_order(run: Run) -> None:
    status, out, error = run("--version", "--help", "--bogus", "--mtu=1")
    assert (status, out, error) == (0, f"trio-passt {__version__}\n", "")
    status, out, error = run("-4", "-6", "-h", "--version", "-Z")
    assert (status, error) == (0, "")
    assert out.startswith("Usage: trio-passt [OPTION]...\n")
    assert run("--version", "--bogus", mode=Mode.NAMESPACE) == (0, f"trio-pasta {__version__}\n", "")
    assert run("-h", "-Z", mode=Mode.NAMESPACE)[1].startswith("Usage: trio-pasta [OPTION]... [COMMAND [ARG]...]\n")
    assert run("--mtu=1", "--version")[0] == 1


# -- given more than once ---------------------------------------------------------------------------------------------

V4, OTHER_V4, V6 = IPv4Address("192.0.2.7"), IPv4Address("192.0.2.8"), IPv6Address("2001:db8::7")


@pytest.mark.parametrize(
    ("words", "look", "expected"),
    [
        ("--mtu 1500 --mtu 9000", lambda o: o.wishes.mtu_bytes, 9000),
        ("-p a -p b", lambda o: o.pcap, HERE / "b"),
        ("-P a -P b", lambda o: o.pid_file, HERE / "b"),
        ("-l a -l b", lambda o: o.log_file, HERE / "b"),
        ("--log-size 5000 --log-size 6000", lambda o: o.log_size_bytes, 6000),
        ("--runas 5 --runas 6:7", lambda o: (o.run_as.uid, o.run_as.gid), (6, 7)),
        ("-s a --socket-path b", lambda o: o.attachment.socket_path, HERE / "b"),
        ("-F 3 -F 4", lambda o: o.attachment.fd, 4),
        ("-H a -H b", lambda o: o.wishes.hostname, "b"),
        ("--fqdn a.b --fqdn b.c", lambda o: o.wishes.fqdn, "b.c"),
        ("-n 8 -n 255.255.0.0", lambda o: o.wishes.netmask_bits, 16),
        ("-i a -i b", lambda o: (o.wishes.interface_ipv4, o.wishes.interface_ipv6), ("b", "b")),
        ("-M 02:00:00:00:00:01 -M 02:00:00:00:00:02", lambda o: o.wishes.host_mac[-1], 2),
        (
            "-a 192.0.2.7 -a 192.0.2.8/24",
            lambda o: o.wishes.addresses,
            (WishedAddress(V4), WishedAddress(OTHER_V4, 24)),
        ),
        ("-a 192.0.2.7 -a 192.0.2.7/25", lambda o: o.wishes.addresses, (WishedAddress(V4, 25),)),
        ("-g 192.0.2.7 -g 192.0.2.8 -g 2001:db8::7", lambda o: o.wishes.gateways, (OTHER_V4, V6)),
        ("-D 192.0.2.7 -D 2001:db8::7 -D 192.0.2.7", lambda o: o.wishes.dns_servers, (V4, V6)),
        ("-D none -D none", lambda o: o.wishes.dns_servers, ()),
        ("-S a.example -S b.example", lambda o: o.wishes.search, ("a.example", "b.example")),
        ("--dns-forward 192.0.2.7 --dns-forward 192.0.2.8", lambda o: o.wishes.dns_forwards, (OTHER_V4,)),
        ("--dns-host 192.0.2.7 --dns-host 2001:db8::7", lambda o: o.wishes.dns_hosts, (V4, V6)),
        ("-o 192.0.2.7 -o 192.0.2.8", lambda o: o.outbound.ipv4_address, OTHER_V4),
        ("-o 192.0.2.7 -o 2001:db8::7", lambda o: (o.outbound.ipv4_address, o.outbound.ipv6_address), (V4, V6)),
        ("--outbound-if4 a --outbound-if4 b", lambda o: o.outbound.ipv4_interface, "b"),
        ("--map-host-loopback none --map-host-loopback 192.0.2.7", lambda o: o.wishes.loopback_addresses, (V4,)),
        ("--map-guest-addr 192.0.2.7 --map-guest-addr none", lambda o: o.wishes.own_addresses, ()),
        ("--no-dhcp-dns --dhcp-dns", lambda o: o.wishes.tells_dns, True),
        ("--dhcp-search --no-dhcp-search", lambda o: o.wishes.tells_search, False),
        ("-t 22 -t 80", lambda o: [forward.first for forward in o.forwards], [22, 80, 22, 80]),
        ("-u 22 -u 80", lambda o: [forward.first for forward in o.forwards], [22, 80]),
        ("-d --trace", lambda o: o.log_level.value, "trace"),
        ("--trace -d", lambda o: o.log_level.value, "trace"),
        ("-f -f -1 -1 -e -e -q -q", lambda o: (o.foreground, o.one_off, o.log_level.value), (True, True, "quiet")),
    ],
)
def test_given_more_than_once(words: str, look: Callable[[Options], Any], expected: Any) -> None:
    assert look(parsed(*words.split())) == expected
