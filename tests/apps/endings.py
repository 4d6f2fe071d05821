"""The basic app with tasks that end in every way; a worker gets its broker from the environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

from batching import Batch, BatchTask
from tests.apps.basic import Traces
from tests.apps.basic import create as create_basic

#: `plain` keeps no dead letters: what fails there has failed.
TABLE: Mapping[str, Any] = {
    "queues": {
        "plain": {"prefetch": 16, "max_dead": 0},
        "keeping": {"prefetch": 16},
        "purged": {"prefetch": 1},
    },
}


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = create_basic(broker, table=TABLE)
    traces = Traces(broker)
    _add_raising(app)
    _add_breaking(app)
    _add_batches(app)
    _add_once(app, traces)
    return app


def _add_raising(app: Celery) -> None:
    @app.task(name="endings.ignore", shared=False)
    def ignore() -> None:
        raise Ignore

    @app.task(name="endings.reject", shared=False)
    def reject() -> None:
        raise Reject("never again", requeue=False)

    @app.task(name="endings.replace", shared=False, bind=True)
    def replace(self: Any) -> Any:
        return self.replace(app.signature("basic.add", (1, 1)))

    @app.task(name="endings.unacknowledged", shared=False, acks_on_failure_or_timeout=False)
    def unacknowledged() -> None:
        raise ValueError("fails, and does not want that acknowledged")

    @app.task(name="endings.early_failure", shared=False, acks_late=False)
    def early_failure() -> None:
        raise ValueError("had been acknowledged")


def _add_breaking(app: Celery) -> None:
    @app.task(name="endings.too_long", shared=False, time_limit=1)
    def too_long() -> None:
        Traces(app.conf.broker_url).wait("never")

    @app.task(name="endings.fatal", shared=False, reject_on_worker_lost=False)
    def fatal() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    again = {"retry_on_worker_lost": True, "max_retries": 1, "default_retry_delay": 0}

    @app.task(name="endings.fatal_twice", shared=False, reject_on_worker_lost=False, **again)
    def fatal_twice() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Fatal(app.Task):
        def on_success(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    @app.task(name="endings.fatal_afterwards", shared=False, base=Fatal)
    def fatal_afterwards() -> str:
        """Take its process down once its result is stored."""
        return "stored"


def _add_batches(app: Celery) -> None:
    options = {"max_size": 10, "max_wait": 0.2, "max_retries": 1}

    @app.task(name="endings.batch", shared=False, base=BatchTask, **options)
    def batch(batch: Batch[str]) -> None:
        """End each item as it says."""
        for item in batch:
            if item.value == "failed":
                item.fail(ValueError("as it was told"))
            elif item.value == "retried":
                item.retry(countdown=0)


def _add_once(app: Celery, traces: Traces) -> None:
    @app.task(name="endings.requeue_once", shared=False)
    def requeue_once(name: str) -> None:
        """Return to the queue at the first run, and end at the second."""
        traces.started(name)
        if traces.counts("started")[name] == 1:
            raise Reject("once more", requeue=True)


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
