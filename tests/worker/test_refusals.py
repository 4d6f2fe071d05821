"""A broker that refuses for a moment: no worker ends, nobody is charged, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from routing.redis import ledger as books
from routing.redis.ledger import Ledger
from tests.apps.basic import Traces, close
from tests.apps.refusals import TABLE, create
from tests.support.broker import Broker
from tests.support.refusals import REFUSALS, is_well, outage
from tests.support.servers import Server, valkey_binary
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS

ENDINGS = ("succeed", "fail", "retry")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A worker of one pool, and a broker that a test may disturb."""

    app: Celery
    worker: Worker
    server: Server
    broker: Broker
    traces: Traces

    def send(self) -> dict[str, str]:
        """Send what ends in every way, plain and batched, at once and delayed: name -> id."""
        attempt, item = self.app.tasks["refusals.attempt"], self.app.tasks["refusals.item"]
        ids: dict[str, str] = {}
        for n in range(8):
            for how in ENDINGS:
                name = f"{how}-{n}"
                options = {"countdown": 0.2 * n} if n % 4 == 3 else {}
                ids[name] = attempt.apply_async((name, how, 0.05), **options).id
        for n in range(20):
            how = ENDINGS[n % 2]
            name = f"{how}-item-{n}"
            ids[name] = item.delay({"name": name, "how": how}).id
        for n in range(10):
            name = f"retry-item-{n}"
            ids[name] = item.delay({"name": name, "how": "retry"}).id
        return ids

    def ledger(self) -> Ledger:
        with self.app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            return books.read(channel.plain_client, channel.commands, recount=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A broker of its own: these tests change how it behaves."""
    protected = ["--enable-protected-configs", "yes"]
    server = Server(valkey_binary(), tmp_path_factory.mktemp("r"), arguments=protected)
    server.start()
    yield server
    server.close()


@contextmanager
def place(pool: str, url: str, store: str, server: Server) -> Iterator[Place]:
    env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_STORE": store}
    app, traces = create(url, store=store), Traces(store)
    worker = Worker("tests.apps.refusals", pool, env=env, options=["--events"])
    with ExitStack() as stack:
        stack.callback(close, app)
        stack.callback(traces.client.close)
        broker = stack.enter_context(Broker(url))
        stack.enter_context(worker)
        yield Place(app=app, worker=worker, server=server, broker=broker, traces=traces)


@pytest.fixture(scope="module")
def places(valkey: Server, server: Server) -> Iterator[dict[str, Place]]:
    """A worker of each pool, all on the broker that is in trouble."""
    with ExitStack() as stack:
        yield {
            pool: stack.enter_context(place(pool, server.fresh_url(), valkey.fresh_url(), server))
            for pool in POOLS
        }


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a worker had before the trouble: its process, its dead letters, what was sent."""

    pid: int
    dead: dict[str, int]
    ids: dict[str, str]


@pytest.fixture(scope="module", params=REFUSALS)
def before(
    request: pytest.FixtureRequest, places: dict[str, Place], server: Server
) -> dict[str, Before]:
    """Let the broker be in trouble for a moment, in the middle of the work of all workers."""
    found = {}
    for pool, at in places.items():
        dead = {queue: len(at.broker.dead(queue)) for queue in TABLE["queues"]}
        at.traces.client.delete("ran", "runs")
        found[pool] = Before(pid=at.worker.pid, dead=dead, ids=at.send())
    for at in places.values():
        at.traces.next_run()
    with outage(server, request.param):
        pass
    eventually(lambda: is_well(server))
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_outlives_a_broker_that_refuses_and_owes_nothing_after_it(
    places: dict[str, Place], before: dict[str, Before], pool: str
) -> None:
    at, ids, dead = places[pool], before[pool].ids, before[pool].dead

    def states() -> dict[str, str]:
        return {name: at.app.backend.get_state(task_id) for name, task_id in ids.items()}

    expected = {n: "FAILURE" if n.startswith("fail") else "SUCCESS" for n in ids}
    eventually(
        lambda: states() == expected,
        20,
        message=lambda: f"{set(states().items()) - set(expected.items())}\n{at.worker.log[-9000:]}",
    )
    eventually(at.broker.holds_nothing, message=lambda: at.worker.log[-9000:])
    runs = at.traces.counts()
    odd = {n: c for n, c in runs.items() if c != (2 if n.startswith("retry") else 1)}
    assert odd == {}, at.worker.log[-9000:]
    letters = {q: [e["reason"] for e in at.broker.evidence(q)[dead[q] :]] for q in dead}
    assert letters == {"default": [], "bulk": ["failed"] * 8, "items": ["failed"] * 10}
    assert not at.broker.charges()
    assert {q.queue: q.difference for q in at.ledger().queues if q.difference} == {}
    assert at.worker.running
    assert at.worker.pid == before[pool].pid
    assert "Unrecoverable" not in at.worker.log


@pytest.mark.parametrize("how", ["busy", "crowded"])
@pytest.mark.parametrize("task", ["refusals.attempt", "refusals.item"])
def test_a_retry_waits_for_a_broker_that_refuses_the_first_connection_of_its_process(
    valkey: Server, server: Server, task: str, how: str
) -> None:
    url, store = server.fresh_url(), valkey.fresh_url()
    env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_STORE": store}
    app, traces = create(url, store=store), Traces(store)
    with ExitStack() as stack:
        stack.callback(close, app)
        stack.callback(traces.client.close)
        broker = stack.enter_context(Broker(url))
        worker = stack.enter_context(Worker("tests.apps.refusals", "prefork", 1, env=env))
        value = {"name": "again", "how": "retry"}
        arguments = ("again", "retry", 0.1) if task == "refusals.attempt" else (value,)
        again = app.tasks[task].delay(*arguments)
        traces.next_run()
        with outage(server, how):
            pass
        assert again.get(timeout=20) == "again", worker.log[-9000:]
        assert traces.counts() == {"again": 2}
        eventually(broker.holds_nothing)
        assert not any(broker.dead(queue) for queue in TABLE["queues"])
