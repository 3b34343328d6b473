"""Port numbers as runs of neighbours."""

from hypothesis import given
from hypothesis import strategies as st

from trio_passt.host.port_ranges import ALL_PORTS, others, runs

PORTS = st.integers(1, 65535)
RANGES = st.lists(
    st.tuples(PORTS, PORTS).map(lambda pair: range(min(pair), max(pair) + 1)) | st.just(range(0)), max_size=6
)


@given(RANGES)
def test_others_are_all_that_are_not_taken(taken: list[range]) -> None:
    numbers = {port for run in taken for port in run}
    assert others(taken) == runs(sorted(set(ALL_PORTS) - numbers))


def test_others_of_none_and_of_all() -> None:
    assert others([]) == [range(1, 65536)]
    assert others([ALL_PORTS]) == []
    assert others([range(1, 2), range(65535, 65536)]) == [range(2, 65535)]
