"""A batched load into a real database that fails often, and its publisher.

Each item becomes one row, keyed by the item's id; one item of a hundred is refused for good. The
sink takes some milliseconds a call and fails one call of five, before or after its rows are
written. ``python -m benchmarks.apps.crashing COUNT`` publishes so many items.

    BENCH_DATABASE_URL   any database that SQLAlchemy knows; SQLite in the run's folder by default
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from batching import Batch, BatchTask
from benchmarks.apps.settings import Settings, create_app
from routing import install

QUEUE = "crash"

#: Short, so that what a killed worker held is back soon; a worker renews every third of it.
LEASE_SECONDS = 5.0

MAX_SIZE = 50
SINK_SECONDS = 0.02
SINK_FAILS = 0.2

#: Every so many-th item is refused, and is to become a dead letter.
REFUSED_EVERY = 100

settings = Settings.from_environment()
app = create_app("crashing", settings)
install(
    app,
    {
        "queues": {
            QUEUE: {
                "prefetch": 4 * MAX_SIZE,
                "max_dead": 10**6,
                # With a kill every other second an item may well be hit a few times.
                "max_deliveries": 20,
            }
        },
        "lease_seconds": LEASE_SECONDS,
    },
)

metadata = sa.MetaData()
rows = sa.Table(
    "rows",
    metadata,
    sa.Column("id", sa.String(155), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)


class SinkFailed(Exception):
    """The sink failed; whether it has written its rows is not known."""


@functools.cache
def engine() -> sa.Engine:
    """Return this process's connections."""
    return connect(settings.directory)


os.register_at_fork(after_in_child=engine.cache_clear)


def connect(directory: Path) -> sa.Engine:
    """Connect to the database, and make the table when it is not there."""
    url = os.environ.get("BENCH_DATABASE_URL") or f"sqlite:///{directory / 'rows.db'}"
    created = sa.create_engine(url)
    if created.dialect.name == "sqlite":
        sa.event.listen(created, "connect", _tune_sqlite)
    with created.begin() as connection:
        connection.execute(sa.schema.CreateTable(rows, if_not_exists=True))
    return created


def _tune_sqlite(connection: Any, record: object) -> None:
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


@app.task(
    name="bench.store",
    base=BatchTask,
    max_size=MAX_SIZE,
    max_wait=0.1,
    ignore_result=True,
    autoretry_for=(SinkFailed, sa.exc.OperationalError),
    default_retry_delay=0.2,
    max_retries=1000,
)
def store(batch: Batch[int]) -> None:
    """Write a row for each item."""
    for item in batch:
        if item.value % REFUSED_EVERY == 0:
            item.fail(ValueError(f"{item.value} is refused"))
    time.sleep(SINK_SECONDS)
    chance = random.random()
    if chance < SINK_FAILS / 2:
        raise SinkFailed("before it wrote")
    values = [{"id": item.id, "number": item.value} for item in batch if item.outcome is None]
    if values:
        with engine().begin() as connection:
            insert = postgresql if connection.dialect.name == "postgresql" else sqlite
            connection.execute(insert.insert(rows).on_conflict_do_nothing(), values)
    if chance < SINK_FAILS:
        raise SinkFailed("after it wrote")


def publish(count: int) -> dict[str, float]:
    """Publish the items 1 to count."""
    start = time.monotonic()
    receipts = store.delay_many(range(1, count + 1))
    receipts.raise_for_refused()
    return {"count": count, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    print(json.dumps(publish(int(sys.argv[1]))))
