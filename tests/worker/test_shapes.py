"""What is called together: by size, cost, keys, level, and where an item asks to be alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery, group

from tests.apps.basic import Traces, close
from tests.apps.shapes import CALLS, GATE, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS

SLOTS = 2


@dataclass(frozen=True)
class Site:
    """A worker, and what its calls leave."""

    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces

    def task(self, name: str) -> Any:
        self.traces.client.delete(CALLS, GATE)
        return self.app.tasks[f"shapes.{name}"]

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.traces.client.lrange(CALLS, 0, -1)]

    def figures(self, task: str) -> dict[str, Any]:
        """Return what the worker says of a task's calls."""
        inspect = self.app.control.inspect(timeout=5, limit=1)
        (report,) = inspect._request("batches").values()
        return dict(report.get(task, {}))

    def called(self, count: int) -> list[dict[str, Any]]:
        """Return the calls once so many items were called, and nothing is left of them."""
        eventually(
            lambda: sum(len(call["values"]) for call in self.calls) >= count,
            30,
            message=lambda: f"{self.calls}\n{self.worker.log[-4000:]}",
        )
        eventually(lambda: self.broker.has_ended("default"), 30)
        return self.calls


@pytest.fixture(scope="module", params=POOLS)
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker("tests.apps.shapes", request.param, SLOTS, env={"CELERIAC_TEST_BROKER": url})
    with worker, Broker(url) as broker:
        app, traces = create(url), Traces(url)
        yield Site(app, worker, broker, traces)
        close(app)


def test_an_idle_slot_waits_for_min_size(site: Site) -> None:
    patient = site.task("patient")
    for value in (1, 2):
        patient.delay(value)
    eventually(lambda: site.broker.unacked() == 2)
    assert site.calls == []
    patient.delay(3)
    (call,) = site.called(3)
    assert (call["values"], call["reason"]) == ([1, 2, 3], "idle")


def test_fewer_than_min_size_go_when_they_have_waited(site: Site) -> None:
    site.task("brief").delay(1)
    (call,) = site.called(1)
    assert call["reason"] == "wait"


def test_an_item_that_expires_is_called_before_that(site: Site) -> None:
    result = site.task("patient").apply_async((1,), expires=4)
    (call,) = site.called(1)
    assert call["reason"] == "wait"
    assert result.get(timeout=10) is None


def test_no_call_costs_more_than_max_cost_but_of_one_item(site: Site) -> None:
    values = [4, 5, 3, 30, 9, 1, 2]
    site.task("costly").delay_many(values)
    calls = [call["values"] for call in site.called(len(values))]
    assert sorted(value for call in calls for value in call) == sorted(values)
    assert all(sum(call) <= 10 or len(call) == 1 for call in calls)
    assert [30] in calls


def test_an_item_whose_cost_cannot_be_told_fails_alone(site: Site) -> None:
    wrong = site.task("wrong")
    bad, good = wrong.delay(0), wrong.delay(2)
    with pytest.raises(ZeroDivisionError):
        bad.get(timeout=20)
    assert good.get(timeout=20) is None


def test_more_keys_than_may_gather_send_the_fullest_on_its_way(site: Site) -> None:
    keyed = site.task("keyed")
    for value in ("a1", "b1", "b2"):
        keyed.delay(value)
    eventually(lambda: site.broker.unacked() == 3)
    keyed.delay("c1")
    first, *others = site.called(4)
    assert (first["values"], first["reason"]) == (["b1", "b2"], "keys")
    assert sorted(call["values"] for call in others) == [["a1"], ["c1"]]
    assert {call["reason"] for call in others} == {"wait"}


def test_idle_slots_share_a_batch_of_what_computes(site: Site) -> None:
    site.task("spread").delay_many(range(8))
    slots = SLOTS if site.worker.pool != "solo" else 1
    sizes = [len(call["values"]) for call in site.called(8)]
    assert sizes == ([4, 4] if slots > 1 else [8])


def test_a_part_is_for_a_slot_that_its_queue_may_take(site: Site) -> None:
    site.task("narrow").delay_many(range(8))
    assert [call["values"] for call in site.called(8)] == [list(range(8))]


def test_what_has_a_rate_is_not_shared_out_as_each_part_would_be_a_call(site: Site) -> None:
    site.task("paced").delay_many(range(8))
    assert [call["values"] for call in site.called(8)] == [list(range(8))]


def test_a_cost_is_what_the_model_has_read(site: Site) -> None:
    site.task("weighed").delay_many([{"weight": "4.5"}, {"weight": 5}, {"weight": 3.5}])
    calls = [call["values"] for call in site.called(3)]
    assert sorted(value for call in calls for value in call) == [3.5, 4.5, 5.0]
    assert all(sum(call) <= 10 for call in calls)


def test_levels_never_mix_and_what_is_urgent_does_not_wait_for_company(site: Site) -> None:
    patient = site.task("patient")
    for value in (1, 2):
        patient.delay(value)
    eventually(lambda: site.broker.unacked() == 2)
    patient.apply_async((3,), priority="high")
    eventually(lambda: len(site.calls) == 1)
    assert site.calls[0]["values"] == [3]
    assert site.calls[0]["reason"] == "urgent"
    patient.delay(4)
    assert [call["values"] for call in site.called(4)] == [[3], [1, 2, 4]]


def test_a_worker_tells_what_its_calls_were_like(site: Site) -> None:
    plain = site.task("plain")
    before = site.figures("shapes.plain")
    plain.delay_many(["again", "x", "y"])
    site.called(4)
    after = site.figures("shapes.plain")
    assert after["items"] - before.get("items", 0) == 4
    endings = {
        name: count - before.get("outcomes", {}).get(name, 0)
        for name, count in after["outcomes"].items()
    }
    assert {name: count for name, count in endings.items() if count} == {"done": 3, "retried": 1}
    assert sum(after["reasons"].values()) == after["calls"]
    assert after["mean_size"] == round(after["items"] / after["calls"], 1)
    assert after["wait_p50_ms"] <= after["wait_p99_ms"]


@pytest.mark.parametrize("way", ["apply_async", "apply_many", "group"])
def test_an_item_may_ask_to_be_alone(site: Site, way: str) -> None:
    patient = site.task("patient")
    if way == "apply_async":
        for value in ("x", "again"):
            patient.apply_async((value,), batch=False)
    elif way == "apply_many":
        patient.apply_many([(("x",), {}), (("again",), {})], batch=False)
    else:
        group(patient.s(value).set(batch=False) for value in ("x", "again"))()
    calls = site.called(3)
    assert sorted(call["values"] for call in calls) == [["again"], ["again"], ["x"]]
    assert {call["reason"] for call in calls} == {"alone"}, "its retry is alone as well"
    assert sorted(call["attempts"] for call in calls) == [[1], [1], [2]]
