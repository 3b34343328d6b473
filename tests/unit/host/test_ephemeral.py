"""Ephemeral ports, and runs of ports."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_passt.host.ephemeral import USUAL, ephemeral_ports
from trio_passt.host.port_ranges import runs, text


def test_of_this_host() -> None:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert ephemeral_ports() == range(int(first), int(last) + 1)


@pytest.mark.parametrize("content", ["", "32768", "a b", "1 2 3"])
def test_file_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    (tmp_path / "range").write_text(content)
    assert ephemeral_ports(tmp_path / "range") == USUAL == range(32768, 61000)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert ephemeral_ports(tmp_path / "range") == USUAL


@given(st.sets(st.integers(1, 65535)))
def test_runs(ports: set[int]) -> None:
    found = runs(sorted(ports))
    assert [port for run in found for port in run] == sorted(ports)
    assert all(one.stop < other.start for one, other in pairwise(found))


def test_text() -> None:
    assert [text(run) for run in runs([1, 2, 3, 7])] == ["1-3", "7"]
