from ipaddress import IPv6Address

import pytest
from codec_checks import (
    domain_names,
    ipv6s,
    moderately,
    parses_or_is_malformed,
    survives_corruption,
    survives_truncation,
    u8,
    u16,
    u32,
)
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_RelayForward,
    DHCP6_Reply,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptStatusCode,
)

from trio_passt.wire import dhcpv6
from trio_passt.wire.dhcpv6 import (
    ClientFqdn,
    Dhcpv6Message,
    Dhcpv6Option,
    Dhcpv6OptionCode,
    Dhcpv6Status,
    Dhcpv6Type,
    IaAddress,
    IdentityAssociation,
)
from trio_passt.wire.errors import MalformedPacket

DUID = bytes.fromhex("00030001525400123456")
ADDRESS = IPv6Address("2001:db8::5")

option_lists = st.lists(st.builds(Dhcpv6Option, code=u16, value=st.binary(max_size=40)), max_size=6).map(tuple)
messages = st.builds(
    Dhcpv6Message,
    type=u8.filter(lambda kind: kind not in (Dhcpv6Type.RELAY_FORWARD, Dhcpv6Type.RELAY_REPLY)),
    transaction_id=st.integers(0, 0xFFFFFF),
    options=option_lists,
)
associations = st.builds(IdentityAssociation, identifier=u32, t1_s=u32, t2_s=u32, options=option_lists)
names = st.builds(
    ClientFqdn,
    name=domain_names,
    server_updates=st.booleans(),
    overridden=st.booleans(),
    no_updates=st.booleans(),
    qualified=st.booleans(),
)
addresses = st.builds(IaAddress, address=ipv6s, preferred_s=u32, valid_s=u32, options=option_lists)

SOLICIT = bytes(
    DHCP6_Solicit(trid=0x123456)
    / DHCP6OptClientId(duid=DUID_LL(lladdr="52:54:00:12:34:56"))
    / DHCP6OptIA_NA(iaid=9, T1=1, T2=2, ianaopts=[DHCP6OptIAAddress(addr="2001:db8::5", preflft=3, validlft=4)])
    / DHCP6OptIA_TA(iaid=10, iataopts=[DHCP6OptIAAddress(addr="2001:db8::6")])
    / DHCP6OptOptReq(reqopts=[23, 24])
)


def test_what_scapy_emits_is_read() -> None:
    message = dhcpv6.parse(SOLICIT)
    assert (message.type, message.transaction_id) == (Dhcpv6Type.SOLICIT, 0x123456)
    assert message.option(Dhcpv6OptionCode.CLIENT_IDENTIFIER) == DUID
    assert message.option(Dhcpv6OptionCode.OPTION_REQUEST) == bytes((0, 23, 0, 24))
    assert message.option(Dhcpv6OptionCode.SERVER_IDENTIFIER) is None
    permanent, temporary = message.all(Dhcpv6OptionCode.IA_NA, Dhcpv6OptionCode.IA_TA)
    ia = dhcpv6.parse_association(permanent)
    assert (ia.identifier, ia.t1_s, ia.t2_s) == (9, 1, 2)
    assert dhcpv6.parse_address(ia.options[0].value) == IaAddress(ADDRESS, 3, 4)
    ia_ta = dhcpv6.parse_association(temporary)
    assert (ia_ta.identifier, ia_ta.t1_s, ia_ta.t2_s) == (10, 0, 0)
    assert dhcpv6.parse_address(ia_ta.options[0].value).address == IPv6Address("2001:db8::6")


def test_scapy_reads_what_is_emitted() -> None:
    ia = IdentityAssociation(9, 1, 2, (dhcpv6.emit_address(IaAddress(ADDRESS, 3, 4)),))
    no_more = (dhcpv6.status_option(Dhcpv6Status.NO_ADDRESSES_AVAILABLE, "none"),)
    message = Dhcpv6Message(
        Dhcpv6Type.REPLY,
        0xABCDEF,
        (
            Dhcpv6Option(Dhcpv6OptionCode.CLIENT_IDENTIFIER, DUID),
            dhcpv6.emit_association(Dhcpv6OptionCode.IA_NA, ia),
            dhcpv6.emit_association(Dhcpv6OptionCode.IA_TA, IdentityAssociation(10, options=no_more)),
        ),
    )
    seen = DHCP6_Reply(dhcpv6.emit(message))
    assert (seen.msgtype, seen.trid) == (7, 0xABCDEF)
    assert seen[DHCP6OptClientId].duid.lladdr == "52:54:00:12:34:56"
    seen_ia = seen[DHCP6OptIA_NA]
    assert (seen_ia.iaid, seen_ia.T1, seen_ia.T2) == (9, 1, 2)
    seen_address = seen_ia.ianaopts[0]
    assert (seen_address.addr, seen_address.preflft, seen_address.validlft) == ("2001:db8::5", 3, 4)
    status = seen[DHCP6OptIA_TA].iataopts[0]
    assert isinstance(status, DHCP6OptStatusCode)
    assert (status.statuscode, status.statusmsg) == (2, b"none")


def test_relayed_messages_are_not_for_this_codec() -> None:
    relayed = bytes(DHCP6_RelayForward(linkaddr="2001:db8::1", peeraddr="fe80::1"))
    assert dhcpv6.is_relayed(relayed)
    assert not dhcpv6.is_relayed(SOLICIT)
    assert not dhcpv6.is_relayed(b"")
    with pytest.raises(MalformedPacket, match="relays"):
        dhcpv6.parse(relayed)


@pytest.mark.parametrize(
    "data", [b"", b"\1\0\0", b"\1\0\0\0\0", b"\1\0\0\0\0\1\0", b"\1\0\0\0\0\1\0\1", b"\1\0\0\0\0\1\xff\xff" + DUID]
)
def test_malformed_messages(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        dhcpv6.parse(data)


@pytest.mark.parametrize(
    "option",
    [
        Dhcpv6Option(Dhcpv6OptionCode.IA_NA, bytes(11)),
        Dhcpv6Option(Dhcpv6OptionCode.IA_NA, bytes(13)),
        Dhcpv6Option(Dhcpv6OptionCode.IA_PD, bytes(12) + b"\0\1\0\2x"),
        Dhcpv6Option(Dhcpv6OptionCode.IA_TA, bytes(3)),
        Dhcpv6Option(Dhcpv6OptionCode.IA_TA, bytes(5)),
    ],
)
def test_malformed_associations(option: Dhcpv6Option) -> None:
    with pytest.raises(MalformedPacket):
        dhcpv6.parse_association(option)


@pytest.mark.parametrize(
    ("fqdn", "flags"),
    [
        (ClientFqdn("guest.example.com"), ""),
        (ClientFqdn("guest.example.com", server_updates=True), "S"),
        (ClientFqdn("guest.example.com", overridden=True, no_updates=True), "ON"),
    ],
)
def test_names_as_scapy_writes_them(fqdn: ClientFqdn, flags: str) -> None:
    option = DHCP6OptClientFQDN(flags=flags, fqdn="guest.example.com.")
    assert dhcpv6.emit_options([dhcpv6.emit_fqdn(fqdn)]) == bytes(option)
    assert dhcpv6.parse_fqdn(bytes(option)[4:]) == fqdn


@pytest.mark.parametrize(
    ("value", "fqdn"),
    [
        (b"\0", ClientFqdn("", qualified=False)),
        (b"\1\5guest", ClientFqdn("guest", server_updates=True, qualified=False)),
        (b"\xfc\5guest\3lab", ClientFqdn("guest.lab", no_updates=True, qualified=False)),
    ],
)
def test_partial_names(value: bytes, fqdn: ClientFqdn) -> None:
    assert dhcpv6.parse_fqdn(value) == fqdn
    assert dhcpv6.parse_fqdn(dhcpv6.emit_fqdn(fqdn).value) == fqdn


@pytest.mark.parametrize("value", [b"", b"\0\6guest", b"\0\5guest\0x", b"\0\xc0\0"])
def test_malformed_names(value: bytes) -> None:
    with pytest.raises(MalformedPacket):
        dhcpv6.parse_fqdn(value)


@pytest.mark.parametrize("length", [0, 15, 23, 25])
def test_malformed_addresses(length: int) -> None:
    with pytest.raises(MalformedPacket):
        dhcpv6.parse_address(bytes(length))


@moderately
@given(messages)
def test_round_trip(message: Dhcpv6Message) -> None:
    assert dhcpv6.parse(dhcpv6.emit(message)) == message


@moderately
@given(st.sampled_from([Dhcpv6OptionCode.IA_NA, Dhcpv6OptionCode.IA_PD]), associations)
def test_round_trip_of_associations(code: int, association: IdentityAssociation) -> None:
    option = dhcpv6.emit_association(code, association)
    assert (option.code, dhcpv6.parse_association(option)) == (code, association)


@moderately
@given(addresses)
def test_round_trip_of_addresses(address: IaAddress) -> None:
    assert dhcpv6.parse_address(dhcpv6.emit_address(address).value) == address


@moderately
@given(names)
def test_round_trip_of_names(fqdn: ClientFqdn) -> None:
    assert dhcpv6.parse_fqdn(dhcpv6.emit_fqdn(fqdn).value) == fqdn


@moderately
@given(st.binary(max_size=100))
def test_arbitrary_bytes(data: bytes) -> None:
    parses_or_is_malformed(dhcpv6.parse, data)
    parses_or_is_malformed(dhcpv6.parse_address, data)
    parses_or_is_malformed(dhcpv6.parse_fqdn, data)
    for code in (Dhcpv6OptionCode.IA_NA, Dhcpv6OptionCode.IA_TA):
        parses_or_is_malformed(lambda data: dhcpv6.parse_association(Dhcpv6Option(code, data)), data)  # noqa: B023


def test_truncation_and_corruption() -> None:
    survives_truncation(dhcpv6.parse, SOLICIT, required_bytes=4)
    survives_corruption(dhcpv6.parse, SOLICIT)
