"""An app for worker tests of levels: its tasks say which queue and level they came at.

A worker gets its broker from the environment:

    CELERIAC_TEST_BROKER   the broker URL
    CELERIAC_TEST_SETTINGS further settings as JSON
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
from routing.publish.levels import ASKED, LEVEL
from tests.apps.basic import Traces

#: Which queue each level goes to, and the queue of the others.
QUEUES = {"low": "bulk", "high": "fast", None: "plain", "normal": "plain"}

ROUTE = {"queue": "plain", "low": "bulk", "high": "fast"}

TABLE: Mapping[str, Any] = {
    "queues": {"plain": {"prefetch": 100}, "bulk": {"prefetch": 100}, "fast": {"prefetch": 100}},
    "routes": {"levels.other": {"queue": "bulk", "high": "plain"}, "levels.*": ROUTE},
    "lease_seconds": 3.0,
}


def cautious(task: str, level: str, options: Mapping[str, Any]) -> str | None:
    """Let nobody with this header use level "high"."""
    return "low" if level == "high" and (options.get("headers") or {}).get("free") else None


def create(broker: str, **settings: Any) -> Celery:
    """Return the app on this broker."""
    app = Celery("levels", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(
        worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, **settings
    )
    traces = Traces(broker)
    _add_plain(app, traces)
    _add_retried(app, traces)
    _add_batches(app, traces)
    install(app, TABLE, level_policy=f"{__name__}:cautious")
    return app


def place(request: Any) -> str:
    """Return the queue, the level and the level that was asked for, in one word."""
    headers = request.headers or {}
    return f"{request.delivery_info['routing_key']}/{headers.get(LEVEL)}/{headers.get(ASKED)}"


def _add_plain(app: Celery, traces: Traces) -> None:
    @app.task(name="levels.seen", shared=False, bind=True)
    def seen(self: Any, *names: Any) -> str:
        """Say where it came from, under the last of its arguments."""
        traces.client.rpush(f"seen:{names[-1]}", place(self.request))
        return place(self.request)

    @app.task(name="levels.other", shared=False, bind=True)
    def other(self: Any, *names: Any) -> str:
        traces.client.rpush(f"seen:{names[-1]}", place(self.request))
        return place(self.request)

    @app.task(name="levels.fails", shared=False)
    def fails(key: str) -> None:
        if not traces.client.exists(key):
            raise LookupError(key)

    @app.task(name="levels.calls", shared=False)
    def calls(name: str, options: dict[str, Any]) -> None:
        seen.apply_async((name,), **options)

    @app.task(name="levels.replaced", shared=False, bind=True)
    def replaced(self: Any, name: str, options: dict[str, Any]) -> Any:
        return self.replace(seen.si(name).set(**options))

    @app.task(name="levels.dies", shared=False, bind=True)
    def dies(self: Any, name: str) -> str:
        """Take its process down, the first time."""
        traces.client.rpush(f"seen:{name}", place(self.request))
        if traces.client.incr(f"dies:{name}") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return place(self.request)


def _add_retried(app: Celery, traces: Traces) -> None:
    @app.task(name="levels.retried", shared=False, bind=True, max_retries=3)
    def retried(self: Any, name: str, options: dict[str, Any]) -> str:
        traces.client.rpush(f"seen:{name}", place(self.request))
        if not self.request.retries:
            raise self.retry(**options)
        return place(self.request)

    @app.task(
        name="levels.auto",
        shared=False,
        bind=True,
        autoretry_for=(LookupError,),
        default_retry_delay=0,
    )
    def auto(self: Any, name: str) -> str:
        traces.client.rpush(f"seen:{name}", place(self.request))
        if not self.request.retries:
            raise LookupError(name)
        return place(self.request)


def _note(traces: Traces, batch: Batch[Any]) -> None:
    """Leave the levels of a batch, and of each of its items."""
    found = [str((item.headers or {}).get(LEVEL)) for item in batch]
    traces.client.rpush("batches", ",".join(found))
    for item, level in zip(batch, found, strict=True):
        traces.client.rpush(f"seen:{item.value}", level)


def _add_batches(app: Celery, traces: Traces) -> None:
    @app.task(base=BatchTask, name="levels.rows", shared=False, max_size=50, max_wait=0.05)
    def rows(batch: Batch[Any]) -> None:
        """Let each item retry once."""
        _note(traces, batch)
        for item in batch:
            if item.attempt == 1:
                item.retry(countdown=0)

    @app.task(
        base=BatchTask, name="levels.moved", bind=True, shared=False, max_size=50, max_wait=0.05
    )
    def moved(self: Any, batch: Batch[Any]) -> None:
        """Let all items retry once, at level "low", or at one that nobody serves."""
        _note(traces, batch)
        if any(item.attempt == 1 for item in batch):
            level = "hgih" if batch.values == ["hgih"] else "low"
            raise self.retry(countdown=0, priority=level)

    @app.task(
        base=BatchTask,
        name="levels.auto_rows",
        shared=False,
        max_size=50,
        max_wait=0.05,
        autoretry_for=(LookupError,),
        default_retry_delay=0,
    )
    def auto_rows(batch: Batch[Any]) -> None:
        _note(traces, batch)
        for item in batch:
            if item.attempt == 1:
                item.fail(LookupError("once"))


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url, **json.loads(os.environ.get("CELERIAC_TEST_SETTINGS", "{}")))
