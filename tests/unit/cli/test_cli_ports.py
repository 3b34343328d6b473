"""The grammar of port specifications: what is understood, what is refused and how, and back to text."""

import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.cli.ports import Where, follow, parse_automatic_ports, parse_ports, specifications
from trio_passt.cli.values import UsageError
from trio_passt.config import Binding, PortForward, Protocol

EPHEMERAL = range(32768, 61000)

Triple = tuple[int, int, int]


def parse(*texts: str, ephemeral: range = EPHEMERAL) -> tuple[PortForward, ...]:
    return parse_ports("--tcp-ports", Protocol.TCP, texts, ephemeral=ephemeral)


def tcp(first: int, last: int, target: int | None = None, where: str = "", *, spare: bool = False) -> PortForward:
    """A forward, with the address and interface written as in a specification."""
    address, _, interface = where.partition("%")
    return PortForward(
        Protocol.TCP,
        first,
        last,
        first if target is None else target,
        (IPv6Address(address) if ":" in address else IPv4Address(address)) if address else None,
        interface or None,
        Binding.SPARE if spare else Binding.REQUIRED,
    )


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), []),
        (("none",), []),
        (("none", "none"), []),
        (("22",), [tcp(22, 22)]),
        (("1",), [tcp(1, 1)]),
        (("65535",), [tcp(65535, 65535)]),
        (("1-65535",), [tcp(1, 65535)]),
        (("22", "25"), [tcp(22, 22), tcp(25, 25)]),
        (("22-24",), [tcp(22, 24)]),
        (("22-22",), [tcp(22, 22)]),
        (("22-24:32-34",), [tcp(22, 24, 32)]),
        (("65535:1",), [tcp(65535, 65535, 1)]),
        (("2222:22,8000-8001:9000-9001,1",), [tcp(2222, 2222, 22), tcp(8000, 8001, 9000), tcp(1, 1)]),
        (("22:7,23:7",), [tcp(22, 22, 7), tcp(23, 23, 7)]),
        (("20-24,~21,~23-40",), [tcp(20, 20), tcp(22, 22)]),
        (("~21,20-22:30-32",), [tcp(20, 20, 30), tcp(22, 22, 32)]),
        (("20-22,~80",), [tcp(20, 22)]),
        (("00022",), [tcp(22, 22)]),
        (("40000",), [tcp(40000, 40000)]),
    ],
)
def test_ports(texts: tuple[str, ...], expected: list[PortForward]) -> None:
    assert list(parse(*texts)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", []),
        ("22", [tcp(22, 22)]),
        ("22:23", [tcp(22, 22, 23)]),
        ("22,25", [tcp(22, 22), tcp(25, 25)]),
        ("22-80", [tcp(22, 80)]),
        ("22-80:32-90", [tcp(22, 80, 32)]),
        ("192.0.2.1/22", [tcp(22, 22, where="192.0.2.1")]),
        ("192.0.2.1%eth0/22", [tcp(22, 22, where="192.0.2.1%eth0")]),
        ("2000-5000,~3000-3010", [tcp(2000, 2999), tcp(3011, 5000)]),
        ("192.0.2.1/20-30,~25", [tcp(20, 24, where="192.0.2.1"), tcp(26, 30, where="192.0.2.1")]),
        (
            "~20000-20010",
            [tcp(1, 19999, spare=True), tcp(20011, 32767, spare=True), tcp(61000, 65535, spare=True)],
        ),
        ("all", [tcp(1, 32767, spare=True), tcp(61000, 65535, spare=True)]),
    ],
)
def test_examples_of_passts_manual(text: str, expected: list[PortForward]) -> None:
    """passt(1), --tcp-ports: each of them, with the meaning that is stated there."""
    assert list(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("192.0.2.1/22", "192.0.2.1"),
        ("127.0.0.1/22", "127.0.0.1"),
        ("0.0.0.0/22", "0.0.0.0"),
        ("2001:db8::1/22", "2001:db8::1"),
        ("[2001:db8::1]/22", "2001:db8::1"),
        ("[2001:db8::1]%eth0/22", "2001:db8::1%eth0"),
        ("::/22", "::"),
        ("::1/22", "::1"),
        ("fe80::1%eth0/22", "fe80::1%eth0"),
        ("[fe80::1]%eth0/22", "fe80::1%eth0"),
        ("%eth0/22", "%eth0"),
        ("0.0.0.0%eth0/22", "0.0.0.0%eth0"),
        ("%eth0.10-a_b@c/22", "%eth0.10-a_b@c"),
        ("%fifteen-bytes-x/22", "%fifteen-bytes-x"),
    ],
)
def test_where(text: str, where: str) -> None:
    assert parse(text) == (tcp(22, 22, where=where),)


def test_a_place_holds_for_all_chunks_and_no_other_specification() -> None:
    assert parse("192.0.2.1%lo/22,23", "24") == (
        tcp(22, 22, where="192.0.2.1%lo"),
        tcp(23, 23, where="192.0.2.1%lo"),
        tcp(24, 24),
    )


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ("192.0.2.1/all",),
            [tcp(1, 32767, where="192.0.2.1", spare=True), tcp(61000, 65535, where="192.0.2.1", spare=True)],
        ),
        (("%eth0/~1-65000",), [tcp(65001, 65535, where="%eth0", spare=True)]),
        (("~1-64999,~65001-65535",), [tcp(65000, 65000, spare=True)]),
        (
            ("192.0.2.1/~1-65534", "2001:db8::1/~1-65534"),
            [tcp(65535, 65535, where="192.0.2.1", spare=True), tcp(65535, 65535, where="2001:db8::1", spare=True)],
        ),
        # A port that is named comes before one that is meant by "all", also where it is bound less widely.
        (
            ("all", "2222:22"),
            [
                tcp(2222, 2222, 22),
                tcp(1, 2221, spare=True),
                tcp(2223, 32767, spare=True),
                tcp(61000, 65535, spare=True),
            ],
        ),
        (
            ("2222:22", "~1-2220,~2224-65535"),
            [tcp(2222, 2222, 22), tcp(2221, 2221, spare=True), tcp(2223, 2223, spare=True)],
        ),
        (("192.0.2.1/80", "~1-79,~82-65535"), [tcp(80, 80, where="192.0.2.1"), tcp(81, 81, spare=True)]),
        (("%eth0/~1-79,~82-65535", "%eth1/80"), [tcp(80, 80, where="%eth1"), tcp(80, 81, where="%eth0", spare=True)]),
        (("::/~1-79,~82-65535", "0.0.0.0/80"), [tcp(80, 80, where="0.0.0.0"), tcp(80, 81, where="::", spare=True)]),
        (("all", "1-32767,61000-65535"), [tcp(1, 32767), tcp(61000, 65535)]),
    ],
)
def test_all_but(texts: tuple[str, ...], expected: list[PortForward]) -> None:
    assert list(parse(*texts)) == expected


def test_all_of_a_host_with_other_ephemeral_ports() -> None:
    assert parse("all", ephemeral=range(1024, 65536)) == (tcp(1, 1023, spare=True),)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("",), "a port number is missing"),
        (("22,",), "a port number is missing"),
        ((",22",), "a port number is missing"),
        (("22,,23",), "a port number is missing"),
        (("22-",), "a port number is missing"),
        (("-22",), "a port number is missing"),
        (("22:",), "a port number is missing"),
        ((":22",), "a port number is missing"),
        (("192.0.2.1/",), "a port number is missing"),
        (("~",), "a port number is missing"),
        (("22,~",), "a port number is missing"),
        (("~22:23",), "'22:23' is not a port number"),
        (("~~22",), "'~22' is not a port number"),
        (("ssh",), "'ssh' is not a port number"),
        (("22-24-26",), "'24-26' is not a port number"),
        (("22:23:24",), "'23:24' is not a port number"),
        ((" 22",), "' 22' is not a port number"),
        (("+22",), "'+22' is not a port number"),
        (("%eth0",), "'%eth0' is not a port number"),
        (("192.0.2.1",), "'192.0.2.1' is not a port number"),
        (("192.0.2.1/none",), "'none' is not a port number"),
        (("0",), "port 0 is not between 1 and 65535"),
        (("0-5",), "port 0 is not between 1 and 65535"),
        (("22:0",), "port 0 is not between 1 and 65535"),
        (("~0",), "port 0 is not between 1 and 65535"),
        (("22,65536",), "port 65536 is not between 1 and 65535"),
        (("22:65536",), "port 65536 is not between 1 and 65535"),
        (("1-5:65532-65536",), "port 65536 is not between 1 and 65535"),
        (("24-22",), "the range '24-22' ends before it starts"),
        (("1:24-22",), "the range '24-22' ends before it starts"),
        (("~24-22",), "the range '24-22' ends before it starts"),
        (("22-24:30-31",), "'22-24' and '30-31' are not equally long"),
        (("22:30-31",), "'22' and '30-31' are not equally long"),
        (("22-24:30",), "'22-24' and '30' are not equally long"),
        (("22,22",), "port 22 is given more than once"),
        (("22,22:23",), "port 22 is given more than once"),
        (("20-30,25",), "port 25 is given more than once"),
        (("20-30,22-23,28,40",), "ports 22-23, 28 are given more than once"),
        (("22", "192.0.2.1/22"), "port 22 is given more than once"),
        (("192.0.2.1/22", "0.0.0.0/22"), "port 22 is given more than once"),
        (("22", "%eth0/22"), "port 22 is given more than once"),
        (("192.0.2.1%eth0/22", "192.0.2.1/22"), "port 22 is given more than once"),
        (("192.0.2.1%eth0/22", "%eth0/22"), "port 22 is given more than once"),
        (("fe80::1%eth0/22", "[fe80::1]%eth0/22"), "port 22 is given more than once"),
        (("none", "22"), "contradicts '22'"),
        (("22", "none"), "contradicts '22'"),
        (("none", "all"), "contradicts 'all'"),
        (("all", "all"), "'all' means all other ports already; exclusions belong into one list"),
        (("~22", "~80"), "'~22' means all other ports already; exclusions belong into one list"),
        (("all", "192.0.2.1/~80"), "'all' means all other ports already; exclusions belong into one list"),
        (
            ("all,22",),
            "'all' stands alone: exclusions alone mean all others, ports are named apart",
        ),
        (("auto",), "'auto' is for namespaces: a virtual machine does not tell which ports are open"),
        (("22,~22",), "the exclusions leave no port"),
        (("~1-65535",), "the exclusions leave no port"),
        (("~1-40000,~50000-65535",), "the exclusions leave no port"),
        (("192.0.2/22",), "'192.0.2' is not an IPv4 or IPv6 address"),
        (("/22",), "'' is not an IPv4 or IPv6 address"),
        (("[192.0.2.1]/22",), "'[192.0.2.1]' is not an IPv4 or IPv6 address"),
        (("[fe80::1%eth0]/22",), "'[fe80::1' is not an IPv4 or IPv6 address"),
        (("eth0%eth0/22",), "'eth0' is not an IPv4 or IPv6 address"),
        (("ff02::1/22",), "'ff02::1' is a multicast address"),
        (("224.0.0.1/22",), "'224.0.0.1' is a multicast address"),
        (("::ffff:192.0.2.1/22",), "'::ffff:192.0.2.1' is the IPv4 address 192.0.2.1"),
        (("fe80::1/22",), "a link-local address is one of a certain interface ('fe80::1%INTERFACE/...')"),
        (("%/22",), "'' is not an interface's name"),
        (("192.0.2.1%/22",), "'' is not an interface's name"),
        (("%sixteen-bytes-xx/22",), "'sixteen-bytes-xx' is not an interface's name"),
        (("%e h/22",), "'e h' is not an interface's name"),
        (("%a/b/22",), "'a/b' is not an interface's name"),
    ],
)
def test_refused(texts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*texts)
    value, found = str(caught.value).removeprefix("invalid value ").split(" for option '--tcp-ports': ")
    assert found == reason
    assert value.strip("'") in texts


@pytest.mark.parametrize(
    "texts",
    [
        ("192.0.2.1/22", "192.0.2.2/22"),
        ("0.0.0.0/22", "::/22"),
        ("192.0.2.1/22", "2001:db8::1/22:23"),
        ("%eth0/22", "%eth1/22"),
        ("fe80::1%eth0/22", "fe80::1%eth1/22"),
    ],
)
def test_one_port_in_several_places(texts: tuple[str, ...]) -> None:
    assert len(parse(*texts)) == 2


@pytest.mark.parametrize("text", ["auto", "22,auto", "~22,auto", "::1/auto", "auto,auto"])
def test_auto_is_for_namespaces(text: str) -> None:
    with pytest.raises(UsageError, match="'auto' is for namespaces: a virtual machine does not tell"):
        parse(text)
    assert parse_automatic_ports("--tcp-ports", Protocol.TCP, [text], ephemeral=EPHEMERAL).automatic


@pytest.mark.parametrize("texts", [("all", "auto"), ("auto", "auto"), ("~1,auto", "127.0.0.1/~2,auto")])
def test_all_ports_of_one_place_are_meant_once(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="means all other ports already"):
        parse_automatic_ports("--tcp-ports", Protocol.TCP, texts, ephemeral=EPHEMERAL)


class TestUdpFollows:
    """Without `-u`."""

    def test_in_the_same_place_and_untranslated(self) -> None:
        assert follow(parse("127.0.0.1%lo/2222-2223:22-23")) == (
            PortForward(Protocol.UDP, 2222, 2223, 2222, IPv4Address("127.0.0.1"), "lo", Binding.WANTED),
        )

    def test_what_is_spare(self) -> None:
        assert follow(parse("22", "~1-79,~82-65535")) == (
            PortForward(Protocol.UDP, 22, 22, 22, binding=Binding.WANTED),
            PortForward(Protocol.UDP, 80, 81, 80, binding=Binding.SPARE),
        )


PORTS = st.integers(1, 65535)


@st.composite
def chunks(draw: st.DrawFn) -> str:
    """PORT[-PORT][:TARGET[-TARGET]]"""
    first, target = draw(PORTS), draw(st.none() | PORTS)
    length = draw(st.none() | st.integers(0, 65535 - max(first, target or 0)))
    text = f"{first}" if length is None else f"{first}-{first + length}"
    if target is not None:
        text += f":{target}" if length is None else f":{target}-{target + length}"
    return text


@st.composite
def exclusions(draw: st.DrawFn) -> str:
    """~PORT[-PORT]"""
    first, last = sorted(draw(st.tuples(PORTS, PORTS)))
    return f"~{first}-{last}" if draw(st.booleans()) else f"~{first}"


PLACES = st.sampled_from(["", "192.0.2.1/", "[2001:db8::1]/", "::1/", "%eth0/", "fe80::1%eth1/", "0.0.0.0%eth0/"])
SPECIFICATIONS = st.builds(
    "{}{}".format,
    PLACES,
    st.just("all") | st.lists(chunks() | exclusions(), min_size=1, max_size=8).map(",".join),
)


@given(st.lists(SPECIFICATIONS, max_size=4), st.sampled_from([EPHEMERAL, range(0), range(1024, 65536)]))
def test_parse_and_print_and_parse(texts: list[str], ephemeral: range) -> None:
    """What is understood is what was meant, port by port, and comes back as the same."""
    try:
        forwards = parse(*texts, ephemeral=ephemeral)
    except UsageError:
        return
    assert parse(*specifications(forwards, ephemeral=ephemeral), ephemeral=ephemeral) == forwards
    for forward in forwards:
        assert 1 <= forward.first <= forward.last <= 65535
        assert 1 <= forward.target <= forward.target_of(forward.last) <= 65535


@given(st.lists(SPECIFICATIONS | SPECIFICATIONS.map("{},auto".format), max_size=4))
def test_no_port_is_forwarded_twice_at_one_place(texts: list[str]) -> None:
    """Nor a candidate where it is forwarded; and "auto" changes nothing about the ports that are named."""
    try:
        ports = parse_automatic_ports("-t", Protocol.TCP, texts, ephemeral=EPHEMERAL)
    except UsageError:
        return
    seen: list[PortForward] = []
    for forward in (*ports.forwards, *ports.automatic):
        where = Where(forward.address, forward.interface)
        for other in seen:
            if set(forward.ports) & set(other.ports):
                assert not where.overlaps(Where(other.address, other.interface))
        seen.append(forward)
    assert all(forward.binding is Binding.SPARE for forward in ports.automatic)
    named = [text for text in texts if not text.endswith(",auto") and "~" not in text and "all" not in text]
    assert set(parse(*named)) <= set(ports.forwards)


@given(st.dictionaries(PORTS, PORTS, max_size=30))
def test_print_and_parse(mapping: dict[int, int]) -> None:
    forwards = tuple(tcp(port, port, target) for port, target in mapping.items())
    assert parse(*specifications(forwards, ephemeral=EPHEMERAL)) == forwards


@given(st.text(alphabet="0123456789-:,~/.%[]ax", max_size=12))
def test_anything_is_ports_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(1 <= forward.first <= 65535 and 1 <= forward.target <= 65535 for forward in parse(text))
