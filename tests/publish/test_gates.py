"""A message says which gate it is for, whichever way it is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, group

from batching import Batch, BatchTask
from routing import TopologyError, enqueue_many, install
from routing.topology.checks import unknown_keys
from routing.topology.limits import KEY_AT_MOST, NAME_AT_MOST, Limit, mark_of
from routing.topology.model import Topology
from routing.worker.startup import warn_of_unknown_keys
from tests.support.apps import AppFactory
from tests.support.broker import Broker

TABLE: dict[str, Any] = {
    "queues": {"main": {}},
    "limits": {
        "hooks.send": {"concurrency": 3, "rate": "50/s", "key": "host"},
        "hooks.second": {"concurrency": 1, "key": 1},
        "hooks.*": {"concurrency": 2},
    },
}
GATE = re.compile(r',"celeriac":\{"at":\d+,(?:"due":\d+,)?"gate":"([^"]*)"\}\}$')


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)
    install(app, TABLE)

    @app.task(name="hooks.send", shared=False)
    def send(host: str, path: str = "/") -> None: ...

    @app.task(name="hooks.second", shared=False, bind=True)
    def second(self: Any, a: str, b: str = "") -> None: ...

    @app.task(name="hooks.other", shared=False)
    def other(*_: Any) -> None: ...

    @app.task(name="free", shared=False)
    def free(host: str) -> None: ...

    return app


def gates(broker: Broker) -> list[str | None]:
    found = [GATE.search(text) for text in broker.payloads("main")]
    return [one.group(1) if one else None for one in found]


WAYS: dict[str, Callable[[Celery], Any]] = {
    "delay": lambda app: app.tasks["hooks.send"].delay("a.example"),
    "by keyword": lambda app: app.tasks["hooks.send"].delay(path="/x", host="a.example"),
    "by name": lambda app: app.send_task("hooks.send", ("a.example",)),
    "in bulk": lambda app: app.tasks["hooks.send"].delay_many(["a.example"]),
    "pairs": lambda app: app.tasks["hooks.send"].apply_many([((), {"host": "a.example"})]),
    "by name, in bulk": lambda app: enqueue_many(app, "hooks.send", [("a.example",)]),
    "group": lambda app: group([app.tasks["hooks.send"].s("a.example")]).delay(),
    "chain": lambda app: chain(app.tasks["hooks.send"].s("a.example")).delay(),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sending_marks_the_message(app: Celery, broker: Broker, way: str) -> None:
    WAYS[way](app)
    assert gates(broker) == ["hooks.send|a.example"]
    assert b"celeriac_gate" not in broker.payloads("main")[0].encode()


def test_the_limit_is_the_tasks_own_or_the_first_glob(app: Celery, broker: Broker) -> None:
    app.tasks["hooks.other"].delay(1)
    app.tasks["free"].delay("a")
    app.tasks["hooks.second"].delay("a", "b")
    app.tasks["hooks.second"].delay("a", b="c")
    app.tasks["hooks.second"].delay("a")
    expected = ["hooks.*", None, "hooks.second|b", "hooks.second|c", "hooks.second|null"]
    assert sorted(map(str, gates(broker))) == sorted(map(str, expected))


def test_each_item_of_a_bulk_call_has_its_own_gate(app: Celery, broker: Broker) -> None:
    app.tasks["hooks.send"].delay_many([f"h{n}" for n in range(4)])
    assert sorted(map(str, gates(broker))) == [f"hooks.send|h{n}" for n in range(4)]


def test_a_delayed_message_keeps_its_gate(app: Celery, broker: Broker) -> None:
    app.tasks["hooks.send"].apply_async(("a",), countdown=60)
    (value,) = broker.client.hvals("celeriac:delayed_messages:main")
    assert value.endswith(b',"celeriac":{"gate":"hooks.send|a"}}')


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a{b}", "x" * 1000, "ü", "\ud800", {"a": 1}, 5])
def test_whatever_a_key_is_its_mark_is_short_and_plain(value: Any) -> None:
    mark = mark_of("t", value)
    assert re.fullmatch(r"t\|[\w.:@/+=, ~-]*", mark, re.ASCII)
    assert len(mark) <= 2 + KEY_AT_MOST
    assert mark_of("t", value) == mark


def test_a_limit_says_what_is_wrong_with_it() -> None:
    limits: dict[str, Any] = {"a": {}, "b": {"rate": "soon"}, "c": {"concurency": 1}}
    with pytest.raises(TopologyError) as caught:
        Topology.load({"queues": {"q": {}}, "limits": limits})
    text = str(caught.value)
    assert "a limit needs a concurrency or a rate" in text
    assert "rate must be a number of starts a second" in text
    assert "did you mean 'concurrency'" in text
    with pytest.raises(TopologyError, match="at most"):
        Topology.load({"queues": {"q": {}}, "limits": {"x" * (NAME_AT_MOST + 1): {"rate": 1}}})
    assert Limit(rate=1).concurrency is None


@pytest.mark.parametrize("key", ["", -1, True, 1.5, ["host"]])
def test_a_key_that_can_mean_no_argument_is_refused_in_one_line(key: Any) -> None:
    limits = {"d": {"rate": 1, "key": key}}
    with pytest.raises(TopologyError) as caught:
        Topology.load({"queues": {"q": {}}, "limits": limits})
    assert str(caught.value).splitlines()[1:] == [
        f"limit 'd': key must be the name of a parameter or a position from 0, got {key!r}"
    ]


@pytest.mark.parametrize(
    ("task", "key", "told"),
    [
        ("hooks.send", "host", None),
        ("hooks.send", 1, None),
        ("hooks.send", "hots", ("host", "path")),
        ("hooks.send", 2, ("host", "path")),
        ("hooks.second", "self", ("a", "b")),
        ("hooks.other", 7, None),
        ("hooks.other", "host", ()),
        ("hooks.named", "retry_to", None),
        ("hooks.named", 0, ("retry_to",)),
        ("hooks.any", "hots", None),
        ("hooks.retried", "hots", ("host",)),
        ("hooks.batch", "host", None),
    ],
)
def test_a_key_that_no_call_can_have_is_known(
    app: Celery, task: str, key: str | int, told: tuple[str, ...] | None
) -> None:
    @app.task(name="hooks.named", shared=False)
    def named(*, retry_to: str) -> None: ...

    @app.task(name="hooks.any", shared=False)
    def anything(**_: Any) -> None: ...

    @app.task(name="hooks.retried", shared=False, autoretry_for=(OSError,))
    def retried(host: str) -> None: ...

    @app.task(name="hooks.batch", shared=False, base=BatchTask)
    def batch(batch: Batch[Any]) -> None: ...

    table = Topology.load({"queues": {"q": {}}, "limits": {task: {"rate": 1, "key": key}}})
    found = [(one.limit, one.key, one.task, one.parameters) for one in unknown_keys(app, table)]
    assert found == ([] if told is None else [(task, key, task, told)])


def test_a_worker_warns_of_a_key_that_no_call_can_have(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"hooks.s*": {"rate": 1, "key": "hots"}, "*": {"rate": 1}}
    warn_of_unknown_keys(app, Topology.load({"queues": {"q": {}}, "limits": limits}))
    told = [vars(record) for record in caplog.records]
    assert [(one["event"], one["limit"], one["key"], one["task_name"]) for one in told] == [
        ("limit_key_unknown", "hooks.s*", "hots", "hooks.send"),
        ("limit_key_unknown", "hooks.s*", "hots", "hooks.second"),
    ]
    assert "key 'hots' is no argument of task 'hooks.send', whose parameters are host, path" in (
        caplog.text
    )
