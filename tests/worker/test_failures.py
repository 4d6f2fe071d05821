"""Whatever a task raises is its own ending, in every pool; it costs no neighbour and no process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.apps.basic import Traces, close
from tests.apps.failing import ERRORS, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS


class Site(NamedTuple):
    """A running worker, and what a test needs to talk to it."""

    pool: str
    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        result: AsyncResult = self.app.tasks[f"failing.{task}"].apply_async(args, **options)
        return result

    def runs(self, results: list[AsyncResult]) -> set[int]:
        counts = self.traces.counts()
        return {counts.get(result.id, 0) for result in results}


@pytest.fixture(scope="module", params=POOLS)
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker("tests.apps.failing", request.param, env={"CELERIAC_TEST_BROKER": url})
    with worker, Broker(url) as broker:
        app, traces = create(url), Traces(url)
        yield Site(request.param, app, worker, broker, traces)
        traces.client.close()
        close(app)


@pytest.fixture(autouse=True)
def _ends_everything_in_the_same_processes(
    request: pytest.FixtureRequest, site: Site
) -> Iterator[None]:
    before = set(site.worker.children)
    yield
    eventually(
        lambda: site.broker.has_ended("default"),
        message=lambda: f"{site.broker.unacked()} unacked\n{site.worker.log[-20_000:]}",
    )
    assert site.worker.running
    assert "Unrecoverable error" not in site.worker.log
    if "exit" not in request.node.name:
        assert set(site.worker.children) == before


def ended(results: list[AsyncResult]) -> list[str]:
    """Return the states of tasks that have come to an end."""
    for result in results:
        result.get(timeout=20, propagate=False)
    return [result.state for result in results]


def reasons(site: Site, results: list[AsyncResult]) -> dict[str, tuple[str, str]]:
    """Return why the messages of these became dead letters, by id."""
    ids = {result.id for result in results}
    found = site.broker.evidence("default")
    return {one["id"]: (one["reason"], one["exception"]) for one in found if one["id"] in ids}


def kind_names(site: Site, results: list[AsyncResult]) -> list[str]:
    """Return the types that the dead letters of these name, in order."""
    eventually(lambda: len(reasons(site, results)) == len(results))
    found = reasons(site, results)
    return [found[result.id][1].rpartition(".")[2] for result in results]


def test_any_error_is_its_tasks_one_failure(site: Site) -> None:
    results = [site.send("one", "raised", kind) for kind in ERRORS]
    assert set(ended(results)) == {"FAILURE"}
    names = dict(zip(ERRORS, kind_names(site, results), strict=True))
    assert site.runs(results) == {1}
    assert names["plain"] == "ValueError"
    assert names["cancelled"] == "CancelledError"
    assert names["timeout"] == "Timeout"
    assert names["odd"] == "Odd"
    assert names["memory"] == "MemoryError"
    for signal in ("failure signals", "postrun signals"):
        heard = site.traces.counts(signal)
        assert {heard.get(result.id) for result in results} == {1}, signal


def test_any_error_of_an_item_is_its_own_failure(site: Site) -> None:
    bad = [site.send("batch", ("raised", kind)) for kind in ERRORS]
    good = [site.send("batch", None) for _ in range(5)]
    assert set(ended(bad)) == {"FAILURE"}
    assert set(ended(good)) == {"SUCCESS"}
    assert site.runs([*bad, *good]) == {1}
    kind_names(site, bad)


@pytest.mark.parametrize("kind", ERRORS)
def test_any_error_of_a_batch_function_is_the_failure_of_its_items(site: Site, kind: str) -> None:
    results = [site.send("whole", kind) for _ in range(3)]
    assert ended(results) == ["FAILURE"] * 3
    assert site.runs(results) == {1}
    assert len(set(kind_names(site, results))) == 1


@pytest.mark.parametrize("task", ["one", "batch"])
def test_any_error_may_be_the_reason_of_a_rejection(site: Site, task: str) -> None:
    results = [
        site.send(task, *(("rejected", kind) if task == "one" else (("rejected", kind),)))
        for kind in ERRORS
    ]
    eventually(lambda: len(reasons(site, results)) == len(results))
    assert set(reasons(site, results).values()) == {("rejected", "celery.exceptions.Reject")}
    assert set(ended(results)) == {"FAILURE"}
    assert site.runs(results) == {1}


@pytest.mark.parametrize("task", ["one", "batch"])
def test_any_error_may_be_ignored(site: Site, task: str) -> None:
    before = site.broker.ledger("default").get("ignored", 0)
    for kind in ERRORS:
        site.send(task, *(("ignored", kind) if task == "one" else (("ignored", kind),)))
    eventually(lambda: site.broker.ledger("default").get("ignored", 0) == before + len(ERRORS))


def test_any_error_may_be_the_reason_of_a_retry(site: Site) -> None:
    results = [site.send("retries", kind) for kind in ERRORS]
    assert set(ended(results)) == {"FAILURE"}
    assert site.runs(results) == {2}


@pytest.mark.parametrize("form", ["", "batch_"])
@pytest.mark.parametrize("hook", ["before_start", "on_success", "on_failure", "after_return"])
def test_any_error_of_a_hook_leaves_its_task_ended(site: Site, form: str, hook: str) -> None:
    results = [site.send(form + hook, kind) for kind in ERRORS]
    states = dict(zip(ERRORS, ended(results), strict=True))
    expected = "FAILURE" if hook in ("before_start", "on_failure") else "SUCCESS"
    assert set(states.values()) == {expected}, states
    eventually(lambda: site.broker.unacked() == 0)
    if hook != "before_start" or form:
        assert site.runs(results) == {1}


def test_an_exit_that_cannot_be_loaded_ends_its_process_alone(site: Site) -> None:
    if site.pool != "prefork":
        pytest.skip("there is no process to exit")
    site.send("exits", ignore_result=True)
    assert ended([site.send("batch", None) for _ in range(5)]) == ["SUCCESS"] * 5
    eventually(lambda: site.broker.evidence("default")[-1:] and poisoned(site), 30)


def poisoned(site: Site) -> bool:
    return any(one["task"] == "failing.exits" for one in site.broker.evidence("default"))
