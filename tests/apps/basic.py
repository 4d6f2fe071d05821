"""An app for worker tests: tasks that leave traces in Redis and wait for keys there.

A worker gets its broker from the environment:

    CELERIAC_TEST_BROKER   the broker URL
    CELERIAC_TEST_STORE    where the tasks leave their traces, and results go; the broker by default
    CELERIAC_TEST_OPTIONS  broker_transport_options as JSON
    CELERIAC_TEST_SETTINGS further settings as JSON
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Reject
from kombu import pools

from routing import DeadLetter, install
from routing.inflight.locks import original

#: Longest time that a task waits for its key: a test that forgot it must not hang for ever.
WAIT_SECONDS = 60

TABLE: Mapping[str, Any] = {
    "queues": {
        "default": {"prefetch": 32},
        "low": {},
        "high": {},
        "slow": {"prefetch": 2},
        "fast": {"prefetch": 16},
        "small": {"prefetch": 1, "max_length": 3},
        "bulk": {"prefetch": 200},
    },
    "routes": {
        "basic.where*": {"queue": "default", "low": "low", "high": "high"},
        "basic.held": "slow",
        "basic.limited": "slow",
    },
}


class Traces:
    """What tasks leave behind, and what they wait for."""

    def __init__(self, url: str) -> None:
        self.client: Any = redis.Redis.from_url(url, socket_timeout=None)

    def started(self, name: str) -> None:
        """Note a start."""
        self.client.hincrby("started", name, 1)
        self.client.rpush("starts", name)

    def ran(self, name: str) -> None:
        """Note a run to the end."""
        self.client.rpush("runs", name)
        self.client.hincrby("ran", name, 1)

    def wait(self, gate: str, *, seconds: float = WAIT_SECONDS) -> bool:
        """Wait for a token of this gate."""
        return self.client.blpop(f"gate:{gate}", timeout=seconds) is not None

    def open(self, gate: str, *, times: int = 1) -> None:
        """Let so many waiting tasks go on."""
        self.client.rpush(f"gate:{gate}", *["go"] * times)

    def next_start(self, *, seconds: float = 10) -> str:
        """Return the name of the task that started next."""
        return self._next("starts", seconds)

    def next_run(self, *, seconds: float = 10) -> str:
        """Return the name of the task that ended next."""
        return self._next("runs", seconds)

    def _next(self, key: str, seconds: float) -> str:
        popped = self.client.blpop(key, timeout=seconds)
        assert popped is not None, f"no more {key} within {seconds} s"
        return str(popped[1].decode())

    def counts(self, key: str = "ran") -> dict[str, int]:
        """Return how often each task started or ran."""
        return {name.decode(): int(n) for name, n in self.client.hgetall(key).items()}

    def total(self, key: str = "ran") -> int:
        """Return how many tasks started or ran."""
        return sum(self.counts(key).values())


def small_app(
    name: str, broker: str, table: Mapping[str, Any], add: Callable[[Celery, Traces], None]
) -> Celery:
    """Return an app whose results and traces are where its broker is.

    Arguments:
        name: its name.
        broker: the broker.
        table: its queue table.
        add: registers its tasks.
    """
    app = Celery(name, broker=broker, backend=broker, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        task_send_sent_event=False,
    )
    add(app, Traces(broker))
    install(app, table)
    return app


def create(
    broker: str,
    *,
    store: str = "",
    options: Mapping[str, Any] | None = None,
    table: Mapping[str, Any] = TABLE,
    **more: Any,
) -> Celery:
    """Return the app on this broker."""
    store = store or broker
    app = Celery("basic", broker=broker, backend=store, set_as_current=False)
    app.conf.update(
        broker_transport_options=dict(options or {}),
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        result_extended=True,
        **more,
    )
    add_tasks(app, Traces(store))
    install(app, table)
    return app


def close(app: Celery) -> None:
    """Close every connection of an app; `Celery.close` only forgets them."""
    connection = app.connection_for_write()
    app.amqp.producer_pool.force_close_all()
    app.pool.force_close_all()
    # kombu shares pools between the apps of a process, and an emptied pool blocks the next one.
    for group in (pools.producers, pools.connections):
        with suppress(KeyError):
            del group[connection]
    if "result_consumer" in vars(app.backend):
        consumer = app.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None  # else a result that is collected later connects to unsubscribe
    if hasattr(app.backend, "client"):
        app.backend.client.connection_pool.disconnect()
    app.close()


def add_tasks(app: Celery, traces: Traces) -> None:
    """Register the tasks, with this app only: a test process has several."""
    _add_plain(app)
    _add_traced(app, traces)
    _add_paced(app, traces)
    _add_routed(app)


def _add_plain(app: Celery) -> None:
    @app.task(name="basic.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="basic.collect", shared=False)
    def collect(values: list[int], extra: int = 0) -> int:
        return sum(values) + extra

    @app.task(name="basic.fail", shared=False)
    def fail(text: str) -> None:
        raise ValueError(text)

    @app.task(name="basic.doomed", shared=False, autoretry_for=(Exception,), max_retries=3)
    def doomed(text: str) -> None:
        raise DeadLetter(text)

    @app.task(name="basic.rejects", shared=False)
    def rejects(text: str, requeue: bool = False) -> None:
        raise Reject(text, requeue=requeue)

    @app.task(
        name="basic.exhausted",
        shared=False,
        autoretry_for=(LookupError,),
        max_retries=1,
        default_retry_delay=0,
    )
    def exhausted(text: str) -> None:
        raise LookupError(text)

    @app.task(name="basic.fails_early", shared=False, acks_late=False)
    def fails_early(text: str) -> None:
        raise ValueError(text)


def _add_traced(app: Celery, traces: Traces) -> None:
    @app.task(name="basic.mark", shared=False)
    def mark(name: str, seconds: float = 0, payload: str = "") -> str:
        """Run, taking some time."""
        traces.started(name)
        if seconds:
            time.sleep(seconds)
        traces.ran(name)
        return name

    @app.task(name="basic.needs", shared=False)
    def needs(key: str) -> str:
        """Fail as long as somebody has not set a key."""
        if not traces.client.exists(key):
            raise LookupError(key)
        return key

    @app.task(name="basic.held", shared=False)
    def held(name: str, gate: str) -> str:
        """Run until the gate opens."""
        traces.started(name)
        assert traces.wait(gate), "nobody opened the gate"
        traces.ran(name)
        return name

    @app.task(name="basic.blocks", shared=False)
    def blocks(name: str, seconds: float) -> str:
        """Let nothing else in this process have a turn, under gevent too."""
        traces.started(name)
        held = original("_thread", "allocate_lock")()
        held.acquire()
        held.acquire(timeout=seconds)
        traces.ran(name)
        return name

    @app.task(name="basic.dies", shared=False)
    def dies(name: str) -> None:
        """Take the process down, once its start is known."""
        traces.started(name)
        os.kill(os.getpid(), signal.SIGKILL)


def _add_paced(app: Celery, traces: Traces) -> None:
    @app.task(name="basic.limited", shared=False, rate_limit="1/h")
    def limited(name: str) -> None:
        traces.ran(name)

    @app.task(name="basic.early", shared=False, acks_late=False)
    def early(name: str, gate: str) -> None:
        """Acknowledged before it runs."""
        traces.started(name)
        traces.wait(gate)
        traces.ran(name)

    @app.task(name="basic.retried", shared=False, bind=True, max_retries=5)
    def retried(self: Any, name: str, times: int) -> int:
        """Succeed after so many retries."""
        traces.ran(name)
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return int(self.request.retries)


def _add_routed(app: Celery) -> None:
    @app.task(name="basic.where", shared=False, bind=True)
    def where(self: Any) -> str:
        """Return the queue that the call came through."""
        return str(self.request.delivery_info["routing_key"])

    @app.task(name="basic.due", shared=False, bind=True)
    def due(self: Any) -> str:
        """Return the ETA that the task sees."""
        return str(self.request.eta)

    @app.task(name="basic.where_retried", shared=False, bind=True, max_retries=2)
    def where_retried(self: Any, countdown: float = 0) -> list[str]:
        """Return the queue of the last of two attempts, after one retry."""
        queue = str(self.request.delivery_info["routing_key"])
        if self.request.retries:
            return [queue]
        raise self.retry(countdown=countdown)


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(
        broker_url,
        store=os.environ.get("CELERIAC_TEST_STORE", ""),
        options=json.loads(os.environ.get("CELERIAC_TEST_OPTIONS", "{}")),
        **json.loads(os.environ.get("CELERIAC_TEST_SETTINGS", "{}")),
    )
