"""Each client's whole conversation: it gets its address, keeps it, comes back to it, and learns of a change."""

import pytest
from attrs import evolve
from dhcp_clients import CLIENTS, DUID_IDENTIFIER, MAC_IDENTIFIER, MACHINE, Client
from dhcp_setup import ACK, GATEWAY_OFF_LINK, GONE, NAK, OFFER, answer, ask, reply_to, told
from link_setup import NETWORK
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP
from scapy.packet import Packet

from trio_passt.config import Former, GuestNetwork, NetworkBoot

ADDRESS = bytes((192, 0, 2, 5))
SERVER = bytes((192, 0, 2, 1))
LEASE_OPTIONS = {53, 54, 51, 58, 59}
IDENTIFIERS = {61, 97}
TELLS = evolve(NETWORK, hostname="guest", fqdn="guest.lab.example.com", boot=NetworkBoot("ipxe.efi", "boot"))
KNOWN = {1, 3, 6, 12, 15, 26, 66, 67, 81, 119}
OFF_LINK = evolve(TELLS, ipv4=GATEWAY_OFF_LINK.ipv4)


def checked(client: Client, reply: Packet, kind: bytes, known: set[int]) -> Packet:
    """The reply has what the client needs, what it asked for as far as it is known, in its order, and no more."""
    options = told(reply)
    assert options[53] == kind
    assert reply[IP].len <= client.takes_bytes
    own = dict(client.always)
    for code in IDENTIFIERS & own.keys():
        assert options[code] == own[code]
    expected = [code for code in dict.fromkeys(client.requested or ()) if code in known]
    if 81 in own and 81 not in expected:
        expected.append(81)
    rest = [code for code in options if code not in LEASE_OPTIONS | IDENTIFIERS | {80}]
    if client.requested is None:
        assert set(rest) == known - {66, 67, 81, 249}
    else:
        assert rest == expected
    return reply


def starts(client: Client, network: GuestNetwork, known: set[int] = KNOWN) -> Packet:
    """DISCOVER, OFFER, REQUEST, ACK; or only the first and the last of them."""
    reply = reply_to(client.says("discover"), network)
    if client.rapid:
        assert told(reply)[80] == b""
        return checked(client, reply, ACK, known)
    offer = checked(client, reply, OFFER, known)
    server = told(offer)[54]
    address = bytes(map(int, offer[BOOTP].yiaddr.split(".")))
    request = client.says("request", (50, address), (54, server))
    lease = checked(client, reply_to(request, network), ACK, known)
    assert lease[BOOTP].yiaddr == offer[BOOTP].yiaddr
    assert {code: value for code, value in told(lease).items() if code != 53} == {
        code: value for code, value in told(offer).items() if code != 53
    }, "an ACK says what the OFFER said (RFC 2131 section 4.3.1)"
    return lease


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    assert isinstance(request.param, Client)
    return request.param


def test_conversation(client: Client) -> None:
    lease = starts(client, TELLS)
    assert (lease[BOOTP].yiaddr, lease[BOOTP].siaddr) == ("192.0.2.5", "192.0.2.1")
    assert lease[BOOTP].file.rstrip(b"\0") == b"ipxe.efi"
    for flags in (client.flags, 0):  # RENEWING, then REBINDING
        renewed = checked(client, reply_to(client.says("request", ciaddr="192.0.2.5", flags=flags), TELLS), ACK, KNOWN)
        assert (renewed[BOOTP].yiaddr, renewed[IP].dst) == ("192.0.2.5", "192.0.2.5")
    again = checked(client, reply_to(client.says("request", (50, ADDRESS)), TELLS), ACK, KNOWN)
    assert again[BOOTP].yiaddr == "192.0.2.5"
    informed = reply_to(client.says("inform", ciaddr="192.0.2.5"), TELLS)
    assert (informed[BOOTP].yiaddr, told(informed)[53]) == ("0.0.0.0", ACK)
    assert not {51, 58, 59} & told(informed).keys()
    assert answer(client.says("decline", (50, ADDRESS), (54, SERVER)), TELLS) is None
    assert answer(client.says("release", (54, SERVER), ciaddr="192.0.2.5"), TELLS) is None


def test_gateway_off_link(client: Client) -> None:
    starts(client, OFF_LINK, KNOWN | {121, 249})


def test_change_of_the_hosts_network(client: Client) -> None:
    before = evolve(TELLS, ipv4=GONE)
    after = evolve(TELLS, former=(Former(GONE, False),))
    lease = starts(client, before)
    assert lease[BOOTP].yiaddr == "203.0.113.9"
    refused = reply_to(client.says("request", ciaddr="203.0.113.9"), after)
    assert (told(refused)[53], told(refused)[54]) == (NAK, told(lease)[54])
    assert starts(client, after)[BOOTP].yiaddr == "192.0.2.5"


def test_change_after_which_the_host_has_its_former_address_too(client: Client) -> None:
    before = evolve(TELLS, ipv4=GONE)
    after = evolve(TELLS, former=(Former(GONE, True),))
    lease = starts(client, before)
    renewed = checked(client, reply_to(client.says("request", ciaddr="203.0.113.9"), after), ACK, KNOWN)
    assert renewed[BOOTP].yiaddr == "203.0.113.9"
    assert [told(renewed).get(code) for code in (54, 1, 3)] == [told(lease).get(code) for code in (54, 1, 3)]


def test_small_link(client: Client) -> None:
    """With an MTU of 328 and less nothing is lost of what takes a client online, whatever it asks for."""
    for mtu_bytes in (68, 328):
        reply = reply_to(client.says("discover"), evolve(TELLS, mtu_bytes=mtu_bytes))
        needed = {1, 3, 6, 26} & {*(client.requested or (1, 3, 6, 26))}
        assert told(reply).keys() >= LEASE_OPTIONS | needed
        assert reply[IP].len <= 328


def test_kernel_with_ip_bootp() -> None:
    """It sends the options that it wants, empty, and no message type."""
    wishes = [(1, bytes(4)), (3, bytes(4)), (5, bytes(8)), (12, bytes(32)), (40, bytes(40)), (17, bytes(40))]
    payload = ask(None, *wishes, (57, b"\x01\x96")).ljust(548, b"\0")
    reply = reply_to(payload, TELLS)
    assert (reply[BOOTP].yiaddr, reply[BOOTP].siaddr, len(reply[BOOTP])) == ("192.0.2.5", "192.0.2.1", 300)
    assert list(told(reply)) == [1, 3, 6, 26, 12, 15]


def test_initramfs_then_system() -> None:
    """Two clients of one guest, each by its own identifier: both get the one address."""
    for identifier in (MAC_IDENTIFIER, DUID_IDENTIFIER, (97, MACHINE)):
        reply = reply_to(ask("request", (50, ADDRESS), (54, SERVER), identifier))
        assert (reply[BOOTP].yiaddr, told(reply)[53], told(reply)[identifier[0]]) == ("192.0.2.5", ACK, identifier[1])
