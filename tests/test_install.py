from __future__ import annotations

import logging
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Task
from celery.worker.control import Panel
from celery.worker.request import Request as StockRequest
from flower.utils import broker as flower
from kombu import Connection, Queue
from kombu.utils.imports import symbol_by_name

from routing import BrokerUnreachable, EngineError, QueueFull, Topology, TopologyError, install
from routing.maintenance.runner import Upkeep
from routing.worker.control import queue_credits, queue_prefetch
from routing.worker.dispatcher import Dispatcher
from routing.worker.startup import (
    CheckServer,
    CheckTable,
    StartRefused,
    TellPrefetch,
    check_server,
)
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {"queues": {"main": {"prefetch": 4}, "bulk": {}}}
REDIS = "redis://:pw@localhost:6379/0"


def settings_log(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "routing.defaults")


def test_install_returns_the_table(make_app: AppFactory) -> None:
    assert install(make_app(), TABLE) == Topology.load(TABLE)


def test_safe_defaults_are_set_where_the_app_has_not_set_its_own(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.accept_content == ["json"]
    assert app.conf.broker_connection_retry_on_startup is True
    assert app.conf.task_create_missing_queues is False
    assert app.conf.task_default_queue == "main"


@pytest.mark.parametrize("when", ["before", "after", "object before", "object after"])
def test_what_the_app_sets_itself_wins_whenever_it_does(make_app: AppFactory, when: str) -> None:
    app = make_app()
    own = {"task_acks_late": False, "broker_transport_options": {"socket_timeout": 3}}
    if when == "before":
        app.conf.update(own)
    if when == "object before":
        app.config_from_object(own)
    install(app, TABLE)
    if when == "after":
        app.conf.update(own)
    if when == "object after":
        assert app.conf.task_acks_late is True
        app.config_from_object(own)
    assert app.conf.task_acks_late is False
    assert app.conf.task_reject_on_worker_lost is True
    assert app.connection().transport_options["socket_timeout"] == 3
    assert sorted(app.amqp.queues) == ["bulk", "main"]


def test_settings_with_a_namespace_are_seen(make_app: AppFactory) -> None:
    app = make_app()
    app.config_from_object(SimpleNamespace(SHOP_TASK_ACKS_LATE=False), namespace="SHOP")
    install(app, TABLE)
    assert app.conf.task_acks_late is False
    assert app.conf.task_reject_on_worker_lost is True


def test_what_is_left_alone_is_logged_once_with_the_reason(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app(task_acks_late=False, task_default_queue="celery")
    install(app, TABLE)
    install(app, {"queues": {"main": {}}})
    assert app.conf.task_acks_late is False
    text = settings_log(caplog)
    assert text.count("task_acks_late = False, as the app has set it") == 1
    assert text.count("task_default_queue = 'celery'") == 1


def test_pickle_is_left_to_an_app_that_wants_it_with_a_warning(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(accept_content=["json", "pickle"])
    install(app, TABLE)
    assert app.conf.accept_content == ["json", "pickle"]
    assert "accept_content lets pickle in" in settings_log(caplog)


def test_tasks_made_before_and_after_have_the_methods_and_the_request(
    make_app: AppFactory,
) -> None:
    app = make_app()

    @app.task(name="before", shared=False)
    def before() -> None: ...

    @app.task(name="bound", shared=False)
    def bound() -> None: ...

    assert bound.name == "bound"
    install(app, TABLE)

    @app.task(name="after", shared=False)
    def after() -> None: ...

    @app.task(name="foreign", shared=False, base=Task)
    def foreign() -> None: ...

    for task in (before, bound, after, foreign):
        assert task.Request == "routing.worker.request:Request"
        assert callable(task.delay_many)
        assert callable(task.apply_many)
    assert not hasattr(Task, "delay_many")
    assert Task.Request == "celery.worker.request:Request"
    assert issubclass(symbol_by_name(after.Request), StockRequest)


def test_a_request_of_the_apps_own_is_left_with_a_warning(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Task):
        abstract = True
        Request = StockRequest

    app = make_app()
    install(app, TABLE)

    @app.task(name="own", shared=False, base=Own)
    def own() -> None: ...

    assert own.Request is StockRequest
    assert "derive it from routing.worker.request:Request" in caplog.text


def test_an_apps_own_annotations_still_apply(make_app: AppFactory) -> None:
    app = make_app(task_annotations={"t": {"rate_limit": "3/s"}})
    install(app, TABLE)

    @app.task(name="t", shared=False)
    def t() -> None: ...

    assert t.rate_limit == "3/s"


def test_tasks_that_were_bound_with_early_acks_are_listed(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()

    @app.task(name="early", shared=False)
    def early() -> None: ...

    app.finalize()
    install(app, TABLE)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "routing.install"]
    assert "these tasks were made before install and acknowledge early" in line
    assert "loses them: early" in line
    assert "celery.chord" not in line


def test_an_unused_app_is_not_configured_by_install(make_app: AppFactory) -> None:
    app = Celery("lazy", set_as_current=False)
    app.config_from_object("no.such.module")
    install(app, TABLE)
    assert not app.configured


def test_a_queue_that_the_app_declared_keeps_its_declaration(make_app: AppFactory) -> None:
    app = make_app(task_queues=[Queue("main", routing_key="own"), Queue("extra")])
    install(app, TABLE)
    assert list(app.amqp.queues) == ["main", "extra", "bulk"]
    assert app.amqp.queues["main"].routing_key == "own"


def test_queues_are_declared_as_celery_would(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    stock = make_app(task_create_missing_queues=True)
    assert app.amqp.queues["bulk"] == stock.amqp.queues["bulk"]


def test_installing_the_same_table_again_changes_nothing(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    amqp, name = app.amqp, app.amqp_cls.runtime_name
    install(app, TABLE)
    assert app.amqp is amqp
    assert app.amqp_cls.runtime_name == name


def test_another_table_takes_the_place_of_the_first(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    assert app.amqp.queues["bulk"]
    install(app, {"queues": {"only": {}}})
    assert list(app.amqp.queues) == ["only"]
    assert app.conf.task_default_queue == "only"
    assert app.amqp_cls.__mro__.count(AMQP) == 1
    assert app.amqp_cls.stock is AMQP


def test_a_table_that_cannot_be_used_leaves_the_app_alone(make_app: AppFactory) -> None:
    app = make_app()
    with pytest.raises(TopologyError):
        install(app, {"queues": {}})
    with pytest.raises(TopologyError, match="needs a bound"):
        install(app, {"queues": {"a": {"overflow": "drop_oldest"}}})
    assert app.amqp_cls == "celery.app.amqp:AMQP"


def test_two_apps_keep_their_tables_apart(make_app: AppFactory) -> None:
    one, two = make_app(REDIS), make_app(REDIS)
    install(one, TABLE)
    install(two, {"queues": {"other": {}}})
    assert list(two.amqp.queues) == ["other"]
    names = {app.connection().transport_options["celeriac"] for app in (one, two)}
    assert len(names) == 2
    assert one.connection() != two.connection()


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        (REDIS, "celeriac"),
        ("rediss://localhost:6380/0?ssl_cert_reqs=required", "celeriacs"),
        ("sentinel://localhost:26379", "celeriacsentinel"),
        ("amqp://localhost//", "amqp"),
    ],
)
def test_every_connection_of_the_app_is_on_the_engine_if_it_can(
    make_app: AppFactory, url: str, scheme: str
) -> None:
    app = make_app(url)
    install(app, TABLE)
    connections = [app.connection(), app.connection_for_read(), app.connection_for_write()]
    assert {connection.transport_cls for connection in connections} == {scheme}
    assert app.connection("redis://elsewhere").transport_cls == "celeriac"


def test_a_url_from_the_environment_is_on_the_engine_too(
    make_app: AppFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://from-environment/1")
    app = make_app("memory://")
    install(app, TABLE)
    assert app.connection().transport_cls == "celeriac"
    assert app.connection().hostname == "from-environment"


def test_failover_urls_and_transport_names_stay_on_the_engine(make_app: AppFactory) -> None:
    app = make_app(["redis://a", "redis://b"])
    install(app, TABLE)
    connection = app.connection()
    assert connection.alt == ["celeriac://a", "celeriac://b"]
    named = make_app("localhost", broker_transport="redis")
    install(named, TABLE)
    assert named.connection().transport_cls == "celeriac"


def test_the_uri_prints_as_the_user_wrote_it(make_app: AppFactory) -> None:
    app = make_app(REDIS)
    install(app, TABLE)
    assert app.connection().as_uri() == "redis://:**@localhost:6379/0"
    assert app.connection().as_uri(include_password=True) == REDIS
    assert app.conf.broker_url == REDIS


def test_a_unix_sockets_uri_prints_as_the_user_wrote_it(make_app: AppFactory) -> None:
    app = make_app("redis+socket:///tmp/x.sock?virtual_host=1")
    install(app, TABLE)
    assert app.connection().as_uri() == make_app(app.conf.broker_url).connection().as_uri()


def test_an_app_with_a_table_survives_pickling(make_app: AppFactory) -> None:
    app = make_app(REDIS)
    install(app, TABLE)
    copy = pickle.loads(pickle.dumps(app))
    assert list(copy.amqp.queues) == ["main", "bulk"]
    assert copy.connection().transport_cls == "celeriac"


def test_flower_picks_its_redis_broker_with_the_password(make_app: AppFactory) -> None:
    app = make_app("redis://:p%40w@localhost:6379/2")
    install(app, TABLE)
    uri = app.connection().as_uri(include_password=True)
    broker = flower.Broker(uri, broker_options=app.conf.broker_transport_options)
    assert isinstance(broker, flower.Redis)
    assert (broker.password, broker.vhost) == ("p@w", 2)


def test_on_another_broker_the_engine_is_off_and_says_so_once(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app("amqp://once-only//")
    install(app, {"queues": {"a": {"max_length": 3}}})
    app.connection()
    app.connection()
    lines = [r.getMessage() for r in caplog.records if r.name == "routing.publish.amqp"]
    assert len(lines) == 2
    assert "is not Redis: routes and levels work" in lines[0]
    assert "the bounds are not enforced" in lines[1]


def test_limits_that_do_not_hold_on_another_broker_are_named(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app("amqp://no-limits//")
    queues = {"a": {"concurrency": 2}, "b": {"rate": "1/s"}, "free": {"weight": 2}}
    install(app, {"queues": queues, "limits": {"shop.*": {"rate": 1}}})
    app.connection()
    (line,) = (vars(r) for r in caplog.records if vars(r).get("event") == "limits_off")
    assert "the limits of queue 'a', queue 'b', 'shop.*' do not hold" in line["message"]


def test_a_worker_on_another_broker_says_nothing_that_holds_on_redis_alone(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app("amqp://no-prefetch//")
    install(app, {"queues": {"a": {"prefetch": 1}}})
    CheckTable(worker(app, 4)).create(worker(app, 4))
    events = {vars(record).get("event") for record in caplog.records}
    assert "engine_off" in events
    assert not events & {"prefetch", "small_prefetch"}


def test_an_unreachable_broker_at_delay_is_named_with_what_to_do(make_app: AppFactory) -> None:
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    app = make_app("redis://:secret@127.0.0.1:1/0", task_publish_retry_policy=policy)
    install(app, TABLE)
    for retry in (True, False):
        with pytest.raises(BrokerUnreachable) as caught:
            app.send_task("x", retry=retry)
        text = str(caught.value)
        assert text.startswith("the broker at redis://:**@127.0.0.1:1/0 did not take the message: ")
        assert "refused" in text
        assert "start the broker, or correct broker_url" in text
        assert "secret" not in text


def test_a_full_queue_is_raised_as_it_is(make_app: AppFactory, broker: Broker) -> None:
    app = make_app(broker.url)
    install(app, {"queues": {"small": {"max_length": 2}}})
    for _ in range(2):
        app.send_task("x")
    for retry in (True, False):
        with pytest.raises(QueueFull) as caught:
            app.send_task("x", retry=retry)
        full = caught.value
        assert (full.queue, full.length, full.limit) == ("small", 2, 2)
        assert full.retry_after > 0
    assert broker.length("small") == 2


# -- the worker's side -----------------------------------------------------------------------------


def test_the_worker_gets_its_steps_once(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    install(app, {"queues": {"a": {}}})
    steps = {name: set(map(symbol_by_name, app.steps[name])) for name in ("worker", "consumer")}
    consumers = {CheckServer, TellPrefetch, Dispatcher, Upkeep}
    assert steps == {"worker": {CheckTable}, "consumer": consumers}


def worker(app: Celery, slots: int) -> Any:
    return SimpleNamespace(
        app=app, max_concurrency=None, concurrency=slots, pool=SimpleNamespace(limit=slots)
    )


def test_a_worker_that_does_not_fit_the_table_does_not_start(make_app: AppFactory) -> None:
    app = make_app()

    @app.task(name="batch", shared=False)
    def batch() -> None: ...

    install(app, {"queues": {"a": {"reserve": 2, "prefetch": 4}}})
    batch.max_size, batch.run_item = 100, print
    with pytest.raises(StartRefused) as caught:
        CheckTable(worker(app, 1)).create(worker(app, 1))
    assert str(caught.value).splitlines() == [
        "this worker does not fit the queue table:",
        "reserve of all queues must be at most the worker's concurrency (1), got 2 (a 2)",
        "queue 'a': prefetch must be at least max_size (100) of batch task 'batch', got 4",
    ]


def test_a_worker_says_the_prefetch_of_each_queue(
    make_app: AppFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app(REDIS)
    install(app, TABLE)
    CheckTable(worker(app, 1)).create(worker(app, 1))
    assert "prefetch by queue: main 4, bulk 32" in caplog.text


def test_a_cluster_is_refused_and_eviction_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match="runs in cluster mode"):
        check_server({"cluster_enabled": 1}, uri="redis://c")
    assert not caplog.records
    check_server({"cluster_enabled": 0, "maxmemory_policy": "allkeys-lru"}, uri="redis://c")
    assert "redis://c has maxmemory-policy allkeys-lru" in caplog.text


def test_the_server_is_checked_on_the_first_connection(
    make_app: AppFactory, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(broker.url)
    install(app, TABLE)
    broker.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with app.connection_for_read() as connection:
            consumer = SimpleNamespace(app=app, connection=connection, prefetch_multiplier=4)
            step = CheckServer(consumer)
            step.start(consumer)
            step.start(consumer)
    finally:
        broker.client.config_set("maxmemory-policy", "noeviction")
    assert caplog.text.count("may evict queues") == 1


def test_prefetch_is_changed_and_shown_by_remote_control(make_app: AppFactory) -> None:
    app = make_app()
    install(app, TABLE)
    state = SimpleNamespace(app=app)
    assert queue_credits(state)["main"] == {"held": 0, "prefetch": 4, "buffered": 0}
    assert queue_prefetch(state, "main", 9) == {"ok": "prefetch of queue 'main' is now 9"}
    assert queue_credits(state)["main"]["prefetch"] == 9
    assert "this worker knows 'main'" in queue_prefetch(state, "mian", 9)["error"]
    assert "must be at least 1" in queue_prefetch(state, "main", 0)["error"]
    assert {"queue_prefetch", "queue_credits"} <= Panel.meta.keys()


def test_stock_apps_beside_are_not_touched(make_app: AppFactory) -> None:
    install(make_app(REDIS), TABLE)
    stock = make_app(REDIS)
    assert stock.connection().transport_cls == "redis"
    assert Connection(REDIS).transport_cls == "redis"
    assert not hasattr(stock.Task, "delay_many")
    assert stock.conf.task_acks_late is False
