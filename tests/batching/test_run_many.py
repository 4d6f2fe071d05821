"""`run_many`: a batch for tests of one's own, without a worker or a broker."""

from __future__ import annotations

from typing import Any

from celery import Celery
from pydantic import BaseModel

from batching import Batch, BatchTask, InvalidItem
from batching.outcomes import Dead, Done, Failed, Outcome, Retried


class Row(BaseModel):
    number: int
    word: str = ""


def task_of(function: Any, **options: Any) -> Any:
    app = Celery(set_as_current=False, broker="redis://127.0.0.1:1")
    return app.task(function, base=BatchTask, lazy=False, shared=False, **options)


def test_each_value_has_the_outcome_that_the_function_gave_it() -> None:
    def load(batch: Batch[Row]) -> None:
        for item in batch:
            match item.value.word:
                case "fail":
                    item.fail(ValueError("no"))
                case "retry":
                    item.retry(countdown=3)
                case "dead":
                    item.dead("never")
                case "done":
                    item.done(item.value.number)

    words = ["fail", "retry", "dead", "done", ""]
    rows = [Row(number=n, word=word) for n, word in enumerate(words)]
    failed, *others = task_of(load, model=Row).run_many(rows)
    assert isinstance(failed, Failed)
    assert str(failed.error) == "no"
    assert others == [Retried(3), Dead("never"), Done(3), Done()]


def test_a_call_that_raises_fails_all_that_have_no_outcome() -> None:
    def load(batch: Batch[Row]) -> None:
        batch[0].done("kept")
        raise ConnectionError("away")

    found: list[Outcome] = task_of(load, model=Row).run_many([{"number": 1}, {"number": 2}])
    assert found[0] == Done("kept")
    assert isinstance(found[1], Failed)
    assert str(found[1].error) == "away"


def test_what_does_not_fit_the_model_fails_alone() -> None:
    def load(batch: Batch[Row]) -> list[int]:
        return [item.value.number for item in batch]

    first, second, third = task_of(load, model=Row).run_many([{"number": 1}, {}, Row(number=3)])
    assert (first, third) == (Done(1), Done(3))
    assert isinstance(second, Failed)
    assert isinstance(second.error, InvalidItem)


def test_nothing_is_called_without_values() -> None:
    def load(batch: Batch[Any]) -> None:
        raise AssertionError

    assert task_of(load).run_many([]) == []


def test_what_the_function_is_told_of_its_call() -> None:
    seen: list[Any] = []

    def load(batch: Batch[Row]) -> None:
        seen.append((batch.queue, batch.reason, batch.deadline, batch.key))
        seen.extend((item.age, item.priority, item.redelivered, item.stamps) for item in batch)

    task_of(load, model=Row, key="word").run_many([{"number": 1, "word": "x"}])
    assert seen == [("", "direct", None, "x"), (None, None, False, {})]
