"""The options about what the guest is told: each valid form, each error, and what is given more than once."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.guest import dns_address, domain_name, network_boot
from trio_passt.cli.messages import help_text
from trio_passt.cli.mode import Mode
from trio_passt.cli.options import Options, parse_options
from trio_passt.cli.values import UsageError
from trio_passt.config import NetworkBoot, Wishes


def wishes(*words: str) -> Wishes:
    options = parse_options(words, Path("/"))
    assert isinstance(options, Options)
    return options.wishes


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_options(words, Path("/"))
    return str(caught.value)


LABEL_63 = "a" * 63
NAME_253 = ".".join([LABEL_63] * 3 + ["a" * 61])
LABELS = "a host name is letters, digits and hyphens, in parts of 1 to 63 between dots"


class TestNames:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("-H", "guest"), Wishes(hostname="guest")),
            (("-Hguest",), Wishes(hostname="guest")),
            (("--hostname", "guest.lab"), Wishes(hostname="guest.lab")),
            (("--hostname=Guest-1.LAB.",), Wishes(hostname="Guest-1.LAB")),
            (("--host=g",), Wishes(hostname="g")),
            (("-H", "42"), Wishes(hostname="42")),
            (("-H", "3com.example"), Wishes(hostname="3com.example")),
            (("--fqdn", "guest.example.org"), Wishes(fqdn="guest.example.org")),
            (("--fqdn=guest.example.org.",), Wishes(fqdn="guest.example.org")),
            (("--fqdn", "xn--bcher-kva.example"), Wishes(fqdn="xn--bcher-kva.example")),
            (("-H", LABEL_63), Wishes(hostname=LABEL_63)),
            (("-H", NAME_253), Wishes(hostname=NAME_253)),
            (("-H", f"{NAME_253}."), Wishes(hostname=NAME_253)),
            (("-H", "guest", "--fqdn", "guest.example"), Wishes(hostname="guest", fqdn="guest.example")),
            (("-H", "first", "--hostname", "second"), Wishes(hostname="second")),
            (("--fqdn", "first", "--fqdn", "second"), Wishes(fqdn="second")),
        ],
    )
    def test_understood(self, words: Sequence[str], expected: Wishes) -> None:
        assert wishes(*words) == expected

    @pytest.mark.parametrize(
        "value",
        [
            *(
                "",
                ".",
                "..",
                ".guest",
                "guest..",
                "a..b",
                "-guest",
                "guest-",
                "a.-b",
                "b-.a",
                "under_score",
                "two words",
            ),
            *("gäst", "guest\n", "guest\0", "10%", "*.example", "[::1]", f"{LABEL_63}a", f"x.{LABEL_63}a.y"),
        ],
    )
    @pytest.mark.parametrize("option", ["--hostname", "--fqdn"])
    def test_refused(self, option: str, value: str) -> None:
        assert refusal(option, value) == f"invalid value '{value}' for option '{option}': {LABELS}"

    @pytest.mark.parametrize("option", ["--hostname", "--fqdn"])
    def test_too_long(self, option: str) -> None:
        name = f"{NAME_253}a"
        assert refusal(option, name) == (
            f"invalid value '{name}' for option '{option}': a host name has 253 characters at most"
        )

    def test_an_earlier_one_that_is_wrong_is_not_forgiven(self) -> None:
        assert "under_score" in refusal("-H", "under_score", "-H", "guest")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """It is refused, or is a name that DNS can carry."""
        try:
            name = domain_name("--fqdn", text)
        except UsageError:
            return
        assert len(name) <= 253
        assert name.isascii()
        assert all(0 < len(label) <= 63 for label in name.split("."))


ADDRESS = "an IPv4 or IPv6 address is expected"
NOBODYS = "no nameserver can have this address"


class TestNameservers:
    @pytest.mark.parametrize("option", ["--dns-forward", "--dns-host"])
    @pytest.mark.parametrize(
        ("value", "address"),
        [
            ("192.0.2.53", IPv4Address("192.0.2.53")),
            ("2001:db8::53", IPv6Address("2001:db8::53")),
            ("[2001:db8::53]", IPv6Address("2001:db8::53")),
            ("fe80::53", IPv6Address("fe80::53")),
            ("169.254.1.1", IPv4Address("169.254.1.1")),
        ],
    )
    def test_understood(self, option: str, value: str, address: IPv4Address | IPv6Address) -> None:
        expected = Wishes(dns_forwards=(address,)) if option == "--dns-forward" else Wishes(dns_hosts=(address,))
        assert wishes(option, value) == expected
        assert wishes(f"{option}={value}") == expected
        assert wishes(option[:-1], value) == expected

    def test_once_for_each_family_and_the_later_one_of_a_family_wins(self) -> None:
        words = ("--dns-forward", "192.0.2.53", "--dns-forward", "2001:db8::53", "--dns-forward", "192.0.2.54")
        assert wishes(*words).dns_forwards == (IPv4Address("192.0.2.54"), IPv6Address("2001:db8::53"))
        hosts = ("--dns-host", "::1", "--dns-host", "127.0.0.53", "--dns-host", "2001:db8::1")
        assert wishes(*hosts).dns_hosts == (IPv4Address("127.0.0.53"), IPv6Address("2001:db8::1"))

    def test_one_is_not_the_other(self) -> None:
        assert wishes("--dns-forward", "192.0.2.53", "--dns-host", "192.0.2.54") == Wishes(
            dns_forwards=(IPv4Address("192.0.2.53"),), dns_hosts=(IPv4Address("192.0.2.54"),)
        )

    @pytest.mark.parametrize("option", ["--dns-forward", "--dns-host"])
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("", ADDRESS),
            ("localhost", ADDRESS),
            ("192.0.2", ADDRESS),
            ("192.0.2.53:53", ADDRESS),
            ("192.0.2.53,192.0.2.54", ADDRESS),
            ("[192.0.2.53]", ADDRESS),
            ("192.0.2.0/24", ADDRESS),
            ("fe80::53%eth0", ADDRESS),
            ("0.0.0.0", NOBODYS),
            ("::", NOBODYS),
            ("224.0.0.251", NOBODYS),
            ("ff02::fb", NOBODYS),
            ("255.255.255.255", NOBODYS),
            ("::ffff:127.0.0.1", NOBODYS),
            ("::ffff:192.0.2.53", NOBODYS),
        ],
    )
    def test_refused(self, option: str, value: str, reason: str) -> None:
        assert refusal(option, value) == f"invalid value '{value}' for option '{option}': {reason}"

    @pytest.mark.parametrize("value", ["127.0.0.1", "127.0.0.53", "::1"])
    def test_loopback_is_a_nameserver_of_the_hosts_only(self, value: str) -> None:
        assert refusal("--dns-forward", value) == (
            f"invalid value '{value}' for option '--dns-forward': {NOBODYS} for a guest"
        )
        assert str(*wishes("--dns-host", value).dns_hosts) == value

    @given(st.one_of(st.ip_addresses().map(str), st.text()))
    def test_any_text(self, text: str) -> None:
        try:
            address = dns_address("--dns-forward", text)
        except UsageError:
            return
        assert not any((address.is_unspecified, address.is_multicast, address.is_loopback))


FILE_127, NAME_63 = "f" * 127, "n" * 63
BOOT_SERVER = IPv4Address("192.0.2.9")


class TestBoot:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("pxelinux.0", NetworkBoot("pxelinux.0")),
            ("/srv/tftp/grub x64.efi", NetworkBoot("/srv/tftp/grub x64.efi")),
            ("http://192.0.2.1:8000/boot.ipxe?a=b", NetworkBoot("http://192.0.2.1:8000/boot.ipxe?a=b")),
            ("file,name", NetworkBoot("file", "name")),
            ("file,", NetworkBoot("file")),
            ("file,name,192.0.2.9", NetworkBoot("file", "name", BOOT_SERVER)),
            ("file,,192.0.2.9", NetworkBoot("file", "", BOOT_SERVER)),
            (FILE_127, NetworkBoot(FILE_127)),
            (f"f,{NAME_63}", NetworkBoot("f", NAME_63)),
        ],
    )
    def test_understood(self, value: str, expected: NetworkBoot) -> None:
        assert wishes("--dhcp-boot", value) == Wishes(boot=expected)
        assert wishes(f"--dhcp-boot={value}") == Wishes(boot=expected)

    def test_the_later_one_wins(self) -> None:
        assert wishes("--dhcp-boot", "a,b,192.0.2.9", "--dhcp-boot", "c").boot == NetworkBoot("c")

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("", "the file's name is missing"),
            (",name", "the file's name is missing"),
            (",,192.0.2.9", "the file's name is missing"),
            (f"{FILE_127}f", f"'{FILE_127}f' is more than 127 characters, or not all printable ASCII"),
            ("fil\u00e9", "'fil\u00e9' is more than 127 characters, or not all printable ASCII"),
            ("fi\tle", "'fi\tle' is more than 127 characters, or not all printable ASCII"),
            (f"f,{NAME_63}n", f"'{NAME_63}n' is more than 63 characters, or not all printable ASCII"),
            ("f,n\0", "'n\0' is more than 63 characters, or not all printable ASCII"),
            ("f,n,", "'' is not the IPv4 address of a server"),
            ("f,n,host", "'host' is not the IPv4 address of a server"),
            ("f,n,2001:db8::1", "'2001:db8::1' is not the IPv4 address of a server"),
            ("f,n,0.0.0.0", "'0.0.0.0' is not the IPv4 address of a server"),
            ("f,n,224.0.0.1", "'224.0.0.1' is not the IPv4 address of a server"),
            ("f,n,127.0.0.1", "'127.0.0.1' is not the IPv4 address of a server"),
            ("f,n,255.255.255.255", "'255.255.255.255' is not the IPv4 address of a server"),
            ("f,n,192.0.2.9,x", "'192.0.2.9,x' is not the IPv4 address of a server"),
        ],
    )
    def test_refused(self, value: str, reason: str) -> None:
        assert refusal("--dhcp-boot", value) == f"invalid value '{value}' for option '--dhcp-boot': {reason}"

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        try:
            boot = network_boot("--dhcp-boot", text)
        except UsageError:
            return
        assert 0 < len(boot.file) <= 127
        assert (boot.file + boot.server_name).isascii()
        assert (boot.file + boot.server_name).isprintable()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hostname",), "option '--hostname' requires an argument"),
        (("-H",), "option requires an argument -- 'H'"),
        (("--fqdn",), "option '--fqdn' requires an argument"),
        (("--dns-host",), "option '--dns-host' requires an argument"),
        (("--dhcp-boot",), "option '--dhcp-boot' requires an argument"),
        (("--dns-=1",), "option '--dns-=1' is ambiguous; possibilities: '--dns-forward' '--dns-host'"),
    ],
)
def test_scanner(words: Sequence[str], message: str) -> None:
    assert refusal(*words) == message


def test_they_go_together_with_what_is_said_of_families() -> None:
    words = ("-4", "-m", "1500", "-H", "guest", "--dns-forward", "2001:db8::53", "--dhcp-boot", "f")
    assert wishes(*words) == Wishes(
        ipv6=False,
        mtu_bytes=1500,
        hostname="guest",
        boot=NetworkBoot("f"),
        dns_forwards=(IPv6Address("2001:db8::53"),),
    )


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("  -H, --hostname NAME     ", ["Host name for the guest", "DHCP"]),
        ("      --fqdn NAME         ", ["Fully qualified domain name", "DHCP and", "DHCPv6"]),
        ("      --dns-forward ADDRESS", ["ports 53 and 853", "nameserver", "--dns-host", "IPv4 and IPv6"]),
        ("      --dns-host ADDRESS  ", ["Default: the first", "/etc/resolv.conf"]),
        ("      --dhcp-boot FILE[,NAME[,ADDRESS]]", ["TFTP", "URL", "Not an option of passt"]),
    ],
)
def test_help(left: str, words: Sequence[str]) -> None:
    text = help_text(Mode.VM)
    assert f"\n{left}" in text
    start = text.index(left)
    rest = text[start + len(left) :]
    paragraph = " ".join(rest[: rest.index("\n  -") if "\n  -" in rest else None].split("\n      --")[0].split())
    for word in words:
        assert word in paragraph
