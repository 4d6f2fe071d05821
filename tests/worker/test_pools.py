"""Everyday work, in every pool."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psutil  # type: ignore[import-untyped]
import pytest
from celery import chain, chord, group
from celery.exceptions import QueueNotFound

from tests.support.messages import task_message
from tests.support.results import value
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.worker.conftest import POOLS


@pytest.fixture(scope="module", params=POOLS)
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_unacknowledged(at: Station) -> Iterator[None]:
    yield
    at.wait_until_settled()


def test_a_task_runs_and_its_result_comes_back(at: Station) -> None:
    assert at.send("add", 2, 3).get(timeout=10) == 5


def test_a_failure_comes_back_as_its_exception(at: Station) -> None:
    with pytest.raises(ValueError, match="so it is"):
        at.send("fail", "so it is").get(timeout=10)


def test_five_hundred_tasks_run_once_each(at: Station) -> None:
    before = at.traces.total()
    names = at.send_many("mark", 500, queue="bulk")
    at.wait_until_ran(before + 500, timeout=60)
    counts = at.traces.counts()
    assert [counts[name] for name in names] == [1] * 500


def test_tasks_open_no_connection_each(at: Station) -> None:
    def opened() -> int:
        return int(at.broker.client.info("stats")["total_connections_received"])

    at.send("retried", secrets.token_hex(4), 1).get(timeout=15)
    before = opened()
    for _ in range(60):
        at.send("retried", secrets.token_hex(4), 1, ignore_result=True)
    at.wait_until_settled(timeout=30)
    eventually(lambda: not at.broker.length("default"))
    at.wait_until_settled()
    assert opened() - before < 30


def test_many_that_were_sent_together_run_once_each(at: Station) -> None:
    before = at.traces.total()
    names = [f"{secrets.token_hex(3)}-{n}" for n in range(300)]
    receipts = at.app.tasks["basic.mark"].delay_many(names, queue="bulk", ignore_result=True)
    assert all(receipt.accepted for receipt in receipts)
    at.wait_until_ran(before + 300)
    counts = at.traces.counts()
    assert [counts[name] for name in names] == [1] * 300


def test_a_chain_passes_results_on(at: Station) -> None:
    add = at.app.tasks["basic.add"]
    assert value(chain(add.s(1, 2), add.s(3), add.s(4)).delay()) == 10


def test_a_chord_collects_its_group(at: Station) -> None:
    add, collect = at.app.tasks["basic.add"], at.app.tasks["basic.collect"]
    header = group(add.s(n, n) for n in range(10))
    assert value(chord(header, collect.s(extra=1)).delay(), timeout=20) == 91


def test_a_link_is_called_with_the_result(at: Station) -> None:
    name = secrets.token_hex(4)
    at.send("mark", name, link=at.app.tasks["basic.mark"].si(f"{name}-linked"))
    eventually(lambda: at.traces.counts().get(f"{name}-linked") == 1)


def test_a_retry_runs_again_and_counts(at: Station) -> None:
    name = secrets.token_hex(4)
    assert at.send("retried", name, 3).get(timeout=15) == 3
    assert at.traces.counts()[name] == 4


def test_a_countdown_delays_the_start(at: Station) -> None:
    name = secrets.token_hex(4)
    sent = datetime.now(UTC)
    at.send("mark", name, countdown=1).get(timeout=10)
    assert datetime.now(UTC) - sent >= timedelta(seconds=1)
    assert at.traces.counts()[name] == 1


def test_an_eta_delays_the_start(at: Station) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=1)
    at.send("add", 1, 1, eta=eta).get(timeout=10)
    assert datetime.now(UTC) >= eta


def test_an_expired_task_is_ended_and_not_run(at: Station) -> None:
    name = secrets.token_hex(4)
    before = at.broker.ledger("default").get("expired", 0)
    at.send("mark", name, expires=datetime.now(UTC) - timedelta(seconds=1))
    eventually(lambda: at.broker.ledger("default").get("expired", 0) == before + 1)
    assert name not in at.traces.counts("started")


def test_an_early_acknowledged_task_is_settled_before_it_runs_on(at: Station) -> None:
    name = secrets.token_hex(4)
    at.send("early", name, name)
    eventually(lambda: at.traces.counts("started").get(name) == 1)
    unacked = at.broker.unacked("default")
    at.traces.open(name)
    eventually(lambda: at.traces.counts().get(name) == 1)
    assert unacked == 0


def test_endings_are_counted_by_their_kind(at: Station) -> None:
    before = at.broker.ledger("default")
    at.send("add", 1, 1).get(timeout=10)
    with pytest.raises(ValueError, match="x"):
        at.send("fail", "x").get(timeout=10)
    at.send("retried", secrets.token_hex(4), 1).get(timeout=10)
    at.wait_until_settled()
    after = at.broker.ledger("default")
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    assert {name: n for name, n in grown.items() if n} == {
        "accepted": 4,
        "done": 2,
        "dead": 1,
        "retried": 1,
    }


def test_an_unknown_task_is_settled_and_the_worker_goes_on(at: Station) -> None:
    at.app.send_task("no.such.task", queue="default")
    assert at.send("add", 1, 1).get(timeout=10) == 2


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({}, "default"),
        ({"priority": "low"}, "low"),
        ({"priority": "high"}, "high"),
        ({"low_priority": True}, "low"),
        ({"queue": "fast"}, "fast"),
        ({"priority": 5}, "default"),
    ],
    ids=str,
)
def test_a_level_leads_to_its_queue(at: Station, options: dict[str, object], queue: str) -> None:
    assert at.send("where", **options).get(timeout=10) == queue
    sent = at.app.send_task("basic.where", **options)
    assert sent.get(timeout=10) == queue
    signature = at.app.tasks["basic.where"].s().set(**options)
    assert value(group([signature, signature.clone()])()) == [queue, queue]


def test_a_retry_stays_in_the_queue_of_its_level(at: Station) -> None:
    assert at.send("where_retried", priority="low").get(timeout=10) == ["low"]
    assert at.send("where_retried", 0.1, priority="high").get(timeout=10) == ["high"]


def test_ping_and_inspect_leave_nothing_unacknowledged(at: Station) -> None:
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name])
    for _ in range(3):
        assert inspect.ping() == {at.worker.name: {"ok": "pong"}}
    assert at.broker.unacked() == 0
    assert not at.broker.names("celeriac:ledger:*reply*")
    assert not at.broker.names("celeriac:bell:*reply*")


def test_inspect_shows_the_queues(at: Station) -> None:
    assert sorted(at.consumed()) == sorted(at.app.amqp.queues)


def test_consumers_are_added_and_cancelled_while_the_worker_runs(at: Station) -> None:
    at.consume("extra")
    name = secrets.token_hex(4)
    at.broker.client.lpush("extra", task_message("basic.retried", (name, 1), queue="extra"))
    eventually(lambda: at.traces.counts().get(name) == 2)
    at.wait_until_settled()

    at.stop_consuming("extra")
    at.broker.client.lpush("extra", task_message("basic.mark", (f"{name}-after",), queue="extra"))
    assert at.send("add", 1, 1).get(timeout=10) == 2
    assert at.broker.length("extra") == 1
    assert at.broker.unacked("extra") == 0
    at.broker.client.delete("extra")


def test_a_queue_that_nobody_declared_is_refused_by_name(at: Station) -> None:
    with pytest.raises(QueueNotFound, match=r"'defualt' .* did you mean 'default'"):
        at.send("add", 1, 1, queue="defualt")


def test_an_idle_worker_asks_the_broker_about_once_a_second(at: Station) -> None:
    at.wait_until_settled()
    assert at.broker.calls_per_second(seconds=3) < 5  # it announces itself once in that time
    assert psutil.Process(at.worker.pid).cpu_percent(interval=1) < 40
