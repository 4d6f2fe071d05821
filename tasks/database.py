"""The demo's tables, on any database that SQLAlchemy knows: SQLite, PostgreSQL, MySQL.

One multi-row insert a batch, keyed by the item's id: an item that is delivered again finds its row
there and changes nothing, so "at least once" becomes exactly one row.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.schema import CreateTable

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


@functools.cache
def engine() -> sa.Engine:
    """This process's connections, with the tables made; a forked child gets its own."""
    created = sa.create_engine(Settings().database)
    if created.dialect.name == "sqlite":
        sa.event.listen(created, "connect", _tune_sqlite)
    with created.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
    return created


os.register_at_fork(after_in_child=engine.cache_clear)


def insert_flights(rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows that are not there yet, and note the batch, in one transaction."""
    with engine().begin() as connection:
        inserted = _insert_new(connection, rows)
        now = time.time()
        notes = [{"run": run, "inserted": count, "at": now} for run, count in inserted.items()]
        if notes:
            connection.execute(sa.insert(batches), notes)


def _insert_new(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Insert, and return how many rows of each run were new."""
    match connection.dialect.name:
        case "mysql" | "mariadb":
            return _insert_new_mysql(connection, rows)
        case "postgresql":
            insert = postgresql.insert(flights).on_conflict_do_nothing()
            new = connection.execute(insert.returning(flights.c.run), list(rows))
        case _:
            lite = sqlite.insert(flights).on_conflict_do_nothing()
            new = connection.execute(lite.returning(flights.c.run), list(rows))
    return Counter(new.scalars())


def _insert_new_mysql(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """MySQL returns no rows from an insert; its count is asked for run by run."""
    inserted: Counter[str] = Counter()
    for run in {row["run"] for row in rows}:
        insert = mysql.insert(flights).prefix_with("IGNORE")
        mine = [row for row in rows if row["run"] == run]
        inserted[run] += connection.execute(insert.values(mine)).rowcount
    return +inserted


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
