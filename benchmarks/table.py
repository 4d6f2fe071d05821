"""A report as people read it: the machine, the versions, and one line a case.

A case that has figures of several things is a table of its own, with a line for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]

#: The figures of a case that compares ours and stock, in their order.
COMPARED = {"ours": ",.0f", "stock": ",.0f", "ratio": ".2f"}
FIELDS = {*COMPARED, "unit", "rounds"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Lines with the same figures."""

    title: str
    columns: Sequence[str]
    lines: Mapping[str, Sequence[str]]

    def text(self, *, width: int) -> Iterator[str]:
        """Yield its lines, in columns."""
        for name, texts in ((self.title, self.columns), *self.lines.items()):
            yield f"{name:<{width}}  " + "  ".join(f"{text:>12}" for text in texts)

    def markdown(self) -> Iterator[str]:
        """Yield its lines, for a document."""
        yield _row(self.title, *self.columns)
        yield "|---" + "|---:" * len(self.columns) + "|"
        for name, texts in self.lines.items():
            yield _row(f"`{name}`", *texts)


def render(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Return the report as text."""
    cases: Mapping[str, Figures] = report["cases"]
    lines = [
        "machine   " + ", ".join(f"{key} {value}" for key, value in report["machine"].items()),
        "versions  " + ", ".join(f"{key} {value}" for key, value in report["versions"].items()),
    ]
    found = list(tables(cases))
    width = max(len(name) for table in found for name in (table.title, *table.lines))
    for table in found:
        lines += ["", *(table.markdown() if markdown else table.text(width=width))]
    return "\n".join(lines)


def tables(cases: Mapping[str, Figures]) -> Iterator[Table]:
    """Yield the cases that compare, then the others; those with other figures are another table."""
    compared = {name: compare(case) for name, case in cases.items() if "ratio" in case}
    yield from _alike("case", compared)
    rest = {name: case for name, case in cases.items() if name not in compared}
    single = {name: case for name, case in rest.items() if not _is_several(case)}
    yield from _alike("case", single)
    for name, case in rest.items():
        if name not in single:
            yield from _alike(name, case)


def _is_several(case: Figures) -> bool:
    return all(isinstance(value, Mapping) for value in case.values())


def _alike(title: str, named: Mapping[str, Figures]) -> Iterator[Table]:
    columns: tuple[str, ...] = ()
    lines: dict[str, Sequence[str]] = {}
    for name, figures in named.items():
        if lines and columns != tuple(figures):
            yield Table(title=title, columns=columns, lines=lines)
            lines = {}
        columns = tuple(figures)
        lines[name] = [str(value) for value in figures.values()]
    if lines:
        yield Table(title=title, columns=columns, lines=lines)


def compare(case: Figures) -> dict[str, str]:
    """Return the figures of a case that compares, its further ratios at the end."""
    figures = {key: number(case[key], form) for key, form in COMPARED.items()}
    further = {key: number(case[key], ".2f") for key in case if key not in FIELDS}
    return {**figures, "unit": case["unit"], **further}


def _row(*texts: str) -> str:
    return "| " + " | ".join(texts) + " |"


def number(value: float | None, form: str) -> str:
    """Return a figure, or a dash where nothing was measured."""
    return "-" if value is None else format(value, form)
