"""Command line: ``python -m tests.upstream [CASE ...]``, with names of cases as pytest takes them.

Exits with 1 when a case passes on stock Celery, not on the engine, and is not listed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.upstream.compare import Outcomes, load, lost, reason_of, stale
from tests.upstream.sides import ROOT, Side
from tests.upstream.source import fetch

DIRECTORY = ROOT / ".data" / "upstream"


def main(cases: Sequence[str]) -> int:
    """Run the suite on both sides and print what they differ in; returns the exit code."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    suite = fetch(DIRECTORY)
    sides = Side("stock", suite), Side("ours", suite)
    started = time.monotonic()
    print(f"running {suite.name}'s integration suite twice; it takes about ten minutes", flush=True)
    stock, ours = run(sides, cases or ["t/integration"])
    known = load()
    unlisted = [case for case in lost(stock, ours) if not reason_of(case, known)]
    if unlisted:
        print(f"running {len(unlisted)} that differ once more", flush=True)
        again = run(sides, unlisted)
        report_unsteady(unlisted, stock, ours, again)
        stock, ours = stock | again[0], ours | again[1]
    return report(stock, ours, suite, seconds=time.monotonic() - started, whole=not cases)


def run(sides: tuple[Side, Side], cases: Sequence[str]) -> tuple[Outcomes, Outcomes]:
    """Run both sides at the same time."""
    with ThreadPoolExecutor(len(sides)) as pool:
        stock, ours = pool.map(lambda side: side.run(cases), sides)
    return stock, ours


def report_unsteady(
    cases: Sequence[str], stock: Outcomes, ours: Outcomes, again: tuple[Outcomes, Outcomes]
) -> None:
    """Print what came of it when cases that differed were run again."""
    for case in cases:
        for name, first, second in (("stock", stock, again[0]), ("ours", ours, again[1])):
            print(f"    {name:5}  {first.of.get(case)}, then {second.of.get(case)}  {case}")
        print(indented(ours.texts.get(case, "")))


def report(stock: Outcomes, ours: Outcomes, suite: Path, *, seconds: float, whole: bool) -> int:
    """Print the comparison; returns the exit code."""
    known = load()
    differing = lost(stock, ours)
    print(f"\n{suite.name}, {len(stock.of)} cases, {seconds:.0f} s; logs beside {suite}")
    print(f"passed on stock         {len(stock.passed)}")
    print(f"of them passed on ours  {len(stock.passed & ours.passed)}")
    print(f"passed on ours alone    {len(ours.passed - stock.passed)}")
    for case in differing:
        print(f"\ndiffers: {case}")
        print(f"    {reason_of(case, known) or 'NOT LISTED'}")
    for entry in stale(known, differing) if whole else ():
        print(f"\nlisted, and does not differ: {entry.cases}")
    unlisted = [case for case in differing if not reason_of(case, known)]
    for case in unlisted:
        print(f"\n{case}\n{indented(ours.texts.get(case, ''))}")
    return 1 if unlisted else 0


def indented(text: str) -> str:
    """Return a text as a block below a line."""
    return "\n".join(f"    | {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
