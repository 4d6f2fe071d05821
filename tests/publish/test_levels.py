"""Levels: named for each item, granted by a policy, inherited, checked in eager mode too."""

from __future__ import annotations

import copyreg
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, signals
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import QueueNotFound, Retry
from hypothesis import given
from hypothesis import strategies as st
from kombu import Queue

from batching import Batch, BatchTask
from routing import LevelPolicyFailed, Topology, UnknownLevel, enqueue_many, install
from routing.message.exemption import accepted_before
from routing.publish import levels
from routing.publish.decision import decide_queue
from routing.publish.levels import ASKED, LEVEL, with_level
from routing.transport.bursts import Bursts
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {
    "queues": {"default": {}, "ingest": {}, "bulk": {}, "fast": {}, "small": {"max_length": 2}},
    "routes": {
        "load": {"queue": "ingest", "low": "bulk", "high": "fast", "tiny": "small"},
        "mail": {"queue": "default", "low": "bulk"},
    },
}


class Level(StrEnum):
    HIGH = "high"


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)

    @app.task(name="load", shared=False)
    def load(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="mail", shared=False)
    def mail(*args: Any) -> None: ...

    @app.task(name="seen", shared=False, bind=True)
    def seen(self: Any) -> Any:
        info = self.request.delivery_info
        return info["routing_key"], (self.request.headers or {}).get(LEVEL), info["priority"]

    install(app, {**TABLE, "routes": {**TABLE["routes"], "seen*": TABLE["routes"]["load"]}})
    return app


@pytest.fixture(autouse=True)
def _say_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "_DOWNGRADES", Bursts(interval_seconds=0))


def headers(broker: Broker, queue: str) -> list[dict[str, Any]]:
    return [json.loads(text)["headers"] for text in broker.payloads(queue)]


def lengths(broker: Broker) -> dict[str, int]:
    found = {queue: broker.length(queue) for queue in TABLE["queues"]}
    return {queue: count for queue, count in found.items() if count}


# -- what a call may name


@pytest.mark.parametrize("level", ["hgih", "HIGH", "High", "hihg"])
def test_a_misspelt_level_is_refused_with_what_was_meant(app: Celery, level: str) -> None:
    for options in ({}, {"queue": "default"}):
        with pytest.raises(UnknownLevel, match="did you mean 'high'"):
            app.tasks["load"].apply_async((1,), priority=level, **options)
    with pytest.raises(UnknownLevel, match="did you mean 'high'"):
        app.send_task("no.route", priority=level)


@pytest.mark.parametrize("priority", [b"high", ["high"], {"high"}, lambda row: "high"])
def test_what_is_neither_a_level_nor_a_number_is_refused(app: Celery, priority: Any) -> None:
    with pytest.raises(UnknownLevel, match="name of a level or a number from 0 to 9"):
        app.tasks["load"].apply_async((1,), priority=priority)


@pytest.mark.parametrize("priority", [11, 10, -1, 3.5, float("nan"), True, False])
def test_a_number_that_is_no_priority_is_refused(
    app: Celery, broker: Broker, priority: Any
) -> None:
    load = app.tasks["load"]
    wrong = {"priority": priority}
    calls = [
        lambda: load.apply_async((1,), **wrong),
        lambda: load.apply((1,), **wrong),
        lambda: load.delay_many([1], **wrong),
        lambda: app.send_task("no.route", **wrong),
        lambda: load.apply_async((1,), queue="default", **wrong),
        lambda: chain(load.si(1), load.si(2).set(**wrong)).delay(),
    ]
    for call in calls:
        with pytest.raises(UnknownLevel, match=f"a number from 0 to 9, got {priority!r}"):
            call()
    (receipt,) = load.delay_many([1], priority=lambda row: priority)
    assert not receipt.accepted
    assert lengths(broker) == {}


@pytest.mark.parametrize("low", ["yes", "no", 2, ["low"]])
def test_a_low_priority_is_true_or_false(app: Celery, broker: Broker, low: Any) -> None:
    load = app.tasks["load"]
    for call in (load.apply_async, load.apply):
        with pytest.raises(UnknownLevel, match="low_priority must be True or False, got"):
            call((1,), low_priority=low)
    assert lengths(broker) == {}


def test_every_number_of_celery_is_taken_and_those_that_a_queue_is_declared_with(
    app: Celery, broker: Broker
) -> None:
    for priority in (None, 0, 9, 3.0):
        app.tasks["load"].apply_async((1,), priority=priority, low_priority=None)
    assert lengths(broker) == {"ingest": 4}
    app.amqp.queues.add(Queue("urgent", max_priority=20))
    assert app.amqp.router.route({"priority": 20}, "load")["priority"] == 20
    with pytest.raises(UnknownLevel, match="a number from 0 to 20, got 21"):
        app.tasks["load"].apply_async((1,), priority=21)


def test_a_retry_keeps_a_number_that_a_stock_producer_gave(
    app: Celery, broker: Broker, parent: Any
) -> None:
    parent.request.delivery_info["priority"] = 11
    assert parent.signature_from_request().delay().id == "parent"
    with pytest.raises(UnknownLevel):
        app.tasks["load"].apply_async((1,), priority=12)


def test_a_step_that_was_accepted_is_not_lost_for_its_number(
    app: Celery, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with accepted_before():
        app.tasks["load"].apply_async((1,), priority=11)
    assert lengths(broker) == {"ingest": 1}
    assert "got 11 It is passed on." in caplog.text


def test_the_level_travels_in_the_headers(app: Celery, broker: Broker) -> None:
    app.tasks["load"].apply_async((1,), priority=Level.HIGH, headers={"tenant": "a"})
    app.tasks["load"].apply_async((1,), low_priority=True)
    app.tasks["load"].apply_async((1,), headers={"tenant": "a"})
    (high,), (low,), (plain,) = (headers(broker, queue) for queue in ("fast", "bulk", "ingest"))
    assert (high[LEVEL], high["tenant"], low[LEVEL]) == ("high", "a", "low")
    assert LEVEL not in plain


def test_a_level_that_is_copied_from_another_message_is_left_out(
    app: Celery, broker: Broker
) -> None:
    app.tasks["load"].apply_async((1,), headers={LEVEL: "high", ASKED: "high", "tenant": "a"})
    (plain,) = headers(broker, "ingest")
    assert plain["tenant"] == "a"
    assert not {LEVEL, ASKED} & plain.keys()


@given(st.none() | st.dictionaries(st.sampled_from([LEVEL, ASKED, "tenant"]), st.text()))
def test_headers_of_the_caller_are_never_changed(own: dict[str, Any] | None) -> None:
    before = None if own is None else dict(own)
    for granted in (None, levels.Granted(level="low"), levels.Granted(level="low", asked="high")):
        found = with_level(own, granted) or {}
        assert own == before
        assert found.get("tenant") == (own or {}).get("tenant")
        assert found.get(LEVEL) == (granted and granted.level)
        assert found.get(ASKED) == (granted and granted.asked)


def test_a_task_may_have_a_low_priority_as_its_default(app: Celery, broker: Broker) -> None:
    load = app.tasks["load"]
    load.low_priority = True
    load.delay(1)
    load.delay_many([1])
    load.apply_async((1,), priority=5)
    load.apply_async((1,), priority="high")
    load.apply_async((1,), low_priority=False)
    assert lengths(broker) == {"bulk": 3, "fast": 1, "ingest": 1}


def test_a_low_priority_of_task_routes_never_reaches_the_message(
    make_app: AppFactory, broker: Broker
) -> None:
    routes = {"own": {"queue": "bulk", "low_priority": True}, "lost": {"low_priority": True}}
    app = make_app(broker.url, task_routes=routes)
    install(app, TABLE)
    app.send_task("own")
    assert "low_priority" not in broker.payloads("bulk")[0]
    with pytest.raises(UnknownLevel, match="no queue for level 'low'"):
        app.send_task("lost")


def test_a_queue_may_be_given_as_its_declaration(app: Celery, broker: Broker) -> None:
    bulk = app.amqp.queues["bulk"]
    app.tasks["load"].apply_async((1,), queue=bulk, priority="high")
    app.tasks["load"].apply_async((1,), queue=bulk)
    assert lengths(broker) == {"bulk": 2}


# -- each item of a bulk call


ROWS = [(n, ("high", "low", None, "tiny")[n % 4]) for n in range(40)]


@pytest.mark.parametrize("watched", [False, True])
def test_each_item_goes_at_its_own_level(app: Celery, broker: Broker, watched: bool) -> None:
    def look(**_: Any) -> None: ...

    if watched:
        signals.before_task_publish.connect(look)
    rows = [row for row in ROWS if row[1] != "tiny"]
    receipts = app.tasks["load"].delay_many(rows, priority=lambda row: row[1])
    assert receipts.refused == 0
    assert lengths(broker) == {"fast": 10, "bulk": 10, "ingest": 10}
    by_level = {level: [i for i, row in enumerate(rows) if row[1] == level] for _, level in rows}
    for level, queue in (("high", "fast"), ("low", "bulk"), (None, "ingest")):
        sent = headers(broker, queue)
        assert [message["id"] for message in sent] == [receipts.ids[i] for i in by_level[level]]
        assert {message.get(LEVEL) for message in sent} == {level}


def test_a_mixed_call_is_one_round_trip_for_each_level_of_a_chunk(
    app: Celery, broker: Broker
) -> None:
    def level(n: int) -> str | None:
        return ("high", "low", None)[n % 3]

    app.tasks["load"].delay_many(range(3), priority=level)  # declares what is not declared yet
    before = broker.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert app.tasks["load"].delay_many(range(1500), priority=level).accepted == 1500
    assert broker.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before == 9


def test_items_of_one_level_keep_their_order(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].delay_many(range(1200), priority=lambda n: ("high", None)[n % 2])
    for queue, first in (("fast", 0), ("ingest", 1)):
        assert [m["id"] for m in headers(broker, queue)] == receipts.ids[first::2]


def test_a_full_queue_refuses_the_items_of_its_level_alone(app: Celery, broker: Broker) -> None:
    receipts = app.tasks["load"].delay_many(ROWS, priority=lambda row: row[1])
    refused = [i for i, receipt in enumerate(receipts) if not receipt.accepted]
    assert refused == [i for i, row in enumerate(ROWS) if row[1] == "tiny"][2:]
    assert {receipts[i].reason for i in refused} == {"full"}
    assert lengths(broker) == {"fast": 10, "bulk": 10, "ingest": 10, "small": 2}


@pytest.mark.parametrize("eager", [False, True])
def test_an_items_own_mistake_refuses_that_item(app: Celery, broker: Broker, eager: bool) -> None:
    app.conf.task_always_eager = eager

    def level(n: int) -> Any:
        if n == 3:
            raise KeyError("urgent")
        return {1: "hgih", 2: ["high"]}.get(n, "high")

    receipts = app.tasks["load"].delay_many(range(5), priority=level)
    assert [receipt.accepted for receipt in receipts] == [True, False, False, False, True]
    assert {receipts[i].reason for i in (1, 2, 3)} == {"invalid"}
    assert "item 1: task 'load': no queue for level 'hgih'" in str(receipts[1].error)
    assert "did you mean 'high'" in str(receipts[1].error)
    assert "priority of an item must be the name of a level" in str(receipts[2].error)
    assert receipts[3].error == "item 3: KeyError: 'urgent'"
    assert lengths(broker) == ({} if eager else {"fast": 2})


def test_low_priority_and_numbers_may_be_functions_too(app: Celery, broker: Broker) -> None:
    load = app.tasks["load"]
    load.apply_many([((n,), {}) for n in range(4)], low_priority=lambda pair: pair[0][0] % 2)
    load.delay_many([9], priority=lambda n: n)
    enqueue_many(app, "load", [(1,), (2,)], priority=lambda args: "high" if args[0] == 1 else None)
    assert lengths(broker) == {"bulk": 2, "ingest": 4, "fast": 1}
    assert broker.payloads("ingest", step=9)


def test_no_level_of_an_item_leaves_it_to_the_task(app: Celery, broker: Broker) -> None:
    app.tasks["load"].priority = "low"
    app.tasks["load"]._exec_options = None
    app.tasks["load"].delay_many([1, 2], priority=lambda n: "high" if n == 1 else None)
    assert lengths(broker) == {"fast": 1, "bulk": 1}


def test_items_of_a_mixed_call_are_delayed_at_their_levels(app: Celery, broker: Broker) -> None:
    app.tasks["load"].delay_many(
        [1, 2], priority=lambda n: "high" if n == 1 else None, countdown=60
    )
    assert (len(broker.delayed("fast")), len(broker.delayed("ingest"))) == (1, 1)


def test_other_brokers_take_a_mixed_call_as_well(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    receipts = enqueue_many(
        app, "load", [(1,), (2,), (3,)], priority=lambda args: ("high", "hgih", None)[args[0] - 1]
    )
    assert [receipt.accepted for receipt in receipts] == [True, False, True]


# -- a policy


def cautious(task: str, level: str, options: Mapping[str, Any]) -> str | None:
    """Let only the tenant "gold" use level "high"."""
    tenant = (options.get("headers") or {}).get("tenant")
    return "low" if level == "high" and tenant != "gold" else None


@pytest.fixture
def guarded(app: Celery) -> Celery:
    install(app, TABLE, level_policy=cautious)
    return app


def test_every_way_to_send_asks_the_policy(guarded: Celery, broker: Broker) -> None:
    load = guarded.tasks["load"]
    load.apply_async((1,), priority="high")
    guarded.send_task("load", (1,), priority="high")
    load.si(1).set(priority="high").delay()
    group([load.si(1).set(priority="high"), load.si(2).set(priority="high")], app=guarded).delay()
    chain(load.si(1).set(priority="high"), load.si(2)).delay()
    entry = ScheduleEntry(
        name="e", task="load", args=(1,), options={"priority": "high"}, schedule=10, app=guarded
    )
    Scheduler(app=guarded, lazy=True).apply_async(entry, advance=False)
    load.delay_many([1, 2], priority="high")
    load.delay_many([1, 2], priority=lambda n: "high")
    enqueue_many(guarded, "load", [(1,)], priority="high")
    assert lengths(broker) == {"bulk": 12}
    assert {(m[LEVEL], m[ASKED]) for m in headers(broker, "bulk")} == {("low", "high")}


def test_whom_the_policy_trusts_gets_the_level(guarded: Celery, broker: Broker) -> None:
    guarded.tasks["load"].apply_async((1,), priority="high", headers={"tenant": "gold"})
    (message,) = headers(broker, "fast")
    assert message[LEVEL] == "high"
    assert ASKED not in message


def test_a_call_that_names_no_level_is_not_asked_about(app: Celery, broker: Broker) -> None:
    asked: list[str] = []
    install(app, TABLE, level_policy=lambda task, level, options: asked.append(level))
    app.tasks["load"].delay(1)
    app.tasks["load"].apply_async((1,), queue="fast")
    app.tasks["load"].apply_async((1,), priority=3)
    app.tasks["load"].apply_async((1,), priority="low")
    assert asked == ["low"]


def test_a_downgrade_is_logged_with_the_number(
    guarded: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bursts = Bursts(interval_seconds=60)
    monkeypatch.setattr(levels, "_DOWNGRADES", bursts)
    load = guarded.tasks["load"]
    load.apply_async((1,), priority="high")
    load.apply_async((1,), priority="high")
    load.delay_many(range(600), priority="high")
    bursts.flush()
    lines = [vars(r) for r in caplog.records if vars(r).get("event") == "level_downgraded"]
    assert [(line["task"], line["asked"], line["level"]) for line in lines] == [
        ("load", "high", "low")
    ] * 2
    assert [line["count"] for line in lines] == [1, 601]
    assert lines[0]["levelno"] == logging.WARNING


def test_a_policy_that_raises_is_named_and_nothing_is_published(
    app: Celery, broker: Broker
) -> None:
    def broken(task: str, level: str, options: Any) -> str | None:
        raise KeyError("tenant")

    install(app, TABLE, level_policy=broken)
    with pytest.raises(LevelPolicyFailed, match=r"broken raised KeyError\('tenant'\)") as caught:
        app.tasks["load"].apply_async((1,), priority="high")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(LevelPolicyFailed):
        app.tasks["load"].delay_many([1], priority="high")
    receipts = app.tasks["load"].delay_many([1, 2], priority=lambda n: "high" if n == 1 else None)
    assert [receipt.accepted for receipt in receipts] == [False, True]
    assert lengths(broker) == {"ingest": 1}


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ("lwo", UnknownLevel, "returned 'lwo' for 'high': .* did you mean 'low'"),
        (3, LevelPolicyFailed, "returned 3 for 'high': expected the name of a level"),
        (True, LevelPolicyFailed, "returned True"),
    ],
)
def test_a_policy_that_answers_with_no_level_is_named(
    app: Celery, answer: Any, error: type[Exception], text: str
) -> None:
    install(app, TABLE, level_policy=lambda task, level, options: answer)
    with pytest.raises(error, match=text):
        app.tasks["load"].apply_async((1,), priority="high")


def test_a_policy_may_refuse_a_call(app: Celery) -> None:
    def strict(task: str, level: str, options: Any) -> str | None:
        raise UnknownLevel("the free plan has no level 'high'")

    install(app, TABLE, level_policy=strict)
    with pytest.raises(UnknownLevel, match="the free plan"):
        app.tasks["load"].apply_async((1,), priority="high")


def test_a_policy_cannot_change_the_options(app: Celery, broker: Broker) -> None:
    def meddling(task: str, level: str, options: Any) -> str | None:
        options["queue"] = "default"
        return None

    install(app, TABLE, level_policy=meddling)
    with pytest.raises(LevelPolicyFailed, match="TypeError"):
        app.tasks["load"].apply_async((1,), priority="high")


def test_a_policy_may_be_named_and_survives_pickling(app: Celery) -> None:
    install(app, TABLE, level_policy=f"{__name__}:cautious")
    assert app.amqp.router.route({"priority": "high"}, "load")["queue"].name == "bulk"
    install(app, TABLE, level_policy=cautious)
    reduced = copyreg.dispatch_table[type(app.amqp_cls)](app.amqp_cls)  # type: ignore[arg-type]
    make, parts = reduced[0], pickle.loads(pickle.dumps(reduced[1]))
    assert parts[3] is cautious
    assert make is not None


@pytest.mark.parametrize(
    ("policy", "cause"),
    [
        ("no.such.policy:x", "ModuleNotFoundError"),
        (f"{__name__}:nothing", "AttributeError"),
        ("nowhere", "which cannot be imported"),
        (f"{__name__}:TABLE", "got {'queues'"),
        ("os:sep", "got '/'"),
    ],
)
def test_a_policy_that_cannot_be_imported_is_named(
    app: Celery, broker: Broker, policy: str, cause: str
) -> None:
    install(app, TABLE, level_policy=policy)
    expected = f"level_policy={policy!r}: expected the 'module:function' of a function.*{cause}"
    for _ in range(2):
        with pytest.raises(LevelPolicyFailed, match=expected):
            app.tasks["load"].apply_async((1,), priority="high")
    assert lengths(broker) == {}


def test_installing_another_policy_takes_the_place_of_the_first(app: Celery) -> None:
    install(app, TABLE, level_policy=cautious)
    kind = app.amqp_cls
    install(app, TABLE, level_policy=cautious)
    assert app.amqp_cls is kind
    install(app, TABLE)
    assert app.amqp.router.route({"priority": "high"}, "load")["queue"].name == "fast"
    with pytest.raises(TypeError, match="level_policy must be a function"):
        install(app, TABLE, level_policy=7)  # type: ignore[arg-type]


def test_the_queues_of_a_task_are_found_without_asking_the_policy(app: Celery) -> None:
    def never(task: str, level: str, options: Any) -> str | None:
        raise AssertionError("nobody called")

    install(app, TABLE, level_policy=never)
    found = app.amqp.router.reachable_queues(app.tasks["load"])
    assert set(found) == {"ingest", "bulk", "fast", "small"}


@pytest.mark.parametrize("level", ["critical", "hgih"])
def test_a_group_with_a_level_that_nobody_serves_is_not_begun(
    app: Celery, broker: Broker, level: str
) -> None:
    load = app.tasks["load"]
    bad = load.si(2).set(priority=level)
    calls = [
        lambda: group([load.si(1), bad], app=app).delay(),
        lambda: chord([load.si(1), bad], app=app)(load.si(3)),
        lambda: chord([load.si(1)], app=app)(bad),
        lambda: chain(load.si(1), bad).delay(),
        lambda: chain(load.si(1), group([load.si(1), bad], app=app)).delay(),
        lambda: load.apply_async((1,), link=bad),
        lambda: load.apply_async((1,), link_error=chain(load.si(1), bad)),
        lambda: load.delay_many([1], link=bad),
    ]
    for call in calls:
        with pytest.raises(UnknownLevel, match=f"no queue for level '{level}'"):
            call()
    assert lengths(broker) == {}


def test_a_group_is_not_begun_for_a_level_that_one_member_does_not_have(
    app: Celery, broker: Broker
) -> None:
    members = [app.tasks["load"].si(1), app.tasks["mail"].si(2)]
    with pytest.raises(UnknownLevel, match="task 'mail': no queue for level 'high'"):
        group(members, app=app).apply_async(priority="high")
    assert lengths(broker) == {}
    group(members, app=app).apply_async(priority="low")
    assert lengths(broker) == {"bulk": 2}


@pytest.mark.parametrize("where", ["chain", "body", "link", "errback", "group"])
def test_a_step_to_a_queue_that_does_not_exist_is_refused_before_the_first(
    app: Celery, broker: Broker, where: str
) -> None:
    load = app.tasks["load"]
    bad = load.si(2).set(queue="ingset")
    calls = {
        "chain": lambda: chain(load.si(1), load.si(3), bad).delay(),
        "body": lambda: chord([load.si(1)], app=app)(bad),
        "link": lambda: load.apply_async((1,), link=bad),
        "errback": lambda: load.apply_async((1,), link_error=bad),
        "group": lambda: chain(load.si(1), group([load.si(1), bad], app=app)).delay(),
    }
    with pytest.raises(QueueNotFound, match="is not in the queue table, did you mean 'ingest'"):
        calls[where]()
    assert lengths(broker) == {}


def test_a_step_may_go_to_any_queue_that_celery_knows_or_of_another_app(
    app: Celery, broker: Broker
) -> None:
    load = app.tasks["load"]
    app.amqp.queues.add(Queue("own"))
    elsewhere = app.signature("elsewhere.task", immutable=True).set(queue="theirs")
    chain(load.si(1), load.si(2).set(queue="own")).delay()
    chain(load.si(1), elsewhere).delay()
    assert lengths(broker) == {"ingest": 2}


def test_a_level_of_a_step_whose_task_has_no_route_is_refused_before_the_first(
    app: Celery, broker: Broker
) -> None:
    @app.task(name="unrouted", shared=False)
    def unrouted() -> None: ...

    load = app.tasks["load"]
    with pytest.raises(UnknownLevel, match=r"task 'unrouted': no queue for level 'low', as the"):
        chain(load.si(1), unrouted.si().set(priority="low")).delay()
    chain(load.si(1), unrouted.si().set(priority="normal")).delay()
    chain(load.si(1), unrouted.si().set(priority="low", queue="bulk")).delay()
    chain(load.si(1), group([load.si(2)], app=app).set(priority="low")).delay()
    assert lengths(broker) == {"ingest": 3}


def test_a_level_of_a_task_that_only_workers_know_is_theirs_to_judge(
    app: Celery, broker: Broker
) -> None:
    elsewhere = app.signature("elsewhere.task", immutable=True)
    chain(app.tasks["load"].si(1), elsewhere.set(priority="critical")).delay()
    with pytest.raises(UnknownLevel, match="did you mean 'critical'"):
        chain(app.tasks["load"].si(1), elsewhere.set(priority="critcal")).delay()
    assert lengths(broker) == {"ingest": 1}


# -- what a task that calls others hands down


@pytest.fixture
def parent(app: Celery) -> Iterator[Any]:
    """A task at level "high" that runs."""
    task = app.tasks["mail"]
    task.push_request(
        id="parent",
        called_directly=False,
        headers={LEVEL: "high"},
        delivery_info={"exchange": "", "routing_key": "fast", "priority": 0},
    )
    from celery._state import _task_stack

    _task_stack.push(task)
    yield task
    _task_stack.pop()
    task.pop_request()


def test_calls_of_a_task_do_not_inherit_its_level(app: Celery, broker: Broker, parent: Any) -> None:
    app.tasks["load"].delay(1)
    assert lengths(broker) == {"ingest": 1}


def test_where_they_inherit_priorities_they_inherit_the_level(
    app: Celery, broker: Broker, parent: Any
) -> None:
    app.conf.task_inherit_parent_priority = True
    load, mail = app.tasks["load"], app.tasks["mail"]
    load.delay(1)
    load.apply_async((1,), priority="low")
    load.apply_async((1,), queue="small")
    load.delay_many([1])
    mail.delay(1)
    assert lengths(broker) == {"fast": 2, "bulk": 1, "small": 1, "default": 1}
    (served,) = headers(broker, "default")
    assert served[LEVEL] == "high"  # its own calls inherit it in turn


# -- eager mode


@pytest.fixture
def eager(app: Celery) -> Celery:
    app.conf.task_always_eager = True
    return app


def test_what_decides_the_queue_is_checked_in_eager_mode(eager: Celery) -> None:
    load = eager.tasks["load"]
    calls = [
        lambda **o: load.apply_async((1,), **o),
        lambda **o: load.apply((1,), **o),
        lambda **o: load.delay_many([1], **o),
        lambda **o: load.delay_many([], **o),
        lambda **o: load.apply_many([((1,), {})], **o),
        lambda **o: load.si(1).set(**o).delay(),
        lambda **o: group([load.si(1).set(**o)], app=eager).delay(),
        lambda **o: chain(load.si(1), load.si(2).set(**o)).delay(),
        lambda **o: chord([load.si(1).set(**o)], app=eager)(load.si(2)),
        lambda **o: chord([load.si(1)], app=eager)(load.si(2).set(**o)),
    ]
    for call in calls:
        with pytest.raises(UnknownLevel, match="did you mean 'high'"):
            call(priority="hgih")
        with pytest.raises(UnknownLevel, match="no queue for level 'critical'"):
            call(priority="critical")
        with pytest.raises(QueueNotFound, match="did you mean 'ingest'"):
            call(queue="inngest")


def test_an_eager_task_sees_the_queue_and_the_level(eager: Celery) -> None:
    seen = eager.tasks["seen"]
    assert seen.delay().get() == ("ingest", None, None)
    assert seen.apply_async(priority="high").get() == ("fast", "high", None)
    assert seen.apply(priority=3).get() == ("ingest", None, 3)
    assert seen.apply_async(queue="small").get() == ("small", None, None)


def test_a_batch_task_is_checked_in_eager_mode(eager: Celery) -> None:
    @eager.task(base=BatchTask, name="seen.rows", shared=False)
    def rows(batch: Batch[Any]) -> Any:
        return [(item.headers or {}).get(LEVEL) for item in batch]

    assert rows.apply_async((1,), priority="high").get() == "high"
    with pytest.raises(UnknownLevel, match="did you mean 'high'"):
        rows.delay_many([1], priority="hgih")


def test_a_task_class_with_an_apply_of_its_own_is_checked_once(make_app: AppFactory) -> None:
    class Own(Task):
        def apply(self, *args: Any, **options: Any) -> Any:
            return super().apply(*args, **options)

    asked: list[str] = []
    app = make_app(task_always_eager=True)
    install(app, TABLE, level_policy=lambda task, level, options: asked.append(level))

    @app.task(base=Own, name="load", shared=False, bind=True)
    def load(self: Any) -> Any:
        return self.request.delivery_info["routing_key"], self.request.headers[LEVEL]

    assert load.apply_async(priority="high").get() == ("fast", "high")
    assert asked == ["high"]


@pytest.mark.parametrize("always_eager", [False, True])
def test_maps_and_chunks_go_where_their_task_goes(
    app: Celery, broker: Broker, always_eager: bool
) -> None:
    app.conf.task_always_eager = always_eager
    load = app.tasks["load"]
    load.map([1, 2]).apply_async(priority="high")
    load.chunks([(1,), (2,)], 1).apply_async(priority="high")
    with pytest.raises(UnknownLevel, match="did you mean 'high'"):
        load.map([1, 2]).apply_async(priority="hgih")
    assert lengths(broker) == ({} if always_eager else {"fast": 3})


def test_an_eager_retry_keeps_its_level(eager: Celery) -> None:
    @eager.task(name="seen.again", shared=False, bind=True, max_retries=2)
    def again(self: Any) -> Any:
        if not self.request.retries:
            raise self.retry(countdown=0)
        return self.request.delivery_info["routing_key"], self.request.headers[LEVEL]

    assert again.apply_async(priority="high").get() == ("fast", "high")


# -- a retry


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({}, "fast"),
        ({"priority": "low"}, "bulk"),
        ({"low_priority": True}, "bulk"),
        ({"queue": "default"}, "default"),
        ({"queue": "default", "priority": "low"}, "default"),
    ],
)
def test_a_retry_goes_where_it_came_from_unless_it_names_a_level(
    app: Celery, broker: Broker, options: dict[str, Any], queue: str
) -> None:
    load = app.tasks["load"]
    info = {"exchange": "", "routing_key": "fast", "priority": 0}
    load.push_request(
        id="1", args=(1,), kwargs={}, called_directly=False, delivery_info=info,
        headers={LEVEL: "high"},
    )  # fmt: skip
    try:
        with pytest.raises(Retry):
            load.retry(countdown=0, **options)
        with pytest.raises(UnknownLevel, match="did you mean 'low'"):
            load.retry(priority="lwo")
        with pytest.raises(TypeError, match="did you mean 'priority'"):
            load.retry(priorty="low")
    finally:
        load.pop_request()
    assert lengths(broker) == {queue: 1}
    (message,) = headers(broker, queue)
    assert message[LEVEL] == ("low" if queue == "bulk" else "high")


@given(
    level=st.sampled_from(["low", "normal", "high"]),
    answer=st.sampled_from([None, "low", "normal", "high"]),
)
def test_a_policys_answer_decides_and_what_was_asked_is_kept(
    level: str, answer: str | None
) -> None:
    route = Topology.load(TABLE).routes["load"]
    decision = decide_queue("load", {"priority": level}, route=route, policy=lambda *_: answer)
    assert decision.queue == route.queue_for(answer or level)
    assert decision.options["headers"].get(ASKED) == (
        level if answer not in (None, level) else None
    )
