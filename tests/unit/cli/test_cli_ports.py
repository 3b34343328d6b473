"""The grammar of port specifications: what is understood, what is refused and how, and back to text."""

import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.messages import joined_ranges
from trio_passt.cli.ports import follow, parse_ports
from trio_passt.cli.values import UsageError
from trio_passt.config import PortForward, Protocol

Pairs = list[tuple[int, int]]


def parse(*specifications: str) -> tuple[PortForward, ...]:
    return parse_ports("--tcp-ports", Protocol.TCP, specifications)


def pairs(*specifications: str) -> Pairs:
    return [(forward.port, forward.target) for forward in parse(*specifications)]


@pytest.mark.parametrize(
    ("specifications", "expected"),
    [
        ((), []),
        (("none",), []),
        (("none", "none"), []),
        (("22",), [(22, 22)]),
        (("1",), [(1, 1)]),
        (("65535",), [(65535, 65535)]),
        (("22:23",), [(22, 23)]),
        (("22,25",), [(22, 22), (25, 25)]),
        (("22", "25"), [(22, 22), (25, 25)]),
        (("22-24",), [(22, 22), (23, 23), (24, 24)]),
        (("22-24:32-34",), [(22, 32), (23, 33), (24, 34)]),
        (("2222:22,8000-8001:9000-9001,1",), [(2222, 22), (8000, 9000), (8001, 9001), (1, 1)]),
        (("22:7,23:7",), [(22, 7), (23, 7)]),
        (("20-24,~21,~23-40",), [(20, 20), (22, 22)]),
        (("~21,20-22:30-32",), [(20, 30), (22, 32)]),
        (("00022",), [(22, 22)]),
    ],
)
def test_ports(specifications: tuple[str, ...], expected: Pairs) -> None:
    assert pairs(*specifications) == expected


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1/22", IPv4Address("192.0.2.1")),
        ("0.0.0.0/22", IPv4Address("0.0.0.0")),
        ("2001:db8::1/22", IPv6Address("2001:db8::1")),
        ("[2001:db8::1]/22", IPv6Address("2001:db8::1")),
        ("::/22", IPv6Address("::")),
    ],
)
def test_bind_address(text: str, address: IPv4Address | IPv6Address) -> None:
    assert parse(text) == (PortForward(Protocol.TCP, 22, 22, address),)


def test_an_address_holds_for_all_chunks_and_no_other_specification() -> None:
    addresses = [forward.address for forward in parse("192.0.2.1/22,23", "24")]
    assert addresses == [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"), None]


@pytest.mark.parametrize(
    ("specifications", "reason"),
    [
        (("",), "a port number is missing"),
        (("22,",), "a port number is missing"),
        (("22-",), "a port number is missing"),
        (("-22",), "a port number is missing"),
        (("22:",), "a port number is missing"),
        (("192.0.2.1/",), "a port number is missing"),
        (("~",), "a port number is missing"),
        (("ssh",), "'ssh' is not a port number"),
        (("22-24-26",), "'24-26' is not a port number"),
        (("22:23:24",), "'23:24' is not a port number"),
        ((" 22",), "' 22' is not a port number"),
        (("+22",), "'+22' is not a port number"),
        (("0",), "port 0 is not between 1 and 65535"),
        (("22,65536",), "port 65536 is not between 1 and 65535"),
        (("22:65536",), "port 65536 is not between 1 and 65535"),
        (("24-22",), "the range '24-22' ends before it starts"),
        (("22-24:30-31",), "'22-24' and '30-31' are not equally long"),
        (("22:30-31",), "'22' and '30-31' are not equally long"),
        (("22-24:30",), "'22-24' and '30' are not equally long"),
        (("22,22",), "port 22 is given more than once"),
        (("22,22:23",), "port 22 is given more than once"),
        (("20-30,25",), "port 25 is given more than once"),
        (("22", "192.0.2.1/22"), "port 22 is given more than once"),
        (("192.0.2.1/22", "0.0.0.0/22"), "port 22 is given more than once"),
        (("none", "22"), "contradicts '22'"),
        (("22", "none"), "contradicts '22'"),
        (("all",), "'all' is not supported yet"),
        (("auto",), "'auto' is not supported yet"),
        (("~22",), "exclusions alone are not supported yet"),
        (("22,~22",), "the exclusions leave no port"),
        (("192.0.2.1%eth0/22",), "binding to an interface ('%') is not supported yet"),
        (("%eth0/22",), "binding to an interface ('%') is not supported yet"),
        (("192.0.2/22",), "'192.0.2' is not an IPv4 or IPv6 address"),
        (("/22",), "'' is not an IPv4 or IPv6 address"),
        (("[192.0.2.1]/22",), "'[192.0.2.1]' is not an IPv4 or IPv6 address"),
        (("ff02::1/22",), "'ff02::1' is a multicast address"),
    ],
)
def test_refused(specifications: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*specifications)
    value, found = str(caught.value).removeprefix("invalid value ").split(" for option '--tcp-ports': ")
    assert found == reason
    assert value.strip("'") in specifications


@pytest.mark.parametrize(
    "specifications",
    [
        ("192.0.2.1/22", "192.0.2.2/22"),
        ("0.0.0.0/22", "::/22"),
        ("192.0.2.1/22", "2001:db8::1/22:23"),
    ],
)
def test_one_port_on_several_addresses(specifications: tuple[str, ...]) -> None:
    assert len(parse(*specifications)) == 2


def test_udp_follows_with_the_same_address_and_untranslated() -> None:
    assert follow(parse("127.0.0.1/2222:22")) == (
        PortForward(Protocol.UDP, 2222, 2222, IPv4Address("127.0.0.1"), must_bind=False),
    )


@given(st.dictionaries(st.integers(1, 65535), st.integers(1, 65535), max_size=30))
def test_print_and_parse_again(mapping: dict[int, int]) -> None:
    forwards = [PortForward(Protocol.TCP, port, target) for port, target in sorted(mapping.items())]
    printed = ",".join(text.replace(" -> ", ":") for text in joined_ranges(forwards)) or "none"
    assert list(parse(printed)) == forwards


@given(st.text(alphabet="0123456789-:,~/.%[]ax", max_size=12))
def test_anything_is_ports_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(1 <= forward.port <= 65535 and 1 <= forward.target <= 65535 for forward in parse(text))
