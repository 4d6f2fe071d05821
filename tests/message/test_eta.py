"""What producers do with a countdown or an ETA, against a real server."""

from __future__ import annotations

import base64
import json
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, group, signals

from routing import QueueFull, install
from routing.message.eta import eta_of, task_fields
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {
    "queues": {
        "main": {},
        "few": {"max_delayed": 2, "max_message_bytes": 2000},
        "blocking": {"max_delayed": 1, "overflow": "block", "block_timeout": 0.1},
        "dropping": {"max_delayed": 1, "overflow": "drop_newest"},
    },
}
HOUR = 3600


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)
    install(app, TABLE)

    @app.task(name="load", shared=False)
    def load(row: Any) -> None: ...

    return app


def send(app: Celery, queue: str, **options: Any) -> Any:
    return app.tasks["load"].apply_async(("row",), queue=queue, **options)


@pytest.mark.parametrize(
    "options", [{"countdown": HOUR}, {"eta": datetime(2999, 1, 1, tzinfo=UTC)}], ids=str
)
def test_a_message_with_a_countdown_or_an_eta_is_delayed(
    app: Celery, broker: Broker, options: dict[str, Any]
) -> None:
    result = send(app, "main", **options)
    (text,) = broker.delayed("main")
    assert json.loads(text)["headers"]["id"] == result.id
    assert broker.length("main") == 0


def test_an_eta_that_has_passed_is_taken_off(app: Celery, broker: Broker) -> None:
    past = datetime.now(UTC) - timedelta(seconds=5)
    send(app, "main", eta=past)
    app.tasks["load"].apply_many([(("row",), {})], queue="main", eta=past)
    assert [json.loads(text)["headers"]["eta"] for text in broker.payloads("main")] == [None, None]


def test_on_a_queue_that_is_not_in_the_table_the_eta_stays_with_the_message(
    app: Celery, broker: Broker
) -> None:
    app.conf.task_create_missing_queues = True
    app.amqp.queues.add("theirs")
    send(app, "theirs", countdown=HOUR)
    (text,) = broker.payloads("theirs")
    assert json.loads(text)["headers"]["eta"]
    assert broker.delayed("theirs") == []


def test_above_max_delayed_a_publish_is_refused(app: Celery, broker: Broker) -> None:
    for _ in range(2):
        send(app, "few", countdown=HOUR)
    with pytest.raises(
        QueueFull, match=r"2 of at most 2 delayed messages.*raise max_delayed"
    ) as got:
        send(app, "few", countdown=HOUR)
    assert (got.value.queue, got.value.length, got.value.limit) == ("few", 2, 2)
    send(app, "few")
    send(app, "few", countdown=HOUR, retries=1)
    assert len(broker.delayed("few")) == 3


def test_above_max_delayed_a_bulk_call_gets_receipts(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].apply_many(
        [((n,), {}) for n in range(4)], queue="few", countdown=HOUR
    )
    assert [receipt.accepted for receipt in receipts] == [True, True, False, False]
    assert [json.loads(text)["headers"]["argsrepr"] for text in broker.delayed("few")] == [
        "(0,)",
        "(1,)",
    ]


def test_a_bulk_call_whose_signals_are_watched_delays_too(app: Celery, broker: Broker) -> None:
    seen = []

    def watch(headers: Any = None, **_: Any) -> None:
        seen.append(headers["id"])

    signals.after_task_publish.connect(watch)
    try:
        app.tasks["load"].apply_many([((n,), {}) for n in range(3)], queue="main", countdown=HOUR)
    finally:
        signals.after_task_publish.disconnect(watch)
    assert [json.loads(text)["headers"]["id"] for text in broker.delayed("main")] == seen


def test_a_delayed_message_may_be_too_large(app: Celery, broker: Broker) -> None:
    items = [(("x" * 3000,), {}), (("small",), {})]
    receipts = app.tasks["load"].apply_many(items, queue="few", countdown=HOUR)
    assert [receipt.accepted for receipt in receipts] == [False, True]


def test_a_blocked_producer_waits_for_room_among_the_delayed(app: Celery, broker: Broker) -> None:
    send(app, "blocking", countdown=HOUR)
    began = datetime.now(UTC)
    with pytest.raises(QueueFull, match="delayed messages"):
        send(app, "blocking", countdown=HOUR)
    assert datetime.now(UTC) - began >= timedelta(seconds=0.1)
    assert broker.ledger("blocking") == {"accepted": 1, "refused": 1}


@pytest.mark.parametrize("others", [0, 1], ids=["one queue", "two queues"])
def test_a_group_is_delayed_whole_or_not_at_all(app: Celery, broker: Broker, others: int) -> None:
    load = app.tasks["load"]
    rest = [load.si(0).set(queue="main", countdown=HOUR) for _ in range(others)]

    def members(count: int) -> Any:
        return group([*rest, *(load.si(n).set(queue="few", countdown=HOUR) for n in range(count))])

    with pytest.raises(QueueFull, match="delayed messages"):
        members(3).apply_async()
    assert broker.delayed("few") == broker.delayed("main") == []
    members(2).apply_async()
    assert len(broker.delayed("few")) == 2
    assert len(broker.delayed("main")) == others


def test_a_policy_that_drops_accepts_what_it_drops(app: Celery, broker: Broker) -> None:
    for _ in range(3):
        send(app, "dropping", countdown=HOUR)
    assert len(broker.delayed("dropping")) == 1
    assert broker.ledger("dropping") == {"accepted": 3, "dropped": 2}


def test_the_fields_of_protocol_1_are_those_of_its_body() -> None:
    body = {"task": "t", "id": "1", "eta": "2030-01-01T00:00:00"}
    text = base64.b64encode(json.dumps(body).encode()).decode()
    old = {
        "body": text,
        "content-type": "application/json",
        "headers": {},
        "properties": {"body_encoding": "base64"},
    }
    assert task_fields(old) == body
    assert eta_of(task_fields(old)) == datetime(2030, 1, 1, tzinfo=UTC)
    assert task_fields({**old, "body": "?"}) == {}
    packed = base64.b64encode(zlib.compress(json.dumps(body).encode())).decode()
    assert task_fields({**old, "body": packed, "headers": {"compression": "gzip"}}) == body
    assert task_fields({**old, "headers": {"compression": "gzip"}}) == {}
    lunch = base64.b64encode(json.dumps({"task": "lunch", "eta": body["eta"]}).encode()).decode()
    assert task_fields({**old, "body": lunch}) == {}, "no task of Celery's"
    assert task_fields({**old, "content-type": "application/x-python-serialize"}) == {}
    assert task_fields({**old, "headers": {"task": "t"}}) == {"task": "t"}
