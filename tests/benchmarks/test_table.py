"""How a report is written."""

from __future__ import annotations

from typing import Any

from benchmarks.table import render, tables


def report(**cases: Any) -> dict[str, Any]:
    return {"machine": {"cores": 2}, "versions": {"celery": "5"}, "cases": cases}


COMPARED = {"ours": 2000.0, "stock": 1000.0, "ratio": 2.0, "unit": "/s", "rounds": {}, "also": 1.5}
PLAIN = {"calls": 3, "p50_ms": 1.5}


def test_cases_that_compare_come_first_and_their_rounds_are_left_out() -> None:
    first, second = tables({"plain": PLAIN, "compared": COMPARED})
    assert list(first.columns) == ["ours", "stock", "ratio", "unit", "also"]
    assert first.lines == {"compared": ["2,000", "1,000", "2.00", "/s", "1.50"]}
    assert second.lines == {"plain": ["3", "1.5"]}


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    (table,) = tables({"one": {**COMPARED, "stock": None, "ratio": None}})
    assert table.lines["one"][:3] == ["2,000", "-", "-"]


def test_cases_with_other_figures_are_another_table() -> None:
    names = [list(table.lines) for table in tables({"a": PLAIN, "b": PLAIN, "c": {"max_ms": 1}})]
    assert names == [["a", "b"], ["c"]]


def test_a_case_of_several_things_is_a_table_with_a_line_for_each() -> None:
    (table,) = tables({"idle": {"push": PLAIN, "sum": PLAIN}})
    assert (table.title, list(table.lines)) == ("idle", ["push", "sum"])


def test_a_report_is_written_for_a_terminal_in_columns() -> None:
    lines = render(report(idle={"push": PLAIN})).splitlines()
    assert lines[:2] == ["machine   cores 2", "versions  celery 5"]
    assert [line.split() for line in lines[3:]] == [
        ["idle", "calls", "p50_ms"],
        ["push", "3", "1.5"],
    ]


def test_a_report_is_written_for_a_document_in_markdown() -> None:
    assert render(report(idle={"push": PLAIN}), markdown=True).splitlines()[3:] == [
        "| idle | calls | p50_ms |",
        "|---|---:|---:|",
        "| `push` | 3 | 1.5 |",
    ]
