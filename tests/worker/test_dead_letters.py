"""Whatever will not be tried again becomes a dead letter, with the evidence; nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord
from celery.exceptions import NotRegistered

from routing import DeadLetter
from tests.apps import batches
from tests.apps.basic import close
from tests.support.broker import Broker
from tests.support.messages import task_message
from tests.support.results import outcome
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.support.worker import Worker


@pytest.fixture(scope="module", params=["prefork", "threads"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


def letter(broker: Broker, task_id: str, queue: str = "default") -> Any:
    """Return the evidence of a message, once it is a dead letter."""

    def found() -> Any:
        letters = broker.dead(queue)
        return [one["celeriac"]["dead"] for one in letters if one["headers"].get("id") == task_id]

    return eventually(found)[0]


def test_a_failed_task_leaves_its_message_with_the_evidence(at: Station) -> None:
    result = at.send("fail", "too bad")
    assert isinstance(outcome(result), ValueError)
    found = letter(at.broker, result.id)
    assert found["reason"] == "failed"
    assert (found["exception"], found["message"]) == ("ValueError", "too bad")
    assert found["traceback"].endswith("ValueError: too bad\n")
    assert (found["task"], found["queue"], found["attempts"]) == ("basic.fail", "default", 1)
    assert (found["deliveries"], found["worker"]) == (1, at.worker.name)


def test_failures_of_one_cause_have_one_fingerprint(at: Station) -> None:
    one, other, else_ = at.send("fail", "1"), at.send("fail", "2"), at.send("exhausted", "3")
    prints = [letter(at.broker, result.id)["fingerprint"] for result in (one, other, else_)]
    assert prints[0] == prints[1] != prints[2]


def test_a_task_that_says_it_is_dead_is_not_retried(at: Station) -> None:
    result = at.send("doomed", "no hope")
    error = outcome(result)
    assert isinstance(error, DeadLetter)
    assert str(error) == "no hope"
    found = letter(at.broker, result.id)
    assert (found["reason"], found["message"], found["attempts"]) == ("dead", "no hope", 1)


def test_retries_come_first(at: Station) -> None:
    result = at.send("exhausted", "again")
    assert isinstance(outcome(result), LookupError)
    found = letter(at.broker, result.id)
    assert (found["reason"], found["attempts"]) == ("failed", 2)


def test_a_rejected_message_is_kept(at: Station) -> None:
    result = at.send("rejects", "not for us")
    found = letter(at.broker, result.id)
    assert found["reason"] == "rejected"
    assert "not for us" in found["message"]


def test_a_task_that_nobody_knows_fails_and_is_kept(at: Station) -> None:
    at.broker.client.lpush("default", task_message("basic.nowhere", message_id="unknown"))
    assert isinstance(outcome(at.app.AsyncResult("unknown")), NotRegistered)
    found = letter(at.broker, "unknown")
    assert (found["reason"], found["task"]) == ("unknown_task", "basic.nowhere")
    assert (found["exception"], found["worker"]) == (
        "celery.exceptions.NotRegistered",
        at.worker.name,
    )


@pytest.mark.parametrize(
    ("message_id", "options"),
    [
        ("bad-body", {"body": "[1, 2"}),
        ("bad-shape", {"body": '"text"'}),
        ("bad-eta", {"headers": {"expires": "tomorrow"}}),
        ("compressed", {"headers": {"compression": "gzip"}}),
    ],
)
def test_what_cannot_be_read_is_kept(at: Station, message_id: str, options: Any) -> None:
    text = task_message("basic.add", (1, 2), message_id=message_id, **options)
    at.broker.client.lpush("default", text)
    assert letter(at.broker, message_id)["reason"] in ("undecodable", "unknown_task")


def test_what_is_retried_ignored_revoked_or_acknowledged_early_is_no_dead_letter(
    at: Station,
) -> None:
    before = at.broker.length("default.dead")
    assert at.send("retried", "r", 1).get(timeout=20) == 1
    early = at.send("fails_early", "early")
    assert isinstance(outcome(early), ValueError)
    at.send("add", 1, 1, expires=-1)
    assert at.send("add", 1, 1).get(timeout=20) == 2
    at.wait_until_settled()
    assert at.broker.length("default.dead") == before


def test_a_failed_chord_member_is_kept_and_its_chord_has_failed(at: Station) -> None:
    fail, add, collect = (at.app.tasks[f"basic.{name}"] for name in ("fail", "add", "collect"))
    body = chord([add.s(1, 1), fail.s("member")])(collect.s())
    assert "member" in str(outcome(body))
    eventually(lambda: "member" in [one["message"] for one in at.broker.evidence("default")])


def test_the_ledger_balances(at: Station) -> None:
    at.wait_until_settled()
    ledger = at.broker.ledger("default")
    assert ledger["dead"] == at.broker.length("default.dead")
    assert ledger.get("failed", 0) == ledger.get("rejected", 0) == 0


# -- batches ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batched(valkey: Server) -> Iterator[tuple[Celery, Broker]]:
    url = valkey.fresh_url()
    worker = Worker("tests.apps.batches", "prefork", env={"CELERIAC_TEST_BROKER": url})
    with worker, Broker(url) as broker:
        app = batches.create(url)
        yield app, broker
        close(app)


@pytest.mark.parametrize(
    ("value", "reason", "attempts", "message"),
    [
        ("dead", "dead", 1, "nobody can help it"),
        ("fail", "failed", 2, "twice"),
        ("reject", "rejected", 2, "not for us"),
    ],
)
def test_an_item_that_ends_for_good_is_kept(
    batched: tuple[Celery, Broker], value: str, reason: str, attempts: int, message: str
) -> None:
    app, broker = batched
    result = app.tasks["batches.condemns"].delay(value)
    found = letter(broker, result.id)
    assert (found["reason"], found["attempts"]) == (reason, attempts)
    assert message in found["message"]
    assert message in str(outcome(result))


def test_an_item_that_does_not_fit_its_model_is_kept(batched: tuple[Celery, Broker]) -> None:
    app, broker = batched
    result = app.tasks["batches.load"].delay({"number": "one"})
    found = letter(broker, result.id)
    assert (found["reason"], found["exception"]) == ("failed", "batching.errors.InvalidItem")


def test_its_neighbours_are_done(batched: tuple[Celery, Broker]) -> None:
    app, broker = batched
    before = broker.length("default.dead")
    condemns = app.tasks["batches.condemns"]
    results = [condemns.delay(value) for value in ("ok", "dead", "ignore", "ok")]
    assert results[0].get(timeout=20) is None
    assert results[3].get(timeout=20) is None
    letter(broker, results[1].id)
    eventually(lambda: broker.unacked() == 0)
    assert broker.length("default.dead") == before + 1
