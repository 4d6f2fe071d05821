"""`expires` goes by the server's clock: those of producers and workers may be an hour off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from routing.message import eta
from tests.apps import basic
from tests.apps.ahead import HOUR, extend, shifted
from tests.support.broker import Broker
from tests.support.messages import task_message
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS

#: The worker's clock is an hour ahead; the producer's is so much off.
WRONG = [timedelta(0), HOUR, -HOUR]


@dataclass
class Place:
    app: Celery
    broker: Broker
    traces: basic.Traces

    @property
    def expired(self) -> int:
        """How many messages have expired."""
        return self.broker.ledger("default").get("expired", 0)


@pytest.fixture(scope="module", params=POOLS)
def place(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Place]:
    url = valkey.fresh_url()
    env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_STORE": url}
    app = extend(basic.create(url))
    traces = basic.Traces(url)
    with Broker(url) as broker, Worker("tests.apps.ahead", request.param, 1, env=env):
        yield Place(app, broker, traces)
    traces.client.close()
    basic.close(app)


@pytest.fixture(params=WRONG, ids=["right", "ahead", "behind"])
def clock(
    request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch
) -> timedelta:
    """Put the producer's clock wrong."""
    wrong: timedelta = request.param
    clock = shifted(wrong)
    monkeypatch.setattr(place.app, "now", lambda: clock.now(UTC))
    monkeypatch.setattr(eta, "datetime", clock)
    return wrong


@pytest.mark.parametrize("task", ["basic.add", "ahead.batch"])
def test_what_has_not_expired_runs_whatever_the_clocks_show(
    place: Place, clock: timedelta, task: str
) -> None:
    before = place.expired
    args = (1, 2) if task == "basic.add" else (1,)
    in_seconds = place.app.tasks[task].apply_async(args, expires=60)
    at_a_time = place.app.tasks[task].apply_async(args, expires=place.app.now() + HOUR / 2)
    assert in_seconds.get(timeout=20) == at_a_time.get(timeout=20) == sum(args)
    assert place.expired == before


@pytest.mark.parametrize("task", ["basic.add", "ahead.batch"])
def test_what_waits_for_too_long_expires_whatever_the_clocks_show(
    place: Place, clock: timedelta, task: str
) -> None:
    before = place.expired
    place.app.tasks["basic.held"].apply_async(("holds", "expiry"), ignore_result=True)
    place.traces.next_start()
    args = (1, 2) if task == "basic.add" else (1,)
    late = place.app.tasks[task].apply_async(args, expires=0.3)
    sent = place.broker.client.time()
    eventually(lambda: _milliseconds(place.broker.client.time()) > _milliseconds(sent) + 400)
    place.traces.open("expiry")
    eventually(lambda: late.state == "REVOKED", 20)
    eventually(lambda: place.expired == before + 1)


def test_what_is_delayed_expires_after_its_countdown(place: Place, clock: timedelta) -> None:
    before = place.expired
    app = place.app
    too_late = app.tasks["basic.add"].apply_async((1, 2), countdown=0.8, expires=0.2)
    in_time = app.tasks["basic.add"].apply_async((1, 2), countdown=0.2, expires=30)
    assert in_time.get(timeout=20) == 3
    eventually(lambda: too_late.state == "REVOKED", 20)
    eventually(lambda: place.expired == before + 1)


def test_a_task_sees_when_it_expires_by_the_servers_clock(place: Place, clock: timedelta) -> None:
    seen = place.app.tasks["ahead.expires"].apply_async((), expires=600).get(timeout=20)
    off = datetime.fromisoformat(seen) - datetime.now(UTC) - timedelta(seconds=600)
    assert abs(off) < timedelta(seconds=30)


def test_what_stock_has_sent_expires_at_its_time_by_the_servers_clock(place: Place) -> None:
    before = place.expired
    for name, off in (("past", -5), ("coming", 60)):
        expires = (datetime.now(UTC) + timedelta(seconds=off)).isoformat()
        headers: dict[str, Any] = {"expires": expires}
        place.broker.client.lpush(
            "default", task_message("basic.mark", (name,), queue="default", headers=headers)
        )
    eventually(lambda: place.traces.counts().get("coming") == 1, 20)
    eventually(lambda: place.expired == before + 1)
    assert "past" not in place.traces.counts()
    place.traces.client.delete("started", "ran", "starts", "runs")


def _milliseconds(time: Any) -> float:
    return float(time[0]) * 1000 + float(time[1]) / 1000
