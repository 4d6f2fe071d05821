"""Where the time of urgent calls goes: on an idle worker, beside a bulk backlog, beside batches.

A worker of two processes with one slot reserved. Its parent notes when each urgent message passes
(`benchmarks.apps.staged`); the stages of a call add up to its wait, as `priority` measures it.
``--size`` is the number of urgent calls of a cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from benchmarks.apps import marks
from benchmarks.apps.marks import BATCH_SIZE, BATCHES, URGENT, Marks, Span
from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import Run, Sent
from benchmarks.fleet import WARM_CALLS, Fleet, fleet
from benchmarks.measure import wait_for
from benchmarks.priority.starts import (
    BACKLOG,
    BACKLOG_BYTES,
    BULK,
    CALLS_PER_SECOND,
    PREFETCH,
    PREFORK,
)
from benchmarks.queue_size import quantile
from benchmarks.runner import Grid
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError

BULK_SECONDS = 0.05
#: Of the slots, those that the backlog may use.
BULK_SLOTS = 1

#: The stages of a call, in their order; each begins where the one before ends.
STAGES = (
    "push",
    "push_to_bell",
    "bell_to_exchange",
    "exchange_to_delivery",
    "delivery_to_hand_over",
    "hand_over_to_start",
)
SUM = "sum"

#: A part of the delivery: what the message waits for in the worker once its reply has been read.
AFTER_REPLY = "reply_to_delivery"

#: The calls that wait longest, in percent.
SLOW_PERCENT = 5

#: The worker writes its notes at the next turn of its loop, which comes by itself once a second.
WRITE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One call's way, in nanoseconds of the machine's monotonic clock.

    Arguments:
        bell: when the worker learned of it by a bell; None when an exchange asked anyway.
        exchange: when the exchange that brought it was sent, which may be before it was pushed.
        reply: when the reply had been read.
    """

    called: int
    pushed: int
    bell: int | None
    exchange: int
    reply: int
    delivered: int
    handed: int
    began: int

    def stages(self) -> dict[str, int]:
        """Return how long each stage took; together it is the time from the call to its start.

        The server has a message before the producer hears of it, so the worker may be further than
        the producer: what had passed by then counts for the push.

        >>> way = Way(called=0, pushed=5, bell=4, exchange=6, reply=7, delivered=8, handed=9,
        ...           began=12)
        >>> list(way.stages().values())
        [5, 0, 1, 2, 1, 3]
        """
        bell = self.pushed if self.bell is None else self.bell
        points = (self.pushed, bell, self.exchange, self.delivered, self.handed, self.began)
        ways = accumulate((self.called, *(min(point, self.began) for point in points)), max)
        return dict(zip(STAGES, (to - since for since, to in pairwise(ways)), strict=True))

    def passes(self, stage: str) -> bool:
        """Return whether it went through a stage at all."""
        if stage == "push_to_bell":
            return self.bell is not None
        return stage != "bell_to_exchange" or self.exchange > self.pushed

    @property
    def after_reply(self) -> int:
        """Return what it waited for once its reply had been read."""
        return self.delivered - self.reply


def ways_of(sent: Sequence[Sent], ran: Sequence[Run], noted: Marks) -> list[Way]:
    """Return the way of each call; all have run.

    Arguments:
        sent: the calls by their numbers.
    """
    began = {run.number: run.began_ns for run in ran}
    ways = []
    for number, call in enumerate(sent):
        prefix, delivered = noted.deliveries[call.task_id]
        exchange = noted.exchanges[prefix]
        heard = (at for at in noted.bells if call.called_ns <= at <= exchange)
        ways.append(
            Way(
                called=call.called_ns,
                pushed=call.pushed_ns,
                bell=next(heard, None),
                exchange=exchange,
                reply=noted.replies[prefix],
                delivered=delivered,
                handed=noted.handed[call.task_id],
                began=began[number],
            )
        )
    return ways


def stage_figures(ways: Sequence[Way]) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage; who did not go through it waited 0 there."""
    taken: dict[str, list[int]] = {
        stage: [way.stages()[stage] if way.passes(stage) else 0 for way in ways] for stage in STAGES
    }
    found = {
        stage: {"calls": sum(way.passes(stage) for way in ways), **quantiles_ms(values)}
        for stage, values in taken.items()
    }
    waits = [way.began - way.called for way in ways]
    found[AFTER_REPLY] = {"calls": len(ways), **quantiles_ms([way.after_reply for way in ways])}
    return found | {SUM: {"calls": len(ways), **quantiles_ms(waits)}}


def loop_figures(ways: Sequence[Way], spans: Sequence[Span]) -> dict[str, dict[str, Any]]:
    """Return what the loop was busy with, as long as the calls were made.

    ``cpu_percent`` is of that time, ``slow_ms`` of the slowest calls' mean wait.
    """
    begin, end = min(way.called for way in ways), max(way.began for way in ways)
    kinds: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.ended_ns > begin and span.began_ns < end:
            kinds[span.what].append(span)
    slow = slowest(ways)
    found = {}
    for what, some in sorted(kinds.items()):
        cpu = quantiles_ms([span.cpu_ns for span in some])
        found[f"loop_{what}"] = {
            "times": len(some),
            **quantiles_ms([span.own_ns for span in some]),
            **{f"cpu_{name}": cpu[name] for name in ("p50_ms", "max_ms")},
            "cpu_percent": round(100 * sum(span.cpu_ns for span in some) / (end - begin), 1),
            "slow_ms": round(sum(overlap_ns(way, some) for way in slow) / len(slow) / 1e6, 2),
        }
    return found


def slowest(ways: Sequence[Way]) -> list[Way]:
    """Return the calls that waited longest, one at least."""
    ordered = sorted(ways, key=lambda way: way.began - way.called, reverse=True)
    return ordered[: max(1, len(ordered) * SLOW_PERCENT // 100)]


def overlap_ns(way: Way, spans: Sequence[Span]) -> float:
    """Return for how long the loop was busy with this while a call waited.

    >>> way = Way(called=0, pushed=10, bell=None, exchange=10, reply=10, delivered=10, handed=20,
    ...           began=20)
    >>> overlap_ns(way, [Span("packing", 15, 25, 10, 9), Span("packing", 30, 40, 10, 9)])
    5.0
    """
    total = 0.0
    for span in spans:
        shared = min(way.began, span.ended_ns) - max(way.called, span.began_ns)
        if shared > 0:
            total += shared * span.own_ns / (span.ended_ns - span.began_ns)
    return total


def quantiles_ms(values_ns: Sequence[int]) -> dict[str, float]:
    """Return what is reported of some durations."""
    ordered = sorted(values_ns)
    found = {f"p{percent}_ms": quantile(ordered, percent) for percent in (50, 95, 99)}
    return {
        name: round(value / 1e6, 2) for name, value in (*found.items(), ("max_ms", ordered[-1]))
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """One cell.

    Arguments:
        backlog: the queue that has one; none for an idle worker.
        size_bytes: size of its messages.
        unit: how many of them run in one call.
    """

    name: str
    backlog: str = ""
    size_bytes: int = 0
    unit: int = 1

    @property
    def messages(self) -> int:
        """Return how many messages the backlog has at most."""
        return min(BACKLOG, BACKLOG_BYTES // max(1, self.size_bytes)) if self.backlog else 0

    @property
    def calls_at_once(self) -> int | None:
        """Return how many calls the backlog lasts for; None for any number."""
        if not self.backlog:
            return None
        lasts = self.messages / self.unit * BULK_SECONDS / BULK_SLOTS
        return max(1, int(lasts * 0.8 * CALLS_PER_SECOND))

    def plan(self) -> Plan:
        """Return the app of its workers."""
        return Plan(
            side="ours",
            queues={
                URGENT: {"weight": 8, "prefetch": 8, "reserve": 1},
                BULK: {"prefetch": PREFETCH},
                BATCHES: {},
            },
        )

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Make ``size`` calls."""
        ways: list[Way] = []
        with fleet(server, self.plan(), app="staged") as workers:
            workers.start("both", PREFORK, URGENT, BULK, BATCHES)
            workers.wait_ready()
            while left := size - len(ways):
                if self.backlog:
                    self._fill(workers)
                ways += self._calls(workers, min(left, self.calls_at_once or left))
                if self.backlog:
                    workers.check_backlog(self.backlog)
            noted = marks.read(workers.settings.directory)
        return {**stage_figures(ways), **loop_figures(ways, noted.spans)}

    def _fill(self, workers: Fleet) -> None:
        workers.fill(
            self.backlog,
            self.messages - workers.waiting(self.backlog),
            seconds=BULK_SECONDS,
            size_bytes=self.size_bytes,
        )

    def _calls(self, workers: Fleet, count: int) -> list[Way]:
        sent = workers.send(URGENT, count, per_second=CALLS_PER_SECOND, warm=WARM_CALLS)
        workers.wait_runs(URGENT, count + WARM_CALLS)
        directory, last = workers.settings.directory, sent[-1].task_id
        if not wait_for(lambda: last in marks.read(directory).handed, seconds=WRITE_SECONDS):
            raise BenchmarkError(f"the worker noted nothing of its last call, {last}")
        return ways_of(sent, workers.runs(URGENT), marks.read(directory))


def cells() -> Iterator[Stages]:
    """Yield every cell."""
    yield Stages(name="idle")
    yield Stages(name="bulk_1KB", backlog=BULK, size_bytes=1_000)
    yield Stages(name="bulk_100KB", backlog=BULK, size_bytes=100_000)
    yield Stages(name="batches", backlog=BATCHES, size_bytes=1_000, unit=BATCH_SIZE)


GRID = Grid(
    name="stages",
    summary="where the time of urgent calls goes, beside nothing, a backlog, and batches",
    size=500,
    cells=cells,
    in_all=False,
)
