"""Writes the items of a batch as rows of one table, in one transaction.

    sink = SqlSink("flights", "postgresql+psycopg://localhost/db")

    @app.task(base=BatchTask, model=Flight, max_size=500)
    def load(batch):
        return sink.write(batch)

An item is done when its row is committed, not before. A row that the table refuses fails its own
item, with the database's error; the others land. A database that is away fails the call, which
names no item, so all are tried again later, uncharged. The key of a row is its item's id: one that
was written and not acknowledged is not written twice.

It needs SQLAlchemy, and psycopg for PostgreSQL: `pip install celeriac[sql]`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy.dialects import mysql, postgresql, sqlite

from batching.batch import Batch, Item

Row = Mapping[str, Any]

#: A row, and its place among those that are written.
_Placed = tuple[int, Row]


class SqlSink:
    """A table that batches are written to.

    Arguments:
        table: its name; with a schema, `schema.table`.
        url: of the database, as SQLAlchemy has it, or a function that returns an engine.
        id_column: the column that gets the item's id, and has to be unique; None for none, if the
            rows have a key of their own.
        row: makes a row of an item's value: a mapping of columns. The fields of a model, or a
            mapping as it is, by default.
        on_conflict: whether a row whose id is there already leaves that as it is (``"skip"``) or
            takes its place (``"update"``); with ``"skip_any"``, and where there is no `id_column`,
            one that meets any unique key of the table is left out, and its item done.
        within: called in the transaction when the rows are there, with its connection, the batch
            and how many rows are new (MySQL counts those that were there before as well). What it
            raises is the batch's error.
    """

    def __init__(
        self,
        table: str,
        url: str | Callable[[], sa.Engine],
        *,
        id_column: str | None = "id",
        row: Callable[[Any], Row] | None = None,
        on_conflict: Literal["skip", "update", "skip_any"] = "skip",
        within: Callable[[sa.Connection, Batch[Any], int], None] | None = None,
    ) -> None:
        if on_conflict not in ("skip", "update", "skip_any"):
            raise ValueError(
                f"on_conflict must be 'skip', 'update' or 'skip_any', got {on_conflict!r}"
            )
        self._schema, _, self._name = table.rpartition(".")
        self._url = url
        self._id_column = id_column
        self._row = row if row is not None else _fields_of
        self._updates = on_conflict == "update" and id_column is not None
        #: The unique key that tells which rows are there already; None for any.
        self._conflict_key = None if on_conflict == "skip_any" else id_column
        self._within = within
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._table: sa.Table | None = None
        self._pid = 0

    def write(self, batch: Batch[Any]) -> None:
        """Write a batch, and give each item its outcome.

        Raises:
            sqlalchemy.exc.DBAPIError: the database is away, or refuses more than single rows.
        """
        items: list[Item[Any]] = []
        rows: list[_Placed] = []
        for item in batch:
            if item.outcome is None and (row := self._row_of(item)) is not None:
                rows.append((len(items), row))
                items.append(item)
        engine = self._connected()
        refused: dict[int, Exception] = {}
        if rows:
            with engine.begin() as connection:
                table = self._reflected(connection)
                count, refused = self._insert(connection, table, rows)
                if self._within is not None:
                    self._within(connection, batch, count)
        for place, item in enumerate(items):
            if (error := refused.get(place)) is not None:
                item.fail(error)
            else:
                item.done()

    def close(self) -> None:
        """Close the connections of this process; the next write opens new ones."""
        with self._lock:
            if self._engine is not None and self._pid == os.getpid():
                self._engine.dispose()

    def _row_of(self, item: Item[Any]) -> Row | None:
        try:
            made = self._row(item.value)
            if not isinstance(made, Mapping):
                raise TypeError(f"row must return a mapping of columns, got {type(made).__name__}")
            return {**made} if self._id_column is None else {self._id_column: item.id, **made}
        except Exception as error:
            item.fail(error)
            return None

    def _connected(self) -> sa.Engine:
        """Return the engine of this process: connections do not survive a fork."""
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)
                made = self._url() if callable(self._url) else sa.create_engine(self._url)
                if made.dialect.name == "sqlite":
                    sa.event.listen(made, "connect", _leave_transactions_to_us)
                    sa.event.listen(made, "begin", _begin)
                self._engine, self._pid, self._table = made, os.getpid(), None
            return self._engine

    def _reflected(self, connection: sa.Connection) -> sa.Table:
        if self._table is None:
            schema = self._schema or None
            table = sa.Table(self._name, sa.MetaData(), schema=schema, autoload_with=connection)
            if self._id_column is not None and self._id_column not in table.columns:
                known = ", ".join(table.columns.keys())
                raise ValueError(
                    f"id_column: table {table.fullname!r} has no column {self._id_column!r}; "
                    f"it has {known}"
                )
            self._table = table
        return self._table

    def _insert(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[_Placed]
    ) -> tuple[int, dict[int, Exception]]:
        """Insert rows; returns how many are new, and why some were refused, by their places."""
        try:
            with connection.begin_nested():
                return self._put(connection, table, [row for _, row in rows]), {}
        except Exception as error:
            if not _is_of_rows(connection, error):
                raise
            if len(rows) == 1:
                return 0, {rows[0][0]: error}
            half = len(rows) // 2
            count, refused = self._insert(connection, table, rows[:half])
            others, refused_too = self._insert(connection, table, rows[half:])
            return count + others, refused | refused_too

    def _put(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> int:
        columns = list(dict.fromkeys(chain.from_iterable(rows)))
        if unknown := [name for name in columns if name not in table.columns]:
            known = ", ".join(table.columns.keys())
            raise LookupError(
                f"table {table.fullname!r} has no column {unknown[0]!r}; it has {known}"
            )
        if self._updates:  # of rows of one key the last counts, in one statement as well
            rows = list({row[str(self._id_column)]: row for row in rows}.values())
        kinds = {name: table.columns[name].type for name in columns}
        rows = [_complete(row, kinds) for row in rows]
        dialect = connection.dialect
        if dialect.name == "postgresql" and dialect.driver == "psycopg":
            return self._copy(connection, table, columns, rows)
        statement = self._statement(dialect.name, table, columns)
        if dialect.name in ("mysql", "mariadb"):  # their drivers make one insert of many
            return connection.execute(statement, rows).rowcount
        # Those of other databases send them one by one, unless something is asked back.
        new = connection.execute(statement.returning(table.columns[columns[0]]), rows)
        return len(new.all())

    def _statement(self, dialect: str, table: sa.Table, columns: Sequence[str]) -> Any:
        keys = [self._conflict_key] if self._conflict_key else None
        others = [name for name in columns if name != self._id_column]
        if dialect in ("mysql", "mariadb"):
            statement = mysql.insert(table)
            same = {columns[0]: table.columns[columns[0]]}
            new = {name: statement.inserted[name] for name in others}
            return statement.on_duplicate_key_update(new if self._updates else same)
        lite: Any = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
        if not self._updates:
            return lite.on_conflict_do_nothing(index_elements=keys)
        new = {name: lite.excluded[name] for name in others}
        return lite.on_conflict_do_update(index_elements=keys, set_=new)

    def _copy(
        self,
        connection: sa.Connection,
        table: sa.Table,
        columns: Sequence[str],
        rows: Sequence[Row],
    ) -> int:
        """Copy rows into a temporary table, and insert from there: COPY knows no conflicts."""
        quote = connection.dialect.identifier_preparer.quote
        target = connection.dialect.identifier_preparer.format_table(table)
        staged = quote(f"celeriac_{table.name}")
        names = ", ".join(map(quote, columns))
        make = f"CREATE TEMP TABLE {staged} ON COMMIT DROP AS SELECT {names} FROM {target}"
        conflict = "DO NOTHING"
        if self._updates:
            new = ", ".join(f"{quote(n)} = EXCLUDED.{quote(n)}" for n in columns)
            conflict = f"DO UPDATE SET {new}"
        keys = f"({quote(self._conflict_key)}) " if self._conflict_key else ""
        cursor: Any = connection.connection.cursor()
        try:
            cursor.execute(f"{make} WITH NO DATA")
            with cursor.copy(f"COPY {staged} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([row[name] for name in columns])
            source = f"SELECT {names} FROM {staged}"
            cursor.execute(f"INSERT INTO {target} ({names}) {source} ON CONFLICT {keys}{conflict}")
            count: int = cursor.rowcount
            cursor.execute(f"DROP TABLE {staged}")
            return count
        finally:
            cursor.close()


def _fields_of(value: Any) -> Row:
    """Return the fields of a model, or a mapping as it is."""
    if isinstance(value, BaseModel):
        if type(value).__iter__ is not BaseModel.__iter__:
            return dict(value)  # it says itself what it consists of
        fields, values = type(value).model_fields, vars(value)
        if values.keys() != fields.keys():  # cached properties lie beside the fields
            values = {name: values[name] for name in fields if name in values}
        return {**values, **extra} if (extra := value.model_extra) else values
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"expected a model or a mapping of columns, got {type(value).__name__}")


def _complete(row: Row, kinds: Mapping[str, sa.types.TypeEngine[Any]]) -> Row:
    """Return a row that has every column, as a driver takes it."""
    if len(row) == len(kinds) and _SCALARS.issuperset(map(type, row.values())):
        return row
    return {name: _plain(row.get(name), kind) for name, kind in kinds.items()}


def _plain(value: Any, kind: sa.types.TypeEngine[Any]) -> Any:
    """Return what a driver takes in the place of a model, an object or a list.

    Arguments:
        value: of a row.
        kind: of its column: a list goes into an array as it is, elsewhere as JSON.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, BaseModel | Mapping):
        return to_json(value).decode()
    if isinstance(value, list | tuple) and not isinstance(kind, sa.ARRAY):
        return to_json(value).decode()
    return value


#: What every driver takes as it is.
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def _is_of_rows(connection: sa.Connection, error: Exception) -> bool:
    """Return whether an error is about what the rows hold, and not about the database."""
    driver: Any = connection.dialect.dbapi
    about_rows = (sa.exc.IntegrityError, sa.exc.DataError, driver.IntegrityError, driver.DataError)
    is_unbound = isinstance(error, sa.exc.StatementError) and not isinstance(
        error, sa.exc.DBAPIError
    )
    return isinstance(error, (*about_rows, LookupError)) or is_unbound


def _leave_transactions_to_us(connection: Any, record: object) -> None:
    """Let Python's driver of SQLite begin nothing by itself, which breaks savepoints."""
    connection.isolation_level = None


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
