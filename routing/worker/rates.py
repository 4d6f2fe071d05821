"""Rate limits that hold for what waits, too: `control rate_limit` while messages wait at another.

Celery gives the task a new bucket, and leaves in the old one what waits there, at the old rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from celery.worker.state import task_reserved

from routing import upstream
from routing.worker.units import WaitingUnits


@runtime_checkable
class Admits(Protocol):
    """What takes in the messages of a task in its own way, at the task's rate."""

    def withdraw(self) -> Sequence[Any]:
        """Take out the requests that have passed and that no slot has taken."""

    def admit_again(self, requests: Sequence[Any]) -> None:
        """Let requests in at the rate that the task has now."""


class Rates:
    """The buckets of a worker's rate limits.

    Arguments:
        consumer: the worker's consumer.
        units: what has passed the limits and waits for a slot.
    """

    def __init__(self, consumer: Any, units: WaitingUnits) -> None:
        self._consumer, self._units = consumer, units
        self._schedule = upstream.SCHEDULE_BUCKET.of(consumer)
        upstream.SCHEDULE_BUCKET.put(consumer, self.schedule)
        consumer.reset_rate_limits = self.reset

    def schedule(self, bucket: Any) -> None:
        """Let out what may start, as Celery does, and note that the newest waits for its rate."""
        self._schedule(bucket)
        if bucket.contents and not bucket.contents[-1][0].is_limited:
            bucket.contents[-1][0].limit(is_limited=True)

    def reset(self) -> None:
        """Give each task whose limit has changed another bucket, with all that waits."""
        consumer = self._consumer
        for name, task in consumer.app.tasks.items():
            old, new = consumer.task_buckets.get(name), consumer.bucket_for_task(task)
            if _rate_of(old) == _rate_of(new):
                continue
            intake: Any = getattr(consumer.strategies.get(name), "__self__", None)
            if old is None:
                is_own = isinstance(intake, Admits)
                waiting = intake.withdraw() if is_own else self._units.withdraw(name)
            else:
                waiting = [request for request, _ in old.contents]
                old.clear_pending()
                if new is not None and not old.can_consume():
                    new.can_consume()  # a change is no start for free
            consumer.task_buckets[name] = new
            self._admit_again(intake, new, waiting)

    def _admit_again(self, intake: Any, bucket: Any, requests: Sequence[Any]) -> None:
        for request in requests:
            request.limit(is_limited=bucket is not None)
        if isinstance(intake, Admits):
            intake.admit_again(requests)
        elif bucket is not None:
            for request in requests:
                bucket.add((request, 1))
            self.schedule(bucket)
        else:
            for request in requests:
                task_reserved(request)
                self._consumer.on_task_request(request)


def _rate_of(bucket: Any) -> float:
    return 0.0 if bucket is None else float(bucket.fill_rate)
