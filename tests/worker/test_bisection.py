"""Of a call that fails without naming anybody, only the items at fault pay for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from tests.apps.basic import Traces, close
from tests.apps.suspects import AWAY, CALLS, EFFECTS, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS


@dataclass(frozen=True)
class Site:
    """A worker, and what its calls leave."""

    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces

    def send(self, task: str, count: int, words: Mapping[int, str]) -> list[Any]:
        """Send items with these numbers, of which some do something to their calls."""
        self.traces.client.delete(CALLS, EFFECTS)
        calls = [(number, words.get(number, "")) for number in range(count)]
        receipts = self.app.tasks[f"suspects.{task}"].delay_many(calls)
        return [self.app.AsyncResult(receipt.id) for receipt in receipts]

    @property
    def sizes(self) -> list[int]:
        return [int(size) for size in self.traces.client.lrange(CALLS, 0, -1)]

    @property
    def effects(self) -> Counter[int]:
        return Counter(int(number) for number in self.traces.client.lrange(EFFECTS, 0, -1))

    def settled(self, timeout: float = 30) -> None:
        """Wait until every message has ended."""
        eventually(
            lambda: self.broker.has_ended("default"),
            timeout,
            message=lambda: f"{self.sizes}\n{self.worker.log[-8000:]}",
        )

    def charged(self, results: list[Any]) -> dict[int, Any]:
        """Return the errors of those that failed, by number."""
        return {n: one.result for n, one in enumerate(results) if one.state == "FAILURE"}


@pytest.fixture(scope="module", params=POOLS)
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    yield from run(valkey, request.param)


@pytest.fixture(scope="module")
def prefork(valkey: Server) -> Iterator[Site]:
    yield from run(valkey, "prefork")


def run(valkey: Server, pool: str) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker("tests.apps.suspects", pool, 1, env={"CELERIAC_TEST_BROKER": url})
    with worker, Broker(url) as broker:
        app, traces = create(url), Traces(url)
        yield Site(app, worker, broker, traces)
        close(app)
        traces.client.close()


def bound(count: int) -> float:
    return 2 * math.log2(count) + 2


def test_one_item_that_raises_among_500_costs_few_calls(site: Site) -> None:
    results = site.send("write", 500, {317: "raises"})
    site.settled()
    assert site.charged(results).keys() == {317}
    assert "a row is bad" in str(site.charged(results)[317])
    assert site.effects == dict.fromkeys(set(range(500)) - {317}, 1)
    first = site.sizes.index(500) if 500 in site.sizes else 0
    further = site.sizes[first + 1 :]
    assert len(further) <= bound(500)
    if first == 0:  # the function goes item by item, so it is known where it was
        assert further == [250, 249, 1]


def test_three_that_raise_alike_in_different_halves_are_found(site: Site) -> None:
    results = site.send("write", 500, dict.fromkeys((41, 260, 499), "raises"))
    site.settled()
    assert site.charged(results).keys() == {41, 260, 499}
    assert site.effects == dict.fromkeys(set(range(500)) - {41, 260, 499}, 1)
    assert len(site.sizes) <= 3 * bound(500) + 2


def test_what_is_done_stays_done_when_its_call_raises(site: Site) -> None:
    results = site.send("write", 20, {**dict.fromkeys(range(19), "done"), 19: "raises"})
    site.settled()
    assert [one.result for one in results[:19]] == [f"kept {n}" for n in range(19)]
    assert site.charged(results).keys() == {19}
    assert site.effects == dict.fromkeys(range(19), 1)


def test_while_the_sink_is_away_nobody_is_charged_and_few_calls_are_made(site: Site) -> None:
    site.traces.client.set(AWAY, "1")
    results = site.send("write", 100, {})
    eventually(lambda: "come again, uncharged" in site.worker.log, 20)
    sizes = site.sizes
    site.traces.client.delete(AWAY)
    site.settled()
    assert not site.charged(results)
    assert site.effects == dict.fromkeys(range(100), 1)
    assert len(sizes) <= math.log2(100) + 1
    later = site.sizes[len(sizes) :]
    assert later[0] == max(later) == 50


def test_when_all_are_bad_all_end_after_max_retries(site: Site) -> None:
    results = site.send("write_once", 100, dict.fromkeys(range(100), "raises"))
    site.settled()
    assert len(site.charged(results)) == 100
    assert not site.effects


def test_each_is_called_alone_where_that_is_wanted(site: Site) -> None:
    results = site.send("write_each", 10, {3: "raises"})
    site.settled()
    assert site.charged(results).keys() == {3}
    assert site.effects == dict.fromkeys(set(range(10)) - {3}, 1)
    assert set(site.sizes[-10:]) == {1}


def test_nothing_is_repeated_where_effects_must_not_be(site: Site) -> None:
    results = site.send("write_retry", 10, {3: "raises"})
    site.settled()
    assert 3 in site.charged(results)
    assert sum(site.sizes) == 10


@pytest.mark.parametrize(
    ("task", "word"), [("write", "dies"), ("write_limited", "hangs"), ("write_soft", "hangs")]
)
def test_one_item_that_takes_its_call_down_is_found(prefork: Site, task: str, word: str) -> None:
    results = prefork.send(task, 64, {**dict.fromkeys(range(10), "done"), 33: word})
    prefork.settled(60)
    assert prefork.charged(results).keys() == {33}
    assert prefork.effects == dict.fromkeys(set(range(64)) - {33}, 1)
    # One half fails, a quarter of all and the rest of that half do not, then it is called alone.
    assert len(prefork.sizes) <= 7, "it is known where the function was"
    assert all(one.result == f"kept {n}" for n, one in enumerate(results[:10]))


def test_one_item_that_ends_its_worker_is_found_by_those_that_follow(valkey: Server) -> None:
    url = valkey.fresh_url()
    env = {"CELERIAC_TEST_BROKER": url}
    app, traces = create(url), Traces(url)
    with Broker(url) as broker:
        worker = Worker("tests.apps.suspects", "prefork", 1, env=env)
        worker.__enter__()
        site = Site(app, worker, broker, traces)
        try:
            results = site.send("write", 4, {2: "ends the worker"})
            for _ in range(14):

                def is_over(site: Site = site) -> bool:
                    return not site.worker.running or _has_ended(site)

                eventually(is_over, 40)
                if _has_ended(site):
                    break
                site.worker.__exit__(None, None, None)
                again = Worker("tests.apps.suspects", "prefork", 1, env=env)
                again.__enter__()
                site = Site(app, again, broker, traces)
            assert site.charged(results).keys() == {2}
            assert site.effects == dict.fromkeys(set(range(4)) - {2}, 1)
        finally:
            site.worker.__exit__(None, None, None)
            close(app)
            traces.client.close()


def _has_ended(site: Site) -> bool:
    return site.broker.has_ended("default")
