"""Where batch tasks go, and the prefetch that a worker gives their queues."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, _state, shared_task
from kombu import Exchange, Queue, binding

from batching import Batch, BatchTask
from routing import install
from routing.topology.checks import batches_by_queue
from routing.worker.control import queue_credits, queue_prefetch
from routing.worker.startup import CheckTable, StartRefused
from tests.support.apps import AppFactory

# Celery says so of a task's own queue and exchange, and will take them until 6.0.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")


def load(batch: Batch[Any]) -> None: ...


def add(app: Celery, name: str = "load", **options: Any) -> Any:
    """Register a batch task."""
    return app.task(load, name=name, base=options.pop("base", BatchTask), shared=False, **options)


def start(app: Celery, slots: int = 2) -> None:
    """Do what a worker does before it fetches."""
    pool = SimpleNamespace(limit=slots)
    worker = SimpleNamespace(app=app, max_concurrency=None, concurrency=slots, pool=pool)
    CheckTable(worker).create(worker)


# -- where they go ---------------------------------------------------------------------------------

QUEUES: dict[str, Any] = {"main": {}, "bulk": {}, "fast": {}}
LEVELS = {"queue": "bulk", "high": "fast"}


def queues(
    make_app: AppFactory, *, routes: Any = None, settings: Any = None, **options: Any
) -> Any:
    """Return the queues of a batch task with these options."""
    app = make_app(**(settings or {}))
    install(app, {"queues": QUEUES, "routes": routes or {}})
    add(app, **options)
    return {queue for queue, tasks in batches_by_queue(app).items() if "load" in tasks}


def test_without_a_route_they_go_to_the_default_queue(make_app: AppFactory) -> None:
    assert queues(make_app) == {"main"}


def test_a_route_leads_to_the_queue_of_each_level(make_app: AppFactory) -> None:
    assert queues(make_app, routes={"load": LEVELS}) == {"bulk", "fast"}
    assert queues(make_app, routes={"lo*": "bulk"}) == {"bulk"}


def test_a_queue_of_the_tasks_own_takes_the_place_of_the_default_one(make_app: AppFactory) -> None:
    assert queues(make_app, queue="bulk") == {"bulk"}


def test_a_queue_of_the_tasks_own_is_left_for_a_level_that_a_call_names(
    make_app: AppFactory,
) -> None:
    assert queues(make_app, queue="main", routes={"load": LEVELS}) == {"main", "bulk", "fast"}


def test_a_level_of_the_tasks_own_does_not_take_the_others_away(make_app: AppFactory) -> None:
    assert queues(make_app, priority="high", routes={"load": LEVELS}) == {"bulk", "fast"}


def test_a_priority_of_the_brokers_own_is_no_level(make_app: AppFactory) -> None:
    assert queues(make_app, priority=3) == {"main"}


def test_a_queue_may_be_named_on_the_class(make_app: AppFactory) -> None:
    class Loads(BatchTask):
        abstract = True
        queue = "bulk"

    assert queues(make_app, base=Loads) == {"bulk"}


def test_a_queue_may_be_named_by_an_annotation(make_app: AppFactory) -> None:
    settings = {"task_annotations": {"load": {"queue": "bulk"}}}
    assert queues(make_app, settings=settings) == {"bulk"}


@pytest.mark.parametrize(
    "entry",
    [
        {"load": "bulk"},
        {"load": {"queue": "bulk"}},
        {"lo*": {"queue": "bulk"}},
        {"load": {"exchange": "bulk", "routing_key": "bulk"}},
        [lambda name, args, kwargs, options, task=None, **_: {"queue": "bulk"}],
    ],
    ids=["name", "queue", "glob", "exchange", "function"],
)
def test_celerys_own_routes_are_asked_where_the_table_has_none(
    make_app: AppFactory, entry: Any
) -> None:
    settings = {"task_routes": entry}
    assert queues(make_app, settings=settings) == {"bulk"}
    assert queues(make_app, settings=settings, routes={"load": "fast"}) == {"fast"}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"exchange": "bulk", "routing_key": "bulk"}, {"bulk"}),
        ({"exchange": Exchange("bulk"), "routing_key": "bulk"}, {"bulk"}),
        ({"exchange": "topics", "routing_key": "news.today"}, {"news", "all"}),
        ({"exchange": "topics", "routing_key": "sports"}, {"all"}),
        ({"exchange": "bound", "routing_key": "two"}, {"news"}),
        ({"exchange": "nobody's", "routing_key": "x"}, set()),
    ],
    ids=["name", "object", "two by a topic", "one by a topic", "more bindings", "nobody"],
)
def test_an_exchange_leads_to_the_queues_that_are_bound_to_it(
    make_app: AppFactory, options: dict[str, Any], found: set[str]
) -> None:
    topics = Exchange("topics", type="topic")
    bound = [binding(topics, routing_key="news.#"), binding(Exchange("bound"), routing_key="two")]
    own = [Queue("all", topics, routing_key="#"), Queue("news", bindings=bound)]
    assert queues(make_app, settings={"task_queues": own}, **options) == found


def test_a_shared_task_is_asked_for_as_any_other(
    make_app: AppFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    shared_task(load, name="shared.load", base=BatchTask, queue="bulk")
    app = make_app()
    install(app, {"queues": QUEUES})
    assert "shared.load" in batches_by_queue(app)["bulk"]
    assert "shared.load" not in batches_by_queue(app).get("main", {})


def test_what_cannot_be_routed_goes_nowhere(make_app: AppFactory) -> None:
    def needs_arguments(name: str, args: Any, *_: Any, **__: Any) -> Any:
        return {"queue": args[0]}

    assert queues(make_app, queue="nope") == set()
    assert queues(make_app, settings={"task_routes": [needs_arguments]}) == set()


# -- what they need --------------------------------------------------------------------------------


def test_defaults_fit_defaults(make_app: AppFactory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = make_app("redis://localhost")
    install(app, {"queues": {"main": {}, "other": {}}})
    add(app)
    start(app, slots=2)
    assert "prefetch by queue: main 300, other 32" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert queue_credits(SimpleNamespace(app=app))["main"]["prefetch"] == 300


def test_the_largest_batch_of_a_queue_counts(make_app: AppFactory) -> None:
    app = make_app()
    install(app, {"queues": {"main": {}, "narrow": {"limit": 1}, "few": {}}})
    add(app, "small", max_size=50)
    add(app, "large", max_size=200)
    add(app, "narrow", queue="narrow")
    add(app, "few", queue="few", max_size=3)
    start(app, slots=4)
    shown = queue_credits(SimpleNamespace(app=app))
    assert {name: queue["prefetch"] for name, queue in shown.items()} == {
        "main": 1000,
        "narrow": 200,  # it may use one slot
        "few": 32,
    }


def test_a_smaller_prefetch_of_the_table_is_kept_and_warned_of(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app("redis://localhost")
    install(app, {"queues": {"main": {"prefetch": 299}, "enough": {"prefetch": 300}}})
    add(app)
    add(app, "other", queue="enough")
    start(app, slots=2)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("queue 'main': prefetch is 299, and batches need 300 to be full")


def test_a_prefetch_below_one_batch_is_refused(make_app: AppFactory) -> None:
    app = make_app()
    install(app, {"queues": {"main": {"prefetch": 99}}})
    add(app)
    with pytest.raises(StartRefused, match=r"main.*at least max_size \(100\).*'load', got 99"):
        start(app)


def test_a_task_that_never_goes_there_asks_nothing_of_a_queue(make_app: AppFactory) -> None:
    app = make_app()
    install(app, {"queues": {"main": {"prefetch": 4}, "bulk": {}}})
    add(app, queue="bulk")
    start(app)
    shown = queue_credits(SimpleNamespace(app=app))
    assert {name: queue["prefetch"] for name, queue in shown.items()} == {"main": 4, "bulk": 300}


def test_remote_control_refuses_less_than_a_batch_and_tells_what_is_little(
    make_app: AppFactory,
) -> None:
    app = make_app()
    install(app, {"queues": {"main": {}, "bulk": {}}})
    add(app, queue="bulk")
    start(app)
    state = SimpleNamespace(app=app)
    assert "max_size (100) of batch task 'load'" in queue_prefetch(state, "bulk", 99)["error"]
    assert "batches need 300" in queue_prefetch(state, "bulk", 100)["ok"]
    assert queue_prefetch(state, "bulk", 300) == {"ok": "prefetch of queue 'bulk' is now 300"}
    assert queue_prefetch(state, "main", 2) == {"ok": "prefetch of queue 'main' is now 2"}
    assert "may have 2 slots" in queue_prefetch(state, "main", 1)["ok"]
