"""A message says which gate it is for, whichever way it is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, group

from routing import TopologyError, enqueue_many, install
from routing.topology.limits import KEY_AT_MOST, NAME_AT_MOST, Limit, mark_of
from routing.topology.model import Topology
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
