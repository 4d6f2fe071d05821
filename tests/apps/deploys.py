"""An app whose tasks run until they are let go, for workers that are stopped in the middle.

The environment is that of `tests.apps.basic`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from celery import Celery

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

LEASE_SECONDS = 3.0

#: Twice is too often: what is charged for a deploy is a dead letter after the second one.
TABLE: Mapping[str, Any] = {
    "lease_seconds": LEASE_SECONDS,
    "queues": {
        "default": {"max_deliveries": 2, "prefetch": 200},
        **{pool: {"max_deliveries": 2} for pool in ("prefork", "threads", "gevent", "solo")},
        "soft": {"max_deliveries": 2},
    },
}


def create(broker: str, store: str, **settings: Any) -> Celery:
    """Return the app on this broker; traces and results go to the store."""
    app = Celery("deploys", broker=broker, backend=store, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        **settings,
    )
    _add_plain(app, store)
    _add_batched(app, Traces(store))
    install(app, TABLE)
    return app


def _add_plain(app: Celery, store: str) -> None:
    traces = Traces(store)

    def held(name: str) -> str:
        """Run until the gate of this name opens."""
        traces.started(name)
        assert traces.wait(name), "nobody opened the gate"
        traces.ran(name)
        return name

    app.task(held, name="deploys.held", shared=False)
    app.task(held, name="deploys.early", shared=False, acks_late=False)
    app.task(held, name="deploys.retried", shared=False, retry_on_worker_lost=True, max_retries=0)

    @app.task(name="deploys.stubborn", shared=False)
    def stubborn(name: str) -> str:
        """Go on when asked to end."""
        try:
            traces.started(name)
            traces.wait("never")
        except SystemExit:
            traces.started(f"{name}, asked to end")
        assert Traces(store).wait(name), "nobody opened the gate"
        traces.ran(name)
        return name

    def unwarned(name: str) -> str:
        """Leave SIGTERM to the system, as some libraries do: the process is gone without a word."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return held(name)

    @app.task(name="deploys.unclean", shared=False)
    def unclean(name: str) -> str:
        """Take the process down in another way when asked to end."""
        try:
            return held(name)
        except SystemExit:
            os._exit(3)

    app.task(unwarned, name="deploys.unwarned", shared=False)
    app.task(unwarned, name="deploys.loss_ends", shared=False, reject_on_worker_lost=False)

    @app.task(name="deploys.exits", shared=False)
    def exits(name: str, status: int) -> None:
        """Take its process down."""
        traces.started(name)
        os._exit(status)


def _add_batched(app: Celery, traces: Traces) -> None:
    options: Mapping[str, Any] = {
        "base": BatchTask,
        "shared": False,
        "max_size": 20,
        "max_wait": 0.2,
    }

    def batch(batch: Batch[str]) -> None:
        """Run until the gate of the first item opens."""
        for item in batch:
            traces.started(item.value)
        assert traces.wait(batch[0].value), "nobody opened the gate"
        for item in batch:
            traces.ran(item.value)

    app.task(batch, name="deploys.batch", **options)
    app.task(batch, name="deploys.early_batch", acks_late=False, **options)


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(
        broker_url,
        os.environ["CELERIAC_TEST_STORE"],
        **json.loads(os.environ.get("CELERIAC_TEST_SETTINGS", "{}")),
    )
