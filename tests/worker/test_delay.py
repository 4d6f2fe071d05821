"""Work with a countdown or an ETA: it waits in the broker, and starts when it is due."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from routing.message.eta import Delay
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from tests.support.messages import task_message
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually

HOUR = 3600


@pytest.fixture(scope="module", params=["prefork", "gevent", "solo"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays(at: Station) -> Iterator[None]:
    yield
    at.wait_until_settled()
    at.app.control.purge()
    assert at.broker.delayed("default") == []


@pytest.fixture
def name() -> str:
    return secrets.token_hex(4)


def test_delayed_work_waits_in_the_broker_and_not_in_a_worker(at: Station, name: str) -> None:
    at.send("mark", name, countdown=HOUR)
    assert at.send("add", 1, 2).get(timeout=10) == 3
    at.wait_until_settled()
    (text,) = at.broker.delayed("default")
    assert json.loads(text)["headers"]["task"] == "basic.mark"
    assert name not in at.traces.counts("started")


def test_delayed_work_is_never_early_and_the_first_due_comes_first(at: Station, name: str) -> None:
    sent = datetime.now(UTC)
    late = at.send("mark", f"{name}-late", countdown=1)
    at.send("mark", f"{name}-soon", eta=sent + timedelta(seconds=0.5))
    assert at.traces.client.delete("starts") >= 0
    late.get(timeout=15)
    assert datetime.now(UTC) - sent >= timedelta(seconds=1)
    starts = [at.traces.next_start() for _ in range(2)]
    assert starts == [f"{name}-soon", f"{name}-late"]


def test_a_clock_that_is_an_hour_off_changes_nothing(at: Station, name: str) -> None:
    """The header says one hour, as written by a clock that is ahead; the broker waits for 0.2 s."""
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    text = task_message("basic.mark", (name,), queue="default", headers={"eta": ahead})
    delay = Delay(datetime.now(UTC) + timedelta(seconds=0.2), name, text)
    commands(at).delay(at.broker.client, "default", [delay])
    eventually(lambda: at.traces.counts().get(name) == 1)


def test_an_eta_that_has_passed_delays_nothing(at: Station, name: str) -> None:
    at.send("mark", name, eta=datetime.now(UTC) - timedelta(hours=1)).get(timeout=10)
    assert at.traces.counts()[name] == 1


def test_many_with_a_countdown_are_delayed_together(at: Station, name: str) -> None:
    mark = at.app.tasks["basic.mark"]
    names = [f"{name}-{n}" for n in range(20)]
    receipts = mark.apply_many([((n,), {}) for n in names], countdown=1, ignore_result=True)
    assert receipts.accepted == 20
    assert len(at.broker.delayed("default")) == 20
    eventually(lambda: [at.traces.counts().get(n) for n in names] == [1] * 20)


def test_a_retry_with_a_countdown_waits_in_the_broker(at: Station) -> None:
    before = at.broker.ledger("default").get("retried", 0)
    at.send("where_retried", HOUR)
    eventually(lambda: at.broker.ledger("default").get("retried", 0) == before + 1)
    (text,) = at.broker.delayed("default")
    assert json.loads(text)["headers"]["retries"] == 1


def test_what_expires_while_it_is_delayed_is_not_run(at: Station, name: str) -> None:
    before = at.broker.ledger("default").get("expired", 0)
    at.send("mark", name, countdown=0.5, expires=0.2)
    eventually(lambda: at.broker.ledger("default").get("expired", 0) == before + 1)
    assert name not in at.traces.counts("started")


def test_a_task_sees_the_eta_that_it_was_given(at: Station) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=0.5)
    assert datetime.fromisoformat(at.send("due", eta=eta).get(timeout=10)) == eta


def test_an_eta_from_stock_celery_is_kept_by_the_broker_too(at: Station, name: str) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=2)
    headers = {"eta": eta.isoformat()}
    at.broker.client.lpush(
        "default", task_message("basic.mark", (name,), queue="default", headers=headers)
    )
    eventually(lambda: len(at.broker.delayed("default")) == 1)
    assert at.broker.unacked("default") == 0
    eventually(lambda: at.traces.counts().get(name) == 1)
    assert datetime.now(UTC) >= eta


def commands(at: Station) -> Commands:
    return Commands(keys=Keys(), topology=at.app.amqp_cls.topology)
