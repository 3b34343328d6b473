from ipaddress import IPv4Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import GUEST_MAC_TEXT, HOST_MAC_TEXT, NETWORK, NO_NETWORK, dissect
from scapy.layers.l2 import ARP, Ether

from trio_passt.config import Former, GuestIPv4, HostAddress
from trio_passt.services import arp
from trio_passt.wire.errors import MalformedPacket


def who_has(address: str, tell: str = "192.0.2.5", **fields: object) -> bytes:
    values = {"op": "who-has", "hwsrc": GUEST_MAC_TEXT, "psrc": tell, "pdst": address} | fields
    return bytes(ARP(**values))


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "192.0.2.77", "198.51.100.1", "169.254.169.254", "240.0.0.1", "128.0.0.1"]
)
def test_the_host_has_every_address(address: str) -> None:
    reply = dissect(arp.answer(who_has(address), NETWORK))
    assert (reply.dst, reply.src, reply.type) == (GUEST_MAC_TEXT, HOST_MAC_TEXT, 0x0806)
    assert reply[ARP].op == 2
    assert (reply[ARP].hwsrc, reply[ARP].psrc) == (HOST_MAC_TEXT, address)
    assert (reply[ARP].hwdst, reply[ARP].pdst) == (GUEST_MAC_TEXT, "192.0.2.5")


def test_a_guest_with_another_address_is_answered() -> None:
    assert dissect(arp.answer(who_has("192.0.2.1", tell="192.0.2.99"), NETWORK))[ARP].pdst == "192.0.2.99"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(who_has("192.0.2.5"), id="its own address"),
        pytest.param(who_has("192.0.2.5", tell="0.0.0.0"), id="probe for its own address"),
        pytest.param(who_has("192.0.2.6", tell="0.0.0.0"), id="probe for an address it will take"),
        pytest.param(who_has("192.0.2.5", tell="192.0.2.5"), id="announcement"),
        pytest.param(who_has("192.0.2.6", tell="192.0.2.6"), id="announcement of another address"),
        pytest.param(who_has("192.0.2.1", op="is-at"), id="reply"),
        pytest.param(who_has("192.0.2.1", op=3), id="RARP"),
        pytest.param(who_has("224.0.0.1"), id="group"),
        pytest.param(who_has("255.255.255.255"), id="broadcast"),
        pytest.param(who_has("0.0.0.0"), id="no address"),
        pytest.param(who_has("0.0.0.1"), id="this network"),
        pytest.param(who_has("127.0.0.53"), id="loopback"),
        pytest.param(who_has("192.0.2.5", op="is-at", tell="192.0.2.5"), id="announcement by reply"),
        pytest.param(who_has("192.0.2.1", tell="192.0.2.1"), id="announcement of the gateway's address"),
        pytest.param(who_has("0.0.0.0", tell="0.0.0.0"), id="probe for no address"),
        pytest.param(who_has("192.0.2.1", tell="224.0.0.1"), id="from a group's address"),
        pytest.param(who_has("192.0.2.1", tell="255.255.255.255"), id="from the broadcast address"),
        pytest.param(who_has("192.0.2.1", tell="127.0.0.1"), id="from loopback"),
        pytest.param(who_has("192.0.2.1", hwsrc="ff:ff:ff:ff:ff:ff"), id="from a group"),
    ],
)
def test_silence(request_: bytes) -> None:
    assert arp.answer(request_, NETWORK) is None


def test_a_probe_for_the_gateways_address_finds_it_taken() -> None:
    assert dissect(arp.answer(who_has("192.0.2.1", tell="0.0.0.0"), NETWORK))[ARP].psrc == "192.0.2.1"


def test_a_probe_for_an_address_that_stands_for_the_host_finds_it_taken() -> None:
    mapped = evolve(NETWORK, host_addresses=(HostAddress(IPv4Address("192.0.2.77"), IPv4Address("127.0.0.1")),))
    probe = who_has("192.0.2.77", tell="0.0.0.0")
    assert dissect(arp.answer(probe, mapped))[ARP].psrc == "192.0.2.77"
    assert arp.answer(probe, NETWORK) is None


def test_the_reply_to_a_probe_says_who_is_asked_and_nobody_asks() -> None:
    reply = dissect(arp.answer(who_has("192.0.2.1", tell="0.0.0.0"), NETWORK))
    assert (reply.dst, reply[ARP].hwdst, reply[ARP].pdst) == (GUEST_MAC_TEXT, GUEST_MAC_TEXT, "0.0.0.0")


def test_the_reply_goes_to_the_mac_that_the_packet_names() -> None:
    reply = dissect(arp.answer(who_has("192.0.2.1", hwsrc="02:00:00:00:00:07"), NETWORK))
    assert (reply.dst, reply[ARP].hwdst) == ("02:00:00:00:00:07", "02:00:00:00:00:07")


def test_guest_that_has_our_mac_is_answered() -> None:
    """libvirt 9.0 runs passt with the guest's own MAC address as `--mac-addr`."""
    reply = dissect(arp.answer(who_has("192.0.2.1", hwsrc=HOST_MAC_TEXT), NETWORK))
    assert (reply.src, reply.dst, reply[ARP].hwdst) == (HOST_MAC_TEXT,) * 3


@pytest.mark.parametrize("target_mac", ["ff:ff:ff:ff:ff:ff", HOST_MAC_TEXT, "00:00:00:00:00:00"])
def test_the_target_mac_of_a_request_says_nothing(target_mac: str) -> None:
    """RFC 826 leaves it open; a kernel that verifies a neighbour sends the one it knows."""
    assert dissect(arp.answer(who_has("192.0.2.1", hwdst=target_mac), NETWORK))[ARP].op == 2


@pytest.mark.parametrize("fields", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}])
def test_other_than_ipv4_over_ethernet_is_malformed(fields: dict[str, int]) -> None:
    packet = who_has("192.0.2.1", **fields)
    for function in (lambda: arp.answer(packet, NETWORK), lambda: arp.sender(packet)):
        with pytest.raises(MalformedPacket):
            function()


def test_a_former_address_is_the_hosts() -> None:
    """Another on the link may have it: the guest reaches it through the host, as all others."""
    former = GuestIPv4(IPv4Address("192.0.2.9"), 24, IPv4Address("192.0.2.1"), "eth0")
    network = evolve(NETWORK, former=(Former(former, on_host=False),))
    assert dissect(arp.answer(who_has("192.0.2.9"), network))[ARP].psrc == "192.0.2.9"
    assert arp.answer(who_has("192.0.2.9", tell="0.0.0.0"), network) is None
    assert arp.answer(who_has("192.0.2.1", tell="192.0.2.9"), network) is not None


@pytest.mark.parametrize(
    ("packet", "address"),
    [
        pytest.param(who_has("192.0.2.1"), "192.0.2.5", id="request"),
        pytest.param(who_has("192.0.2.1", tell="10.1.2.3"), "10.1.2.3", id="request with another address"),
        pytest.param(who_has("192.0.2.1", op="is-at"), "192.0.2.5", id="reply"),
        pytest.param(who_has("10.1.2.3", tell="10.1.2.3"), "10.1.2.3", id="announcement"),
        pytest.param(who_has("10.1.2.3", op="is-at", tell="10.1.2.3"), "10.1.2.3", id="announcement by reply"),
        pytest.param(who_has("10.1.2.3", tell="0.0.0.0"), None, id="probe"),
        pytest.param(who_has("192.0.2.1", tell="224.0.0.1"), None, id="group"),
        pytest.param(who_has("192.0.2.1", tell="255.255.255.255"), None, id="broadcast"),
        pytest.param(who_has("192.0.2.1", tell="127.0.0.1"), None, id="loopback"),
        pytest.param(who_has("192.0.2.1", op=3), None, id="RARP"),
        pytest.param(who_has("192.0.2.1", hwsrc="ff:ff:ff:ff:ff:ff"), None, id="from a group"),
    ],
)
def test_whose_address_a_packet_tells(packet: bytes, address: str | None) -> None:
    assert arp.sender(packet) == (IPv4Address(address) if address else None)


def test_no_ipv4_no_answer() -> None:
    assert arp.answer(who_has("192.0.2.1"), NO_NETWORK) is None
    with pytest.raises(ValueError, match="IPv4"):
        arp.requests(NO_NETWORK)


def test_request_for_the_guests_address() -> None:
    (frame,) = arp.requests(NETWORK)
    expected = Ether(dst="ff:ff:ff:ff:ff:ff", src=HOST_MAC_TEXT) / ARP(
        op=1, hwsrc=HOST_MAC_TEXT, psrc="192.0.2.1", hwdst="00:00:00:00:00:00", pdst="192.0.2.5"
    )
    assert frame == bytes(expected)


@pytest.mark.parametrize("gateway", ["0.0.0.0", "192.0.2.5"])
def test_without_a_gateway_another_address_asks(gateway: str) -> None:
    guest = GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address(gateway))
    network = evolve(NETWORK, ipv4=guest)
    assert [dissect(frame)[ARP].psrc for frame in arp.requests(network)] == ["169.254.2.2"]
    assert dissect(arp.answer(who_has("169.254.2.2"), network))[ARP].hwsrc == HOST_MAC_TEXT


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_bytes(data: bytes, with_head: bool) -> None:
    check_answer(who_has("192.0.2.1")[:8] + data if with_head else data)


def test_truncation_and_lying_lengths() -> None:
    packet = who_has("192.0.2.1")
    for index in range(len(packet)):
        with pytest.raises(MalformedPacket):
            arp.answer(packet[:index], NETWORK)
        for value in (0, 1, 0xFF):
            check_answer(packet[:index] + bytes((value,)) + packet[index + 1 :])


def check_answer(packet: bytes) -> None:
    try:
        frame, sender = arp.answer(packet, NETWORK), arp.sender(packet)
    except MalformedPacket:
        return
    assert sender is None or not (sender.is_multicast or sender.is_unspecified)
    if frame is not None:
        reply = dissect(frame)
        assert (reply[ARP].op, reply[ARP].hwsrc) == (2, HOST_MAC_TEXT)
        assert sender is not None or reply[ARP].pdst == "0.0.0.0"
