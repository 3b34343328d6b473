"""A guest that may have several addresses of a family: what DHCP, DHCPv6 and router advertisements say of them."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest
from attrs import evolve
from dhcp_setup import ACK, NAK, OFFER, ask, options_of, reboot, renew, reply_to, select, told
from dhcpv6_client import (
    ADDRESS,
    CLIENT,
    NOT_ON_LINK,
    OFF_LINK,
    SERVER,
    SUCCESS,
    contents_of,
    ia_na,
    lifetimes_of,
)
from dhcpv6_client import answer as dhcpv6_answer
from dhcpv6_client import reply_to as dhcpv6_reply_to
from link_setup import NETWORK, dissect
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp6 import (
    DUID_EN,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6NDOptPrefixInfo, IPv6
from scapy.packet import Packet

from trio_passt.config import Former, GuestIPv4, GuestIPv6, GuestNetwork, Resolvers, Services
from trio_passt.services import host_side, ndp

SECOND, THIRD = "203.0.113.7", "192.0.2.77"
SECOND6, THIRD6 = "2001:db8:7:7::5", "2001:db8:1:2::88"


def several() -> GuestNetwork:
    assert NETWORK.ipv4 is not None
    assert NETWORK.ipv6 is not None
    others4 = (IPv4Interface(f"{SECOND}/28"), IPv4Interface(f"{THIRD}/24"))
    others6 = (IPv6Interface(f"{SECOND6}/64"), IPv6Interface(f"{THIRD6}/64"))
    return evolve(NETWORK, ipv4=evolve(NETWORK.ipv4, others=others4), ipv6=evolve(NETWORK.ipv6, others=others6))


SEVERAL = several()


# -- DHCP --------------------------------------------------------------------------------------------------------------


def test_first_is_offered_to_who_has_no_wish() -> None:
    assert bytes(reply_to(ask("discover"), SEVERAL)) == bytes(reply_to(ask("discover")))
    assert bytes(reply_to(ask("discover", ("requested_addr", "10.0.2.15")), SEVERAL)) == bytes(
        reply_to(ask("discover"))
    )


@pytest.mark.parametrize(("address", "mask"), [(SECOND, "255.255.255.240"), (THIRD, "255.255.255.0")])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda address: ask("discover", ("requested_addr", address)), OFFER),
        (lambda address: ask("discover", ("requested_addr", address), ("rapid_commit", b"")), ACK),
        (lambda address: select(address, "192.0.2.1"), ACK),
        (reboot, ACK),
        (renew, ACK),
    ],
    ids=["DISCOVER", "rapid commit", "SELECTING", "INIT-REBOOT", "RENEWING"],
)
def test_another_is_given_to_who_asks_for_it(make: object, kind: bytes, address: str, mask: str) -> None:
    reply = reply_to(make(address), SEVERAL)  # type: ignore[operator]
    assert (told(reply)[53], reply[BOOTP].yiaddr, options_of(reply)["subnet_mask"]) == (kind, address, mask)
    assert (reply[IP].src, options_of(reply)["server_id"], options_of(reply)["router"]) == ("192.0.2.1",) * 3
    assert (121 in told(reply)) is (address == SECOND), "from there the gateway is not on the link"


def test_mask_of_the_address_that_a_client_has() -> None:
    for address, mask in (("192.0.2.5", "255.255.255.0"), (SECOND, "255.255.255.240"), ("10.0.2.15", "255.255.255.0")):
        for kind in ("inform", None):
            reply = reply_to(ask(kind, ciaddr=address), SEVERAL)
            assert (reply[BOOTP].ciaddr, options_of(reply)["subnet_mask"]) == (address, mask)


def test_what_is_none_of_them_is_refused() -> None:
    for payload in (reboot("203.0.113.8"), renew("10.0.2.15"), select("203.0.113.8", "192.0.2.1")):
        assert told(reply_to(payload, SEVERAL))[53] == NAK


def test_one_of_a_former_network() -> None:
    assert SEVERAL.ipv4 is not None
    moved = GuestIPv4(IPv4Address("198.51.100.7"), 24, IPv4Address("198.51.100.1"))
    for on_host, kind in ((True, ACK), (False, NAK)):
        network = evolve(NETWORK, ipv4=moved, former=(Former(SEVERAL.ipv4, on_host),))
        reply = reply_to(renew(SECOND), network)
        assert (told(reply)[53], reply[IP].src) == (kind, "192.0.2.1")


@pytest.mark.parametrize("gateway", [SECOND, THIRD, "192.0.2.5"])
def test_server_is_none_of_them(gateway: str) -> None:
    assert SEVERAL.ipv4 is not None
    guest = evolve(SEVERAL.ipv4, gateway=IPv4Address(gateway))
    assert host_side.ipv4_address(guest) == IPv4Address("169.254.2.2")


# -- DHCPv6 ------------------------------------------------------------------------------------------------------------

ALL = dict.fromkeys((ADDRESS, SECOND6, THIRD6), (86400, 86400))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(), id="request of any"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(ADDRESS, SECOND6, THIRD6), id="request"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(SECOND6), id="request of the second"),
        pytest.param(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(THIRD6), id="renew"),
        pytest.param(DHCP6_Rebind(trid=2) / CLIENT / ia_na(SECOND6, ADDRESS), id="rebind"),
    ],
)
def test_all_are_assigned(message: Packet) -> None:
    reply = dhcpv6_reply_to(message, SEVERAL)
    assert lifetimes_of(reply) == ALL
    assert (reply[DHCP6OptIA_NA].T1, reply[DHCP6OptIA_NA].T2) == (host_side.RENEWAL_S, host_side.REBINDING_S)


def test_all_are_advertised() -> None:
    solicit = DHCP6_Solicit(trid=1) / CLIENT / ia_na()
    assert lifetimes_of(dhcpv6_reply_to(solicit, SEVERAL, DHCP6_Advertise)) == ALL


def test_other_addresses_are_withdrawn_when_all_are_renewed() -> None:
    renewal = DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(OFF_LINK, SECOND6)
    assert lifetimes_of(dhcpv6_reply_to(renewal, SEVERAL)) == ALL | {OFF_LINK: (0, 0)}


def test_association_that_has_one_of_them_has_all() -> None:
    message = DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(iaid=1) / ia_na(THIRD6, iaid=2)
    contents = contents_of(dhcpv6_reply_to(message, SEVERAL))
    assert [len(contents[2]), type(contents[1][0])] == [3, DHCP6OptStatusCode]


def test_each_is_on_the_link() -> None:
    for claimed, status in (
        ([SECOND6], SUCCESS),
        ([ADDRESS, SECOND6, "2001:db8:7:7::99"], SUCCESS),
        ([SECOND6, OFF_LINK], NOT_ON_LINK),
    ):
        reply = dhcpv6_reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(*claimed), SEVERAL)
        assert reply[DHCP6OptStatusCode].statuscode == status


def test_each_can_be_released() -> None:
    reply = dhcpv6_reply_to(DHCP6_Release(trid=3) / CLIENT / SERVER / ia_na(THIRD6), SEVERAL)
    assert contents_of(reply) == {}


def test_those_of_a_former_network_are_deprecated_while_the_host_has_them() -> None:
    assert SEVERAL.ipv6 is not None
    now = GuestIPv6(IPv6Address("2001:db8:5:5::5"), 64, IPv6Address("fe80::1"), "eth0")
    renewal = DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(SECOND6, ADDRESS)
    for on_host, valid_s in ((True, 86400), (False, 0)):
        network = evolve(NETWORK, ipv6=now, former=(Former(SEVERAL.ipv6, on_host),))
        assert lifetimes_of(dhcpv6_reply_to(renewal, network)) == {
            str(now.address): (86400, 86400),
            SECOND6: (0, valid_s),
            ADDRESS: (0, valid_s),
        }


def many(count: int) -> GuestNetwork:
    """With so many others, each in a network of its own, and as much to be told beside them as there may be."""
    assert NETWORK.ipv6 is not None
    others = tuple(IPv6Interface(f"2001:db8:{number:x}::1/64") for number in range(0x100, 0x100 + count))
    servers = tuple(IPv6Address(0x20010DB8 << 96 | number) for number in range(100, 120))
    search = tuple(f"{'x' * 60}{number}.example" for number in range(20))
    return evolve(NETWORK, ipv6=evolve(NETWORK.ipv6, others=others), resolvers=Resolvers((), servers, search))


def test_reply_has_room_for_as_many_as_are_given() -> None:
    client = DHCP6OptClientId(duid=DUID_EN(id=b"x" * 122))
    renewal = DHCP6_Renew(trid=2) / client / SERVER / ia_na(*(f"2001:db8:9:9::{number}" for number in range(1, 20)))
    frame = dhcpv6_answer(renewal, many(40))
    assert frame is not None
    assert len(frame) <= 14 + 1280
    (given,) = contents_of(dhcpv6_reply_to(renewal, many(40))).values()
    assert len([address for address in given if address.validlft]) == 16


# -- router advertisements ---------------------------------------------------------------------------------------------


def prefixes_of(packet: Packet) -> dict[str, tuple[int, int, int, int]]:
    """Flags A and L, and both lifetimes of each prefix of 64 bits."""
    options = [packet.getlayer(ICMPv6NDOptPrefixInfo, number) for number in range(1, 20)]
    found = {o.prefix: (o.A, o.L, o.validlifetime, o.preferredlifetime) for o in options if o is not None}
    assert all(option.prefixlen == 64 for option in options if option is not None)
    assert len(found) == len([option for option in options if option is not None]), "each once"
    return found


HOLDS = (1, 1, ndp.PREFIX_VALID_S, ndp.PREFIX_PREFERRED_S)


def test_each_prefix_is_announced_once() -> None:
    packet = dissect(ndp.advertisement(SEVERAL))
    assert prefixes_of(packet) == {"2001:db8:1:2::": HOLDS, "2001:db8:7:7::": HOLDS}


def test_prefix_that_is_another_addresss_today_is_not_former() -> None:
    assert SEVERAL.ipv6 is not None
    before = GuestIPv6(IPv6Address("2001:db8:7:7::9"), 64, IPv6Address("fe80::1"))
    gone = GuestIPv6(IPv6Address("2001:db8:6:6::9"), 64, IPv6Address("fe80::1"))
    network = evolve(SEVERAL, former=(Former(before, True), Former(gone, True)))
    assert prefixes_of(dissect(ndp.advertisement(network))) == {
        "2001:db8:1:2::": HOLDS,
        "2001:db8:7:7::": HOLDS,
        "2001:db8:6:6::": (1, 1, ndp.PREFIX_VALID_S, 0),
    }


def test_those_that_are_gone_are_taken_back() -> None:
    (frame,) = ndp.changes(SEVERAL, NETWORK)
    assert prefixes_of(dissect(frame)) == {"2001:db8:1:2::": HOLDS, "2001:db8:7:7::": (1, 1, 0, 0)}


def test_guest_that_gets_another_is_told() -> None:
    assert NETWORK.ipv6 is not None
    same_prefix = evolve(NETWORK, ipv6=evolve(NETWORK.ipv6, others=(IPv6Interface(f"{THIRD6}/64"),)))
    (frame,) = ndp.changes(NETWORK, same_prefix)
    assert prefixes_of(dissect(frame)) == {"2001:db8:1:2::": HOLDS}


def test_many_fit_a_packet() -> None:
    assert NETWORK.ipv6 is not None
    former = tuple(Former(GuestIPv6(IPv6Address(f"2001:db8:f{n}::1"), 64, IPv6Address("fe80::1")), True) for n in "abc")
    (frame,) = ndp.changes(NETWORK, evolve(many(20), former=former))
    assert len(frame) <= 14 + 1280
    packet = dissect(frame)
    assert packet[IPv6].plen + 40 == len(frame) - 14
    found = prefixes_of(packet)
    assert list(found.values()) == [HOLDS] * 5
    (frame,) = ndp.changes(NETWORK, evolve(many(2), former=former))
    assert list(prefixes_of(dissect(frame)).values()).count(HOLDS) == 3
    assert len(prefixes_of(dissect(frame))) == 5


@pytest.mark.parametrize("off", [Services(router_advertisements=False), Services(ndp=False)])
def test_without_advertisements_changes_are_not_told(off: Services) -> None:
    assert ndp.changes(evolve(NETWORK, services=off), evolve(SEVERAL, services=off)) == []
    assert not ndp.tells_router(evolve(SEVERAL, services=off))
    assert ndp.tells_router(SEVERAL)
