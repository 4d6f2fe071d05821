from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import QueueNotFound, Retry
from hypothesis import given
from hypothesis import strategies as st

from routing import Topology, UnknownLevel, install
from routing.publish.decision import decide_queue
from tests.support.apps import AppFactory

TABLE: dict[str, Any] = {
    "queues": {"default": {}, "ingest": {}, "bulk": {}, "fast": {}},
    "routes": {"load": {"queue": "ingest", "low": "bulk", "high": "fast"}},
}
TOPOLOGY = Topology.load(TABLE)
ROUTE = TOPOLOGY.routes["load"]


def queue_of(options: dict[str, Any], **defaults: Any) -> str | None:
    return decide_queue("load", options, route=ROUTE, defaults=defaults).queue


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({}, "ingest"),
        ({"priority": None}, "ingest"),
        ({"priority": "normal"}, "ingest"),
        ({"priority": "low"}, "bulk"),
        ({"low_priority": True}, "bulk"),
        ({"low_priority": False}, "ingest"),
        ({"low_priority": True, "priority": "low"}, "bulk"),
        ({"low_priority": True, "priority": 3}, "bulk"),
        ({"priority": "high"}, "fast"),
        ({"priority": 3}, "ingest"),
        ({"queue": "default"}, None),
        ({"queue": "default", "priority": "low"}, None),
        ({"exchange": "x", "routing_key": "y"}, None),
    ],
)
def test_a_call_goes_to_the_queue_of_its_level(options: dict[str, Any], queue: str | None) -> None:
    assert queue_of(options) == queue


def test_two_levels_at_once_are_refused() -> None:
    with pytest.raises(UnknownLevel, match="low_priority=True and priority='high'"):
        queue_of({"low_priority": True, "priority": "high"})


def test_a_calls_level_wins_over_what_the_task_has_as_default() -> None:
    assert queue_of({"low_priority": True, "priority": "high"}, priority="high") == "bulk"
    assert queue_of({"queue": "default", "priority": "low"}, queue="default") == "bulk"
    assert queue_of({"queue": "default"}, queue="default") is None


def test_a_level_without_a_queue_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownLevel, match=r"task 'load': no queue for level 'critical'.*'low'"):
        queue_of({"priority": "critical"})


def test_a_level_of_a_task_without_a_route_is_refused_with_the_line_to_add() -> None:
    with pytest.raises(UnknownLevel, match=r'"other" = \{ queue = "...", low = "..." \}'):
        decide_queue("other", {"low_priority": True}, route=None)


@given(
    st.dictionaries(
        st.sampled_from(["priority", "low_priority", "queue", "countdown", "exchange"]),
        st.sampled_from([None, 0, 9, True, False, "low", "high", "normal", "fast"]),
    )
)
def test_options_are_never_changed_and_levels_never_reach_the_message(
    options: dict[str, Any],
) -> None:
    before = dict(options)
    try:
        decision = decide_queue("load", options, route=ROUTE)
    except UnknownLevel:
        return
    finally:
        assert options == before
    assert "low_priority" not in decision.options
    assert not isinstance(decision.options.get("priority"), str)
    kept = decision.options.keys()
    assert options.keys() - kept <= {"priority", "low_priority", "queue"}


# -- through Celery ------------------------------------------------------------------------------


@pytest.fixture
def app(make_app: AppFactory) -> Celery:
    app = make_app()

    @app.task(name="load", shared=False)
    def load(*args: Any) -> None: ...

    @app.task(name="other", shared=False)
    def other(*args: Any) -> None: ...

    install(app, TABLE)
    return app


def sent(app: Celery) -> dict[str, list[str]]:
    """Return the tasks that wait in each queue of the memory broker, and take them out."""
    found: dict[str, list[str]] = {}
    with app.connection_for_read() as connection:
        channel = connection.channel()
        for queue in TABLE["queues"]:
            while True:
                bound = app.amqp.queues[queue](channel)
                bound.declare()
                message = bound.get(no_ack=True)
                if message is None:
                    break
                assert not isinstance(message.properties.get("priority"), str)
                assert "low_priority" not in message.properties
                found.setdefault(queue, []).append(message.headers["task"])
    return found


@pytest.fixture(autouse=True)
def _empty(app: Celery) -> None:
    sent(app)


def test_delay_and_apply_async_and_send_task_agree(app: Celery) -> None:
    load = app.tasks["load"]
    load.delay(1)
    load.apply_async((1,), priority="low")
    load.apply_async((1,), low_priority=True)
    app.send_task("load", (1,), priority="low")
    app.send_task("load", (1,), low_priority=True)
    app.send_task("unknown.task")
    assert sent(app) == {"ingest": ["load"], "bulk": ["load"] * 4, "default": ["unknown.task"]}


def test_signatures_in_canvas_carry_their_level(app: Celery) -> None:
    load = app.tasks["load"]
    group([load.si(1).set(priority="low"), load.si(2)], app=app).apply_async()
    group([load.si(1)], app=app).apply_async(low_priority=True)
    chain(load.si(1).set(low_priority=True), load.si(2)).apply_async()
    load.signature((1,), options={"priority": "high"}).delay()
    load.apply_async((1,), link=load.si(2).set(priority="low"))
    assert sent(app) == {"ingest": ["load"] * 2, "bulk": ["load"] * 3, "fast": ["load"]}


def test_members_of_a_chord_carry_their_level(app: Celery) -> None:
    app.conf.result_backend = "cache+memory://"
    load = app.tasks["load"]
    chord([load.si(n).set(priority="low") for n in range(2)], app=app)(load.si(3))
    assert sent(app)["bulk"] == ["load", "load"]


def test_a_beat_entrys_options_carry_a_level(app: Celery) -> None:
    entry = ScheduleEntry(
        name="e", task="load", args=(1,), options={"priority": "low"}, schedule=10, app=app
    )
    Scheduler(app=app, lazy=True).apply_async(entry, advance=False)
    assert sent(app) == {"bulk": ["load"]}


def test_a_tasks_own_level_is_its_default(app: Celery) -> None:
    app.tasks["load"].priority = "low"
    app.tasks["load"]._exec_options = None
    app.tasks["load"].delay()
    app.tasks["load"].apply_async(priority="high")
    assert sent(app) == {"bulk": ["load"], "fast": ["load"]}


def test_nothing_is_published_for_a_level_that_is_not_served(app: Celery) -> None:
    with pytest.raises(UnknownLevel):
        app.tasks["load"].apply_async(priority="critical")
    with pytest.raises(UnknownLevel):
        app.tasks["other"].apply_async(low_priority=True)
    assert sent(app) == {}


def test_a_retry_keeps_the_queue_that_its_task_came_from(app: Celery) -> None:
    load = app.tasks["load"]
    load.push_request(
        id="1",
        args=(1,),
        kwargs={},
        called_directly=False,
        delivery_info={"exchange": "", "routing_key": "bulk", "priority": 0},
    )
    try:
        with pytest.raises(Retry):
            load.retry(countdown=0)
    finally:
        load.pop_request()
    assert sent(app) == {"bulk": ["load"]}


def test_an_apps_own_task_routes_serve_what_the_table_does_not(make_app: AppFactory) -> None:
    app = make_app(task_routes={"other": "fast", "load": "default"})
    install(app, TABLE)
    assert app.amqp.router.route({}, "other")["queue"].name == "fast"
    assert app.amqp.router.route({}, "load")["queue"].name == "ingest"
    assert app.amqp.router.route({}, "third")["queue"].name == "default"


def test_a_queue_that_nobody_declared_is_an_error_with_a_hint(app: Celery) -> None:
    with pytest.raises(QueueNotFound, match=r"queue 'inngest'") as caught:
        app.tasks["load"].apply_async(queue="inngest")
    text = "queue 'inngest' is not in the queue table, did you mean 'ingest'?"
    assert str(caught.value) == text
    assert type(pickle.loads(pickle.dumps(caught.value)).args[0]) is str


def test_routing_changes_no_dictionary_of_the_caller(app: Celery) -> None:
    options = {"priority": "low", "queue": "default", "low_priority": True}
    before = dict(options)
    app.amqp.router.route(options, "load")
    assert options == before
