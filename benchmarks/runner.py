"""Rounds, alternation and medians: from measurements of both sides to cases with a ratio.

In one round every measurement is made once; the next round makes them in the opposite order, so
that a machine that grows slower or busier during the run favours nobody.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from benchmarks.server import Server
from benchmarks.workers import BenchmarkError

Measurement = Callable[[Server, int], float]
Rounds = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A comparison of two measurements, by their names.

    Arguments:
        ours: the measurement of ours.
        stock: the measurement that ``ratio`` divides by.
        also: further ratios, by the name of their field, to the measurement that each divides by.
    """

    ours: str
    stock: str
    also: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is measured and how it is compared.

    A measurement's name starts with its side, ``ours`` or ``stock``.
    """

    name: str
    summary: str
    unit: str
    size: int
    rounds: int
    measurements: Mapping[str, Measurement]
    cases: Mapping[str, Case]
    in_all: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is measured without a stock side; a case is whatever figures it has.

    Arguments:
        run: measures with a server and a size, and returns the cases, ready for JSON.
    """

    name: str
    summary: str
    size: int
    run: Callable[[Server, int], dict[str, dict[str, Any]]]
    in_all: bool = True


class Cell(Protocol):
    """One case of a grid."""

    @property
    def name(self) -> str:
        """Return its name in the report."""

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Return its figures, ready for JSON."""


def _nothing(cases: Mapping[str, dict[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A study of cells, each of which is measured by itself and can be chosen by its name.

    Arguments:
        cells: all cells; those to be compared come one after the other.
        compare: adds to the cases that were measured what they say of each other.
    """

    name: str
    summary: str
    size: int
    cells: Callable[[], Iterable[Cell]]
    compare: Callable[[Mapping[str, dict[str, Any]]], None] = _nothing
    in_all: bool = True

    def run(self, server: Server, size: int, *, only: str = "") -> dict[str, dict[str, Any]]:
        """Measure the cells whose names have this pattern, and return the cases."""
        chosen = [cell for cell in self.cells() if re.search(only, cell.name)]
        if not chosen:
            names = ", ".join(cell.name for cell in self.cells())
            raise BenchmarkError(f"expected a pattern of cells, got {only!r}: {names}")
        cases = {}
        for cell in chosen:
            cases[cell.name] = cell.measure(server, size)
            figures = ", ".join(f"{key} {value}" for key, value in cases[cell.name].items())
            print(f"{self.name}: {cell.name}: {figures}", file=sys.stderr, flush=True)
        self.compare(cases)
        return cases


def run(
    scenario: Scenario, server: Server, *, size: int, rounds: int, side: str | None = None
) -> dict[str, dict[str, Any]]:
    """Measure everything ``rounds`` times and return the cases, ready for JSON.

    Arguments:
        side: measure only ``ours`` or ``stock``; what needs the other one is ``None``.
    """
    chosen = [name for name in scenario.measurements if side is None or name.startswith(side)]
    taken: Rounds = {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen if number % 2 == 0 else reversed(chosen):
            rate = scenario.measurements[name](server, size)
            taken[name].append(rate)
            step = f"{scenario.name} round {number + 1}/{rounds}"
            print(f"{step}: {name:<18} {rate:>10,.0f} {scenario.unit}", file=sys.stderr, flush=True)
    return {name: report(case, taken, unit=scenario.unit) for name, case in scenario.cases.items()}


def report(case: Case, taken: Rounds, *, unit: str) -> dict[str, Any]:
    """Return one case: the medians, their ratio, and what every round gave."""
    ours, stock = middle(taken.get(case.ours, ())), middle(taken.get(case.stock, ()))
    further = {name: ratio(ours, middle(taken.get(other, ()))) for name, other in case.also.items()}
    return {
        "ours": ours,
        "stock": stock,
        "ratio": ratio(ours, stock),
        **further,
        "unit": unit,
        "rounds": {
            "ours": [round(rate, 1) for rate in taken.get(case.ours, ())],
            "stock": [round(rate, 1) for rate in taken.get(case.stock, ())],
        },
    }


def middle(rates: Sequence[float]) -> float | None:
    """Return the median, rounded, or ``None`` when nothing was measured."""
    return round(median(rates), 1) if rates else None


def ratio(ours: float | None, stock: float | None) -> float | None:
    """Return how many times faster ours is."""
    return round(ours / stock, 2) if ours and stock else None
