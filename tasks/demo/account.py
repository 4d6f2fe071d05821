"""The account of one run: what was sent, how each item ended, and what it took.

Pure values; `Account.differences` says in words what does not add up. ``python -m tasks.demo``
exits with 0 only when there is nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routing.cli.queues import table_lines
from routing.redis.ledger import Ledger
from routing.worker import waits
from routing.worker.waits import Histogram

#: The summary's width: that of the documentation.
WIDTH = 100

#: What the figures say of a queue.
COUNTERS = ("accepted", "done", "failed", "dead", "dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """How the rows of a run have ended so far, by their numbers."""

    landed: frozenset[int]
    failed: frozenset[int]
    #: Seconds since the epoch of the last ending seen.
    last_at: float

    def __len__(self) -> int:
        return len(self.landed) + len(self.failed - self.landed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The figures of one run. `succeeded` counts what was sent and has landed, `rows` all rows."""

    sent: int
    succeeded: int
    failed: int
    rows: int
    batches: int
    rows_by_batches: int
    seconds: float
    urgent_ms: Sequence[float]
    #: Of every queue, since the broker's data began.
    ledger: Ledger
    #: Of every queue, from the push to the start, in this run.
    waits: Mapping[str, Histogram] = field(default_factory=dict)

    @property
    def mean_batch(self) -> float:
        """Rows that a batch inserted, on average; refused items never reach the insert."""
        return self.rows / self.batches if self.batches else 0.0

    @property
    def items_per_second(self) -> float:
        """Items ended in a second, from the first one sent to the last ending."""
        return (self.succeeded + self.failed) / self.seconds if self.seconds > 0 else 0.0

    def differences(self) -> list[str]:
        """Every equation of the account that does not hold, in words."""
        lines = []
        if self.sent != self.succeeded + self.failed:
            lines.append(
                f"sent {self.sent:,}, but succeeded {self.succeeded:,} + failed {self.failed:,} "
                f"= {self.succeeded + self.failed:,}"
            )
        if self.rows != self.succeeded:
            lines.append(f"succeeded {self.succeeded:,}, but the table has {self.rows:,} rows")
        if self.rows != self.rows_by_batches:
            lines.append(
                f"the batches inserted {self.rows_by_batches:,}, but the table has "
                f"{self.rows:,} rows"
            )
        lines += [
            f"queue {queue.queue!r}: {abs(queue.difference):,} messages "
            f"{'are missing' if queue.difference > 0 else 'came uncounted'}"
            for queue in self.ledger.queues
            if queue.difference
        ]
        return lines

    def as_json(self) -> dict[str, Any]:
        """The figures under their public names."""
        return {
            "sent": self.sent,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "rows": self.rows,
            "batches": self.batches,
            "mean_batch": round(self.mean_batch, 1),
            "seconds": round(self.seconds, 2),
            "items_per_second": round(self.items_per_second, 1),
            "urgent_count": len(self.urgent_ms),
            "urgent_p50_ms": _rounded(percentile(self.urgent_ms, 50)),
            "urgent_p99_ms": _rounded(percentile(self.urgent_ms, 99)),
            "queues": {
                queue.queue: {name: queue[name] for name in COUNTERS}
                | {"difference": queue.difference}
                | self._wait_figures(queue.queue)
                for queue in self.ledger.queues
            },
        }

    def as_text(self, *, celery: str = "celery") -> str:
        """The figures for a reader, who starts Celery by this command."""
        p50, p99 = percentile(self.urgent_ms, 50), percentile(self.urgent_ms, 99)
        return "\n".join(
            [
                "Flights",
                _line("sent", self.sent),
                _line("succeeded", self.succeeded, f"{self.rows:,} rows in the table"),
                _line("failed", self.failed, "never departed: refused by validation, one by one"),
                _line("batches", self.batches, f"{self.mean_batch:,.1f} rows on average"),
                _line("seconds", f"{self.seconds:,.1f}", f"{self.items_per_second:,.0f} items/s"),
                "",
                "Urgent calls meanwhile",
                _line("calls", len(self.urgent_ms), "at most one every 50 ms"),
                _line("start p50", _milliseconds(p50)),
                _line("start p99", _milliseconds(p99)),
                "",
                "Waits from the push to the start, in ms",
                *self._wait_lines(),
                "",
                "Queues, as `celery -A tasks queues` shows them",
                *(f"  {line}" for line in table_lines(self.ledger, width=WIDTH - 2)),
                *self._dead_letters(celery),
            ]
        )

    def _wait_figures(self, queue: str) -> dict[str, int | None]:
        histogram = self.waits.get(queue, {})
        return {
            f"wait_p{percent}_ms": waits.percentile(histogram, percent)
            for percent in waits.PERCENTS
        }

    def _wait_lines(self) -> Iterator[str]:
        titles = ("starts", *(f"p{percent}" for percent in waits.PERCENTS))
        yield f"  {'queue':<12}" + "".join(f"{title:>12}" for title in titles)
        for queue, histogram in sorted(self.waits.items()):
            figures = (sum(histogram.values()), *self._wait_figures(queue).values())
            yield f"  {queue:<12}" + "".join(f"{figure:>12,}" for figure in figures)

    def _dead_letters(self, celery: str) -> Iterator[str]:
        """Where the refused flights are; the broker keeps them when the demo has stopped it."""
        for queue in self.ledger.queues:
            if not queue.dead_letters:
                continue
            yield ""
            yield (
                f"{queue.dead_letters:,} dead letters wait in queue {queue.queue}.dead, of this "
                "run and earlier ones; after `make up`:"
            )
            for verb in ("groups", "list", "replay --dry-run"):
                yield f"  {celery} -A tasks deadletter {verb} --queue {queue.queue}"


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of the values do not exceed; None without any.

    >>> percentile([5.0, 1.0, 3.0, 2.0], 50)
    2.0
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _line(name: str, value: int | str, remark: str = "") -> str:
    shown = value if isinstance(value, str) else f"{value:,}"
    return f"  {name:<12}{shown:>12}   {remark}".rstrip()
