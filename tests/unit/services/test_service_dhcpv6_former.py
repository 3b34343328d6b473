"""The host's network has changed: what becomes of the addresses that the guest had from DHCPv6."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from attrs import evolve
from dhcpv6_client import (
    ADDRESS,
    CLIENT,
    NO_ADDRESSES,
    NO_BINDING,
    NOT_ON_LINK,
    OFF_LINK,
    SERVER,
    SUCCESS,
    associations_of,
    check_bound,
    contents_of,
    ia_na,
    ia_ta,
    lifetimes_of,
    reply_to,
)
from link_setup import LOCAL_MODE, NETWORK
from scapy.layers.dhcp6 import (
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptIA_NA,
    DHCP6OptStatusCode,
)
from scapy.packet import Packet

from trio_passt.config import Former, GuestIPv4, GuestIPv6, GuestNetwork

KEPT, GONE, GONE_NEARBY = "2001:db8:3::5", "2001:db8:4::5", "2001:db8:1:2::6"
RENEWALS = [DHCP6_Renew(trid=2) / CLIENT / SERVER, DHCP6_Rebind(trid=2) / CLIENT]
LEASED, DEPRECATED, WITHDRAWN = (86400, 86400), (0, 86400), (0, 0)


def former(address: str, *, on_host: bool) -> Former:
    return Former(GuestIPv6(IPv6Address(address), 64, IPv6Address("fe80::2"), "eth0"), on_host)


def changed(network: GuestNetwork) -> GuestNetwork:
    ipv4 = Former(GuestIPv4(IPv4Address("192.0.2.9"), 24, IPv4Address("192.0.2.1"), "eth0"), True)
    formers = (former(GONE, on_host=False), ipv4, former(KEPT, on_host=True), former(GONE_NEARBY, on_host=False))
    return evolve(network, former=(*formers, former(ADDRESS, on_host=True)))


CHANGED, OFFLINE = changed(NETWORK), changed(LOCAL_MODE)


@pytest.mark.parametrize("message", RENEWALS)
def test_an_address_that_the_host_still_has_is_deprecated(message: Packet) -> None:
    reply = reply_to(message / ia_na(KEPT), CHANGED)
    assert lifetimes_of(reply) == {ADDRESS: LEASED, KEPT: DEPRECATED}
    assert (reply[DHCP6OptIA_NA].T1, reply[DHCP6OptIA_NA].T2) == (600, 75600)


@pytest.mark.parametrize("message", RENEWALS)
def test_an_address_that_the_host_has_no_more_is_withdrawn(message: Packet) -> None:
    assert lifetimes_of(reply_to(message / ia_na(GONE), CHANGED)) == {ADDRESS: LEASED, GONE: WITHDRAWN}


@pytest.mark.parametrize("message", RENEWALS)
def test_the_new_address_goes_where_the_former_one_was(message: Packet) -> None:
    reply = reply_to(message / ia_na(OFF_LINK, iaid=1) / ia_na(iaid=2) / ia_na(GONE, iaid=3), CHANGED)
    assert lifetimes_of(reply, 3) == {ADDRESS: LEASED, GONE: WITHDRAWN}
    assert lifetimes_of(reply, 1) == {OFF_LINK: WITHDRAWN}
    assert [option.statuscode for option in contents_of(reply)[2]] == [NO_ADDRESSES]


@pytest.mark.parametrize("message", RENEWALS)
def test_the_new_address_stays_where_it_is(message: Packet) -> None:
    reply = reply_to(message / ia_na(KEPT, iaid=1) / ia_na(ADDRESS, iaid=2), CHANGED)
    assert lifetimes_of(reply, 1) == {KEPT: DEPRECATED}
    assert lifetimes_of(reply, 2) == {ADDRESS: LEASED}
    assert {ia.iaid: (ia.T1, ia.T2) for ia in associations_of(reply)} == dict.fromkeys((1, 2), (600, 75600))


@pytest.mark.parametrize("message", RENEWALS)
def test_a_host_without_network_has_no_address_to_give(message: Packet) -> None:
    reply = reply_to(message / ia_na(GONE, iaid=1) / ia_na(KEPT, iaid=2) / ia_na(iaid=3), OFFLINE)
    assert lifetimes_of(reply, 1) == {GONE: WITHDRAWN}
    assert lifetimes_of(reply, 2) == {KEPT: (0, 120)}
    assert [option.statuscode for option in contents_of(reply)[3]] == [NO_ADDRESSES]
    assert {ia.iaid: (ia.T1, ia.T2) for ia in associations_of(reply)} == {1: (0, 0), 2: (30, 105), 3: (0, 0)}


@pytest.mark.parametrize(
    ("head", "kind"),
    [(DHCP6_Solicit(trid=2) / CLIENT, DHCP6_Advertise), (DHCP6_Request(trid=2) / CLIENT / SERVER, None)],
)
def test_who_begins_anew_gets_the_new_address_only(head: Packet, kind: type[Packet] | None) -> None:
    reply = reply_to(head / ia_na(KEPT), CHANGED, *([kind] if kind else []))
    check_bound(reply[DHCP6OptIA_NA])


def test_request_for_an_address_that_is_gone() -> None:
    ((status,),) = contents_of(reply_to(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(GONE), CHANGED)).values()
    assert status.statuscode == NOT_ON_LINK


@pytest.mark.parametrize(
    ("network", "addresses", "status"),
    [
        (CHANGED, [ADDRESS], SUCCESS),
        (CHANGED, [KEPT], SUCCESS),
        (CHANGED, [ADDRESS, KEPT], SUCCESS),
        (CHANGED, [GONE], NOT_ON_LINK),
        (CHANGED, [KEPT, GONE], NOT_ON_LINK),
        (CHANGED, [GONE_NEARBY], SUCCESS),
        (OFFLINE, [KEPT], SUCCESS),
        (OFFLINE, [GONE], NOT_ON_LINK),
        (OFFLINE, [GONE_NEARBY], NOT_ON_LINK),
    ],
)
def test_confirm_of_former_addresses(network: GuestNetwork, addresses: list[str], status: int) -> None:
    reply = reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(*addresses), network)
    assert reply[DHCP6OptStatusCode].statuscode == status


@pytest.mark.parametrize("kind", [DHCP6_Release, DHCP6_Decline])
def test_former_addresses_are_known_bindings(kind: type[Packet]) -> None:
    message = kind(trid=4) / CLIENT / SERVER / ia_na(KEPT, iaid=1) / ia_na(GONE, iaid=2) / ia_na(OFF_LINK, iaid=3)
    reply = reply_to(message, CHANGED)
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS
    statuses = {iaid: [option.statuscode for option in options] for iaid, options in contents_of(reply).items()}
    assert statuses == {3: [NO_BINDING]}


def test_a_temporary_association_has_no_times() -> None:
    reply = reply_to(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_ta(GONE, iaid=7), CHANGED)
    assert lifetimes_of(reply, 7) == {GONE: WITHDRAWN}
