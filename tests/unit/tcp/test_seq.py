from hypothesis import given
from hypothesis import strategies as st

from trio_passt.tcp import seq

numbers = st.integers(0, 2**32 - 1)


@given(numbers, st.integers(-(2**31), 2**31 - 1))
def test_distance_is_what_was_added(start: int, count: int) -> None:
    end = seq.add(start, count)
    assert 0 <= end < 2**32
    assert seq.distance(start, end) == count


@given(numbers, numbers)
def test_there_and_back(one: int, other: int) -> None:
    there, back = seq.distance(one, other), seq.distance(other, one)
    assert there == -back or there == back == -(2**31)


def test_half_way_round_lies_before() -> None:
    assert seq.distance(0, 2**31) == -(2**31)
    assert seq.distance(2**32 - 1, 0) == 1
    assert seq.distance(0, 2**32 - 1) == -1
