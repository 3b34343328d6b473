"""What holds of every decision, whatever becomes of the host."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import evolve
from harness.hosts import LINKS
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.config import GuestNetwork, Wishes
from trio_passt.host.guest_network import FORMER_KEPT, afresh, decide, terms, without
from trio_passt.host.network import Address, DefaultRoute, Host, NextHop
from trio_passt.host.resolv import Nameserver, ResolvConf

ADDRESSES = [
    *("192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "198.51.100.7", "169.254.2.1", "169.254.2.2"),
    *("2001:db8:1::2", "2001:db8:2::7", "2001:db8:1::1", "fe80::1", "fe80::2", "fe80::53"),
]
LOOPBACK = ["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::"]
OWN = [text for text in ADDRESSES if not text.startswith("fe80")]

addresses = st.builds(
    lambda text, length, link: Address(link, ip_address(text), length if "." in text else 64),
    st.sampled_from(OWN),
    st.sampled_from([24, 25, 32]),
    st.sampled_from([2, 3, 4]),
)
routes = st.builds(
    lambda text, link, metric: DefaultRoute(ip_address(text).version, (NextHop(link, ip_address(text)),), metric),
    st.sampled_from(ADDRESSES),
    st.sampled_from([2, 3, 4]),
    st.integers(0, 3),
)
nameservers = st.builds(
    lambda text, zone: Nameserver(ip_address(text), zone),
    st.sampled_from([*ADDRESSES, *LOOPBACK]),
    st.sampled_from([None, "eth0", "2", "3"]),
)
resolv_confs = st.builds(
    lambda servers, search: ResolvConf(tuple(servers), search),
    st.lists(nameservers, max_size=3, unique=True),
    st.sampled_from([(), ("example.org",)]),
)
hosts = st.builds(
    lambda own, ways, resolv_conf: Host(LINKS, tuple(own), tuple(ways), resolv_conf),
    st.lists(addresses, max_size=4),
    st.lists(routes, max_size=3),
    resolv_confs,
)


def one_of_each(*texts: str) -> st.SearchStrategy[tuple[IPv4Address | IPv6Address, ...]]:
    """At most one address of a family, as the command line has it."""
    picked = st.lists(st.sampled_from(texts), max_size=2, unique_by=lambda text: ":" in text)
    return picked.map(lambda found: tuple(map(ip_address, found)))


wishes = st.builds(
    lambda families, forwards, servers: Wishes(*families, dns_forwards=forwards, dns_hosts=servers),
    st.sampled_from([(True, True), (True, True), (True, False), (False, True)]),
    one_of_each("203.0.113.53", "192.0.2.1", "2001:db8:f::53", "fe80::1"),
    one_of_each("203.0.113.9", "127.0.0.9", "2001:db8:f::9", "::1"),
)
histories = st.lists(hosts, min_size=1, max_size=6)


def lived(asked: Wishes, history: list[Host]) -> GuestNetwork:
    told = None
    for host in history:
        told = decide(asked, host, told).network
    assert told is not None
    return told


@given(wishes, histories)
def test_nothing_changes_when_nothing_changes(asked: Wishes, history: list[Host]) -> None:
    """Or the guest would be told something new at each look."""
    told = lived(asked, history)
    assert decide(asked, history[-1], told).network == told


@given(wishes, histories)
def test_what_is_told_is_what_a_new_guest_would_be_told(asked: Wishes, history: list[Host]) -> None:
    """But for a family that the host does not have any more, or not yet; and of addresses that are as good as each
    other, the guest keeps the one that it has.
    """
    told = lived(asked, history)
    known = {guest.address for guest in (told.ipv4, told.ipv6) if guest}
    known_first = sorted(history[-1].addresses, key=lambda each: each.address not in known)
    new = decide(asked, evolve(history[-1], addresses=tuple(known_first))).network
    for now, then, is_offline in (
        (told.ipv4, new.ipv4, told.ipv4_offline),
        (told.ipv6, new.ipv6, told.ipv6_offline),
    ):
        assert is_offline or now == then or (then is not None and then.is_local and now is None)
    if (told.ipv4, told.ipv6) == (new.ipv4, new.ipv6):
        assert afresh(told).resolvers == new.resolvers
        assert afresh(told).dns_forwards == new.dns_forwards


@given(wishes, histories, hosts)
def test_family_that_the_guest_has_is_never_taken_away(asked: Wishes, history: list[Host], then: Host) -> None:
    told = lived(asked, history)
    now = decide(asked, then, told).network
    assert now.ipv4 is not None or told.ipv4 is None
    assert now.ipv6 is not None or told.ipv6 is None
    assert now.ipv4 is not None or now.ipv6 is not None
    for before, after in ((told.ipv4, now.ipv4), (told.ipv6, now.ipv6)):
        assert before is None or before.is_local or (after is not None and not after.is_local)


@given(wishes, histories)
def test_family_that_was_not_asked_for_is_off(asked: Wishes, history: list[Host]) -> None:
    told = lived(asked, history)
    assert asked.ipv4 or (told.ipv4 is None and not told.ipv4_offline and not told.resolvers.ipv4)
    assert asked.ipv6 or (told.ipv6 is None and not told.ipv6_offline and not told.resolvers.ipv6)


@given(wishes, histories, hosts)
def test_what_is_former(asked: Wishes, history: list[Host], then: Host) -> None:
    """What was told just before, if it does not hold; never what holds; nothing twice; not without end."""
    told = lived(asked, history)
    now = decide(asked, then, told).network
    former = [terms(each.guest) for each in now.former]
    current = {terms(guest) for guest in (now.ipv4, now.ipv6) if guest}
    assert current.isdisjoint(former)
    assert len(set(former)) == len(former) <= FORMER_KEPT
    for guest in (told.ipv4, told.ipv6):
        assert guest is None or terms(guest) in {*former, *current}
    own = {address.address for address in then.addresses}
    assert all(each.on_host == (each.guest.address in own) for each in now.former)


@given(wishes, histories, hosts)
def test_nameserver_at_one_of_our_addresses_works_after_a_change(
    asked: Wishes, history: list[Host], then: Host
) -> None:
    """As long as the host has one, and it is not a nameserver's own address now."""
    told = lived(asked, history)
    now = decide(asked, then, told).network
    reached = {each.seen_by_guest for each in (*now.dns_forwards, *now.former_dns_forwards)}
    reached |= {*now.resolvers.ipv4, *now.resolvers.ipv6}
    served = {address.version for address in now.nameservers}
    for forward in told.dns_forwards:
        is_ours = forward.seen_by_guest in {
            guest.gateway for guest in (now.ipv4, now.ipv6, *(each.guest for each in now.former)) if guest
        }
        if is_ours and forward.seen_by_guest.version in served:
            assert forward.seen_by_guest in reached


@given(wishes, histories)
def test_forwards_lead_to_a_nameserver_and_no_address_has_two(asked: Wishes, history: list[Host]) -> None:
    told = lived(asked, history)
    forwards = (*told.dns_forwards, *told.former_dns_forwards)
    assert len({each.seen_by_guest for each in forwards}) == len(forwards)
    for each in forwards:
        assert each.seen_by_guest.version == each.on_host.version
        assert not each.on_host.is_unspecified
    assert all(each.on_host in told.nameservers for each in told.dns_forwards)
    assert len({address.version for address in told.nameservers}) == len(told.nameservers)


@given(wishes, histories)
def test_guests_own_address_is_never_its_nameserver(asked: Wishes, history: list[Host]) -> None:
    told = lived(asked, history)
    for guest, servers in ((told.ipv4, told.resolvers.ipv4), (told.ipv6, told.resolvers.ipv6)):
        if guest is not None and guest.address != guest.gateway and guest.address not in asked.dns_forwards:
            assert guest.address not in servers
        assert not any(server.is_loopback or server.is_unspecified for server in servers)
        assert len(set(servers)) == len(servers)


@given(wishes, histories)
def test_without_what_was_before(asked: Wishes, history: list[Host]) -> None:
    told = lived(asked, history)
    ipv4 = {each.guest for each in told.former if each.guest.address.version == 4}
    now = without(told, ipv4, set())
    assert all(each.guest.address.version == 6 for each in now.former)
    assert now.former_dns_forwards == told.former_dns_forwards
    assert without(now, ipv4, set()) == now
    assert not without(told, set(), {each.seen_by_guest for each in told.former_dns_forwards}).former_dns_forwards
    assert afresh(now) == afresh(told)
    assert not afresh(told).former
    assert not afresh(told).former_dns_forwards
