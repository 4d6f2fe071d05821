"""A worker with a database that breaks, and what a test looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import Celery

from routing.redis import ledger as books
from tests.apps.basic import Traces, close
from tests.apps.sink import Sink, create
from tests.support.broker import Broker
from tests.support.wait import eventually
from tests.support.worker import Worker


class Scene:
    """A worker with a database, and what a test looks at."""

    def __init__(self, url: str, directory: Path, **options: Any) -> None:
        self.sink = Sink(directory / "rows.db")
        self.sink.create()
        self.app: Celery = create(url, self.sink)
        self.traces = Traces(url)
        self.broker = Broker(url)
        self.env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_SINK": str(self.sink.path)}
        self.worker = Worker("tests.apps.sink", env=self.env, **options)

    def __enter__(self) -> Scene:
        self.worker.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.worker.__exit__(*exc_info)
        self.traces.client.close()
        self.broker.client.close()
        close(self.app)

    def send(self, task: str, *args: Any, queue: str = "default") -> str:
        """Send a task; returns the id of its message."""
        name = task if "." in task else f"sink.{task}"
        result = self.app.tasks[name].apply_async(args, queue=queue, ignore_result=True)
        return str(result.id)

    def send_many(self, task: str, *numbers: int) -> dict[str, int]:
        """Send an item for each number; returns the numbers by the ids of their messages."""
        return {self.send(task, number): number for number in numbers}

    def stop_consuming(self, queue: str) -> None:
        """Let the worker no longer consume from a queue, and wait until it does not."""
        self.app.control.cancel_consumer(queue)
        inspect = self.app.control.inspect(timeout=5, limit=1)

        def consumed() -> list[str]:
            (queues,) = eventually(inspect.active_queues, 20).values()
            return [one["name"] for one in queues]

        eventually(lambda: queue not in consumed())

    def ledger(self, queue: str = "default") -> Any:
        """Return the ledger of a queue, counted again."""
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            return books.read(channel.plain_client, channel.commands, [queue], recount=True)[queue]

    def wait_until_all_ended(self, queue: str = "default", *, timeout: float = 60) -> Any:
        """Wait until nothing waits or runs; returns the ledger, which balances."""

        def ended() -> Any:
            book = self.ledger(queue)
            assert (book.difference, book.misheld) == (0, 0)
            return book if not (book.waiting or book.delayed or book.unacked) else None

        def found() -> str:
            return f"{self.ledger(queue)}\n{self.worker.log[-5000:]}"

        return eventually(ended, timeout, message=found)
