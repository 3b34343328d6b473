"""Whatever comes, `answer` raises MalformedPacket or returns what scapy, and a strict reader of options, can read."""

from ipaddress import IPv4Address

import pytest
from attrs import evolve
from dhcp_clients import CLIENTS, Client
from dhcp_setup import ACK, BOOT, GATEWAY_OFF_LINK, MOVED, NAMED, XID, answer, ask, told
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import GUEST_MAC, LOCAL_MODE, NETWORK, dissect
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP, UDP

from trio_passt.config import GuestIPv4, GuestNetwork, NetworkBoot, Resolvers
from trio_passt.services import dhcp
from trio_passt.wire.dhcp import MAGIC_COOKIE
from trio_passt.wire.errors import MalformedPacket

EVERYTHING = evolve(
    MOVED,
    ipv4=GATEWAY_OFF_LINK.ipv4,
    hostname="guest",
    fqdn="guest.lab.example.com",
    boot=NetworkBoot("f" * 100, "boot.example.com"),
    resolvers=Resolvers(
        tuple(IPv4Address(f"192.0.2.{200 + index}") for index in range(12)),
        search=tuple(f"{'x' * 20}-{index}.example{index}.com" for index in range(20)),
    ),
)
NETWORKS = (NETWORK, NAMED, BOOT, MOVED, LOCAL_MODE, GATEWAY_OFF_LINK, EVERYTHING, evolve(EVERYTHING, mtu_bytes=68))

networks = st.sampled_from(NETWORKS)
moderately = settings(max_examples=100, deadline=None)

MESSAGE_START = bytes(BOOTP(op=1, xid=XID, chaddr=GUEST_MAC))[:236] + MAGIC_COOKIE
READ_CODES = (0, 12, 50, 51, 52, 53, 54, 55, 57, 61, 80, 81, 97, 255)
"""Options that mean something to a server."""

codes = st.sampled_from(READ_CODES) | st.integers(0, 255)
lying_options = st.lists(st.tuples(codes, st.integers(0, 255), st.binary(max_size=20)), max_size=8).map(
    lambda options: b"".join(bytes((code, length)) + value for code, length, value in options)
)
true_options = st.lists(st.tuples(codes, st.binary(max_size=40)), max_size=8).map(
    lambda options: b"".join(bytes((code, len(value))) + value for code, value in options)
)
message_types = st.integers(0, 9).map(lambda kind: bytes((53, 1, kind)))


def check_answer(payload: bytes, network: GuestNetwork = NETWORK) -> None:
    try:
        frame = answer(payload, network)
    except MalformedPacket:
        return
    if frame is None:
        return
    reply = dissect(frame)
    assert (reply[BOOTP].op, reply[UDP].sport) == (2, 67)
    assert reply[BOOTP].xid == int.from_bytes(payload[4:8], "big")
    assert len(reply[BOOTP]) >= 300
    assert reply[IP].len <= max(328, network.link_mtu_bytes)
    options = told(reply)
    address = dhcp.acknowledged_address(frame)
    assert address is None or options.get(53, ACK) == ACK
    assert str(address or "0.0.0.0") == reply[BOOTP].yiaddr or options[53] == b"\x02"


@moderately
@given(st.binary(max_size=400), networks)
def test_arbitrary_bytes(payload: bytes, network: GuestNetwork) -> None:
    check_answer(payload, network)


@moderately
@given(
    st.binary(min_size=21, max_size=21),
    st.sampled_from((bytes(4), bytes((192, 0, 2, 5)), bytes((198, 51, 100, 9)))),
    st.binary(min_size=192, max_size=192),
    message_types,
    true_options,
    networks,
)
def test_arbitrary_fields(
    head: bytes, relay: bytes, names: bytes, kind: bytes, options: bytes, network: GuestNetwork
) -> None:
    """Any fixed fields but operation and hardware address."""
    fixed = bytes((1, 1, 6)) + head + relay + GUEST_MAC + bytes(10) + names
    check_answer(fixed + MAGIC_COOKIE + kind + options, network)


@moderately
@given(message_types | st.just(b""), true_options, st.binary(max_size=30), networks)
def test_arbitrary_options(kind: bytes, options: bytes, tail: bytes, network: GuestNetwork) -> None:
    check_answer(MESSAGE_START + kind + options + tail, network)


@moderately
@given(message_types | st.just(b""), lying_options, networks)
def test_options_with_lying_lengths(kind: bytes, options: bytes, network: GuestNetwork) -> None:
    check_answer(MESSAGE_START + kind + options, network)
    check_answer(MESSAGE_START + options + kind + b"\xff", network)


@moderately
@given(lying_options, lying_options, st.integers(0, 4), networks)
def test_overloaded_fields_with_lying_lengths(file: bytes, sname: bytes, overload: int, network: GuestNetwork) -> None:
    head = bytes(BOOTP(op=1, xid=XID, chaddr=GUEST_MAC, file=file[:128], sname=sname[:64]))[:236] + MAGIC_COOKIE
    check_answer(head + bytes((53, 1, 1, 52, 1, overload)) + b"\xff", network)


@moderately
@given(st.binary(max_size=300), st.integers(0, 700), networks)
def test_arbitrary_wishes(wishes: bytes, takes_bytes: int, network: GuestNetwork) -> None:
    """Option 55 with anything in it, in parts if it is long."""
    parts = [(55, wishes[start : start + 255]) for start in range(0, len(wishes), 255)]
    payload = ask("discover", *parts, ("max_dhcp_size", takes_bytes))
    check_answer(payload, network)
    assert answer(payload, network) is not None


@moderately
@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1), st.booleans())
def test_any_network(address: int, prefix_length: int, gateway: int, is_small: bool) -> None:
    guest = GuestIPv4(IPv4Address(address), prefix_length, IPv4Address(gateway), "eth0")
    network = evolve(EVERYTHING, ipv4=guest, mtu_bytes=68 if is_small else 65520)
    check_answer(ask("discover"), network)
    check_answer(ask(None), network)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_truncation_at_each_byte(client: Client) -> None:
    payload = client.says("request", (50, bytes((192, 0, 2, 5))), (54, bytes((192, 0, 2, 1)))).rstrip(b"\0")
    for length in range(len(payload)):
        if length < 236:
            with pytest.raises(MalformedPacket):
                answer(payload[:length])
        else:
            check_answer(payload[:length])


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name == "Windows"])
def test_each_byte_wrong(client: Client) -> None:
    payload = client.says("discover").rstrip(b"\0")
    for index in range(len(payload)):
        for value in (0, 0xFF):
            check_answer(payload[:index] + bytes((value,)) + payload[index + 1 :], MOVED)
