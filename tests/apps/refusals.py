"""An app whose tasks end in every way, plain and batched, while the broker is in trouble.

The environment is that of `tests.apps.basic`.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from batching import Batch, BatchTask
from tests.apps.basic import Traces
from tests.apps.basic import create as create_basic

TABLE: Mapping[str, Any] = {
    "queues": {
        "default": {"prefetch": 20},
        "bulk": {"prefetch": 40},
        "items": {"prefetch": 40},
    },
    "routes": {"refusals.item": "items", "refusals.attempt": "bulk"},
}


def create(broker: str, *, store: str = "", **more: Any) -> Celery:
    """Return the app on this broker."""
    table = more.pop("table", TABLE)
    app = create_basic(broker, store=store, table=table, **more)
    traces = Traces(store or broker)

    @app.task(name="refusals.attempt", shared=False, bind=True, max_retries=2)
    def attempt(self: Any, name: str, how: str, seconds: float) -> str:
        """Run for some time, then succeed, fail, or succeed at the second try."""
        traces.ran(name)
        time.sleep(seconds)
        if how == "fail":
            raise ValueError(name)
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0.2)
        return name

    @app.task(name="refusals.item", base=BatchTask, shared=False, max_size=10, max_wait=0.05)
    def item(batch: Batch[dict[str, Any]]) -> None:
        """Take some time, then let each item succeed, fail, or succeed at the second try."""
        for one in batch:
            traces.ran(one.value["name"])
        time.sleep(max(one.value.get("seconds", 0.1) for one in batch))
        for one in batch:
            if one.value["how"] == "retry" and one.attempt == 1:
                one.retry(countdown=0.2)
            elif one.value["how"] == "fail":
                one.fail(ValueError(one.value["name"]))
            else:
                one.done(one.value["name"])

    @app.task(name="refusals.collect", shared=False)
    def collect() -> int:
        """Return how many unreachable objects there were, and let them lie from now on."""
        found = gc.collect()
        gc.disable()
        return found

    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(
        broker_url,
        store=os.environ.get("CELERIAC_TEST_STORE", ""),
        options=json.loads(os.environ.get("CELERIAC_TEST_OPTIONS", "{}")),
        **json.loads(os.environ.get("CELERIAC_TEST_SETTINGS", "{}")),
    )
