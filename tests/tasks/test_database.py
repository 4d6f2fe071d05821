from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks import database

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


def rows(*numbers: int, run: str = "r") -> list[dict[str, Any]]:
    return [{**FLIGHT, "id": f"item-{run}-{n}", "run": run, "number": n} for n in numbers]


def test_a_batch_that_is_delivered_again_changes_nothing() -> None:
    database.insert_flights(rows(0, 1, 2))
    database.insert_flights(rows(0, 1, 2))
    assert database.landed_numbers("r") == {0, 1, 2}
    assert database.batch_totals("r")[:2] == (1, 3)


def test_a_batch_that_is_new_in_part_adds_and_counts_that_part() -> None:
    database.insert_flights(rows(0, 1))
    database.insert_flights(rows(1, 2))
    assert database.batch_totals("r")[:2] == (2, 3)


def test_a_row_that_was_sent_twice_lands_once() -> None:
    again = {**rows(0)[0], "id": "another item"}
    database.insert_flights(rows(0))
    database.insert_flights([again])
    assert database.landed_numbers("r") == {0}
    assert database.find_flight("another item") is None


def test_rows_of_several_runs_in_one_batch_are_counted_apart() -> None:
    database.insert_flights([*rows(0, 1, run="old"), *rows(0, run="new")])
    assert database.batch_totals("old")[:2] == (1, 2)
    assert database.batch_totals("new")[:2] == (1, 1)


def test_a_new_run_forgets_the_others_but_not_what_somebody_loaded_by_hand() -> None:
    database.insert_flights([*rows(0, run="old"), *rows(0, run="new"), *rows(0, run="")])
    database.forget_other_runs("new")
    assert database.landed_numbers("old") == set()
    assert database.landed_numbers("new") == database.landed_numbers("") == {0}


def test_rows_loaded_by_hand_have_no_number_and_all_land() -> None:
    database.insert_flights([{**FLIGHT, "id": str(n), "run": "", "number": None} for n in (1, 2)])
    assert database.batch_totals("")[:2] == (1, 2)


def test_a_flight_is_found_by_the_item_that_loaded_it() -> None:
    database.insert_flights(rows(7))
    found = database.find_flight("item-r-7")
    assert found is not None
    assert (found["carrier"], found["flight"]) == ("UA", 1545)


def test_a_forked_child_opens_connections_of_its_own() -> None:
    database.insert_flights(rows(0))
    child = multiprocessing.get_context("fork").Process(target=_insert_in_child)
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


def _insert_in_child() -> None:
    assert database.engine.cache_info().currsize == 0
    database.insert_flights(rows(1))
