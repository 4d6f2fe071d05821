"""What becomes of a dropped task: a final state for everybody who waits for it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord

from routing import Dropped, QueueFull
from tests.support.results import value
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "queues": {
        "default": {"prefetch": 8},
        "newest": {"max_length": 1, "overflow": "drop_oldest"},
        "first": {"max_length": 1, "overflow": "drop_newest"},
        "kept": {"max_length": 1, "overflow": "dead_letter"},
        "full": {"max_length": 1},
        "waits": {"max_length": 5, "prefetch": 2, "overflow": "block"},
        "latest": {"max_length": 1, "prefetch": 1, "overflow": "drop_oldest"},
    },
}
SETTINGS = {"table": TABLE}

#: The other queues only fill: nobody consumes them.
CONSUMED = ["default", "waits", "latest", "full"]


@pytest.fixture(scope="module", params=["threads", "gevent"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    url = valkey.fresh_url()
    with station(url, request.param, 2, queues=CONSUMED, settings=SETTINGS) as at:
        yield at


@pytest.fixture(autouse=True)
def emptied(at: Station) -> Iterator[None]:
    for queue in ("newest", "first", "kept"):
        at.broker.client.delete(queue, f"{queue}.dead")
    yield
    # Results unsubscribe when they go, which needs the broker.
    gc.collect()


def error_of(result: Any) -> Any:
    """Return what a call failed with."""
    eventually(result.ready)
    error = result.result
    result.forget()
    return error


@pytest.mark.parametrize(
    ("queue", "policy", "survivor"),
    [("newest", "drop_oldest", 2), ("first", "drop_newest", 0), ("kept", "dead_letter", 0)],
)
def test_who_waits_for_a_dropped_task_gets_its_error(
    at: Station, queue: str, policy: str, survivor: int
) -> None:
    results = [at.send("add", n, n, queue=queue) for n in range(3)]
    kept = results.pop(survivor)
    for result in results:
        error = error_of(result)
        assert isinstance(error, Dropped)
        assert (error.queue, error.policy) == (queue, policy)
    assert kept.state == "PENDING"
    eventually(lambda: at.broker.length(f"{queue}.dropped") == 0)
    at.wait_until_settled()


def test_many_dropped_tasks_get_their_final_state(at: Station) -> None:
    receipts = at.app.tasks["basic.add"].apply_many(
        [((n, n), {}) for n in range(300)], queue="first"
    )
    states = [at.app.AsyncResult(i) for i in receipts.ids[1:]]
    eventually(lambda: all(result.state == "FAILURE" for result in states), 20)


def test_a_dropped_chord_member_fails_its_chord(at: Station) -> None:
    at.send("add", 0, 0, queue="first")
    add, collect = at.app.tasks["basic.add"], at.app.tasks["basic.collect"]
    result = chord([add.s(1, 1), add.s(2, 2).set(queue="first")])(collect.s())
    assert "Dropped('first', 'drop_newest')" in str(error_of(result))


def test_a_dropped_step_fails_the_chain_behind_it(at: Station) -> None:
    at.send("add", 0, 0, queue="first")
    add = at.app.tasks["basic.add"]
    result = chain(add.s(1, 1).set(queue="first"), add.s(2), add.s(3)).apply_async()
    assert isinstance(error_of(result), Dropped)


def test_error_callbacks_of_a_dropped_task_run_although_their_queue_is_full(at: Station) -> None:
    at.send("add", 0, 0, queue="first")
    at.send("add", 0, 0, queue="kept")
    # A task of one argument is called with the id of what failed, as a message of its own.
    call_back = at.app.tasks["basic.fail"].s().set(queue="kept")
    at.send("add", 1, 1, queue="first", link_error=call_back)
    eventually(lambda: at.broker.length("kept") == 2)
    assert at.broker.ledger("kept")["overshoot"] == 1


def test_a_success_that_is_stored_stays(at: Station) -> None:
    done = at.send("add", 1, 2, queue="default")
    assert value(done) == 3
    at.send("add", 0, 0, queue="first")
    at.send("add", 1, 2, queue="first", task_id=done.id)
    eventually(lambda: at.broker.ledger("first")["dropped"] >= 1)
    eventually(lambda: at.broker.length("first.dropped") == 0)
    at.wait_until_settled()
    assert at.app.AsyncResult(done.id).state == "SUCCESS"


def test_a_result_that_nobody_asked_for_is_not_stored(at: Station) -> None:
    first = at.send("add", 0, 0, queue="first", ignore_result=True)
    dropped = at.send("add", 1, 1, queue="first", ignore_result=True)
    eventually(lambda: at.broker.length("first.dropped") == 0)
    at.wait_until_settled()
    assert at.broker.names(f"celery-task-meta-{dropped.id}") == set()
    assert first.id != dropped.id


def test_what_is_no_task_message_does_not_stop_the_others(at: Station) -> None:
    at.broker.client.lpush("first", "this is no message")
    at.send("add", 0, 0, queue="newest")
    at.broker.client.lpush("newest.dropped", "nor is this", '{"properties": {}}')
    at.send("add", 1, 1, queue="newest")
    eventually(lambda: at.broker.length("newest.dropped") == 0)
    at.wait_until_settled()


def test_retries_are_let_into_a_full_queue(at: Station) -> None:
    at.stop_consuming("full")
    at.send("retried", "again", 2, queue="full")
    with pytest.raises(QueueFull):
        at.send("mark", "refused", queue="full")
    at.consume("full")
    eventually(lambda: at.traces.counts().get("again") == 3)


def test_a_blocked_producer_keeps_pace_with_the_worker(at: Station) -> None:
    names = at.send_many("mark", 60, 0.01, queue="waits")
    # What it is ahead by fits into the queue, and into the worker's hands.
    done = sum(name in at.traces.counts() for name in names)
    assert done >= 60 - 5 - 2 - 2
    assert at.broker.ledger("waits")["accepted"] == 60
    eventually(lambda: all(name in at.traces.counts() for name in names))


def test_the_latest_message_is_fresh_when_it_starts(at: Station) -> None:
    ended = threading.Event()
    sent: dict[str, float] = {}

    def produce() -> None:
        n = 0
        while not ended.is_set():
            n += 1
            sent[f"latest-{n}"] = time.monotonic()
            at.send("mark", f"latest-{n}", 0.1, queue="latest", ignore_result=True)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        ages = []
        while len(ages) < 10:
            name = at.traces.next_start()
            if name in sent:
                ages.append(time.monotonic() - sent[name])
    finally:
        ended.set()
        producer.join(10)
    assert sorted(ages)[5] < 0.2, "a service time, and some for a busy machine"
    ledger = at.broker.ledger("latest")
    assert ledger["accepted"] == len(sent)
    assert ledger["dropped"] > ledger.get("done", 0)
