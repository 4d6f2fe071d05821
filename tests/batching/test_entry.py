"""What surrounds the call of a batch function, as it surrounds that of a plain task."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Timer
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry, SoftTimeLimitExceeded

from batching import Batch, BatchTask, Item, batch_postrun, batch_prerun
from batching.outcomes import Done, Failed, Retried
from batching.pool.call import call_function
from tests.batching.test_run import app, parcel, run, soft_limit

__all__ = ["app", "soft_limit"]

# What Celery's own backend calls when a test stores a state by itself.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

notes: list[Any] = []


@pytest.fixture(autouse=True)
def _forget_notes() -> None:
    notes.clear()


class Surrounded(BatchTask):
    """Flask's pattern: a context around the call."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        notes.append("in")
        try:
            return super().__call__(*args, **kwargs)
        finally:
            notes.append("out")


def define(app: Celery, function: Any, base: type[BatchTask] = BatchTask, **options: Any) -> Any:
    return app.task(function, base=base, name="t.t", lazy=False, shared=False, **options)


def outcomes(task: Any, count: int = 3) -> list[Any]:
    items = [Item(str(number), number) for number in range(count)]
    call_function(task, items)
    return [item.outcome for item in items]


def test_a_call_of_the_class_surrounds_the_function_once_and_no_item(app: Celery) -> None:
    def load(self: Any, batch: Batch[int]) -> list[int]:
        notes.append(self.request.hostname)
        return [item.value * 2 for item in batch]

    define(app, load, Surrounded, bind=True)
    answer = run(parcel("a", 1), parcel("b", 2), parcel("c", 3))
    assert [ended[1] for ended in answer] == ["2", "4", "6"]
    assert notes == ["in", "host", "out"]


def test_it_surrounds_a_direct_call_and_an_eager_one_once(app: Celery) -> None:
    def load(batch: Batch[int]) -> None:
        notes.append("call")

    task = define(app, load, Surrounded)
    task(1)
    task.apply((1,))
    assert notes == 2 * ["in", "call", "out"]


def test_what_it_makes_of_an_error_is_the_items_error(app: Celery) -> None:
    class Translates(BatchTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except KeyError as error:
                raise LookupError("translated") from error

    def load(batch: Batch[int]) -> None:
        raise KeyError("x")

    define(app, load, Translates)
    run(parcel("a", 1))
    assert type(app.AsyncResult("a").result) is LookupError


def test_autoretry_of_the_call_is_the_items_own(app: Celery) -> None:
    def load(batch: Batch[int]) -> None:
        raise error

    error = ConnectionError("down")
    task = define(app, load, autoretry_for=(ConnectionError,), retry_backoff=5)
    assert outcomes(task, 2) == [Failed(error), Failed(error)]


def test_a_subclass_may_call_the_function_of_its_parent(app: Celery) -> None:
    class Parent(BatchTask):
        def run(self, batch: Batch[int]) -> list[int]:  # type: ignore[override]
            return [item.value for item in batch]

    class Child(Parent):
        name = "t.child"

        def run(self, batch: Batch[int]) -> list[int]:  # type: ignore[override]
            return [value + 1 for value in super().run(batch)]

    task = app.register_task(Child())
    assert outcomes(task) == [Done(1), Done(2), Done(3)]
    assert task(5) == 6


def test_a_mixin_may_have_the_function(app: Celery) -> None:
    class Loads:
        def run(self, batch: Batch[int]) -> list[int]:
            return [item.value for item in batch]

    class Load(Loads, BatchTask):  # type: ignore[misc]
        name = "t.mixed"

    task = app.register_task(Load())
    assert outcomes(task) == [Done(0), Done(1), Done(2)]
    assert task(5) == 5


def test_a_static_function_may_be_one(app: Celery) -> None:
    class Load(BatchTask):
        name = "t.static"

        @staticmethod
        def run(batch: Batch[int]) -> list[int]:  # type: ignore[override]
            return [item.value for item in batch]

    assert app.register_task(Load())(7) == 7


@pytest.mark.parametrize("after", [timedelta(seconds=90), None])
def test_a_retry_that_is_raised_by_hand_keeps_its_time(
    app: Celery, after: timedelta | None
) -> None:
    due = datetime.now(UTC) + after if after else 30

    def load(batch: Batch[int]) -> None:
        raise Retry(when=due)

    expected = Retried(None, None, {"eta": due}) if after else Retried(30.0)
    assert outcomes(define(app, load), 2) == [expected, expected]


def test_a_state_is_stored_of_every_item_that_has_no_outcome(app: Celery) -> None:
    def load(self: Any, batch: Batch[int]) -> None:
        batch[0].done()
        self.update_state(state="HALF", meta={"done": 1})
        notes.extend((item.id, app.AsyncResult(item.id).state) for item in batch)
        self.update_state(task_id="other", state="SEEN")

    define(app, load, bind=True)
    run(parcel("a", 1), parcel("b", 2))
    assert notes == [("a", "PENDING"), ("b", "HALF")]
    assert app.AsyncResult("other").state == "SEEN"


def test_an_async_function_runs_in_a_loop_that_stays(app: Celery) -> None:
    async def load(batch: Batch[int]) -> list[int]:
        await asyncio.sleep(0)
        notes.append(asyncio.get_running_loop())
        return [item.value for item in batch]

    task = define(app, load)
    assert outcomes(task) == [Done(0), Done(1), Done(2)]
    assert task(4) == 4
    assert notes[0] is notes[1]
    assert not notes[0].is_closed()


@pytest.mark.parametrize("where", ["function", "callback", "select"])
def test_a_soft_limit_ends_an_async_function_wherever_it_strikes(
    app: Celery, soft_limit: None, where: str
) -> None:
    async def load(batch: Batch[int]) -> None:
        try:
            if where == "function":
                strike()
            elif where == "callback":
                asyncio.get_running_loop().call_soon(strike)
            else:
                Timer(0.05, strike).start()
            await asyncio.sleep(5)
        finally:
            notes.append("ended")

    def strike() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    (outcome, _, _) = outcomes(define(app, load))
    assert isinstance(outcome.error, SoftTimeLimitExceeded)
    assert notes == ["ended"]
    assert outcomes(define(app, load))[0].error is not outcome.error


def test_an_async_function_says_that_it_needs_a_loop_of_its_own(app: Celery) -> None:
    async def load(batch: Batch[int]) -> None: ...

    task = define(app, load)

    async def call() -> None:
        with pytest.raises(RuntimeError, match="call it in a thread"):
            task(1)
        assert await asyncio.to_thread(task, 1) is None

    asyncio.run(call())


@contextmanager
def heard(signal: Any) -> Iterator[list[tuple[Any, list[Any]]]]:
    found: list[tuple[Any, list[Any]]] = []

    def note(sender: Any, batch: Batch[int], **_: Any) -> None:
        found.append((sender.name, [item.outcome for item in batch]))

    signal.connect(note)
    yield found
    signal.disconnect(note)


def test_signals_are_sent_before_and_after_the_call(app: Celery) -> None:
    def load(batch: Batch[int]) -> None:
        notes.append("call")

    define(app, load)
    with heard(batch_prerun) as before, heard(batch_postrun) as after:
        run(parcel("a", 1), parcel("b", 2))
    assert before == [("t.t", [None, None])]
    assert after == [("t.t", [Done(None), Done(None)])]
