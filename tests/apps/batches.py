"""An app with batch tasks that leave traces in Redis and wait for keys there.

A worker gets its broker from the environment:

    CELERIAC_TEST_BROKER   the broker URL
    CELERIAC_TEST_STORE    where the tasks leave their traces, and results go; the broker by default
    CELERIAC_TEST_STOCK    when set, a stock app on a stock broker: `install` is not called
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from pydantic import BaseModel

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

#: For so long a batch waits for a slot without having its turn, which takes it back to the broker:
#: more than a test does meanwhile. It goes as soon as a slot is free.
GATHERING_SECONDS = 8.0

TABLE: Mapping[str, Any] = {
    "queues": {"default": {"prefetch": 500}, "other": {"prefetch": 500}, "alone": {"prefetch": 60}},
    "routes": {"batches.alone": "alone"},
}


class Row(BaseModel):
    number: int


def create(broker: str, *, store: str = "", stock: bool = False) -> Celery:
    """Return the app on this broker."""
    store = store or broker
    app = Celery("batches", broker=broker, backend=store, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        task_send_sent_event=False,
    )
    if stock:
        app.conf.update(task_default_queue="default", worker_prefetch_multiplier=500)
    add_tasks(app, Traces(store))
    if not stock:
        install(app, TABLE)
    return app


def add_tasks(app: Celery, traces: Traces) -> None:
    """Register the tasks."""
    _add_plain(app, traces)
    _add_outcomes(app, traces)
    _add_gathered(app, traces)
    _add_retries(app, traces)
    _add_dying(app)
    _add_breaking(app, traces)


def _batch_task(app: Celery, **options: Any) -> Callable[[Any], Any]:
    """Register a batch task under the name of its function."""

    def register(function: Any) -> Any:
        name = f"batches.{function.__name__}"
        settings = {"max_size": 50, "shared": False} | options
        return app.task(function, base=BatchTask, name=name, **settings)

    decorator: Callable[[Any], Any] = register
    return decorator


def _add_plain(app: Celery, traces: Traces) -> None:
    @_batch_task(app, key="tenant", time_limit=60)
    def facts(batch: Batch[dict[str, str]]) -> list[dict[str, Any]]:
        """Return what the function is told."""
        left = (batch.deadline or 0) - time.time()
        about = {"queue": batch.queue, "key": batch.key, "reason": batch.reason, "left": left}
        return [
            about
            | {"id": batch.id, "age": item.age, "priority": item.priority}
            | {"redelivered": item.redelivered, "stamps": dict(item.stamps)}
            for item in batch
        ]

    @app.task(name="batches.total", shared=False)
    def total(numbers: list[int]) -> int:
        traces.ran("total")
        return sum(numbers)

    @app.task(name="batches.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="batches.note", shared=False)
    def note(*_: Any, name: str) -> None:
        traces.ran(name)

    @app.task(name="batches.occupies", shared=False, ignore_result=True)
    def occupies(gate: str) -> None:
        """Keep a slot until the gate opens."""
        traces.started(gate)
        assert traces.wait(gate), "nobody opened the gate"
        traces.ran(gate)


def _add_outcomes(app: Celery, traces: Traces) -> None:
    @_batch_task(app, model=Row)
    def load(batch: Batch[Row]) -> None:
        """Fail every number that ends in 13; note what runs, and how many at once."""
        traces.client.rpush("sizes", len(batch))
        for item in batch:
            traces.ran(str(item.value.number))
            if item.value.number % 100 == 13:
                item.fail(ValueError(f"no luck with {item.value.number}"))
            else:
                item.done(item.value.number * 2)

    @_batch_task(app, max_wait=GATHERING_SECONDS)
    def double(batch: Batch[int]) -> list[int]:
        traces.client.rpush("sizes", len(batch))
        return [item.value * 2 for item in batch]

    @_batch_task(app)
    def unstorable(batch: Batch[int]) -> list[Any]:
        return [object() if item.value == 1 else item.value for item in batch]


def _add_gathered(app: Celery, traces: Traces) -> None:
    @_batch_task(app, key=lambda name, gate: gate, max_wait=GATHERING_SECONDS)
    def held(batch: Batch[Any]) -> None:
        """Run until the gate opens."""
        gate = batch[0].args[1]
        for item in batch:
            traces.started(item.args[0])
        traces.client.rpush("sizes", len(batch))
        assert traces.wait(gate), "nobody opened the gate"
        for item in batch:
            traces.ran(item.args[0])

    @_batch_task(app, key=lambda row: row["tenant"], max_wait=0.2)
    def by_tenant(batch: Batch[dict[str, str]]) -> list[list[str]]:
        traces.client.rpush("sizes", len(batch))
        return [sorted({item.value["tenant"] for item in batch})] * len(batch)

    @_batch_task(app, max_size=20, max_wait=GATHERING_SECONDS)
    def pausing(batch: Batch[int]) -> None:
        """Take a moment, and note each item once it is over."""
        time.sleep(0.05)
        for item in batch:
            traces.ran(str(item.value))

    @_batch_task(app, max_size=20)
    def alone(batch: Batch[int]) -> None:
        """Take a moment, in a queue of its own."""
        time.sleep(0.05)

    @_batch_task(app, rate_limit="5/m")
    def limited(batch: Batch[str]) -> None:
        traces.client.rpush("sizes", len(batch))
        for item in batch:
            traces.ran(item.value)


def _add_retries(app: Celery, traces: Traces) -> None:
    @_batch_task(app, autoretry_for=(ConnectionError,), max_retries=3, default_retry_delay=0)
    def flaky(batch: Batch[int]) -> None:
        """Succeed at the attempt that each item names."""
        for item in batch:
            traces.ran(f"flaky-{item.value}")
            if item.attempt < item.value:
                item.fail(ConnectionError("again"))
            else:
                item.done(item.attempt)

    @_batch_task(app, bind=True, max_retries=None)
    def all_again(self: Any, batch: Batch[int]) -> list[int]:
        if any(item.attempt < 2 for item in batch):
            raise self.retry(countdown=0)
        return [item.attempt for item in batch]

    @_batch_task(app, autoretry_for=(TimeoutError,), max_retries=1, default_retry_delay=0)
    def stumbles(batch: Batch[int]) -> None:
        """End the even items, then raise without naming an item; the odd ones have another try."""
        for item in batch:
            traces.ran(f"stumbles-{item.value}")
            if item.value % 2 == 0 or item.attempt > 1:
                item.done(item.attempt)
        if any(item.outcome is None for item in batch):
            raise TimeoutError


def _add_dying(app: Celery) -> None:
    @_batch_task(app, autoretry_for=(Exception,), max_retries=1, default_retry_delay=0)
    def condemns(batch: Batch[str]) -> None:
        """End each item as its value says."""
        for item in batch:
            if item.value == "dead":
                item.dead("nobody can help it")
            elif item.value == "fail":
                item.fail(LookupError("twice"))
            elif item.value == "reject":
                item.fail(Reject("not for us"))
            elif item.value == "ignore":
                item.fail(Ignore())


def _add_breaking(app: Celery, traces: Traces) -> None:
    @_batch_task(app)
    def breaks(batch: Batch[int]) -> None:
        batch[0].done("kept")
        raise RuntimeError("broken")

    @_batch_task(app)
    def too_few(batch: Batch[int]) -> list[int]:
        return [1] * (len(batch) + 1)

    @_batch_task(app, soft_time_limit=0.5, max_wait=GATHERING_SECONDS, on_error="retry")
    def slow(batch: Batch[str]) -> None:
        batch[0].done("in time")
        for item in batch:
            traces.started(item.value)
        traces.wait("never", seconds=20)

    @_batch_task(app, time_limit=1, max_wait=GATHERING_SECONDS, on_error="retry")
    def stuck(batch: Batch[str]) -> None:
        for item in batch:
            traces.started(item.value)
        traces.wait("never", seconds=20)

    @_batch_task(app)
    def dies_once(batch: Batch[str]) -> list[int]:
        """Kill the pool process the first time."""
        for item in batch:
            traces.started(item.value)
        if traces.client.setnx("died", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return [len(item.value) for item in batch]


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(
        broker_url,
        store=os.environ.get("CELERIAC_TEST_STORE", ""),
        stock=bool(os.environ.get("CELERIAC_TEST_STOCK")),
    )
