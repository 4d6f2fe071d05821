"""Defining batch tasks, and calling them without a worker."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from celery import Celery, _state, shared_task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from pydantic import BaseModel

from batching import (
    Batch,
    BatchTask,
    InvalidItem,
    InvalidOption,
    OutcomeTwice,
    ResultCountError,
    ResultIdsError,
    ResultTypeError,
)
from routing import DeadLetter


class Flight(BaseModel):
    number: int
    day: date
    carrier: str = "AA"


ROW = {"number": 7, "day": "2013-01-02"}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("t", set_as_current=False, broker="memory://", backend="cache+memory://")
    yield app
    app.close()


def define(app: Celery, function: Any, **options: Any) -> Any:
    function.__name__ = "load"  # Celery makes a function of that name
    return app.task(function, base=BatchTask, lazy=False, shared=False, name="t.load", **options)


def numbers(batch: Batch[Flight]) -> list[int]:
    return [item.value.number for item in batch]


def test_a_direct_call_is_a_batch_of_one(app: Celery) -> None:
    load = define(app, lambda batch: [(len(batch), item.value) for item in batch])
    assert load("row") == (1, "row")


def test_a_value_is_the_only_argument_or_all_of_them(app: Celery) -> None:
    load = define(app, lambda batch: [item.value for item in batch])
    assert load(1) == 1
    assert load(1, 2) == ((1, 2), {})
    assert load(1, x=2) == ((1,), {"x": 2})
    assert load() == ((), {})


def test_a_model_is_built_from_one_argument_or_from_the_keywords(app: Celery) -> None:
    load = define(app, numbers, model=Flight)
    assert load(ROW) == 7
    assert load(**ROW) == 7
    assert load(Flight(**ROW)) == 7


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"day": "2013-01-02"}, "number", "Field required"),
        ({"number": "x", "day": "2013-01-02"}, "number", "got 'x'"),
        ({}, "number", "also field 'day'"),
    ],
)
def test_an_invalid_item_names_its_field(
    app: Celery, row: dict[str, Any], field: str, reason: str
) -> None:
    load = define(app, numbers, model=Flight)
    with pytest.raises(InvalidItem, match=reason) as caught:
        load(row)
    assert caught.value.field == field


def test_the_function_is_not_called_for_an_invalid_item(app: Celery) -> None:
    def fail(batch: Batch[Flight]) -> None:
        raise AssertionError

    result = define(app, fail, model=Flight).apply(({},))
    assert isinstance(result.result, InvalidItem)


def test_an_invalid_item_is_not_retried_whatever_autoretry_says(app: Celery) -> None:
    load = define(app, numbers, model=Flight, autoretry_for=(Exception,), max_retries=3)
    result = load.apply(({},))
    assert result.state == "FAILURE"
    assert isinstance(result.result, InvalidItem)


def test_apply_runs_the_same_engine(app: Celery) -> None:
    load = define(app, numbers, model=Flight)
    assert load.apply((ROW,)).get() == 7
    assert load.apply(kwargs=ROW).get() == 7


def test_eager_mode_runs_the_same_engine(app: Celery) -> None:
    app.conf.task_always_eager = True
    load = define(app, numbers, model=Flight)
    assert load.delay(ROW).get() == 7
    assert load.delay(Flight(**ROW)).get() == 7


def test_the_functions_error_is_the_callers(app: Celery) -> None:
    def fail(batch: Batch[Any]) -> None:
        batch[0].fail(KeyError("gone"))

    load = define(app, fail)
    with pytest.raises(KeyError, match="gone"):
        load(1)
    with pytest.raises(KeyError):
        load.apply((1,), throw=True)
    assert load.apply((1,)).state == "FAILURE"


def test_a_bound_function_gets_the_task(app: Celery) -> None:
    load = define(app, lambda self, batch: [self.name] * len(batch), bind=True)
    assert load(1) == "t.load"


def test_a_class_may_define_the_task(app: Celery) -> None:
    class Load(BatchTask):
        name = "t.class"
        max_size = 7

        def run(self, batch: Batch[int]) -> list[str]:  # type: ignore[override]
            return [f"{self.name} {item.value}" for item in batch]

    load = app.register_task(Load())
    assert load(1) == "t.class 1"


@pytest.fixture
def _shared_tasks_stay_here() -> Iterator[None]:
    """Celery gives a shared task to every app of the process, also to those of other tests."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


@pytest.mark.usefixtures("_shared_tasks_stay_here")
def test_shared_tasks_can_be_batch_tasks(app: Celery) -> None:
    @shared_task(base=BatchTask, name="t.shared", model=Flight)
    def shared(batch: Batch[Flight]) -> list[int]:
        return numbers(batch)

    assert app.tasks["t.shared"](ROW) == 7


def test_autoretry_works_item_by_item(app: Celery) -> None:
    attempts = []

    def flaky(batch: Batch[int]) -> list[int]:
        attempts.append(batch[0].attempt)
        if batch[0].attempt < 3:
            raise ConnectionError
        return [batch[0].attempt]

    load = define(app, flaky, autoretry_for=(ConnectionError,), max_retries=5)
    assert load.apply((1,)).get() == 3
    assert attempts == [1, 2, 3]


def test_an_item_retries_within_its_limit(app: Celery) -> None:
    def again(batch: Batch[int]) -> None:
        batch[0].retry(countdown=0)

    result = define(app, again, max_retries=2).apply((1,))
    assert isinstance(result.result, MaxRetriesExceededError)


def test_an_item_whose_retries_are_spent_fails_with_its_own_error(app: Celery) -> None:
    def again(batch: Batch[int]) -> None:
        batch[0].retry(exc=TimeoutError("slow"))

    assert isinstance(define(app, again, max_retries=0).apply((1,)).result, TimeoutError)


def test_a_dead_item_fails_at_once_whatever_is_retried_automatically(app: Celery) -> None:
    attempts = []

    def hopeless(batch: Batch[int]) -> None:
        attempts.append(batch[0].attempt)
        batch[0].dead("no hope")

    result = define(app, hopeless, autoretry_for=(Exception,), max_retries=5).apply((1,))
    assert isinstance(result.result, DeadLetter)
    assert str(result.result) == "no hope"
    assert attempts == [1]


def test_retrying_the_task_retries_each_item(app: Celery) -> None:
    def again(self: Any, batch: Batch[int]) -> list[int]:
        if batch[0].attempt < 2:
            raise self.retry(countdown=0)
        return [batch[0].attempt]

    assert define(app, again, bind=True).apply((1,)).get() == 2


def test_retrying_without_throwing_retries_each_item(app: Celery) -> None:
    def again(self: Any, batch: Batch[int]) -> None:
        if batch[0].attempt < 2:
            self.retry(throw=False, countdown=0)
        else:
            batch[0].done(batch[0].attempt)

    assert define(app, again, bind=True).apply((1,)).get() == 2


def test_replacing_the_task_replaces_each_item(app: Celery) -> None:
    @app.task(name="t.other", shared=False)
    def other(value: int) -> int:
        return value + 100

    def replace(self: Any, batch: Batch[int]) -> None:
        raise self.replace(other.s(batch[0].value))

    assert define(app, replace, bind=True).apply((1,)).get() == 101


@pytest.mark.parametrize(
    ("error", "state"), [(Ignore(), "IGNORED"), (Reject("no"), "REJECTED"), (Retry(), "RETRY")]
)
def test_celerys_own_exceptions_keep_their_meaning(
    app: Celery, error: Exception, state: str
) -> None:
    def function(batch: Batch[int]) -> None:
        raise error

    load = define(app, function, max_retries=0)
    result = load.apply((1,))
    if state == "RETRY":  # raised by hand it is a retry like any other, and none is left
        assert isinstance(result.result, MaxRetriesExceededError)
        return
    assert result.state == state


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_size": 0}, "max_size must be a whole number of items, at least 1, got 0"),
        ({"max_size": True}, "max_size must be a whole number"),
        ({"max_bytes": 1.5}, "max_bytes must be a whole number of bytes"),
        ({"max_wait": -1}, "max_wait must be a number of seconds, at least 0, got -1"),
        ({"max_wait": float("nan")}, "max_wait must be"),
        ({"key": 3}, "key must be the name of a field"),
        ({"model": dict}, "model must be a pydantic model class"),
        ({"pydantic": True}, "use model="),
    ],
)
def test_wrong_options_are_refused_when_the_task_is_defined(
    app: Celery, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidOption, match=problem) as caught:
        define(app, numbers, **options)
    assert caught.value.task == "t.load"


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ({"max_sise": 5}, "max_size"),
        ({"maxsize": 5}, "max_size"),
        ({"max_waits": 5}, "max_wait"),
        ({"modle": Flight}, "model"),
        ({"flush_every": 10}, "max_size"),
        ({"flush_interval": 10}, "max_wait"),
        ({"retry_backof": True}, "retry_backoff"),
        ({"ignore_results": True}, "ignore_result"),
    ],
)
def test_options_that_are_misspelt_are_refused_with_what_was_meant(
    app: Celery, option: dict[str, Any], meant: str
) -> None:
    (name,) = option
    with pytest.raises(InvalidOption, match=f"{name} is no option, did you mean '{meant}'"):
        define(app, numbers, **option)


def test_a_task_may_have_attributes_and_methods_of_its_own(app: Celery) -> None:
    class Base(BatchTask):
        table = "rows"
        maximum_size = 3

        def max_sizes(self) -> int:
            return 1

        def run(self, batch: Batch[Any]) -> None: ...

    task = app.task(
        numbers, base=Base, table="rows", dialect="sqlite", lazy=False, shared=False, name="t.own"
    )
    assert (task.table, task.dialect, task.maximum_size) == ("rows", "sqlite", 3)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"x": 1})])
def test_a_task_with_a_model_is_sent_with_one_item(
    app: Celery, args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    load = define(app, numbers, model=Flight)
    with pytest.raises(TypeError, match="takes one item"):
        load.apply_async(args, kwargs)


def test_hooks_run_for_the_item(app: Celery) -> None:
    class Hooked(BatchTask):
        abstract = True
        ended: list[Any] = []

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            self.ended.append((retval, task_id, args))

    load = app.task(numbers, base=Hooked, model=Flight, name="t.hooked", lazy=False, shared=False)
    load.apply((ROW,), task_id="id-1")
    assert Hooked.ended == [(7, "id-1", (ROW,))]


@pytest.mark.parametrize(
    "error",
    [
        InvalidItem("day", "Field required"),
        InvalidOption("t", "max_size", "must be more"),
        OutcomeTwice("1", "Done(1)", "Done(2)"),
        ResultCountError(3, 2),
        ResultIdsError(3, ["1"], ["x"]),
        ResultTypeError("str"),
    ],
)
def test_errors_survive_pickle_and_a_result_backend(app: Celery, error: Exception) -> None:
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    stored = app.backend.decode(app.backend.encode(app.backend.prepare_exception(error)))
    assert str(app.backend.exception_to_python(stored)) == str(error)
