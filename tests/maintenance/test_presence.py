"""What a worker says of itself, and which queues are told of as neglected."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import bootsteps

from routing import install
from routing.maintenance import runner
from routing.maintenance.presence import Neglect, Presence
from routing.maintenance.runner import Upkeep
from routing.redis.ledger import Ledger, QueueLedger
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.wait import eventually


def at(seconds: float, **fields: Any) -> Ledger:
    queue = QueueLedger(queue="q", **fields)
    return Ledger(server_ms=int(seconds * 1000), queues=(queue,))


def told(neglect: Neglect, ledger: Ledger) -> list[str]:
    return [queue.queue for queue in neglect.look(ledger)]


def test_a_queue_is_told_of_once_when_nobody_has_consumed_it_for_a_while() -> None:
    neglect = Neglect(5.0)
    looks = [told(neglect, at(s, waiting=2, consumers=0)) for s in (0, 4, 6, 60)]
    assert looks == [[], [], ["q"], []]


def test_a_worker_that_is_back_soon_is_not_missed() -> None:
    neglect = Neglect(5.0)
    told(neglect, at(0, waiting=2, consumers=0))
    told(neglect, at(4, waiting=2, consumers=1))
    assert told(neglect, at(6, waiting=2, consumers=0)) == []
    assert neglect.tended() == []


def test_it_is_said_once_when_a_queue_is_consumed_again_and_then_anew() -> None:
    neglect = Neglect(5.0)
    for seconds in (0, 6):
        told(neglect, at(seconds, waiting=2, consumers=0))
    assert told(neglect, at(8, consumers=0)) == []  # somebody has purged it
    assert neglect.tended() == []
    told(neglect, at(9, consumers=1))
    assert neglect.tended() == ["q"]
    assert neglect.tended() == []
    told(neglect, at(10, waiting=1, consumers=0))
    assert told(neglect, at(16, waiting=1, consumers=0)) == ["q"]


def test_delayed_messages_count_when_their_time_has_come() -> None:
    neglect = Neglect(5.0)
    assert told(neglect, at(0, delayed=1, consumers=0)) == []
    assert told(neglect, at(6, delayed=1, consumers=0)) == []
    told(neglect, at(7, delayed=1, due=1, consumers=0))
    assert told(neglect, at(13, delayed=1, due=1, consumers=0)) == ["q"]


def test_whoever_stops_a_worker_does_not_wait_for_its_next_announcement(
    make_app: AppFactory, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(broker.url)
    install(app, {"queues": {"main": {}}})
    app.amqp.queues.select(["main"])
    before = set(threading.enumerate())
    monkeypatch.setattr(Presence, "interval_seconds", 60.0)
    monkeypatch.setattr(runner, "JOBS", (Presence,))
    with app.connection_for_read() as connection:
        parent = SimpleNamespace(
            app=app,
            hostname="one@here",
            controller=SimpleNamespace(max_concurrency=1),
            task_consumer=SimpleNamespace(channel=connection.default_channel),
            blueprint=SimpleNamespace(state=bootsteps.RUN),
        )
        upkeep = Upkeep(parent)
        upkeep.start(parent)
        consumers = connection.default_channel.commands.keys.consumers("main")
        eventually(lambda: broker.client.exists(consumers))
        parent.blueprint.state = bootsteps.CLOSE
        monkeypatch.setattr(runner, "LAST_SECONDS", 5.0)
        upkeep.shutdown(parent)
        assert set(threading.enumerate()) <= before
    assert not broker.client.exists(consumers)
