"""The publish signals come in pairs, as a tracer needs that opens a span and closes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery, Task, group, signals

from routing import BrokerUnreachable, MessageTooLarge, QueueFull, install
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {
    "queues": {
        "main": {"max_message_bytes": 5_000},
        "small": {"max_length": 2},
    },
}
AWAY = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


@dataclass
class Tracer:
    """Opens a span before a publish and closes it after, as tracing libraries do."""

    open: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    deepest: int = 0
    errors: list[Any] = field(default_factory=list)

    def before(self, headers: dict[str, Any], body: Any, **_: Any) -> None:
        self.open.append(id_in(headers, body))
        self.deepest = max(self.deepest, len(self.open))

    def after(self, headers: dict[str, Any], body: Any, **options: Any) -> None:
        assert {"sender", "exchange", "routing_key"} <= options.keys()
        assert self.open.pop() == id_in(headers, body)
        self.closed.append(id_in(headers, body))
        if "error" in options:
            self.errors.append(options["error"])


def id_in(headers: dict[str, Any], body: Any) -> str:
    return str(headers["id"] if "id" in headers else body["id"])


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    tracer = Tracer()
    signals.before_task_publish.connect(tracer.before)
    signals.after_task_publish.connect(tracer.after)
    yield tracer
    signals.before_task_publish.disconnect(tracer.before)
    signals.after_task_publish.disconnect(tracer.after)


class Own(Task):
    """Makes its messages in a way of its own."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, headers={"tenant": "t"}, **options)


def define(app: Celery) -> Celery:
    install(app, TABLE)

    def work(row: Any = None) -> None: ...

    for name, base in (("noop", Task), ("own", Own)):
        app.task(work, name=name, shared=False, base=base)
    return app


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    return define(make_app(broker.url))


@pytest.mark.parametrize("name", ["noop", "own"])
@pytest.mark.parametrize("url", ["", "memory://"])
def test_spans_of_a_bulk_call_do_not_nest_and_all_are_closed(
    make_app: AppFactory, broker: Broker, tracer: Tracer, url: str, name: str
) -> None:
    app = define(make_app(url or broker.url))
    receipts = app.tasks[name].delay_many(range(1100), queue="main")
    assert (tracer.open, tracer.deepest, tracer.errors) == ([], 1, [])
    assert tracer.closed == receipts.ids


def test_a_span_of_a_refused_item_is_closed(app: Celery, tracer: Tracer) -> None:
    receipts = app.tasks["noop"].delay_many(range(4), queue="small")
    assert (receipts.accepted, receipts.refused) == (2, 2)
    assert (tracer.open, tracer.closed) == ([], receipts.ids)


def test_a_span_of_an_item_that_is_no_message_is_closed_with_the_reason(
    app: Celery, tracer: Tracer
) -> None:
    assert app.tasks["noop"].delay_many([1, object(), 3], queue="main").refused == 1
    assert (tracer.open, len(tracer.errors)) == ([], 1)
    assert "not JSON serializable" in str(tracer.errors[0])


FAILURES: dict[str, tuple[type[Exception], Callable[[Celery], Any]]] = {
    "full": (QueueFull, lambda app: app.tasks["noop"].apply_async(queue="small")),
    "own apply_async": (QueueFull, lambda app: app.tasks["own"].apply_async(queue="small")),
    "by name": (QueueFull, lambda app: app.send_task("noop", queue="small")),
    "delayed": (MessageTooLarge, lambda app: app.tasks["noop"].apply_async(
        ("x" * 6_000,), queue="main", countdown=60
    )),
    "too large": (MessageTooLarge, lambda app: app.tasks["noop"].apply_async(
        ("x" * 6_000,), queue="main"
    )),
    "no JSON": (Exception, lambda app: app.tasks["noop"].apply_async((object(),), queue="main")),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_publish_that_fails_closes_what_it_opened(
    app: Celery, tracer: Tracer, failure: str, protocol: int
) -> None:
    app.conf.task_protocol = protocol
    error, call = FAILURES[failure]
    app.tasks["noop"].delay_many([1, 2], queue="small")
    with pytest.raises(error) as caught:
        call(app)
    assert (tracer.open, tracer.errors) == ([], [caught.value])
    assert len(tracer.closed) == 3


def test_a_broker_that_is_away_closes_what_was_opened(make_app: AppFactory, tracer: Tracer) -> None:
    for url in ("redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"):
        app = define(make_app(url, task_publish_retry_policy=AWAY))
        for send in (app.tasks["noop"].delay, lambda task=app.tasks["noop"]: task.delay_many([1])):
            with pytest.raises(BrokerUnreachable):
                send()
    assert (tracer.open, len(tracer.closed)) == ([], 4)
    assert {type(error) for error in tracer.errors} == {BrokerUnreachable}


def test_a_successful_publish_is_told_once_also_with_events(app: Celery, tracer: Tracer) -> None:
    app.conf.task_send_sent_event = True
    result = app.tasks["noop"].apply_async(queue="main")
    assert (tracer.open, tracer.closed, tracer.errors) == ([], [result.id], [])


def test_a_group_that_is_refused_leaves_no_span_open(app: Celery, tracer: Tracer) -> None:
    with suppress(QueueFull):
        group(app.tasks["noop"].si().set(queue="small") for _ in range(3)).apply_async()
    assert (tracer.open, tracer.deepest, len(tracer.closed)) == ([], 1, 3)
