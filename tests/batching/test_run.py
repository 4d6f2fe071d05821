"""What the pool process answers for a batch."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu.serialization import dumps, register
from pydantic import BaseModel, field_validator

from batching import Batch, BatchTask, InvalidItem, NotSettled
from batching.message import Parcel
from batching.pool.run import run_parcels
from tests.support.servers import Server

# What Celery's own backend calls when a test stores a result by itself.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


class Picky(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def never(cls, number: int) -> int:
        if number == 1:
            raise KeyError("a bug of the validator")
        return number


class Hanging(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def strike(cls, number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return number


@pytest.fixture
def soft_limit() -> Iterator[None]:
    """A process in which the signal of the soft limit raises, as billiard has it."""

    def strike(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, strike)
    yield
    assert signal.getsignal(signal.SIGUSR1) is strike
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def app(valkey: Server) -> Iterator[Celery]:
    app = Celery("t", broker="memory://", backend=valkey.fresh_url())
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
    app.set_default()
    stored = app.backend
    yield app
    stored.result_consumer.stop()
    stored.client.connection_pool.disconnect()
    app.close()


def define(app: Celery, function: Any, **options: Any) -> Any:
    function.__name__ = "function"
    return app.task(function, base=BatchTask, name="t.t", lazy=False, shared=False, **options)


def parcel(
    task_id: str,
    *args: Any,
    content_type: str | None = None,
    keyless: str | None = None,
    **headers: Any,
) -> Parcel:
    json, encoding, body = dumps([args, {}, {}], "json")
    own = {"id": task_id, "task": "t.t"} | headers
    return own, body.encode(), content_type or json, encoding, keyless, None, None


def run(*parcels: Parcel) -> Any:
    return run_parcels("t.t", parcels, "host", False)


def failures(answer: Any) -> list[int]:
    return [ended[0] for ended in answer]


def test_it_answers_for_every_item_in_order(app: Celery) -> None:
    define(app, lambda batch: [item.value for item in batch])
    answer = run(parcel("a", 1), parcel("b", 2))
    assert [ended[1] for ended in answer] == ["1", "2"]
    assert [app.AsyncResult(name).result for name in "ab"] == [1, 2]


def test_run_time_is_each_items_share(app: Celery) -> None:
    define(app, lambda batch: None)
    first, second = run(parcel("a", 1), parcel("b", 2))
    assert first[2] == second[2] > 0


def test_the_answer_says_for_how_long_all_of_it_ran_also_through_a_pipe(app: Celery) -> None:
    define(app, lambda batch: None)
    answer = pickle.loads(pickle.dumps(run(parcel("a", 1), parcel("b", 2))))
    assert answer.ran_seconds > sum(ended[2] for ended in answer) > 0


def test_when_results_cannot_be_stored_nothing_is_settled(app: Celery) -> None:
    define(app, lambda batch: None)
    app.conf.result_backend = "redis://127.0.0.1:1"
    app._local.__dict__.pop("backend", None)
    answer = run(parcel("a", 1))
    assert isinstance(answer, NotSettled)
    assert "ConnectionError" in str(answer)


def test_without_results_nothing_is_asked_of_the_backend(app: Celery) -> None:
    define(app, lambda batch: None, ignore_result=True)
    app.conf.result_backend = "redis://127.0.0.1:1"
    app._local.__dict__.pop("backend", None)
    assert failures(run(parcel("a", 1))) == [0]


def test_a_stored_success_is_final(app: Celery) -> None:
    define(app, lambda batch: [item.attempt for item in batch])
    app.backend.store_result("a", "first", "SUCCESS")
    assert failures(run(parcel("a", 1))) == [0]
    assert app.AsyncResult("a").result == "first"


def test_what_succeeded_before_is_not_run_again_where_that_is_asked_for(app: Celery) -> None:
    ran = []
    define(app, lambda batch: ran.extend(batch.values))
    app.conf.worker_deduplicate_successful_tasks = True
    app.backend.store_result("a", "first", "SUCCESS")
    again = {"redelivered": True}
    run(parcel("a", 1, delivery_info=again), parcel("b", 2, delivery_info=again))
    assert ran == [2]


def test_a_validator_with_a_bug_fails_its_item_alone(app: Celery) -> None:
    define(app, lambda batch: None, model=Picky)
    answer = run(parcel("a", {"number": 1}), parcel("b", {"number": 2}))
    assert failures(answer) == [1, 0]
    assert isinstance(app.AsyncResult("a").result, InvalidItem)


def test_a_soft_limit_in_a_validator_is_the_limit_of_the_call(
    app: Celery, soft_limit: None
) -> None:
    ran: list[int] = []
    define(app, lambda batch: ran.extend(batch.values), model=Hanging)
    parcels = [parcel(name, {"number": number}) for name, number in (("a", 1), ("b", 2), ("c", 3))]
    answer = run_parcels("t.t", parcels, "host", True)
    assert failures(answer) == [1, 1, 1]
    assert ran == []
    results = [app.AsyncResult(name).result for name in "abc"]
    assert all(isinstance(result, SoftTimeLimitExceeded) for result in results)


def test_a_soft_limit_that_comes_before_the_items_are_read_waits_until_they_are(
    app: Celery, soft_limit: None
) -> None:
    def decode(body: str) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return [[1], {}, {}]

    register("struck", str, decode, content_type="application/x-struck", content_encoding="utf-8")
    app.conf.accept_content = ["json", "struck"]
    define(app, lambda batch: None)
    struck = parcel("a", 1, content_type="application/x-struck")
    answer = run_parcels("t.t", [struck, parcel("b", 2)], "host", True)
    assert failures(answer) == [1, 1]
    assert isinstance(app.AsyncResult("b").result, SoftTimeLimitExceeded)


def test_a_key_that_cannot_be_made_fails_its_item_by_the_error_of_the_code(app: Celery) -> None:
    ran: list[int] = []
    define(app, lambda batch: ran.extend(batch.values), key=lambda number: 1 / number)
    answer = run(parcel("a", 0, keyless="it has no key"), parcel("b", 2))
    assert failures(answer) == [1, 0]
    assert isinstance(app.AsyncResult("a").result, ZeroDivisionError)
    assert ran == [2]


def test_an_item_that_has_a_key_after_all_says_why_it_has_not_run(app: Celery) -> None:
    define(app, lambda batch: None, key=lambda number: number)
    answer = run(parcel("a", 0, keyless="it has no key: OSError()"))
    assert failures(answer) == [1]
    assert "it has no key: OSError()" in str(app.AsyncResult("a").result)


def test_started_is_stored_before_the_call(app: Celery) -> None:
    seen = []

    def look(batch: Batch[int]) -> None:
        seen.extend(app.AsyncResult(item.id).state for item in batch)

    define(app, look, track_started=True)
    run(parcel("a", 1), parcel("b", 2))
    assert seen == ["STARTED", "STARTED"]
    assert app.AsyncResult("a").state == "SUCCESS"


def test_the_senders_headers_come_with_the_item(app: Celery) -> None:
    found = []
    define(app, lambda batch: found.extend((item.headers, item.attempt) for item in batch))
    run(parcel("a", 1, tenant="acme", retries=2, batch=False))
    run(parcel("b", 1, batch="of Tuesday"))
    assert found == [({"tenant": "acme"}, 3), ({"batch": "of Tuesday"}, 1)]


def test_a_backend_that_is_not_redis_stores_one_by_one(app: Celery) -> None:
    define(app, lambda batch: [item.value for item in batch])
    app.conf.result_backend = "cache+memory://"
    app._local.__dict__.pop("backend", None)
    assert failures(run(parcel("a", 1), parcel("b", 2))) == [0, 0]
    assert [app.AsyncResult(name).result for name in "ab"] == [1, 2]
