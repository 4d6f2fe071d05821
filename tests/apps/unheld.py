"""An app with queues that are consumed without acknowledgement: a broadcast, and one of its own.

The environment is that of `tests.apps.basic`.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.common import Broadcast

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

NEWS = "news"
LOOSE = "loose"
#: The same in the queue table.
TABLED = "tabled"


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = Celery("unheld", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        task_default_queue="default",
        task_queues=[
            Queue("default"),
            Queue(LOOSE, no_ack=True),
            Queue(TABLED, no_ack=True),
            Broadcast(NEWS),
        ],
    )
    traces = Traces(broker)

    @app.task(name="unheld.mark", shared=False)
    def mark(name: str) -> str:
        traces.ran(name)
        return name

    @app.task(name="unheld.fail", shared=False)
    def fail(name: str) -> str:
        traces.ran(name)
        raise ValueError(name)

    @app.task(name="unheld.batch", base=BatchTask, shared=False, max_wait=0.1)
    def batch(batch: Batch[Any]) -> list[Any]:
        for item in batch:
            traces.ran(item.value)
        return batch.values

    install(app, {"queues": {"default": {"prefetch": 200}, TABLED: {"prefetch": 200}}})
    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
