"""Batches in a table: good rows land once, a bad one fails its own item, and nothing by halves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from pydantic import BaseModel, RootModel

from batching import Batch, BatchTask, Item
from batching.outcomes import Done, Failed, Outcome
from batching.sinks.sql import SqlSink
from tests.support.postgres import postgres_url


class Reading(BaseModel):
    sensor: str | None = "s1"
    degrees: float = 20.5
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    about: dict[str, Any] = {}


TABLE = sa.Table(
    "readings",
    sa.MetaData(),
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("sensor", sa.String(40), nullable=False),
    sa.Column("degrees", sa.Float, sa.CheckConstraint("degrees > -274"), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("serial", sa.Integer, unique=True),
    sa.Column("about", sa.JSON().with_variant(sa.Text(), "sqlite")),
)


@pytest.fixture
def sink_of() -> Iterator[Callable[..., SqlSink]]:
    made: list[SqlSink] = []

    def make(*args: Any, **options: Any) -> SqlSink:
        made.append(SqlSink("readings", *args, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield made(f"sqlite:///{tmp_path / 'rows.db'}")
        return
    with postgres_url() as found:
        yield made(found)


def made(url: str) -> str:
    engine = sa.create_engine(url)
    TABLE.metadata.create_all(engine)
    engine.dispose()
    return url


def rows(url: str) -> dict[str, Any]:
    """Return the rows by id."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = {row.id: row for row in connection.execute(sa.select(TABLE))}
    engine.dispose()
    return found


def batch_of(*values: Any, prefix: str = "item") -> Batch[Any]:
    return Batch([Item(f"{prefix} {n}", value) for n, value in enumerate(values)])


def outcomes(batch: Batch[Any]) -> list[Outcome | None]:
    return [item.outcome for item in batch]


def test_all_rows_land_under_the_ids_of_their_items(url: str, sink_of: Any) -> None:
    batch = batch_of(*[Reading(degrees=n, about={"n": n}) for n in range(500)])
    sink_of(url).write(batch)
    assert outcomes(batch) == [Done()] * 500
    found = rows(url)
    assert found.keys() == {item.id for item in batch}
    assert [found[item.id].degrees for item in batch] == list(range(500))
    assert "7" in str(found["item 7"].about)


def test_bad_rows_fail_alone_each_with_the_databases_error(url: str, sink_of: Any) -> None:
    values = [Reading(degrees=n) for n in range(100)]
    values[13] = Reading(sensor=None)
    values[77] = Reading(degrees=-300.0)
    batch = batch_of(*values)
    sink_of(url).write(batch)
    failed = {n: one.error for n, one in enumerate(outcomes(batch)) if isinstance(one, Failed)}
    assert failed.keys() == {13, 77}
    assert "null" in str(failed[13]).lower()
    assert "check" in str(failed[77]).lower()
    assert rows(url).keys() == {item.id for item in batch} - {"item 13", "item 77"}


def test_what_was_written_before_is_not_written_twice(url: str, sink_of: Any) -> None:
    sink = sink_of(url)
    sink.write(batch_of(Reading(degrees=1)))
    again = batch_of(Reading(degrees=2), Reading(degrees=3))
    sink.write(again)
    assert outcomes(again) == [Done()] * 2
    assert [rows(url)[f"item {n}"].degrees for n in range(2)] == [1, 3]


def test_the_newest_takes_its_place_where_that_is_wanted(url: str, sink_of: Any) -> None:
    sink = sink_of(url, on_conflict="update")
    sink.write(batch_of(Reading(degrees=1)))
    sink.write(batch_of(Reading(degrees=2)))
    assert rows(url)["item 0"].degrees == 2


def test_a_column_that_is_not_there_is_named_with_those_that_are(url: str, sink_of: Any) -> None:
    batch = batch_of({"sensor": "s", "degrees": 1.0}, {"sensor": "s", "degres": 1.0})
    sink_of(url).write(batch)
    first, second = outcomes(batch)
    assert first == Done()
    assert isinstance(second, Failed)
    assert "no column 'degres'" in str(second.error)
    assert "degrees" in str(second.error)


def test_what_has_an_outcome_is_left_alone_and_what_makes_no_row_fails(
    url: str, sink_of: Any
) -> None:
    batch = batch_of(Reading(), 7, Reading())
    batch[0].done("elsewhere")
    sink_of(url).write(batch)
    first, second, third = outcomes(batch)
    assert (first, third) == (Done("elsewhere"), Done())
    assert isinstance(second, Failed)
    assert "expected a model or a mapping" in str(second.error)
    assert rows(url).keys() == {"item 2"}


def test_nothing_is_done_where_nothing_is_committed(tmp_path: Path, sink_of: Any) -> None:
    url = made(f"sqlite:///{tmp_path / 'rows.db'}")
    holder = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    batch = batch_of(Reading(), Reading())
    sink = sink_of(lambda: sa.create_engine(url, connect_args={"timeout": 0.1}))
    with pytest.raises(sa.exc.OperationalError, match="locked"):
        sink.write(batch)
    assert outcomes(batch) == [None, None]
    holder.execute("ROLLBACK")
    holder.close()
    sink.write(batch)
    assert outcomes(batch) == [Done(), Done()]


def test_a_batch_task_returns_what_the_sink_says(url: str, sink_of: Any) -> None:
    app = Celery(set_as_current=False)
    sink = sink_of(url)

    @app.task(base=BatchTask, model=Reading, shared=False)
    def load(batch: Batch[Reading]) -> None:
        return sink.write(batch)

    found = load.run_many([Reading(), {"degrees": "cold"}, Reading(degrees=-500)])
    assert [type(one) for one in found] == [Done, Failed, Failed]
    assert len(rows(url)) == 1


def test_an_unknown_way_to_meet_conflicts_is_refused(sink_of: Any) -> None:
    with pytest.raises(ValueError, match="'update' or 'skip_any', got 'replace'"):
        sink_of("sqlite://", on_conflict="replace")


def test_a_row_that_meets_another_unique_key_is_refused_or_left_out(url: str, sink_of: Any) -> None:
    row = {"sensor": "s", "degrees": 1.0}
    sink_of(url).write(batch_of(row | {"serial": 1}))
    again = [row | {"serial": 1}, row | {"serial": 2}]
    strict, lenient = batch_of(*again, prefix="strict"), batch_of(*again, prefix="lenient")
    sink_of(url).write(strict)
    assert [type(one) for one in outcomes(strict)] == [Failed, Done]
    sink_of(url, on_conflict="skip_any").write(lenient)
    assert outcomes(lenient) == [Done(), Done()]
    assert rows(url).keys() == {"item 0", "strict 1"}


def test_what_is_done_within_the_transaction_knows_how_many_rows_are_new(
    url: str, sink_of: Any
) -> None:
    counts: list[tuple[int, int]] = []

    def note(connection: sa.Connection, batch: Batch[Any], count: int) -> None:
        counts.append((len(batch), count))
        if len(batch) == 1:
            raise RuntimeError("not this one")

    sink = sink_of(url, within=note)
    sink.write(batch_of(Reading(), Reading()))
    sink.write(batch_of(Reading(), Reading(), Reading(sensor=None), Reading()))
    assert counts == [(2, 2), (4, 1)]
    with pytest.raises(RuntimeError, match="not this one"):
        sink.write(batch_of(Reading(), prefix="alone"))
    assert rows(url).keys() == {"item 0", "item 1", "item 3"}


def test_objects_and_lists_go_into_columns_of_json(url: str, sink_of: Any) -> None:
    about = [{"about": [1, {"a": 2}]}, {"about": {"at": datetime(2026, 1, 2, tzinfo=UTC)}}]
    batch = batch_of(*[{"sensor": "s", "degrees": 1.0, **one} for one in about])
    sink_of(url).write(batch)
    assert outcomes(batch) == [Done(), Done()]
    found = [str(rows(url)[f"item {n}"].about).replace('"', "'") for n in range(2)]
    assert found[0].replace(" ", "") == "[1,{'a':2}]"
    assert "2026-01-02" in found[1]


def test_a_batch_is_one_statement(tmp_path: Path, sink_of: Any) -> None:
    engine = sa.create_engine(made(f"sqlite:///{tmp_path / 'rows.db'}"))
    inserts = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT"):
            inserts.append(statement.count("(?,"))

    sink_of(lambda: engine).write(batch_of(*[Reading(degrees=n) for n in range(500)]))
    assert inserts == [500]


def test_only_the_fields_of_a_model_are_columns(url: str, sink_of: Any) -> None:
    class Cached(BaseModel, extra="allow"):
        sensor: str = "s1"
        degrees: float = 1.0

        @cached_property
        def kelvin(self) -> float:
            return self.degrees + 273.15

    batch = batch_of(Cached(), Cached(serial=7))  # type: ignore[call-arg]
    assert batch[0].value.kelvin == 274.15
    sink_of(url).write(batch)
    assert outcomes(batch) == [Done(), Done()]
    assert [rows(url)[f"item {n}"].serial for n in range(2)] == [None, 7]


def test_a_model_may_say_what_it_consists_of(url: str, sink_of: Any) -> None:
    class Wrapped(RootModel[dict[str, Any]]):
        def __iter__(self) -> Any:
            return iter(self.root.items())

    batch = batch_of(Wrapped({"sensor": "s1", "degrees": 3.0}))
    sink_of(url).write(batch)
    assert outcomes(batch) == [Done()]
    assert rows(url)["item 0"].degrees == 3.0


def test_of_several_rows_of_one_key_the_last_takes_its_place(url: str, sink_of: Any) -> None:
    batch = batch_of(*[{"id": f"k{n % 2}", "sensor": "s", "degrees": float(n)} for n in range(6)])
    sink_of(url, on_conflict="update").write(batch)
    assert outcomes(batch) == [Done()] * 6
    assert {key: row.degrees for key, row in rows(url).items()} == {"k0": 4.0, "k1": 5.0}


def test_a_sink_that_cannot_work_blames_no_item(url: str, sink_of: Any) -> None:
    batch = batch_of(Reading())
    with pytest.raises(ValueError, match="has no column 'idd'; it has id, sensor"):
        sink_of(url, id_column="idd").write(batch)
    assert outcomes(batch) == [None]
    (outcome,) = _written(sink_of(url, row=str), batch)
    assert isinstance(outcome, Failed)
    assert "row must return a mapping of columns, got str" in str(outcome.error)


def _written(sink: SqlSink, batch: Batch[Any]) -> list[Outcome | None]:
    sink.write(batch)
    return outcomes(batch)
