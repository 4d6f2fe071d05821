"""The same two tasks, plain and batched, for canvases of both.

A worker gets its broker from ``CELERIAC_TEST_BROKER``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from batching import Batch, BatchTask
from tests.apps.basic import Traces, small_app

TABLE: Mapping[str, Any] = {
    "queues": {
        "default": {"prefetch": 1_000},
        "small": {"prefetch": 10, "max_length": 2, "overflow": "drop_oldest"},
    },
    "lease_seconds": 3,
}

#: What the errback of a chord leaves.
ERRORS = "test:errors"


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    return small_app("canvases", broker, TABLE, add_tasks)


def add_tasks(app: Celery, traces: Traces) -> None:
    """Register the tasks."""

    @app.task(name="plain.add", shared=False)
    def plain(value: Any, number: int) -> int:
        return total(value) + number

    @app.task(base=BatchTask, name="batched.add", max_wait=0.01, shared=False)
    def batched(batch: Batch[Any]) -> list[Any]:
        return [_added(*item.args) for item in batch]

    @app.task(name="plain.dead", shared=False)
    def dead(value: Any, number: int) -> None:
        raise ValueError("this one is bad")

    @app.task(base=BatchTask, name="batched.dead", max_wait=0.01, shared=False)
    def dead_item(batch: Batch[Any]) -> None:
        for item in batch:
            item.dead("this one is bad")

    @app.task(name="note_error", shared=False)
    def note_error(request: Any, error: Any, traceback: Any) -> None:
        traces.client.rpush(ERRORS, type(error).__name__)


def total(value: Any) -> int:
    """Return the sum of a number, or of lists of them."""
    return sum(map(total, value)) if isinstance(value, list) else int(value)


def _added(value: Any, number: int) -> int:
    return total(value) + number


url = os.environ.get("CELERIAC_TEST_BROKER")
if url:
    app = create(url)
