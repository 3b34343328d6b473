"""Clients that had an address before the host's network changed (`GuestNetwork.former`)."""

from ipaddress import IPv4Address

import pytest
from attrs import evolve
from dhcp_setup import (
    ACK,
    GONE,
    KEPT,
    MOVED,
    NAK,
    OFFER,
    answer,
    ask,
    options_of,
    reboot,
    renew,
    reply_to,
    select,
    told,
)
from link_setup import NETWORK
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP

from trio_passt.config import Former, GuestIPv4
from trio_passt.services import dhcp

OFF_LINK = GuestIPv4(IPv4Address("198.51.100.20"), 32, IPv4Address("10.0.0.1"), "ppp0")


@pytest.mark.parametrize("payload", [renew("198.51.100.7"), reboot("198.51.100.7")], ids=["RENEWING", "INIT-REBOOT"])
def test_address_that_the_host_still_has_is_kept(payload: bytes) -> None:
    reply = reply_to(payload, MOVED)
    assert (reply[BOOTP].yiaddr, reply[IP].dst, reply[IP].src) == ("198.51.100.7", "198.51.100.7", "198.51.100.1")
    assert options_of(reply) == options_of(reply_to(ask("discover"))) | {
        "message-type": 5,
        "server_id": "198.51.100.1",
        "subnet_mask": "255.255.255.192",
        "router": "198.51.100.1",
    }, "mask and router of the former network, all else of today's"
    frame = answer(payload, MOVED)
    assert frame is not None
    assert dhcp.acknowledged_address(frame) == IPv4Address("198.51.100.7")


@pytest.mark.parametrize("payload", [renew("203.0.113.9"), reboot("203.0.113.9")], ids=["RENEWING", "INIT-REBOOT"])
def test_address_that_the_host_has_lost_is_refused_by_the_server_that_gave_it(payload: bytes) -> None:
    reply = reply_to(payload, MOVED)
    assert (told(reply)[53], options_of(reply)["server_id"], reply[IP].src) == (NAK, "203.0.113.1", "203.0.113.1")
    assert (reply[IP].dst, reply[BOOTP].yiaddr) == ("255.255.255.255", "0.0.0.0")


@pytest.mark.parametrize("payload", [renew("10.0.2.15"), reboot("10.0.2.15")], ids=["RENEWING", "INIT-REBOOT"])
def test_address_of_nobody_is_refused_by_todays_server(payload: bytes) -> None:
    reply = reply_to(payload, MOVED)
    assert (told(reply)[53], options_of(reply)["server_id"]) == (NAK, "192.0.2.1")


def test_todays_address_is_todays() -> None:
    for payload in (renew("192.0.2.5"), reboot("192.0.2.5"), select("192.0.2.5", "192.0.2.1")):
        assert bytes(reply_to(payload, MOVED)) == bytes(reply_to(payload))


@pytest.mark.parametrize("wish", ["198.51.100.7", "203.0.113.9"])
def test_who_starts_gets_todays_address(wish: str) -> None:
    reply = reply_to(ask("discover", ("requested_addr", wish)), MOVED)
    assert (reply[BOOTP].yiaddr, reply[IP].src, told(reply)[53]) == ("192.0.2.5", "192.0.2.1", OFFER)
    assert reply_to(ask("discover", ("rapid_commit", b"")), MOVED)[BOOTP].yiaddr == "192.0.2.5"
    assert reply_to(ask(None), MOVED)[BOOTP].yiaddr == "192.0.2.5"
    assert reply_to(ask("inform", ciaddr=wish), MOVED)[IP].src == "192.0.2.1"


@pytest.mark.parametrize("address", ["198.51.100.7", "203.0.113.9"])
def test_offer_from_before_the_change_is_refused_by_who_made_it(address: str) -> None:
    """SELECTING: no connections yet that the former address would be kept for."""
    server = address.rpartition(".")[0] + ".1"
    reply = reply_to(select(address, server), MOVED)
    assert (told(reply)[53], options_of(reply)["server_id"]) == (NAK, server)
    assert told(reply_to(select(address, "192.0.2.1"), MOVED))[53] == NAK


def test_offer_of_the_same_address_from_before_the_change_holds() -> None:
    """Only the gateway is another one now."""
    before = evolve(NETWORK.ipv4, gateway=IPv4Address("192.0.2.254"))
    network = evolve(NETWORK, former=(Former(before, True),))
    for payload in (select("192.0.2.5", "192.0.2.254"), renew("192.0.2.5")):
        reply = reply_to(payload, network)
        assert (told(reply)[53], options_of(reply)["router"]) == (ACK, "192.0.2.1")


def test_client_that_names_its_server_when_it_renews() -> None:
    """RFC 2131 table 5 forbids it; some do."""
    reply = reply_to(renew("198.51.100.7", ("server_id", "198.51.100.1")), MOVED)
    assert (told(reply)[53], reply[BOOTP].yiaddr) == (ACK, "198.51.100.7")
    assert answer(renew("198.51.100.7", ("server_id", "198.51.100.2")), MOVED) is None


@pytest.mark.parametrize("kind", ["release", "decline"])
def test_nothing_to_say_to_who_gives_a_former_address_back(kind: str) -> None:
    assert answer(ask(kind, ("server_id", "198.51.100.1"), ciaddr="198.51.100.7"), MOVED) is None


def test_the_latest_of_several_with_one_address_counts() -> None:
    lost_again = evolve(MOVED, former=(Former(KEPT, False), Former(KEPT, True)))
    assert told(reply_to(renew("198.51.100.7"), lost_again))[53] == NAK


def test_former_gateway_off_link() -> None:
    network = evolve(NETWORK, former=(Former(OFF_LINK, True),))
    wishes = ("param_req_list", [1, 3, 121])
    options = told(reply_to(renew("198.51.100.20", wishes), network))
    assert options[121] == bytes.fromhex("20 0a000001 00000000" + "00 0a000001")
    assert 121 not in told(reply_to(renew("192.0.2.5", wishes), network))


def test_former_local_mode_is_left_behind() -> None:
    """The host was offline when the guest started, and has a network now."""
    local = GuestIPv4(IPv4Address("169.254.2.1"), 16, IPv4Address("169.254.2.2"))
    network = evolve(NETWORK, former=(Former(local, False),))
    assert told(reply_to(renew("169.254.2.1"), network))[53] == NAK
    reply = reply_to(ask("discover"), network)
    assert (reply[BOOTP].yiaddr, options_of(reply)["lease_time"]) == ("192.0.2.5", 86400)


def test_whole_conversation_across_a_change() -> None:
    """RENEWING, refused, starts again: what a client does of its own within ten minutes of the change."""
    before = evolve(NETWORK, ipv4=GONE)
    lease = reply_to(select("203.0.113.9", "203.0.113.1"), before)
    assert (told(lease)[53], options_of(lease)["renewal_time"]) == (ACK, 600)
    assert told(reply_to(renew("203.0.113.9"), before))[53] == ACK
    assert told(reply_to(renew("203.0.113.9"), MOVED))[53] == NAK
    offer = reply_to(ask("discover"), MOVED)
    lease = reply_to(select(offer[BOOTP].yiaddr, str(options_of(offer)["server_id"])), MOVED)
    assert (told(lease)[53], lease[BOOTP].yiaddr) == (ACK, "192.0.2.5")
