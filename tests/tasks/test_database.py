from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batching import Batch, Item
from batching.outcomes import Done
from batching.sinks.sql import SqlSink
from tasks import database
from tasks.flights import Flight

FLIGHT: dict[str, Any] = {
    "run": "r",
    "carrier": "UA",
    "flight": 1545,
    "origin": "EWR",
    "dest": "IAH",
    "time_hour": "2013-01-01T10:00:00Z",
    "sched_dep_time": 515,
    "dep_time": 517,
    "distance": 1400,
}


@pytest.fixture(autouse=True)
def _own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CELERIAC_DATABASE_URL", f"sqlite:///{tmp_path / 'flights.db'}")
    database.engine.cache_clear()
    yield
    database.engine().dispose()
    database.engine.cache_clear()


@pytest.fixture
def sink() -> Iterator[SqlSink]:
    sink = database.flight_sink()
    yield sink
    sink.close()


def items(*numbers: int | None, run: str = "r") -> list[Item[Flight]]:
    return [Item(f"item-{run}-{n}", Flight(**{**FLIGHT, "run": run, "number": n})) for n in numbers]


def write(sink: SqlSink, *numbers: int | None, run: str = "r") -> None:
    sink.write(Batch(items(*numbers, run=run)))


def test_a_batch_that_is_delivered_again_changes_nothing(sink: SqlSink) -> None:
    write(sink, 0, 1, 2)
    write(sink, 0, 1, 2)
    assert database.landed_numbers("r") == {0, 1, 2}
    assert database.batch_totals("r")[:2] == (1, 3)


def test_a_batch_that_is_new_in_part_adds_and_counts_that_part(sink: SqlSink) -> None:
    write(sink, 0, 1)
    write(sink, 1, 2)
    assert database.batch_totals("r")[:2] == (2, 3)


def test_a_row_that_was_sent_twice_lands_once_and_both_items_are_done(sink: SqlSink) -> None:
    (first,) = items(0)
    again = Item("another item", first.value)
    write(sink, 0)
    sink.write(Batch([again]))
    assert again.outcome == Done()
    assert database.landed_numbers("r") == {0}
    assert database.find_flight("another item") is None


def test_a_new_run_forgets_the_others_but_not_what_somebody_loaded_by_hand(sink: SqlSink) -> None:
    for run in ("old", "new", ""):
        write(sink, 0, run=run)
    database.forget_other_runs("new")
    assert database.landed_numbers("old") == set()
    assert database.landed_numbers("new") == database.landed_numbers("") == {0}


def test_rows_loaded_by_hand_have_no_number_and_all_land(sink: SqlSink) -> None:
    value = Flight(**{**FLIGHT, "run": "", "number": None})
    sink.write(Batch([Item(str(n), value) for n in (1, 2)]))
    assert database.batch_totals("")[:2] == (1, 2)


def test_a_flight_is_found_by_the_item_that_loaded_it(sink: SqlSink) -> None:
    write(sink, 7)
    found = database.find_flight("item-r-7")
    assert found is not None
    assert (found["carrier"], found["flight"]) == ("UA", 1545)


def test_a_forked_child_opens_connections_of_its_own(sink: SqlSink) -> None:
    write(sink, 0)
    child = multiprocessing.get_context("fork").Process(target=_write_in_child, args=(sink,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert database.landed_numbers("r") == {0, 1}


@pytest.mark.parametrize("name", ["postgresql+psycopg", "mysql"])
def test_the_tables_can_be_made_on_other_databases(name: str) -> None:
    dialect = sa.engine.url.make_url(f"{name}://").get_dialect()()
    for table in database.metadata.sorted_tables:
        ddl = str(sa.schema.CreateTable(table, if_not_exists=True).compile(dialect=dialect))
        assert ddl.strip().startswith("CREATE TABLE IF NOT EXISTS")


def _write_in_child(sink: SqlSink) -> None:
    assert database.engine.cache_info().currsize == 0
    write(sink, 1)
