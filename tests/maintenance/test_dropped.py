"""The upkeep job that finishes dropped tasks, when the result backend is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states

from routing import install
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
