"""A report as people read it: the machine, the versions, and one line a case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = {"ours", "stock", "ratio", "unit", "rounds"}


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    cases: Mapping[str, Mapping[str, Any]] = report["cases"]
    width = max(map(len, cases))
    lines = [
        "machine   " + ", ".join(f"{key} {value}" for key, value in report["machine"].items()),
        "versions  " + ", ".join(f"{key} {value}" for key, value in report["versions"].items()),
    ]
    if compared := {name: case for name, case in cases.items() if "ratio" in case}:
        lines += ["", f"{'case':<{width}}  {'ours':>10}  {'stock':>10}  {'ratio':>7}  unit"]
        lines += [line(name, case, width=width) for name, case in compared.items()]
    titles: tuple[str, ...] = ()
    for name, case in cases.items():
        if name in compared:
            continue
        if titles != tuple(case):
            titles = tuple(case)
            lines += ["", f"{'case':<{width}}  " + "  ".join(f"{title:>12}" for title in titles)]
        lines.append(f"{name:<{width}}  " + "  ".join(f"{case[t]!s:>12}" for t in titles))
    return "\n".join(lines)


def line(name: str, case: Mapping[str, Any], *, width: int) -> str:
    """Return one case, with its further ratios at the end."""
    ours, stock = number(case["ours"], ",.0f"), number(case["stock"], ",.0f")
    text = f"{name:<{width}}  {ours:>10}  {stock:>10}"
    text += f"  {number(case['ratio'], '.2f'):>7}  {case['unit']}"
    further = [f"{key} {number(case[key], '.2f')}" for key in case if key not in FIELDS]
    return "   ".join([text, *further])


def number(value: float | None, form: str) -> str:
    """Return a figure, or a dash where nothing was measured."""
    return "-" if value is None else format(value, form)
