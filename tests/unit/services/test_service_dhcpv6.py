from ipaddress import IPv6Address

import pytest
from attrs import evolve
from dhcpv6_client import (
    ADDRESS,
    CLIENT,
    NO_ADDRESSES,
    NO_BINDING,
    NO_PREFIX,
    NOT_ON_LINK,
    OFF_LINK,
    OTHER,
    OTHER_SERVER,
    SERVER,
    SERVER_DUID,
    SUCCESS,
    USE_MULTICAST,
    answer,
    associations_of,
    check_bound,
    check_parameters,
    contents_of,
    ia_na,
    ia_ta,
    layers_of,
    lifetimes_of,
    reply_to,
)
from link_setup import GUEST_MAC, HOST_MAC_TEXT, LOCAL_MODE, NETWORK, NO_NETWORK, dissect
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Reconf,
    DHCP6_RelayForward,
    DHCP6_RelayReply,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
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
from scapy.packet import Packet, Raw

from trio_passt.config import GuestIPv6, Resolvers
from trio_passt.services import dhcpv6
from trio_passt.wire import dhcpv6 as codec
from trio_passt.wire.errors import MalformedPacket


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


def test_nothing_is_not_committed() -> None:
    message = DHCP6_Solicit(trid=1) / CLIENT / DHCP6OptRapidCommit() / DHCP6OptIA_PD(iaid=3)
    reply = reply_to(message, kind=DHCP6_Advertise)
    assert DHCP6OptRapidCommit not in reply
    assert DHCP6OptPref not in reply
    assert contents_of(reply)[3][0].statuscode == NO_PREFIX


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(ADDRESS), id="request"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(OTHER), id="request of another"),
        pytest.param(DHCP6_Request(trid=2) / CLIENT / SERVER / ia_na(), id="request of any"),
        pytest.param(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(ADDRESS), id="renew"),
        pytest.param(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(), id="renew of what has no address yet"),
        pytest.param(DHCP6_Rebind(trid=2) / CLIENT / ia_na(ADDRESS), id="rebind"),
    ],
)
def test_the_hosts_address_is_assigned(message: Packet) -> None:
    reply = reply_to(message)
    assert reply[DHCP6OptClientId].duid == CLIENT.duid
    check_bound(reply[DHCP6OptIA_NA])
    check_parameters(reply)


@pytest.mark.parametrize("association", [ia_na(OFF_LINK), ia_na(ADDRESS, OFF_LINK), ia_ta(OFF_LINK)])
def test_request_for_an_address_of_another_link(association: Packet) -> None:
    ((status,),) = contents_of(reply_to(DHCP6_Request(trid=2) / CLIENT / SERVER / association)).values()
    assert status.statuscode == NOT_ON_LINK


@pytest.mark.parametrize("message", [DHCP6_Renew(trid=2) / CLIENT / SERVER, DHCP6_Rebind(trid=2) / CLIENT])
def test_addresses_that_are_not_the_guests_are_withdrawn(message: Packet) -> None:
    lifetimes = lifetimes_of(reply_to(message / ia_na(OFF_LINK, OTHER, OTHER)))
    assert lifetimes == {ADDRESS: (86400, 86400), OFF_LINK: (0, 0), OTHER: (0, 0)}


@pytest.mark.parametrize(
    ("associations", "bound"),
    [
        ([ia_na(iaid=1), ia_na(iaid=2)], 1),
        ([ia_na(iaid=1), ia_na(ADDRESS, iaid=2)], 2),
        ([ia_na(ADDRESS, iaid=1), ia_na(ADDRESS, iaid=2)], 1),
        ([ia_ta(ADDRESS, iaid=1), ia_na(iaid=2)], 2),
    ],
)
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (DHCP6_Solicit(trid=2) / CLIENT, DHCP6_Advertise),
        (DHCP6_Solicit(trid=2) / CLIENT / DHCP6OptRapidCommit(), DHCP6_Reply),
        (DHCP6_Request(trid=2) / CLIENT / SERVER, DHCP6_Reply),
        (DHCP6_Renew(trid=2) / CLIENT / SERVER, DHCP6_Reply),
        (DHCP6_Rebind(trid=2) / CLIENT, DHCP6_Reply),
    ],
)
def test_of_several_associations_one_has_the_address(
    head: Packet, kind: type[Packet], associations: list[Packet], bound: int
) -> None:
    first, second = associations
    reply = reply_to(head / first / second, kind=kind)
    check_bound(associations_of(reply)[0], iaid=bound)
    (status,) = contents_of(reply)[3 - bound]
    assert status.statuscode == NO_ADDRESSES


def test_addresses_in_another_association_are_withdrawn() -> None:
    reply = reply_to(DHCP6_Renew(trid=2) / CLIENT / SERVER / ia_na(OTHER, iaid=1) / ia_na(ADDRESS, iaid=2))
    assert lifetimes_of(reply, 1) == {OTHER: (0, 0)}
    assert lifetimes_of(reply, 2) == {ADDRESS: (86400, 86400)}
    assert [(ia.T1, ia.T2) for ia in associations_of(reply) if ia.iaid == 1] == [(0, 0)]


def test_temporary_addresses_and_prefixes_are_not_to_be_had() -> None:
    message = DHCP6_Solicit(trid=2) / CLIENT / DHCP6OptIA_TA(iaid=7) / DHCP6OptIA_PD(iaid=8) / ia_na(iaid=9)
    permanent, temporary, prefix = associations_of(reply_to(message, kind=DHCP6_Advertise))
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


def test_confirm_of_all_associations_together() -> None:
    reply = reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(ADDRESS) / ia_ta(OFF_LINK, iaid=2))
    assert reply[DHCP6OptStatusCode].statuscode == NOT_ON_LINK


def test_confirm_on_a_host_with_a_narrow_prefix_knows_the_announced_one() -> None:
    narrow = evolve(NETWORK, ipv6=GuestIPv6(IPv6Address(ADDRESS), 128, IPv6Address("fe80::1"), "eth0"))
    reply = reply_to(DHCP6_Confirm(trid=3) / CLIENT / ia_na(OTHER), narrow)
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS


@pytest.mark.parametrize("kind", [DHCP6_Release, DHCP6_Decline])
def test_release_and_decline_are_noted(kind: type[Packet]) -> None:
    reply = reply_to(kind(trid=4) / CLIENT / SERVER / ia_na(ADDRESS) / ia_na(iaid=2))
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS
    assert DHCP6OptClientId in reply
    assert not associations_of(reply)


@pytest.mark.parametrize("kind", [DHCP6_Release, DHCP6_Decline])
def test_release_and_decline_of_what_was_never_given(kind: type[Packet]) -> None:
    message = kind(trid=4) / CLIENT / SERVER / ia_na(OTHER, iaid=1) / ia_ta(ADDRESS, iaid=2)
    reply = reply_to(message / DHCP6OptIA_PD(iaid=3) / ia_na(OFF_LINK, ADDRESS, iaid=4))
    assert reply[DHCP6OptStatusCode].statuscode == SUCCESS
    statuses = {iaid: [option.statuscode for option in options] for iaid, options in contents_of(reply).items()}
    assert statuses == {1: [NO_BINDING], 2: [NO_BINDING], 3: [NO_BINDING]}


@pytest.mark.parametrize("identifiers", [[], [CLIENT], [SERVER], [CLIENT, SERVER]])
def test_information_request(identifiers: list[Packet]) -> None:
    message = DHCP6_InfoRequest(trid=5)
    for identifier in identifiers:
        message = message / identifier
    reply = reply_to(message / DHCP6OptOptReq(reqopts=[23, 24]))
    assert (DHCP6OptClientId in reply) == (CLIENT in identifiers)
    check_parameters(reply)
    assert not associations_of(reply)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (DHCP6_Solicit(trid=6) / CLIENT, DHCP6_Advertise),
        (DHCP6_Solicit(trid=6) / CLIENT / DHCP6OptRapidCommit(), DHCP6_Advertise),
        (DHCP6_Request(trid=6) / CLIENT / SERVER, DHCP6_Reply),
    ],
)
def test_local_mode_has_no_addresses_to_assign(message: Packet, kind: type[Packet]) -> None:
    guest_address = str(LOCAL_MODE.ipv6.address) if LOCAL_MODE.ipv6 else ""
    reply = reply_to(message / ia_na(guest_address, iaid=1) / ia_na(iaid=2), LOCAL_MODE, kind)
    statuses = {iaid: [option.statuscode for option in options] for iaid, options in contents_of(reply).items()}
    assert statuses == {1: [NO_ADDRESSES], 2: [NO_ADDRESSES]}
    assert DHCP6OptPref not in reply


def test_local_mode_answers_who_asks_for_no_address() -> None:
    message = DHCP6_InfoRequest(trid=6) / CLIENT / DHCP6OptOptReq(reqopts=[23, 24])
    check_parameters(reply_to(message, evolve(LOCAL_MODE, resolvers=NETWORK.resolvers)))


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
        pytest.param(DHCP6_Decline() / CLIENT / OTHER_SERVER / ia_na(ADDRESS), id="decline to another server"),
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
        pytest.param(DHCP6_RelayReply(linkaddr="::", peeraddr="fe80::9"), id="reply to a relay"),
        pytest.param(Raw(b"\x63\x00\x00\x00") / CLIENT, id="unknown type"),
    ],
)
@pytest.mark.parametrize("to_group", [True, False])
def test_silence(message: Packet, to_group: bool) -> None:
    assert answer(message, to_group=to_group) is None


@pytest.mark.parametrize("kind", [DHCP6_Request, DHCP6_Renew, DHCP6_Release, DHCP6_Decline])
def test_what_is_sent_to_the_servers_own_address_shall_be_sent_to_the_group(kind: type[Packet]) -> None:
    message = kind(trid=9) / CLIENT / SERVER / ia_na(ADDRESS) / DHCP6OptOptReq(reqopts=[23])
    reply = reply_to(message, to_group=False)
    assert reply[DHCP6OptStatusCode].statuscode == USE_MULTICAST
    assert reply[DHCP6OptClientId].duid == CLIENT.duid
    options = [type(layer) for layer in layers_of(reply)[1:]]
    assert options == [DHCP6OptClientId, DHCP6OptServerId, DHCP6OptStatusCode]


@pytest.mark.parametrize("kind", [DHCP6_Solicit, DHCP6_Confirm, DHCP6_Rebind])
def test_what_is_for_all_servers_goes_to_the_group_only(kind: type[Packet]) -> None:
    assert answer(kind() / CLIENT / ia_na(ADDRESS), to_group=False) is None
    assert answer(DHCP6_InfoRequest() / CLIENT, to_group=False) is None


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
    payload += b"".join(bytes(ia_na(OTHER, iaid=iaid)) for iaid in range(60))
    payload += bytes(ia_na(ADDRESS, iaid=60))
    frame = answer(payload, evolve(NETWORK, resolvers=many))
    assert frame is not None
    assert len(frame) <= 14 + 1280
    check_bound(dissect(frame)[DHCP6OptIA_NA], iaid=60)
    withdrawn = bytes(DHCP6_Renew(trid=1) / CLIENT / SERVER)
    withdrawn += bytes(ia_na(*(f"2001:db8:9::{index:x}" for index in range(1000))))
    frame = answer(withdrawn)
    assert len(frame or b"") <= 14 + 1280
    assert dissect(frame)[DHCP6OptIAAddress].addr == ADDRESS


def test_longest_client_duid_is_returned() -> None:
    duid = b"\0\2" + b"u" * 128
    frame = answer(b"\x01\0\0\7\0\1" + len(duid).to_bytes(2, "big") + duid + bytes(ia_na()))
    reply = codec.parse(bytes(dissect(frame)[UDP].payload))
    assert reply.option(codec.Dhcpv6OptionCode.CLIENT_IDENTIFIER) == duid


def test_server_duid_is_of_the_link_layer_address() -> None:
    assert DUID_LL(SERVER_DUID).lladdr == HOST_MAC_TEXT
