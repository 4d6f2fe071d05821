"""Batch tasks of all shapes, which leave what was called together.

A worker gets its broker from ``CELERIAC_TEST_BROKER``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery
from pydantic import BaseModel

from batching import Batch, BatchTask
from tests.apps.basic import Traces, small_app

TABLE: Mapping[str, Any] = {
    "queues": {"default": {"prefetch": 1_000}, "narrow": {"prefetch": 1_000, "limit": 1}},
    "routes": {"shapes.narrow": "narrow", "shapes.*": {"queue": "default", "high": "default"}},
    "lease_seconds": 3,
}


class Load(BaseModel):
    """What has a weight, which may be sent as text."""

    weight: float


#: What each call had, as JSON: values, reason, attempts.
CALLS = "test:calls"

#: A bound on waiting that no test waits for.
LONG_SECONDS = 300.0

#: What a function that holds its slot waits for.
GATE = "open"


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    return small_app("shapes", broker, TABLE, add_tasks)


def add_tasks(app: Celery, traces: Traces) -> None:
    """Register the tasks: the same function, in several shapes."""

    def note(batch: Batch[Any]) -> None:
        call = {
            "values": [getattr(value, "weight", value) for value in batch.values],
            "reason": batch.reason,
            "attempts": [item.attempt for item in batch],
        }
        traces.client.rpush(CALLS, json.dumps(call))
        for item in batch:
            if item.value == "again" and item.attempt == 1:
                item.retry(countdown=0)
            if item.value == "held":
                assert traces.wait(GATE), "nobody opened the gate"

    shapes: dict[str, dict[str, Any]] = {
        "patient": {"min_size": 3, "max_wait": LONG_SECONDS},
        "brief": {"min_size": 3, "max_wait": 0.5},
        "weighed": {"model": Load, "cost": "weight", "max_cost": 10},
        "costly": {"cost": lambda value: value, "max_cost": 10},
        "wrong": {"cost": lambda value: 1 / value, "max_cost": 10},
        "keyed": {
            "key": lambda value: str(value)[0],
            "max_open_keys": 2,
            "min_size": 50,
            "max_wait": 3.0,
        },
        "spread": {"spread": True, "min_size": 4, "max_wait": 3.0},
        "narrow": {"spread": True, "max_wait": 0.5},
        "paced": {"spread": True, "max_wait": 0.5, "rate_limit": "60/m"},
        "plain": {},
    }
    for name, options in shapes.items():
        app.task(note, base=BatchTask, name=f"shapes.{name}", shared=False, **options)


url = os.environ.get("CELERIAC_TEST_BROKER")
if url:
    app = create(url)
