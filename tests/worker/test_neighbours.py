"""Stock Celery beside the engine, odd messages, other ways to read a queue, full queues."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
from celery import Celery, chain, chord, group

from routing import QueueFull
from tests.apps import stock
from tests.apps.basic import close
from tests.support.messages import task_message
from tests.support.results import value
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.support.worker import ROOT, Worker

POISON = {
    "no JSON": "not json at all",
    "empty": "",
    "half": task_message("basic.add", (1, 1))[:50],
    "a number": "42",
    "null": "null",
    "a list": "[1, 2]",
    "no properties": json.dumps({"body": "", "headers": {}}),
    "properties of a wrong type": json.dumps({"body": "", "headers": {}, "properties": "x"}),
    "no delivery info": json.dumps({"body": "", "headers": {"id": "1"}, "properties": {}}),
    "headers of a wrong type": json.dumps(
        {**json.loads(task_message("basic.add", (1, 1))), "headers": 7}
    ),
    "id of a wrong type": task_message("basic.add", (1, 1), headers={"id": {"a": 1}}),
    "task of a wrong type": task_message("basic.add", (1, 1), headers={"task": ["x"]}),
    "body that is no JSON": task_message("basic.add", body="{{{"),
    "body of a wrong shape": task_message("basic.add", body='"text"'),
    "eta that is no time": task_message("basic.add", (1, 1), headers={"eta": "tomorrow"}),
    "unknown encoding": task_message("basic.add", (1, 1)).replace('"base64"', '"rot13"'),
    "pickle": task_message("basic.add", (1, 1)).replace("application/json", "application/x-pickle"),
    "not UTF-8": b"\xff\xfe\x00",
}


@pytest.fixture(scope="module", params=["prefork", "gevent"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_unacknowledged(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "at" in request.fixturenames:
        request.getfixturevalue("at").wait_until_settled()


# -- odd messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", POISON.values(), ids=POISON)
def test_what_is_no_message_does_not_end_the_worker(at: Station, text: str | bytes) -> None:
    pid = at.worker.pid
    connections = at.worker.log.count("] Connected to")
    at.broker.client.lpush("default", text)
    assert at.send("add", 1, 2).get(timeout=10) == 3
    at.wait_until_settled()
    assert at.worker.running
    assert at.worker.pid == pid
    assert at.worker.log.count("] Connected to") == connections, (
        "it was taken for a lost connection"
    )


def test_what_is_no_message_is_kept_and_named_in_the_log(at: Station) -> None:
    text = f"poison {secrets.token_hex(4)}"
    at.broker.client.lpush("default", text)
    at.worker.wait_log(text)
    kept = base64.b64encode(text.encode()).decode()
    eventually(lambda: kept in [letter["body"] for letter in at.broker.dead("default")])


def test_poison_in_the_middle_leaves_its_neighbours_alone(at: Station) -> None:
    names = [secrets.token_hex(4) for _ in range(3)]
    payloads: list[str | bytes] = []
    for name in names:
        payloads += [task_message("basic.mark", (name,), queue="default"), "poison"]
    at.broker.client.lpush("default", *payloads)
    eventually(lambda: set(names) <= set(at.traces.counts()))


# -- stock Celery -----------------------------------------------------------------------------


@pytest.fixture
def stock_app(at: Station) -> Iterator[Celery]:
    app = stock.create(at.broker.url)
    yield app
    close(app)


def test_messages_of_stock_producers_run(at: Station, stock_app: Celery) -> None:
    add = stock_app.tasks["basic.add"]
    assert add.delay(2, 3).get(timeout=10) == 5
    assert value(chain(add.s(1, 1), add.s(1)).delay()) == 3
    header = group(add.s(n, n) for n in range(3))
    assert value(chord(header, stock_app.tasks["basic.collect"].s()).delay()) == 6


def test_stock_priorities_are_taken_in_their_order(at: Station, stock_app: Celery) -> None:
    at.stop_consuming("fast")
    names = {priority: secrets.token_hex(4) for priority in (9, 6, 3, 0)}
    mark = stock_app.tasks["basic.mark"]
    for priority, name in names.items():
        mark.apply_async((name,), queue="fast", priority=priority, ignore_result=True)
    at.traces.client.delete("starts")
    (held,) = at.send_many("held", 1, "gate", queue="default")
    assert at.traces.next_start() == held
    at.consume("fast")  # by the other slot, one after the other
    started = [at.traces.next_start() for _ in names]
    at.traces.open("gate", times=1)
    assert started == [names[0], names[3], names[6], names[9]]


def test_a_stock_worker_shares_the_queue(at: Station) -> None:
    before = at.traces.total()
    env = {"CELERIAC_TEST_BROKER": at.broker.url}
    with Worker("tests.apps.stock", "solo", 1, queues=["default"], env=env) as neighbour:
        names = at.send_many("mark", 150, 0.01, queue="default")
        at.wait_until_ran(before + 150, timeout=40)
        counts = at.traces.counts()
        assert [counts[name] for name in names] == [1] * 150
        assert "succeeded" in neighbour.log
        assert at.worker.log.count("basic.mark") > 0
        at.wait_until_settled()


# -- other ways to look at a queue ------------------------------------------------------------


def test_celery_purge_empties_a_queue_and_its_worker_goes_on(at: Station) -> None:
    at.stop_consuming("low")
    at.send_many("mark", 20, queue="low")
    assert at.broker.length("low") == 20
    purged = at.broker.ledger("low").get("purged", 0)
    command = ["-A", "tests.apps.basic", "purge", "--force", "--queues", "low"]
    output = run_celery(command, at.broker.url)
    assert "Purged 20 messages" in output
    assert at.broker.length("low") == 0
    assert at.broker.ledger("low")["purged"] - purged == 20
    at.consume("low")
    assert at.send("where", priority="low").get(timeout=10) == "low"


def run_celery(arguments: list[str], broker_url: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CELERIAC_TEST_BROKER": broker_url}
    command = [sys.executable, "-m", "celery", *arguments]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_inspect_shows_what_runs_and_what_is_held(at: Station) -> None:
    gate = secrets.token_hex(4)
    at.traces.client.delete("starts")
    names = at.send_many("held", 4, gate, queue="bulk")
    for _ in range(2):
        at.traces.next_start()
    assert at.broker.unacked("bulk") == 2
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name])
    (active,) = inspect.active().values()
    (reserved,) = inspect.reserved().values()
    waiting = at.broker.length("bulk")
    at.traces.open(gate, times=4)
    assert {task["args"][0] for task in active} == set(names[:2])
    assert reserved == [], "the rest waits where any worker finds it"
    assert waiting == 2


def test_inspect_shows_what_each_queue_holds_and_may_hold(at: Station) -> None:
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name])
    (held,) = inspect._request("queue_credits").values()
    assert held["slow"] == {"held": 0, "prefetch": 2, "buffered": 0}


# -- bounds -----------------------------------------------------------------------------------


def test_a_worker_never_loses_accepted_work_to_a_full_queue(at: Station) -> None:
    """Retries, links, chain steps and chord bodies get in, and count as overshoot."""
    before = at.broker.ledger("small").get("overshoot", 0)
    at.stop_consuming("small")
    for n in range(3):
        at.send("mark", f"filler-{n}", queue="small", ignore_result=True)
    name = secrets.token_hex(4)
    mark, collect = at.app.tasks["basic.mark"], at.app.tasks["basic.collect"]
    add, retried = at.app.tasks["basic.add"], at.app.tasks["basic.retried"]
    small = {"queue": "small"}
    linked = mark.apply_async((name,), link=mark.si(f"{name}-link").set(**small), queue="bulk")
    chained = chain(add.s(1, 1), add.s(1).set(**small)).delay()
    body = chord(group(add.s(1, 1), add.s(2, 2)), collect.s().set(**small)).delay()
    assert linked.get(timeout=10) == name
    eventually(lambda: at.broker.length("small") == 6, message=lambda: at.worker.log[-4000:])
    assert at.broker.ledger("small")["overshoot"] - before == 3
    with pytest.raises(QueueFull):
        mark.apply_async(("new",), queue="small")

    at.consume("small")
    assert value(chained) == 3
    assert value(body) == 6
    eventually(lambda: at.traces.counts().get(f"{name}-link") == 1)

    # A retry goes to the queue of its task, which others have filled meanwhile.
    at.traces.client.delete("gate:block")
    at.traces.client.hdel("started", "blocker")
    blocker = at.send("held", "blocker", "block", queue="small")
    eventually(lambda: at.traces.counts("started").get("blocker") == 1)
    waiting = retried.apply_async((f"{name}-retried", 3), queue="small")
    for n in range(2):
        at.send("mark", f"filler-{n}", queue="small", ignore_result=True)
    at.traces.open("block")
    assert blocker.get(timeout=10) == "blocker"
    assert waiting.get(timeout=10) == 3
