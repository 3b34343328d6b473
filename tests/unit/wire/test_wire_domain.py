import pytest
from codec_checks import domain_names, moderately, parses_or_is_malformed, survives_truncation
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import dns_get_str

from trio_passt.wire import domain
from trio_passt.wire.errors import MalformedPacket

name_lists = st.lists(domain_names, max_size=8)
LAB = b"\x03lab\x07example\x03com\x00"


def test_pointer_to_a_pointer() -> None:
    assert domain.parse_list(LAB + b"\x01a\xc0\x04" + b"\x01b\xc0\x13\x01c\x00") == (
        "lab.example.com",
        "a.example.com",
        "b.example.com",
        "c",
    )


def test_names_as_rfc_1035_writes_them() -> None:
    assert domain.emit("lab.example.com") == LAB
    assert domain.emit("lab.example.com.") == LAB
    assert domain.parse_list(LAB * 2) == ("lab.example.com",) * 2


def test_the_example_of_rfc_3397() -> None:
    names = ("eng.apple.com", "marketing.apple.com")
    written = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"
    assert domain.emit_compressed(names) == written
    assert domain.parse_list(written) == names


def test_scapy_reads_the_compressed_list() -> None:
    names = ["a.lab.example.com", "lab.example.com", "example.com", "other.org"]
    value = domain.emit_compressed(names)
    assert len(value) < len(domain.emit_list(names))
    rest, seen = value, []
    while rest:
        name, rest = dns_get_str(rest, full=value)[:2]
        seen.append(name.decode().removesuffix("."))
    assert seen == names


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", ".a", "x" * 64, "ä.example", "with space", "tab\t", ".".join(["a" * 63] * 4)],
)
def test_names_that_dns_cannot_write(name: str) -> None:
    assert not domain.is_encodable(name)
    for emit in (domain.emit, lambda bad: domain.emit_list([bad]), lambda bad: domain.emit_compressed([bad])):
        with pytest.raises(ValueError, match="not a domain name"):
            emit(name)


def test_longest_name() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(domain.emit(longest)) == domain.MAX_NAME_BYTES
    assert domain.parse_list(domain.emit(longest)) == (longest,)
    assert not domain.is_encodable(longest + "b")


@moderately
@given(name_lists)
def test_round_trip(names: list[str]) -> None:
    assert list(domain.parse_list(domain.emit_list(names))) == names
    assert list(domain.parse_list(domain.emit_compressed(names))) == names
    assert list(domain.parse_list(domain.emit_list(names) + bytes(7), padded=True)) == names


def test_endings_beyond_the_reach_of_a_pointer_are_written_out() -> None:
    names = [f"{index:x}{'x' * 60}.{index:x}.org" for index in range(300)]
    assert list(domain.parse_list(domain.emit_compressed(names))) == names


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x03lab", "over the end"),
        (b"\x04lab", "over the end"),
        (b"\xc0", "lead back"),
        (b"\xc0\x00", "lead back"),
        (b"\x01a\xc0\x00", "lead back"),
        (b"\x01a\xc0\x02", "lead back"),
        (LAB + b"\xc0\x13\xc0\x11", "lead back"),
        (b"\x01a\xc0\x7f", "lead back"),
        (b"\x00", "root"),
        (b"\x40" + b"a" * 64 + b"\x00", "64 bytes"),
        ((b"\x3f" + b"a" * 63) * 4 + b"\x00", "257 in all"),
        (b"\x03a.b\x00", "label"),
        (b"\x03\xc3\xa4x\x00", "label"),
        (b"\x01\x00\x00", "label"),
    ],
)
def test_malformed_lists(data: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        domain.parse_list(data)


@pytest.mark.parametrize(
    ("data", "name", "qualified"),
    [
        (b"", "", False),
        (b"\0", "", False),
        (b"\5guest", "guest", False),
        (b"\5guest\0", "guest", True),
        (b"\5guest\3lab", "guest.lab", False),
        (LAB, "lab.example.com", True),
    ],
)
def test_a_name_alone(data: bytes, name: str, qualified: bool) -> None:
    assert domain.parse_alone(data) == (name, qualified)
    if data != b"\0":
        assert (domain.emit(name) if qualified else domain.emit_partial(name)) == data


@pytest.mark.parametrize("data", [LAB + b"\0", LAB * 2, b"\1a\xc0\0", b"\4lab", b"\3la", b"\2a.", b"\x40" + b"a" * 64])
def test_malformed_names_alone(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        domain.parse_alone(data)


def test_partial_names_that_dns_cannot_write() -> None:
    with pytest.raises(ValueError, match="not a domain name"):
        domain.emit_partial("a..b")


@moderately
@given(domain_names)
def test_round_trip_of_a_name_alone(name: str) -> None:
    assert domain.parse_alone(domain.emit(name)) == (name, True)
    assert domain.parse_alone(domain.emit_partial(name)) == (name, False)


def test_padding_where_there_may_be_none() -> None:
    with pytest.raises(MalformedPacket, match="root"):
        domain.parse_list(LAB + bytes(3))


def test_chain_of_pointers_ends() -> None:
    """Each points to the one before it: quick, and the name stays within its bound."""
    chain = b"\x01a\x00" + b"".join(b"\x01b\xc0" + bytes((2 * index,)) for index in range(60))
    parses_or_is_malformed(domain.parse_list, chain)
    grown = b"\x3f" + b"a" * 63 + b"\xc0\x00"
    parses_or_is_malformed(domain.parse_list, b"\x01a\x00" + grown * 200)


@moderately
@given(st.lists(st.sampled_from([b"\xc0", b"\x00", b"\x01", b"a", b"\x3f", b"\xff"]) | st.binary(max_size=3)))
def test_arbitrary_bytes(parts: list[bytes]) -> None:
    data = b"".join(parts)
    for padded in (False, True):
        parses_or_is_malformed(domain.parse_alone, data)
        names = parses_or_is_malformed(lambda data: domain.parse_list(data, padded=padded), data)  # noqa: B023
        assert names is None or list(names) == list(domain.parse_list(domain.emit_list(names)))


def test_truncation() -> None:
    survives_truncation(domain.parse_list, domain.emit_compressed(["a.b.c", "x.b.c"]), required_bytes=0)
    survives_truncation(domain.parse_alone, LAB, required_bytes=0)
