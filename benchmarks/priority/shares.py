"""Slot time of two queues that always have work, and how long the lighter one waits for its turn.

A share is the time that a queue's tasks ran within the window, of the time that both ran. As the
queues never empty, the oldest task of a queue has waited since the one before it started: the
longest wait is the longest gap between two starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import Run
from benchmarks.fleet import fleet
from benchmarks.priority.starts import BOUND_MS, CALLS_PER_SECOND, PREFETCH, PREFORK, SECONDS
from benchmarks.server import Server

HEAVY, LIGHT = "heavy", "light"

#: What a worker does in its first moments is not counted.
SETTLE_SECONDS = 2.0

#: A window has so many of the longest tasks at least: a part of one task more or less is no error.
LEAST_TASKS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One cell.

    Arguments:
        heavy: length of the tasks of the queue with the larger weight, which is its endless load.
        light: length of the tasks of the other one, whose weight is 1.
        weight: the larger weight.
        reserve: slots that are kept for the heavy queue.
    """

    heavy: str
    light: str
    weight: int = 3
    reserve: int = 0

    @property
    def name(self) -> str:
        """Return its name in the report."""
        kind = f"reserve-{self.reserve}_" if self.reserve else ""
        return f"shares_{kind}{self.heavy}-at-{self.weight}_{self.light}-at-1"

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Let both queues work for as long as ``size`` urgent calls take."""
        lengths = {HEAVY: SECONDS[self.heavy], LIGHT: SECONDS[self.light]}
        seconds = max(size / CALLS_PER_SECOND, LEAST_TASKS * max(lengths.values()))
        queues = {
            HEAVY: {"weight": self.weight, "prefetch": PREFETCH, "reserve": self.reserve},
            LIGHT: {"weight": 1, "prefetch": PREFETCH},
        }
        with fleet(server, Plan(side="ours", queues=queues)) as workers:
            for queue, length in lengths.items():
                lasts = (seconds + SETTLE_SECONDS) * PREFORK.concurrency
                workers.fill(queue, int(1.3 * lasts / length) + PREFETCH, seconds=length)
            workers.start("both", PREFORK, HEAVY, LIGHT)
            workers.wait_ready()
            time.sleep(SETTLE_SECONDS)
            begin = time.monotonic_ns()
            time.sleep(seconds)
            end = time.monotonic_ns()
            # What runs at the end is noted when it has ended.
            time.sleep(2 * max(lengths.values()))
            for queue in lengths:
                workers.check_backlog(queue)
            runs = {queue: workers.runs(queue) for queue in lengths}
        used = {queue: slot_ns(runs[queue], begin, end) for queue in lengths}
        return figures(
            used,
            weights={HEAVY: self.weight, LIGHT: 1},
            slots_ns=(end - begin) * PREFORK.concurrency,
            gap_ms=longest_gap_ms(runs[LIGHT], begin, end),
            bound_ms=1000
            * starvation_bound(
                lengths[LIGHT],
                weight=1,
                others={self.weight: lengths[HEAVY]},
                slots=PREFORK.concurrency - self.reserve,
            ),
        )


def cells() -> Iterator[Share]:
    """Yield every cell."""
    for heavy, light in (("5ms", "5ms"), ("5ms", "200ms"), ("200ms", "5ms"), ("50ms", "200ms")):
        yield Share(heavy=heavy, light=light)
    for light in SECONDS:
        yield Share(heavy="5ms", light=light, weight=8)
        yield Share(heavy="5ms", light=light, weight=8, reserve=1)


def slot_ns(runs: Iterable[Run], begin: int, end: int) -> int:
    """Return how much slot time the runs took within a window.

    >>> runs = [Run(number=0, sent_ns=0, began_ns=began, ended_ns=began + 10) for began in (5, 20)]
    >>> slot_ns(runs, 10, 100)
    15
    """
    return sum(max(0, min(run.ended_ns, end) - max(run.began_ns, begin)) for run in runs)


def longest_gap_ms(runs: Sequence[Run], begin: int, end: int) -> float:
    """Return the longest time without a start within a window; the runs are in order of start."""
    starts = [begin, *(run.began_ns for run in runs if begin <= run.began_ns <= end), end]
    return max(later - earlier for earlier, later in pairwise(starts)) / 1e6


def starvation_bound(
    seconds: float, *, weight: int, others: Mapping[int, float], slots: int
) -> float:
    """Return the seconds within which a queue that has work starts its oldest task.

    Between two starts of it, the other queues are owed their weight of the slot time that one of
    its tasks takes, in the slots that it may use; then what runs there has to end. A start takes as
    long as one of an urgent call may take.

    Arguments:
        seconds: what a task of the queue takes.
        others: what a task takes of each other queue, by weight.
        slots: slots that the queue may use.

    >>> starvation_bound(0.2, weight=1, others={8: 0.005}, slots=2)
    1.01
    """
    owed = seconds * sum(others) / weight / slots
    return owed + max(seconds, *others.values()) + BOUND_MS / 1000


def figures(
    used_ns: Mapping[str, int],
    *,
    weights: Mapping[str, int],
    slots_ns: int,
    gap_ms: float,
    bound_ms: float,
) -> dict[str, Any]:
    """Return the figures of one cell.

    Arguments:
        used_ns: slot time of each queue.
        slots_ns: slot time of the window.
        gap_ms: the longest wait of the lighter queue.

    >>> figures({"a": 74, "b": 26}, weights={"a": 3, "b": 1}, slots_ns=100, gap_ms=1, bound_ms=2)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'wanted_percent': 25.0, 'light_percent': 26.0, 'error_percent': 4.0, 'used_percent': 100.0,
     'longest_wait_ms': 1, 'bound_ms': 2, 'wait_to_bound': 0.5}
    """
    total = sum(used_ns.values())
    wanted = {queue: weight / sum(weights.values()) for queue, weight in weights.items()}
    share = {queue: used / total for queue, used in used_ns.items()}
    lightest = min(weights, key=lambda queue: weights[queue])
    return {
        "wanted_percent": round(100 * wanted[lightest], 1),
        "light_percent": round(100 * share[lightest], 1),
        "error_percent": round(
            100 * max(abs(share[queue] / wanted[queue] - 1) for queue in wanted), 1
        ),
        "used_percent": round(100 * total / slots_ns, 1),
        "longest_wait_ms": round(gap_ms, 1),
        "bound_ms": round(bound_ms, 1),
        "wait_to_bound": round(gap_ms / bound_ms, 2),
    }
