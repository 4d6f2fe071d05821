"""Command line: ``python -m benchmarks [NAME | all] [--json] [--rounds N] [--size N]``.

``--only PATTERN`` chooses among the cells of a scenario that has them; ``--markdown`` prints tables
for a document.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import (
    batch,
    bound,
    crash,
    drain,
    enqueue,
    exchange,
    gate,
    ingest,
    queue_size,
    scale,
    stages,
    trickle,
)
from benchmarks.life import command as life
from benchmarks.machine import is_busy, machine, versions
from benchmarks.priority import study as priority
from benchmarks.runner import Grid, Scenario, Study, run
from benchmarks.server import Server
from benchmarks.table import render
from benchmarks.workers import BenchmarkError

SCENARIOS: dict[str, Scenario | Study | Grid] = {
    scenario.name: scenario
    for scenario in (
        drain.SCENARIO,
        batch.SCENARIO,
        enqueue.SCENARIO,
        batch.EVENTS,
        queue_size.STUDY,
        crash.STUDY,
        bound.STUDY,
        exchange.STUDY,
        priority.GRID,
        scale.GRID,
        stages.GRID,
        life.STUDY,
        trickle.STUDY,
        gate.STUDY,
        ingest.GRID,
    )
}
ALL = "all"
INTERRUPTED = 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen scenarios and print one report; return the exit code."""
    options = parser().parse_args(arguments)
    if options.name is None:
        print(listing())
        return 0
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    try:
        if options.name == life.NAME:
            return life.main(options)
        report = measure(options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(report) if options.json else render(report, markdown=options.markdown))
    return 0


def interrupt(_signal: int, _frame: object) -> None:
    """End the run; a second signal must not keep it from ending its child processes."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Celeriac beside stock Celery; without a name, list the scenarios.",
    )
    result.add_argument("name", nargs="?", choices=[*SCENARIOS, ALL], help="what to measure")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    result.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    result.add_argument("--rounds", type=positive, help="how often each side is measured")
    result.add_argument("--size", type=positive, help="tasks or messages in one measurement")
    result.add_argument(
        "--only", metavar="PATTERN", help="regular expression: measure these cells only"
    )
    result.add_argument("--side", choices=["ours", "stock"], help="measure only one side")
    life.add_options(result)
    return result


def positive(text: str) -> int:
    """Return a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def listing() -> str:
    """Return the scenarios, one a line."""
    width = max(map(len, SCENARIOS))
    lines = [f"{name:<{width}}  {scenario.summary}" for name, scenario in SCENARIOS.items()]
    names = ", ".join(chosen.name for chosen in scenarios(ALL))
    return "\n".join([*lines, f"{ALL:<{width}}  {names}"])


def scenarios(name: str) -> list[Scenario | Study | Grid]:
    """Return the scenarios that a name on the command line means."""
    if name == ALL:
        return [scenario for scenario in SCENARIOS.values() if scenario.in_all]
    return [SCENARIOS[name]]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return one report; the cases of several scenarios are named ``scenario.case``."""
    chosen = scenarios(options.name)
    if is_busy():
        print("the machine is busy with something else: ratios will be off", file=sys.stderr)
    with Server() as server:
        report: dict[str, Any] = {"machine": machine(), "versions": versions(server.version)}
        cases: dict[str, Any] = {}
        for scenario in chosen:
            found = _run(scenario, server, options)
            prefix = f"{scenario.name}." if len(chosen) > 1 else ""
            cases |= {f"{prefix}{name}": case for name, case in found.items()}
    return {**report, "cases": cases}


def _run(
    scenario: Scenario | Study | Grid, server: Server, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    size = options.size or scenario.size
    if isinstance(scenario, Grid):
        return scenario.run(server, size, only=options.only or "")
    if isinstance(scenario, Study):
        return scenario.run(server, size)
    rounds = options.rounds or scenario.rounds
    return run(scenario, server, size=size, rounds=rounds, side=options.side)


if __name__ == "__main__":
    sys.exit(main())
