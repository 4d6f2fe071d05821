"""Every item of a batch ends by itself, in every pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery, chain, chord, group
from celery.result import AsyncResult

from batching import InvalidItem, ResultCountError
from tests.apps.basic import Traces, close
from tests.apps.batches import create
from tests.support.broker import Broker
from tests.support.results import outcome, value
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS


class Site(NamedTuple):
    """A running worker, and what a test needs to talk to it."""

    app: Celery
    broker: Broker
    traces: Traces

    def task(self, name: str) -> Any:
        return self.app.tasks[f"batches.{name}"]


@pytest.fixture(scope="module", params=POOLS)
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker("tests.apps.batches", request.param, env={"CELERIAC_TEST_BROKER": url})
    with worker, Broker(url) as broker:
        app, traces = create(url), Traces(url)
        yield Site(app, broker, traces)
        close(app)
        traces.client.close()


@pytest.fixture(autouse=True)
def _nothing_stays_unacknowledged(site: Site) -> Iterator[None]:
    yield
    eventually(lambda: site.broker.has_ended("default"))


def test_88_succeed_once_and_12_have_their_own_failure(site: Site) -> None:
    load = site.task("load")
    rows: list[dict[str, Any]] = [{"number": 1_000 + number} for number in range(88)]
    rows += [{"number": 2_013 + 100 * number} for number in range(7)]
    rows += [{"number": f"row {number}"} for number in range(5)]
    found = [outcome(result) for result in [load.delay(row) for row in rows]]
    # 1,013 is among the first 88.
    assert found[13].args == ("no luck with 1013",)
    good = [2 * (1_000 + number) for number in range(88)]
    assert [value for value in found[:88] if isinstance(value, int)] == good[:13] + good[14:]
    assert [str(error) for error in found[88:95]] == [
        f"no luck with {2_013 + 100 * number}" for number in range(7)
    ]
    assert all(isinstance(error, InvalidItem) for error in found[95:])
    assert {error.field for error in found[95:]} == {"number"}
    counts = site.traces.counts()
    assert all(counts[str(1_000 + number)] == 1 for number in range(88))


def test_a_chord_of_200_items_calls_its_body_once_with_200_results(site: Site) -> None:
    before = site.traces.counts().get("total", 0)
    body = chord(group(site.task("double").s(number) for number in range(200)))
    assert value(body(site.task("total").s()), timeout=30) == 2 * sum(range(200))
    assert site.traces.counts()["total"] == before + 1


def test_a_chain_passes_each_items_result_on(site: Site) -> None:
    add, double = site.task("add"), site.task("double")
    results = [chain(add.s(n, 1), double.s(), add.s(100)).delay() for n in range(5)]
    assert [value(result, timeout=20) for result in results] == [102 + 2 * n for n in range(5)]


def test_a_failed_item_fails_the_chord_and_the_chain_behind_it(site: Site) -> None:
    load, total = site.task("load"), site.task("total")
    rows = [{"number": number} for number in (1, 13, 2)]
    assert "no luck with 13" in str(outcome(chord(map(load.s, rows))(total.s())))
    assert "no luck with 13" in str(outcome(chain(load.s(rows[1]), site.task("add").s(1)).delay()))


def test_links_and_errbacks_belong_to_their_item(site: Site) -> None:
    load, note = site.task("load"), site.task("note")
    for number in (7_001, 7_013):
        load.apply_async(
            ({"number": number},),
            link=note.s(name=f"linked-{number}"),
            link_error=note.si(name=f"failed-{number}"),
        )
    eventually(lambda: {"linked-7001", "failed-7013"} <= site.traces.counts().keys())
    assert not {"linked-7013", "failed-7001"} & site.traces.counts().keys()


def test_each_item_has_its_own_retries(site: Site) -> None:
    results = [site.task("flaky").delay(value) for value in (1, 2, 3, 4, 9)]
    assert [outcome(result) for result in results[:4]] == [1, 2, 3, 4]
    assert isinstance(outcome(results[4]), ConnectionError)
    counts = site.traces.counts()
    assert [counts[f"flaky-{value}"] for value in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]


def test_retrying_the_task_retries_every_item(site: Site) -> None:
    results = [site.task("all_again").delay(value) for value in range(5)]
    # An item that comes back while another is new is retried with it once more.
    assert all(outcome(result) >= 2 for result in results)


def test_when_the_function_raises_the_rest_fails_or_retries_by_its_own_policy(site: Site) -> None:
    results = [site.task("stumbles").delay(value) for value in range(6)]
    assert [outcome(result) for result in results] == [1, 2, 1, 2, 1, 2]
    broken = [outcome(result) for result in [site.task("breaks").delay(n) for n in range(3)]]
    assert broken[0] == "kept"
    assert all(value == "kept" or isinstance(value, RuntimeError) for value in broken)


def test_a_wrong_number_of_results_is_every_items_error(site: Site) -> None:
    found = [outcome(result) for result in [site.task("too_few").delay(n) for n in range(3)]]
    assert all(isinstance(error, ResultCountError) for error in found)


def test_a_result_that_cannot_be_stored_fails_its_own_item(site: Site) -> None:
    found = [outcome(result) for result in [site.task("unstorable").delay(n) for n in range(3)]]
    assert found[0] == 0
    assert "not JSON serializable" in str(found[1])
    assert found[2] == 2


def test_the_function_is_told_of_its_call_and_of_each_item(site: Site) -> None:
    call = site.task("facts").s({"tenant": "t7"}).set(priority=3)
    call.stamp(run="r1")
    found = value(call.delay())
    assert found["stamps"] == {"run": "r1"}
    assert (found["queue"], found["key"], found["priority"]) == ("default", "t7", 3)
    assert found["reason"] in ("idle", "wait")
    assert 0 < found["left"] <= 60
    assert 0 <= found["age"] < 60
    assert found["redelivered"] is False
    assert found["id"]


def test_many_items_share_few_calls(site: Site) -> None:
    site.traces.client.delete("sizes")
    receipts = site.task("double").delay_many(range(500))
    results = [AsyncResult(receipt.id, app=site.app) for receipt in receipts]
    assert [result.get(timeout=30) for result in results] == [2 * n for n in range(500)]
    sizes = [int(size) for size in site.traces.client.lrange("sizes", 0, -1)]
    assert sum(sizes) == 500
    assert max(sizes) == 50
    assert len(sizes) <= 25


def test_items_of_different_keys_never_share_a_call(site: Site) -> None:
    rows = [{"tenant": "abc"[number % 3]} for number in range(30)]
    results = [site.task("by_tenant").delay(row) for row in rows]
    assert [outcome(result) for result in results] == [[row["tenant"]] for row in rows]


def test_an_item_whose_key_cannot_be_computed_fails_alone(site: Site) -> None:
    by_tenant = site.task("by_tenant")
    good, bad = by_tenant.delay({"tenant": "a"}), by_tenant.delay({"name": "a"})
    assert outcome(good) == ["a"]
    assert isinstance(outcome(bad), KeyError)
