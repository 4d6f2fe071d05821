"""The command line of a run, and the runs of ``all``: the pools that the test suite leaves out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.life import report
from benchmarks.life.plan import CONCURRENCY, LOAD, Event, Plan
from benchmarks.life.run import live
from benchmarks.machine import machine
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Pool

NAME = "life"
SECONDS = 45
OTHER_POOLS: tuple[Pool, ...] = ("threads", "gevent", "solo")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what only this scenario takes."""
    life = parser.add_argument_group(NAME, "a load that looks like production")
    length = life.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="how long the load lasts")
    length.add_argument("--seconds", type=float, help=f"the same; {SECONDS} by default")
    life.add_argument("--pool", choices=list(CONCURRENCY), default="prefork")
    names = ", ".join(event.value for event in Event)
    life.add_argument(
        "--without", type=_events, default=(), help=f"events to leave out, of {names}; or 'all'"
    )
    life.add_argument("--logs", type=Path, help="a folder to keep the logs of all processes in")


def _events(text: str) -> Sequence[Event]:
    if text == "all":
        return tuple(Event)
    try:
        return tuple(Event(name) for name in text.split(",") if name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(options: argparse.Namespace) -> int:
    """Do one run and print its report; return 1 when something is not as it should be."""
    seconds = options.minutes * 60 if options.minutes else options.seconds or SECONDS
    plan = Plan(pool=options.pool, seconds=seconds, without=options.without)
    plan.check()
    print(f"life: {described(plan)}", file=sys.stderr, flush=True)
    figures = live(plan, keep_logs=options.logs)
    if options.json:
        print(json.dumps({"machine": machine(), **figures}))
        for problem in figures["problems"]:
            print(f"life: {problem}", file=sys.stderr)
    else:
        print(report.timeline_text(figures["timeline"]), file=sys.stderr)
        print(report.text(figures))
    return 1 if figures["problems"] else 0


def described(plan: Plan) -> str:
    """Return in a line what the fleet can do and what it is given."""
    return (
        f"{plan.pool}, {plan.slots} slots for bulk work of {plan.mean_run_seconds * 1000:.1f} ms "
        f"each: capacity {plan.capacity:.0f} messages/s, trickle {plan.capacity * LOAD:.0f}, "
        f"{len(plan.messages()):,} messages in {plan.load_ends:.0f} s"
    )


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Run the pools that the test suite does not, for ``size`` seconds each.

    Raises:
        BenchmarkError: something was not as it should be.
    """
    cases: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for pool in OTHER_POOLS:
        plan = Plan(pool=pool, seconds=float(size))
        print(f"life: {described(plan)}", file=sys.stderr, flush=True)
        figures = live(plan)
        problems += [f"{pool}: {problem}" for problem in figures["problems"]]
        cases[pool] = {
            "messages": figures["messages"],
            "done_ratio": figures["throughput"]["ratio"],
            "urgent_p99_ms": figures["urgent_start_ms"]["load"]["p99"],
            "idle_p99_ms": figures["urgent_start_ms"]["idle"]["p99"],
            "mean_batch": figures["batches"]["mean_items"],
        }
    if problems:
        raise BenchmarkError("\n".join(problems))
    return cases


STUDY = Study(
    name=NAME,
    summary="a load that looks like production: bursts, deploys, kills, a sink and servers away",
    size=SECONDS,
    run=run,
)
