"""An app whose batch tasks and queues say nothing about sizes; one task has a queue of its own.

A worker gets its broker from CELERIAC_TEST_BROKER.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import CDeprecationWarning

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

TABLE = {
    "queues": {"small": {"prefetch": 4}, "own": {}, "routed": {}},
    "routes": {"routed": "routed"},
}


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = Celery("defaults", broker=broker, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    install(app, TABLE)
    traces = Traces(broker)

    def load(batch: Batch[str]) -> None:
        traces.client.rpush("sizes", len(batch))
        for item in batch:
            traces.ran(item.value)

    # They wait for more than a slow machine needs to fill one.
    options: dict[str, Any] = {
        "base": BatchTask,
        "shared": False,
        "ignore_result": True,
        "max_wait": 30,
    }
    app.task(load, name="routed", **options)
    app.task(load, name="addressed", queue="own", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CDeprecationWarning)
        app.finalize()
    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
