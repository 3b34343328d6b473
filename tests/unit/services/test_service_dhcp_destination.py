"""Where replies go (RFC 2131 section 4.1), and messages that came by a relay."""

from ipaddress import IPv4Address

import pytest
from attrs import evolve
from dhcp_setup import (
    BROADCAST_FLAG,
    BROADCAST_MAC,
    GATEWAY_OFF_LINK,
    MOVED,
    NAK,
    OFFER,
    answer,
    ask,
    reboot,
    renew,
    reply_to,
    select,
    told,
)
from link_setup import GUEST_MAC, GUEST_MAC_TEXT, NETWORK, dissect
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP, UDP

BRIDGED_MAC = bytes.fromhex("02000000bbbb")
BRIDGED_MAC_TEXT = "02:00:00:00:bb:bb"
RELAY = "192.0.2.9"

TO_ALL = (BROADCAST_MAC, "255.255.255.255")
TO_YIADDR = (GUEST_MAC_TEXT, "192.0.2.5")

DESTINATIONS = {
    "DISCOVER": (ask("discover"), TO_YIADDR),
    "DISCOVER, broadcast flag": (ask("discover", flags=BROADCAST_FLAG), TO_ALL),
    "DISCOVER with an address": (ask("discover", ciaddr="192.0.2.77"), (GUEST_MAC_TEXT, "192.0.2.77")),
    "rapid commit": (ask("discover", ("rapid_commit", b"")), TO_YIADDR),
    "rapid commit, broadcast flag": (ask("discover", ("rapid_commit", b""), flags=BROADCAST_FLAG), TO_ALL),
    "SELECTING": (select("192.0.2.5", "192.0.2.1"), TO_YIADDR),
    "SELECTING, broadcast flag": (select("192.0.2.5", "192.0.2.1", flags=BROADCAST_FLAG), TO_ALL),
    "INIT-REBOOT, broadcast flag": (reboot("192.0.2.5", flags=BROADCAST_FLAG), TO_ALL),
    "RENEWING": (renew("192.0.2.5"), TO_YIADDR),
    "RENEWING, broadcast flag": (renew("192.0.2.5", flags=BROADCAST_FLAG), TO_YIADDR),
    "refused": (reboot("192.0.2.6"), TO_ALL),
    "refused, with an address": (renew("10.0.2.15"), TO_ALL),
    "refused, SELECTING": (select("192.0.2.6", "192.0.2.1"), TO_ALL),
    "INFORM": (ask("inform", ciaddr="192.0.2.77"), (GUEST_MAC_TEXT, "192.0.2.77")),
    "INFORM, broadcast flag": (
        ask("inform", ciaddr="192.0.2.77", flags=BROADCAST_FLAG),
        (GUEST_MAC_TEXT, "192.0.2.77"),
    ),
    "INFORM from nowhere": (ask("inform"), TO_ALL),
    "BOOTP": (ask(None), TO_YIADDR),
    "BOOTP, broadcast flag": (ask(None, flags=BROADCAST_FLAG), TO_ALL),
    "BOOTP with an address": (ask(None, ciaddr="192.0.2.77"), (GUEST_MAC_TEXT, "192.0.2.77")),
}


@pytest.mark.parametrize(("payload", "destination"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_destination(payload: bytes, destination: tuple[str, str]) -> None:
    reply = reply_to(payload)
    assert (reply.dst, reply[IP].dst) == destination
    assert reply[IP].src == "192.0.2.1"
    assert reply[BOOTP].flags == BOOTP(payload).flags


def test_client_without_address_is_found_by_the_hardware_address_in_the_message() -> None:
    """One behind a bridge that puts its own address on frames (proxy ARP, Wi-Fi) reads it there, or nobody does."""
    reply = reply_to(ask("discover"), mac=BRIDGED_MAC)
    assert (reply.dst, reply[IP].dst) == TO_YIADDR
    assert reply_to(ask("discover", flags=BROADCAST_FLAG), mac=BRIDGED_MAC).dst == BROADCAST_MAC


@pytest.mark.parametrize(
    "payload", [renew("192.0.2.5"), ask("inform", ciaddr="192.0.2.77"), ask(None, ciaddr="192.0.2.77")]
)
def test_client_with_address_is_where_its_frame_came_from(payload: bytes) -> None:
    assert reply_to(payload, mac=BRIDGED_MAC).dst == BRIDGED_MAC_TEXT


RELAYED = {
    "DISCOVER": ask("discover", giaddr=RELAY, hops=1),
    "DISCOVER, broadcast flag": ask("discover", giaddr=RELAY, hops=1, flags=BROADCAST_FLAG),
    "SELECTING": select("192.0.2.5", "192.0.2.1", giaddr=RELAY, hops=3),
    "REBINDING": renew("192.0.2.5", giaddr=RELAY),
    "INFORM": ask("inform", ciaddr="192.0.2.77", giaddr=RELAY),
    "BOOTP": ask(None, giaddr=RELAY, hops=1),
}


@pytest.mark.parametrize("payload", RELAYED.values(), ids=RELAYED)
def test_relay_of_the_subnet_gets_the_reply(payload: bytes) -> None:
    reply = dissect(answer(payload, mac=BRIDGED_MAC))
    assert (reply.dst, reply[IP].dst, reply[UDP].sport, reply[UDP].dport) == (BRIDGED_MAC_TEXT, RELAY, 67, 67)
    assert (reply[BOOTP].giaddr, reply[BOOTP].hops, reply[BOOTP].flags) == (RELAY, 0, BOOTP(payload).flags)
    assert reply[BOOTP].chaddr[:6] == GUEST_MAC


@pytest.mark.parametrize("flags", [0, BROADCAST_FLAG])
def test_relay_is_to_broadcast_a_refusal(flags: int) -> None:
    reply = dissect(answer(reboot("192.0.2.6", giaddr=RELAY, flags=flags)))
    assert (reply[IP].dst, reply[UDP].dport, reply[BOOTP].flags) == (RELAY, 67, "B")
    assert told(reply)[53] == NAK


@pytest.mark.parametrize("kind", ["discover", "request", "inform", None])
def test_no_address_for_other_subnets(kind: str | None) -> None:
    assert answer(ask(kind, giaddr="198.51.100.9", ciaddr="192.0.2.5")) is None
    assert answer(ask(kind, giaddr="192.0.3.0", ciaddr="192.0.2.5")) is None


def test_relay_where_the_guest_is_alone_in_its_subnet() -> None:
    assert answer(ask("discover", giaddr="192.0.2.9"), GATEWAY_OFF_LINK) is None
    reply = dissect(answer(ask("discover", giaddr="192.0.2.5"), GATEWAY_OFF_LINK))
    assert (reply[IP].dst, told(reply)[53]) == ("192.0.2.5", OFFER)


def test_relay_of_a_former_subnet_is_too_late() -> None:
    assert answer(ask("discover", giaddr="198.51.100.9"), MOVED) is None


def test_replies_come_from_the_hosts_mac_address() -> None:
    network = evolve(NETWORK, host_mac=bytes.fromhex("02aabbccddee"))
    assert dissect(answer(ask("discover"), network)).src == "02:aa:bb:cc:dd:ee"
    assert IPv4Address(dissect(answer(ask("discover"), network))[IP].src) == IPv4Address("192.0.2.1")
