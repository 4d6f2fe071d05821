"""However a message ends, the ledger has it, and adds up at every moment."""

from __future__ import annotations

import json
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from celery import Celery

from routing.redis import ledger as books
from routing.redis.ledger import Ledger, QueueLedger
from routing.transport.channel import EngineMixin
from routing.transport.gathering import Destination
from tests.apps.basic import Traces, close
from tests.apps.endings import TABLE, create
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

#: Counters of moves, not of endings.
MOVES = {"given_back", "reclaimed", "dead_trimmed"}


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A worker whose tasks end in every way, and the ledger of its broker."""

    app: Celery
    worker: Worker
    channel: EngineMixin
    traces: Traces
    pool: str

    def send(self, task: str, *args: Any, queue: str = "plain", **options: Any) -> Any:
        name = task if "." in task else f"endings.{task}"
        return self.app.send_task(name, args, queue=queue, **options)

    def ledger(self) -> Ledger:
        """Return the ledger of all queues, counted again."""
        return books.read(self.channel.plain_client, self.channel.commands, recount=True)

    def settled(self, queue: str) -> QueueLedger:
        """Return a queue's ledger once nothing of it waits or is held."""

        def at_rest() -> QueueLedger | None:
            at = self.ledger()[queue]
            return None if at.waiting or at.delayed or at.unacked else at

        return eventually(at_rest, 20, message=self.explain)

    def endings_of(self, act: Callable[[], object], queue: str = "plain") -> dict[str, int]:
        """Return what a queue's counters have grown by once all that an act sent has ended."""
        before = self.settled(queue)
        act()
        after = self.settled(queue)
        grown = Counter(after.counters)
        grown.subtract(before.counters)
        return {name: n for name, n in grown.items() if n and name not in MOVES}

    def explain(self) -> str:
        return f"{self.ledger()}\n{self.worker.log[-5000:]}"


@pytest.fixture(scope="module", params=["prefork", "threads"])
def shop(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Shop]:
    url = valkey.fresh_url()
    app = create(url)
    env = {"CELERIAC_TEST_BROKER": url}
    traces = Traces(url)
    with (
        app.connection_for_write() as connection,
        Worker("tests.apps.endings", request.param, 2, env=env, queues=["plain", "keeping"]) as at,
    ):
        channel = connection.default_channel
        yield Shop(app=app, worker=at, channel=channel, traces=traces, pool=request.param)
    traces.client.close()
    close(app)


@pytest.fixture(autouse=True)
def every_queue_balances(shop: Shop) -> Iterator[None]:
    yield
    for queue in shop.ledger().queues:
        assert (queue.difference, queue.misheld) == (0, 0), queue


def needs_processes(shop: Shop) -> None:
    if shop.pool != "prefork":
        pytest.skip("only a process can be lost")


ONCE = {
    "basic.add 1 1": {"done": 1},
    "basic.fail x": {"failed": 1},
    "endings.reject": {"rejected": 1},
    "endings.ignore": {"ignored": 1},
    "endings.unacknowledged": {"failed": 1},
    "endings.early_failure": {"started": 1},
    "endings.batch done": {"done": 1},
    "endings.batch failed": {"failed": 1},
    "endings.batch retried": {"accepted": 2, "retried": 1, "failed": 1},
    "endings.replace": {"accepted": 2, "ignored": 1, "done": 1},
    "basic.retried again 1": {"accepted": 2, "retried": 1, "done": 1},
}


@pytest.mark.parametrize("call", ONCE)
def test_a_message_is_counted_by_how_it_ended(shop: Shop, call: str) -> None:
    task, *words = call.split()
    args = [int(word) if word.isdigit() else word for word in words]
    assert shop.endings_of(lambda: shop.send(task, *args)) == {"accepted": 1} | ONCE[call]


@pytest.mark.parametrize(
    "call", [call for call in ONCE if {"failed", "rejected"} & set(ONCE[call])]
)
def test_what_fails_for_good_is_a_dead_letter_where_these_are_kept(shop: Shop, call: str) -> None:
    task, *args = call.split()
    before = shop.ledger()["keeping"].dead_letters
    expected = {"accepted": 1} | ONCE[call]
    expected["dead"] = expected.pop("failed", 0) + expected.pop("rejected", 0)
    assert shop.endings_of(lambda: shop.send(task, *args, queue="keeping"), "keeping") == expected
    assert shop.ledger()["keeping"].dead_letters == before + 1


def test_a_message_that_went_back_ends_once(shop: Shop) -> None:
    before = shop.settled("plain")["given_back"]
    ended = shop.endings_of(lambda: shop.send("requeue_once", secrets.token_hex(4)))
    assert ended == {"accepted": 1, "done": 1}
    assert shop.settled("plain")["given_back"] == before + 1


def test_a_message_past_its_time_is_counted_as_expired(shop: Shop) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    ended = shop.endings_of(lambda: shop.send("basic.add", 1, 1, expires=past))
    assert ended == {"accepted": 1, "expired": 1}


def test_a_message_that_is_revoked_before_it_starts_is_counted_as_revoked(shop: Shop) -> None:
    task_id = secrets.token_hex(8)
    shop.app.control.revoke(task_id, reply=True, limit=1)
    ended = shop.endings_of(lambda: shop.send("basic.add", 1, 1, task_id=task_id))
    assert ended == {"accepted": 1, "revoked": 1}


def test_a_message_that_is_revoked_while_it_runs_is_counted_as_revoked(shop: Shop) -> None:
    needs_processes(shop)
    name = secrets.token_hex(4)

    def terminate() -> None:
        running = shop.send("basic.held", name, name)
        eventually(lambda: shop.traces.counts("started").get(name))
        running.revoke(terminate=True)

    assert shop.endings_of(terminate) == {"accepted": 1, "revoked": 1}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("too_long", {"failed": 1}),
        ("fatal", {"failed": 1}),
        ("fatal_afterwards", {"done": 1}),
        ("fatal_twice", {"accepted": 2, "retried": 1, "failed": 1}),
    ],
)
def test_a_message_whose_process_is_lost_is_counted_by_what_becomes_of_it(
    shop: Shop, task: str, expected: dict[str, int]
) -> None:
    needs_processes(shop)
    assert shop.endings_of(lambda: shop.send(task)) == {"accepted": 1} | expected


#: What cannot be run, in a queue that keeps no dead letters and in one that does.
ENDS_AS = {"plain": "rejected", "keeping": "dead"}


@pytest.mark.parametrize("queue", ENDS_AS)
def test_an_unknown_task_is_counted_once(shop: Shop, queue: str) -> None:
    ended = shop.endings_of(lambda: shop.send("no.such.task", queue=queue), queue)
    assert ended == {"accepted": 1, ENDS_AS[queue]: 1}


@pytest.mark.parametrize("queue", ENDS_AS)
@pytest.mark.parametrize(
    "text",
    [
        "no json at all",
        "{}",
        '{"body":"?","headers":{"task":"basic.add","id":"x"},"properties":{"body_encoding":"base64",'
        '"delivery_info":{"routing_key":"plain"},"delivery_tag":"1"},"content-type":"x/y",'
        '"content-encoding":"utf-8"}',
    ],
    ids=["no JSON", "an empty object", "content of another type"],
)
def test_what_is_no_message_is_counted_once(shop: Shop, queue: str, text: str) -> None:
    ended = shop.endings_of(
        lambda: shop.channel.overflow(Destination(queue=queue)).push([text]), queue
    )
    assert ended == {"accepted": 1, ENDS_AS[queue]: 1}


def test_what_is_purged_is_counted(shop: Shop) -> None:
    before = shop.ledger()["purged"]
    for priority in (0, 9):
        shop.send("basic.add", 1, 1, queue="purged", priority=priority)
    assert shop.channel.queue_purge("purged") == 2
    after = shop.ledger()["purged"]
    assert after["purged"] - before["purged"] == 2


def test_what_a_deleted_queue_held_is_counted_as_purged(shop: Shop) -> None:
    before = shop.ledger()["purged"]
    shop.app.amqp.queues["purged"].bind(shop.channel).declare()
    shop.send("basic.add", 1, 1, queue="purged")
    shop.send("basic.add", 1, 1, queue="purged", countdown=60)
    shop.channel.queue_delete("purged")
    after = shop.ledger()["purged"]
    assert (after.waiting, after.delayed) == (0, 0)
    assert after["purged"] - before["purged"] == 2


class Crowd(threading.Thread):
    """Sends messages that end in all ways, purges now and then, until it is told to stop."""

    TASKS = (
        *(("basic.add", 1, 1),) * 6,
        ("basic.fail", "x"),
        ("endings.ignore",),
        ("endings.reject",),
        ("endings.early_failure",),
        ("endings.batch", "done"),
        ("endings.batch", "failed"),
        ("endings.batch", "retried"),
        ("endings.replace",),
        ("basic.retried", "crowd", 1),
        ("no.such.task",),
    )

    def __init__(self, shop: Shop, seed: int) -> None:
        super().__init__(daemon=True)
        self._shop = shop
        self._random = random.Random(seed)
        self._stop_asked = threading.Event()
        self.error: BaseException | None = None

    def __enter__(self) -> Crowd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join(20)

    def run(self) -> None:
        try:
            with self._shop.app.connection_for_write() as connection:
                producer = self._shop.app.amqp.Producer(connection, auto_declare=False)
                while not self._stop_asked.is_set():
                    self._act(connection.default_channel, producer)
        except BaseException as error:
            self.error = error

    def _act(self, channel: Any, producer: Any) -> None:
        task, *args = self._random.choice(self.TASKS)
        options: dict[str, Any] = {"queue": self._random.choice(["plain", "keeping"])}
        options["priority"] = self._random.choice([0, 0, 3, 9])
        options["countdown"] = self._random.choice([None, None, None, 0.05, 0.2])
        if self._random.random() < 0.05:
            options["expires"] = datetime.now(UTC) - timedelta(seconds=1)
        if self._random.random() < 0.01:
            channel.queue_purge(options["queue"])
        self._shop.send(task, *args, producer=producer, **options)


#: Endings that the ledger is watched for.
ENOUGH = 600


def test_the_ledger_adds_up_at_every_moment_under_load(shop: Shop) -> None:
    before = sum(at.gone for at in shop.ledger().queues)
    killed = False
    with Crowd(shop, seed=1) as one, Crowd(shop, seed=2) as other:

        def watched() -> bool:
            nonlocal killed
            seen = [at for _ in range(10) for at in shop.ledger().queues]
            for at in seen:
                assert (at.difference, at.misheld) == (0, 0), json.dumps(at.as_json())
            ended = sum(at.gone for at in seen[-len(TABLE["queues"]) :]) - before
            if ended > ENOUGH / 2 and not killed and shop.worker.children:
                killed = True
                psutil.Process(shop.worker.children[0]).kill()
            return ended > ENOUGH

        eventually(watched, 60, message=shop.explain)
    assert (one.error, other.error) == (None, None)
    for queue in ("plain", "keeping"):
        assert shop.settled(queue)["done"] > 0
