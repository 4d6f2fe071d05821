"""The demo's tables, on any database that SQLAlchemy knows: SQLite, PostgreSQL, MySQL.

Rows are keyed by their item's id: an item that is delivered again finds its row there and changes
nothing, so "at least once" becomes exactly one row.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.schema import CreateTable

from batching import Batch
from batching.sinks.sql import SqlSink
from tasks.settings import Settings

#: SQLite lets one writer in at a time; the others wait this long for their turn.
SQLITE_BUSY_MS = 30_000

metadata = sa.MetaData()

flights = sa.Table(
    "flights",
    metadata,
    sa.Column("id", sa.String(155), primary_key=True, comment="the item's id, as Celery names it"),
    sa.Column("run", sa.String(32), nullable=False, comment="the load that it belongs to"),
    sa.Column("number", sa.Integer, comment="its place in that load"),
    sa.Column("carrier", sa.String(2), nullable=False),
    sa.Column("flight", sa.Integer, nullable=False),
    sa.Column("tailnum", sa.String(6)),
    sa.Column("origin", sa.String(3), nullable=False),
    sa.Column("dest", sa.String(3), nullable=False),
    sa.Column("time_hour", sa.String(20), nullable=False, comment="scheduled hour, UTC, ISO 8601"),
    sa.Column("sched_dep_time", sa.Integer, nullable=False, comment="local, hhmm"),
    sa.Column("dep_time", sa.Integer, nullable=False, comment="local, hhmm"),
    sa.Column("dep_delay", sa.Integer, comment="minutes"),
    sa.Column("arr_time", sa.Integer, comment="local, hhmm"),
    sa.Column("arr_delay", sa.Integer, comment="minutes"),
    sa.Column("air_time", sa.Integer, comment="minutes"),
    sa.Column("distance", sa.Integer, nullable=False, comment="miles"),
    # A sender whose broker went away in the middle of an answer may send a row twice, as two items.
    sa.UniqueConstraint("run", "number"),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(32), nullable=False, index=True),
    sa.Column("inserted", sa.Integer, nullable=False, comment="rows that this call added"),
    sa.Column("at", sa.Float, nullable=False, comment="end of the insert, seconds since the epoch"),
)


def connect() -> sa.Engine:
    """Return connections of their own to the database, with the tables made."""
    created = sa.create_engine(Settings().database)
    if created.dialect.name == "sqlite":
        sa.event.listen(created, "connect", _tune_sqlite)
    with created.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
    return created


@functools.cache
def engine() -> sa.Engine:
    """This process's connections, but for the sink's; a forked child gets its own."""
    return connect()


os.register_at_fork(after_in_child=engine.cache_clear)


def flight_sink() -> SqlSink:
    """What writes batches of flights of one run: rows that are not there yet, and a note of it."""
    # A sender whose broker went away in the middle of an answer may send a row twice, as two items.
    return SqlSink("flights", connect, on_conflict="skip_any", within=_note)


def _note(connection: sa.Connection, batch: Batch[Any], inserted: int) -> None:
    if inserted:
        note = {"run": batch[0].value.run, "inserted": inserted, "at": time.time()}
        connection.execute(sa.insert(batches), note)


def find_flight(item_id: str) -> sa.RowMapping | None:
    """The row of one item, or None while it has not landed."""
    with engine().connect() as connection:
        found = connection.execute(sa.select(flights).where(flights.c.id == item_id))
        return found.mappings().first()


def landed_numbers(run: str) -> set[int]:
    """Which rows of a run are there."""
    with engine().connect() as connection:
        return set(connection.scalars(sa.select(flights.c.number).where(flights.c.run == run)))


def batch_totals(run: str) -> tuple[int, int, float]:
    """A run's number of batches, rows that they added, and the time of the last one."""
    totals = sa.select(sa.func.count(), sa.func.sum(batches.c.inserted), sa.func.max(batches.c.at))
    with engine().connect() as connection:
        count, inserted, last = connection.execute(totals.where(batches.c.run == run)).one()
    return count, inserted or 0, last or 0.0


def forget_other_runs(run: str) -> None:
    """Delete what other runs have loaded; rows without a run are somebody's own."""
    with engine().begin() as connection:
        for table in (flights, batches):
            connection.execute(sa.delete(table).where(table.c.run.not_in(["", run])))


def _tune_sqlite(connection: DBAPIConnection, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    cursor.execute("PRAGMA synchronous = NORMAL")  # safe against crashes of a process
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    cursor.execute("PRAGMA wal_autocheckpoint = 10000")  # 40 MB: a page is written back once
    cursor.execute("PRAGMA cache_size = -65536")  # 64 MB: the ids are random, the index is not cold
    cursor.close()
