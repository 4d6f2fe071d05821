"""How often one task changes the file on its way: ``python -m benchmarks.trace [--json]``.

A worker of the solo pool runs in this process, under `sys.setprofile`. Calls of our own functions
are noted in order; a change is a call in another file than the call before. A message's way begins
when it is taken from the inbox. The first tasks warm up what is made once; of the later ones the
fewest changes count, as the loop's other work falls between.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery
from celery.exceptions import WorkerShutdown

from batching import Batch, BatchTask
from benchmarks.server import Server
from routing import install

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(f"{ROOT / package}/" for package in ("routing", "batching"))

#: Tasks of each kind, one after the other.
TASKS = 30

#: Where a part of the way begins and ends: the functions that are called there.
REPLY, SETTLED = "deliver", "take_settlement"
RUNS = {"plain": "run_traced", "batch": "run_parcels"}


class Tracer:
    """Notes calls of our own functions, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call, and when a run has ended."""
        code = frame.f_code
        if not code.co_filename.startswith(OURS):
            return
        name = code.co_name
        if event == "call":
            self.calls.append((code.co_filename, name))
        elif event == "return" and name in RUNS.values():
            self.calls.append(("", f"end of {name}"))


def changes(calls: Sequence[tuple[str, str]]) -> int:
    """Return how often the file changes."""
    files = [file for file, _ in calls if file]
    return sum(one != other for one, other in pairwise(files))


def parts(calls: Sequence[tuple[str, str]], run: str) -> list[tuple[int, int]]:
    """Return the changes from each reply to the run, and from its answer until it is settled."""
    found = []
    for at, (_, name) in enumerate(calls):
        if name != run:
            continue
        begin = max((i for i in range(at) if calls[i][1] == REPLY), default=0)
        answer = next((i for i in range(at, len(calls)) if calls[i][1] == f"end of {run}"), at)
        after = range(answer, len(calls))
        end = next((i for i in after if calls[i][1] == SETTLED), len(calls) - 1)
        found.append((changes(calls[begin:at]), changes(calls[answer:end])))
    return found


def trace(url: str) -> dict[str, int]:
    """Return the changes of file on each part of the way."""
    app = Celery("trace", broker=url, backend="disabled://", set_as_current=True)
    install(app, {"queues": {"plain": {}, "batch": {}}})
    tracer, ran = Tracer(), [0]

    @app.task(name="trace.plain", queue="plain")
    def plain() -> None:
        _again(plain)

    @app.task(base=BatchTask, name="trace.batch", queue="batch", max_size=1)
    def batch(items: Batch[Any]) -> None:
        _again(batch)

    def _again(task: Any) -> None:
        ran[0] += 1
        if ran[0] % TASKS:
            task.delay() if task is plain else task.delay(1)
        elif task is plain:
            batch.delay(1)
        else:
            raise WorkerShutdown(0)

    sent = []
    for _ in range(3):
        sys.setprofile(tracer)
        plain.delay()
        sys.setprofile(None)
        sent.append(changes(tracer.calls))
        tracer.calls.clear()
    app.control.purge()
    plain.delay()
    worker = app.WorkController(pool="solo", concurrency=1, loglevel="CRITICAL", quiet=True)
    sys.setprofile(tracer)
    try:
        worker.start()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    figures = {"delay() to the broker": min(sent)}
    for kind, run in RUNS.items():
        ways = parts(tracer.calls, run)[2:-1]
        figures[f"{kind}: reply to pool"] = min(before for before, _ in ways)
        figures[f"{kind}: answer to settled"] = min(after for _, after in ways)
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    with Server() as server:
        figures = trace(server.broker_url)
    if as_json:
        print(json.dumps(figures))
        return
    for name, count in figures.items():
        print(f"{count:4}  changes of file, {name}")


if __name__ == "__main__":
    main()
