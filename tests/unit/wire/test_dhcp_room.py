"""DHCP messages with more options than room: what goes where (RFC 2132 section 9.3), and what is left out."""

import pytest
from codec_checks import moderately
from dhcp_messages import message_with, messages
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP

from trio_passt.wire import dhcp
from trio_passt.wire.dhcp import DhcpMessage, DhcpOption

ROOM = 300 - dhcp.EMPTY_MESSAGE_BYTES
TYPE = (53, b"\x05")

small_options = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != 52), st.binary(max_size=70), max_size=12
)


def codes_of(encoded: bytes) -> list[int]:
    return [code for code, _ in dhcp.parse(encoded).options]


def test_what_does_not_fit_goes_into_file_and_sname() -> None:
    message = message_with(TYPE, (6, b"d" * 40), (119, b"s" * 100), (15, b"n" * 60), (12, b"h" * 200))
    encoded = dhcp.emit(message, 300)
    assert len(encoded) == 300
    assert encoded[240:285] == b"\x35\x01\x05" + b"\x06\x28" + b"d" * 40
    assert encoded[285:289] == b"\x34\x01\x03\xff"
    assert encoded[108:211] == b"\x77\x64" + b"s" * 100 + b"\xff"
    assert encoded[44:107] == b"\x0f\x3c" + b"n" * 60 + b"\xff"
    assert dhcp.parse(encoded).options == (TYPE, (6, b"d" * 40), (119, b"s" * 100), (15, b"n" * 60))


@pytest.mark.parametrize(("size", "overload"), [(ROOM - 3 - 2, None), (ROOM - 3 - 1, 1), (125, 1), (126, None)])
def test_the_last_byte_of_each_field(size: int, overload: int | None) -> None:
    encoded = dhcp.emit(message_with(TYPE, (12, b"h" * size)), 300)
    assert (encoded[243:246] == bytes((52, 1, overload or 0))) is (overload is not None)
    assert dhcp.parse(encoded).option(12) == (None if size > 125 else b"h" * size)


@pytest.mark.parametrize(("size", "overload"), [(61, 2), (62, None)])
def test_the_last_byte_of_sname(size: int, overload: int | None) -> None:
    encoded = dhcp.emit(message_with(TYPE, (119, b"s" * 125), (12, b"h" * size)), 300)
    assert codes_of(encoded) == ([53, 119, 12] if overload else [53, 119])


def test_bootp_is_not_overloaded() -> None:
    crowded = message_with(TYPE, (119, b"s" * 60), (15, b"n" * 10))
    assert codes_of(dhcp.emit(crowded, 300, may_overload=False)) == [53, 15]


def test_options_in_parts_stay_together() -> None:
    """RFC 3396: whole in one field, or not at all."""
    message = message_with((119, b"s" * 300), TYPE)
    assert codes_of(dhcp.emit(message, 300 + 244)) == [53]
    encoded = dhcp.emit(message, 300 + 248)
    assert dhcp.parse(encoded).option(119) == b"s" * 300
    assert encoded[240:242] == b"\x77\xff"
    assert encoded[240 + 257 : 240 + 259] == b"\x77\x2d"


class TestNamesInTheFields:
    CROWDED = (TYPE, (6, b"d" * 40), (119, b"s" * 100))

    def test_they_stay_while_all_fits(self) -> None:
        message = message_with(TYPE, server_name=b"server", boot_file=b"boot")
        parsed = dhcp.parse(dhcp.emit(message, 300))
        assert (parsed.server_name, parsed.boot_file, parsed.options) == (b"server", b"boot", (TYPE,))

    def test_only_the_free_field_is_taken_if_that_suffices(self) -> None:
        parsed = dhcp.parse(dhcp.emit(message_with(*self.CROWDED, server_name=b"server"), 300))
        assert (parsed.server_name, parsed.options) == (b"server", self.CROWDED)
        parsed = dhcp.parse(dhcp.emit(message_with(TYPE, (15, b"n" * 60), boot_file=b"boot"), 300))
        assert (parsed.boot_file, parsed.options) == (b"boot", (TYPE, (15, b"n" * 60)))

    def test_they_become_options_where_the_fields_are_needed(self) -> None:
        parsed = dhcp.parse(dhcp.emit(message_with(*self.CROWDED, boot_file=b"boot", server_name=b"server"), 300))
        assert (parsed.server_name, parsed.boot_file) == (b"", b"")
        assert dict(parsed.options) == dict(self.CROWDED) | {67: b"boot", 66: b"server"}

    def test_they_are_options_already(self) -> None:
        message = message_with(*self.CROWDED, (67, b"boot"), (66, b"server"), boot_file=b"boot", server_name=b"server")
        parsed = dhcp.parse(dhcp.emit(message, 300))
        assert dict(parsed.options) == dict(message.options)

    def test_a_long_one_stays_if_it_would_be_lost(self) -> None:
        message = message_with(*self.CROWDED, boot_file=b"f" * 127)
        parsed = dhcp.parse(dhcp.emit(message, 300, dearest=(53, 6)))
        assert (parsed.boot_file, codes_of(dhcp.emit(message, 300, dearest=(53, 6)))) == (b"f" * 127, [53, 6])

    def test_unless_something_dearer_would(self) -> None:
        message = message_with(TYPE, (61, b"i" * 45), (6, b"d" * 64), boot_file=b"f" * 127)
        parsed = dhcp.parse(dhcp.emit(message, 300, dearest=(53, 61, 6)))
        assert parsed.boot_file == b"f" * 127, "one of two is lost in any case, and what is there stays"
        assert parsed.option(6) is None


class TestDearest:
    def test_they_are_there_wherever_they_stand(self) -> None:
        message = message_with((119, b"s" * 100), (15, b"n" * 60), (12, b"h" * 45), (121, b"r" * 14), (3, b"gway"))
        encoded = dhcp.emit(message, 300, dearest=(3, 121))
        assert codes_of(encoded) == [12, 3, 119, 121, 15]
        assert codes_of(dhcp.emit(message, 300, dearest=(3, 121), may_overload=False)) == [121, 3]

    def test_in_the_order_of_the_options(self) -> None:
        message = message_with((119, b"s" * 200), (6, b"dns1"), (3, b"gway"), TYPE)
        assert codes_of(dhcp.emit(message, 300, dearest=(53, 3, 6))) == [6, 3, 53]

    def test_the_dearest_of_them_first(self) -> None:
        message = message_with((1, b"a" * 40), (2, b"b" * 40), (3, b"c" * 40))
        for code in (1, 2, 3):
            assert codes_of(dhcp.emit(message, 300, dearest=(code, 1, 2, 3), may_overload=False)) == [code]

    def test_codes_that_are_not_there(self) -> None:
        message = message_with((119, b"s" * 200), TYPE)
        assert codes_of(dhcp.emit(message, 300, dearest=(1, 53, 53))) == [53]


@moderately
@given(messages, st.integers(300, 800), st.booleans(), st.lists(st.integers(0, 255), max_size=5))
def test_any_limit_is_kept_and_what_fits_is_told(
    message: DhcpMessage, limit_bytes: int, may_overload: bool, dearest: list[int]
) -> None:
    encoded = dhcp.emit(message, limit_bytes, may_overload=may_overload, dearest=dearest)
    assert 300 <= len(encoded) <= limit_bytes
    parsed = dhcp.parse(encoded)
    moved = {(DhcpOption.BOOT_FILE, message.boot_file), (DhcpOption.SERVER_NAME, message.server_name)}
    assert set(parsed.options) <= set(message.options) | moved
    assert {parsed.boot_file, parsed.option(67)} & {message.boot_file, message.option(67)}
    assert BOOTP(encoded).xid == message.transaction_id


@moderately
@given(small_options, st.integers(300, 600), st.permutations(range(1, 255)))
def test_what_is_left_out_is_not_the_dearest(options: dict[int, bytes], limit_bytes: int, dearest: list[int]) -> None:
    encoded = dhcp.emit(message_with(*options.items()), limit_bytes, dearest=dearest)
    told = dict(dhcp.parse(encoded).options)
    assert told.items() <= options.items()
    assert not options or min(options, key=dearest.index) in told
    if dhcp.encoded_bytes(options) <= limit_bytes - dhcp.EMPTY_MESSAGE_BYTES:
        assert list(told.items()) == list(options.items())
