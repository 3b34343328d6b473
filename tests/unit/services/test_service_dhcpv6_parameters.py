"""What DHCPv6 tells besides the address: DNS, the guest's name, when to ask again; as far as it is asked for."""

from ipaddress import IPv6Address

import pytest
from attrs import evolve
from dhcpv6_client import CLIENT, SERVER, answer, check_bound, check_parameters, ia_na, layers_of, reply_to
from link_setup import LOCAL_MODE, NETWORK, dissect
from scapy.layers.dhcp6 import (
    DHCP6_Advertise,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptInfoRefreshTime,
    DHCP6OptOptReq,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptUnknown,
)
from scapy.packet import Packet

from trio_passt.config import Resolvers

NAMED = evolve(NETWORK, fqdn="guest.lab.example.com")
MINE = DHCP6OptClientFQDN(flags="S", fqdn="mine.")
ASK_NAME = DHCP6OptOptReq(reqopts=[39])

EVERY_KIND = [
    (DHCP6_Solicit(trid=2) / CLIENT / ia_na(), DHCP6_Advertise),
    (DHCP6_Solicit(trid=2) / CLIENT / DHCP6OptRapidCommit() / ia_na(), DHCP6_Reply),
    (DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(), DHCP6_Reply),
    (DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(), DHCP6_Reply),
    (DHCP6_Rebind(trid=2) / CLIENT / ia_na(), DHCP6_Reply),
    (DHCP6_InfoRequest(trid=2) / CLIENT, DHCP6_Reply),
]


@pytest.mark.parametrize(("message", "kind"), EVERY_KIND)
@pytest.mark.parametrize("requested", [[], [23], [24], [24, 23, 23], [82, 31]])
def test_only_what_is_requested_is_told(message: Packet, kind: type[Packet], requested: list[int]) -> None:
    reply = reply_to(message / DHCP6OptOptReq(reqopts=requested), NAMED, kind)
    assert (DHCP6OptDNSServers in reply, DHCP6OptDNSDomains in reply) == (23 in requested, 24 in requested)
    assert DHCP6OptClientFQDN not in reply


@pytest.mark.parametrize(("message", "kind"), EVERY_KIND)
def test_who_requests_nothing_is_told_of_dns(message: Packet, kind: type[Packet]) -> None:
    reply = reply_to(message, NAMED, kind)
    check_parameters(reply)
    assert DHCP6OptClientFQDN not in reply
    assert DHCP6OptInfoRefreshTime not in reply


def test_nothing_to_tell() -> None:
    reply = reply_to(DHCP6_InfoRequest(trid=5) / CLIENT, evolve(NETWORK, resolvers=Resolvers()))
    assert [type(layer) for layer in layers_of(reply)] == [DHCP6_Reply, DHCP6OptClientId, DHCP6OptServerId]


@pytest.mark.parametrize(("message", "kind"), EVERY_KIND)
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        pytest.param(ASK_NAME / MINE, "ON", id="the server shall keep records: it does not"),
        pytest.param(ASK_NAME / DHCP6OptClientFQDN(flags=0, fqdn="mine."), "N", id="the client keeps records"),
        pytest.param(ASK_NAME / DHCP6OptClientFQDN(flags="N", fqdn="mine."), "N", id="nobody shall"),
        pytest.param(ASK_NAME, "N", id="asks for a name and has none"),
        pytest.param(MINE, "ON", id="no option request"),
    ],
)
def test_the_guests_name(message: Packet, kind: type[Packet], options: Packet, flags: str) -> None:
    named = reply_to(message / options, NAMED, kind)[DHCP6OptClientFQDN]
    assert named.flags == flags
    assert named.fqdn == b"guest.lab.example.com."


def test_a_name_is_told_to_who_requests_it_only() -> None:
    message = DHCP6_Solicit(trid=2) / CLIENT / ia_na() / MINE / DHCP6OptOptReq(reqopts=[23])
    assert DHCP6OptClientFQDN not in reply_to(message, NAMED, DHCP6_Advertise)


@pytest.mark.parametrize("fqdn", [None, "", "a..b", "ä.example", "x" * 64])
def test_no_name_to_tell(fqdn: str | None) -> None:
    message = DHCP6_Solicit(trid=2) / CLIENT / ia_na() / MINE / ASK_NAME
    reply = reply_to(message, evolve(NETWORK, fqdn=fqdn), DHCP6_Advertise)
    check_bound(reply[DHCP6OptIA_NA])
    assert DHCP6OptClientFQDN not in reply


@pytest.mark.parametrize("value", [b"", b"\1\x09lab", b"\1\5guest\0more", b"\1\xc0\0", b"\1\4\xff\xff\xff\xff"])
def test_a_malformed_name_of_the_clients_is_as_none(value: bytes) -> None:
    message = DHCP6_Solicit(trid=2) / CLIENT / ia_na() / DHCP6OptUnknown(optcode=39, data=value) / ASK_NAME
    reply = reply_to(message, NAMED, DHCP6_Advertise)
    check_bound(reply[DHCP6OptIA_NA])
    assert reply[DHCP6OptClientFQDN].flags == "N"


@pytest.mark.parametrize("network", [NETWORK, LOCAL_MODE])
def test_a_client_without_address_is_told_when_to_ask_again(network: object) -> None:
    message = DHCP6_InfoRequest(trid=5) / CLIENT / DHCP6OptOptReq(reqopts=[23, 32])
    assert reply_to(message, network)[DHCP6OptInfoRefreshTime].reftime == 600


@pytest.mark.parametrize(("message", "kind"), EVERY_KIND[:-1])
def test_a_client_with_address_is_not_told_twice(message: Packet, kind: type[Packet]) -> None:
    assert DHCP6OptInfoRefreshTime not in reply_to(message / DHCP6OptOptReq(reqopts=[32]), NETWORK, kind)


def test_a_search_list_gets_what_room_is_left() -> None:
    many = Resolvers(
        ipv6=tuple(IPv6Address(0x20010DB8 << 96 | index) for index in range(100)),
        search=tuple(f"domain-{index}.example.com" for index in range(100)),
    )
    network = evolve(NETWORK, resolvers=many, fqdn=".".join(["a" * 63] * 3 + ["b" * 61]))
    message = DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(*(f"2001:db8:9::{index:x}" for index in range(9)))
    frame = answer(message / MINE / DHCP6OptOptReq(reqopts=[23, 24, 39]), network)
    assert len(frame or b"") <= 14 + 1280
    reply = dissect(frame)
    assert len(reply[DHCP6OptDNSServers].dnsservers) == 16
    assert reply[DHCP6OptClientFQDN].fqdn.startswith(b"aaa")
    assert 1 < len(reply[DHCP6OptDNSDomains].dnsdomains) < 100
