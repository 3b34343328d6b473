"""The host's network changes: looked at when it is time, decided, said in the log, handed on."""

import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
from attrs import evolve
from harness.hosts import HOME, HOME_4, HOME_6, NAMESERVERS, OFFICE, OFFLINE, ChangingHost, host, with_resolv_conf

from trio_passt.config import GuestNetwork, Wishes
from trio_passt.errors import StartupError
from trio_passt.host import follow as module
from trio_passt.host.follow import LOOK_TIMEOUT_S, PAUSE_S, RETRY_S, describe, follow
from trio_passt.host.guest_network import decide
from trio_passt.host.network import LOCAL_IPV4, LOCAL_IPV6, Host

pytestmark = pytest.mark.usefixtures("jumping_clock")

NO_WISHES = Wishes()


class Followed(ChangingHost):
    """A host that is followed, and what the guest is told."""

    def __init__(self, first: Host, wishes: Wishes) -> None:
        super().__init__(first)
        self.first = decide(wishes, first).network
        self.told: list[GuestNetwork] = []
        self._wishes = wishes

    async def follow(self) -> None:
        await follow(self, self._wishes, self.first, self.told.append)  # type: ignore[arg-type]


@asynccontextmanager
async def following(first: Host, wishes: Wishes = NO_WISHES) -> AsyncIterator[Followed]:
    followed = Followed(first, wishes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "discover_again", followed.discover_again)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(followed.follow)
            yield followed
            nursery.cancel_scope.cancel()


async def test_nothing_is_looked_at_until_it_changes() -> None:
    async with following(HOME) as host:
        host.is_unnoticed(OFFICE)
        await trio.sleep(3600)
        assert (host.looks, host.told) == ([], [])


async def test_each_look_is_told_before_what_comes_of_it() -> None:
    """Also if nothing comes of it: an interface may be another that the guest knows nothing of."""
    told: list[object] = []
    host = Followed(HOME, NO_WISHES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "discover_again", host.discover_again)
        async with trio.open_nursery() as nursery:
            looked = partial(told.append, "looked")
            nursery.start_soon(follow, host, NO_WISHES, host.first, told.append, looked)
            host.becomes(HOME)
            await trio.sleep(10)
            assert told == ["looked"]
            host.becomes(OFFICE)
            await trio.sleep(10)
            assert told == ["looked", "looked", decide(NO_WISHES, OFFICE, host.first).network]
            nursery.cancel_scope.cancel()


async def test_change_is_handed_on_as_it_is_decided(caplog: pytest.LogCaptureFixture) -> None:
    async with following(HOME) as host:
        host.becomes(OFFICE)
        await trio.sleep(60)
        assert host.told == [decide(Wishes(), OFFICE, host.first).network]
        assert host.told[0].former
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_what_the_operator_wished_for_holds_after_a_change() -> None:
    wishes = Wishes(ipv6=False, mtu_bytes=1500, hostname="guest", dns_forwards=(IPv4Address("203.0.113.53"),))
    async with following(HOME, wishes) as host:
        host.becomes(OFFICE)
        await trio.sleep(60)
        (now,) = host.told
        assert (now.ipv6, now.mtu_bytes, now.hostname) == (None, 1500, "guest")
        assert [forward.seen_by_guest for forward in now.dns_forwards] == [IPv4Address("203.0.113.53")]


async def test_each_change_starts_from_the_one_before() -> None:
    async with following(HOME) as host:
        expected = []
        told = host.first
        for there in (OFFICE, HOME, OFFLINE, HOME_4):
            told = decide(Wishes(), there, told).network
            expected.append(told)
            host.becomes(there)
            await trio.sleep(60)
        assert host.told == expected


async def test_change_that_is_none_for_the_guest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with following(HOME) as host:
        host.becomes(evolve(HOME, links=(*HOME.links, evolve(HOME.links[1], index=9, name="docker0"))))
        await trio.sleep(60)
        assert (len(host.looks), host.told) == (1, [])
    assert not caplog.records


async def test_host_whose_routes_flap_is_not_looked_at_all_the_time() -> None:
    async with following(HOME) as host:
        for step in range(100):
            host.becomes((HOME, OFFICE)[step % 2])
            await trio.sleep(PAUSE_S / 10)
        assert len(host.looks) == pytest.approx(10, abs=1)
        host.becomes(OFFICE)
        await trio.sleep(60)
        assert host.told[-1].ipv4 == decide(Wishes(), OFFICE).network.ipv4  # the last state is never missed


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "[Errno 11] Resource temporarily unavailable"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "[Errno 24] Too many open files"),
        (RuntimeError("a child process ended with status -9"), "a child process ended with status -9"),
        (StartupError("no netlink"), "no netlink"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_look_that_fails_is_tried_again(failure: Exception, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with following(HOME) as host:
        host.becomes(failure)
        await trio.sleep(2.5 * RETRY_S)
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (level, f"can't look at the host's network, which has changed: {text}")
            for level in (logging.WARNING, logging.DEBUG, logging.DEBUG)  # said once
        ]
        assert host.told == []
        host.is_unnoticed(OFFICE)  # without being noticed again
        await trio.sleep(RETRY_S)
        assert host.told == [decide(Wishes(), OFFICE, host.first).network]
        await trio.sleep(3600)
        assert len(host.looks) == 4
    assert [later - earlier for earlier, later in pairwise(host.looks)] == pytest.approx([RETRY_S] * 3)


async def test_look_that_does_not_end_is_given_up_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with following(HOME) as host:
        host.becomes(None)
        await trio.sleep(LOOK_TIMEOUT_S + 1)
        host.is_unnoticed(OFFICE)
        await trio.sleep(RETRY_S)
        assert len(host.told) == 1
        caplog.records.pop()  # about the change
        assert [record.getMessage() for record in caplog.records] == [
            "can't look at the host's network, which has changed: no answer for 30 s"
        ]


async def test_failures_are_said_again_after_a_look_that_succeeded(caplog: pytest.LogCaptureFixture) -> None:
    async with following(HOME) as host:
        for there in (StartupError("one"), HOME, StartupError("two")):
            host.becomes(there)
            await trio.sleep(2 * RETRY_S)
        warned = [record.getMessage()[-3:] for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["one", "two"]


async def test_bug_is_not_taken_for_a_host_that_cannot_be_looked_at() -> None:
    with pytest.RaisesGroup(KeyError):
        async with following(HOME) as host:
            host.becomes(KeyError("bug"))
            await trio.sleep(60)


# -- what is said ------------------------------------------------------------------------------------------------------


def said(*hosts: Host, wishes: Wishes = NO_WISHES) -> list[tuple[str, str]]:
    """About the last of several states of a host: levels and lines."""
    told = decide(wishes, hosts[0]).network
    for there in hosts[1:-1]:
        told = decide(wishes, there, told).network
    return [
        (logging.getLevelName(level), line) for level, line in describe(told, decide(wishes, hosts[-1], told).network)
    ]


RENEW = "renew it in the guest (dhclient, networkctl renew, ...) to have that at once"
LATER = f"renews its lease, which may take some minutes: {RENEW}"
HEARD = " (told by router advertisement, and when it renews its lease)"
BY_RA = "the guest is told by a router advertisement"
NOW_OFFICE = [
    (
        "WARNING",
        "the host's IPv4 is now 198.51.100.7/25, gateway 198.51.100.1 (from wlan0):"
        f" the guest keeps 192.0.2.2 until it {LATER}",
    ),
    ("INFO", f"the host's IPv6 is now 2001:db8:2::7/64, gateway fe80::2 (from wlan0): {BY_RA}"),
]


def test_address_that_the_host_keeps_beside_a_new_one() -> None:
    vpn = evolve(OFFICE, addresses=(*OFFICE.addresses, *HOME.addresses))
    assert said(HOME, vpn)[0] == (
        "INFO",
        "the host's IPv4 is now 198.51.100.7/25, gateway 198.51.100.1 (from wlan0): the guest may keep 192.0.2.2,"
        " which the host has, too; one that releases its lease gets the new address",
    )


def test_address_that_the_host_kept_and_now_gives_up() -> None:
    vpn = evolve(OFFICE, addresses=(*OFFICE.addresses, *HOME.addresses))
    assert said(HOME, vpn, OFFICE) == [
        (
            "WARNING",
            "the host has 192.0.2.2 no more: a guest that has kept it gets another address when it renews its lease",
        )
    ]
    assert said(HOME, vpn, OFFICE, OFFICE) == []


def test_nothing_new() -> None:
    assert said(HOME, HOME) == []


def test_other_network() -> None:
    assert said(HOME, OFFICE) == NOW_OFFICE


@pytest.mark.parametrize(
    ("address", "gateway"), [("192.0.2.2/24", "192.0.2.254"), ("192.0.2.2/25", "192.0.2.1")], ids=["gateway", "prefix"]
)
def test_same_address_but_not_the_rest(address: str, gateway: str) -> None:
    there = host(f"{address} eth0", routes=(f"{gateway} eth0",), resolv_conf=NAMESERVERS)
    assert said(HOME_4, there) == [
        (
            "WARNING",
            f"the host's IPv4 is now {address}, gateway {gateway} (from eth0): the guest hears of it when it {LATER}",
        )
    ]


def test_other_interface_with_the_same_addresses() -> None:
    there = host(
        "192.0.2.2/24 wlan0",
        "2001:db8:1::2/64 wlan0",
        routes=("192.0.2.1 wlan0", "fe80::1 wlan0"),
        resolv_conf=NAMESERVERS,
    )
    same = "(from wlan0): nothing changes for the guest"
    assert said(HOME, there) == [
        ("INFO", f"the host's IPv4 is now 192.0.2.2/24, gateway 192.0.2.1 {same}"),
        ("INFO", f"the host's IPv6 is now 2001:db8:1::2/64, gateway fe80::1 {same}"),
    ]


@pytest.mark.parametrize(("version", "left"), [(4, HOME_6), (6, HOME_4)])
def test_one_default_route_lost_and_back(version: int, left: Host) -> None:
    lost = f"the host has no IPv{version} default route any more: the guest keeps what it has"
    again = f"the host has an IPv{version} default route again"
    assert ("INFO", lost) in said(HOME, left)
    assert said(HOME, left, left) == []
    assert ("INFO", again) in said(HOME, left, HOME)
    assert not [line for _, line in said(HOME, left, HOME) if "is now" in line]


def test_both_default_routes_lost_and_back_elsewhere() -> None:
    offline = with_resolv_conf(OFFLINE, NAMESERVERS)
    assert said(HOME, offline) == [
        ("INFO", f"the host has no IPv{version} default route any more: the guest keeps what it has")
        for version in (4, 6)
    ]
    again4, again6 = (("INFO", f"the host has an IPv{version} default route again") for version in (4, 6))
    assert said(HOME, offline, OFFICE) == [again4, NOW_OFFICE[0], again6, NOW_OFFICE[1]]


def test_online_for_the_first_time() -> None:
    """Nothing has come back: it was never there."""
    offline = with_resolv_conf(OFFLINE, NAMESERVERS)
    assert said(offline, HOME) == [
        (
            "WARNING",
            "the host's IPv4 is now 192.0.2.2/24, gateway 192.0.2.1 (from eth0):"
            f" the guest keeps {LOCAL_IPV4.address} until it {LATER}",
        ),
        ("INFO", f"the host's IPv6 is now 2001:db8:1::2/64, gateway fe80::1 (from eth0): {BY_RA}"),
    ]
    assert said(OFFLINE, HOME)[2:] == [
        ("INFO", "the guest is to use other DNS servers or domains: 192.0.2.53, 2001:db8::53; search: none" + HEARD),
    ]


@pytest.mark.parametrize(("online", "local"), [(HOME_4, LOCAL_IPV6), (HOME_6, LOCAL_IPV4)])
def test_family_that_was_never_online_is_not_said_to_be_lost_or_back(online: Host, local: object) -> None:
    offline = with_resolv_conf(OFFLINE, NAMESERVERS)
    version = 6 if local is LOCAL_IPV6 else 4
    for states in ((offline, online), (offline, online, offline), (offline, online, offline, online)):
        assert not [line for _, line in said(*states) if f"IPv{version}" in line]
    for _, line in said(offline, online, HOME):
        assert "again" not in line


def test_family_appears() -> None:
    assert said(HOME_4, HOME)[0] == (
        "INFO",
        f"the host's IPv6 is now 2001:db8:1::2/64, gateway fe80::1 (from eth0): {BY_RA}",
    )
    assert said(HOME_6, HOME)[0] == (
        "WARNING",
        f"the host's IPv4 is now 192.0.2.2/24, gateway 192.0.2.1 (from eth0): the guest hears of it when it {LATER}",
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nameserver 203.0.113.53\n", "203.0.113.53; search: none"),
        (
            "nameserver 203.0.113.53\nnameserver ::1\nsearch a.example b.example\n",
            "203.0.113.53, fe80::1; search: a.example b.example",
        ),
        ("", "none; search: none"),
        (NAMESERVERS + "search a.example\n", "192.0.2.53, 2001:db8::53; search: a.example"),
    ],
)
def test_other_resolvers(text: str, line: str) -> None:
    assert said(HOME, with_resolv_conf(HOME, text)) == [
        ("INFO", f"the guest is to use other DNS servers or domains: {line}" + HEARD)
    ]


def test_resolver_behind_our_address_is_another_one_and_the_guest_need_not_care() -> None:
    assert (
        said(with_resolv_conf(HOME_4, "nameserver 127.0.0.1\n"), with_resolv_conf(HOME_4, "nameserver 127.0.0.53\n"))
        == []
    )


def test_local_mode_has_no_interface_to_name() -> None:
    told = decide(Wishes(), HOME_4).network
    local = evolve(told, ipv4=LOCAL_IPV4, ipv6=LOCAL_IPV6)
    assert [line for _, line in describe(told, local)] == [
        f"the host's IPv4 is now 169.254.2.1/16, gateway 169.254.2.2: the guest keeps 192.0.2.2 until it {LATER}",
        f"the host's IPv6 is now fe80::2/64, gateway fe80::1: {BY_RA}",
    ]
