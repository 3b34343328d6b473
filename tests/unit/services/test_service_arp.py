from ipaddress import IPv4Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import GUEST_MAC_TEXT, HOST_MAC_TEXT, NETWORK, NO_NETWORK, dissect
from scapy.layers.l2 import ARP, Ether

from trio_passt.config import GuestIPv4
from trio_passt.services import arp
from trio_passt.wire.errors import MalformedPacket


def who_has(address: str, tell: str = "192.0.2.5", **fields: object) -> bytes:
    values = {"op": "who-has", "hwsrc": GUEST_MAC_TEXT, "psrc": tell, "pdst": address} | fields
    return bytes(ARP(**values))


@pytest.mark.parametrize("address", ["192.0.2.1", "192.0.2.77", "198.51.100.1", "169.254.169.254"])
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
        pytest.param(who_has("192.0.2.1", hwsrc="ff:ff:ff:ff:ff:ff"), id="from a group"),
        pytest.param(who_has("192.0.2.1", hwsrc=HOST_MAC_TEXT), id="from ourselves"),
    ],
)
def test_silence(request_: bytes) -> None:
    assert arp.answer(request_, NETWORK) is None


def test_a_probe_for_the_gateways_address_finds_it_taken() -> None:
    assert dissect(arp.answer(who_has("192.0.2.1", tell="0.0.0.0"), NETWORK))[ARP].psrc == "192.0.2.1"


def test_no_ipv4_no_answer() -> None:
    assert arp.answer(who_has("192.0.2.1"), NO_NETWORK) is None
    with pytest.raises(ValueError, match="IPv4"):
        arp.request(NO_NETWORK)


def test_request_for_the_guests_address() -> None:
    frame = arp.request(NETWORK)
    expected = Ether(dst="ff:ff:ff:ff:ff:ff", src=HOST_MAC_TEXT) / ARP(
        op=1, hwsrc=HOST_MAC_TEXT, psrc="192.0.2.1", hwdst="00:00:00:00:00:00", pdst="192.0.2.5"
    )
    assert frame == bytes(expected)


@pytest.mark.parametrize("gateway", ["0.0.0.0", "192.0.2.5"])
def test_without_a_gateway_another_address_asks(gateway: str) -> None:
    guest = GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address(gateway))
    network = evolve(NETWORK, ipv4=guest)
    assert dissect(arp.request(network))[ARP].psrc == "169.254.2.2"
    assert dissect(arp.answer(who_has("169.254.2.2"), network))[ARP].hwsrc == HOST_MAC_TEXT


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_bytes(data: bytes, with_head: bool) -> None:
    try:
        frame = arp.answer(who_has("192.0.2.1")[:8] + data if with_head else data, NETWORK)
    except MalformedPacket:
        return
    assert frame is None or dissect(frame)[ARP].op == 2
