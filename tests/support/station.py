"""A worker, an app to send with, and a view of the broker, on one database."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery

from tests.apps.basic import TABLE, Traces, close, create
from tests.support.broker import Broker
from tests.support.wait import eventually
from tests.support.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Station:
    """Everything a test needs to send work and to see what became of it."""

    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Send a task by its short name."""
        return self.app.tasks[f"basic.{task}"].apply_async(args, **options)

    def send_many(
        self, task: str, count: int, *args: Any, prefix: str = "", **options: Any
    ) -> list[str]:
        """Send a task many times, with a name of its own each time; returns the names."""
        prefix = prefix or secrets.token_hex(3)
        names = [f"{prefix}-{n}" for n in range(count)]
        with self.app.producer_pool.acquire(block=True) as producer:
            for name in names:
                self.send(task, name, *args, producer=producer, ignore_result=True, **options)
        return names

    def stop_consuming(self, queue: str) -> None:
        """Let the worker no longer consume from a queue, and wait until it does not."""
        self.tell("cancel_consumer", queue)
        eventually(lambda: queue not in self.consumed())

    def consume(self, queue: str) -> None:
        """Let the worker consume from a queue, and wait until it does."""
        self.tell("add_consumer", queue)
        eventually(lambda: queue in self.consumed())

    def limit_rate(self, task: str, rate: str) -> None:
        """Let the worker, and no other, start a task only so often; "0" for as often as it can.

        What a rate keeps waiting is held by the worker, as no slot could start it.
        """
        self.tell("rate_limit", f"basic.{task}", rate)

    def tell(self, command: str, *arguments: Any) -> None:
        """Have the worker carry out a remote command.

        It says that it is ready a moment before it listens to them, so it is told until it answers.
        """
        ask: Any = {"destination": [self.worker.name], "reply": True, "timeout": 2, "limit": 1}

        def told() -> Any:
            with suppress(redis.ConnectionError):  # of before, when the broker was away
                return getattr(self.app.control, command)(*arguments, **ask)

        eventually(told, 20)

    def consumed(self) -> list[str]:
        """Return the queues that the worker consumes from."""
        inspect = self.app.control.inspect(timeout=5, destination=[self.worker.name], limit=1)
        (queues,) = eventually(inspect.active_queues, 20).values()  # a reply may come too late
        return [queue["name"] for queue in queues]

    def wait_until_ran(self, count: int, *, timeout: float = 30) -> None:
        """Wait until so many runs have ended."""
        eventually(
            lambda: self.traces.total() >= count,
            timeout,
            message=lambda: f"{self.traces.total()} of {count} ran:\n{self.worker.log[-5000:]}",
        )

    def wait_until_ended(self, name: str) -> None:
        """Wait until the task of this name has run to its end."""
        eventually(lambda: name in self.traces.counts(), message=lambda: f"{name} has not run")

    def wait_until_settled(self, *, timeout: float = 10) -> None:
        """Wait until nothing is unacknowledged."""
        eventually(
            self.broker.holds_nothing,
            timeout,
            message=lambda: f"unacked: {self.broker.unacked_by_queue()}\n{self.worker.log[-5000:]}",
        )


@contextmanager
def station(
    url: str,
    pool: str = "prefork",
    concurrency: int = 2,
    *,
    store: str = "",
    view: str = "",
    options: Mapping[str, Any] | None = None,
    broker_prefix: str = "",
    queues: Sequence[str] | None = None,
    arguments: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    app_module: str = "tests.apps.basic",
) -> Iterator[Station]:
    """Run a worker of the basic app on a broker.

    Arguments:
        url: the broker URL, in any form that Celery takes.
        store: a plain redis:// URL for traces and results, where the broker's is something else.
        view: a plain redis:// URL of the broker's database, where that is not the store's.
        options: broker_transport_options.
        broker_prefix: the key prefix among these options.
        arguments: further command line options of the worker.
        settings: further settings of the worker's app; its "table" is the sender's too.
        app_module: the worker's app, which has the basic tasks among others.
    """
    environment = {
        "CELERIAC_TEST_BROKER": url,
        "CELERIAC_TEST_STORE": store or url,
        "CELERIAC_TEST_OPTIONS": json.dumps(dict(options or {})),
        "CELERIAC_TEST_SETTINGS": json.dumps(dict(settings or {})),
        **(env or {}),
    }
    table = (settings or {}).get("table", TABLE)
    app = create(url, store=store or url, options=options, table=table)
    worker = Worker(
        app_module,
        pool,
        concurrency,
        queues=queues,
        env=environment,
        options=arguments,
    )
    traces = Traces(store or url)
    with Broker(view or store or url, prefix=broker_prefix) as broker, worker:
        yield Station(app=app, worker=worker, broker=broker, traces=traces)
    traces.client.close()
    close(app)
