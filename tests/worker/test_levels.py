"""A level is kept by whatever carries a message on, in every pool."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from routing.deadletters.letter import Filter
from routing.deadletters.replay import Plan, Replay
from routing.redis.letters import StoredLetters
from tests.apps.basic import close
from tests.apps.levels import QUEUES, create
from tests.support.broker import Broker
from tests.support.results import value
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS

AT_HIGH, AT_LOW, AT_NONE = "fast/high/None", "bulk/low/None", "plain/None/None"


class Place:
    """A worker of the levels app, and what its tasks have seen."""

    def __init__(self, url: str, broker: Broker, **settings: Any) -> None:
        self.app: Celery = create(url, **settings)
        self.broker = broker

    def task(self, name: str) -> Any:
        return self.app.tasks[f"levels.{name}"]

    def seen(self, name: str, count: int = 1) -> list[str]:
        """Return where the runs of this name came from, when there are as many."""
        key = f"seen:{name}"
        client = self.broker.client
        eventually(lambda: client.llen(key) >= count, 20, message=lambda: f"{name} has not run")
        return [text.decode() for text in client.lrange(key, 0, -1)]


def worker_of(url: str, pool: str, **settings: Any) -> Worker:
    env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_SETTINGS": json.dumps(settings)}
    return Worker("tests.apps.levels", pool, env=env)


@contextmanager
def running(url: str, pool: str, **settings: Any) -> Iterator[Place]:
    with Broker(url) as broker, worker_of(url, pool, **settings):
        place = Place(url, broker, **settings)
        yield place
        close(place.app)


@pytest.fixture(scope="module", params=POOLS)
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Place]:
    with running(valkey.fresh_url(), request.param) as place:
        yield place


@pytest.fixture(autouse=True)
def _nothing_is_left_to_the_next(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "at" in request.fixturenames:
        eventually(request.getfixturevalue("at").broker.holds_nothing)


@pytest.fixture
def name() -> str:
    return secrets.token_hex(4)


def test_a_call_says_its_level_in_the_request(at: Place, name: str) -> None:
    seen = at.task("seen")
    assert seen.delay(name).get(timeout=10) == AT_NONE
    assert seen.apply_async((name,), priority="high").get(timeout=10) == AT_HIGH
    assert at.app.send_task("levels.seen", (name,), low_priority=True).get(timeout=10) == AT_LOW


@pytest.mark.parametrize("when", [{"countdown": 0}, {"countdown": 0.2}], ids=str)
def test_a_retry_keeps_the_level(at: Place, name: str, when: dict[str, Any]) -> None:
    result = at.task("retried").apply_async((name, when), priority="high")
    assert result.get(timeout=15) == AT_HIGH
    assert at.seen(name, 2) == [AT_HIGH, AT_HIGH]


def test_autoretry_keeps_the_level(at: Place, name: str) -> None:
    assert at.task("auto").apply_async((name,), low_priority=True).get(timeout=15) == AT_LOW
    assert at.seen(name, 2) == [AT_LOW, AT_LOW]


def test_a_retry_may_name_another_level(at: Place, name: str) -> None:
    options = {"countdown": 0, "priority": "low"}
    result = at.task("retried").apply_async((name, options), priority="high")
    assert result.get(timeout=15) == AT_LOW
    assert at.seen(name, 2) == [AT_HIGH, AT_LOW]


def test_a_retry_that_names_an_unknown_level_fails_its_task(at: Place, name: str) -> None:
    result = at.task("retried").apply_async((name, {"countdown": 0, "priority": "hgih"}))
    with pytest.raises(Exception, match="did you mean 'high'"):
        result.get(timeout=15)


def test_a_delay_keeps_the_level(at: Place, name: str) -> None:
    seen = at.task("seen")
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    assert seen.apply_async((name,), priority="high", countdown=0.3).get(timeout=15) == AT_HIGH
    assert seen.apply_async((name,), priority="low", eta=later).get(timeout=15) == AT_LOW


@pytest.mark.parametrize("task", ["rows", "auto_rows"])
def test_items_of_batches_retry_at_their_own_levels(at: Place, name: str, task: str) -> None:
    before = {queue: at.broker.ledger(queue) for queue in set(QUEUES.values())}
    levels = [("high", "low", None)[n % 3] for n in range(60)]
    receipts = at.task(task).delay_many(
        [f"{name}-{n}" for n in range(60)],
        priority=lambda item: levels[int(item.rpartition("-")[2])],
    )
    assert receipts.refused == 0
    for n, level in enumerate(levels):
        assert at.seen(f"{name}-{n}", 2) == [str(level)] * 2
    for queue, was in before.items():
        grown = {k: v - was.get(k, 0) for k, v in eventually_done(at, queue, was).items()}
        assert (grown["retried"], grown["done"], grown["accepted"]) == (20, 20, 40)
    mixed = at.broker.client.lrange("batches", 0, -1)
    assert all(len(set(text.split(b","))) == 1 for text in mixed)


def eventually_done(at: Place, queue: str, before: dict[str, int]) -> dict[str, int]:
    def ended() -> bool:
        return at.broker.ledger(queue).get("done", 0) - before.get("done", 0) >= 20

    eventually(ended)
    return at.broker.ledger(queue)


def test_a_batch_that_retries_at_an_unknown_level_fails(at: Place) -> None:
    result = at.task("moved").apply_async(("hgih",))
    with pytest.raises(Exception, match="did you mean 'high'"):
        result.get(timeout=15)


def test_protocol_1_goes_at_its_level(at: Place, name: str) -> None:
    at.app.conf.task_protocol = 1
    try:
        at.app.send_task("levels.seen", (name,), priority="high")
    finally:
        at.app.conf.task_protocol = 2
    assert at.seen(name)[0].startswith("fast/")


def test_a_batch_may_retry_at_another_level(at: Place, name: str) -> None:
    at.task("moved").apply_async((name,), priority="high")
    assert at.seen(name, 2) == ["high", "low"]


def test_canvas_keeps_the_level_of_each_signature(at: Place, name: str) -> None:
    seen, other = at.task("seen"), at.task("other")
    high, low = {"priority": "high"}, {"low_priority": True}
    one = seen.si(f"{name}-chain-1").set(**high)
    chain(one, seen.si(f"{name}-chain-2").set(**low), seen.si(f"{name}-chain-3")).delay()
    assert at.seen(f"{name}-chain-1") == [AT_HIGH]
    assert at.seen(f"{name}-chain-2") == [AT_LOW]
    assert at.seen(f"{name}-chain-3") == [AT_NONE]  # as in Celery, a step inherits nothing

    chain(seen.si(f"{name}-other-1").set(**high), other.si(f"{name}-other-2").set(**high)).delay()
    assert at.seen(f"{name}-other-2") == ["plain/high/None"]  # where its own route says

    members = [seen.si(name).set(**high), seen.si(name).set(**low), seen.si(name)]
    assert value(group(members, app=at.app)()) == [AT_HIGH, AT_LOW, AT_NONE]

    body = seen.s(f"{name}-body").set(**high)
    chord([seen.si(f"{name}-header").set(**low)], app=at.app)(body)
    assert at.seen(f"{name}-header") == [AT_LOW]
    assert at.seen(f"{name}-body") == [AT_HIGH]


def test_links_keep_their_level(at: Place, name: str) -> None:
    seen, failing = at.task("seen"), at.task("fails")
    seen.apply_async((name,), link=seen.si(f"{name}-link").set(priority="high"))
    assert at.seen(f"{name}-link") == [AT_HIGH]
    failing.apply_async((name,), link_error=seen.si(f"{name}-error").set(low_priority=True))
    assert at.seen(f"{name}-error") == [AT_LOW]


def test_what_takes_the_place_of_a_task_has_its_own_level(at: Place, name: str) -> None:
    replaced = at.task("replaced")
    replaced.apply_async((f"{name}-low", {"priority": "low"}), priority="high")
    replaced.apply_async((f"{name}-none", {}), priority="high")
    assert at.seen(f"{name}-low") == [AT_LOW]
    assert at.seen(f"{name}-none") == [AT_NONE]  # as in Celery, a replacement inherits nothing


def test_a_call_within_a_task_has_its_own_level(at: Place, name: str) -> None:
    at.task("calls").apply_async((name, {}), priority="high")
    assert at.seen(name) == [AT_NONE]


def test_a_replay_of_a_dead_letter_keeps_the_level(at: Place, name: str) -> None:
    failing = at.task("fails")
    before = at.broker.length("fast.dead")
    sent = failing.apply_async((name,), priority="high")
    eventually(lambda: at.broker.length("fast.dead") == before + 1)
    (letter,) = [
        headers
        for text in at.broker.payloads("fast.dead")
        if (headers := json.loads(text)["headers"])["id"] == sent.id
    ]
    assert letter["priority_level"] == "high"
    at.broker.client.set(name, "there")
    with at.app.connection_for_write() as connection:
        channel = connection.default_channel
        letters = StoredLetters(channel.plain_client, channel.commands)
        replay = Replay(letters, Plan(), forget=at.app.backend.forget)
        assert replay.run(["fast"], Filter(ids=[sent.id])).count == 1
    assert sent.get(timeout=15) is None


def test_a_downgraded_call_says_what_it_asked_for_through_its_retries(at: Place, name: str) -> None:
    retried = at.task("retried")
    result = retried.apply_async((name, {"countdown": 0}), priority="high", headers={"free": True})
    assert result.get(timeout=15) == "bulk/low/high"
    assert at.seen(name, 2) == ["bulk/low/high"] * 2


def test_a_redelivery_keeps_the_level(valkey: Server, name: str) -> None:
    with running(valkey.fresh_url(), "prefork") as place:
        result = place.task("dies").apply_async((name,), priority="high")
        assert result.get(timeout=30) == AT_HIGH
        assert place.seen(name, 2) == [AT_HIGH, AT_HIGH]


def test_what_a_killed_worker_held_keeps_its_level(valkey: Server, name: str) -> None:
    url = valkey.fresh_url()
    with Broker(url) as broker:
        place = Place(url, broker)
        # It ends with its only process.
        with worker_of(url, "solo") as first:
            place.task("dies").apply_async((name,), priority="high")
            assert place.seen(name) == [AT_HIGH]
            first.wait()
            with worker_of(url, "solo"):
                assert place.seen(name, 2) == [AT_HIGH, AT_HIGH]
        close(place.app)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def heirs(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Place]:
    """A worker whose tasks hand their priority down."""
    url = valkey.fresh_url()
    with running(url, request.param, task_inherit_parent_priority=True) as place:
        yield place


def test_where_priorities_are_inherited_levels_are(heirs: Place, name: str) -> None:
    seen, high = heirs.task("seen"), {"priority": "high"}
    heirs.task("calls").apply_async((f"{name}-call", {}), **high)
    heirs.task("calls").apply_async((f"{name}-own", {"priority": "low"}), **high)
    chain(
        seen.si(f"{name}-1").set(**high),
        seen.si(f"{name}-2"),
        heirs.task("other").si(f"{name}-3"),
        seen.si(f"{name}-4").set(low_priority=True),
        seen.si(f"{name}-5"),
    ).delay()
    seen.apply_async((name,), **high, link=seen.si(f"{name}-link"))
    assert heirs.seen(f"{name}-call") == [AT_HIGH]
    assert heirs.seen(f"{name}-own") == [AT_LOW]
    assert heirs.seen(f"{name}-2") == [AT_HIGH]
    assert heirs.seen(f"{name}-3") == ["plain/high/None"]  # a level, not a queue
    assert heirs.seen(f"{name}-4") == [AT_LOW]
    assert heirs.seen(f"{name}-5") == [AT_LOW]
    assert heirs.seen(f"{name}-link") == [AT_HIGH]


def test_a_level_of_its_own_wins_over_an_inherited_number(heirs: Place, name: str) -> None:
    seen = heirs.task("seen")
    chain(seen.si(name).set(priority=3), seen.si(f"{name}-2").set(priority="high")).delay()
    assert heirs.seen(f"{name}-2") == [AT_HIGH]


def test_a_retry_of_an_heir_keeps_its_level(heirs: Place, name: str) -> None:
    result = heirs.task("retried").apply_async((name, {"countdown": 0}), priority="high")
    assert result.get(timeout=15) == AT_HIGH
