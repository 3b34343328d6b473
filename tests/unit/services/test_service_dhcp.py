"""What is said to which message (RFC 2131 section 4.3)."""

import logging
from ipaddress import IPv4Address

import pytest
from attrs import evolve
from dhcp_setup import ACK, ROUTES, answer, ask, options_of, reboot, renew, reply_to, select, told
from link_setup import GUEST_MAC, GUEST_MAC_TEXT, LOCAL_MODE, NETWORK, NO_NETWORK, dissect
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP

from trio_passt.config import GuestIPv4, NetworkBoot
from trio_passt.services import dhcp
from trio_passt.wire import domain
from trio_passt.wire.dhcp import MAGIC_COOKIE
from trio_passt.wire.errors import MalformedPacket

MANY_NAMES = tuple(f"{'x' * 20}-{index}.example{index}.com" for index in range(6))


def test_discover_is_offered_the_hosts_address() -> None:
    reply = reply_to(ask("discover"))
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr, reply[BOOTP].siaddr) == ("192.0.2.5", "0.0.0.0", "0.0.0.0")
    assert (reply[IP].src, reply[IP].dst, reply.dst) == ("192.0.2.1", "192.0.2.5", GUEST_MAC_TEXT)
    assert (reply[BOOTP].sname, reply[BOOTP].file) == (bytes(64), bytes(128))
    assert options_of(reply) == {
        "message-type": 2,
        "server_id": "192.0.2.1",
        "lease_time": 86400,
        "renewal_time": 600,
        "rebinding_time": 75600,
        "subnet_mask": "255.255.255.0",
        "router": "192.0.2.1",
        "name_server": ["192.0.2.53", "192.0.2.54"],
        "interface-mtu": 65520,
        "domain": b"lab.example.com",
        119: domain.emit_compressed(NETWORK.resolvers.search),
    }


REQUESTS = {
    "SELECTING": select("192.0.2.5", "192.0.2.1"),
    "INIT-REBOOT": reboot("192.0.2.5"),
    "RENEWING or REBINDING": renew("192.0.2.5"),
}


@pytest.mark.parametrize("payload", REQUESTS.values(), ids=REQUESTS)
def test_request_for_the_hosts_address_is_acknowledged(payload: bytes) -> None:
    reply = reply_to(payload)
    assert (reply[BOOTP].yiaddr, reply[IP].dst) == ("192.0.2.5", "192.0.2.5")
    assert reply[BOOTP].ciaddr == BOOTP(payload).ciaddr
    offered = options_of(reply_to(ask("discover")))
    assert options_of(reply) == offered | {"message-type": 5}


@pytest.mark.parametrize("payload", [select("192.0.2.6", "192.0.2.1"), reboot("10.0.2.15"), renew("10.0.2.15")])
def test_request_for_another_address_is_refused_by_broadcast(payload: bytes) -> None:
    reply = reply_to(payload)
    assert (reply.dst, reply[IP].dst, reply[BOOTP].flags) == ("ff:ff:ff:ff:ff:ff", "255.255.255.255", 0)
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr, reply[BOOTP].siaddr) == ("0.0.0.0",) * 3
    assert list(options_of(reply)) == ["message-type", "server_id", "error_message"]
    assert options_of(reply)["message-type"] == 6


def test_refusal_says_nothing_of_names_and_boot() -> None:
    network = evolve(NETWORK, hostname="guest", fqdn="guest.example.com", boot=NetworkBoot("ipxe.efi", "boot"))
    refused = reply_to(
        ask("request", (81, b"\x05\0\0"), ("param_req_list", [12, 66, 67, 81]), ciaddr="10.0.2.15"), network
    )
    assert list(told(refused)) == [53, 54, 56]
    assert (refused[BOOTP].siaddr, refused[BOOTP].file, refused[BOOTP].sname) == ("0.0.0.0", bytes(128), bytes(64))


def test_rapid_commit() -> None:
    reply = reply_to(ask("discover", ("rapid_commit", b"")))
    assert (told(reply)[53], reply[BOOTP].yiaddr) == (ACK, "192.0.2.5")
    assert told(reply)[80] == b""
    assert 80 not in told(reply_to(ask("discover")))
    assert 80 not in told(reply_to(renew("192.0.2.5", ("rapid_commit", b""))))


def test_inform_is_told_parameters_and_no_lease() -> None:
    reply = reply_to(ask("inform", ciaddr="192.0.2.77"))
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "192.0.2.77")
    assert told(reply)[53] == ACK
    assert options_of(reply)["router"] == "192.0.2.1"
    assert not {51, 58, 59} & set(told(reply))


def test_inform_is_told_names_if_it_asks() -> None:
    network = evolve(NETWORK, hostname="guest", fqdn="guest.example.com")
    asked = ask("inform", ("param_req_list", [81, 12]), ciaddr="192.0.2.77")
    assert list(told(reply_to(asked, network))) == [53, 54, 81, 12]


def test_client_identifier_is_returned() -> None:
    """RFC 6842: in each reply, as it came."""
    identifier = ("client_id", b"\x01" + GUEST_MAC)
    for payload in (
        ask("discover", identifier),
        reboot("192.0.2.5", identifier),
        reboot("192.0.2.6", identifier),
        ask("inform", identifier, ciaddr="192.0.2.77"),
    ):
        assert told(reply_to(payload))[61] == b"\x01" + GUEST_MAC


def test_what_a_discover_must_not_say_means_nothing() -> None:
    """RFC 2131 table 5: an address it would like (SHOULD), a server (MUST NOT), a lease's length."""
    wishes = [("requested_addr", "10.0.2.15"), ("server_id", "10.0.2.2"), ("lease_time", 7776000)]
    assert bytes(reply_to(ask("discover", *wishes))) == bytes(reply_to(ask("discover")))
    assert told(reply_to(ask("discover", (50, b"abc"), (54, b""), (51, b"\x01"))))[53] == b"\x02"


@pytest.mark.parametrize("wish_s", [0, 1, 60, 3600, 0xFFFFFFFF])
def test_lease_is_as_long_as_the_server_says(wish_s: int) -> None:
    reply = reply_to(renew("192.0.2.5", ("lease_time", wish_s)))
    assert options_of(reply)["lease_time"] == 86400


SILENCE = {
    "reply": ask("discover", op=2),
    "InfiniBand": ask("discover", htype=32),
    "long hardware address": ask("discover", hlen=8),
    "no hardware address": ask("discover", hlen=0),
    "hardware address of a group": ask("discover", chaddr=b"\xff" * 6),
    "request for nothing": ask("request"),
    "another server's offer": select("192.0.2.5", "192.0.2.9"),
    "another server's offer, another address": select("192.0.2.6", "192.0.2.9"),
    "server of the wrong length": ask("request", (54, b"\xc0\x00\x02"), (50, bytes((192, 0, 2, 5)))),
    "DECLINE": ask("decline", ("server_id", "192.0.2.1"), ("requested_addr", "192.0.2.5")),
    "RELEASE": ask("release", ("server_id", "192.0.2.1"), ciaddr="192.0.2.5"),
    "OFFER": ask("offer"),
    "ACK": ask("ack"),
    "NAK": ask("nak"),
    "LEASEQUERY": ask(13),
    "type 0": ask(0),
}


@pytest.mark.parametrize("payload", SILENCE.values(), ids=SILENCE)
def test_silence(payload: bytes) -> None:
    assert answer(payload) is None


def test_decline_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "trio_passt"):
        assert answer(SILENCE["DECLINE"]) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the guest declines its address: it is in use, it says"
    ]


def test_after_a_release_all_is_as_before() -> None:
    assert answer(SILENCE["RELEASE"]) is None
    assert options_of(reply_to(select("192.0.2.5", "192.0.2.1")))["message-type"] == 5


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(b"\x35\x00", id="no message type"),
        pytest.param(b"\x35\x02\x01\x01", id="long message type"),
        pytest.param(b"\x35\x01\x01\x35\x01\x03", id="two message types"),
        pytest.param(b"\x35\x01\x03\x32\x03abc", id="short requested address"),
        pytest.param(b"\x35\x01\x01\x39\x01\x05", id="short maximum size"),
        pytest.param(b"\x35\x01\x01\x0c\x05ab", id="option beyond the end"),
    ],
)
def test_options_of_the_wrong_length_are_malformed(options: bytes) -> None:
    head = bytes(BOOTP(op=1, chaddr=GUEST_MAC))[:236] + MAGIC_COOKIE
    with pytest.raises(MalformedPacket):
        answer(head + options + b"\xff")


def test_gateway_off_link_is_the_router_all_the_same() -> None:
    network = evolve(NETWORK, ipv4=GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address("10.0.0.1")))
    reply = reply_to(ask("discover"), network)
    assert options_of(reply)["subnet_mask"] == "255.255.255.255"
    assert options_of(reply)["router"] == options_of(reply)["server_id"] == reply[IP].src == "10.0.0.1"
    assert told(reply)[121] == ROUTES


@pytest.mark.parametrize("gateway", ["0.0.0.0", "192.0.2.5"])
def test_without_a_gateway_a_link_local_one_stands_in(gateway: str) -> None:
    guest = GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address(gateway))
    reply = reply_to(ask("discover"), evolve(NETWORK, ipv4=guest))
    assert reply[IP].src == options_of(reply)["server_id"] == options_of(reply)["router"] == "169.254.2.2"
    assert 121 in told(reply)


def test_local_mode_gives_what_there_is_and_not_for_long() -> None:
    reply = reply_to(ask("discover"), LOCAL_MODE)
    assert reply[BOOTP].yiaddr == "169.254.2.1"
    assert list(told(reply)) == [53, 54, 51, 58, 59, 1, 3, 26]
    assert options_of(reply)["router"] == "169.254.2.2"
    times = [options_of(reply)[name] for name in ("lease_time", "renewal_time", "rebinding_time")]
    assert times == [120, 30, 105]


def test_no_ipv4_no_answer() -> None:
    assert answer(ask("discover"), NO_NETWORK) is None


def test_acknowledged_address() -> None:
    def acknowledged(payload: bytes) -> IPv4Address | None:
        frame = answer(payload)
        assert frame is not None
        return dhcp.acknowledged_address(frame)

    for payload in (*REQUESTS.values(), ask("discover", ("rapid_commit", b"")), ask(None)):
        assert acknowledged(payload) == IPv4Address("192.0.2.5")
    for payload in (
        ask("discover"),
        reboot("192.0.2.6"),
        ask("inform", ciaddr="192.0.2.5"),
        ask(None, ciaddr="192.0.2.5"),
    ):
        assert acknowledged(payload) is None
    relayed = answer(reboot("192.0.2.5", giaddr="192.0.2.9"))
    assert relayed is not None
    assert dhcp.acknowledged_address(relayed) == IPv4Address("192.0.2.5")
    assert dissect(relayed)[IP].dst == "192.0.2.9"
