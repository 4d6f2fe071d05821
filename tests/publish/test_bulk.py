"""Bulk calls against a real server: the same messages as apply_async, and a receipt for each."""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from time import monotonic
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.task import Task
from celery.utils.saferepr import saferepr
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json
from pydantic import BaseModel

from routing import (
    BrokerUnreachable,
    PublishRefused,
    Receipts,
    RoutingError,
    UnknownLevel,
    enqueue_many,
    install,
)
from routing.publish.receipts import Refusal
from routing.publish.template import Representation, _encode, new_ids
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {
    "queues": {"main": {}, "bulk": {}, "small": {"max_length": 3}},
    "routes": {"load": {"queue": "main", "low": "bulk"}, "tiny": "small"},
}
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Model(BaseModel):
    number: int


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)
    install(app, TABLE)

    @app.task(name="load", shared=False)
    def load(row: Any, *, scale: int = 1) -> Any:
        return row

    @app.task(name="tiny", shared=False)
    def tiny(row: Any) -> None: ...

    @app.task(name="model", shared=False, pydantic=True)
    def model(row: Model) -> None: ...

    return app


def decoded(payloads: list[str]) -> list[dict[str, Any]]:
    """Return messages without what must differ between two of them, bodies decoded."""
    messages = []
    for text in payloads:
        message = json.loads(text)
        message.pop("celeriac", None)
        headers, properties = message["headers"], message["properties"]
        assert uuid.UUID(headers["id"]).version == 4
        assert properties["correlation_id"] == headers["id"]
        assert len({headers["id"], properties.pop("delivery_tag")}) == 2
        if headers["root_id"] == headers["id"]:
            headers["root_id"] = "own"
        headers["id"] = properties["correlation_id"] = "id"
        if "expiration" in properties:
            properties["expiration"] = int(properties["expiration"]) // 100_000
        for key in ("eta", "expires"):
            headers[key] = headers[key] and headers[key][:16]
        if "compression" not in headers and message["content-type"] == "application/json":
            message["body"] = base64.b64decode(message["body"]).decode()
        messages.append(message)
    return messages


def compare(
    app: Celery, broker: Broker, queue: str, args: Any, kwargs: Any, **options: Any
) -> None:
    load = app.tasks["load"]
    load.apply_async(args, kwargs, **options)
    receipts = load.apply_many([(args, kwargs)], **options)
    assert receipts.accepted == 1
    step = max([s for s in (0, 3, 6, 9) if s <= (options.get("priority") or 0)])
    one, many = decoded(broker.payloads(queue, step=step) + broker.delayed(queue))
    assert many == one


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"countdown": 3600},
        {"eta": NOW},
        {"eta": NOW, "expires": NOW + dt.timedelta(1)},
        {"expires": 100},
        {"priority": 3},
        {"priority": 9},
        {"headers": {"tenant": "a", "id_like": "%s %d {}"}},
        {"time_limit": 10, "soft_time_limit": 5},
        {"shadow": "other.name"},
        {"serializer": "pickle"},
        {"compression": "zlib"},
        {"ignore_result": True},
        {"reply_to": "somewhere"},
        {"group_id": "g", "group_index": 3},
        {"root_id": "r", "parent_id": "p"},
        {"stamped_headers": ["stamp"], "stamp": "value"},
        {"argsrepr": "(secret)"},
        {"kwargsrepr": "{secret}"},
        {"retries": 2},
        {"retry": False},
        {"delivery_mode": 1},
        {"chord": None, "chain": None},
        {"replaced_task_nesting": 1},
        {"expiration": 3},
        {"custom": "property"},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_a_message_is_the_one_that_apply_async_publishes(
    app: Celery, broker: Broker, options: dict[str, Any]
) -> None:
    compare(app, broker, "main", ({"a": [1, "ü%s"]},), {"scale": 3}, **options)


def test_links_are_the_same(app: Celery, broker: Broker) -> None:
    sig = app.tasks["tiny"].si(1)
    compare(app, broker, "main", (1,), {}, link=sig, link_error=[sig])


def test_levels_are_the_same(app: Celery, broker: Broker) -> None:
    compare(app, broker, "bulk", (1,), {}, low_priority=True)


@pytest.mark.parametrize(
    "value",
    [
        NOW,
        NOW.date(),
        NOW.time(),
        uuid.UUID(int=7),
        Decimal("1.50"),
        b"bytes",
        b"\xff",
        float("nan"),
        2**70,
        {1: 2},
        'it\'s "quoted" \\ \n \x00 é 漢 \U0001f600',
        [],
        {},
        (),
        [[[[["deep"]]]]],
        "x" * 3000,
        {"k": "v" * 2000},
        None,
        True,
    ],
    ids=repr,
)
def test_values_are_written_as_kombu_writes_them(app: Celery, broker: Broker, value: Any) -> None:
    compare(app, broker, "main", (value,), {"scale": value})


def test_a_task_in_a_worker_passes_its_root_and_parent_on(app: Celery, broker: Broker) -> None:
    load = app.tasks["load"]
    load.push_request(id="parent", root_id="root", called_directly=False, is_eager=False)
    try:
        compare(app, broker, "main", (1,), {})
    finally:
        load.pop_request()


def test_settings_of_the_app_count_for_both(app: Celery, broker: Broker) -> None:
    app.conf.task_compression = "gzip"
    app.conf.task_serializer = "pickle"
    compare(app, broker, "main", ({"a": 1},), {})


def test_protocol_1_is_spoken_too(app: Celery, broker: Broker) -> None:
    app.conf.task_protocol = 1
    assert app.tasks["load"].delay_many([7]).accepted == 1
    body = json.loads(base64.b64decode(json.loads(broker.payloads("main")[0])["body"]))
    assert (body["task"], body["args"]) == ("load", [7])


def test_items_arrive_in_order_and_each_has_its_receipt(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].delay_many(n for n in range(1203))
    assert (len(receipts), receipts.accepted, receipts.refused) == (1203, 1203, 0)
    payloads = [json.loads(text) for text in broker.payloads("main")]
    assert [text["headers"]["id"] for text in payloads] == receipts.ids
    assert [json.loads(base64.b64decode(text["body"]))[0] for text in payloads] == [
        [n] for n in range(1203)
    ]
    assert len(set(receipts.ids)) == 1203


def test_a_chunk_is_one_call_of_the_server(app: Celery, broker: Broker) -> None:
    app.tasks["load"].delay_many(range(2))  # declares what is not declared yet
    before = broker.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    app.tasks["load"].delay_many(range(200))
    assert broker.client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1


def test_an_object_that_is_yielded_again_with_other_contents_is_sent_as_it_was(
    app: Celery, broker: Broker
) -> None:
    def rows() -> Iterator[dict[str, int]]:
        row: dict[str, int] = {}
        for row["n"] in range(3):
            yield row

    app.tasks["load"].delay_many(rows())
    bodies = [json.loads(base64.b64decode(json.loads(t)["body"])) for t in broker.payloads("main")]
    assert [body[0][0]["n"] for body in bodies] == [0, 1, 2]


def test_nothing_to_send_is_no_error(app: Celery, broker: Broker) -> None:
    assert len(app.tasks["load"].delay_many([])) == 0
    assert broker.length("main") == 0


def test_an_item_that_is_not_json_is_refused_alone(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].delay_many([1, object(), 3])
    assert [receipt.accepted for receipt in receipts] == [True, False, True]
    assert receipts[1].error == (
        "item 1: the arguments cannot be serialized: Object of type object is not JSON serializable"
    )
    assert broker.length("main") == 2
    with pytest.raises(PublishRefused, match=r"1 of 3 messages were refused:\nitem 1: .*object"):
        receipts.raise_for_refused()


def test_a_circle_is_refused_alone(app: Celery, broker: Broker) -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert app.tasks["load"].delay_many([circle, 1]).accepted == 1


def test_wrong_arguments_are_refused_alone(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].apply_many(
        [((1,), {}), ((1, 2), {}), ((1,), {"bad": 1}), ("abc", None), 5, (None, {"row": 1})]
    )
    assert [receipt.accepted for receipt in receipts] == [True, False, False, False, False, True]
    assert "takes 1 positional argument" in (receipts[1].error or "")
    assert "unexpected keyword argument 'bad'" in (receipts[2].error or "")
    assert "task args must be a list or tuple" in (receipts[3].error or "")
    assert "expected an (args, kwargs) pair, got int" in (receipts[4].error or "")


def test_pydantic_models_are_dumped_as_apply_async_does(app: Celery, broker: Broker) -> None:
    app.tasks["model"].apply_async((Model(number=3),))
    assert app.tasks["model"].delay_many([Model(number=3)]).accepted == 1
    one, many = decoded(broker.payloads("main"))
    assert many == one


def test_what_a_full_queue_has_no_room_for_is_refused(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["tiny"].delay_many(range(5))
    assert [receipt.accepted for receipt in receipts] == [True] * 3 + [False] * 2
    assert "queue 'small' is full: 3 of at most 3 messages wait" in (receipts[3].error or "")
    assert broker.length("small") == 3


def test_later_chunks_are_tried_when_a_queue_was_full(app: Celery, broker: Broker) -> None:
    def items() -> Iterator[int]:
        yield from range(500)
        broker.client.delete("small")
        yield from range(2)

    receipts = app.tasks["tiny"].delay_many(items())
    assert (receipts.accepted, receipts.refused) == (5, 497)
    assert [receipt.accepted for receipt in receipts[500:]] == [True, True]


def test_an_iterable_that_fails_ends_the_call_after_what_came_before(
    app: Celery, broker: Broker
) -> None:
    def items() -> Iterator[int]:
        yield from range(700)
        raise KeyError("source")

    with pytest.raises(KeyError, match="source") as caught:
        app.tasks["load"].delay_many(items())
    assert broker.length("main") == 700
    assert "700 accepted" in caught.value.__notes__[0]


def test_a_level_that_is_not_served_raises_before_anything_is_sent(
    app: Celery, broker: Broker
) -> None:
    with pytest.raises(UnknownLevel):
        app.tasks["load"].delay_many(range(3), priority="critical")
    assert broker.length("main") == 0


def test_every_item_gets_its_own_id(app: Celery) -> None:
    with pytest.raises(TypeError, match="every item gets its own id"):
        app.tasks["load"].delay_many([1], task_id="x")


def test_a_task_is_sent_by_name_also_when_it_is_not_known_here(app: Celery, broker: Broker) -> None:
    receipts = enqueue_many(app, "elsewhere.task", [(1, 2), [3], 4], queue="bulk")
    assert [receipt.accepted for receipt in receipts] == [True, True, False]
    assert receipts[2].error == "item 2: TypeError: expected a tuple of arguments, got int"
    app.send_task("elsewhere.task", (1, 2), queue="bulk")
    first, _, stock = decoded(broker.payloads("bulk"))
    assert first == stock


def test_an_app_without_a_table_is_told_to_install_one(make_app: AppFactory) -> None:
    with pytest.raises(RoutingError, match=r"call routing\.install"):
        enqueue_many(make_app(), "x", [(1,)])


def test_a_task_with_an_apply_async_of_its_own_makes_its_messages(
    app: Celery, broker: Broker
) -> None:
    class Tenant(Task):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            try:
                return super().apply_async(args, kwargs, headers={"tenant": "t"}, **options)
            except Exception:
                raise AssertionError("the capture must not look like an error") from None

    @app.task(name="tenant", shared=False, base=Tenant)
    def tenant(row: Any) -> None: ...

    receipts = tenant.delay_many([1, 2])
    headers = [json.loads(text)["headers"] for text in broker.payloads("main")]
    assert [header["tenant"] for header in headers] == ["t", "t"]
    assert [header["id"] for header in headers] == receipts.ids


def test_signals_fire_for_every_message_and_may_change_it(app: Celery, broker: Broker) -> None:
    log: list[tuple[str, str]] = []

    def before(headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        log.append(("before", headers["id"]))
        headers["mark"] = properties["priority_mark"] = "seen"

    def after(headers: dict[str, Any], **_: Any) -> None:
        log.append(("after", headers["id"]))

    signals.before_task_publish.connect(before, sender="tiny")
    signals.after_task_publish.connect(after, sender="tiny")
    try:
        receipts = app.tasks["tiny"].delay_many(range(4))
    finally:
        signals.before_task_publish.disconnect(before, sender="tiny")
        signals.after_task_publish.disconnect(after, sender="tiny")
    assert log == [(name, task_id) for task_id in receipts.ids for name in ("before", "after")]
    assert receipts.accepted == 3
    for text in broker.payloads("small"):
        message = json.loads(text)
        assert message["headers"]["mark"] == message["properties"]["priority_mark"] == "seen"


def test_sent_events_go_out_for_every_accepted_message(app: Celery, broker: Broker) -> None:
    app.conf.task_send_sent_event = True
    with broker.client.pubsub() as listener:
        listener.psubscribe("*celeryev*")
        assert listener.get_message(timeout=5)["type"] == "psubscribe"
        receipts = app.tasks["tiny"].delay_many(range(4))
        payloads = [listener.get_message(timeout=5)["data"] for _ in range(3)]
        assert listener.get_message(timeout=0.1) is None
    events = [json.loads(base64.b64decode(json.loads(text)["body"])) for text in payloads]
    assert [event["uuid"] for event in events] == receipts.ids[:3]
    assert {(event["type"], event["queue"]) for event in events} == {("task-sent", "small")}


def test_eager_mode_runs_each_item_here(app: Celery, broker: Broker) -> None:
    seen: list[Any] = []

    @app.task(name="eager", shared=False)
    def eager(row: Any) -> None:
        seen.append(row)

    app.conf.task_always_eager = True
    receipts = eager.delay_many([1, 2])
    assert seen == [1, 2]
    assert receipts.accepted == 2
    assert broker.length("main") == 0


def test_other_brokers_get_one_message_after_another(make_app: AppFactory) -> None:
    app = make_app("memory://")
    install(app, TABLE)
    receipts = enqueue_many(app, "load", [(n,) for n in range(3)] + [(object(),)])
    assert [receipt.accepted for receipt in receipts] == [True] * 3 + [False]
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["main"](connection.channel())
        ids = [queue.get(no_ack=True).headers["id"] for _ in range(3)]
    assert ids == receipts.ids[:3]


def test_a_broker_that_is_away_is_named_with_what_was_sent_before(
    app: Celery, make_app: AppFactory
) -> None:
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    away = make_app("redis://:secret@127.0.0.1:1/0", task_publish_retry_policy=policy)
    install(away, TABLE)
    with pytest.raises(BrokerUnreachable, match=r"redis://:\*\*@127\.0\.0\.1:1/0") as caught:
        enqueue_many(away, "load", [(1,)])
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.receipts, Receipts)
    assert "start the broker" in str(caught.value)


def test_the_receipts_of_what_was_sent_survive_a_broker_that_goes_away(
    app: Celery, broker: Broker
) -> None:
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}

    def items() -> Iterator[int]:
        yield from range(500)
        broker.client.config_set("maxclients", 1)
        yield 1

    try:
        with (
            app.connection_for_write() as connection,
            pytest.raises(BrokerUnreachable) as caught,
        ):
            app.tasks["load"].delay_many(_dropping(items(), connection), connection=connection)
    finally:
        broker.client.config_set("maxclients", 1000)
    # On a busy machine the last of the first 500 share a chunk with the one that comes too late.
    sent = [broker.ledger(queue).get("accepted", 0) for queue in app.amqp.topology.queues]
    assert 0 < caught.value.receipts.accepted == sum(sent)


@pytest.mark.parametrize("is_pooled", [False, True], ids=["own", "pooled"])
@pytest.mark.parametrize("send", ["apply_async", "apply_many"])
def test_an_outage_longer_than_the_connection_timeout_is_waited_out_by_the_retry_policy(
    app: Celery, broker: Broker, send: str, is_pooled: bool
) -> None:
    app.conf.broker_connection_timeout = 0.2
    made = app.connection_for_write()
    with (
        app.producer_pool.acquire(block=True) if is_pooled else app.amqp.Producer(made) as producer
    ):
        connection = producer.connection
        port, connection.port = connection.port, 1
        began = monotonic()

        def come_back(error: Exception, interval: float) -> None:
            if monotonic() - began > 0.5:
                connection.port = port

        policy = {
            "max_retries": None,
            "interval_start": 0.1,
            "interval_step": 0,
            "interval_max": 0.1,
            "errback": come_back,
        }
        call = {"apply_async": (1,), "apply_many": [((1,), {})]}[send]
        getattr(app.tasks["load"], send)(call, producer=producer, retry_policy=policy)
    made.release()
    assert broker.length("main") == 1


def _dropping(items: Iterator[int], connection: Any) -> Iterator[int]:
    """Yield the items; before the 501st, point the connection at nobody."""
    for position, item in enumerate(items):
        if position == 500:
            connection.collect()
            connection.port = 1
        yield item


# -- the pure parts --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.tuples(JSON) | st.lists(JSON).map(tuple), st.sampled_from([8, 30, 1024]), st.integers(1, 4)
)
@example(("it's",), 1024, 3)
@example(("\ud800",), 1024, 3)
def test_the_quick_representation_is_celerys(args: Any, max_length: int, max_levels: int) -> None:
    quick = Representation(max_length=max_length, max_levels=max_levels)
    assert quick(args) == saferepr(args, max_length, maxlevels=max_levels)


@given(JSON)
def test_the_quick_encoder_is_kombus(value: Any) -> None:
    assert _encode(value) == kombu_json.dumps(value)


@given(st.integers(0, 50))
def test_ids_are_random_uuids(count: int) -> None:
    ids = new_ids(count)
    assert len(set(ids)) == count
    assert all(str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4 for text in ids)


@given(st.lists(st.lists(st.booleans())))
def test_receipts_keep_count_and_order(chunks: list[list[bool]]) -> None:
    receipts = Receipts()
    for chunk in chunks:
        refused = {
            at: Refusal("invalid", "no") for at, accepted in enumerate(chunk) if not accepted
        }
        receipts.extend(new_ids(len(chunk)), refused)
    flat = [accepted for chunk in chunks for accepted in chunk]
    assert [receipt.accepted for receipt in receipts] == flat
    assert (receipts.accepted, receipts.refused) == (sum(flat), len(flat) - sum(flat))
    assert [receipt.id for receipt in receipts] == receipts.ids
    if not all(flat):
        with pytest.raises(PublishRefused):
            receipts.raise_for_refused()


@pytest.mark.parametrize("one", [{"n": 1}, "text", b"bytes"])
def test_a_single_item_is_not_taken_for_many(app: Celery, one: object) -> None:
    with pytest.raises(TypeError, match="expected an iterable of items, got one"):
        app.tasks["load"].delay_many(one)
