from ipaddress import IPv6Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import (
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_MAC_TEXT,
    HOST_MAC_TEXT,
    LOCAL_MODE,
    NETWORK,
    NO_NETWORK,
    dissect,
)
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Reconf,
    DHCP6_RelayForward,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptRelayMsg,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from trio_passt.config import GuestIPv6, GuestNetwork, Resolvers
from trio_passt.services import dhcpv6
from trio_passt.wire import dhcpv6 as codec
from trio_passt.wire.errors import MalformedPacket

ADDRESS, OTHER, OFF_LINK = "2001:db8:1:2::5", "2001:db8:1:2::77", "2001:db8:9:9::1"
SERVER_DUID = dhcpv6.server_duid(NETWORK)
CLIENT = DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC_TEXT))
SERVER = DHCP6OptServerId(duid=DUID_LL(lladdr=HOST_MAC_TEXT))
OTHER_SERVER = DHCP6OptServerId(duid=DUID_LL(lladdr="02:00:00:00:00:09"))
SOURCE = IPv6Address(GUEST_LINK_LOCAL).packed
SUCCESS, NO_ADDRESSES, NOT_ON_LINK, NO_PREFIX = 0, 2, 4, 6


def ia_na(*addresses: str, iaid: int = 1) -> Packet:
    return DHCP6OptIA_NA(iaid=iaid, ianaopts=[DHCP6OptIAAddress(addr=address) for address in addresses])


def answer(message: Packet | bytes, network: GuestNetwork = NETWORK) -> bytes | None:
    return dhcpv6.answer(GUEST_MAC, SOURCE, bytes(message), network, dhcpv6.server_duid(network))


def reply_to(message: Packet, network: GuestNetwork = NETWORK, kind: type[Packet] = DHCP6_Reply) -> Packet:
    reply = dissect(answer(message, network))
    assert (reply.src, reply.dst) == (HOST_MAC_TEXT, GUEST_MAC_TEXT)
    assert (reply[IPv6].src, reply[IPv6].dst) == ("fe80::1", GUEST_LINK_LOCAL)
    assert (reply[UDP].sport, reply[UDP].dport) == (547, 546)
    assert isinstance(reply[UDP].payload, kind)
    assert reply[UDP].payload.trid == message.trid
    assert bytes(reply[DHCP6OptServerId].duid) == SERVER_DUID
    return reply[UDP].payload


def associations_of(reply: Packet) -> list[Packet]:
    """Every IA of a reply, in order; scapy nests the options of a packet."""
    kinds = (DHCP6OptIA_NA, DHCP6OptIA_TA, DHCP6OptIA_PD)
    return [layer for layer in layers_of(reply) if isinstance(layer, kinds)]


def layers_of(packet: Packet) -> list[Packet]:
    layers = []
    while packet:
        layers.append(packet)
        packet = packet.payload
    return layers


def check_bound(ia: Packet, iaid: int = 1) -> None:
    (address,) = ia.ianaopts
    assert (ia.iaid, address.addr) == (iaid, ADDRESS)
    assert 0 < ia.T1 < ia.T2 < address.preflft <= address.validlft


def check_parameters(reply: Packet) -> None:
    assert reply[DHCP6OptDNSServers].dnsservers == ["2001:db8::53", "2001:db8::54"]
    assert [name.rstrip(".") for name in reply[DHCP6OptDNSDomains].dnsdomains] == [
        "lab.example.com",
        "example.com",
    ]


def test_solicit_is_advertised_the_hosts_address() -> None:
    reply = reply_to(DHCP6_Solicit(trid=0x123456) / CLIENT / ia_na(), kind=DHCP6_Advertise)
    assert reply[DHCP6OptClientId].duid == CLIENT.duid
    assert reply[DHCP6OptPref].prefval == 255
    check_bound(reply[DHCP6OptIA_NA])
    check_parameters(reply)


def test_rapid_commit() -> None:
    reply = reply_to(DHCP6_Solicit(trid=1) / CLIENT / DHCP6OptRapidCommit() / ia_na())
    assert DHCP6OptRapidCommit in reply
    assert DHCP6OptPref not in reply
    check_bound(reply[DHCP6OptIA_NA])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(ADDRESS), id="request"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(OTHER), id="request of another"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(), id="request of any"),
        pytest.param(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(ADDRESS), id="renew"),
        pytest.param(DHCP6_Rebind(trid=2) / CLIENT / ia_na(ADDRESS), id="rebind"),
    ],
)
def test_the_hosts_address_is_assigned(message: Packet) -> None:
    reply = reply_to(message)
    assert reply[DHCP6OptClientId].duid == CLIENT.duid
    check_bound(reply[DHCP6OptIA_NA])
    check_parameters(reply)


def test_request_for_an_address_of_another_link() -> None:
    reply = reply_to(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(OFF_LINK))
    (status,) = reply[DHCP6OptIA_NA].ianaopts
    assert status.statuscode == NOT_ON_LINK


@pytest.mark.parametrize("message", [DHCP6_Renew(trid=2) / CLIENT / SERVER, DHCP6_Rebind(trid=2) / CLIENT])
def test_former_addresses_are_withdrawn(message: Packet) -> None:
    reply = reply_to(message / ia_na(OFF_LINK, OTHER, OTHER))
    addresses = {option.addr: option.validlft for option in reply[DHCP6OptIA_NA].ianaopts}
    assert addresses == {ADDRESS: dhcpv6.LEASE_S, OFF_LINK: 0, OTHER: 0}


@pytest.mark.parametrize(
    ("associations", "bound"),
    [
        ([ia_na(iaid=1), ia_na(iaid=2)], 1),
        ([ia_na(OTHER, iaid=1), ia_na(ADDRESS, iaid=2)], 2),
        ([ia_na(ADDRESS, iaid=1), ia_na(ADDRESS, iaid=2)], 1),
    ],
)
def test_of_several_associations_one_has_the_address(associations: list[Packet], bound: int) -> None:
    first, second = associations
    reply = reply_to(DHCP6_Renew(trid=2) / CLIENT / SERVER / first / second)
    seen = {ia.iaid: ia for ia in associations_of(reply)}
    check_bound_among = [option.addr for option in seen[bound].ianaopts if option.validlft]
    assert check_bound_among == [ADDRESS]
    (status,) = seen[3 - bound].ianaopts
    assert status.statuscode == NO_ADDRESSES


def test_temporary_addresses_and_prefixes_are_not_to_be_had() -> None:
    message = DHCP6_Solicit(trid=2) / CLIENT / DHCP6OptIA_TA(iaid=7) / DHCP6OptIA_PD(iaid=8) / ia_na(iaid=9)
    temporary, prefix, permanent = associations_of(reply_to(message, kind=DHCP6_Advertise))
    assert (temporary.iaid, temporary.iataopts[0].statuscode) == (7, NO_ADDRESSES)
    assert (prefix.iaid, prefix.iapdopt[0].statuscode) == (8, NO_PREFIX)
    check_bound(permanent, iaid=9)


@pytest.mark.parametrize(
    ("addresses", "status"),
    [([ADDRESS], SUCCESS), ([OTHER], SUCCESS), ([OFF_LINK], NOT_ON_LINK), ([ADDRESS, OFF_LINK], NOT_ON_LINK)],
)
def test_confirm(addresses: list[str], status: int) -> None:
    reply = reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(*addresses))
    assert reply[DHCP6OptStatusCode].statuscode == status
    assert not associations_of(reply)


def test_confirm_on_a_host_with_a_narrow_prefix_knows_the_announced_one() -> None:
    narrow = evolve(NETWORK, ipv6=GuestIPv6(IPv6Address(ADDRESS), 128, IPv6Address("fe80::1")))
    reply = reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(OTHER), narrow)
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS


@pytest.mark.parametrize("kind", [DHCP6_Release, DHCP6_Decline])
def test_release_and_decline_are_noted(kind: type[Packet]) -> None:
    reply = reply_to(kind(trid=4) / CLIENT / SERVER / ia_na(ADDRESS))
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS
    assert DHCP6OptClientId in reply


@pytest.mark.parametrize("identifiers", [[], [CLIENT], [SERVER], [CLIENT, SERVER]])
def test_information_request(identifiers: list[Packet]) -> None:
    message = DHCP6_InfoRequest(trid=5)
    for identifier in identifiers:
        message = message / identifier
    reply = reply_to(message / DHCP6OptOptReq(reqopts=[23, 24]))
    assert (DHCP6OptClientId in reply) == (CLIENT in identifiers)
    check_parameters(reply)
    assert not associations_of(reply)


@pytest.mark.parametrize("requested", [[], [23], [24], [24, 23, 23], [82, 31]])
def test_only_what_is_requested_is_told(requested: list[int]) -> None:
    reply = reply_to(DHCP6_InfoRequest(trid=5) / CLIENT / DHCP6OptOptReq(reqopts=requested))
    assert (DHCP6OptDNSServers in reply, DHCP6OptDNSDomains in reply) == (23 in requested, 24 in requested)


def test_nothing_to_tell() -> None:
    reply = reply_to(DHCP6_InfoRequest(trid=5) / CLIENT, evolve(NETWORK, resolvers=Resolvers()))
    assert [type(layer) for layer in layers_of(reply)] == [DHCP6_Reply, DHCP6OptClientId, DHCP6OptServerId]


def test_local_mode_has_no_addresses_to_assign() -> None:
    guest_address = str(LOCAL_MODE.ipv6.address) if LOCAL_MODE.ipv6 else ""
    message = DHCP6_Solicit(trid=6) / CLIENT / ia_na(guest_address)
    (status,) = reply_to(message, LOCAL_MODE, DHCP6_Advertise)[DHCP6OptIA_NA].ianaopts
    assert status.statuscode == NO_ADDRESSES


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(DHCP6_Solicit() / ia_na(), id="solicit without client"),
        pytest.param(DHCP6_Solicit() / CLIENT / SERVER / ia_na(), id="solicit with server"),
        pytest.param(DHCP6_Request() / CLIENT / ia_na(), id="request without server"),
        pytest.param(DHCP6_Request() / CLIENT / OTHER_SERVER / ia_na(), id="request of another server"),
        pytest.param(DHCP6_Request() / SERVER / ia_na(), id="request without client"),
        pytest.param(DHCP6_Renew() / CLIENT / OTHER_SERVER / ia_na(), id="renew at another server"),
        pytest.param(DHCP6_Rebind() / CLIENT / SERVER / ia_na(), id="rebind with server"),
        pytest.param(DHCP6_Confirm() / CLIENT / SERVER / ia_na(ADDRESS), id="confirm with server"),
        pytest.param(DHCP6_Confirm() / CLIENT / ia_na(), id="confirm of nothing"),
        pytest.param(DHCP6_Release() / CLIENT / ia_na(ADDRESS), id="release without server"),
        pytest.param(DHCP6_InfoRequest() / CLIENT / ia_na(), id="information request with IA"),
        pytest.param(DHCP6_InfoRequest() / OTHER_SERVER, id="information from another server"),
        pytest.param(DHCP6_Advertise() / CLIENT / SERVER, id="advertise"),
        pytest.param(DHCP6_Reply() / CLIENT / SERVER, id="reply"),
        pytest.param(DHCP6_Reconf() / CLIENT / SERVER, id="reconfigure"),
        pytest.param(
            DHCP6_RelayForward(linkaddr="::", peeraddr="fe80::9")
            / DHCP6OptRelayMsg(message=DHCP6_Solicit() / CLIENT / ia_na()),
            id="relayed",
        ),
        pytest.param(Raw(b"\x63\x00\x00\x00") / CLIENT, id="unknown type"),
    ],
)
def test_silence(message: Packet) -> None:
    assert answer(message) is None


@pytest.mark.parametrize("source", ["::", "ff02::1"])
def test_silence_towards_no_address(source: str) -> None:
    message = bytes(DHCP6_Solicit() / CLIENT / ia_na())
    assert dhcpv6.answer(GUEST_MAC, IPv6Address(source).packed, message, NETWORK, SERVER_DUID) is None


def test_no_ipv6_no_answer() -> None:
    assert answer(DHCP6_Solicit() / CLIENT / ia_na(), NO_NETWORK) is None


@pytest.mark.parametrize(
    "options",
    [
        b"\0\1\0\2ab",
        b"\0\1\0\0",
        b"\0\1\0\x83" + b"a" * 131,
        b"\0\1\0\4abcd" + b"\0\6\0\3\0\x17\0",
        b"\0\1\0\4abcd" + b"\0\3\0\4abcd",
        b"\0\1\0\4abcd" + b"\0\3\0\x12" + bytes(12) + b"\0\5\0\2ab",
        b"\0\1\xff\xffabcd",
    ],
)
def test_malformed_options(options: bytes) -> None:
    with pytest.raises(MalformedPacket):
        answer(b"\1\0\0\1" + options)


def test_reply_fits_the_smallest_mtu() -> None:
    many = Resolvers(
        ipv6=tuple(IPv6Address(0x20010DB8 << 96 | index) for index in range(100)),
        search=tuple(f"domain-{index}.example.com" for index in range(100)),
    )
    payload = bytes(DHCP6_Solicit(trid=1) / CLIENT)
    payload += b"".join(bytes(ia_na(OTHER, iaid=iaid)) for iaid in range(500))
    frame = answer(payload, evolve(NETWORK, resolvers=many))
    assert frame is not None
    assert len(frame) <= 14 + 1280
    check_bound(dissect(frame)[DHCP6OptIA_NA], iaid=0)
    withdrawn = bytes(DHCP6_Renew(trid=1) / CLIENT / SERVER)
    withdrawn += bytes(ia_na(*(f"2001:db8:9::{index:x}" for index in range(1000))))
    assert len(answer(withdrawn) or b"") <= 14 + 1280


def test_longest_client_duid_is_returned() -> None:
    duid = b"\0\2" + b"u" * 128
    frame = answer(b"\x01\0\0\7\0\1" + len(duid).to_bytes(2, "big") + duid + bytes(ia_na()))
    reply = codec.parse(bytes(dissect(frame)[UDP].payload))
    assert reply.option(codec.Dhcpv6OptionCode.CLIENT_IDENTIFIER) == duid


def test_server_duid_is_of_the_link_layer_address() -> None:
    assert DUID_LL(SERVER_DUID).lladdr == HOST_MAC_TEXT


def check_answer(payload: bytes) -> None:
    try:
        frame = answer(payload)
    except MalformedPacket:
        return
    if frame is not None:
        assert len(frame) <= 14 + 1280
        assert codec.parse(bytes(dissect(frame)[UDP].payload)).transaction_id == int.from_bytes(payload[1:4], "big")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 14),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 14, 25, 9]), st.binary(max_size=40)), max_size=5),
    st.binary(max_size=10),
)
def test_arbitrary_options(kind: int, server: bool, options: list[tuple[int, bytes]], tail: bytes) -> None:
    encoded = b"".join(code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for code, value in options)
    identifiers = bytes(CLIENT) + (bytes(SERVER) if server else b"")
    check_answer(bytes((kind, 1, 2, 3)) + identifiers + encoded + tail)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_arbitrary_bytes(payload: bytes) -> None:
    check_answer(payload)


def test_truncation_and_lying_lengths() -> None:
    payload = bytes(DHCP6_Request(trid=1) / CLIENT / SERVER / ia_na(ADDRESS) / DHCP6OptOptReq(reqopts=[23, 24]))
    for index in range(len(payload)):
        check_answer(payload[:index])
        for value in (0, 0xFF):
            check_answer(payload[:index] + bytes((value,)) + payload[index + 1 :])
