"""Bulk calls on brokers that are not Redis: one message after another, with the same receipts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, group
from kombu import Connection
from pydantic import BaseModel

from batching import Batch, BatchTask
from routing import BrokerUnreachable, Receipts, UnknownLevel, enqueue_many, install
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.rabbitmq import amqp_url

BROKERS = ["rabbitmq", "memory", "filesystem"]


class Row(BaseModel):
    number: int


@pytest.fixture(params=BROKERS)
def other(request: pytest.FixtureRequest, make_app: AppFactory, tmp_path: Path) -> Iterator[Celery]:
    """An app on a broker that is not Redis, with queues that nobody else has."""
    app = make_app(amqp_url() if request.param == "rabbitmq" else f"{request.param}://")
    folders = ("data_folder_in", "data_folder_out", "control_folder")
    app.conf.broker_transport_options = dict.fromkeys(folders, str(tmp_path))
    unique = secrets.token_hex(4)
    define(app, main=f"main-{unique}", low=f"low-{unique}")
    yield app
    with app.connection_for_write() as connection:
        for queue in queues_of(app):
            app.amqp.queues[queue](connection.channel()).delete()


def define(app: Celery, *, main: str, low: str) -> None:
    """Install a table of two queues, and tasks that go there."""
    table = {
        "queues": {main: {}, low: {}},
        "routes": {"load": {"queue": main, "low": low}, "rows": main},
    }
    install(app, table)

    @app.task(name="load", shared=False)
    def load(row: Any) -> Any:
        return row

    @app.task(name="rows", shared=False, base=BatchTask, model=Row)
    def rows(batch: Batch[Row]) -> list[int]:
        return [item.value.number for item in batch]


def queues_of(app: Celery) -> list[str]:
    return [name for name in app.amqp.queues if "-" in name]


def taken(app: Celery, queue: str) -> set[str]:
    """Take what waits in a queue; returns the ids (a file system keeps no order)."""
    with app.connection_for_read() as connection:
        bound = app.amqp.queues[queue](connection.channel())
        bound.declare()
        messages = iter(lambda: bound.get(no_ack=True), None)
        return {message.headers["id"] for message in messages}


CALLS: dict[str, Callable[[Celery], Receipts]] = {
    "delay_many": lambda app: app.tasks["load"].delay_many([1, object(), 3]),
    "apply_many": lambda app: app.tasks["load"].apply_many([((1,), {}), ((), {}), ((3,), {})]),
    "enqueue_many": lambda app: enqueue_many(app, "load", [(1,), 2, (3,)]),
    "batch": lambda app: app.tasks["rows"].delay_many([Row(number=1), object(), {"number": 3}]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_bulk_call_gets_a_receipt_for_each_item(other: Celery, call: str) -> None:
    receipts = CALLS[call](other)
    assert [receipt.accepted for receipt in receipts] == [True, False, True]
    assert receipts[1].reason == "invalid"
    main, low = queues_of(other)
    assert taken(other, main) == {receipts[0].id, receipts[2].id}
    assert taken(other, low) == set()


def test_levels_choose_the_queue(other: Celery) -> None:
    load = other.tasks["load"]
    receipts = load.delay_many([1, 2], priority="low")
    assert taken(other, queues_of(other)[1]) == set(receipts.ids)
    with pytest.raises(UnknownLevel):
        load.delay_many([1], priority="critical")


def test_a_group_of_many_members_is_published(other: Celery) -> None:
    load = other.tasks["load"]
    result = group(load.s(n) for n in range(50)).apply_async()
    assert taken(other, queues_of(other)[0]) == {member.id for member in result.results}


def test_eager_mode_needs_no_broker(other: Celery) -> None:
    other.conf.task_always_eager = True
    receipts = other.tasks["rows"].delay_many([{"number": 1}, {"number": 2}])
    assert receipts.accepted == 2
    assert taken(other, queues_of(other)[0]) == set()


def test_a_connection_of_the_callers_own_may_be_stock_redis(
    make_app: AppFactory, broker: Broker
) -> None:
    app = make_app()
    define(app, main="main", low="low")
    with Connection(broker.url) as connection:
        receipts = app.tasks["load"].delay_many([1, 2], connection=connection)
    assert receipts.accepted == 2
    assert broker.length("main") == 2


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:1//", "pyamqp://127.0.0.1:1//"])
def test_a_broker_that_is_away_is_named(make_app: AppFactory, url: str) -> None:
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    app = make_app(url, task_publish_retry_policy=policy)
    define(app, main="main", low="low")
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1.*start the broker") as caught:
        app.tasks["load"].delay_many([1, 2])
    assert isinstance(caught.value.receipts, Receipts)
    assert len(caught.value.receipts) == 0


def test_without_a_broker_url_celerys_default_is_used(make_app: AppFactory) -> None:
    """It is RabbitMQ on this machine's usual port, so this looks no further than its transport."""
    app = make_app("")
    define(app, main="main", low="low")
    with app.connection_for_write() as connection:
        assert connection.as_uri().startswith("amqp://")
        assert not hasattr(connection.get_transport_cls(), "Channel")
