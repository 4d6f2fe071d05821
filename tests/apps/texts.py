"""An app whose tasks return what they are given; the environment is that of `tests.apps.basic`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from batching import Batch, BatchTask
from routing import install


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = Celery("payloads", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)

    @app.task(name="payloads.same", shared=False)
    def same(value: Any) -> Any:
        return value

    @app.task(name="payloads.batch", base=BatchTask, shared=False, max_wait=0.1)
    def batch(batch: Batch[Any]) -> list[Any]:
        return batch.values

    install(app, {"queues": {"default": {"prefetch": 200}}})
    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
