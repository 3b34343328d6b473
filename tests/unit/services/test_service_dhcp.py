from ipaddress import IPv4Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from link_setup import GUEST_MAC, GUEST_MAC_TEXT, HOST_MAC_TEXT, LOCAL_MODE, NETWORK, NO_NETWORK, dissect
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from trio_passt.config import GuestIPv4, GuestNetwork, Resolvers
from trio_passt.services import dhcp
from trio_passt.wire import dhcp as codec
from trio_passt.wire import domain
from trio_passt.wire.errors import MalformedPacket

LEASE_OPTIONS = ["message-type", "server_id", "lease_time", "renewal_time", "rebinding_time"]
OFF_LINK = evolve(NETWORK, ipv4=GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address("10.0.0.1")))
MANY_NAMES = tuple(f"{'x' * 20}-{index}.example{index}.com" for index in range(6))


def ask(kind: str | int | None, *options: tuple[object, ...], **fields: object) -> bytes:
    """A client's message; `kind` None is plain BOOTP."""
    head = BOOTP(**({"op": 1, "xid": 0x1234ABCD, "chaddr": GUEST_MAC, "flags": 0} | fields))
    types = [] if kind is None else [("message-type", kind)]
    return bytes(head / DHCP(options=[*types, *options, "end"]))


def reply_to(payload: bytes, network: GuestNetwork = NETWORK) -> Packet:
    reply = dissect(dhcp.answer(GUEST_MAC, payload, network))
    assert reply.src == HOST_MAC_TEXT
    assert (reply[UDP].sport, reply[UDP].dport) == (67, 68)
    assert (reply[BOOTP].op, reply[BOOTP].chaddr[:6], reply[BOOTP].giaddr) == (2, GUEST_MAC, "0.0.0.0")
    return reply


def options_of(reply: Packet) -> dict[str | int, object]:
    """Names to values (a tuple where there are several), in the order of the wire."""
    options = (option for option in reply[DHCP].options if isinstance(option, tuple))
    return {name: values[0] if len(values) == 1 else values for name, *values in options}


def names_of(reply: Packet) -> list[str | int]:
    return list(options_of(reply))


def test_discover_is_offered_the_hosts_address() -> None:
    reply = reply_to(ask("discover"))
    assert (reply[BOOTP].xid, reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == (0x1234ABCD, "192.0.2.5", "0.0.0.0")
    assert (reply[IP].src, reply[IP].dst, reply.dst) == ("192.0.2.1", "192.0.2.5", GUEST_MAC_TEXT)
    assert options_of(reply) == {
        "message-type": 2,
        "server_id": "192.0.2.1",
        "lease_time": dhcp.LEASE_S,
        "renewal_time": dhcp.LEASE_S // 2,
        "rebinding_time": dhcp.LEASE_S * 7 // 8,
        "subnet_mask": "255.255.255.0",
        "router": "192.0.2.1",
        "name_server": ["192.0.2.53", "192.0.2.54"],
        "interface-mtu": 65520,
        "domain": b"lab.example.com",
        119: domain.emit_compressed(NETWORK.resolvers.search),
    }


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(ask("request", ("requested_addr", "192.0.2.5"), ("server_id", "192.0.2.1")), id="SELECTING"),
        pytest.param(ask("request", ("requested_addr", "192.0.2.5")), id="INIT-REBOOT"),
        pytest.param(ask("request", ciaddr="192.0.2.5"), id="RENEWING or REBINDING"),
    ],
)
def test_request_for_the_hosts_address_is_acknowledged(payload: bytes) -> None:
    reply = reply_to(payload)
    assert options_of(reply)["message-type"] == 5
    assert (reply[BOOTP].yiaddr, reply[IP].dst) == ("192.0.2.5", "192.0.2.5")
    assert reply[BOOTP].ciaddr == BOOTP(payload).ciaddr
    assert names_of(reply)[:5] == LEASE_OPTIONS


@pytest.mark.parametrize(
    "payload",
    [
        ask("request", ("requested_addr", "192.0.2.6"), ("server_id", "192.0.2.1")),
        ask("request", ("requested_addr", "10.0.2.15")),
        ask("request", ciaddr="10.0.2.15"),
    ],
)
def test_request_for_another_address_is_refused_by_broadcast(payload: bytes) -> None:
    reply = reply_to(payload)
    assert (reply.dst, reply[IP].dst) == ("ff:ff:ff:ff:ff:ff", "255.255.255.255")
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "0.0.0.0")
    assert names_of(reply) == ["message-type", "server_id", "error_message"]
    assert options_of(reply)["message-type"] == 6


def test_broadcast_flag_is_honoured_until_the_client_has_an_address() -> None:
    reply = reply_to(ask("discover", flags=0x8000))
    assert (reply.dst, reply[IP].dst, reply[BOOTP].flags) == ("ff:ff:ff:ff:ff:ff", "255.255.255.255", "B")
    renewed = reply_to(ask("request", flags=0x8000, ciaddr="192.0.2.5"))
    assert (renewed.dst, renewed[IP].dst) == (GUEST_MAC_TEXT, "192.0.2.5")


def test_rapid_commit() -> None:
    reply = reply_to(ask("discover", ("rapid_commit", b"")))
    assert (options_of(reply)["message-type"], reply[BOOTP].yiaddr) == (5, "192.0.2.5")
    assert codec.parse(bytes(reply[BOOTP])).option(80) == b""
    assert codec.parse(bytes(reply_to(ask("discover"))[BOOTP])).option(80) is None


def test_inform_is_told_parameters_and_no_lease() -> None:
    reply = reply_to(ask("inform", ciaddr="192.0.2.77"))
    assert (reply[IP].dst, reply.dst) == ("192.0.2.77", GUEST_MAC_TEXT)
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "192.0.2.77")
    assert options_of(reply)["message-type"] == 5
    assert options_of(reply)["router"] == "192.0.2.1"
    assert not {"lease_time", "renewal_time", "rebinding_time"} & set(names_of(reply))
    assert reply_to(ask("inform"))[IP].dst == "255.255.255.255"


def test_bootp_gets_an_address_and_extensions() -> None:
    for payload in (ask(None), bytes(BOOTP(op=1, xid=0x1234ABCD, chaddr=GUEST_MAC)) + bytes(64)):
        reply = reply_to(payload)
        assert (reply[BOOTP].yiaddr, reply[IP].dst) == ("192.0.2.5", "192.0.2.5")
        assert len(reply[BOOTP]) == 300
        assert names_of(reply)[:4] == ["subnet_mask", "router", "name_server", "interface-mtu"]
        assert not {"message-type", "server_id", "lease_time"} & set(names_of(reply))


def test_bootp_fields_never_hold_options() -> None:
    reply = reply_to(ask(None), evolve(NETWORK, resolvers=Resolvers(search=MANY_NAMES)))
    assert (reply[BOOTP].file, reply[BOOTP].sname) == (bytes(128), bytes(64))


@pytest.mark.parametrize(
    ("requested", "told"),
    [
        ([3, 1, 6], ["subnet_mask", "router", "name_server"]),
        ([1, 6, 3], ["subnet_mask", "name_server", "router"]),
        ([119, 26, 15, 26], [119, "interface-mtu", "domain"]),
        ([6], ["name_server"]),
        ([42, 44, 252, 0, 255], []),
        ([], []),
    ],
)
def test_parameters_in_the_order_asked_for(requested: list[int], told: list[str | int]) -> None:
    reply = reply_to(ask("discover", ("param_req_list", requested)))
    assert names_of(reply) == LEASE_OPTIONS + told


def test_client_identifier_is_returned() -> None:
    identifier = b"\x01" + GUEST_MAC
    for kind in ("discover", "request"):
        reply = reply_to(ask(kind, ("client_id", identifier), ("requested_addr", "192.0.2.5")))
        assert options_of(reply)["client_id"] == identifier
    refused = reply_to(ask("request", ("client_id", identifier), ("requested_addr", "192.0.2.6")))
    assert options_of(refused)["client_id"] == identifier


def test_giant_client_identifier_does_not_crowd_out_the_lease() -> None:
    parsed = codec.parse(bytes(reply_to(ask("discover", ("client_id", b"i" * 255)))[BOOTP]))
    assert parsed.option(61) == b"i" * 255
    for code in (1, 3, 6, 51, 53, 54):
        assert parsed.option(code) is not None, code
    split = ask("discover", ("client_id", b"i" * 255), ("client_id", b"i" * 255))
    assert "client_id" not in names_of(reply_to(split))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(ask("discover", op=2), id="reply"),
        pytest.param(ask("discover", giaddr="192.0.2.9"), id="relayed"),
        pytest.param(ask("discover", htype=32), id="InfiniBand"),
        pytest.param(ask("discover", hlen=8), id="long hardware address"),
        pytest.param(ask("request"), id="request for nothing"),
        pytest.param(ask("request", ("server_id", "192.0.2.9"), ("requested_addr", "192.0.2.5")), id="another server"),
        pytest.param(ask("decline", ("server_id", "192.0.2.1"), ("requested_addr", "192.0.2.5")), id="DECLINE"),
        pytest.param(ask("release", ("server_id", "192.0.2.1"), ciaddr="192.0.2.5"), id="RELEASE"),
        pytest.param(ask("offer"), id="OFFER"),
        pytest.param(ask("ack"), id="ACK"),
        pytest.param(ask(13), id="LEASEQUERY"),
    ],
)
def test_silence(payload: bytes) -> None:
    assert dhcp.answer(GUEST_MAC, payload, NETWORK) is None


@pytest.mark.parametrize(
    "options", [b"\x35\x00", b"\x35\x02\x01\x01", b"\x35\x01\x03\x32\x03abc", b"\x35\x01\x01\x39\x01\x05"]
)
def test_options_of_the_wrong_length_are_malformed(options: bytes) -> None:
    head = bytes(BOOTP(op=1, chaddr=GUEST_MAC))[:236] + codec.MAGIC_COOKIE
    with pytest.raises(MalformedPacket):
        dhcp.answer(GUEST_MAC, head + options + b"\xff", NETWORK)


def test_gateway_off_link_comes_with_classless_routes() -> None:
    reply = reply_to(ask("discover", ("param_req_list", [1, 121, 3])), OFF_LINK)
    routes = codec.parse(bytes(reply[BOOTP])).option(121)
    assert routes == bytes.fromhex("20 0a000001 00000000" + "00 0a000001")
    assert options_of(reply)["subnet_mask"] == "255.255.255.255"
    assert options_of(reply)["router"] == "10.0.0.1"
    assert options_of(reply)["server_id"] == reply[IP].src == "10.0.0.1"
    on_link = reply_to(ask("discover", ("param_req_list", [1, 121, 3])))
    assert codec.parse(bytes(on_link[BOOTP])).option(121) is None


@pytest.mark.parametrize("gateway", ["0.0.0.0", "192.0.2.5"])
def test_without_a_gateway_a_link_local_one_stands_in(gateway: str) -> None:
    guest = GuestIPv4(IPv4Address("192.0.2.5"), 32, IPv4Address(gateway))
    reply = reply_to(ask("discover"), evolve(NETWORK, ipv4=guest))
    assert reply[IP].src == options_of(reply)["server_id"] == options_of(reply)["router"] == "169.254.2.2"
    assert codec.parse(bytes(reply[BOOTP])).option(121) is not None


def test_local_mode_gives_what_there_is() -> None:
    reply = reply_to(ask("discover"), LOCAL_MODE)
    assert reply[BOOTP].yiaddr == "169.254.2.1"
    assert names_of(reply)[5:] == ["subnet_mask", "router", "interface-mtu"]
    assert options_of(reply)["router"] == "169.254.2.2"


def test_mtu_of_zero_is_not_told() -> None:
    assert "interface-mtu" not in names_of(reply_to(ask("discover"), evolve(NETWORK, mtu_bytes=0)))


@pytest.mark.parametrize(
    ("client_takes", "mtu_bytes", "datagram_bytes"),
    [(None, 65520, 576), (576, 65520, 576), (100, 65520, 576), (1500, 65520, 1500), (1500, 68, 328), (1500, 400, 400)],
)
def test_replies_fit_client_and_link(client_takes: int | None, mtu_bytes: int, datagram_bytes: int) -> None:
    options = [] if client_takes is None else [("max_dhcp_size", client_takes)]
    crowded = evolve(NETWORK, mtu_bytes=mtu_bytes, resolvers=Resolvers(search=MANY_NAMES * 5))
    reply = reply_to(ask("discover", ("client_id", b"i" * 100), *options), crowded)
    assert reply[IP].len <= datagram_bytes
    parsed = codec.parse(bytes(reply[BOOTP]))
    assert parsed.option(1) == b"\xff\xff\xff\x00"
    assert parsed.option(3) == bytes((192, 0, 2, 1))


def test_search_list_overflows_into_the_boot_file_field() -> None:
    """At 576 bytes the list has no room among the options, but whole it has in the file field."""
    names = ("engineering.example.com", "marketing.example.org", "y" * 60 + ".net")
    network = evolve(NETWORK, resolvers=evolve(NETWORK.resolvers, search=names))
    reply = reply_to(ask("discover", ("client_id", b"i" * 120), ("vendor_class_id", b"x")), network)
    parsed = codec.parse(bytes(reply[BOOTP]))
    assert reply[IP].len <= 576
    assert reply[BOOTP].file[0] != 0
    assert domain.parse_list(parsed.option(119) or b"") == names
    roomy = reply_to(ask("discover", ("client_id", b"i" * 120), ("max_dhcp_size", 1500)), network)
    assert roomy[BOOTP].file[0] == 0
    assert domain.parse_list(codec.parse(bytes(roomy[BOOTP])).option(119) or b"") == names


def test_names_that_dns_cannot_write_are_left_out() -> None:
    network = evolve(NETWORK, resolvers=Resolvers(search=("ä.example", "good.example.")))
    options = options_of(reply_to(ask("discover"), network))
    assert options["domain"] == b"good.example"
    assert options[119] == domain.emit("good.example")


def test_no_ipv4_no_answer() -> None:
    assert dhcp.answer(GUEST_MAC, ask("discover"), NO_NETWORK) is None


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["discover", "request", "inform", "release", None, 200]),
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=6),
    st.binary(max_size=30),
    st.binary(max_size=16),
)
def test_arbitrary_options(
    kind: str | int | None, options: list[tuple[int, bytes]], tail: bytes, addresses: bytes
) -> None:
    encoded = b"".join(bytes((code, len(value))) + value for code, value in options)
    payload = bytearray(ask(kind)[:-1] + encoded + tail)
    payload[12 : 12 + len(addresses)] = addresses
    check_answer(bytes(payload))
    check_answer(bytes(payload[: 236 + len(tail)]))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes(payload: bytes) -> None:
    check_answer(payload)


def test_truncation() -> None:
    payload = ask("request", ("requested_addr", "192.0.2.5"), ("param_req_list", [1, 3, 6]))
    for length in range(len(payload)):
        check_answer(payload[:length])


def check_answer(payload: bytes) -> None:
    try:
        frame = dhcp.answer(GUEST_MAC, payload, NETWORK)
    except MalformedPacket:
        return
    if frame is not None:
        reply = dissect(frame)
        assert reply[BOOTP].op == 2
        assert codec.parse(bytes(reply[BOOTP])).transaction_id == reply[BOOTP].xid
