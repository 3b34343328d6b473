"""The benchmark's page."""

from tests.bench import table
from tests.bench.about import About
from tests.bench.cells import (
    ALL,
    DNS,
    DNS_MEDIAN,
    FLOOR,
    NAMESPACE,
    OURS,
    OURS_PASTA,
    PASST,
    PASTA,
    PROGRAMS,
    RR,
    SLIRP,
    UDP,
    UDP_RR,
    Attachment,
    Bulk,
    Cpu,
    Direction,
    Flood,
    Local,
    rows,
)
from tests.bench.results import Idle, Results, Samples, Sharing
from tests.bench.targets import Target

UP = Bulk(Direction.UP, 65520, 1)
FLOOD = Flood(Direction.UP, 9000)
ABOUT = About("2025-01-02", "6.1.0", "A CPU", 2, 0.5, "cubic", {OURS: "0.1.0 (abc)", PASST: "0.0~git1"}, 5, 2.0)


def _cells(line: str) -> list[str]:
    return [text.strip() for text in line.strip("|").split("|")]


def test_a_row() -> None:
    results = Results(PROGRAMS, [UP])
    for ours, passt in ((5.0, 4.0), (6.0, 3.0), (7.0, 2.0)):
        results.add(UP, OURS, ours)
        results.add(UP, PASST, passt)
    results.add_failure(UP, SLIRP, "no way")
    header, line, row = table.table(results, [UP])
    assert _cells(header) == ["", OURS, PASST, SLIRP, "trio-passt / passt", "trio-passt / slirp4netns"]
    assert set(line) == {"|", "-"}
    assert _cells(row) == [UP.title, "6.00 (5.00-7.00)", "3.00 (2.00-4.00)", "failed", "2.00", "–"]
    assert len(header) == len(line) == len(row)


def test_rates_are_whole_numbers() -> None:
    results = Results([OURS], [RR])
    results.add(RR, OURS, 5432.1)
    assert _cells(table.table(results, [RR])[2]) == [RR.title, "5432 (5432-5432)"]


def test_losses_are_not_compared() -> None:
    """How many times nothing is what another loses?"""
    results = Results([OURS, PASST], rows((FLOOD, DNS)))
    for program, lost in ((OURS, 12.5), (PASST, 10.0)):
        results.add(FLOOD.lost, program, lost)
    assert _cells(table.table(results, [FLOOD.lost])[2]) == [
        FLOOD.lost.title,
        "12.50 (12.50-12.50)",
        "10.00 (10.00-10.00)",
    ]
    for program, latency in ((OURS, 0.5), (PASST, 0.25)):
        results.add(DNS, program, 0)
        results.add(DNS_MEDIAN, program, latency)
    _, _, lost, median = table.table(results, [DNS, DNS_MEDIAN])
    assert _cells(lost) == [DNS.title, "0 (0-0)", "0 (0-0)", "–"]
    assert _cells(median)[3] == "2.00"


def test_no_cells_no_table() -> None:
    assert table.table(Results(PROGRAMS, []), []) == []


def test_the_floor_has_no_column_where_it_was_not_measured() -> None:
    results = Results(PROGRAMS, [UP, Cpu(UP)])
    results.add(UP, FLOOR, 12.0)
    results.add(Cpu(UP), OURS, 1.0)
    assert FLOOR in table.table(results, [UP])[0]
    assert FLOOR not in table.table(results, [Cpu(UP)])[0]


def test_failures_are_counted_beside_what_succeeded() -> None:
    assert table.summary(Samples([1.0], ["a", "b"])) == "1.00 (1.00-1.00), failed 2 times"
    assert table.summary(Samples([], ["a"])) == "failed"
    assert table.summary(Samples()) == "–"


def test_the_page_says_what_was_found() -> None:
    results = Results(PROGRAMS, rows(ALL))
    results.add(UP, OURS, 5.0)
    results.add_failure(UP, PASST, "not finished after 13 s")
    results.idle = Idle(10_000, 8.1, 0.001, 0.0)
    results.sharing.append(Sharing(OURS, "up", 1000, 8, 1.0, 3.0, 2.0, 0.9))
    targets = [Target("a", True, "1.20"), Target("b", False, "0.80"), Target("c", None, "not measured")]
    page = table.page(results, targets, ABOUT, "benchmark.svg")
    for text in (
        "2025-01-02, Linux 6.1.0, A CPU, 2 CPUs",
        "trio-passt 0.1.0 (abc), passt 0.0~git1",
        "](benchmark.svg)",
        "for 0.7 s",
        "the MTU of the veth is 9216, not 1500",
        f"- {UP.title}, passt: not finished after 13 s",
        "- trio-passt, 10000 open connections, idle: 8.1 KiB resident each, 0.10% of a CPU (without any: 0.00%).",
        "- trio-passt, 1 GB up: 3.00 s through 1000 connections at once, 2.00 s through 8: 1.50 times as long.",
        "- met: a: 1.20",
        "- **missed**: b: 0.80",
        "- not measured: c: not measured",
    ):
        assert text in page


def test_what_was_not_measured_has_no_section() -> None:
    page = table.page(Results(PROGRAMS, [RR]), [], ABOUT, "benchmark.svg")
    assert "## Exchanges" in page
    assert "## UDP" not in page
    assert "Gbit/s" not in page
    assert "Many connections" not in page
    assert "Failures" not in page


def test_udp_has_sections_of_its_own() -> None:
    page = table.page(Results(PROGRAMS, rows(UDP)), [], ABOUT, "benchmark.svg")
    assert page.count("## UDP") == 3
    for row in rows(UDP):
        assert f"| {row.title} " in page
    assert page.count(f"| {UDP_RR.lost.title} ") == 1


def test_a_namespaces_row_has_what_is_to_be_reached() -> None:
    cell = Bulk(Direction.UP, 65520, 1, Attachment.NAMESPACE)
    results = Results(PROGRAMS, [cell])
    for program, number in ((OURS_PASTA, 6.0), (PASTA, 2.0), (FLOOR, 10.0)):
        results.add(cell, program, number)
    header, _, row = table.table(results, [cell])
    assert _cells(header) == ["", OURS_PASTA, PASTA, FLOOR, "trio-pasta / pasta", "trio-pasta / floor"]
    assert _cells(row)[-2:] == ["3.00 (to reach: 2)", "0.60 (to reach: 0.75)"]


def test_a_namespace_has_sections_of_its_own() -> None:
    results = Results(PROGRAMS, rows(NAMESPACE))
    for cell in rows(NAMESPACE):
        results.add(cell, OURS_PASTA, 1.0)
    page = table.page(results, [], ABOUT, "benchmark.svg")
    assert page.count("\n## Namespace. ") == page.count("\n## ") == 8
    for row in rows(NAMESPACE):
        assert f"| {row.title} " in page
    assert f"| {Local('bulk', is_inward=True).title} " in page
