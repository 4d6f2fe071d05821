"""Who stops a worker delivery_count nothing to what it ran, which goes back, or ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.apps.basic import Traces, close
from tests.apps.deploys import create
from tests.support.broker import Broker
from tests.support.messages import ids_of
from tests.support.servers import Server, valkey_binary
from tests.support.wait import eventually
from tests.support.worker import Worker, unread
from tests.worker.conftest import POOLS

#: Seconds for a lease to run out and another worker to see it.
TAKE_OVER_SECONDS = 15


class Site:
    """A database with an app to send with, where workers come and go."""

    def __init__(self, url: str, store: str) -> None:
        self.url, self.store = url, store
        self.app: Celery = create(url, store)
        self.broker = Broker(url)
        self.traces = Traces(store)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.traces.client.close()
        self.broker.client.close()
        close(self.app)

    def worker(self, pool: str = "prefork", concurrency: int = 2, **options: Any) -> Worker:
        """Return a worker, not started yet; `settings` are those of its app."""
        env = {
            "CELERIAC_TEST_BROKER": self.url,
            "CELERIAC_TEST_STORE": self.store,
            "CELERIAC_TEST_SETTINGS": json.dumps(options.pop("settings", {})),
        }
        return Worker("tests.apps.deploys", pool, concurrency, env=env, **options)

    def send(self, task: str, *names: str, queue: str = "default") -> None:
        """Send a task for each of these names."""
        for name in names:
            task_name = f"deploys.{task}"
            self.app.tasks[task_name].apply_async((name,), queue=queue, task_id=name)

    def wait_for_starts(self, *names: str) -> None:
        """Wait until so many runs began since the last time, of these names."""
        assert sorted(self.traces.next_start(seconds=20) for _ in names) == sorted(names)

    def let_go(self, names: Sequence[str]) -> None:
        """Let these run to their end, wherever they run now, and see that they are done with."""
        for name in names:
            self.traces.open(name)
        eventually(lambda: set(names) <= self.traces.counts().keys(), 20)
        eventually(self.broker.holds_nothing)
        self.has_charged_nothing()

    def has_charged_nothing(self) -> None:
        """Assert that no message was charged a delivery."""
        assert self.broker.charges() == {}
        assert self.broker.evidence("default") == []


def lose_connections(valkey: Server, site: Site, worker: Worker, connected: int) -> None:
    """Cut what the worker has, also what it has not used yet, until it has connected so often."""
    database = int(site.url.rpartition("/")[2])

    def has_connected() -> bool:
        if worker.log.count("] Connected to") >= connected:
            return True
        valkey.kill_clients(database)
        return False

    eventually(has_connected)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Server]:
    """A server for results, which can be away."""
    server = Server(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture
def site(valkey: Server) -> Iterator[Site]:
    with Site(valkey.fresh_url(), valkey.fresh_url()) as site:
        yield site


def test_work_that_three_deploys_interrupt_runs_and_is_charged_nothing(site: Site) -> None:
    names = ["plain", "retried", "one", "two"]
    site.send("held", "plain")
    site.send("retried", "retried")
    site.send("batch", "one", "two")
    worker = site.worker(concurrency=3)
    for _ in range(3):
        worker.start()
        site.wait_for_starts(*names)
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0
        assert sorted(ids_of(site.broker.payloads("default"))) == sorted(names)
        assert site.broker.holds_nothing()
        assert all("redelivered" in text for text in site.broker.payloads("default"))
        site.has_charged_nothing()
    with worker:
        site.wait_for_starts(*names)
        site.let_go(names)
    assert site.broker.ledger("default")["done"] == len(names)


def test_a_task_that_goes_on_when_it_is_asked_to_end_ends_in_the_worker_that_stops(
    site: Site,
) -> None:
    site.send("stubborn", "stubborn")
    with site.worker() as worker:
        site.wait_for_starts("stubborn")
        os.killpg(worker.pid, signal.SIGTERM)
        site.wait_for_starts("stubborn, asked to end")
        site.let_go(["stubborn"])
        assert worker.wait() == 0
    assert site.broker.ledger("default")["done"] == 1


def test_what_is_killed_after_its_grace_period_is_charged_nothing_in_every_pool(
    site: Site,
) -> None:
    with ExitStack() as stack:
        for queue in (*POOLS, "soft"):
            is_soft = queue == "soft"
            settings = {"worker_soft_shutdown_timeout": 60} if is_soft else {}
            worker = site.worker(
                "prefork" if is_soft else queue, 1, queues=[queue], settings=settings
            )
            stack.callback(worker.kill)
            worker.start()
            site.send("batch" if queue == "threads" else "held", queue, queue=queue)
            site.wait_for_starts(queue)
            eventually(lambda: site.broker.client.exists("celeriac:started"))
            worker.send(signal.SIGQUIT if is_soft else signal.SIGTERM)
            eventually(lambda: not site.broker.client.exists("celeriac:started"))
    assert site.broker.unacked() == len(POOLS) + 1
    with site.worker("threads", 5):
        starts = sorted(site.traces.next_start(seconds=TAKE_OVER_SECONDS) for _ in range(5))
        assert starts == sorted([*POOLS, "soft"])
        site.let_go(starts)


def test_what_is_killed_without_a_word_is_charged(site: Site) -> None:
    site.send("held", "held")
    worker = site.worker("threads", 1)
    worker.start()
    site.wait_for_starts("held")
    eventually(lambda: site.broker.client.exists("celeriac:started"))
    worker.kill()
    with site.worker("threads", 1):
        assert site.traces.next_start(seconds=TAKE_OVER_SECONDS) == "held"
        charge = (1, f"the lease of {worker.name} ran out")
        assert site.broker.charges() == {"held": charge}
        site.traces.open("held")
        eventually(lambda: site.broker.ledger("default").get("done") == 1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_pool_process_that_was_asked_to_end_charges_nothing(
    site: Site, how: signal.Signals
) -> None:
    names = ["plain", "one", "two"]
    site.send("held", "plain")
    site.send("batch", "one", "two")
    with site.worker(concurrency=3) as worker:  # items come back one by one
        site.wait_for_starts(*names)
        for child in worker.children:
            os.kill(child, how)
        site.wait_for_starts(*names)
        site.let_go(names)


@pytest.mark.parametrize("status", [0, 1])
def test_a_task_that_takes_its_process_down_is_charged(site: Site, status: int) -> None:
    site.app.tasks["deploys.exits"].apply_async(("name", status), task_id="name")
    with site.worker(concurrency=1):
        site.wait_for_starts("name", "name")
        eventually(lambda: len(site.broker.evidence("default")) == 1)
        (evidence,) = site.broker.evidence("default")
    assert evidence["reason"] == "poison"


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_what_is_cancelled_with_a_lost_connection_is_charged_nothing(
    valkey: Server, site: Site, pool: str
) -> None:
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    site.send("held", "held")
    with site.worker(pool, 1, settings=settings) as worker:
        for _ in range(3):
            site.wait_for_starts("held")
            eventually(lambda: site.broker.client.exists("celeriac:started"))  # it knows
            connected = worker.log.count("] Connected to")
            valkey.kill_clients(int(site.url.rpartition("/")[2]))
            eventually(lambda n=connected: worker.log.count("] Connected to") > n)
        site.wait_for_starts("held")
        site.let_go(["held"])


@pytest.mark.parametrize("task", ["unwarned", "unclean", "loss_ends", "retried"])
def test_what_is_cancelled_is_charged_nothing_however_its_process_goes(
    valkey: Server, site: Site, task: str
) -> None:
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    site.send(task, "name")
    with site.worker("prefork", 1, settings=settings) as worker:
        for _ in range(3):
            site.wait_for_starts("name")
            eventually(lambda: site.broker.client.exists("celeriac:started"))  # it knows
            connected = worker.log.count("] Connected to")
            valkey.kill_clients(int(site.url.rpartition("/")[2]))
            eventually(lambda n=connected: worker.log.count("] Connected to") > n)
        site.wait_for_starts("name")
        site.let_go(["name"])
    assert site.broker.ledger("default")["done"] == 1


def test_connections_lost_while_a_cancelled_task_ends_charge_nothing(
    valkey: Server, site: Site
) -> None:
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    site.send("stubborn", "name")
    with site.worker("prefork", 1, settings=settings) as worker:
        site.wait_for_starts("name")
        eventually(lambda: site.broker.client.exists("celeriac:started"))  # it knows
        for times in (2, 3, 4):
            lose_connections(valkey, site, worker, times)
        site.let_go(["name"])
    assert site.broker.ledger("default")["done"] == 1


@pytest.mark.parametrize("command", ["pool_restart", "pool_shrink", "autoscale", "shutdown"])
def test_a_command_that_changes_the_pool_charges_nothing(site: Site, command: str) -> None:
    options = ["--autoscale", "3,1"] if command == "autoscale" else []
    site.send("held", "plain")
    site.send("batch", "one", "two")
    settings = {"worker_pool_restarts": True}
    with site.worker(concurrency=3, settings=settings, options=options) as worker:
        site.wait_for_starts("plain", "one", "two")
        arguments = {"pool_shrink": {"n": 1}, "autoscale": {"max": 1, "min": 1}}.get(command)
        ask: dict[str, Any] = {"reply": command != "shutdown", "timeout": 10, "limit": 1}
        site.app.control.broadcast(command, arguments=arguments, **ask)
        if command == "shutdown":
            worker.wait_log("Got shutdown from remote")
        site.let_go(["plain", "one", "two"])
    assert site.traces.counts("started") == {"plain": 1, "one": 1, "two": 1}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("task", ["held", "loss_ends"])
def test_what_is_revoked_and_killed_has_been_revoked_also_when_that_is_stored_late(
    valkey: Server, site: Site, elsewhere: Server, task: str, how: str
) -> None:
    results = elsewhere.fresh_url()
    site.send(task, "name")
    with site.worker("prefork", 1, settings={"result_backend": results}) as worker:
        site.wait_for_starts("name")
        eventually(lambda: site.broker.client.exists("celeriac:started"))  # it knows
        (process,) = worker.children
        elsewhere.stop()
        site.app.control.revoke("name", terminate=True, signal=how)
        eventually(lambda: process not in worker.children, 20)
        worker.wait_log("waiting for the result backend")
        elsewhere.start()
        eventually(site.broker.holds_nothing, 20)
        assert site.broker.ledger("default").get("revoked") == 1
    site.has_charged_nothing()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_cold_shutdown_cuts_a_batch_and_gives_it_back_uncharged(site: Site, pool: str) -> None:
    names = [f"{n}" for n in range(20)]
    site.send("batch", *names, "waits")
    with site.worker(pool, 1) as worker:
        eventually(lambda: site.traces.total("started") >= 20, 20)
        worker.send(signal.SIGQUIT)
        worker.wait()
    assert site.traces.counts() == {}
    assert site.broker.holds_nothing()
    payloads = site.broker.payloads("default")
    assert sorted(ids_of(payloads)) == sorted([*names, "waits"])
    begun = [i for text, i in zip(payloads, ids_of(payloads), strict=True) if "redelivered" in text]
    assert sorted(begun) == sorted(names)
    site.has_charged_nothing()


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_shutdown_lets_a_batch_end_where_nothing_can_cut_it(site: Site, pool: str) -> None:
    site.send("batch", "one", "two")
    with site.worker(pool, 1) as worker:
        eventually(lambda: site.traces.total("started") >= 1, 20)
        worker.send(signal.SIGQUIT)
        worker.wait_log("runs to its end")
        site.traces.open("one")
        worker.wait()
    assert site.broker.holds_nothing()
    site.has_charged_nothing()


def test_a_batch_runs_on_when_the_connection_is_lost(valkey: Server, site: Site) -> None:
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    site.send("batch", "one", "two")
    with site.worker(concurrency=1, settings=settings) as worker:
        site.wait_for_starts("one", "two")
        connected = worker.log.count("] Connected to")
        valkey.kill_clients(int(site.url.rpartition("/")[2]))
        eventually(lambda: worker.log.count("] Connected to") > connected)
        site.let_go(["one", "two"])
    assert site.traces.counts("started") == {"one": 1, "two": 1}


@pytest.mark.parametrize("begins", ["unheard", "after the loop"])
@pytest.mark.parametrize("task", ["held", "batch", "early", "early_batch"])
def test_what_begins_while_the_worker_stops_cold_is_cut_too(
    site: Site, task: str, begins: str
) -> None:
    with site.worker(concurrency=1) as worker:
        (child,) = worker.children
        site.send("held", "before")
        site.let_go(["before"])
        site.wait_for_starts("before")
        os.kill(child, signal.SIGSTOP)
        before = unread(child)
        site.send(task, "name")
        eventually(lambda: unread(child) > before)
        # It has handed over.
        if begins == "unheard":
            os.kill(worker.pid, signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
            site.wait_for_starts("name")
            worker.send(signal.SIGQUIT)
            os.kill(worker.pid, signal.SIGCONT)
        else:
            worker.send(signal.SIGQUIT)
            worker.wait_log("Cold shutdown (MainProcess)")
            os.kill(child, signal.SIGCONT)  # it begins, or it is cut before it has begun
        worker.wait()
    assert site.traces.counts() == {"before": 1}
    has_begun = "name" in site.traces.counts("started")
    assert has_begun or begins == "after the loop"
    # What acknowledges early runs at most once.
    again = [] if task.startswith("early") and has_begun else ["name"]
    assert ids_of(site.broker.payloads("default")) == again
    assert site.broker.holds_nothing()
    site.has_charged_nothing()


def test_a_cold_shutdown_ends_a_warm_one_that_waits_for_its_tasks(site: Site) -> None:
    site.send("held", "one")
    site.send("batch", "two")
    with site.worker(concurrency=2) as worker:
        site.wait_for_starts("one", "two")
        worker.send(signal.SIGTERM)
        worker.wait_log("Warm shutdown")
        worker.send(signal.SIGQUIT)
        worker.wait()
    assert site.traces.counts() == {}
    assert sorted(ids_of(site.broker.payloads("default"))) == ["one", "two"]
    assert site.broker.holds_nothing()
    site.has_charged_nothing()


def test_a_process_that_dies_half_way_through_a_message_holds_up_no_shutdown(site: Site) -> None:
    """Nobody reads the rest of what fills its pipe."""
    with site.worker(concurrency=1) as worker:
        (process,) = worker.children
        site.traces.open("first")
        site.send("held", "first")
        site.traces.next_run()  # the process is up
        eventually(site.broker.holds_nothing)
        os.kill(process, signal.SIGSTOP)
        large = ("x" * 1_000_000,)
        site.app.tasks["deploys.held"].apply_async(large, queue="default", task_id="large")
        eventually(lambda: unread(process) > 4096)
        worker.send(signal.SIGQUIT)
        worker.wait_log("Cold shutdown (MainProcess)")
        os.kill(process, signal.SIGKILL)
        worker.wait()
    assert ids_of(site.broker.payloads("default")) == ["large"]
    assert site.broker.holds_nothing()
    site.has_charged_nothing()
