from ipaddress import IPv4Address

import pytest
from codec_checks import moderately, parses_or_is_malformed, survives_corruption, survives_truncation
from dhcp_messages import COOKIE, MAC, fixed, message_with, messages
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from trio_passt.wire import dhcp
from trio_passt.wire.dhcp import DhcpMessage, DhcpOperation, DhcpOption
from trio_passt.wire.errors import MalformedPacket


def test_scapy_reads_what_is_emitted() -> None:
    message = DhcpMessage(
        DhcpOperation.REPLY,
        0xDEADBEEF,
        MAC,
        (
            (DhcpOption.MESSAGE_TYPE, b"\x02"),
            (DhcpOption.LEASE_TIME, (3600).to_bytes(4, "big")),
            (DhcpOption.DOMAIN_NAME_SERVER, bytes((192, 0, 2, 53, 192, 0, 2, 54))),
        ),
        broadcast=True,
        yiaddr=IPv4Address("192.0.2.5"),
        siaddr=IPv4Address("192.0.2.9"),
        server_name=b"tftp.example.com",
        boot_file=b"pxe.0",
    )
    seen = BOOTP(dhcp.emit(message))
    assert (seen.op, seen.htype, seen.hlen, seen.xid, seen.flags) == (2, 1, 6, 0xDEADBEEF, "B")
    assert (seen.yiaddr, seen.siaddr, seen.ciaddr, seen.giaddr) == ("192.0.2.5", "192.0.2.9", *["0.0.0.0"] * 2)
    assert seen.chaddr[:6] == MAC
    assert (seen.sname.rstrip(b"\0"), seen.file.rstrip(b"\0")) == (b"tftp.example.com", b"pxe.0")
    assert seen[DHCP].options[:4] == [
        ("message-type", 2),
        ("lease_time", 3600),
        ("name_server", "192.0.2.53", "192.0.2.54"),
        "end",
    ]
    assert len(seen) == 300


def test_what_scapy_emits_is_read() -> None:
    payload = bytes(
        BOOTP(op=1, xid=5, secs=3, flags=0x8000, ciaddr="192.0.2.5", giaddr="192.0.2.6", chaddr=MAC)
        / DHCP(options=[("message-type", "request"), ("requested_addr", "192.0.2.7"), "pad", "end", "pad"])
    )
    message = dhcp.parse(payload)
    assert message == DhcpMessage(
        DhcpOperation.REQUEST,
        5,
        MAC,
        ((DhcpOption.MESSAGE_TYPE, b"\x03"), (DhcpOption.REQUESTED_ADDRESS, bytes((192, 0, 2, 7)))),
        broadcast=True,
        ciaddr=IPv4Address("192.0.2.5"),
        giaddr=IPv4Address("192.0.2.6"),
        elapsed_s=3,
    )
    assert message.option(DhcpOption.MESSAGE_TYPE) == b"\x03"
    assert message.option(DhcpOption.LEASE_TIME) is None


def test_bootp_without_cookie_has_no_options() -> None:
    assert dhcp.parse(fixed() + bytes(64)).options == ()
    assert dhcp.parse(fixed()).options == ()


def test_options_without_an_end_are_read() -> None:
    assert dhcp.parse(fixed() + COOKIE + b"\x35\x01\x01").options == ((53, b"\x01"),)


def test_split_options_are_joined() -> None:
    """RFC 3396: one option, in parts, wherever they stand."""
    data = fixed() + COOKIE + b"\x77\x02ab\x35\x01\x01\x77\x03cde\xff"
    assert dhcp.parse(data).options == ((119, b"abcde"), (53, b"\x01"))


def test_long_options_are_split() -> None:
    encoded = dhcp.emit(message_with((119, b"a" * 256)))
    assert encoded[240:] == b"\x77\xff" + b"a" * 255 + b"\x77\x01a\xff"


def test_overload_in_both_fields_is_read() -> None:
    data = fixed(sname=b"\x0f\x03org\xff", file=b"\x06\x02ab\x00\xff")
    data += COOKIE + b"\x34\x01\x03\x06\x02xy\xff"
    message = dhcp.parse(data)
    assert message.options == ((6, b"xyab"), (15, b"org"))
    assert (message.server_name, message.boot_file) == (b"", b"")


def test_overload_of_one_field_leaves_the_other() -> None:
    file_only = dhcp.parse(fixed(sname=b"name", file=b"\x0c\x01h\xff") + COOKIE + b"\x34\x01\x01\xff")
    assert (file_only.options, file_only.server_name) == (((12, b"h"),), b"name")
    sname_only = dhcp.parse(fixed(sname=b"\x0c\x01h\xff", file=b"boot") + COOKIE + b"\x34\x01\x02\xff")
    assert (sname_only.options, sname_only.boot_file) == (((12, b"h"),), b"boot")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(235), "235 bytes"),
        (fixed(hlen=17), "17 bytes"),
        (fixed() + COOKIE + b"\x35", "option 53"),
        (fixed() + COOKIE + b"\x35\x02\x01", "option 53"),
        (fixed() + COOKIE + b"\x34\x01\x04\xff", "overload"),
        (fixed() + COOKIE + b"\x34\x00\xff", "overload"),
        (fixed() + COOKIE + b"\x34\x02\x01\x01\xff", "overload"),
        (fixed(file=b"\x06\xff" + b"x" * 126) + COOKIE + b"\x34\x01\x01\xff", "option 6"),
    ],
)
def test_malformed_messages(data: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        dhcp.parse(data)


def test_overload_within_overload_means_nothing() -> None:
    data = fixed(file=b"\x34\x01\x02\xff", sname=b"\x06\xff") + COOKIE + b"\x34\x01\x01\xff"
    assert dhcp.parse(data).options == ()


@moderately
@given(messages)
def test_round_trip(message: DhcpMessage) -> None:
    assert dhcp.parse(dhcp.emit(message)) == message


@moderately
@given(st.binary(max_size=300), st.binary(max_size=64), st.binary(max_size=128))
def test_arbitrary_bytes(data: bytes, sname: bytes, file: bytes) -> None:
    parses_or_is_malformed(dhcp.parse, data)
    parses_or_is_malformed(dhcp.parse, fixed() + COOKIE + data)
    parses_or_is_malformed(dhcp.parse, fixed(sname=sname, file=file) + COOKIE + b"\x34\x01\x03" + data)


def test_truncation_and_corruption() -> None:
    encoded = dhcp.emit(message_with((53, b"\x05"), (6, b"d" * 40), (119, b"s" * 100)), 300)
    survives_truncation(dhcp.parse, encoded, required_bytes=236)
    survives_corruption(dhcp.parse, encoded)
