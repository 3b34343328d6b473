"""What a guest is told of nameservers where the operator has set some, and where there is no network yet."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.config import DnsForward, GuestIPv4, GuestIPv6, Resolvers, Wishes
from trio_passt.host.network import LOCAL_IPV4, LOCAL_IPV6
from trio_passt.host.resolv import GuestResolvers, Nameserver, ResolvConf, parse_resolv_conf, resolvers_for_guest

GUEST_4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "eth0")
GUEST_6 = GuestIPv6(IPv6Address("2001:db8::2"), 64, IPv6Address("fe80::1"), "eth0")
SET_4, SET_6 = "203.0.113.53", "2001:db8:f::53"


def set_to(*, forward: str | None = None, host: str | None = None) -> Wishes:
    """`--dns-forward`, `--dns-host`; several addresses with blanks between."""
    return Wishes(
        dns_forwards=tuple(map(ip_address, (forward or "").split())),
        dns_hosts=tuple(map(ip_address, (host or "").split())),
    )


def told(
    wishes: Wishes, *nameservers: str, ipv4: GuestIPv4 | None = GUEST_4, ipv6: GuestIPv6 | None = GUEST_6
) -> GuestResolvers:
    text = "".join(f"nameserver {nameserver}\n" for nameserver in nameservers)
    return resolvers_for_guest(parse_resolv_conf(text), ipv4, ipv6, wishes)


def expected(servers: str, *forwards: str, nameservers: str) -> GuestResolvers:
    """Addresses with blanks between; forwards as "seen > on the host"."""
    addresses = [ip_address(text) for text in servers.split()]
    return GuestResolvers(
        Resolvers(
            tuple(address for address in addresses if isinstance(address, IPv4Address)),
            tuple(address for address in addresses if isinstance(address, IPv6Address)),
        ),
        tuple(DnsForward(*map(ip_address, forward.split(" > "))) for forward in forwards),
        tuple(map(ip_address, nameservers.split())),
    )


class TestForward:
    """`--dns-forward`."""

    def test_goes_to_the_first_nameserver_and_is_told_only_where_it_must(self) -> None:
        assert told(set_to(forward=SET_4), "192.0.2.53", "192.0.2.54") == expected(
            "192.0.2.53 192.0.2.54", f"{SET_4} > 192.0.2.53", nameservers="192.0.2.53"
        )

    @pytest.mark.parametrize("hidden", ["127.0.0.53", "192.0.2.1", "192.0.2.2"])
    def test_is_told_in_place_of_one_that_only_the_host_can_reach(self, hidden: str) -> None:
        assert told(set_to(forward=SET_4), hidden, "192.0.2.53") == expected(
            f"{SET_4} 192.0.2.53", f"{SET_4} > {hidden}", nameservers=hidden
        )

    def test_goes_to_the_first_whichever_the_hidden_one_is(self) -> None:
        """passt(1): "the first nameserver", whatever the guest knows of it."""
        assert told(set_to(forward=SET_4), "192.0.2.53", "127.0.0.1") == expected(
            f"192.0.2.53 {SET_4}", f"{SET_4} > 192.0.2.53", nameservers="192.0.2.53"
        )

    def test_of_this_host(self) -> None:
        assert told(set_to(forward=SET_4), "0.0.0.0") == expected(
            SET_4, f"{SET_4} > 127.0.0.1", nameservers="127.0.0.1"
        )

    def test_once_for_several(self) -> None:
        assert told(set_to(forward=SET_4), "127.0.0.1", "127.0.0.53").resolvers.ipv4 == (IPv4Address(SET_4),)

    def test_of_each_family(self) -> None:
        wishes = set_to(forward=f"{SET_6} {SET_4}")
        assert told(wishes, "127.0.0.53", "::1") == expected(
            f"{SET_4} {SET_6}", f"{SET_4} > 127.0.0.53", f"{SET_6} > ::1", nameservers="127.0.0.53 ::1"
        )

    def test_leads_nowhere_without_a_nameserver_of_its_family(self) -> None:
        assert told(set_to(forward=SET_6), "192.0.2.53") == expected("192.0.2.53", nameservers="192.0.2.53")
        assert told(set_to(forward=SET_4)) == GuestResolvers(Resolvers())

    def test_of_a_family_that_is_off(self) -> None:
        assert told(set_to(forward=SET_6), "::1", ipv6=None) == GuestResolvers(Resolvers())

    def test_link_local_nameserver_of_another_interface_is_none(self) -> None:
        assert told(set_to(forward=SET_6), "fe80::53%wlan0", "2001:db8::53") == expected(
            "2001:db8::53", f"{SET_6} > 2001:db8::53", nameservers="2001:db8::53"
        )

    def test_at_the_gateways_address(self) -> None:
        assert told(set_to(forward="192.0.2.1"), "127.0.0.53") == expected(
            "192.0.2.1", "192.0.2.1 > 127.0.0.53", nameservers="127.0.0.53"
        )


class TestHost:
    """`--dns-host`."""

    def test_stands_in_for_the_hidden_one(self) -> None:
        assert told(set_to(host="198.51.100.9"), "192.0.2.53", "127.0.0.53") == expected(
            "192.0.2.53 192.0.2.1", "192.0.2.1 > 198.51.100.9", nameservers="198.51.100.9"
        )

    def test_alone_changes_nothing_of_what_is_told(self) -> None:
        assert told(set_to(host="127.0.0.9"), "192.0.2.53") == expected("192.0.2.53", nameservers="127.0.0.9")

    def test_of_dns_forward(self) -> None:
        assert told(set_to(forward=SET_4, host="127.0.0.9"), "192.0.2.53") == expected(
            "192.0.2.53", f"{SET_4} > 127.0.0.9", nameservers="127.0.0.9"
        )
        assert told(set_to(forward=SET_4, host="127.0.0.9")) == expected(
            SET_4, f"{SET_4} > 127.0.0.9", nameservers="127.0.0.9"
        )

    def test_without_any_nameserver_it_is_one(self) -> None:
        assert told(set_to(host="127.0.0.9")) == expected("192.0.2.1", "192.0.2.1 > 127.0.0.9", nameservers="127.0.0.9")

    def test_is_of_its_own_family_only(self) -> None:
        assert told(set_to(forward=f"{SET_4} {SET_6}", host="::1"), "192.0.2.53", "2001:db8::53") == expected(
            "192.0.2.53 2001:db8::53",
            f"{SET_4} > 192.0.2.53",
            f"{SET_6} > ::1",
            nameservers="192.0.2.53 ::1",
        )


class TestLocalMode:
    """The host has no network yet; it may have one soon, and the guest shall have its nameserver then."""

    def test_the_gateways_are_told_although_there_is_none(self) -> None:
        assert told(set_to(), ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6) == expected("169.254.2.2 fe80::1", nameservers="")

    def test_one_that_there_is(self) -> None:
        assert told(set_to(), "127.0.0.53", ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6) == expected(
            "169.254.2.2 fe80::1", "169.254.2.2 > 127.0.0.53", nameservers="127.0.0.53"
        )
        assert told(set_to(), "192.0.2.53", "2001:db8::53", ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6) == expected(
            "192.0.2.53 2001:db8::53", nameservers="192.0.2.53 2001:db8::53"
        )

    def test_dns_forward_is_told_in_their_place(self) -> None:
        assert told(set_to(forward=SET_4), ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6) == expected(
            f"{SET_4} fe80::1", nameservers=""
        )

    def test_dns_host_is_behind_what_is_told(self) -> None:
        assert told(set_to(host="198.51.100.9"), ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6) == expected(
            "169.254.2.2 fe80::1", "169.254.2.2 > 198.51.100.9", nameservers="198.51.100.9"
        )

    def test_only_of_families_that_are_on(self) -> None:
        assert told(set_to(), ipv4=LOCAL_IPV4, ipv6=None) == expected("169.254.2.2", nameservers="")

    def test_link_local_nameserver_is_on_no_interface(self) -> None:
        assert told(set_to(), "fe80::53%eth0", ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6).resolvers.ipv6 == (LOCAL_IPV6.gateway,)
        assert told(set_to(), "fe80::53", ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6).resolvers.ipv6 == (IPv6Address("fe80::53"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "# by hand\n;really\ndomain\tlab.example\nnameserver\t\tfe80::53%eth0   # the router\n"
            "options timeout:1 attempts:1 rotate\nnameserver 192.0.2.53;comment\nnameserver 192.0.2.54 ;comment\n"
            "search  a.example\tb.example. ; c.example\nlookup file bind\n",
            ResolvConf(
                (Nameserver(IPv6Address("fe80::53"), "eth0"), Nameserver(IPv4Address("192.0.2.54"))),
                ("a.example", "b.example"),
            ),
        ),
        (
            "nameserver fe80::1%2\nnameserver fe80::1%eth0\nnameserver fe80::1%\nnameserver fe80::1\n",
            ResolvConf(
                tuple(Nameserver(IPv6Address("fe80::1"), zone) for zone in ("2", "eth0", None)),
            ),
        ),
        ("\ufeffnameserver 192.0.2.53\nnameserver 192.0.2.54\n", ResolvConf((Nameserver(IPv4Address("192.0.2.54")),))),
        (
            "nameserver 192.0.2.53\r\nsearch example.org\r\n",
            ResolvConf((Nameserver(IPv4Address("192.0.2.53")),), ("example.org",)),
        ),
        ("nameserver 192.0.2.53 192.0.2.54\n", ResolvConf((Nameserver(IPv4Address("192.0.2.53")),))),
        (
            "\n".join(f"nameserver 192.0.2.{last}" for last in range(1, 6)),
            ResolvConf(tuple(Nameserver(IPv4Address(f"192.0.2.{last}")) for last in range(1, 6))),
        ),
    ],
    ids=["all at once", "zones", "byte order mark", "DOS", "two in a line", "more than three"],
)
def test_freedoms_of_the_file(text: str, expected: ResolvConf) -> None:
    assert parse_resolv_conf(text) == expected


addresses = st.sampled_from(
    [ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "192.0.2.53", "127.0.0.1", "0.0.0.0")]
    + [ip_address(text) for text in ("fe80::1", "fe80::53", "2001:db8::2", "2001:db8::53", "::1", "::")]
)
guests4 = st.sampled_from([None, GUEST_4, LOCAL_IPV4])
guests6 = st.sampled_from([None, GUEST_6, LOCAL_IPV6])


@given(st.lists(addresses, unique=True), guests4, guests6, st.sampled_from([None, SET_4, SET_6, f"{SET_4} {SET_6}"]))
def test_whatever_is_told_works(
    servers: list[IPv4Address | IPv6Address], ipv4: GuestIPv4 | None, ipv6: GuestIPv6 | None, forward: str | None
) -> None:
    """No loopback address, none of the guest's own, no gateway without a forward where there is a nameserver."""
    conf = ResolvConf(tuple(Nameserver(server, "eth0") for server in servers))
    found = resolvers_for_guest(conf, ipv4, ipv6, set_to(forward=forward))
    forwards = {each.seen_by_guest for each in found.forwards}
    with_one = {address.version for address in found.nameservers}
    for guest, told_servers in ((ipv4, found.resolvers.ipv4), (ipv6, found.resolvers.ipv6)):
        assert guest is not None or not told_servers
        for server in told_servers:
            assert not server.is_loopback
            assert not server.is_unspecified
            assert guest is not None
            assert server != guest.address
            assert server != guest.gateway or server in forwards or server.version not in with_one
