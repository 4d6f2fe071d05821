"""What a function said of its items is there when its process is not."""

from __future__ import annotations

import multiprocessing
import os
import signal
from functools import partial

import pytest

from batching import Batch, Item
from batching.outcomes import Done, Failed
from batching.pool import notes
from batching.pool.notes import Notes, loads


@pytest.fixture
def made() -> Notes:
    return Notes(pages=2, page_bytes=4_096)


def test_outcomes_are_read_by_the_places_of_their_items(made: Notes) -> None:
    page = made.take()
    assert page is not None
    made.note(page, 7, Done({"rows": 3}))
    made.note(page, 2, Done())
    found = {place: loads(data) for place, data in made.read(page).items()}
    assert found == {7: Done({"rows": 3}), 2: Done()}
    made.release(page)
    assert made.read(made.take()) == {}


def test_what_a_killed_process_has_noted_stays(made: Notes) -> None:
    page = made.take()
    assert page is not None
    pid = os.fork()
    if not pid:
        for place in range(10):
            made.note(page, place, Done(place))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [loads(data) for data in made.read(page).values()] == [Done(n) for n in range(10)]


def test_an_error_is_noted_without_its_traceback(made: Notes) -> None:
    page = made.take()
    assert page is not None
    try:
        raise ValueError("bad row")
    except ValueError as error:
        made.note(page, 0, Failed(error, error.__traceback__))
    found = loads(made.read(page)[0])
    assert (str(found.error), found.traceback) == ("bad row", None)


def test_what_finds_no_room_or_cannot_travel_is_not_noted(made: Notes) -> None:
    page = made.take()
    assert page is not None
    made.note(page, 0, Done("x" * 5_000))
    made.note(page, 1, Done(lambda: None))
    made.note(page, 2, Done("fits"))
    assert made.read(page).keys() == {2}


def test_a_page_that_a_dying_process_may_write_to_is_not_given_to_another_call(
    made: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made.take(), made.take()
    assert made.take() is None
    made.release(first, is_dying=True)
    assert made.take() is None
    made.release(second)
    assert made.take() == second
    monkeypatch.setattr(notes, "DYING_SECONDS", 0.0)
    made.release(second, is_dying=True)
    monkeypatch.setattr(notes.time, "monotonic", lambda: float("inf"))
    assert {made.take(), made.take()} == {first, second}


def test_without_a_page_nothing_is_noted(made: Notes) -> None:
    assert made.read(None) == {}
    made.release(None)


def test_the_place_that_the_function_was_at_is_read_by_another_process(made: Notes) -> None:
    page = made.take()
    assert page is not None
    assert made.at(page) is None

    def work() -> None:
        batch = Batch([_item(place) for place in range(5)], starts=partial(made.start, page))
        for item in batch:
            if item.place == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert made.at(page) == 3
    batch = Batch([_item(place) for place in range(5)], starts=partial(made.start, page))
    assert [item.place for item in batch] == list(range(5))
    assert made.at(page) is None, "it was at its end"


def _item(place: int) -> Item[int]:
    item = Item(f"item {place}", place)
    item.place = place
    return item
