"""Misspelt options are refused, and what is nobody's mistake passes."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from hypothesis import given
from hypothesis import strategies as st

from routing import UnknownOption, enqueue_many, install
from routing.publish.options import DECIDING, KNOWN, _distance, check_options
from routing.topology.model import LEVELS
from tests.support.apps import AppFactory
from tests.support.broker import Broker

MISSPELT = {
    "priorty": "'priority'",
    "Priority": "'priority'",
    "PRIORITY": "'priority'",
    "prioritty": "'priority'",
    "proirity": "'priority'",
    "prority": "'priority'",
    "low_priorty": "'low_priority'",
    "low_prority": "'low_priority'",
    "lowpriority": "'low_priority'",
    "lowPriority": "'low_priority'",
    "low-priority": "'low_priority'",
    "low_priority_": "'low_priority'",
    "high_priority": 'priority="high"',
    "critical_priority": 'priority="critical"',
    "quee": "'queue'",
    "qeue": "'queue'",
    "queie": "'queue'",
    "queu": "'queue'",
    "Queue": "'queue'",
    "exchnage": "'exchange'",
    "routingkey": "'routing_key'",
    "routing_kye": "'routing_key'",
    "count_down": "'countdown'",
    "countdwon": "'countdown'",
    "ETA": "'eta'",
    "expire": "'expires'",
    "exipres": "'expires'",
}


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_misspelt_option_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(UnknownOption, match=f"unknown option '{name}', did you mean {meant}"):
        check_options("load", {name: True}, levels=LEVELS)


@pytest.mark.parametrize(
    "name",
    [
        "shadow", "argsrepr", "kwargsrepr", "stamped_headers", "periodic_task_name", "link",
        "link_error", "group_id", "group_index", "tenant_id", "headers", "reply_to", "meta", "beta",
        "theta", "data", "tag", "retry", "retries", "retry_policy", "max_retries", "change",
        "expiration", "express", "county", "country", "count", "due", "request_id", "trace_id",
        "query", "quota", "quote", "queue_time", "user_priority_class", "slow_priority", "delay",
        "root_id", "parent_id", "time_limit", "ignore_result", "serializer", "compression",
        "mandatory", "immediate", "delivery_mode", "exchange_type", "declare", "connection",
        "producer", "router", "add_to_parent", "task_id", "route_name", "chord", "chain",
        "immutable", "correlation_id", "message_id", "timestamp", "user_id", "app_id", "stamp",
        "on_behalf_of", "level", "sequence", "x", "interval", "propagate",
    ],
)  # fmt: skip
def test_every_other_option_passes(name: str) -> None:
    check_options("load", {name: 1}, levels=LEVELS)


def test_a_stamp_may_have_any_name() -> None:
    check_options("load", {"stamped_headers": ["queued"], "queued": 1}, levels=LEVELS)


@given(st.sampled_from(sorted(KNOWN)))
def test_what_celery_and_kombu_take_is_known(name: str) -> None:
    check_options("load", {name: True}, levels=LEVELS)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_typing_errors_are_counted_alike_both_ways(one: str, other: str) -> None:
    assert _distance(one, other) == _distance(other, one)
    assert (_distance(one, other) == 0) == (one == other)
    assert _distance(one, other) <= max(len(one), len(other))


@given(st.sampled_from([n for n in DECIDING if len(n) > 5]), st.data())
def test_two_neighbours_swapped_are_noticed(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(name) - 2))
    swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    if swapped not in KNOWN:
        with pytest.raises(UnknownOption):
            check_options("load", {swapped: 1}, levels=LEVELS)


# -- in every way to send


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)
    install(app, {"queues": {"main": {}, "bulk": {}}, "routes": {"load": "main"}})

    @app.task(name="load", shared=False)
    def load(*args: Any) -> None: ...

    return app


@pytest.mark.parametrize("eager", [False, True])
def test_no_way_to_send_takes_it(app: Celery, broker: Broker, eager: bool) -> None:
    app.conf.task_always_eager = eager
    load = app.tasks["load"]
    wrong: Any = {"low_priorty": True}
    calls = [
        lambda: load.apply_async((1,), **wrong),
        lambda: load.delay_many([1, 2], **wrong),
        lambda: load.apply_many([((1,), {})], **wrong),
        lambda: load.apply((1,), **wrong),
        lambda: load.si(1).set(**wrong).delay(),
        lambda: load.si(1).set(**wrong).apply(),
        lambda: load.signature((1,), options=wrong).delay(),
        lambda: load.si(1).apply_async(**wrong),
        lambda: chain(load.si(1).set(**wrong), load.si(2)).delay(),
        lambda: chain(load.si(1), load.si(2)).apply_async(**wrong),
        lambda: chain(load.si(1), load.si(2).set(**wrong)).delay(),
        lambda: chain(load.si(1), load.si(2), load.si(3).set(**wrong)).delay(),
        lambda: group([load.si(1).set(**wrong)], app=app).delay(),
        lambda: group([load.si(1), load.si(2)], app=app).apply_async(**wrong),
        lambda: chord([load.si(1).set(**wrong)], app=app)(load.si(2)),
        lambda: chord([load.si(1)], app=app)(load.si(2), **wrong),
        lambda: chord([load.si(1)], load.si(2), app=app).set(**wrong).delay(),
        lambda: group([load.si(1), load.si(2)], app=app).set(**wrong).delay(),
        lambda: chain(load.si(1), load.si(2)).set(**wrong).delay(),
    ]
    if not eager:
        calls += [
            lambda: app.send_task("load", (1,), **wrong),
            lambda: enqueue_many(app, "load", [(1,)], **wrong),
            lambda: load.apply_async((1,), link=load.si(2).set(**wrong)),
            lambda: load.apply_async((1,), link_error=load.si(2).set(**wrong)),
            lambda: chain(load.si(1), group([load.si(2).set(**wrong)], app=app)).delay(),
        ]
    for call in calls:
        with pytest.raises(UnknownOption, match="did you mean 'low_priority'"):
            call()
    assert broker.length("main") == 0


def test_an_entry_of_beat_is_refused_by_name(app: Celery) -> None:
    entry = ScheduleEntry(
        name="e", task="load", args=(1,), options={"priorty": "low"}, schedule=10, app=app
    )
    with pytest.raises(SchedulingError, match="did you mean 'priority'"):
        Scheduler(app=app, lazy=True).apply_async(entry, advance=False)


def test_options_of_an_apps_own_still_reach_the_message(app: Celery, broker: Broker) -> None:
    app.tasks["load"].apply_async((1,), tenant_id="a", shadow="s", meta=1)
    assert '"tenant_id": "a"' in broker.payloads("main")[0]
