"""Whatever a client sends, DHCPv6 answers with a message that fits, is silent, or finds it malformed."""

import pytest
from attrs import evolve
from dhcpv6_client import (
    ADDRESS,
    CLIENT,
    OFF_LINK,
    OTHER,
    SERVER,
    SERVER_DUID,
    answer,
    associations_of,
    ia_na,
    ia_ta,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import NETWORK, dissect
from scapy.layers.dhcp6 import (
    DHCP6_Confirm,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptRapidCommit,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet

from trio_passt.wire import dhcpv6 as codec
from trio_passt.wire.errors import MalformedPacket

FUZZED = evolve(NETWORK, fqdn="guest.lab.example.com")


def check_answer(payload: bytes, *, to_group: bool = True) -> None:
    try:
        frame = answer(payload, FUZZED, to_group=to_group)
    except MalformedPacket:
        return
    if frame is not None:
        assert len(frame) <= 14 + 1280
        reply = codec.parse(bytes(dissect(frame)[UDP].payload))
        assert reply.transaction_id == int.from_bytes(payload[1:4], "big")
        assert reply.option(codec.Dhcpv6OptionCode.SERVER_IDENTIFIER) == SERVER_DUID


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 14),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 14, 25, 39, 9]), st.binary(max_size=40)), max_size=5),
    st.binary(max_size=10),
)
def test_arbitrary_options(
    kind: int, server: bool, to_group: bool, options: list[tuple[int, bytes]], tail: bytes
) -> None:
    encoded = b"".join(code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for code, value in options)
    identifiers = bytes(CLIENT) + (bytes(SERVER) if server else b"")
    check_answer(bytes((kind, 1, 2, 3)) + identifiers + encoded + tail, to_group=to_group)


addresses = st.lists(st.sampled_from([ADDRESS, OTHER, OFF_LINK, "::"]), max_size=10)
associations = st.one_of(
    st.builds(lambda named, iaid: bytes(ia_na(*named, iaid=iaid)), addresses, st.integers(0, 3)),
    st.builds(lambda named, iaid: bytes(ia_ta(*named, iaid=iaid)), addresses, st.integers(0, 3)),
    st.builds(lambda iaid: bytes(DHCP6OptIA_PD(iaid=iaid)), st.integers(0, 3)),
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 3, 4, 5, 6, 8, 9]), st.booleans(), st.lists(associations, max_size=6))
def test_arbitrary_associations(kind: int, rapid: bool, options: list[bytes]) -> None:
    """No more than one IA has the address, and only an IA_NA."""
    head = CLIENT / SERVER if kind in (3, 5, 8, 9) else CLIENT
    payload = bytes((kind, 1, 2, 3)) + bytes(head) + (bytes(DHCP6OptRapidCommit()) if rapid else b"")
    frame = answer(payload + b"".join(options))
    assert frame is not None or kind == 4
    seen = [] if frame is None else associations_of(dissect(frame)[UDP].payload)
    live = [
        (type(ia), option.addr)
        for ia in seen
        for option in (ia.iataopts if isinstance(ia, DHCP6OptIA_TA) else getattr(ia, "ianaopts", []))
        if isinstance(option, DHCP6OptIAAddress) and option.validlft
    ]
    asks = kind in (1, 5, 6) and any(option[:2] == b"\0\3" for option in options)
    assert live == [(DHCP6OptIA_NA, ADDRESS)] or (not live and not asks)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_arbitrary_bytes(payload: bytes) -> None:
    check_answer(payload)


FULL = ia_na(ADDRESS) / ia_ta(OTHER, iaid=2) / DHCP6OptIA_PD(iaid=3) / DHCP6OptOptReq(reqopts=[23, 24, 39])
FULL = FULL / DHCP6OptClientFQDN(flags="S", fqdn="guest.")


@pytest.mark.parametrize(
    "message",
    [
        DHCP6_Solicit(trid=1) / CLIENT / DHCP6OptRapidCommit() / FULL,
        DHCP6_Request(trid=1) / CLIENT / SERVER / FULL,
        DHCP6_Confirm(trid=1) / CLIENT / FULL,
        DHCP6_Renew(trid=1) / CLIENT / SERVER / FULL,
        DHCP6_Rebind(trid=1) / CLIENT / FULL,
        DHCP6_Release(trid=1) / CLIENT / SERVER / FULL,
        DHCP6_InfoRequest(trid=1) / CLIENT / DHCP6OptOptReq(reqopts=[23, 24, 32, 39]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_truncation_and_lying_lengths(message: Packet) -> None:
    payload = bytes(message)
    assert answer(payload) is not None
    for index in range(len(payload)):
        check_answer(payload[:index])
        for value in (0, 1, 0xFF):
            check_answer(payload[:index] + bytes((value,)) + payload[index + 1 :])
