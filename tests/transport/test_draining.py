"""A queue that is draining takes no new work, and lets in what follows from accepted work."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from celery import Celery, group

from routing import QueueDraining, QueueFull, install
from routing.settings import reset_queue, set_queue
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.wait import eventually

QUEUES: dict[str, Any] = {
    "free": {},
    "small": {"max_length": 3},
    "newest": {"max_length": 3, "overflow": "drop_oldest"},
    "waits": {"max_length": 1, "overflow": "block"},
}


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url, result_backend="cache+memory://")
    install(app, {"queues": QUEUES})

    @app.task(name="noop", shared=False)
    def noop(row: Any = None) -> None: ...

    return app


def send(app: Celery, queue: str, **options: Any) -> None:
    app.tasks["noop"].apply_async((), queue=queue, ignore_result=True, **options)


def refused(broker: Broker, queue: str) -> int:
    return int(broker.client.hget(f"celeriac:ledger:{queue}", "refused") or 0)


@pytest.mark.parametrize("queue", QUEUES)
def test_new_work_is_refused_and_counted_whatever_the_policy(
    app: Celery, broker: Broker, queue: str
) -> None:
    send(app, queue)
    set_queue(app, queue, drain=True)
    with pytest.raises(QueueDraining, match=f"queue '{queue}' is draining and takes no new work"):
        send(app, queue)
    with pytest.raises(QueueDraining):
        send(app, queue, countdown=60)
    assert broker.length(queue) == 1
    assert refused(broker, queue) == 2
    reset_queue(app, queue, "drain")
    if queue != "waits":
        send(app, queue)
        assert broker.length(queue) == 2


def test_what_follows_from_accepted_work_goes_in(app: Celery, broker: Broker) -> None:
    set_queue(app, "free", drain=True)
    send(app, "free", retries=1)
    send(app, "free", retries=1, countdown=60)
    assert broker.length("free") == 1
    assert len(broker.delayed("free")) == 1


def test_who_handles_a_full_queue_handles_a_draining_one(app: Celery) -> None:
    set_queue(app, "small", drain=True)
    with pytest.raises(QueueFull) as caught:
        send(app, "small")
    assert caught.value.retry_after == 60
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (QueueDraining, str(caught.value))


def test_the_items_of_a_bulk_call_say_why(app: Celery) -> None:
    set_queue(app, "free", drain=True)
    receipts = app.tasks["noop"].apply_many([((n,), {}) for n in range(3)], queue="free")
    assert receipts.accepted == 0
    assert [one.reason for one in receipts] == ["full"] * 3
    assert "draining" in str(receipts[0].error)


@pytest.mark.parametrize("queues", [("free", "free"), ("free", "small"), ("small", "newest")])
def test_a_group_is_refused_as_a_whole(
    app: Celery, broker: Broker, queues: tuple[str, ...]
) -> None:
    set_queue(app, queues[-1], drain=True)
    noop = app.tasks["noop"]
    with pytest.raises(QueueDraining):
        group([noop.si().set(queue=queue) for queue in queues]).apply_async()
    assert [broker.length(queue) for queue in queues] == [0, 0]


def test_a_producer_that_waits_for_room_is_told(app: Celery, broker: Broker) -> None:
    send(app, "waits")
    errors: list[Exception] = []

    def wait() -> None:
        try:
            send(app, "waits")
        except QueueDraining as error:
            errors.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    set_queue(app, "waits", drain=True)
    waiting.join(10)
    eventually(lambda: errors)
    assert refused(broker, "waits") == 1
