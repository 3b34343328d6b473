"""Whole conversations, with the options that the usual clients send: from the first message to the release."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from attrs import evolve, frozen
from dhcpv6_client import (
    ADDRESS,
    NO_PREFIX,
    NOT_ON_LINK,
    SERVER,
    SUCCESS,
    associations_of,
    check_bound,
    contents_of,
    ia_na,
    reply_to,
)
from link_setup import GUEST_MAC_TEXT, NETWORK
from scapy.layers.dhcp6 import (
    DUID_EN,
    DUID_LL,
    DUID_LLT,
    VENDOR_CLASS_DATA,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIAAddress,
    DHCP6OptInfoRefreshTime,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptReconfAccept,
    DHCP6OptStatusCode,
    DHCP6OptVendorClass,
)
from scapy.packet import Packet

from trio_passt.config import GuestIPv6

LLT = DUID_LLT(timeval=771234567, lladdr=GUEST_MAC_TEXT)


@frozen
class Client:
    """`requests` are the codes of its option request; `always` goes with every message."""

    name: str
    duid: Packet
    iaid: int
    requests: tuple[int, ...]
    always: tuple[Packet, ...] = ()
    rapid_commit: bool = False
    prefix: bool = False

    def says(self, kind: type[Packet], *options: Packet, trid: int) -> Packet:
        message = kind(trid=trid) / DHCP6OptClientId(duid=self.duid) / DHCP6OptElapsedTime(elapsedtime=0)
        for option in (*options, *self.always):
            message = message / option
        return message / DHCP6OptOptReq(reqopts=list(self.requests))

    def solicits(self) -> list[Packet]:
        prefix = [DHCP6OptIA_PD(iaid=self.iaid)] if self.prefix else []
        return [ia_na(iaid=self.iaid), *prefix, *([DHCP6OptRapidCommit()] if self.rapid_commit else [])]


def vendor(enterprise: int, data: bytes) -> Packet:
    return DHCP6OptVendorClass(enterprisenum=enterprise, vcdata=[VENDOR_CLASS_DATA(data=data)])


CLIENTS = [
    Client("ISC dhclient -6", LLT, 0x00123456, (23, 24, 39, 31)),
    Client("busybox udhcpc6", DUID_LL(lladdr=GUEST_MAC_TEXT), 0x12345678, (23, 24)),
    Client(
        "dhcpcd",
        LLT,
        0x00123456,
        (23, 24, 39, 82, 83),
        (vendor(40712, b"dhcpcd-9.4.1:Linux-6.1.0:x86_64"), DHCP6OptClientFQDN(flags="S", fqdn="guest.")),
        rapid_commit=True,
    ),
    Client(
        "systemd-networkd",
        DUID_EN(enterprisenum=43793, id=bytes.fromhex("0011223344556677")),
        0xB0B16AF5,
        (23, 24, 39, 56),
        (DHCP6OptClientFQDN(flags="S", fqdn="guest."),),
        rapid_commit=True,
        prefix=True,
    ),
    Client(
        "Windows",
        LLT,
        0x06525400,
        (17, 23, 24, 39),
        (DHCP6OptClientFQDN(flags=0, fqdn="guest."), vendor(311, b"MSFT 5.0")),
    ),
    Client("macOS", LLT, 0, (23, 24), (DHCP6OptReconfAccept(),)),
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
NAMED = evolve(NETWORK, fqdn="guest.lab.example.com")


def check_reply(reply: Packet, client: Client) -> None:
    """It is for this client, has the address, and what this client requests."""
    assert bytes(reply[DHCP6OptClientId].duid) == bytes(client.duid)
    check_bound(reply[DHCP6OptIA_NA], client.iaid)
    present = (DHCP6OptDNSServers in reply, DHCP6OptDNSDomains in reply, DHCP6OptClientFQDN in reply)
    assert present == (23 in client.requests, 24 in client.requests, 39 in client.requests)


@each_client
def test_conversation(client: Client) -> None:
    solicit = client.says(DHCP6_Solicit, *client.solicits(), trid=0x10)
    if client.rapid_commit:
        bound = reply_to(solicit, NAMED)
        assert DHCP6OptRapidCommit in bound
    else:
        offered = reply_to(solicit, NAMED, DHCP6_Advertise)
        check_reply(offered, client)
        assert offered[DHCP6OptPref].prefval == 255
        leased = ia_na(offered[DHCP6OptIAAddress].addr, iaid=client.iaid)
        bound = reply_to(client.says(DHCP6_Request, SERVER, leased, trid=0x11), NAMED)
    check_reply(bound, client)
    leased = ia_na(bound[DHCP6OptIAAddress].addr, iaid=client.iaid)
    check_reply(reply_to(client.says(DHCP6_Renew, SERVER, leased, trid=0x12), NAMED), client)
    check_reply(reply_to(client.says(DHCP6_Rebind, leased, trid=0x13), NAMED), client)
    for kind, identifiers in ((DHCP6_Confirm, []), (DHCP6_Release, [SERVER]), (DHCP6_Decline, [SERVER])):
        reply = reply_to(client.says(kind, *identifiers, leased, trid=0x14), NAMED)
        assert reply[DHCP6OptStatusCode].statuscode == SUCCESS
        assert not associations_of(reply)


@each_client
def test_without_address(client: Client) -> None:
    message = DHCP6_InfoRequest(trid=0x20) / DHCP6OptClientId(duid=client.duid)
    reply = reply_to(message / DHCP6OptOptReq(reqopts=[*client.requests, 32]), NAMED)
    assert (DHCP6OptDNSServers in reply, DHCP6OptDNSDomains in reply) == (True, True)
    assert reply[DHCP6OptInfoRefreshTime].reftime == 600


def test_a_client_that_wants_a_prefix_too_is_told_that_there_is_none() -> None:
    client = next(client for client in CLIENTS if client.prefix)
    reply = reply_to(client.says(DHCP6_Solicit, ia_na(iaid=1), DHCP6OptIA_PD(iaid=2), trid=1), kind=DHCP6_Advertise)
    assert [option.addr for option in contents_of(reply)[1]] == [ADDRESS]
    assert [option.statuscode for option in contents_of(reply)[2]] == [NO_PREFIX]


@each_client
def test_a_client_that_comes_from_another_network(client: Client) -> None:
    """As Windows does when its link comes up: it asks if its address is right, and begins anew."""
    elsewhere = ia_na("2001:db8:ffff::7", iaid=client.iaid)
    reply = reply_to(client.says(DHCP6_Confirm, elsewhere, trid=0x30), NAMED)
    assert reply[DHCP6OptStatusCode].statuscode == NOT_ON_LINK
    again = client.says(DHCP6_Solicit, elsewhere, trid=0x31)
    check_reply(reply_to(again, NAMED, DHCP6_Advertise), client)


@each_client
def test_a_client_whose_hosts_network_changed(client: Client) -> None:
    """It renews what it has, and gets what holds now."""
    guest = GuestIPv6(IPv6Address("2001:db8:ffff::7"), 64, IPv6Address("fe80::1"), "eth0")
    before = evolve(NAMED, ipv6=guest)
    first = reply_to(client.says(DHCP6_Request, SERVER, ia_na(iaid=client.iaid), trid=0x40), before)
    leased = ia_na(first[DHCP6OptIAAddress].addr, iaid=client.iaid)
    renewed = reply_to(client.says(DHCP6_Renew, SERVER, leased, trid=0x41), NAMED)
    seen = {option.addr: option.validlft for option in contents_of(renewed)[client.iaid]}
    assert seen == {ADDRESS: 86400, "2001:db8:ffff::7": 0}
