"""Rows into a real table, one by one and as batches; its publisher sends both in the same way.

The environment says which database (``BENCH_DATABASE``) and how many seconds a transaction takes
beside that (``BENCH_SINK_SECONDS``), as over a network.

``python -m benchmarks.apps.ingested TASK COUNT`` sends so many rows at once, ``... TASK RATE
SECONDS`` sends them one after the other, and prints how long each call took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from typing import Any

import sqlalchemy as sa
from celery import current_task
from pydantic import BaseModel
from sqlalchemy.dialects import postgresql, sqlite

from batching import Batch, BatchTask
from batching.sinks.sql import SqlSink
from benchmarks.apps.settings import Settings, create_app
from routing import install

QUEUE = "ingest"
MAX_SIZE = 500
MAX_WAIT_SECONDS = 0.2

#: A database may stall for longer than any driver waits by itself.
PATIENCE_SECONDS = 300

URL = os.environ["BENCH_DATABASE"]
SINK_SECONDS = float(os.environ.get("BENCH_SINK_SECONDS", "0"))

metadata = sa.MetaData()
readings = sa.Table(
    "readings",
    metadata,
    sa.Column("id", sa.String(155), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("sensor", sa.String(20), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("degrees", sa.Float, nullable=False),
    sa.Column("landed", sa.Float, nullable=False),
)


class Reading(BaseModel):
    """What a sensor says."""

    number: int
    sensor: str
    at: float
    degrees: float


def connect() -> sa.Engine:
    """Return connections that wait for a database that stalls."""
    is_lite = URL.startswith("sqlite")
    made = sa.create_engine(URL, connect_args={"timeout": PATIENCE_SECONDS} if is_lite else {})
    if is_lite:
        sa.event.listen(made, "connect", _tune)
    return made


def _tune(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


@cache
def engine() -> sa.Engine:
    """Return the connections of the single task's process."""
    return connect()


os.register_at_fork(after_in_child=engine.cache_clear)

settings = Settings.from_environment()
app = create_app("ingested", settings)
install(app, {"queues": {QUEUE: {"prefetch": 2_000}}, "default_queue": QUEUE})


@app.task(name="bench.single", acks_late=True, ignore_result=True)
def single(row: dict[str, Any]) -> None:
    """Write one row in a transaction of its own."""
    values = {"id": current_task.request.id, "landed": time.time(), **row}
    insert: Any = sqlite.insert if URL.startswith("sqlite") else postgresql.insert
    with engine().begin() as connection:
        connection.execute(insert(readings).on_conflict_do_nothing(), values)
        time.sleep(SINK_SECONDS)


def _row(reading: Reading) -> dict[str, Any]:
    return {**dict(reading), "landed": time.time()}


def _take_time(connection: sa.Connection, batch: Batch[Reading], count: int) -> None:
    time.sleep(SINK_SECONDS)


sink = SqlSink("readings", connect, row=_row, within=_take_time)


@app.task(
    name="bench.batched",
    base=BatchTask,
    model=Reading,
    max_size=MAX_SIZE,
    max_wait=MAX_WAIT_SECONDS,
    ignore_result=True,
)
def batched(batch: Batch[Reading]) -> None:
    """Write all rows of a batch in one transaction."""
    return sink.write(batch)


def row(number: int) -> dict[str, Any]:
    """Return a row of the load."""
    return {
        "number": number,
        "sensor": f"sensor {number % 97}",
        "at": time.time(),
        "degrees": number % 400 / 10,
    }


def main(task: str, *arguments: str) -> dict[str, Any]:
    """Send the load; see the module."""
    load = app.tasks[f"bench.{task}"]
    if len(arguments) == 1:
        began = time.time()
        load.delay_many([row(n) for n in range(int(arguments[0]))]).raise_for_refused()
        return {"began": began, "ended": time.time()}
    rate, seconds = map(float, arguments)
    took = []
    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        called = time.perf_counter()
        load.delay(row(number))
        took.append(round((time.perf_counter() - called) * 1000, 2))
    return {"took_ms": took, "ended": time.time()}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
