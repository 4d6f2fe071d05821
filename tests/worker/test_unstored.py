"""What a task became waits until it is stored, and is never found out again because it was not."""

from __future__ import annotations

import gc
import json
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord
from celery.result import denied_join_result

from routing.topology.model import Topology
from tests.apps.basic import Traces, close
from tests.apps.unstored import TABLE, create
from tests.support.broker import Broker
from tests.support.links import Link
from tests.support.messages import task_message
from tests.support.refusals import full, read_only
from tests.support.servers import Server, valkey_binary
from tests.support.wait import eventually
from tests.support.worker import Worker
from tests.worker.conftest import POOLS


@dataclass(kw_only=True)
class Yard:
    """A worker whose results are on a server that can be full, and where its traces are not."""

    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces
    results: redis.Redis
    #: The server of the results, where it is the yard's own.
    server: Server | None = None
    dead_before: int = 0

    def begin(self) -> None:
        """Forget what other tests have done here."""
        self.worker.forget_log()
        self.traces.client.flushdb()
        self.dead_before += self.dead()

    def dead(self) -> int:
        """Return how many dead letters came since the test began."""
        return int(self.broker.ledger("default").get("dead", 0)) - self.dead_before

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.tasks[task].apply_async(args, **options)

    def fill(self) -> None:
        """Let the server of the results take nothing more."""
        self.results.config_set("maxmemory", 1)

    def free(self) -> None:
        self.results.config_set("maxmemory", 0)

    def settled(self) -> bool:
        return self.broker.holds_nothing() and self.broker.length("default") == 0


@contextmanager
def yard(
    pool: str,
    *,
    broker: str,
    results: str,
    store: str,
    settings: Mapping[str, Any] | None = None,
    concurrency: int = 2,
    options: Sequence[str] = (),
) -> Iterator[Yard]:
    env = {
        "CELERIAC_TEST_BROKER": broker,
        "CELERIAC_TEST_RESULTS": results,
        "CELERIAC_TEST_STORE": store,
        "CELERIAC_TEST_SETTINGS": json.dumps(settings or {}),
    }
    worker = Worker("tests.apps.unstored", pool, concurrency, env=env, options=options)
    app = create(broker, results=results, store=store, settings=settings)
    traces, client = Traces(store), redis.Redis.from_url(results)
    with worker, Broker(broker) as view, client:
        yield Yard(app=app, worker=worker, broker=view, traces=traces, results=client)
    gc.collect()  # a result that is forgotten later would look for its server
    close(app)
    traces.client.close()


@pytest.fixture
def spare(tmp_path: Path) -> Iterator[Server]:
    """A server that may be full or away."""
    server = Server(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module", params=POOLS)
def shared(
    request: pytest.FixtureRequest, valkey: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Yard]:
    server = Server(valkey_binary(), tmp_path_factory.mktemp("s"))
    server.start()
    try:
        urls = {"broker": valkey.fresh_url(), "store": valkey.fresh_url()}
        with yard(request.param, results=server.fresh_url(), **urls) as shared:
            shared.server = server
            yield shared
    finally:
        server.close()


@pytest.fixture
def at(shared: Yard) -> Iterator[Yard]:
    """A yard of each pool, which tests share."""
    shared.begin()
    yield shared
    shared.free()


@contextmanager
def away(server: Server) -> Iterator[None]:
    """It is gone, and comes back."""
    server.stop()
    yield
    server.start()


TROUBLES = {"full": full, "read_only": read_only, "away": away}


@pytest.mark.parametrize("how", TROUBLES)
@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_result_server_in_trouble_repeats_nothing_and_loses_nothing(
    at: Yard, task: str, how: str
) -> None:
    assert at.server is not None
    # Who sends subscribes to the result, unless nobody may wait for it here.
    with TROUBLES[how](at.server), denied_join_result():
        sent = [at.send(task, f"item-{n}") for n in range(20)]
        at.worker.wait_log("waiting for the result backend")
    assert [result.get(timeout=20) for result in sent] == [f"item-{n}" for n in range(20)]
    eventually(at.settled)
    assert at.traces.counts() == {f"item-{n}": 1 for n in range(20)}
    assert at.dead() == 0


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_full_server_of_broker_and_results_repeats_nothing(
    valkey: Server, spare: Server, task: str
) -> None:
    url = spare.fresh_url()
    with yard("prefork", broker=url, results=url, store=valkey.fresh_url()) as at:
        held = "held" if task == "plain" else "held_many"
        sent = [at.send(held, f"item-{n}", "gate") for n in range(20)]
        at.traces.next_start()
        at.fill()
        at.traces.open("gate", times=20)
        at.worker.wait_log("waiting for the result backend")
        at.free()
        for result in sent:
            result.get(timeout=20)
        eventually(at.settled)
        assert at.traces.counts() == {f"item-{n}": 1 for n in range(20)}
        assert at.dead() == 0


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_chord_ends_after_its_parts_could_not_be_counted(at: Yard, task: str) -> None:
    held = "held" if task == "plain" else "held_many"
    tasks = at.app.tasks
    body = tasks["plain"].si("body")
    result = chord([tasks[held].si(f"part-{n}", "gate") for n in range(2)])(body)
    at.traces.next_start()
    at.fill()
    at.traces.open("gate", times=2)
    at.worker.wait_log("waiting for the result backend")
    at.free()
    assert result.get(timeout=30) == "body"
    eventually(at.settled)
    assert at.traces.counts() == {"part-0": 1, "part-1": 1, "body": 1}


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_revoked_task_is_told_so_once_its_result_can_be_stored(at: Yard, task: str) -> None:
    at.fill()
    late = at.send(task, "late", expires=-10)
    at.worker.wait_log("waiting for the result backend")
    assert at.broker.unacked() == 1, "its message is held until then"
    assert at.app.control.inspect(timeout=10, limit=1).ping(), "the worker goes on"
    at.free()
    eventually(lambda: late.state == "REVOKED", 20)
    eventually(at.settled)
    assert at.traces.counts() == {}


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_soft_limit_that_passes_while_a_success_waits_does_not_change_it(
    valkey: Server, spare: Server, task: str
) -> None:
    urls = {"broker": valkey.fresh_url(), "store": valkey.fresh_url()}
    options = ["--soft-time-limit", "1"]
    with yard("prefork", results=spare.fresh_url(), **urls, options=options) as at:
        at.fill()
        sent = at.send(task, "done")
        at.worker.wait_log("Soft time limit")
        at.free()
        assert sent.get(timeout=20) == "done"
        eventually(at.settled)
        assert at.traces.counts() == {"done": 1}
        assert at.dead() == 0


@pytest.mark.parametrize("what", ["unknown", "undecodable"])
def test_a_refused_message_is_told_so_once_its_result_can_be_stored(at: Yard, what: str) -> None:
    at.fill()
    if what == "unknown":
        refused = at.app.send_task("nobody.knows.it")
    else:
        refused = at.app.AsyncResult(secrets.token_hex(8))
        at.broker.client.lpush("default", task_message("plain", message_id=refused.id, body="{{{"))
    at.worker.wait_log("waiting for the result backend")
    assert at.broker.unacked() == 1, "its message is held until then"
    at.send("plain", "next", ignore_result=True)
    eventually(lambda: at.traces.counts() == {"next": 1}, message="the worker goes on")
    at.free()
    eventually(lambda: refused.state == "FAILURE", 20)
    eventually(at.settled)
    eventually(lambda: at.dead() == 1)


@pytest.mark.parametrize("how", ["full", "away"])
@pytest.mark.parametrize("task", ["fail", "fail_many"])
def test_an_error_callback_waits_for_a_broker_that_takes_nothing(
    valkey: Server, spare: Server, task: str, how: str
) -> None:
    urls = {"results": valkey.fresh_url(), "store": valkey.fresh_url()}
    with yard("prefork", broker=spare.fresh_url(), **urls, concurrency=1) as at:
        called = at.app.tasks["plain"].si("called")
        # Its process has declared the queue before.
        at.send(task, "before", "open", link_error=called)
        at.traces.open("open")
        eventually(lambda: at.traces.counts() == {"before": 1, "called": 1}, 20)
        eventually(at.settled)
        at.traces.client.delete("starts")
        failed = at.send(task, "failed", "gate", link_error=called)
        at.traces.next_start()
        if how == "full":
            spare.client().config_set("maxmemory", 1)
        else:
            spare.stop()
        at.traces.open("gate")
        at.worker.wait_log("waiting for the broker", 20)
        if how == "full":
            assert failed.state == "FAILURE", "which is stored before"
            spare.client().config_set("maxmemory", 0)
        else:
            spare.start()
        eventually(lambda: at.traces.counts() == {"before": 1, "failed": 1, "called": 2}, 20)
        with pytest.raises(LookupError, match="as it should"):
            failed.get(timeout=10)
        eventually(at.settled)
        assert at.dead() == 2


def test_a_result_that_can_never_be_stored_fails_its_item_alone(at: Yard) -> None:
    ids = [secrets.token_hex(8) for _ in range(3)]
    at.results.lpush(f"celery-task-meta-{ids[1]}", "no string")
    for task_id in ids:
        at.send("many", task_id, task_id=task_id)
    eventually(lambda: at.dead() == 1)
    eventually(at.settled)
    assert at.traces.counts() == dict.fromkeys(ids, 1)
    assert at.app.AsyncResult(ids[0]).get(timeout=10) == ids[0]
    assert at.app.AsyncResult(ids[2]).get(timeout=10) == ids[2]
    at.results.delete(f"celery-task-meta-{ids[1]}")


@pytest.mark.parametrize("task", ["nowhere", "nowhere_many"])
def test_a_retry_that_can_never_be_sent_ends_its_task_as_a_dead_letter(at: Yard, task: str) -> None:
    result = at.send(task, "lost")
    eventually(lambda: at.dead() == 1)
    eventually(lambda: result.state == "FAILURE")
    eventually(at.settled)
    assert at.traces.counts() == {"lost": 1}


def test_a_retry_waits_for_a_broker_that_takes_nothing(valkey: Server, spare: Server) -> None:
    urls = {"results": valkey.fresh_url(), "store": valkey.fresh_url()}
    with yard("prefork", broker=spare.fresh_url(), **urls) as at:
        again = at.send("again", "twice", "gate")
        at.traces.next_start()
        with redis.Redis.from_url(spare.url) as broker:
            broker.config_set("maxmemory", 1)
            at.traces.open("gate")
            at.worker.wait_log("waiting for the broker")
            broker.config_set("maxmemory", 0)
        at.traces.next_start()
        at.traces.open("gate")
        assert again.get(timeout=20) == "twice"
        eventually(at.settled)
        assert at.traces.counts() == {"twice": 2}


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_link_that_can_never_be_sent_is_its_own_tasks_business(valkey: Server, task: str) -> None:
    urls = {"broker": valkey.fresh_url(), "results": valkey.fresh_url()}
    with yard("prefork", store=valkey.fresh_url(), **urls, options=["-Q", "default"]) as at:
        at.broker.client.set("other", "no list")
        link = at.app.tasks["plain"].si("never").set(queue="other")
        sent = [at.send(task, name) for name in ("one", "two")]
        linked = at.send(task, "linked", link=link)
        eventually(lambda: at.dead() == 1, message=lambda: at.worker.log[-5000:])
        eventually(at.settled)
        assert [result.get(timeout=10) for result in sent] == ["one", "two"]
        assert linked.state == "FAILURE"
        assert at.traces.counts() == {"one": 1, "two": 1, "linked": 1}


@pytest.mark.parametrize("task", ["stumble", "stumble_many"])
def test_a_failure_is_never_replaced_by_the_retry_before_it(at: Yard, task: str) -> None:
    names = [f"bad-{n}" for n in range(20)]
    sent = []
    for name in names:
        sent.append(at.send(task, name))
        if task == "stumble_many":
            for n in range(10):
                at.send(task, f"good-{name}-{n}")
    for result in sent:
        with pytest.raises(ValueError, match="bad"):
            result.get(timeout=20)
    eventually(at.settled)
    assert {result.state for result in sent} == {"FAILURE"}


@pytest.mark.parametrize("task", ["plain", "many"])
def test_a_chord_ends_whose_part_was_stored_and_not_counted(valkey: Server, task: str) -> None:
    urls = {name: valkey.fresh_url() for name in ("broker", "results", "store")}
    settings = {"worker_deduplicate_successful_tasks": True, "task_acks_late": True}
    with yard("prefork", settings=settings, **urls) as at:
        at.traces.client.set("kill", 1)
        held = "held" if task == "plain" else "held_many"
        body = at.app.tasks["plain"].si("body")
        link = at.app.tasks["plain"].si("link")
        header = at.app.tasks[held].si("part", "gate")
        header.link(link)
        result = chord([header])(body)
        at.traces.next_start()
        at.traces.open("gate")
        assert result.get(timeout=30) == "body"
        eventually(at.settled)
        counts = at.traces.counts()
        assert (counts["part"], counts["body"]) == (1, 1)
        assert counts["link"] >= 1


@pytest.mark.parametrize(
    ("pool", "task"), [("prefork", "plain"), ("threads", "plain"), ("threads", "many")]
)
def test_a_cold_shutdown_gives_back_what_waits_to_be_stored(
    valkey: Server, spare: Server, pool: str, task: str
) -> None:
    urls = {"broker": valkey.fresh_url(), "store": valkey.fresh_url()}
    with yard(pool, results=spare.fresh_url(), **urls) as at:
        at.fill()
        at.send(task, "once")
        at.worker.wait_log("waiting for the result backend")
        at.worker.send(signal.SIGQUIT)
        at.worker.wait(20)
        assert at.broker.unacked() == 0
        assert at.broker.length("default") == 1
        assert not at.broker.charges(), "nobody is charged"


def test_a_cold_shutdown_before_a_retry_is_stored_sends_it_not(
    valkey: Server, spare: Server
) -> None:
    urls = {"broker": valkey.fresh_url(), "store": valkey.fresh_url()}
    with yard("threads", results=spare.fresh_url(), **urls) as at:
        at.send("again", "once", "gate")
        at.traces.next_start()
        at.fill()
        at.traces.open("gate")
        at.worker.wait_log("waiting for the result backend")
        at.worker.send(signal.SIGQUIT)
        at.worker.wait(20)
        assert at.broker.holds_nothing()
        assert at.broker.length("default") + len(at.broker.delayed("default")) == 1


def test_a_rejected_message_comes_again_later_and_is_never_a_delivery(valkey: Server) -> None:
    urls = {name: valkey.fresh_url() for name in ("broker", "results", "store")}
    with yard("prefork", **urls) as at:
        at.send("refuses", "again")
        at.worker.wait_log("comes again in 1 s")
        at.worker.wait_log("comes again in 2 s")
        assert at.traces.counts()["again"] <= 3
        assert not at.broker.charges()
        # It is said before the broker has it.
        eventually(lambda: at.broker.ledger("default")["given_back"] >= 2)


def test_what_a_silent_link_has_swallowed_is_stored_over_another(valkey: Server) -> None:
    """Plain and batched, in every pool at once: none of them waits for Celery's two minutes."""
    names = [f"{task}-{n}" for task in ("plain", "many") for n in range(10)]
    with ExitStack() as stack:
        link = stack.enter_context(Link(valkey.port))
        places = [stack.enter_context(behind(link, valkey, pool)) for pool in POOLS]
        for at in places:
            for task in ("plain", "many"):  # each process of a pool connects
                sent = [at.send(task, "before") for _ in range(4)]
                [result.get(timeout=20) for result in sent]
            eventually(at.settled)
        assert link.silence() > 0
        ids = {}
        for at in places:
            at.begin()
            ids[at.worker.name] = [at.send(name.partition("-")[0], name).id for name in names]
        for at in places:
            eventually(at.settled, 30, message=lambda at=at: at.worker.log[-5_000:])  # type: ignore[misc]
            assert at.traces.counts() == dict.fromkeys(names, 1)
            kept = [at.results.get(f"celery-task-meta-{one}") for one in ids[at.worker.name]]
            assert [json.loads(one or b"{}").get("status") for one in kept] == (
                ["SUCCESS"] * len(names)
            )


@contextmanager
def behind(link: Link, valkey: Server, pool: str) -> Iterator[Yard]:
    """A worker whose results go over a link, which the test looks at past it."""
    results = valkey.fresh_url()
    urls = {"broker": valkey.fresh_url(), "store": valkey.fresh_url()}
    settings = {"lease_seconds": 8.0}
    with yard(pool, results=link.url(results, valkey.port), settings=settings, **urls) as at:
        app = create(urls["broker"], results=results, store=urls["store"], settings=settings)
        client = redis.Redis.from_url(results)
        yield replace(at, app=app, results=client)
        close(app)
        client.close()


def test_a_task_that_dies_after_its_retry_was_sent_is_stopped_all_the_same(valkey: Server) -> None:
    """The retry has the same id; that it ended forgives only itself."""
    urls = {name: valkey.fresh_url() for name in ("broker", "results", "store")}
    with yard("prefork", **urls) as at:
        at.send("retries_and_dies", "poison")
        most = Topology.load(TABLE).queue("default").max_deliveries
        eventually(lambda: at.dead() == most + 1, 60)
        eventually(at.settled)
        assert at.traces.counts() == {"poison-0": most, "poison-1": most}
