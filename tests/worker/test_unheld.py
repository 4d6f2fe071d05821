"""What is consumed without acknowledgement runs, plain and batched; nobody gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery

from routing.redis import ledger as books
from tests.apps.basic import Traces, close
from tests.apps.unheld import LOOSE, NEWS, TABLED, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS

QUEUES = ("default", LOOSE, NEWS, TABLED)


@pytest.fixture(scope="module", params=POOLS)
def url(request: pytest.FixtureRequest, valkey: Server) -> Iterator[str]:
    url = valkey.fresh_url()
    with Worker("tests.apps.unheld", request.param, env={"CELERIAC_TEST_BROKER": url}):
        yield url


@pytest.fixture
def sender(url: str) -> Iterator[Celery]:
    app = create(url)
    yield app
    close(app)


def send(app: Celery, task: str, name: str, queue: str) -> Any:
    to: dict[str, Any] = {"queue": queue}
    if queue == NEWS:
        # A producer that has not declared it does not know that it is a broadcast.
        to = {"exchange": NEWS, "declare": [app.amqp.queues[NEWS].exchange]}
    return app.tasks[f"unheld.{task}"].apply_async((name,), **to)


@pytest.mark.parametrize("task", ["mark", "batch"])
def test_tasks_of_every_queue_run_once_and_their_results_come_back(
    url: str, sender: Celery, task: str
) -> None:
    sent = {
        f"{task} {q} {n}": send(sender, task, f"{task} {q} {n}", q)
        for q in QUEUES
        for n in range(5)
    }
    assert {name: result.get(timeout=20) for name, result in sent.items()} == {n: n for n in sent}
    with Broker(url) as broker:
        traces = Traces(url)
        eventually(broker.holds_nothing)
        assert {name: n for name, n in traces.counts().items() if name in sent} == dict.fromkeys(
            sent, 1
        )
        traces.client.close()


def test_a_failure_is_stored_and_a_backlog_is_taken_by_the_slice(url: str, sender: Celery) -> None:
    failures = [send(sender, "fail", f"fail {q}", q) for q in QUEUES]
    for failure in failures:
        with suppress(ValueError):
            failure.get(timeout=20)
    assert {failure.state for failure in failures} == {"FAILURE"}
    results = [send(sender, "mark", f"many {n}", LOOSE) for n in range(150)]
    assert len([result.get(timeout=20) for result in results]) == 150


def test_the_ledger_of_a_queue_of_the_table_balances(url: str, sender: Celery) -> None:
    send(sender, "mark", "tabled", TABLED).get(timeout=20)
    with Broker(url) as broker, sender.connection_for_write() as connection:
        eventually(broker.holds_nothing)
        channel = connection.default_channel
        book = books.read(channel.plain_client, channel.commands, [TABLED], recount=True)[TABLED]
        assert (book.difference, book.misheld, book.waiting) == (0, 0, 0)
        assert broker.ledger(TABLED)["started"] == broker.ledger(TABLED)["accepted"]


def test_a_key_that_is_no_queue_ends_no_worker(url: str, sender: Celery) -> None:
    with Broker(url) as broker:
        broker.client.set(LOOSE, "somebody's own")
        send(sender, "mark", "meanwhile", "default").get(timeout=20)
        looked = broker.calls()  # a fetch, or a wait for a bell
        eventually(lambda: broker.calls() >= looked + 4)
        send(sender, "mark", "still", "default").get(timeout=20)
        broker.client.delete(LOOSE)
    assert send(sender, "mark", "again", LOOSE).get(timeout=20) == "again"
