"""The basic app with a database that breaks; a worker gets its broker from the environment.

CELERIAC_TEST_SINK     path of the SQLite file; while a file of this name with ".away" exists,
                       every call fails
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from celery import Celery

from batching import Batch, BatchTask, Item
from tests.apps.basic import Traces
from tests.apps.basic import create as create_basic

LEASE_SECONDS = 3.0

TABLE: Mapping[str, Any] = {
    "queues": {
        "default": {"prefetch": 200},
        "heavy": {"prefetch": 1000},
        "burst": {"prefetch": 100, "max_length": 8000, "overflow": "drop_oldest"},
        "bounded": {"prefetch": 4, "max_length": 5, "overflow": "drop_newest"},
        "few": {"prefetch": 4},
        "gathered": {"prefetch": 500},
        "latest": {
            "prefetch": 1,
            "limit": 1,
            "max_length": 1,
            "overflow": "drop_oldest",
            "log_drops": False,
        },
        "reliable": {"prefetch": 2, "limit": 1, "max_length": 10, "overflow": "block"},
    },
    "routes": {"sink.gather": "gathered"},
    "lease_seconds": LEASE_SECONDS,
    "max_inflight_bytes": 4 * 1024**2,
}


class SinkError(Exception):
    """The database did not answer."""


class Sink:
    """A table of rows in a file, each under the id of the item that it came from."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.away = self.path.with_suffix(".away")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def create(self) -> None:
        """Make the table, which takes no negative numbers."""
        with closing(self._connect()) as connection, connection:
            connection.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, n INT CHECK (n >= 0))")
            connection.execute("CREATE TABLE writes (id TEXT)")

    def write(self, rows: Sequence[tuple[str, int]], *, fails: float = 0.0) -> None:
        """Insert rows that are not there yet, all or none; note who came."""
        if self.away.exists() or random.random() < fails:
            raise SinkError("the database did not answer")
        with closing(self._connect()) as connection, connection:
            connection.executemany(
                "INSERT INTO rows VALUES (?, ?) ON CONFLICT (id) DO NOTHING", rows
            )
            connection.executemany("INSERT INTO writes VALUES (?)", [(i,) for i, _ in rows])

    def rows(self) -> dict[str, int]:
        """Return the rows, id -> number."""
        with closing(self._connect()) as connection:
            return dict(connection.execute("SELECT id, n FROM rows").fetchall())

    def writes(self) -> list[str]:
        """Return the id of every row that was written, as often as it was."""
        with closing(self._connect()) as connection:
            return [i for (i,) in connection.execute("SELECT id FROM writes").fetchall()]


def create(broker: str, sink: Sink) -> Celery:
    """Return the app on this broker."""
    app = create_basic(broker, table=TABLE)
    traces = Traces(broker)
    _add_plain(app, sink, traces)
    _add_load(app, sink)
    _add_inserts(app, sink, traces)
    return app


def _add_plain(app: Celery, sink: Sink, traces: Traces) -> None:
    @app.task(name="sink.insert", shared=False, bind=True)
    def insert(self: Any, number: int) -> None:
        """Write a row; the first time, do not come to the end."""
        sink.write([(self.request.id, number)])
        is_first = traces.client.setnx("written", 1)
        traces.started(self.request.id)  # last: whoever hears of it may kill this process at once
        if is_first:
            traces.wait("never")

    @app.task(name="sink.count", shared=False, ignore_result=True)
    def count(name: str) -> None:
        traces.client.hincrby("ran", name, 1)

    @app.task(name="sink.weigh", shared=False, ignore_result=True)
    def weigh(payload: str) -> None:
        traces.client.hincrby("ran", str(len(payload)), 1)

    @app.task(name="sink.sample", shared=False, ignore_result=True)
    def sample(sent_at: float, series: str) -> None:
        """Note how old it is, and take a while."""
        traces.client.rpush(f"ages:{series}", time.monotonic() - sent_at)
        time.sleep(0.1)


BATCHES: Mapping[str, Any] = {
    "base": BatchTask,
    "max_size": 25,
    "max_wait": 0.1,
    "shared": False,
}


def _add_load(app: Celery, sink: Sink) -> None:
    @app.task(
        name="sink.load",
        autoretry_for=(SinkError,),
        max_retries=None,
        default_retry_delay=0.2,
        **BATCHES,
    )
    def load(batch: Batch[int]) -> None:
        """Write a batch to a database that fails in a fifth of all calls; say who is to blame."""
        try:
            sink.write([_row(item) for item in batch], fails=0.2)
        except sqlite3.IntegrityError:
            for item in batch:
                _load_alone(sink, item)

    @app.task(name="sink.gather", base=BatchTask, max_size=100, max_wait=30, shared=False)
    def gather(batch: Batch[int]) -> None:
        pass


def _add_inserts(app: Celery, sink: Sink, traces: Traces) -> None:
    @app.task(name="sink.insert_batch", **BATCHES)
    def insert_batch(batch: Batch[int]) -> None:
        """Write a batch; the first time, do not come to the end."""
        sink.write([_row(item) for item in batch])
        is_first = traces.client.setnx("written", 1)
        for item in batch:
            traces.started(item.id)
        if is_first:
            traces.wait("never")

    @app.task(name="sink.insert_and_die", **BATCHES)
    def insert_and_die(batch: Batch[int]) -> None:
        """Write a batch, and lose the process at the first time."""
        sink.write([_row(item) for item in batch])
        if traces.client.setnx("died", 1):
            os.kill(os.getpid(), signal.SIGKILL)

    @app.task(name="sink.insert_slowly", **BATCHES)
    def insert_slowly(batch: Batch[int]) -> None:
        """Write for more than three leases."""
        traces.wait("never", seconds=3.3 * LEASE_SECONDS)
        sink.write([_row(item) for item in batch])


def _row(item: Item[int]) -> tuple[str, int]:
    return item.id, item.value


def _load_alone(sink: Sink, item: Item[int]) -> None:
    try:
        sink.write([_row(item)], fails=0.2)
    except (SinkError, sqlite3.IntegrityError) as error:
        item.fail(error)


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url, Sink(os.environ["CELERIAC_TEST_SINK"]))
