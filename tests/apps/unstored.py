"""An app whose traces, results and messages are on servers of their own.

A worker gets them from the environment:

    CELERIAC_TEST_BROKER    the broker URL
    CELERIAC_TEST_RESULTS   the result backend
    CELERIAC_TEST_STORE     where the tasks leave their traces
    CELERIAC_TEST_SETTINGS  further settings of the app, as JSON
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import Reject

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

TABLE: Mapping[str, Any] = {"queues": {"default": {"prefetch": 500}, "other": {"prefetch": 500}}}


def create(
    broker: str, *, results: str, store: str, settings: Mapping[str, Any] | None = None
) -> Celery:
    """Return the app on these servers."""
    app = Celery("unstored", broker=broker, backend=results, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        task_default_queue="default",
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0},
    )
    chosen = dict(settings or {})
    table = {**TABLE, "lease_seconds": chosen.pop("lease_seconds", 60.0)}
    app.conf.update(chosen)
    _add_tasks(app, Traces(store))
    install(app, table)
    return app


def _add_tasks(app: Celery, traces: Traces) -> None:
    _add_simple(app, traces)
    _add_failing(app, traces)
    _add_nowhere(app, traces)
    _add_stumbling(app, traces)
    _add_deadly(app, traces)


def _add_deadly(app: Celery, traces: Traces) -> None:
    @app.task(name="retries_and_dies", bind=True, shared=False, max_retries=1)
    def retries_and_dies(self: Any, name: str) -> None:
        """Send a retry, which fails, and take the process down each time."""
        attempt = f"{name}-{self.request.retries}"
        traces.ran(attempt)
        if self.request.retries:
            raise ValueError(attempt)
        try:
            self.retry(countdown=0)
        finally:
            os._exit(1)


def _add_simple(app: Celery, traces: Traces) -> None:
    @app.task(name="plain", shared=False)
    def plain(name: str) -> str:
        traces.ran(name)
        return name

    @app.task(name="many", base=BatchTask, shared=False, max_size=50)
    def many(batch: Batch[str]) -> list[str]:
        for item in batch:
            traces.ran(item.value)
        return batch.values

    @app.task(name="refuses", shared=False)
    def refuses(name: str) -> None:
        traces.ran(name)
        raise Reject("not now", requeue=True)

    @app.task(name="held", shared=False)
    def held(name: str, gate: str) -> str:
        traces.started(name)
        traces.wait(gate)
        traces.ran(name)
        return name

    @app.task(name="held_many", base=BatchTask, shared=False)
    def held_many(batch: Batch[Any]) -> None:
        for item in batch:
            traces.started(item.args[0])
        traces.wait(batch[0].args[1])
        for item in batch:
            traces.ran(item.args[0])


def _add_failing(app: Celery, traces: Traces) -> None:
    @app.task(name="fail", shared=False)
    def fail(name: str, gate: str) -> None:
        traces.started(name)
        traces.wait(gate)
        traces.ran(name)
        raise LookupError("as it should")

    @app.task(name="fail_many", base=BatchTask, shared=False)
    def fail_many(batch: Batch[Any]) -> None:
        fail(*batch[0].args)


def _add_nowhere(app: Celery, traces: Traces) -> None:
    @app.task(name="nowhere", bind=True, shared=False, max_retries=3)
    def nowhere(self: Any, name: str) -> None:
        traces.ran(name)
        raise self.retry(queue="nope", countdown=0)

    @app.task(name="nowhere_many", base=BatchTask, bind=True, shared=False, max_retries=3)
    def nowhere_many(self: Any, batch: Batch[str]) -> None:
        for item in batch:
            traces.ran(item.value)
        raise self.retry(queue="nope", countdown=0)


def _add_stumbling(app: Celery, traces: Traces) -> None:
    @app.task(name="stumble", bind=True, shared=False)
    def stumble(self: Any, name: str) -> None:
        traces.ran(name)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        raise ValueError(name)

    @app.task(name="stumble_many", base=BatchTask, shared=False, max_size=500)
    def stumble_many(batch: Batch[str]) -> None:
        for item in batch:
            traces.ran(item.value)
            if item.value.startswith("good"):
                item.done()
            elif item.attempt == 1:
                item.retry(countdown=0)
            else:
                item.fail(ValueError(item.value))

    @app.task(name="again", bind=True, shared=False, max_retries=3)
    def again(self: Any, name: str, gate: str) -> str:
        traces.started(name)
        traces.wait(gate)
        traces.ran(name)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return name


def _kill_before_parts_are_counted(traces: Traces) -> None:
    """Kill the process that is about to count a part of a chord, once the key "kill" is there."""
    count = RedisBackend.on_chord_part_return

    def killing(self: Any, *args: Any, **options: Any) -> Any:
        if traces.client.delete("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return count(self, *args, **options)

    RedisBackend.on_chord_part_return = killing


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    _kill_before_parts_are_counted(Traces(os.environ["CELERIAC_TEST_STORE"]))
    app = create(
        broker_url,
        results=os.environ["CELERIAC_TEST_RESULTS"],
        store=os.environ["CELERIAC_TEST_STORE"],
        settings=json.loads(os.environ.get("CELERIAC_TEST_SETTINGS", "{}")),
    )
