"""What is learned about the guest, and what is not."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address

import pytest
from attrs import evolve
from harness.stage import V4, V6, network

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork, HostAddress
from trio_passt.flow.guest import Guest
from trio_passt.wire.ipv6 import is_link_local

MAC = bytes.fromhex("525400123456")


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.fixture
def learner() -> Guest:
    return Guest(network())


def test_mac_is_unknown_until_the_guest_speaks(learner: Guest) -> None:
    assert (learner.is_known, learner.mac) == (False, b"\xff" * 6)
    learner.learn_mac(MAC)
    assert (learner.is_known, learner.mac) == (True, MAC)


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001", "333300000001", "000000000000"])
def test_mac_that_is_nobodys(learner: Guest, mac: str) -> None:
    learner.learn_mac(bytes.fromhex(mac))
    assert not learner.is_known


def test_other_guest_with_another_mac(learner: Guest) -> None:
    learner.learn_mac(MAC)
    learner.learn_mac(MAC[:-1] + b"\x57")
    assert learner.mac == MAC[:-1] + b"\x57"


def test_assigned_addresses_until_others_are_seen(learner: Guest) -> None:
    assert learner.address_towards(packed("192.0.2.9")) == packed(V4.guest)
    assert learner.address_towards(packed("2001:db8::9")) == packed(V6.guest)
    learner.learn_address(packed("198.51.100.99"))
    learner.learn_address(packed("2001:db8:1:2::99"))
    assert learner.address_towards(packed("192.0.2.9")) == packed("198.51.100.99")
    assert learner.address_towards(packed("2001:db8::9")) == packed("2001:db8:1:2::99")


def test_link_local_and_global_addresses_are_learned_apart(learner: Guest) -> None:
    assert learner.address_towards(packed("fe80::7")) == packed(V6.guest)
    learner.learn_address(packed("fe80::5054:ff:fe12:3456"))
    assert learner.address_towards(packed("fe80::7")) == packed("fe80::5054:ff:fe12:3456")
    assert learner.address_towards(packed("2001:db8::9")) == packed(V6.guest)


def test_address_that_it_is_about_to_take_is_its_own_until_it_speaks_from_another(learner: Guest) -> None:
    learner.learn_claim(packed("fe80::5054:ff:fe12:3456"))
    learner.learn_claim(packed("2001:db8:1:2::77"))
    assert learner.address_towards(packed("fe80::7")) == packed("fe80::5054:ff:fe12:3456")
    assert learner.address_towards(packed("2001:db8::9")) == packed("2001:db8:1:2::77")
    learner.learn_claim(packed("2001:db8:1:2::78"))
    assert learner.address_towards(packed("2001:db8::9")) == packed("2001:db8:1:2::77")
    learner.learn_address(packed("2001:db8:1:2::79"))
    learner.learn_claim(packed("2001:db8:1:2::80"))
    assert learner.address_towards(packed("2001:db8::9")) == packed("2001:db8:1:2::79")


def test_claim_to_the_gateways_address_teaches_nothing(learner: Guest) -> None:
    learner.learn_claim(packed(V6.gateway))
    assert learner.address_towards(packed("fe80::7")) == packed(V6.guest)


@pytest.mark.parametrize(
    "address", [V4.gateway, "0.0.0.0", "127.0.0.1", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
)
def test_ipv4_addresses_that_teach_nothing(learner: Guest, address: str) -> None:
    learner.learn_address(packed(address))
    assert learner.address_towards(packed("192.0.2.9")) == packed(V4.guest)


@pytest.mark.parametrize("address", [V6.gateway, "::", "::1", "ff02::1"])
def test_ipv6_addresses_that_teach_nothing(learner: Guest, address: str) -> None:
    learner.learn_address(packed(address))
    assert learner.address_towards(packed("2001:db8::9")) == packed(V6.guest)
    assert learner.address_towards(packed("fe80::7")) == packed(V6.guest)


def test_addresses_that_stand_for_the_host_teach_nothing() -> None:
    seen = {"203.0.113.77": "127.0.0.1", "2001:db8::77": "::1"}
    mapped = tuple(HostAddress(ip_address(address), ip_address(on_host)) for address, on_host in seen.items())
    learner = Guest(evolve(network(), host_addresses=mapped))
    for address in seen:
        learner.learn_address(packed(address))
    assert learner.address_towards(packed("192.0.2.9")) == packed(V4.guest)
    assert learner.address_towards(packed("2001:db8::9")) == packed(V6.guest)


def test_each_of_its_own_addresses_can_be_learned() -> None:
    """Also one that was the gateway's before the host's network changed."""
    told = network()
    assert told.ipv4 is not None
    learner = Guest(told)
    learner.assign(
        evolve(
            told,
            ipv4=GuestIPv4(
                IPv4Address("203.0.113.7"), 24, IPv4Address("203.0.113.1"), others=(IPv4Interface(V4.gateway),)
            ),
        )
    )
    learner.learn_address(packed(V4.gateway))
    assert learner.address_towards(packed("192.0.2.9")) == packed(V4.gateway)


def test_family_that_is_off() -> None:
    only_v4, only_v6 = Guest(network(ipv6=False)), Guest(network(ipv4=False))
    assert only_v4.address_towards(packed("2001:db8::9")) is None
    assert only_v6.address_towards(packed("192.0.2.9")) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("2001:db8::1", False), ("254.128.0.0", False)],
)
def test_is_link_local(address: str, expected: bool) -> None:
    assert is_link_local(packed(address)) is expected


class TestAssigned:
    """The host's network changes, and with it what the guest is offered."""

    NEW = GuestNetwork(
        GuestIPv4(IPv4Address("203.0.113.7"), 24, IPv4Address("203.0.113.1")),
        GuestIPv6(IPv6Address("2001:db8:7::7"), 64, IPv6Address("fe80::7")),
    )

    def addresses(self, guest: Guest) -> tuple[bytes | None, bytes | None]:
        """Where packets from elsewhere are sent to."""
        return guest.address_towards(packed("192.0.2.9")), guest.address_towards(packed("2001:db8::9"))

    def test_guest_that_has_not_spoken_is_where_it_is_told_to_be(self, learner: Guest) -> None:
        learner.assign(self.NEW)
        assert self.addresses(learner) == (packed("203.0.113.7"), packed("2001:db8:7::7"))

    def test_guest_that_has_spoken_keeps_what_it_has_until_it_uses_another(self, learner: Guest) -> None:
        learner.learn_mac(MAC)
        learner.learn_address(packed("fe80::5054:ff:fe12:3456"))
        learner.assign(self.NEW)
        assert self.addresses(learner) == (packed(V4.guest), packed(V6.guest))
        assert learner.address_towards(packed("fe80::7")) == packed("fe80::5054:ff:fe12:3456")
        learner.learn_address(packed("203.0.113.7"))
        assert self.addresses(learner) == (packed("203.0.113.7"), packed(V6.guest))
        learner.learn_address(packed("2001:db8:7::7"))
        assert self.addresses(learner) == (packed("203.0.113.7"), packed("2001:db8:7::7"))

    def test_and_so_does_one_with_an_address_of_its_own_choice(self, learner: Guest) -> None:
        learner.learn_mac(MAC)
        learner.learn_address(packed("198.51.100.99"))
        learner.assign(self.NEW)
        assert self.addresses(learner)[0] == packed("198.51.100.99")

    @pytest.mark.parametrize("ipv4", [True, False])
    def test_family_that_is_new(self, ipv4: bool) -> None:
        guest = Guest(network(ipv4=ipv4, ipv6=not ipv4))
        guest.learn_mac(MAC)
        guest.assign(evolve(self.NEW, ipv4=None, ipv6=None))
        assert self.addresses(guest) == ((packed(V4.guest), None) if ipv4 else (None, packed(V6.guest)))
        guest.assign(self.NEW)
        assert self.addresses(guest) == (
            (packed(V4.guest), packed("2001:db8:7::7")) if ipv4 else (packed("203.0.113.7"), packed(V6.guest))
        )

    @pytest.mark.parametrize("gateway", [V4.gateway, V6.gateway, "203.0.113.1", "fe80::7"])
    def test_gateways_of_before_and_of_now_are_ours(self, learner: Guest, gateway: str) -> None:
        learner.learn_mac(MAC)
        learner.assign(self.NEW)
        learner.learn_address(packed(gateway))
        assert self.addresses(learner) == (packed(V4.guest), packed(V6.guest))
        assert learner.address_towards(packed("fe80::9")) == packed(V6.guest)


def test_addresses_that_are_known() -> None:
    learner = Guest(network(ipv6=False))
    assert learner.addresses == [packed(V4.guest)]
    learner.learn_address(packed("fe80::7"))
    learner.learn_address(packed("203.0.113.7"))
    assert learner.addresses == [packed("203.0.113.7"), packed("fe80::7")]
    assert len(Guest(network()).addresses) == 2
