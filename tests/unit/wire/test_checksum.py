from codec_checks import address_pairs, moderately
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from trio_passt.wire import checksum


def naive_sum(data: bytes) -> int:
    """RFC 1071 section 4.1, word by word."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@moderately
@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff" * 64)
@example(b"\xff" * 65)
@example(b"\0" * 67)
def test_sum_is_that_of_rfc_1071_in_both_ways(data: bytes) -> None:
    assert checksum.sum_of(data) == naive_sum(data)
    assert checksum.sum_of(memoryview(data)) == naive_sum(data)
    assert checksum.checksum(data) == scapy_checksum(data)


def test_sum_around_the_change_to_numpy_and_at_odd_offsets() -> None:
    data = bytes(range(1, 200))
    for start in range(4):
        for end in range(56 + start, 80 + start):
            assert checksum.sum_of(memoryview(data)[start:end]) == naive_sum(data[start:end])


def test_sum_of_the_largest_payload_does_not_overflow() -> None:
    assert checksum.sum_of(b"\xff" * 65535) == naive_sum(b"\xff" * 65535)
    assert checksum.sum_of(b"\xff" * (1 << 20)) == 0xFFFF


@moderately
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_sums_of_parts_add_up(first: bytes, second: bytes) -> None:
    first = first[: len(first) & ~1]
    whole = checksum.sum_of(first + second)
    assert checksum.fold(checksum.sum_of(first) + checksum.sum_of(second)) == whole


@moderately
@given(st.binary(max_size=200))
def test_what_was_summed_is_valid(data: bytes) -> None:
    data = data[: len(data) & ~1]
    field = checksum.checksum(data).to_bytes(2, "big")
    assert checksum.is_valid(data + field)


def test_a_flipped_bit_is_found() -> None:
    data = bytearray(range(100))
    data += checksum.checksum(data).to_bytes(2, "big")
    for index in range(len(data)):
        data[index] ^= 0x10
        assert not checksum.is_valid(data)
        data[index] ^= 0x10


def test_all_zeros_are_not_a_valid_header() -> None:
    assert checksum.fold(0) == 0
    assert checksum.finish(0) == 0xFFFF
    assert not checksum.is_valid(bytes(20))


@moderately
@given(address_pairs, st.integers(0, 255), st.integers(0, 0x1FFFF))
def test_pseudo_header(addresses: tuple[bytes, bytes], protocol: int, length: int) -> None:
    written_out = b"".join(addresses) + length.to_bytes(4, "big") + bytes(3) + bytes((protocol,))
    assert checksum.pseudo_header_sum(*addresses, protocol, length) == naive_sum(written_out)
