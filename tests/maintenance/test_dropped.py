"""The upkeep job that finishes dropped tasks, when the result backend is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states

from routing import install
from routing.maintenance import dropped
from routing.maintenance.dropped import FinishDropped
from routing.redis.values import NOTHING, Fetch
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.messages import ids_of

TABLE: dict[str, Any] = {"queues": {"first": {"max_length": 1, "overflow": "drop_newest"}}}


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url, result_backend="cache+memory://")
    install(app, TABLE)

    @app.task(name="noop", shared=False)
    def noop() -> None: ...

    return app


def run(app: Celery, job: FinishDropped) -> None:
    with app.connection_for_write() as connection:
        job.run(connection.default_channel)


def test_what_cannot_be_stored_now_is_kept_in_order(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results = [app.tasks["noop"].delay() for _ in range(4)]
    stored: list[str] = []

    def store(task_id: str, *args: Any, **options: Any) -> None:
        if stored:
            raise ConnectionError("the backend is away")
        stored.append(task_id)

    monkeypatch.setattr(app.backend, "mark_as_failure", store)
    job = FinishDropped(SimpleNamespace(app=app))
    run(app, job)
    assert stored == [results[1].id]
    assert ids_of(broker.payloads("first.dropped")) == [result.id for result in results[2:]]
    assert broker.holds_nothing()
    assert "cannot be stored, trying again: ConnectionError" in caplog.text
    run(app, job)
    assert broker.length("first.dropped") == 2, "the backend gets some time"
    monkeypatch.undo()
    run(app, FinishDropped(SimpleNamespace(app=app)))
    assert broker.length("first.dropped") == 0
    assert results[3].state == states.FAILURE


@pytest.mark.parametrize("embed", [{"chord": 5}, {"errbacks": [7]}, {"chord": {"task": "x"}}, None])
def test_a_hostile_message_does_not_hold_up_the_others(
    app: Celery, broker: Broker, embed: Any
) -> None:
    app.tasks["noop"].delay()
    with app.producer_pool.acquire(block=True) as producer:
        headers = {"id": "hostile", "task": "noop"}
        producer.publish([[], {}, embed], routing_key="first", exchange="", headers=headers)
    result = app.tasks["noop"].delay()
    run(app, FinishDropped(SimpleNamespace(app=app)))
    assert result.state == states.FAILURE
    assert broker.length("first.dropped") == 0
    assert broker.holds_nothing()


class Away(Exception):
    """What some database's own client raises when that is away."""


def test_what_a_job_has_taken_is_renewed_and_dropped_from_its_hands_when_it_is_anothers(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        app.tasks["noop"].delay()
    with app.connection_for_write() as connection:
        holdings = connection.default_channel.link.holdings
        finished: list[str] = []

        def store(task_id: str, *args: Any, **options: Any) -> None:
            finished.append(task_id)
            tags = [tag for tag, _ in holdings.leases()]
            assert len(tags) == 2
            assert {tag.encode() for tag in tags} == set(broker.client.hkeys("unacked"))
            holdings.forget(tags)

        monkeypatch.setattr(app.backend, "mark_as_failure", store)
        run(app, FinishDropped(SimpleNamespace(app=app)))
        assert len(finished) == 1
        assert holdings.leases() == []


def test_a_slow_backend_makes_a_job_hold_no_more_than_it_finishes(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [app.tasks["noop"].delay() for _ in range(4)]
    finished: list[str] = []

    def store(task_id: str, *args: Any, **options: Any) -> None:
        finished.append(task_id)
        monkeypatch.setattr(dropped, "RUN_SECONDS", 0.0)
        job_clock.append(dropped.time.monotonic() + 60)

    job_clock: list[float] = []
    monkeypatch.setattr(app.backend, "mark_as_failure", store)
    now = dropped.time.monotonic
    clock = SimpleNamespace(monotonic=lambda: job_clock[-1] if job_clock else now())
    monkeypatch.setattr(dropped, "time", clock)
    run(app, FinishDropped(SimpleNamespace(app=app)))
    assert finished == [results[1].id]
    assert ids_of(broker.payloads("first.dropped")) == [result.id for result in results[2:]]
    assert broker.holds_nothing()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("one too"), OSError("away")])
def test_an_error_callback_that_raises_is_called_once(
    app: Celery, broker: Broker, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    called: list[str] = []

    @app.task(name="errback", shared=False)
    def errback(request: Any, error_of_it: Any, traceback: Any) -> None:
        called.append(request.id)
        raise error

    app.tasks["noop"].delay()
    result = app.tasks["noop"].apply_async(link_error=errback.s())
    other = app.tasks["noop"].delay()
    job = FinishDropped(SimpleNamespace(app=app))
    run(app, job)
    run(app, job)
    assert called == [result.id]
    assert result.state == other.state == states.FAILURE
    assert "Errback 'errback' raised an exception" in caplog.text
    assert broker.holds_nothing()
    assert broker.length("first.dropped") == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_what_a_backend_cannot_store_is_tried_again_only_while_that_is_away(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    for _ in range(2):
        app.tasks["noop"].delay()

    def store(*args: Any, **options: Any) -> None:
        if not is_there:
            monkeypatch.setattr(app.backend, "get_state", store)
        raise Away("in words of its own")

    monkeypatch.setattr(app.backend, "mark_as_failure", store)
    run(app, FinishDropped(SimpleNamespace(app=app)))
    assert broker.length("first.dropped") == (0 if is_there else 1)
    assert broker.holds_nothing()


def test_another_worker_finishes_what_a_dead_one_took(app: Celery, broker: Broker) -> None:
    results = [app.tasks["noop"].delay() for _ in range(2)]
    with app.connection_for_write() as connection:
        commands = connection.default_channel.commands
        taken = commands.exchange(
            broker.client, NOTHING, Fetch("dead:1:", (("first.dropped", 5),))
        ).arrivals
        assert len(taken) == 1
        broker.client.hset(commands.keys.reclaiming(), "beat", _later(broker))
        broker.client.zadd(commands.keys.records()[2], {taken[0].tag: 1})
        assert commands.reclaim(broker.client) == 1
    run(app, FinishDropped(SimpleNamespace(app=app)))
    assert results[1].state == states.FAILURE
    assert broker.holds_nothing()


def _later(broker: Broker) -> int:
    return int(broker.client.time()[0]) * 1000
