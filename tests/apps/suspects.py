"""Batch tasks whose calls fail without naming an item: one raises, dies, or the sink is away.

An item says by its word what it does to its call. Each call leaves its size, each effect the item's
number. A worker gets its broker from ``CELERIAC_TEST_BROKER``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from batching import Batch, BatchTask
from tests.apps.basic import Traces, small_app

TABLE: Mapping[str, Any] = {
    "queues": {"default": {"prefetch": 1_000, "max_deliveries": 2}},
    "lease_seconds": 3,
}

#: Set while nothing can be written.
AWAY = "test:sink_away"

#: The sizes of all calls, the numbers of effects.
CALLS, EFFECTS = "test:calls", "test:effects"

HARD_SECONDS = 1.5


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    return small_app("suspects", broker, TABLE, add_tasks)


def add_tasks(app: Celery, traces: Traces) -> None:
    """Register the tasks: the same function, with several policies."""

    def write(batch: Batch[Any]) -> None:
        traces.client.rpush(CALLS, len(batch))
        if traces.client.exists(AWAY):
            raise ConnectionError("the sink is away")
        for item in batch:
            number, word = item.value
            if word == "done":
                item.done(f"kept {number}")
                traces.client.rpush(EFFECTS, number)
        for item in batch:
            _do(*item.value)
        open_ones = [item.value[0] for item in batch if item.outcome is None]
        if open_ones:
            traces.client.rpush(EFFECTS, *open_ones)

    policies: dict[str, dict[str, Any]] = {
        "write": {},
        "write_each": {"on_error": "each"},
        "write_retry": {"on_error": "retry"},
        "write_soft": {"soft_time_limit": 0.5},
        "write_limited": {"time_limit": HARD_SECONDS},
        "write_once": {"max_retries": 0},
    }
    for name, options in policies.items():
        settings: dict[str, Any] = {"max_size": 500, "max_wait": 0.5, "shared": False} | options
        app.task(write, base=BatchTask, name=f"suspects.{name}", **settings)


def _do(number: int, word: str) -> None:
    match word:
        case "raises":
            raise ValueError("a row is bad")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "ends the worker":
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            time.sleep(60)


url = os.environ.get("CELERIAC_TEST_BROKER")
if url:
    app = create(url)
