"""The order in which the benchmark measures, and what it shows meanwhile."""

import io
from collections import Counter

from tests.bench.cells import (
    ALL,
    FLOOR,
    OURS,
    OURS_PASTA,
    PASST,
    PASTA,
    PROGRAMS,
    SHORT,
    SLIRP,
    Attachment,
    Bulk,
    Local,
    Lookups,
)
from tests.bench.progress import Progress
from tests.bench.schedule import Plan, rotated


def test_rotation() -> None:
    assert [rotated("abc", by) for by in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_each_cell_is_measured_in_each_round_with_each_program() -> None:
    plan = Plan(ALL, PROGRAMS, rounds=3, seconds=2.0)
    counted = Counter((cell.name, name) for turn in plan.turns() for cell, names in turn.cells for name in names)
    assert set(counted.values()) == {3}
    assert plan.measurement_count() == counted.total()
    for cell in ALL:
        programs = {name for counted_cell, name in counted if counted_cell == cell.name} - {FLOOR}
        if isinstance(cell, Local):
            assert programs == {OURS_PASTA, PASTA}
        elif cell.attachment is Attachment.NAMESPACE:
            assert programs == {OURS_PASTA, PASTA, SLIRP}
        else:
            assert programs == {OURS, PASST, SLIRP}


def test_the_floor_is_measured_at_one_mtu_only() -> None:
    plan = Plan(ALL, PROGRAMS, rounds=1, seconds=2.0)
    with_floor = [cell for turn in plan.turns() for cell, names in turn.cells if FLOOR in names]
    assert {cell.mtu_bytes for cell in with_floor} == {65520}
    assert len([cell for cell in with_floor if isinstance(cell, Bulk)]) == 4 + 2


def test_no_program_is_always_the_first() -> None:
    plan = Plan(ALL, PROGRAMS, rounds=4, seconds=2.0)
    for cell in ALL:
        first = [names[0] for turn in plan.turns() for measured, names in turn.cells if measured == cell]
        assert len(set(first)) > 1


def test_lookups_are_the_last_of_their_mtu() -> None:
    """They stop the programs, which would have to be started again."""
    turn = next(Plan(ALL, PROGRAMS, rounds=1, seconds=2.0).turns())
    assert [isinstance(cell, Lookups) for cell, _ in turn.cells].index(True) == len(turn.cells) - 1


def test_cells_of_an_attachment_and_mtu_are_measured_together() -> None:
    turns = [(turn.attachment, turn.mtu_bytes) for turn in Plan(ALL, PROGRAMS, rounds=2, seconds=2.0).turns()]
    machine, namespace = Attachment
    assert turns == [*((machine, mtu) for mtu in (65520, 9000, 1500)), (namespace, 65520), (namespace, 1500)] * 2


def test_only_what_is_measured_is_started() -> None:
    for turn in Plan(ALL, PROGRAMS, rounds=1, seconds=2.0).turns():
        expected = set(turn.attachment.programs) - ({FLOOR} if turn.mtu_bytes != 65520 else set())
        assert {name for name in PROGRAMS if turn.uses(name)} == expected


def test_a_smoke_test_measures_only_ours_of_a_namespace() -> None:
    for turn in Plan(SHORT, PROGRAMS, rounds=1, seconds=0.5, is_smoke_test=True).turns():
        used = {name for name in PROGRAMS if turn.uses(name)}
        assert used == {OURS_PASTA} if turn.attachment is Attachment.NAMESPACE else used >= {OURS, PASST, SLIRP}


def test_progress_is_a_line_for_each_cell() -> None:
    stream = io.StringIO()
    progress = Progress(4, stream)
    for cell in ("a", "b"):
        progress.begin(cell)
        progress.add(OURS, "1")
        progress.add(PASST, "2")
        progress.end()
    first, second = stream.getvalue().splitlines()
    assert first == "[  0%, 0:00] a:  trio-passt 1  passt 2"
    assert second == "[ 50%, 0:00, 0:00 left] b:  trio-passt 1  passt 2"
