"""``ingest``: rows into SQLite and PostgreSQL, single against batched; a database that stalls.

Two workers' slots (prefork -c2) write to one table. ``sqlite`` and ``postgresql`` are the databases
as they are, on this machine; with ``_10ms`` each transaction takes 10 ms more, as over a network.
Single tasks and batches get the same rows, and what becomes of them is compared: each run fails
unless every row is there once, and every message has ended as done.

``stalled``: the table is locked for a minute while rows come one by one. ``accept`` is how long a
caller's ``delay()`` takes meanwhile, ``behind`` how long after the last call, five seconds after
the stall, all rows were there.
``tail``: how long after a burst its last row was there, with no further traffic.

PostgreSQL is looked for at ``CELERIAC_TEST_POSTGRES_URL``, or on port 5432.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from benchmarks.apps.settings import Settings
from benchmarks.measure import wait_for
from benchmarks.queue_size import quantile
from benchmarks.runner import Cell, Grid
from benchmarks.server import Server
from benchmarks.workers import (
    BenchmarkError,
    Crew,
    logs,
    run_module,
    start,
    stop,
    wait_ready,
)

# As in `benchmarks.apps.ingested`, which is imported in the workers' processes only.
QUEUE = "ingest"
MAX_WAIT_SECONDS = 0.2

POSTGRES_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"

#: One by one takes that much longer: of so many rows, as few are enough.
FEWER = 20

STALL_SECONDS = 60.0
#: Rows come before the stall, while it lasts, and after it.
ASIDE_SECONDS = 5.0
ROWS_PER_SECOND = 50.0
TAIL_ROWS = 750

LANDING_SECONDS = 180.0

Database = Literal["sqlite", "postgresql"]
Task = Literal["single", "batched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A worker and its table."""

    settings: Settings
    server: Server
    engine: sa.Engine

    def send(self, *arguments: str) -> dict[str, Any]:
        """Send rows in a process of their own."""
        return run_module("benchmarks.apps.ingested", self.settings, *arguments)

    def count(self) -> int:
        """Return how many rows are there."""
        with self.engine.connect() as connection:
            found: int = connection.exec_driver_sql("SELECT count(*) FROM readings").scalar_one()
        return found

    def landed(self, expected: int) -> float:
        """Wait until all rows are there; returns when the last was written."""

        def is_over() -> bool:
            return self.count() >= expected and not self.server.unfinished(QUEUE)

        wait_for(is_over, seconds=LANDING_SECONDS)
        ledger = self.server.ledger(QUEUE)
        endings = {name: count for name, count in ledger.items() if name != "accepted" and count}
        if self.count() != expected or endings.get("done") != expected:
            problem = f"expected {expected} rows, {self.count()} are there, endings {endings}"
            raise BenchmarkError(f"{problem}\n{logs(self.settings.directory)}")
        with self.engine.connect() as connection:
            last = connection.exec_driver_sql("SELECT max(landed) FROM readings").scalar_one()
        return float(last)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let nobody write to the table."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("LOCK TABLE readings IN EXCLUSIVE MODE")
            yield
            connection.exec_driver_sql("ROLLBACK")


@contextmanager
def site(server: Server, database: Database, sink_seconds: float) -> Iterator[Site]:
    """Run a worker on an empty table."""
    server.flush()
    with tempfile.TemporaryDirectory(prefix="ingest-") as name, _table(database, name) as url:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(name),
        )
        os.environ["BENCH_DATABASE"] = url
        os.environ["BENCH_SINK_SECONDS"] = f"{sink_seconds:g}"
        engine = sa.create_engine(url)
        if database == "sqlite":
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        crew = Crew(pool="prefork", concurrency=2)
        workers = [start("ingested", "ingest@bench", crew, settings, queue=QUEUE)]
        try:
            wait_ready(workers, settings.directory)
            yield Site(settings=settings, server=server, engine=engine)
        finally:
            stop(workers)
            engine.dispose()
            del os.environ["BENCH_DATABASE"], os.environ["BENCH_SINK_SECONDS"]


@contextmanager
def _table(database: Database, folder: str) -> Iterator[str]:
    """Make the table, and yield the URL of its database."""
    if database == "sqlite":
        url = f"sqlite:///{folder}/readings.db"
        _make(url)
        yield url
        return
    base = os.environ.get("CELERIAC_TEST_POSTGRES_URL", POSTGRES_URL)
    schema = f"bench_{secrets.token_hex(4)}"
    engine = sa.create_engine(base)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    except sa.exc.OperationalError as error:
        raise BenchmarkError(
            f"needs PostgreSQL at CELERIAC_TEST_POSTGRES_URL or on port 5432: {error}"
        ) from error
    url = f"{base}{'&' if '?' in base else '?'}options=-csearch_path%3D{schema}"
    try:
        _make(url)
        yield url
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        engine.dispose()


def _make(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE readings (id VARCHAR(155) PRIMARY KEY, number INTEGER NOT NULL, "
            "sensor VARCHAR(20) NOT NULL, at DOUBLE PRECISION NOT NULL, "
            "degrees DOUBLE PRECISION NOT NULL, landed DOUBLE PRECISION NOT NULL)"
        )
    engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rows a second, one by one and batched."""

    database: Database
    sink_seconds: float

    @property
    def name(self) -> str:
        """Return its name in the report."""
        beside = f"_{self.sink_seconds * 1000:g}ms" if self.sink_seconds else ""
        return f"{self.database}{beside}"

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Measure both, one after the other."""
        single = self._rate(server, "single", max(1, size // FEWER))
        batched = self._rate(server, "batched", size)
        return {
            "single_rows_s": round(single),
            "batched_rows_s": round(batched),
            "batched_to_single": round(batched / single, 1),
        }

    def _rate(self, server: Server, task: Task, count: int) -> float:
        with site(server, self.database, self.sink_seconds) as at:
            began = at.send(task, str(count))["began"]
            return count / (at.landed(count) - float(began))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A database that stalls does not reach who calls, and the tail of a burst does not wait."""

    database: Database

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"{self.database}_stalled"

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Measure both kinds of tasks under the same stall."""
        found: dict[str, Any] = {}
        for task in ("single", "batched"):
            with site(server, self.database, 0.0) as at:
                found |= {f"{task}_{k}": v for k, v in self._measure(at, task).items()}
        return found

    def _measure(self, at: Site, task: Task) -> dict[str, Any]:
        seconds = STALL_SECONDS + 2 * ASIDE_SECONDS
        sent: dict[str, Any] = {}
        sender = threading.Thread(
            target=lambda: sent.update(at.send(task, f"{ROWS_PER_SECOND:g}", f"{seconds:g}"))
        )
        sender.start()
        wait_for(lambda: at.count() > 0, seconds=30)
        time.sleep(ASIDE_SECONDS)
        with at.stalled():
            time.sleep(STALL_SECONDS)
        released = time.time()
        sender.join()
        rows = int(ROWS_PER_SECOND * seconds)
        last = at.landed(rows)
        first = int(ROWS_PER_SECOND * ASIDE_SECONDS)
        during = sorted(sent["took_ms"][2 * first : -2 * first])
        began = at.send(task, str(TAIL_ROWS))
        tail = at.landed(rows + TAIL_ROWS) - began["ended"]
        return {
            "accept_p50_ms": quantile(during, 50),
            "accept_p99_ms": quantile(during, 99),
            "behind_ms": round(max(0.0, last - max(released, sent["ended"])) * 1000),
            "tail_ms": round(tail * 1000),
        }


def cells() -> Iterator[Cell]:
    """Yield all cells."""
    databases: tuple[Database, ...] = ("sqlite", "postgresql")
    for database in databases:
        for seconds in (0.0, 0.01):
            yield Rates(database=database, sink_seconds=seconds)
    for database in databases:
        yield Stall(database=database)


GRID = Grid(
    name="ingest",
    summary="rows into SQLite and PostgreSQL, single against batched; a database that stalls",
    size=20_000,
    cells=cells,
    in_all=False,
)
