"""argv → `Options`, as tables: GNU conventions, each option, each error."""

import contextlib
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import options
from trio_passt.cli.options import Options, Show, parse_options
from trio_passt.cli.values import UsageError
from trio_passt.config import Attachment, Binding, LogLevel, PortForward, Protocol, Wishes

HERE = Path("/some/where")
OPTIONS = options(Mode.VM)


def parse(*words: str) -> Options | Show:
    return parse_options(words, HERE)


def parsed(*words: str) -> Options:
    options = parse(*words)
    assert isinstance(options, Options)
    return options


TCP_22 = (PortForward(Protocol.TCP, 22, 22, 22), PortForward(Protocol.UDP, 22, 22, 22, binding=Binding.WANTED))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Options()),
        (("-f",), Options(foreground=True)),
        (("--foreground",), Options(foreground=True)),
        (("--fore",), Options(foreground=True)),
        (("-e", "--stderr"), Options()),
        (("-fd",), Options(foreground=True, log_level=LogLevel.DEBUG)),
        (("-d",), Options(log_level=LogLevel.DEBUG)),
        (("-q",), Options(log_level=LogLevel.QUIET)),
        (("-1",), Options(one_off=True)),
        (("-p/tmp/x",), Options(pcap=Path("/tmp/x"))),
        (("-fp", "x"), Options(foreground=True, pcap=HERE / "x")),
        (("-fpx",), Options(foreground=True, pcap=HERE / "x")),
        (("--pcap=",), None),
        (("--pcap=a=b",), Options(pcap=HERE / "a=b")),
        (("--pid", "../run/pid"), Options(pid_file=Path("/some/where/../run/pid"))),
        (("-s", "sock"), Options(attachment=Attachment(HERE / "sock"))),
        (("--socket", "/s"), Options(attachment=Attachment(Path("/s")))),
        (("--socket-path=/s",), Options(attachment=Attachment(Path("/s")))),
        (("--socket-p=/s",), Options(attachment=Attachment(Path("/s")))),
        (("--sock=/s",), Options(attachment=Attachment(Path("/s")))),
        (("-F", "3"), Options(attachment=Attachment(fd=3), one_off=True)),
        (("--fd=0",), Options(attachment=Attachment(fd=0), one_off=True)),
        (("-m", "1500"), Options(wishes=Wishes(mtu_bytes=1500))),
        (("-m0",), Options(wishes=Wishes(mtu_bytes=0))),
        (("-m", "68"), Options(wishes=Wishes(mtu_bytes=68))),
        (("-m", "65520", "--mtu", "9000"), Options(wishes=Wishes(mtu_bytes=9000))),
        (("-4",), Options(wishes=Wishes(ipv6=False))),
        (("--ipv6-only",), Options(wishes=Wishes(ipv4=False))),
        (("-t", "22"), Options(forwards=TCP_22)),
        (("-t", "22", "-u", "none"), Options(forwards=TCP_22[:1])),
        (("-t", "none"), Options()),
        (("-u", "53:5353"), Options(forwards=(PortForward(Protocol.UDP, 53, 53, 5353),))),
        (
            ("-t", "2222:22"),
            Options(
                forwards=(
                    PortForward(Protocol.TCP, 2222, 2222, 22),
                    PortForward(Protocol.UDP, 2222, 2222, 2222, binding=Binding.WANTED),
                )
            ),
        ),
        (
            ("-H", "guest", "--dns-host", "::1"),
            Options(wishes=Wishes(hostname="guest", dns_hosts=(IPv6Address("::1"),))),
        ),
        (("--",), Options()),
    ],
)
def test_understood(words: tuple[str, ...], expected: Options | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            parse(*words)
    else:
        assert parse(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bogus",), "unrecognized option '--bogus'"),
        (("--netns", "x"), "unrecognized option '--netns'"),
        (("--bogus=1",), "unrecognized option '--bogus=1'"),
        (("-Z",), "invalid option -- 'Z'"),
        (("-fZ",), "invalid option -- 'Z'"),
        (("--mtu",), "option '--mtu' requires an argument"),
        (("--mt",), "option '--mtu' requires an argument"),
        (("-m",), "option requires an argument -- 'm'"),
        (("-fm",), "option requires an argument -- 'm'"),
        (("--foreground=1",), "option '--foreground' doesn't allow an argument"),
        (("--fore=",), "option '--foreground' doesn't allow an argument"),
        (("--f",), "option '--f' is ambiguous; possibilities: '--foreground' '--fd' '--fqdn' '--freebind'"),
        (("--p=x",), "option '--p=x' is ambiguous; possibilities: '--pid' '--pcap'"),
        (("--ipv",), "option '--ipv' is ambiguous; possibilities: '--ipv4-only' '--ipv6-only'"),
        (("file",), "extra argument 'file': only options are expected"),
        (("file", "--bogus"), "unrecognized option '--bogus'"),
        (("--", "-f"), "extra argument '-f': only options are expected"),
        (("-",), "extra argument '-': only options are expected"),
        (("",), "extra argument '': only options are expected"),
        (("-m", "abc"), "invalid value 'abc' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none"),
        (("-m", "67"), "invalid value '67' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none"),
        (
            ("--mtu=65521",),
            "invalid value '65521' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none",
        ),
        (("-m", "-1"), "invalid value '-1' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none"),
        (
            ("-m", "1_500"),
            "invalid value '1_500' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none",
        ),
        (("-m", "٣٠٠"), "invalid value '٣٠٠' for option '--mtu': 68 to 65520 is expected, or 0 to tell the guest none"),
        (("-F", "-1"), "invalid value '-1' for option '--fd': a file descriptor's number is expected"),
        (("-F", "x"), "invalid value 'x' for option '--fd': a file descriptor's number is expected"),
        (("-F", "9" * 5000), f"invalid value '{'9' * 5000}' for option '--fd': a file descriptor's number is expected"),
        (("-F", "2147483648"), "invalid value '2147483648' for option '--fd': a file descriptor's number is expected"),
        (
            ("-F", "2"),
            "invalid value '2' for option '--fd': this is where messages go (standard output, standard error)",
        ),
        (("-s", ""), "invalid value '' for option '--socket': a path must not be empty"),
        (("-p", "a\0b"), "invalid value 'a\\0b' for option '--pcap': a path can't contain a NUL byte"),
        (
            ("-s", "x" * 100),
            f"invalid value '/some/where/{'x' * 100}' for option '--socket': 112 bytes, where the absolute path of a"
            " UNIX socket has 107 at most",
        ),
        (
            ("-l", "file", "-p", "x/../file"),
            "options '--log-file /some/where/file' and '--pcap /some/where/x/../file' contradict each other",
        ),
        (("-P", "/f", "-s", "/f"), "options '--pid /f' and '--socket /f' contradict each other"),
        (("-4", "-6"), "options '--ipv4-only' and '--ipv6-only' contradict each other"),
        (("-d", "-q"), "options '--debug' and '--quiet' contradict each other"),
        (("-s", "/s", "-F", "3"), "options '--socket /s' and '--fd 3' contradict each other"),
        (("-6", "-m", "1279"), "options '--ipv6-only' and '--mtu 1279' contradict each other: IPv6 needs 1280 bytes"),
        (
            ("-t", "22", "-t", "20-30"),
            "invalid value '20-30' for option '--tcp-ports': port 22 is given more than once",
        ),
        (("-u", "x"), "invalid value 'x' for option '--udp-ports': 'x' is not a port number"),
    ],
)
def test_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "show"),
    [
        (("--version",), Show.VERSION),
        (("-h",), Show.HELP),
        (("--vers", "--bogus"), Show.VERSION),
        (("-f", "-4", "-6", "--help", "--version", "-m"), Show.HELP),
        (("file", "--version"), Show.VERSION),
    ],
)
def test_help_and_version_act_in_order(words: tuple[str, ...], show: Show) -> None:
    assert parse(*words) is show


@pytest.mark.parametrize("first", ["--bogus", "-m67", "-Z"])
def test_an_error_before_version_wins(first: str) -> None:
    with pytest.raises(UsageError):
        parse(first, "--version")


def test_udp_follows_only_where_it_is_not_given() -> None:
    assert parsed("-t", "22", "-u", "53").forwards == (
        PortForward(Protocol.TCP, 22, 22, 22),
        PortForward(Protocol.UDP, 53, 53, 53),
    )


def test_names_and_letters_are_unique() -> None:
    names = [name for option in OPTIONS for name in option.names]
    letters = [option.short for option in OPTIONS if option.short]
    assert len(set(names)) == len(names)
    assert len(set(letters)) == len(letters)


WORDS = st.lists(
    st.one_of(
        st.sampled_from([f"--{name}" for option in OPTIONS for name in option.names]),
        st.sampled_from([f"-{option.short}" for option in OPTIONS if option.short]),
        st.sampled_from(["--", "-", "22", "1-2:3-4", "1500", "x", "--=", "--m=1"]),
        st.text(max_size=8),
    ),
    max_size=6,
)


@given(WORDS)
def test_anything_is_options_or_a_usage_error(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse(*words), Options | Show)


def test_nothing_follows_tcp_that_is_off() -> None:
    (tcp,) = parsed("-t", "22", "--no-tcp").forwards
    assert tcp.protocol is Protocol.TCP
    assert [forward.protocol for forward in parsed("-t", "22", "-u", "22", "--no-tcp").forwards] == list(Protocol)
